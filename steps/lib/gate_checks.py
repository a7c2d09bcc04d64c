"""One figure of the gate: the paired change of two models of one report, what it shows, and what the items could have shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

from steps.lib import figures
from steps.lib.errors import DataError
from steps.lib.figures import Item, Measure, Plain
from steps.lib.gate_pairs import Pairs
from steps.lib.gate_terms import Guard, Primary, Terms
from steps.lib.pairwise_facts import LC_WIN_RATE, WIN_RATE, comparison, figures_of, mirrored
from steps.lib.report import Report
from steps.lib.stats import Interval
from steps.lib.stats_power import holm, minimal_detectable_effect, needed_items

Outcome = Literal["pass", "fail", "open"]
JUDGED = (WIN_RATE.name, LC_WIN_RATE.name)
"""Figures of a judge: the change is the rate less a half, so that no preference is no change."""


class Check(Plain):
    """One figure of the gate."""

    figure: str
    role: Literal["primary", "guard"]
    against: str
    """The other model: champion, anchor, or the baseline of the report."""
    unit: str
    """``points``: change and threshold are shares, shown times 100. ``%``: a relative change. Else the figure's own."""
    improvement: Interval
    """Paired change in the direction that is better; two-sided, its ends are the one-sided bounds."""
    threshold: float
    """The lower bound must be above it."""
    outcome: Outcome
    reason: str
    discordant: int
    """Items on which the two differ."""
    p: float | None = None
    """One-sided p-value that the candidate is better (primaries that are no ratio); it must be within the level too."""
    test: str = ""
    """What ``p`` is of."""
    mde: float
    """Unit of the change: smallest true change that so many items would show with a power of 80 %."""
    needed_n: int | None = None
    """Items that would settle it with a power of 80 %: a guard while nothing changes, a primary if what was seen is true."""

    @property
    def n(self) -> int:
        """Items behind the change."""
        return self.improvement.n

    @property
    def clusters(self) -> int:
        """Independent groups of items."""
        return self.improvement.clusters

    @property
    def method(self) -> str:
        """How the interval was made."""
        return self.improvement.method


def primaries(
    terms: Terms, confidence: float, shown: Report, items: Sequence[Item], pair: tuple[str, str]
) -> list[Check]:
    """Every primary, at the level that Holm's procedure gives it.

    Args:
        terms: the gate.
        confidence: share, one-sided, of all primaries together.
        shown: the report; it says which score a figure is made of.
        items: of the report.
        pair: the candidate and the other model.

    Raises:
        DataError: the report has no such figure, or an item of it is missing or was not scored.
    """
    tested: dict[tuple[int, float], Check] = {}

    def rejects(place: int, level: float) -> bool:
        part = terms.primaries[place]
        tested[place, level] = check(part, 1 - level, terms, shown, items, pair)
        return tested[place, level].outcome == "pass"

    levels = holm(len(terms.primaries), 1 - confidence, rejects)
    return [tested[place, level] for place, level in enumerate(levels)]


def guards(terms: Terms, shown: Report, items: Sequence[Item], pair: tuple[str, str]) -> list[Check]:
    """Every guard, all at the same level: all must hold, so their number makes no wrong promotion likelier.

    Args and errors are those of ``primaries``. Source: Berger 1982, Technometrics 24:295-300 (intersection-union test).
    """
    return [check(part, terms.confidence, terms, shown, items, pair) for part in terms.guards]


def check(
    part: Primary | Guard,
    confidence: float,
    terms: Terms,
    shown: Report,
    items: Sequence[Item],
    pair: tuple[str, str],
) -> Check:
    """Test one figure, item by item, at a one-sided confidence."""
    model, against = pair
    what = _measure(part.figure, shown, pair)
    judged = what.name in JUDGED
    rows = [*items, *mirrored(items, model, against, what.suite)] if judged else items
    both = Pairs.of(rows, what, model, against)
    two_sided = round(2 * confidence - 1, 9)
    if judged:
        change = _preferred(what, items, pair, two_sided)
    else:
        change = figures.compare(items, what, model, against, confidence=two_sided)
    improvement = change.interval if what.better == "higher" else change.interval.negated()
    primary = isinstance(part, Primary)
    threshold = part.min_effect + part.noise_floor if isinstance(part, Primary) else -part.margin - part.noise_floor
    p, test = None, ""
    if primary and not what.weight and what.name != LC_WIN_RATE.name:
        p, test = both.p(terms.mcnemar, lower_is_better=what.better == "lower")
    # One cluster shows nothing; nor does an improvement of no item at all.
    blind = improvement.clusters < 2 or (primary and not both.num_discordant)
    outcome: Outcome = "open"
    if not blind and (improvement.low > threshold or improvement.high <= threshold):
        outcome = "pass" if improvement.low > threshold else "fail"
    if outcome == "pass" and p is not None and p > 1 - confidence:
        outcome = "open"
    spread = _spread(improvement)
    wanted = improvement.value - threshold if isinstance(part, Primary) else part.margin + part.noise_floor
    found = Check(
        figure=part.figure,
        role="primary" if primary else "guard",
        against=against,
        unit="%" if what.weight else "points" if what.unit == "share" else what.unit,
        improvement=improvement,
        threshold=threshold,
        outcome=outcome,
        reason="",
        discordant=both.num_discordant,
        p=p,
        test=test,
        mde=minimal_detectable_effect(improvement.n, spread, confidence=two_sided),
        needed_n=needed_items(wanted, spread, confidence=two_sided) if spread else None,
    )
    return found.model_copy(update={"reason": _reason(found)})


def _measure(name: str, shown: Report, pair: tuple[str, str]) -> Measure:
    """The figure of a name; a win rate is that of the two models, and its judge must be one to believe."""
    found = [figure for figure in shown.figures if figure.name == name]
    if name in JUDGED and found:
        own = [figure for figure in found if (figure.model, figure.against) == pair]
        if not own:
            seen = ", ".join(f"{figure.model} against {figure.against}" for figure in found)
            raise DataError(
                f"figure {name!r} of the gate is not of {pair[0]} against {pair[1]}: got {seen}, because the judge compared these; "
                "name the two in evaluate.pairwise.compare"
            )
        for judging in shown.judging:
            if judging.suite == own[0].suite and judging.problems:
                raise DataError(f"figure {name!r} of the gate cannot be read: {'; '.join(judging.problems)}")
        found = own
    what = next(iter(found), None)
    if what is None:
        raise DataError(
            f"figure {name!r} of the gate is not in the report: got "
            f"{sorted({figure.name for figure in shown.figures})}; name one of these"
        )
    return what


def _preferred(what: Measure, items: Sequence[Item], pair: tuple[str, str], confidence: float) -> figures.Comparison:
    """A win rate less a half.

    Raises:
        DataError: no verdict, or no answers of both lengths.
    """
    for figure in figures_of(items, *pair, suite=what.suite, confidence=confidence):
        if figure.name == what.name:
            return comparison(figure)
    raise DataError(
        f"{what.name} of {pair[0]} against {pair[1]} has no value: got no verdict; look at the judge's replies"
    )


def _spread(interval: Interval) -> float:
    """Standard deviation of one item's difference that would give this interval: so it holds for every method."""
    z = NormalDist().inv_cdf(0.5 + interval.confidence / 2)
    return (interval.high - interval.low) / (2 * z) * math.sqrt(interval.n)


def _reason(found: Check) -> str:
    """One sentence, with shares in points."""
    change, scale = found.improvement, 100 if found.unit == "points" else 1
    unit = found.unit
    verb = "improves" if found.role == "primary" else "changes"
    words = {"pass": "above", "fail": "not above", "open": "not shown to be above"}[found.outcome]
    text = (
        f"{found.figure} {verb} by {scale * change.value:+.4g} {unit} ({scale * change.low:+.4g} to "
        f"{scale * change.high:+.4g}, n={change.n}) against {found.against}, {words} {scale * found.threshold:+.4g} {unit}"
    )
    if found.outcome != "open":
        return text
    if change.clusters < 2:
        return f"{text}: all items are of one cluster"
    if found.role == "primary" and not found.discordant:
        return f"{text}: the two differ on no item"
    if found.p is not None and change.low > found.threshold:
        text += f": {found.test} gives p={found.p:.3g}"
    if found.needed_n and found.needed_n > change.n:
        text += f"; about {found.needed_n} items would tell"
    return text
