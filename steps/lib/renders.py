"""One conversation, rendered three times: as training encodes it, as evaluation asks it, and as a server renders it.

A server knows the folder alone: it renders the whole conversation with the template that lies there and cuts the text into tokens
in one go. Training and evaluation go turn by turn (``chat``). Where the two differ, the model is served tokens that it never saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steps.lib import chat

ANSWER = "好的, done."
"""Stands for an answer where training's rendering needs one."""


def differing(tokenizer: Any, served: Any, turns: chat.Turns) -> list[str]:
    """What is wrong with one conversation; empty when the three agree byte by byte and token by token.

    Args:
        tokenizer: that training and evaluation use.
        served: that a server would load.
        turns: the conversation, which the assistant is to answer.

    Raises:
        ModelError: the template cannot be used at all (``chat.encode_prompt``).
        DataError: the conversation cannot be encoded.
    """
    plain = chat.plain(turns)
    asked = chat.encode_prompt(tokenizer, plain)
    trained = chat.encode(tokenizer, [*plain, {"role": "assistant", "content": ANSWER}]).input_ids
    text = str(served.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))
    sent = list(served(text, add_special_tokens=False)["input_ids"])
    ours = str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))
    problems: list[str] = []
    if ours != text:
        problems.append(_problem(plain, "serving renders another text", _apart(text, ours)))
    if trained[: len(asked)] != asked:
        problems.append(_problem(plain, "training sees other tokens than evaluation", _apart(trained, asked)))
    if sent != asked:
        problems.append(_problem(plain, "serving sends other tokens than evaluation", _apart(sent, asked)))
    return problems


def _apart(found: Sequence[Any], wanted: Sequence[Any]) -> str:
    """The first place where two differ."""
    at = next((k for k, (one, other) in enumerate(zip(found, wanted, strict=False)) if one != other), None)
    at = min(len(found), len(wanted)) if at is None else at
    return f"{found[at : at + 12]!r} where {wanted[at : at + 12]!r} was expected, at place {at}"


def _problem(turns: list[dict[str, str]], what: str, difference: str) -> str:
    return (
        f"conversation {turns[-1]['content']!r:.60} is not rendered alike: {what}: got {difference}, because the chat template or "
        "the tokenizer differs, or cuts the text elsewhere when turns are joined; serve with the tokenizer that was trained with"
    )
