"""One way to turn conversations into tokens, for training, preference and evaluation alike.

The conversation is cut at each assistant turn: what comes before is rendered with the generation prompt, as at inference, and
tokenised apart from the turn. So training sees exactly the token boundaries that generation meets, and the loss mask needs no
marks in the template. A template for which this cannot be done is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from steps.lib.errors import DataError, ModelError
from steps.lib.rows import Message

T = TypeVar("T")
IGNORE = -100
"""Label of a token without loss."""

Turns = Sequence[Message] | Sequence[dict[str, str]]


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens. ``labels`` equal ``input_ids`` on assistant tokens (end of turn included), else -100."""

    input_ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        """Tokens that carry loss."""
        return sum(label != IGNORE for label in self.labels)

    def cut(self, length: int) -> Encoded | None:
        """The first ``length`` tokens at most, through the last assistant turn that is whole within them. Where none is,
        all of them, without an end of turn; None when none of them carries loss."""
        kept = self.labels[:length]
        behind = [*self.labels[1:], IGNORE]
        ends = [k + 1 for k, label in enumerate(kept) if label != IGNORE and behind[k] == IGNORE]
        if ends:
            return Encoded(self.input_ids[: ends[-1]], self.labels[: ends[-1]])
        if all(label == IGNORE for label in kept):
            return None
        return Encoded(self.input_ids[:length], kept)


def plain(turns: Turns) -> list[dict[str, str]]:
    """Turns as the plain dicts that templates take."""
    return [t.model_dump() if isinstance(t, Message) else dict(t) for t in turns]


def encode_prompt(tokenizer: Any, turns: Turns) -> list[int]:
    """Tokens of a conversation that the assistant is to answer, generation prompt included."""
    messages = plain(turns)
    ids, _, done = _answered(tokenizer, messages)
    return ids + _ids(tokenizer, _grown(tokenizer, messages, done, prompt=True)[len(done) :])


def encode(tokenizer: Any, turns: Turns) -> Encoded:
    """Tokens and labels of a conversation, through its last assistant turn.

    Raises:
        DataError: no assistant turn, or an answer that holds the token that ends a turn.
        ModelError: the template renders earlier turns differently once later ones follow, or the end of a turn is not an
            end-of-sequence token (the model would never learn to stop).
    """
    messages = plain(turns)
    ids, labels, _ = _answered(tokenizer, messages)
    if not ids:
        raise DataError(
            f"conversation without an assistant turn: got roles {[m['role'] for m in messages]}, because training "
            "needs an answer; drop the row, or add the turn"
        )
    last = len(labels) - next(k for k, label in enumerate(reversed(labels)) if label != IGNORE)
    return Encoded(ids[:last], labels[:last])


def _answered(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[int], str]:
    """Tokens, labels and text of the turns up to the last assistant turn."""
    if messages and messages[0]["role"] == "assistant":
        raise DataError(
            "conversation starts with the assistant: got no turn before its answer, because the row lost its prompt; "
            "drop the row, or add the prompt"
        )
    ids: list[int] = []
    labels: list[int] = []
    done = ""
    for i in (i for i, message in enumerate(messages) if message["role"] == "assistant"):
        before = _grown(tokenizer, messages[:i], done, prompt=True)
        after = _grown(tokenizer, messages[: i + 1], before, prompt=False)
        context = _ids(tokenizer, before[len(done) :])
        answer = _ids(tokenizer, after[len(before) :])
        end = _end(tokenizer, answer, messages[i]["content"])
        ids += context + answer
        labels += [IGNORE] * len(context) + answer[:end] + [IGNORE] * (len(answer) - end)
        done = after
    return ids, labels, done


def _grown(tokenizer: Any, messages: list[dict[str, str]], done: str, *, prompt: bool) -> str:
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    if not text.startswith(done):
        at = next((k for k, (one, other) in enumerate(zip(text, done, strict=False)) if one != other), len(text))
        raise ModelError(
            f"chat template is not prefix-stable: got {text[at : at + 40]!r} in place of {done[at : at + 40]!r}, because "
            "earlier turns are rendered anew once a later one follows, so training would not see what serving sends; "
            "use a template that only appends"
        )
    return text


def encode_pair(tokenizer: Any, prompt: Turns, answer: Turns) -> tuple[list[int], list[int]]:
    """Tokens of a prompt and of the answer to it (end of turn included)."""
    encoded = encode(tokenizer, [*plain(prompt), *plain(answer)])
    context = encode_prompt(tokenizer, prompt)
    if encoded.input_ids[: len(context)] != context:
        raise ModelError(
            "prompt tokens are not a prefix of prompt and answer: got different tokens, because the chat template "
            "renders the prompt differently once an answer follows; use a template that only appends"
        )
    return context, encoded.input_ids[len(context) :]


def encode_answer(tokenizer: Any, prompt: Turns, answer: Turns) -> tuple[list[int], list[int], list[int]]:
    """Tokens of a prompt, of an answer of one or more turns, and which tokens of the answer the assistant says (1, or 0)."""
    context, said = encode_pair(tokenizer, prompt, answer)
    labels = encode(tokenizer, [*plain(prompt), *plain(answer)]).labels
    return context, said, [int(label != IGNORE) for label in labels[len(context) :]]


def each(kind: str, rows: Iterable[tuple[str, Callable[[], T]]]) -> list[T]:
    """What each row's function (an ``encode...``) gives, of rows that must all be used.

    Args:
        kind: what the rows are called, in the plural.
        rows: id and function of each.

    Raises:
        DataError: one, of all rows that cannot be encoded.
    """
    found: list[T] = []
    problems: list[str] = []
    for name, encoded in rows:
        try:
            found.append(encoded())
        except DataError as error:
            problems.append(f"{kind} {name}: {error}")
    if problems:
        raise DataError("\n".join(problems))
    return found


def _end(tokenizer: Any, answer: list[int], content: str) -> int:
    ends = [k for k, token in enumerate(answer) if token == tokenizer.eos_token_id]
    if not ends:
        raise ModelError(
            f"chat template does not close the assistant turn with {tokenizer.eos_token!r}: got "
            f"{tokenizer.decode(answer[-4:])!r} at its end, because the template lacks it or eos_token is another one, so the "
            "model would never learn to stop; set the tokenizer's eos_token to the token that ends a turn"
        )
    if tokenizer.eos_token in content:
        raise DataError(
            f"answer holds the token that ends a turn: got {tokenizer.eos_token!r} inside it, because another chat was pasted into "
            "it; take the token out, or drop the row (clean drops it as special_token)"
        )
    return ends[0] + 1


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
