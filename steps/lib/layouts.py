"""Layouts of rows as they are published: alpaca, ShareGPT, messages, TRL, HH. Found by their columns, turned into rows.

A record is one row of a file as a plain mapping; ``convert`` gives the fields of one of our rows, or raises ``Bad``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from steps.lib.rows import Chat, Message, Pair, Prompt, Row, Text, Thumb

Layout = Literal[
    "text", "prompt", "alpaca", "sharegpt", "messages", "prompt_completion", "preference", "sharegpt_preference", "hh"
]

FITS: dict[type[Row], tuple[Layout, ...]] = {
    Text: ("text",),
    Prompt: ("prompt", "alpaca", "sharegpt", "messages"),
    Chat: ("prompt_completion", "alpaca", "sharegpt", "messages"),
    Pair: ("sharegpt_preference", "hh", "preference"),
    Thumb: ("prompt_completion", "alpaca", "sharegpt", "messages"),
}
"""Layouts that can give a kind of row, in the order in which they are tried."""

NEEDS: dict[Layout, tuple[str, ...]] = {
    "text": ("text",),
    "prompt": ("prompt",),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "preference": ("chosen", "rejected"),
    "sharegpt_preference": ("conversations", "chosen", "rejected"),
    "hh": ("chosen", "rejected"),
}
"""Columns by which a layout is known."""

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "observation": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
}
"""Role names of ShareGPT and OpenAI files -> ours. A tool's observation stands where a user's turn stands, and a
function call is what the assistant said (LLaMA-Factory, data/README.md, sharegpt format)."""

RESERVED = ("id", "lang", "source")
VERDICTS = ("label", "kto_tag")
"""Columns of a thumb, either of which will do: TRL's, and LLaMA-Factory's (data/README.md, KTO dataset)."""
UP_DOWN = {"true": True, "1": True, "false": False, "0": False}
"""A verdict in words, as CSV files have it."""


class Bad(Exception):
    """A record that cannot become a row: which field, a reason code, and what was seen."""

    def __init__(self, reason: str, field: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.field, self.detail = reason, field, detail


def detect(kind: type[Row], columns: Collection[str], sample: Mapping[str, Any]) -> Layout | None:
    """The first layout of ``kind`` whose columns are all there; None when there is none.

    Args:
        columns: column names of the file.
        sample: one record, to tell an HH transcript from a plain preference.
    """
    for layout in FITS[kind]:
        needs = NEEDS[layout][:1] if (kind, layout) == (Prompt, "alpaca") else NEEDS[layout]
        if layout == "hh" and ("prompt" in columns or not str(sample.get("chosen", "")).startswith("\n\nHuman:")):
            continue
        if set(needs) <= set(columns) and (kind is not Thumb or set(VERDICTS) & set(columns)):
            return layout
    return None


def ways(kind: type[Row]) -> str:
    """The layouts that can give a kind of row, with their columns, for messages."""
    also = f", {' or '.join(VERDICTS)}" if kind is Thumb else ""
    return "; ".join(f"{name} ({', '.join(NEEDS[name])}{also})" for name in FITS[kind])


def convert(kind: type[Row], layout: Layout, record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row of ``kind``, without id, lang and source.

    Raises:
        Bad: the record does not fit.
    """
    return _CONVERT[kind](layout, record)


def _text(layout: Layout, record: Mapping[str, Any]) -> dict[str, Any]:
    return {"text": _string(record, "text")}


def _prompt(layout: Layout, record: Mapping[str, Any]) -> dict[str, Any]:
    if layout == "prompt" and isinstance(record.get("prompt"), str):
        if isinstance(record.get("facts"), str):
            return {"prompt": _string(record, "prompt"), "facts": record["facts"]}
        return {"prompt": _string(record, "prompt"), "facts": _rest(record, ("prompt",))}
    if layout == "alpaca":
        turns = _alpaca(record, answered=bool(record.get("output")))
    else:
        turns = _turns(record, {"prompt": "prompt", "sharegpt": "conversations"}.get(layout, "messages"))
    asked = [turn for turn in turns if turn.role == "user"]
    if len(asked) != 1:
        raise Bad("not_one_user_turn", "messages", f"{len(asked)} user turns, where a prompt has one")
    facts = {"reference": turns[-1].content} if turns[-1].role == "assistant" else {}
    return {"prompt": asked[0].content, "facts": json.dumps(facts, ensure_ascii=False)}


def _chat(layout: Layout, record: Mapping[str, Any]) -> dict[str, Any]:
    if record.get("label") is False:
        raise Bad("label_false", "label", "the file marks this answer as a bad one")
    if layout == "alpaca":
        turns = _alpaca(record, answered=True)
    elif layout == "prompt_completion":
        turns = [*_turns(record, "prompt"), *_turns(record, "completion", alone="assistant")]
    else:
        turns = _turns(record, "conversations" if layout == "sharegpt" else "messages")
    field = {"alpaca": "output", "prompt_completion": "completion", "sharegpt": "conversations"}.get(layout, "messages")
    _ordered(turns, field)
    return {"messages": turns}


def _pair(layout: Layout, record: Mapping[str, Any]) -> dict[str, Any]:
    if layout == "hh":
        chosen, rejected = (_transcript(record, name) for name in ("chosen", "rejected"))
        prompt: list[Message] = []
    else:
        field = "conversations" if layout == "sharegpt_preference" else "prompt"
        prompt = _turns(record, field) if field == "conversations" or record.get(field) is not None else []
        chosen, rejected = (_turns(record, name, alone="assistant") for name in ("chosen", "rejected"))
    if not prompt:
        prompt = _shared(chosen, rejected)
    if prompt and chosen[: len(prompt)] == prompt and rejected[: len(prompt)] == prompt:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns:
            raise Bad("equal_pair", name, "chosen and rejected are the same conversation")
        _ordered([*prompt, *turns], name)
        if len(turns) != 1:
            raise Bad("prompts_differ", name, "more than the last answer differs between chosen and rejected")
    evidence = record.get("evidence")
    if not isinstance(evidence, str):
        evidence = _rest(record, ("prompt", "conversations", "chosen", "rejected", "margin", "system", "evidence"))
    margin = record.get("margin")
    return {
        "prompt": prompt, "chosen": chosen, "rejected": rejected, "evidence": evidence,
        "margin": float(margin) if isinstance(margin, (int, float)) else 0.0,
    }  # fmt: skip


def _thumb(layout: Layout, record: Mapping[str, Any]) -> dict[str, Any]:
    label = _verdict(record)
    if layout == "prompt_completion":
        prompt, completion = _turns(record, "prompt"), _turns(record, "completion", alone="assistant")
        field = "completion"
    else:
        field = {"alpaca": "output", "sharegpt": "conversations"}.get(layout, "messages")
        turns = _alpaca(record, answered=True) if layout == "alpaca" else _turns(record, field)
        prompt, completion = turns[:-1], turns[-1:]
    _ordered([*prompt, *completion], field)
    if completion[0].role != "assistant":
        raise Bad(
            "role_order", field, f"what was judged begins with a turn of {completion[0].role}, not of the assistant"
        )
    if not any(turn.role == "user" for turn in prompt):
        raise Bad("missing_field", field, "no user turn before the answer that was judged")
    evidence = record.get("evidence")
    if not isinstance(evidence, str):
        used = (
            "prompt",
            "completion",
            "messages",
            "conversations",
            "instruction",
            "input",
            "output",
            "history",
            "system",
        )
        evidence = _rest(record, (*used, *VERDICTS, "evidence"))
    return {"prompt": prompt, "completion": completion, "label": label, "evidence": evidence}


def _verdict(record: Mapping[str, Any]) -> bool:
    """Thumbs up or down. Nothing is guessed: a verdict that is neither is an error of the row."""
    field = next((name for name in VERDICTS if record.get(name) is not None), None)
    if field is None:
        raise Bad(
            "missing_field", VERDICTS[0], f"no {' or '.join(VERDICTS)}; the row has {', '.join(map(str, record))}"
        )
    value = record[field]
    if isinstance(value, (bool, int, str)) and (found := UP_DOWN.get(str(value).strip().lower())) is not None:
        return found
    raise Bad("wrong_type", field, f"got {type(value).__name__} {value!r:.40}, where true or false is needed")


_CONVERT: dict[type[Row], Callable[[Layout, Mapping[str, Any]], dict[str, Any]]] = {
    Text: _text,
    Prompt: _prompt,
    Chat: _chat,
    Pair: _pair,
    Thumb: _thumb,
}


def _string(record: Mapping[str, Any], field: str) -> str:
    """A field that must be text with something in it."""
    value = record.get(field)
    if value is None:
        raise Bad("missing_field", field, f"no {field}; the row has {', '.join(map(str, record)) or 'no field'}")
    if not isinstance(value, str):
        raise Bad("wrong_type", field, f"got {type(value).__name__} {value!r:.60}, where text is needed")
    if not value.strip():
        raise Bad("empty", field, f"{field} is empty")
    return value


def _optional(record: Mapping[str, Any], field: str) -> str:
    """A field that may be missing or empty."""
    return _string(record, field) if record.get(field) not in (None, "") else ""


def _alpaca(record: Mapping[str, Any], *, answered: bool) -> list[Message]:
    """instruction and input are one user turn, joined by a newline; history is a list of (question, answer)."""
    turns = [Message(role="system", content=system)] if (system := _optional(record, "system")) else []
    history = record.get("history") or []
    if not isinstance(history, Sequence) or isinstance(history, str):
        raise Bad("wrong_type", "history", f"got {type(history).__name__}, where (question, answer) pairs are needed")
    for number, turn in enumerate(history):
        if not (isinstance(turn, Sequence) and len(turn) == 2 and all(isinstance(side, str) and side for side in turn)):
            raise Bad("wrong_type", f"history[{number}]", f"got {turn!r:.60}, where (question, answer) is needed")
        turns += [Message(role="user", content=turn[0]), Message(role="assistant", content=turn[1])]
    asked = "\n".join(part for part in (_string(record, "instruction"), _optional(record, "input")) if part)
    turns.append(Message(role="user", content=asked))
    return [*turns, Message(role="assistant", content=_string(record, "output"))] if answered else turns


def _turns(record: Mapping[str, Any], field: str, *, alone: Literal["user", "assistant"] = "user") -> list[Message]:
    """A list of turns, one turn, or a plain text, which is a turn of ``alone``. Both spellings of a turn are read."""
    value = record.get(field)
    if value is None or isinstance(value, str):
        return [Message(role=alone, content=_string(record, field))]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence):
        raise Bad("wrong_type", field, f"got {type(value).__name__}, where a list of turns is needed")
    if not value:
        raise Bad("empty", field, f"{field} has no turn")
    system = _optional(record, "system") if field in ("conversations", "messages") else ""
    turns = [Message(role="system", content=system)] if system else []
    for number, turn in enumerate(value):
        place = f"{field}[{number}]"
        if not isinstance(turn, Mapping):
            raise Bad("wrong_type", place, f"got {type(turn).__name__}, where a turn with role and content is needed")
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if role not in ROLES:
            raise Bad("unknown_role", place, f"got role {role!r:.40}; known are {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise Bad("wrong_type", place, f"got content of type {type(content).__name__}, where text is needed")
        if not content.strip():
            raise Bad("empty", place, "the turn has no text")
        turns.append(Message(role=ROLES[role], content=content))
    return turns


def _ordered(turns: Sequence[Message], field: str) -> None:
    """system?, then user and assistant by turns, the assistant last: what every chat template takes."""
    roles = [turn.role for turn in turns]
    if "assistant" not in roles:
        raise Bad("no_assistant_turn", field, f"the turns are {', '.join(roles)}; nothing is there to learn from")
    if roles[-1] != "assistant":
        raise Bad("last_turn", field, f"the last turn is {roles[-1]}, not assistant")
    spoken = roles[1:] if roles[0] == "system" else roles
    if spoken != [("user", "assistant")[number % 2] for number in range(len(spoken))]:
        raise Bad("role_order", field, f"the turns are {', '.join(roles)}; user and assistant must take turns")


def _transcript(record: Mapping[str, Any], field: str) -> list[Message]:
    """ "\\n\\nHuman: ...\\n\\nAssistant: ..." as turns (Anthropic/hh-rlhf, README)."""
    pieces = re.split(r"\n\n(Human|Assistant):", _string(record, field))
    if pieces[0].strip() or len(pieces) < 3:
        raise Bad("wrong_type", field, "no transcript of the form '\\n\\nHuman: ... \\n\\nAssistant: ...'")
    turns = []
    for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True):
        if not said.strip():
            raise Bad("empty", field, f"a turn of {speaker} has no text")
        turns.append(Message(role="user" if speaker == "Human" else "assistant", content=said.strip()))
    return turns


def _shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> list[Message]:
    """The turns both conversations begin with: the prompt that TRL calls implicit."""
    number = 0
    while number < min(len(chosen), len(rejected)) - 1 and chosen[number] == rejected[number]:
        number += 1
    if number == 0:
        raise Bad("missing_field", "prompt", "no prompt, and chosen and rejected do not begin with the same turns")
    return list(chosen[:number])


def _rest(record: Mapping[str, Any], used: Sequence[str]) -> str:
    """The columns nobody used, as JSON; they are labels."""
    rest = {name: value for name, value in record.items() if name not in (*used, *RESERVED)}
    return json.dumps(rest, ensure_ascii=False, default=str)
