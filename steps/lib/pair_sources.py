"""Where preference pairs come from, and how many each source gives.

Source of the weights: ``mixing`` (largest remainders). A weight is a part beside the other weights; a source without one gives
all that it makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from steps.lib.config import Section
from steps.lib.inference import seed_of
from steps.lib.mixing import Mix, quotas
from steps.lib.row_ledger import RowLedger
from steps.lib.rows import Dropped, Pair, Row
from steps.lib.shards import set_aside

Scorer = Literal["rules", "judge", "both"]
Kind = Literal["policy", "teacher", "imported", "badcases"]


class _Source(Section):
    """What every source has."""

    weight: float | None = Field(None, gt=0)
    """Part (any unit) of this source beside the other weights; the scarcest decides how many rows there are. Null: all it makes."""


class _Scored(_Source):
    """What every source has whose answers are scored here."""

    scored_by: Scorer | None = None
    """rules: of the task. judge: its verdicts, in both orders. both: rules choose, and the judge must agree in both orders. Null:
    both where there is a judge, else rules."""
    min_margin: float = Field(0.1, gt=0, le=1)
    """Score that chosen must have above rejected: share of the rules kept, or of the other samples beaten."""
    min_chosen: float = Field(0.0, ge=0, le=1)
    """Score that chosen must have."""


class PolicySource(_Scored):
    """The policy's samples, the best against the worst."""

    kind: Literal["policy"]
    per_prompt: int = Field(1, ge=1)
    """Pairs a prompt at most: best against worst, second best against second worst..."""


class TeacherSource(_Scored):
    """The teacher's answer against a sample of the policy: its worst by the rules, or the first that
    differs where a judge alone scores."""

    kind: Literal["teacher"]
    share: float = Field(1.0, gt=0, le=1)
    """Share of the sampled prompts of which the teacher's answer is taken."""


class ImportedSource(_Source):
    """The pairs of clean."""

    kind: Literal["imported"]
    confirm: bool = False
    """Whether the judge must prefer chosen in both orders."""


class BadcasesSource(_Source):
    """The pairs of the step badcases: what production answered against its correction."""

    kind: Literal["badcases"]
    confirm: bool = False
    """Whether the judge must prefer chosen in both orders."""
    max_share: float | None = Field(0.3, gt=0, lt=1)
    """Share of all pairs that they may be; the others are dropped. Null: any."""


PairSource = Annotated[PolicySource | TeacherSource | ImportedSource | BadcasesSource, Field(discriminator="kind")]
"""A source's configuration, chosen by ``kind``."""
Made = dict[Kind, list[Pair]]
"""Pairs by the kind of their source."""


@dataclass
class Book:
    """What becomes of rows on their way into pairs: counted, and kept where they are dropped."""

    rows: RowLedger
    dropped: list[Dropped] = field(default_factory=list)

    def drop(self, kind: str, row: Row, reason: str, detail: str) -> None:
        """Count a row out, and keep it."""
        self.rows.drop(kind, reason)
        self.dropped.append(set_aside("pairs", row, reason, detail))


def weighed(made: Mapping[Kind, Sequence[Pair]], sources: Sequence[PairSource], book: Book) -> Made:
    """The pairs that the weights and ``max_share`` leave, drawn by their ids, in their order.

    Raises:
        DataError: a source with a weight has no pair.
    """
    kept: Made = {kind: list(pairs) for kind, pairs in made.items()}
    book.rows.took("to mix", sum(map(len, kept.values())))
    weights = {source.kind: source.weight for source in sources if source.weight is not None}
    if weights:
        counts = quotas({str(kind): len(made.get(kind, [])) for kind in weights}, Mix(weights=dict(weights)))
        for kind in weights:
            kept[kind] = _drawn(made.get(kind, []), counts[kind], "mix_surplus", f"weight {weights[kind]:g}", book)
    for source in sources:
        if isinstance(source, BadcasesSource) and source.max_share is not None:
            others = sum(len(pairs) for kind, pairs in kept.items() if kind != source.kind)
            most = int(source.max_share / (1 - source.max_share) * others + 1e-9)
            detail = f"{most} beside {others} other pairs"
            kept[source.kind] = _drawn(kept.get(source.kind, []), most, "max_share", detail, book)
    book.rows.gave("pairs", sum(map(len, kept.values())))
    return kept


def _drawn(pairs: Sequence[Pair], count: int, reason: str, detail: str, book: Book) -> list[Pair]:
    """``count`` of the pairs; which ones depends on their ids alone, so one pair more changes little."""
    chosen = set(sorted((pair.id for pair in pairs), key=lambda name: seed_of("weight", name))[:count])
    for pair in pairs:
        if pair.id not in chosen:
            book.drop("to mix", pair, reason, detail)
    return [pair for pair in pairs if pair.id in chosen]
