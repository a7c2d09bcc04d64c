"""Layouts of rows as they are published: alpaca, ShareGPT, messages, TRL, HH. Found by their columns, turned into rows.

A record is one row of a file as a plain mapping; ``convert`` gives the fields of one of our rows, or raises ``Bad``.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from steps.lib.rows import Chat, Message, Pair, Prompt, Row, Text, Thumb
from steps.lib.turns import TOOLS, Bad, alpaca_turns, check_order, shared_turns, string, transcript, turns_of

Layout = Literal[
    "text", "prompt", "alpaca", "sharegpt", "messages", "prompt_completion", "preference", "sharegpt_preference", "hh",
    "alpaca_preference", "openai_preference",
]  # fmt: skip

FITS: dict[type[Row], tuple[Layout, ...]] = {
    Text: ("text",),
    Prompt: ("prompt", "alpaca", "sharegpt", "messages"),
    Chat: ("prompt_completion", "alpaca", "sharegpt", "messages"),
    Pair: ("sharegpt_preference", "openai_preference", "alpaca_preference", "hh", "preference"),
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
    "alpaca_preference": ("instruction", "chosen", "rejected"),
    "openai_preference": ("input", "preferred_output", "non_preferred_output"),
    "hh": ("chosen", "rejected"),
}
"""Columns by which a layout is known."""

RESERVED = ("id", "lang", "source")
VERDICTS = ("label", "kto_tag")
"""Columns of a thumb, either of which will do: TRL's, and LLaMA-Factory's (data/README.md, KTO dataset)."""
UP_DOWN = {"true": True, "1": True, "false": False, "0": False}
"""A verdict in words, as CSV files have it."""


def detect(kind: type[Row], columns: Collection[str], sample: Sequence[Mapping[str, Any]]) -> tuple[Layout, ...]:
    """The layouts of ``kind`` whose columns are all there. The first is taken; the others are as likely, unless their columns are
    among those of the first.

    Args:
        columns: column names of the file.
        sample: records, to tell an HH transcript from a plain preference.
    """
    said = next((record["chosen"] for record in sample if isinstance(record.get("chosen"), str)), "")
    found: list[Layout] = []
    for layout in FITS[kind]:
        needs = set(_needs(kind, layout))
        if layout == "hh" and ("prompt" in columns or not said.startswith("\n\nHuman:")):
            continue
        if not needs <= set(columns) or kind is Thumb and not set(VERDICTS) & set(columns):
            continue
        if not found or not any(needs <= set(_needs(kind, other)) for other in found):
            found.append(layout)
    return tuple(found)


def _needs(kind: type[Row], layout: Layout) -> tuple[str, ...]:
    return NEEDS[layout][:1] if (kind, layout) == (Prompt, "alpaca") else NEEDS[layout]


def ways(kind: type[Row]) -> str:
    """The layouts that can give a kind of row, with their columns, for messages."""
    also = f", {' or '.join(VERDICTS)}" if kind is Thumb else ""
    return "; ".join(f"{name} ({', '.join(NEEDS[name])}{also})" for name in FITS[kind])


_NO_TOOLS = (
    "the row comes with tools, which no chat template here is given: it would teach calls of tools that are not there"
)


def convert(kind: type[Row], layout: Layout, record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row of ``kind``, without id, lang and source.

    Raises:
        Bad: the record does not fit.
    """
    if kind is not Text and kind is not Prompt:
        for name in TOOLS:
            if name in record and record[name] not in (None, "", "[]", [], {}):
                raise Bad("tools", name, _NO_TOOLS)
    return _CONVERT[kind](layout, record)


def _text(layout: Layout, record: Mapping[str, Any]) -> dict[str, Any]:
    return {"text": string(record, "text")}


def _prompt(layout: Layout, record: Mapping[str, Any]) -> dict[str, Any]:
    if layout == "prompt" and isinstance(record.get("prompt"), str):
        if isinstance(record.get("facts"), str):
            return {"prompt": string(record, "prompt"), "facts": record["facts"]}
        return {"prompt": string(record, "prompt"), "facts": _rest(record, ("prompt",))}
    if layout == "alpaca":
        turns = alpaca_turns(record, answered=bool(record.get("output")))
    else:
        turns = turns_of(record, {"prompt": "prompt", "sharegpt": "conversations"}.get(layout, "messages"))
    asked = [turn for turn in turns if turn.role == "user"]
    if len(asked) != 1:
        raise Bad("not_one_user_turn", "messages", f"{len(asked)} user turns, where a prompt has one")
    facts = {"reference": turns[-1].content} if turns[-1].role == "assistant" else {}
    return {"prompt": asked[0].content, "facts": json.dumps(facts, ensure_ascii=False)}


def _chat(layout: Layout, record: Mapping[str, Any]) -> dict[str, Any]:
    if record.get("label") is False:
        raise Bad("label_false", "label", "the file marks this answer as a bad one")
    if layout == "alpaca":
        turns = alpaca_turns(record, answered=True)
    elif layout == "prompt_completion":
        turns = [*turns_of(record, "prompt"), *turns_of(record, "completion", alone="assistant")]
    else:
        turns = turns_of(record, "conversations" if layout == "sharegpt" else "messages")
    field = {"alpaca": "output", "prompt_completion": "completion", "sharegpt": "conversations"}.get(layout, "messages")
    check_order(turns, field)
    return {"messages": turns}


def _pair(layout: Layout, record: Mapping[str, Any]) -> dict[str, Any]:
    if layout == "openai_preference":
        record = _from_openai(record)
    if layout == "hh":
        chosen, rejected = (transcript(record, name) for name in ("chosen", "rejected"))
        prompt: list[Message] = []
    elif layout == "alpaca_preference":
        prompt = alpaca_turns(record, answered=False)
        chosen, rejected = (turns_of(record, name, alone="assistant") for name in ("chosen", "rejected"))
    else:
        field = "conversations" if layout == "sharegpt_preference" else "prompt"
        prompt = turns_of(record, field) if field == "conversations" or record.get(field) is not None else []
        chosen, rejected = (turns_of(record, name, alone="assistant") for name in ("chosen", "rejected"))
    if not prompt:
        prompt = shared_turns(chosen, rejected)
    if prompt and chosen[: len(prompt)] == prompt and rejected[: len(prompt)] == prompt:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns:
            raise Bad("equal_pair", name, "chosen and rejected are the same conversation")
        check_order([*prompt, *turns], name)
        if len(turns) != 1:
            raise Bad("prompts_differ", name, "more than the last answer differs between chosen and rejected")
    evidence = record.get("evidence")
    if not isinstance(evidence, str):
        used = ("prompt", "conversations", "chosen", "rejected", "margin", "system", "evidence")
        asked = ("instruction", "input", "history") if layout == "alpaca_preference" else ()
        evidence = _rest(record, (*used, *asked))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "evidence": evidence, "margin": _margin(record)}


def _margin(record: Mapping[str, Any]) -> float:
    """How much better chosen is; 0 where nobody says."""
    value = record.get("margin")
    if value in (None, ""):
        return 0.0
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and math.isfinite(margin := float(value)):  # type: ignore[arg-type]
            return margin
    raise Bad("wrong_type", "margin", f"got {type(value).__name__} {value!r:.40}, where a number is needed")


def _from_openai(record: Mapping[str, Any]) -> dict[str, Any]:
    """A row of OpenAI's preference format under TRL's names."""
    asked = record.get("input")
    if not isinstance(asked, Mapping):
        raise Bad("wrong_type", "input", f"got {type(asked).__name__}, where an object with messages is needed")
    for name in TOOLS:
        if asked.get(name):
            raise Bad("tools", f"input.{name}", _NO_TOOLS)
    moved = {
        "prompt": asked.get("messages"),
        "chosen": record.get("preferred_output"),
        "rejected": record.get("non_preferred_output"),
    }
    rest = {name: value for name, value in record.items() if name not in NEEDS["openai_preference"]}
    return {**rest, **moved}


def _thumb(layout: Layout, record: Mapping[str, Any]) -> dict[str, Any]:
    label = _verdict(record)
    if layout == "prompt_completion":
        prompt, completion = turns_of(record, "prompt"), turns_of(record, "completion", alone="assistant")
        field = "completion"
    else:
        field = {"alpaca": "output", "sharegpt": "conversations"}.get(layout, "messages")
        turns = alpaca_turns(record, answered=True) if layout == "alpaca" else turns_of(record, field)
        prompt, completion = turns[:-1], turns[-1:]
    check_order([*prompt, *completion], field)
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


def _rest(record: Mapping[str, Any], used: Sequence[str]) -> str:
    """The columns nobody used, as JSON; they are labels."""
    rest = {name: value for name, value in record.items() if name not in (*used, *RESERVED)}
    try:
        return json.dumps(rest, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # a float of Parquet that JSON has no number for
        return json.dumps(_named(rest), ensure_ascii=False, default=str)


def _named(value: Any) -> Any:
    """NaN and infinities as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _named(item) for name, item in value.items()}
    return [_named(item) for item in value] if isinstance(value, (list, tuple)) else value
