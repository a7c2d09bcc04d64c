"""What a report is made of: models, figures, samples, judged pairs, bad cases, and what lies behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from steps.lib.figures import Comparison, Figure, Plain
from steps.lib.report_behind import Cost, Funnel, Node, Speed, StepRows
from steps.lib.stats import Interval
from steps.lib.wording import INCUMBENTS


class ModelCard(Plain):
    """A model of the chain."""

    name: str
    digest: str
    chain: list[str] = Field(default_factory=list)
    """What the model was made from, first to last: ``base 1a2b3c...``, ``sft adapter 4d5e...``."""
    policy: str = ""
    """Output digest of the artifact that it is; of a registered version: of the artifact that was registered."""


class Sample(Plain):
    """One held-out prompt and what every model answered."""

    id: str = ""
    prompt: str
    lang: str
    outputs: dict[str, str]
    """Model -> answer, in the order of the chain."""
    rules: dict[str, dict[str, bool | None]] = Field(default_factory=dict)
    """Model -> rule -> kept, broken, or None where it does not apply."""


class Judging(Plain):
    """What a judge made of two models' answers, and whether it can be believed."""

    judge: str
    model: str
    against: str
    suite: str = "pairwise"
    n: int = 0
    """Items whose answers were compared."""
    win_rate: Interval | None = None
    """Share of items that ``model`` wins, a tie being half a win; None where nothing could be counted."""
    lc_win_rate: Interval | None = None
    """The same at equal length (arXiv 2404.04475)."""
    consistent: float | None = None
    """Share of items whose two verdicts, one an order, agree."""
    first: float | None = None
    """Share of verdicts for the answer that stood first; 0.5 is no bias."""
    missing: float | None = None
    """Share of items without a verdict that can be read."""
    problems: list[str] = Field(default_factory=list)
    """Why it counts for nothing; empty when it counts."""

    @classmethod
    def of(cls, facts: Mapping[str, Any], figures: Sequence[Figure]) -> Judging:
        """From what pairwise judging says of itself.

        Args:
            facts: ``PairwiseFacts`` as plain values.
            figures: of the report; ``win_rate`` and ``lc_win_rate`` of the two models are taken.
        """
        rates = {one.name: one.interval for one in figures if (one.model, one.against) == (facts["new"], facts["old"])}
        return cls(
            judge=facts["judge_model"] or facts["judge"],
            model=facts["new"],
            against=facts["old"],
            suite=facts["suite"],
            n=facts["n"],
            win_rate=rates.get("win_rate"),
            lc_win_rate=rates.get("lc_win_rate"),
            consistent=facts["consistency"],
            first=facts["first_position"],
            missing=(facts["unparsed"] + facts["failed"]) / facts["asked"] if facts["asked"] else None,
            problems=facts["problems"],
        )


class Case(Plain):
    """A bad case that was held out, and what became of it."""

    id: str
    state: str
    """``fixed``, ``regressed``, ``known_fail``, ``still_pass``, ``flaky`` or ``error``."""
    severity: str = ""
    lang: str = "other"
    tags: list[str] = Field(default_factory=list)
    detail: str = ""
    """What was expected, in a few words."""

    @classmethod
    def of(cls, facts: Mapping[str, Any], detail: str = "") -> Case:
        """From ``suite_cases.CaseState`` as plain values."""
        return cls(
            id=facts["item_id"],
            state=facts["state"],
            severity=facts["severity"],
            lang=facts["lang"],
            tags=[one for one in facts["slices"] if one not in (facts["severity"], f"severity={facts['severity']}")],
            detail=detail,
        )


class Report(Plain):
    """All that the report shows."""

    title: str
    seed: int
    facts: dict[str, str] = Field(default_factory=dict)
    """Short facts under the title: task, held-out items, size of the model."""
    models: list[ModelCard]
    """In the order of the chain; the incumbents of a registry may stand among them."""
    figures: list[Figure]
    comparisons: list[Comparison] = Field(default_factory=list)
    slices: list[Figure] = Field(default_factory=list)
    """Figures over a part of the items each (``Figure.slice``)."""
    judging: list[Judging] = Field(default_factory=list)
    cases: list[Case] = Field(default_factory=list)
    """Held-out bad cases with their states."""
    highlights: list[str] = Field(default_factory=list)
    """Names of the figures on the first screen; empty: the first six."""
    samples: list[Sample] = Field(default_factory=list)
    rows: list[StepRows] = Field(default_factory=list)
    lineage: list[Node] = Field(default_factory=list)
    """What the models were made from: each after those that it was made from (``nodes``)."""
    histories: dict[str, list[dict[str, float | int | str | None]]] = Field(default_factory=dict)
    """Training step -> lines of its ``record/history.jsonl``."""
    teachers: list[str] = Field(default_factory=list)
    funnel: list[Funnel] = Field(default_factory=list)
    """Stages of generate in their order, and in each the teachers."""
    costs: list[Cost] = Field(default_factory=list)
    """Time and money of what the models were made from."""
    speeds: list[Speed] = Field(default_factory=list)
    fingerprint: dict[str, str] = Field(default_factory=dict)
    """All that two evaluations must share to be compared: suite and scorer digests, template, generation, versions."""
    notes: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    """What makes a figure less than it seems; they stand before the figures."""

    @property
    def chain(self) -> list[str]:
        """Names of the models."""
        return [card.name for card in self.models]

    @property
    def candidate(self) -> str:
        """The last model that is no incumbent (``champion``, ``anchor``): the one that is to be promoted."""
        own = [name for name in self.chain if name not in INCUMBENTS]
        return (own or self.chain)[-1]

    def by_figure(self, names: list[str] | None = None) -> list[list[Figure]]:
        """Figures grouped by name, each group in the order of the chain.

        Args:
            names: only these, in this order.
        """
        groups: dict[str, list[Figure]] = {}
        for figure in self.figures:
            groups.setdefault(figure.name, []).append(figure)
        order = self.chain
        for group in groups.values():
            group.sort(key=lambda figure: order.index(figure.model))
        return [groups[name] for name in (names or groups) if name in groups]

    def by_pair(self) -> list[tuple[str, str, list[Comparison]]]:
        """Comparisons by the two models: those of the candidate first."""
        found: dict[tuple[str, str], list[Comparison]] = {}
        for one in self.comparisons:
            found.setdefault((one.model, one.against), []).append(one)
        pairs = sorted(found, key=lambda pair: pair[0] != self.candidate)
        return [(model, against, found[model, against]) for model, against in pairs]

    def by_slice(self) -> list[tuple[str, list[tuple[str, list[Figure]]]]]:
        """Slices by the name of their figure, and in it by their own, each group in the order of the chain."""
        order = self.chain
        found: dict[str, dict[str, list[Figure]]] = {}
        for one in self.slices:
            found.setdefault(one.name, {}).setdefault(one.slice, []).append(one)
        return [
            (name, [(part, sorted(own, key=lambda one: order.index(one.model))) for part, own in sorted(parts.items())])
            for name, parts in found.items()
        ]
