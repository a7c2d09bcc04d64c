"""What a judge's verdicts on pairs amount to: figures with intervals, and whether the judge may be believed.

A judge that names the first place whatever stands there, that seldom gives a verdict, or that does not see which answer was
garbled, gives figures that mean nothing: they stay visible, and ``problems`` say why a gate must not read them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import Field

from steps.lib.config import Section
from steps.lib.figures import Comparison, Figure, Item, Measure, Plain
from steps.lib.stats import Interval
from steps.lib.winrate import lc_win_rate, win_rate

SUITE = "pairwise"
WIN_RATE = Measure(
    name="win_rate",
    label_en="Win rate (judge)",
    label_zh="胜率（评审）",
    unit="share",
    suite=SUITE,
    score="win",
    method="judged in both orders: 1 both won, 0 both lost, else 0.5",
)
LC_WIN_RATE = Measure(
    name="lc_win_rate",
    label_en="Length-controlled win rate (judge)",
    label_zh="控制长度的胜率（评审）",
    unit="share",
    suite=SUITE,
    score="win",
    method="win rate at equal length (arXiv 2404.04475), in characters",
)


class PairwiseLimits(Section):
    """When a judge's verdicts count for nothing."""

    min_consistency: float = Field(0.55, ge=0, le=1)
    """Share of judged pairs whose two orders agree, at least. Verdicts by coin agree on 0.5 of them (without ties)."""
    max_missing: float = Field(0.05, ge=0, le=1)
    """Share of pairs without a verdict (unparsed, failed), at most."""
    max_position_bias: float = Field(0.15, ge=0, le=0.5)
    """Share of verdicts for the first place, less a half, at most; ties are left out."""
    min_planted: float = Field(0.75, ge=0, le=1)
    """Share of garbled answers that lose against the whole ones (half of one where the orders differ), at least."""


class PairwiseFacts(Plain):
    """What was judged, and how the judge behaved. The same on every machine that had the same replies."""

    suite: str
    """Of the items that were made."""
    new: str
    """The model whose wins are counted."""
    old: str
    judge: str
    """The judge's name."""
    judge_model: str
    family: str
    """The judge's family of models."""
    prompt_digest: str
    """Of what the judge is told."""
    n: int
    """Pairs of answers."""
    asked: int
    """Pairs that the judge was asked about; equal answers are a tie, unasked."""
    unparsed: int
    failed: int
    unanswered: int
    """Items that one of the two models has no answer to; they are rows with an error."""
    ties: int
    """Asked pairs on which both orders said tie."""
    consistency: float | None
    """Share of verdicts' pairs whose two orders agree; None where nothing was asked."""
    first_position: float | None
    """Share of verdicts that named the first place, ties left out; None where all were ties."""
    planted: int
    """Garbled answers against whole ones on which the judge gave a verdict."""
    planted_score: float | None
    """Share of them that lost, half of one where the orders differ; None without one."""
    mean_dlen: float
    """Characters that the new answers are longer, on average."""
    theta: float | None = None
    """Log-odds of a win at equal length."""
    phi: float | None = None
    """What length adds to the log-odds; over 0: longer answers win."""
    problems: list[str] = []
    """Why the figures count for nothing; empty when they may be read."""
    warnings: list[str] = []

    @property
    def valid(self) -> bool:
        """Whether a gate may read the figures."""
        return not self.problems


def judged(items: Sequence[Item], new: str, suite: str = SUITE) -> list[Item]:
    """The items of a model that have a verdict."""
    return [i for i in items if i.model == new and i.suite == suite and i.scores.get("win") is not None]


def figures_of(
    items: Sequence[Item], new: str, old: str, *, suite: str = SUITE, confidence: float = 0.95
) -> list[Figure]:
    """Win rate and length-controlled win rate of ``new`` against ``old``, from the items alone.

    None without a verdict. The second is left out where every answer of one model is the longer one: what would happen at equal
    length was not seen.
    """
    rows = judged(items, new, suite)
    if not rows:
        return []
    wins, dlen, clusters = _columns(rows)
    raw = win_rate(wins, clusters, confidence=confidence)
    found = [(WIN_RATE, raw)]
    fit = lc_win_rate(wins, dlen, clusters, scales=[row.lang for row in rows], confidence=confidence)
    if not fit.extrapolated:
        found.append((LC_WIN_RATE, fit.interval))
    return [
        Figure(**{**what.model_dump(), "suite": suite}, model=new, against=old, interval=interval)
        for what, interval in found
    ]


def length_fit(items: Sequence[Item], new: str, suite: str = SUITE) -> tuple[float, float, bool] | None:
    """theta, phi, and whether equal length was never seen; None without a verdict."""
    rows = judged(items, new, suite)
    if not rows:
        return None
    wins, dlen, _ = _columns(rows)
    fit = lc_win_rate(wins, dlen, scales=[row.lang for row in rows], draws=1)
    return fit.theta, fit.phi, fit.extrapolated


def comparison(figure: Figure) -> Comparison:
    """A win rate as a difference, less a half: over zero where ``model`` is preferred, so that a gate reads it as any other."""
    values = figure.interval.model_dump()
    moved = Interval(**{**values, **{name: values[name] - 0.5 for name in ("value", "low", "high")}})
    fields = {name: getattr(figure, name) for name in Measure.model_fields}
    return Comparison(**fields, model=figure.model, against=figure.against or "", interval=moved)


def mirrored(items: Sequence[Item], new: str, old: str, suite: str = SUITE) -> list[Item]:
    """The same rows from the other model's side: its paired difference to ``new`` is one less twice the win rate."""
    rows = [item for item in items if item.model == new and item.suite == suite]
    return [row.model_copy(update={"model": old, "scores": _turned(row.scores)}) for row in rows]


def problems_of(facts: PairwiseFacts, limits: PairwiseLimits) -> list[str]:
    """What is wrong with a judge, by the limits."""
    who, found = f"judge {facts.judge} ({facts.judge_model})", []
    missing = (facts.unparsed + facts.failed) / facts.n if facts.n else 1.0
    if missing > limits.max_missing:
        found.append(
            f"{who} gave too few verdicts: got none for {facts.unparsed + facts.failed} of {facts.n} pairs "
            f"({facts.unparsed} unparsed, {facts.failed} failed), because max_missing is {limits.max_missing:g}; "
            + ("look at its replies in the items" if facts.n else "score the suite for both models")
        )
    if facts.consistency is not None and facts.consistency < limits.min_consistency:
        found.append(
            f"{who} contradicts itself: got the same verdict in both orders for {facts.consistency:.0%} of pairs, because "
            f"min_consistency is {limits.min_consistency:g}; take a stronger judge"
        )
    if facts.first_position is not None and abs(facts.first_position - 0.5) > limits.max_position_bias:
        found.append(
            f"{who} looks at the place: got {facts.first_position:.0%} of its verdicts for the first answer, because "
            f"max_position_bias is {limits.max_position_bias:g} about a half; take a stronger judge"
        )
    if facts.planted_score is not None and facts.planted_score < limits.min_planted:
        found.append(
            f"{who} does not see a garbled answer: got {facts.planted_score:.0%} of {facts.planted} right, because min_planted is "
            f"{limits.min_planted:g}; take a stronger judge"
        )
    return found


def verdict_of(item: Item) -> dict[str, object]:
    """The evidence of a judged item; empty where nobody judged."""
    found = json.loads(item.judge) if item.judge else {}
    return found if isinstance(found, dict) else {}


def _columns(rows: Sequence[Item]) -> tuple[list[float], list[float], list[str]]:
    wins = [float(row.scores["win"] or 0.0) for row in rows]
    return wins, [float(row.scores["dlen"] or 0.0) for row in rows], [row.cluster_id for row in rows]


def _turned(scores: dict[str, float | None]) -> dict[str, float | None]:
    win, dlen = scores.get("win"), scores.get("dlen")
    return {
        **scores,
        **({"win": 1.0 - win} if win is not None else {}),
        **({"dlen": -dlen} if dlen is not None else {}),
    }
