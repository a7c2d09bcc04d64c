"""Reading a teacher's reply: think tags, the chain of thought, the answer and its JSON, and what is wrong with it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from steps.lib.complaints import no_answer, no_json, no_marker, off_schema
from steps.lib.mending import Reading, read_json
from steps.lib.prompt_parts import ByLanguage, ChainOfThought

_THINK = re.compile(r"\A\s*(?:<think>)?(.*?)</think>", re.DOTALL)
_REFUSAL = re.compile(
    r"\A\W*(?:(?:i'?m|i am|we are)?\s*(?:very |so |really )?sorry\b[^.\n]{0,20}"
    r"\b(?:i|we) (?:can't|can’t|cannot|can not|am unable|won't)"
    r"|i (?:can't|can’t|cannot|am unable to|won't) (?:help|assist|answer|provide|comply|do that)"
    r"|as an? (?:ai|artificial intelligence|language model)\b"
    r"|(?:很|非常|十分)?(?:抱歉|对不起|不好意思)[，,、 ]*(?:但)?我(?:不能|无法|没有办法|没办法)"
    r"|我(?:不能|无法)(?:回答|提供|协助|帮助|满足)|作为(?:一个|一名)?(?:AI|ai|人工智能|语言模型))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Parsed:
    """A reply, read. ``flags``: empty, think_tag, repaired, unparsed, schema, refusal."""

    answer: str
    thought: str = ""
    flags: tuple[str, ...] = ()
    value: Any = None
    """The answer's JSON value where the file has a schema; None too where it is missing: unparsed or off the schema."""
    repairs: tuple[str, ...] = ()
    """What was mended before it could be read (steps/lib/mending.py)."""
    problem: ByLanguage | None = None
    """Why the answer has not the asked form, for whoever wrote it; None: it has."""


def read_reply(text: str, chain: ChainOfThought, validator: Any = None) -> Parsed:
    """Read a reply. Nothing is guessed: what has not the asked form, and cannot be given it without a doubt
    (steps/lib/mending.py), is flagged ``unparsed`` or ``schema``, and its value is missing.

    Args:
        text: the reply, as it came.
        chain: whether a thought was asked for, and what becomes of it.
        validator: of the answer's schema; None: the answer is any text.
    """
    flags: list[str] = []
    thought, said = "", text.strip()
    if (found := _THINK.match(said)) or said.startswith("<think>"):
        flags.append("think_tag")
        thought = (found.group(1) if found else said.removeprefix("<think>")).strip()
        said = said[found.end() :].strip() if found else ""
    whole, clear = said, True
    if chain.mode != "none" and said:
        spoken, said, clear = chain.split(said)
        thought = "\n".join(part for part in (thought, spoken) if part)
    answer, reading, problem = said, None, None
    if not said:
        flags.append("empty")
        problem = no_answer()
    elif not clear:
        flags.append("unparsed")
        problem = no_marker(chain.marker)
    else:
        if validator is not None:
            reading, problem = read_answer(said, validator)
        if reading and reading.repairs:
            answer = reading.text
            flags.append("repaired")
        if problem:
            flags.append("schema" if reading else "unparsed")
        bare = validator is None or problem is not None or (reading is not None and "around" in reading.repairs)
        if bare and _REFUSAL.match(said):
            flags.append("refusal")
    return Parsed(
        answer=whole.removesuffix(said) + answer if chain.mode == "keep" else answer,
        thought=thought if chain.mode == "apart" else "",
        flags=tuple(flags),
        value=reading.value if reading and not problem else None,
        repairs=reading.repairs if reading else (),
        problem=problem,
    )


def read_answer(answer: str, validator: Any) -> tuple[Reading | None, ByLanguage | None]:
    """The JSON of an answer, and what is wrong with it. Without a reading, it is not JSON."""
    try:
        reading = read_json(answer)
    except ValueError as error:
        return None, no_json(error)
    return reading, None if validator.is_valid(reading.value) else off_schema(validator, reading.value)
