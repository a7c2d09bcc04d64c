"""Suites of ``evaluate.suites``: what each is configured with, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from steps.lib.config import Neutral, Section
from steps.lib.digests import digest_file
from steps.lib.errors import DataError
from steps.lib.suite_choices import Choices
from steps.lib.suite_format import Format
from steps.lib.suite_instructions import Instructions
from steps.lib.suite_math import Gsm8k
from steps.lib.suites import Suite

BUILT_IN = ("domain", "general", "prompts", "pairs", "cases", "pairwise", "drift")
"""Names of suites that no file may take."""


class SuiteFile(Section):
    """What every suite that is read from a file has."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name of the suite in items, figures and the gate; each has its own."""
    path: Annotated[Path, Neutral]
    """JSONL file; its bytes go into the key, not its path."""
    limit: int | None = Field(None, ge=1)
    """Rows to take from the start; null takes all."""


class IfevalSuite(SuiteFile):
    """IFEval's file of prompts with verifiable instructions (2311.07911): key, prompt, instruction_id_list, kwargs."""

    kind: Literal["ifeval"]
    name: str = "ifeval"
    """Name of the suite in items, figures and the gate; each has its own."""


class RulesSuite(SuiteFile):
    """Prompts in Chinese and English with verifiable instructions, in IFEval's layout with a column lang."""

    kind: Literal["rules"]
    name: str = "rules"
    """Name of the suite in items, figures and the gate; each has its own."""
    path: Annotated[Path, Neutral] = Path("data/seed/rules/instructions.jsonl")
    """JSONL file; its bytes go into the key, not its path."""


class Gsm8kSuite(SuiteFile):
    """Word problems with a number as the answer (2110.14168): question, answer."""

    kind: Literal["gsm8k"]
    name: str = "gsm8k"
    """Name of the suite in items, figures and the gate; each has its own."""


class FormatSuite(SuiteFile):
    """Prompts that ask for JSON, each with its JSON Schema: prompt, schema."""

    kind: Literal["format"]
    name: str = "format"
    """Name of the suite in items, figures and the gate; each has its own."""
    path: Annotated[Path, Neutral] = Path("data/seed/rules/format.jsonl")
    """JSONL file; its bytes go into the key, not its path."""


class ChoicesSuite(SuiteFile):
    """Multiple choice by log-likelihood: question, choices, answer (place from 0, letter, or the choice itself)."""

    kind: Literal["choices"]
    name: str = "choices"
    """Name of the suite in items, figures and the gate; each has its own."""
    path: Annotated[Path, Neutral] = Path("data/seed/rules/choices.jsonl")
    """JSONL file; its bytes go into the key, not its path."""


AnySuite = Annotated[
    IfevalSuite | RulesSuite | Gsm8kSuite | FormatSuite | ChoicesSuite,
    Field(discriminator="kind"),
]

READERS: Mapping[str, Callable[[str, Path, int | None], Suite]] = {
    "ifeval": Instructions.read,
    "rules": Instructions.read,
    "gsm8k": Gsm8k.read,
    "format": Format.read,
    "choices": Choices.read,
}


def read(suites: Sequence[AnySuite], limit: int | None) -> list[Suite]:
    """Read all of them.

    Args:
        limit: items of each, at most; a suite's own limit may be smaller.

    Raises:
        DataError: every problem of every suite.
    """
    found: list[Suite] = []
    problems: list[str] = []
    for one in suites:
        limits = [number for number in (limit, one.limit) if number is not None]
        try:
            found.append(READERS[one.kind](one.name, one.path, min(limits, default=None)))
        except DataError as error:
            problems.append(f"suite {one.name}: {error}")
    if problems:
        raise DataError("\n".join(problems))
    return found


def names_problem(suites: Sequence[AnySuite]) -> str | None:
    """Why the names of the suites cannot be, or None."""
    names = [one.name for one in suites]
    taken = sorted({name for name in names if names.count(name) > 1 or name in BUILT_IN})
    return (
        f"suites have names twice: got {', '.join(taken)}, because figures are named by their suite; give each its own name, "
        f"and none of {', '.join(BUILT_IN)}"
        if taken
        else None
    )


def externals(suites: Sequence[AnySuite]) -> dict[str, str]:
    """Content of every suite's file.

    Raises:
        DataError: files are missing; all of them are named.
    """
    found: dict[str, str] = {}
    problems: list[str] = []
    for one in suites:
        try:
            found[f"suite/{one.name}"] = digest_file(one.path)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return found
