"""Turns of a conversation as they are published: lists with either spelling, one text, alpaca's columns, an HH transcript."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from steps.lib.rows import Message

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "observation": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
}
"""Role names of ShareGPT and OpenAI files -> ours. A tool's observation stands where a user's turn stands, and a
function call is what the assistant said (LLaMA-Factory, data/README.md, sharegpt format)."""

TOOLS = ("tools", "functions", "tool_calls", "function_call")
"""Names under which a row or a turn holds tools."""


class Bad(Exception):
    """A record that cannot become a row: which field, a reason code, and what was seen."""

    def __init__(self, reason: str, field: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.field, self.detail = reason, field, detail


def string(record: Mapping[str, Any], field: str) -> str:
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
    return string(record, field) if record.get(field) not in (None, "") else ""


def alpaca_turns(record: Mapping[str, Any], *, answered: bool) -> list[Message]:
    """instruction and input are one user turn, joined by a newline; history is a list of (question, answer)."""
    turns = [Message(role="system", content=system)] if (system := _optional(record, "system")) else []
    history = record.get("history") or []
    if not isinstance(history, Sequence) or isinstance(history, str):
        raise Bad("wrong_type", "history", f"got {type(history).__name__}, where (question, answer) pairs are needed")
    for number, turn in enumerate(history):
        if not (isinstance(turn, Sequence) and len(turn) == 2 and all(isinstance(side, str) and side for side in turn)):
            raise Bad("wrong_type", f"history[{number}]", f"got {turn!r:.60}, where (question, answer) is needed")
        turns += [Message(role="user", content=turn[0]), Message(role="assistant", content=turn[1])]
    asked = "\n".join(part for part in (string(record, "instruction"), _optional(record, "input")) if part)
    turns.append(Message(role="user", content=asked))
    return [*turns, Message(role="assistant", content=string(record, "output"))] if answered else turns


def turns_of(record: Mapping[str, Any], field: str, *, alone: Literal["user", "assistant"] = "user") -> list[Message]:
    """A list of turns, one turn, or a plain text, which is a turn of ``alone``. Both spellings of a turn are read."""
    value = record.get(field)
    if value is None or isinstance(value, str):
        return [Message(role=alone, content=string(record, field))]
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
        if role in ("tool", "function") or any(turn.get(name) for name in TOOLS):
            raise Bad(
                "tools",
                place,
                "the turn calls a tool or is what a tool gave back, which no chat template here is given",
            )
        if not isinstance(role, str) or role not in ROLES:
            raise Bad("unknown_role", place, f"got role {role!r:.40}; known are {', '.join(ROLES)}")
        if turn.get("weight") == 0:
            raise Bad(
                "weight_zero",
                place,
                "the turn is marked as not to be learnt from, and every answer of a chat is learnt from",
            )
        if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
            content = _parts(content, place)
        if not isinstance(content, str):
            raise Bad("wrong_type", place, f"got content of type {type(content).__name__}, where text is needed")
        if not content.strip():
            raise Bad("empty", place, "the turn has no text")
        turns.append(Message(role=ROLES[role], content=content))
    return turns


def _parts(content: Sequence[Any], place: str) -> str:
    """Content in parts, as OpenAI has it, of which all must be text."""
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise Bad("wrong_type", place, f"got a part of content of type {kind!s:.40}, where text is needed")
    return "".join(part["text"] for part in content)


def check_order(turns: Sequence[Message], field: str) -> None:
    """system?, then user and assistant by turns, the assistant last: what every chat template takes."""
    roles = [turn.role for turn in turns]
    if "assistant" not in roles:
        raise Bad("no_assistant_turn", field, f"the turns are {', '.join(roles)}; nothing is there to learn from")
    if roles[-1] != "assistant":
        raise Bad("last_turn", field, f"the last turn is {roles[-1]}, not assistant")
    spoken = roles[1:] if roles[0] == "system" else roles
    if spoken != [("user", "assistant")[number % 2] for number in range(len(spoken))]:
        raise Bad("role_order", field, f"the turns are {', '.join(roles)}; user and assistant must take turns")


def transcript(record: Mapping[str, Any], field: str) -> list[Message]:
    """ "\\n\\nHuman: ...\\n\\nAssistant: ..." as turns (Anthropic/hh-rlhf, README)."""
    pieces = re.split(r"\n\n(Human|Assistant):", string(record, field))
    if pieces[0].strip() or len(pieces) < 3:
        raise Bad("wrong_type", field, "no transcript of the form '\\n\\nHuman: ... \\n\\nAssistant: ...'")
    turns = []
    for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True):
        if not said.strip():
            raise Bad("empty", field, f"a turn of {speaker} has no text")
        turns.append(Message(role="user" if speaker == "Human" else "assistant", content=said.strip()))
    return turns


def shared_turns(chosen: Sequence[Message], rejected: Sequence[Message]) -> list[Message]:
    """The turns both conversations begin with: the prompt that TRL calls implicit."""
    number = 0
    while number < min(len(chosen), len(rejected)) - 1 and chosen[number] == rejected[number]:
        number += 1
    if number == 0:
        raise Bad("missing_field", "prompt", "no prompt, and chosen and rejected do not begin with the same turns")
    return list(chosen[:number])
