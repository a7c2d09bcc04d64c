"""What is wrong with preference pairs, one by one: rows that teach nothing, or what they should not.

A faulty row is dropped with its reason and kept in dropped.parquet; a fault in more rows than its limit allows fails the step,
because then the source is at fault and not the row. ``pair_survey`` looks at the pairs as a whole.

Source: EVALUATION.md section 10: OpenRLHF #1311, #1313; EasyLM #7; LLaMA-Factory #5455 (identical or empty once cut);
minimind #829 (formats that differ); section 7 (decontamination, again in ``pairs``).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from steps.lib import chat
from steps.lib.benchmarks import benchmark_items, contaminated_rows, heldout_items
from steps.lib.config import Section
from steps.lib.facts import asked, asked_units, fold, normal
from steps.lib.kinds import HELD
from steps.lib.overlap import Decontaminate, Guard, Item, guard
from steps.lib.pair_sources import Book, Kind, Made
from steps.lib.phrases import special_token
from steps.lib.rows import Message, Pair, Row, read_parquet
from steps.lib.rules import parse_strict
from steps.lib.training import TrainSettings

SAMPLED: tuple[Kind, ...] = ("policy", "teacher")
"""Sources whose prompts are ours: an answer there that repeats its prompt is a bad answer, and not a bad row."""
REPEATED = 20
"""Characters of a prompt from which an answer that begins with them holds the prompt."""
TELLING = 12
"""UTF-8 bytes of letters and digits (4 Chinese characters, 12 Latin ones) from which a turn of a held-out case tells by itself."""
_FENCE = re.compile(r"\s*```[\w-]*\n(.*?)\n?```\s*", re.DOTALL)

Fault = str
"""Reason code."""


class PairLimits(Section):
    """How much may be wrong with the pairs before the step fails; null: any share. Faulty rows are dropped whatever the limits."""

    max_length: int = Field(TrainSettings().max_length, ge=8)
    """Tokens of prompt and answer at which training cuts, or drops: what dpo.train.max_length is."""
    max_identical: float | None = Field(0.05, ge=0, le=1)
    """Share of pairs whose sides are equal."""
    max_empty: float | None = Field(0.05, ge=0, le=1)
    """Share of pairs with a side that says nothing."""
    max_identical_cut: float | None = Field(0.1, ge=0, le=1)
    """Share of pairs whose sides are equal as far as max_length goes."""
    max_empty_cut: float | None = Field(0.1, ge=0, le=1)
    """Share of pairs whose prompt leaves no room for an answer within max_length."""
    max_prompt_mismatch: float | None = Field(0.02, ge=0, le=1)
    """Share of pairs whose sides do not answer the same prompt."""
    max_special_token: float | None = Field(0.05, ge=0, le=1)
    """Share of pairs with a chat template's own mark in a text."""
    max_heldout: float | None = Field(0.01, ge=0, le=1)
    """Share of pairs that hold a held-out row or a benchmark."""
    max_format_only: float | None = Field(0.2, ge=0, le=1)
    """Share of pairs whose sides say the same in another format. They stay: the format may be what is to be learnt."""
    max_longer_share: float | None = Field(0.9, ge=0.5, le=1)
    """Share of pairs in which the same side is the longer one; it fails when the share is surely higher (95 %)."""
    max_length_ratio: float | None = Field(2.0, ge=1)
    """Ratio (geometric mean) of the sides' lengths in tokens; it fails when the ratio is surely higher (95 %)."""
    max_separable: float | None = Field(0.9, ge=0, le=1)
    """Share of pairs that three rules on the surface tell right, found on other pairs; it fails when the share is surely higher."""
    decontaminate: Decontaminate | None = Decontaminate()
    """How much of a held-out row or benchmark a pair may hold; null does not look."""


ROW_FAULTS: dict[Fault, tuple[str, str]] = {
    "prompt_mismatch": ("max_prompt_mismatch", "sides do not answer the same prompt; mend the source's columns or layout"),
    "empty": ("max_empty", "a side says nothing; mend the source, or raise pairs.max_tokens"),
    "identical": ("max_identical", "sides are equal; mend the source"),
    "special_token": ("max_special_token", "a text holds a chat template's mark; clean the source (clean.filters.special_tokens)"),
    "heldout": ("max_heldout", "held-out rows are in the pairs, so evaluation would be of no use; find out how they passed clean"),
    "empty_cut": ("max_empty_cut", "prompts leave no room within max_length; raise it in pairs.lint and dpo.train"),
    "identical_cut": ("max_identical_cut", "sides differ behind max_length only; raise it in pairs.lint and dpo.train"),
}  # fmt: skip
"""Fault of a row -> its limit, and what it means and what to do."""


@dataclass(frozen=True)
class Linted:
    """Pairs that are sound, and what is known of them."""

    made: Made
    lengths: dict[str, tuple[int, int]]
    """Id -> tokens of chosen and rejected answer, whole."""
    faults: Counter[Fault]
    """Reason -> rows that were dropped."""
    looked: int
    """Rows that were looked at."""

    def problems(self, limits: PairLimits) -> list[str]:
        """Faults in too many rows."""
        found: list[str] = []
        for fault, (limit, meaning) in ROW_FAULTS.items():
            most, count = getattr(limits, limit), self.faults[fault]
            if most is not None and count > most * self.looked:
                cause, _, way = meaning.partition("; ")
                found.append(
                    f"pairs have the fault {fault}: got {count} of {self.looked} ({count / self.looked:.1%}, where "
                    f"pairs.lint.{limit} allows {most:.1%}), because {cause}; "
                    f"look at them in dropped.parquet of the step's folder, {way}"
                )
        return found

    def figures(self) -> dict[str, int]:
        """Faults by reason, for the manifest."""
        return {f"lint/{fault}": self.faults[fault] for fault in (*ROW_FAULTS, "duplicate", "contradiction")}


@dataclass(frozen=True)
class Guarded:
    """What no pair may hold."""

    table: Guard
    copies: dict[str, str]
    """What held-out rows ask, folded -> id. The table knows no text of under 5 tokens."""
    config: Decontaminate

    @classmethod
    def of(cls, data: Path, config: Decontaminate, more: Sequence[Item] = ()) -> Guarded:
        """The held-out sets of an artifact of clean, and benchmarks.

        Args:
            data: the artifact.
            config: how much of a text is too much, and benchmarks.
            more: other texts that no pair may hold.

        Raises:
            DataError: a held-out file or a benchmark cannot be read: what is not read guards nothing.
        """
        rows: list[Row] = []
        for kind in HELD:
            rows += read_parquet(data / f"{kind.held}.parquet", kind.held_row)
        copies = {mark: row.id for row in reversed(rows) if (mark := fold(asked(row)))}
        copies |= {mark: item.id for item in more if len((mark := fold(item.text)).encode()) >= TELLING}
        items = [*benchmark_items(config), *more, *heldout_items(rows, config)]
        return cls(guard(items, config), copies, config)

    def held_in(self, pairs: Sequence[Pair]) -> list[str]:
        """For each pair what it holds, or ""."""
        found = contaminated_rows(pairs, self.table, self.config)
        return [
            hit[1] if hit else next((f"copy of {self.copies[fold(u)]}" for u in asked_units(pair) if fold(u) in self.copies), "")
            for pair, hit in zip(pairs, found, strict=True)
        ]  # fmt: skip


def lint(
    made: Mapping[Kind, Sequence[Pair]], tokenizer: Any, limits: PairLimits, guarded: Guarded | None, book: Book
) -> Linted:
    """Drop what is wrong, row by row; equal pairs of two sources but one, and pairs that contradict each other, both.

    Args:
        made: pairs by source.
        tokenizer: of the model that is trained on them.
        limits: for max_length.
        guarded: what no pair may hold; None: it is not looked for.
        book: gets what is dropped.
    """
    special = set(map(str, tokenizer.all_special_tokens))
    kept: Made = {}
    lengths: dict[str, tuple[int, int]] = {}
    faults: Counter[Fault] = Counter()
    seen = Counter(_sides(pair) for pairs in made.values() for pair in pairs)
    taken: set[tuple[str, str, str]] = set()
    for kind, pairs in made.items():
        held = guarded.held_in(pairs) if guarded else [""] * len(pairs)
        kept[kind] = []
        for pair, hit in zip(pairs, held, strict=True):
            question, one, other = _sides(pair)
            fault, detail = fault_of(pair, special, sampled=kind in SAMPLED)
            if not fault and hit:
                fault, detail = "heldout", hit
            if not fault:
                fault, detail, lengths[pair.id] = _cut(pair, tokenizer, limits.max_length)
            if not fault and seen[question, other, one]:
                fault, detail = "contradiction", "another pair prefers the other side"
            if not fault and (question, one, other) in taken:
                fault, detail = "duplicate", "the same pair came before"
            if fault:
                faults[fault] += 1
                book.drop("made", pair, fault, detail)
            else:
                taken.add((question, one, other))
                kept[kind].append(pair)
    looked = sum(map(len, made.values()))
    book.rows.took("made", looked)
    book.rows.gave("sound pairs", looked - faults.total())
    return Linted(kept, lengths, faults, looked)


def fault_of(pair: Pair, special: set[str], *, sampled: bool) -> tuple[Fault, str]:
    """The first fault that a pair's texts have, and what was seen; empty when there is none.

    Args:
        special: marks of the tokenizer.
        sampled: whether its answers were asked for here, to this prompt.
    """
    if mismatch := _mismatch(pair, sampled=sampled):
        return "prompt_mismatch", mismatch
    for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if not all(turn.content.strip() for turn in side if turn.role == "assistant"):
            return "empty", f"{name} is empty"
    if said(pair.chosen).strip() == said(pair.rejected).strip():
        return "identical", f"both {len(said(pair.chosen))} characters"
    for turn in (*pair.prompt, *pair.chosen, *pair.rejected):
        if mark := special_token(turn.content, special):
            return "special_token", mark[:80]
    return "", ""


def format_only(pair: Pair) -> bool:
    """Whether the sides say the same but for spaces, case, signs, a code fence, or the layout of JSON."""
    return bare(said(pair.chosen)) == bare(said(pair.rejected))


def bare(text: str) -> str:
    """A text without its format."""
    inner = match[1] if (match := _FENCE.fullmatch(text)) else text
    try:
        return json.dumps(parse_strict(inner), sort_keys=True)
    except ValueError:
        return fold(inner) or inner.strip()


def said(turns: Sequence[Message]) -> str:
    """What the assistant says in some turns."""
    return "\n".join(turn.content for turn in turns if turn.role == "assistant")


def _sides(pair: Pair) -> tuple[str, str, str]:
    """What tells a pair from others: what was asked, chosen, rejected."""
    return normal(asked(pair)), said(pair.chosen).strip(), said(pair.rejected).strip()


def _mismatch(pair: Pair, *, sampled: bool) -> str:
    """Why the sides do not answer the same prompt, or ""."""
    spoken = [turn.role for turn in pair.prompt if turn.role != "system"]
    if spoken and spoken[0] != "user":
        return f"the prompt begins with {spoken[0]}, not with a user turn"
    if not pair.prompt or pair.prompt[-1].role != "user":
        return f"the prompt ends with {pair.prompt[-1].role if pair.prompt else 'nothing'}, not with a user turn"
    for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if not side or side[0].role != "assistant" or side[-1].role != "assistant":
            return f"{name} has the turns {', '.join(turn.role for turn in side) or 'none'}"
    between = [[turn.content for turn in side if turn.role != "assistant"] for side in (pair.chosen, pair.rejected)]
    if between[0] != between[1]:
        return "the user says other things in chosen than in rejected"
    question = normal(pair.prompt[-1].content)
    holding = [normal(side[0].content).startswith(question) for side in (pair.chosen, pair.rejected)]
    if not sampled and len(question) >= REPEATED and holding[0] != holding[1]:
        return f"only {'chosen' if holding[0] else 'rejected'} begins with the prompt"
    return ""


def _cut(pair: Pair, tokenizer: Any, max_length: int) -> tuple[Fault, str, tuple[int, int]]:
    """The fault that a pair has once it is cut, what was seen, and the tokens of its answers."""
    prompt, chosen = chat.encode_pair(tokenizer, pair.prompt, pair.chosen)
    rejected = chat.encode_pair(tokenizer, pair.prompt, pair.rejected)[1]
    lengths, room = (len(chosen), len(rejected)), max(0, max_length - len(prompt))
    if not room or not all(
        tokenizer.decode(side[:room], skip_special_tokens=True).strip() for side in (chosen, rejected)
    ):
        return "empty_cut", f"prompt of {len(prompt)} tokens, max_length {max_length}", lengths
    if chosen[:room] == rejected[:room]:
        return "identical_cut", f"answers of {lengths[0]} and {lengths[1]} tokens, room for {room}", lengths
    return "", "", lengths
