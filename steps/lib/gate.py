"""Whether a candidate may replace the champion: each figure of the gate compared item by item, and the verdict of all.

One primary figure must get better, and the guards must not get worse: the intersection-union test, Berger 1982, so no bound is
corrected for their number. Nothing is read and nothing is written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import Field

from steps.lib import figures
from steps.lib.artifact import Artifact
from steps.lib.config import Section
from steps.lib.errors import DataError
from steps.lib.figures import Item, Measure, Plain
from steps.lib.report import Report
from steps.lib.stats import Interval


class Primary(Section):
    """The figure that must get better."""

    figure: str = "rule_score"
    """Name of a figure of the report."""
    min_effect: float = Field(default=0.0, ge=0)
    """Figure's unit (percent for bits per byte): the lower bound of the improvement must be above it."""


class Guard(Section):
    """A figure that must not get clearly worse."""

    figure: str
    """Name of a figure of the report."""
    margin: float = Field(ge=0)
    """Figure's unit (percent for bits per byte): loss that is allowed; the bound of the loss must be inside it."""


class Check(Plain):
    """One figure of the gate."""

    figure: str
    role: Literal["primary", "guard"]
    improvement: Interval
    """Paired change in the direction that is better; two-sided, its ends are the one-sided bounds."""
    threshold: float
    """The lower bound must be above it."""
    outcome: Literal["pass", "fail", "open"]
    reason: str


class Verdict(Plain):
    """The decision with its evidence. It names no path, no time and no version number."""

    verdict: Literal["promote", "reject", "inconclusive", "invalid"]
    reasons: list[str]
    policy: str
    """Output digest of the candidate's artifact."""
    report: str
    """Output digest of the report's artifact."""
    candidate: str
    against: str
    """``champion`` and its policy digest, or the name of a model of the same report."""
    checks: list[Check] = Field(default_factory=list)


class Terms(Protocol):
    """What the verdict hangs on: promote's configuration."""

    @property
    def baseline(self) -> str: ...
    @property
    def primary(self) -> Primary: ...
    @property
    def guards(self) -> Sequence[Guard]: ...
    @property
    def confidence(self) -> float: ...


@dataclass(frozen=True)
class Champion:
    """The version that the candidate meets, as it was evaluated."""

    policy: str
    """Output digest of its artifact."""
    model: str
    """What its report calls it."""
    fingerprint: Mapping[str, str]
    """Of its evaluation."""
    items: list[Item]


def decide(
    terms: Terms,
    candidate: str,
    evidence: Artifact,
    shown: Report,
    items: list[Item],
    champion: Champion | None,
) -> Verdict:
    """The verdict on a candidate.

    Args:
        terms: the gate.
        candidate: output digest of the policy.
        evidence: artifact of the report; it says which policies were scored.
        shown: the report.
        items: of the report.
        champion: None: there is none yet, and the baseline of the report is to be beaten.
    """
    scored = {entry["digest"]: name for name, entry in evidence.manifest["inputs"].items() if name in shown.chain}
    model = scored.get(candidate, shown.chain[-1])
    against, others, problems = terms.baseline, items, []
    if candidate not in scored:
        problems.append(
            f"report {evidence.key} is not about this policy: got models {sorted(scored.values())}, none "
            f"with digest {candidate[:12]}, because another policy was evaluated; evaluate this one"
        )
    if champion:
        against, others = champion.model, champion.items
        problems += _foreign(champion, shown)
    elif against == model or against not in shown.chain:
        problems.append(
            f"baseline {against!r} cannot be compared: got models {shown.chain}, because the first "
            "champion must beat another model of the same report; set promote.baseline"
        )
    checks: list[Check] = []
    gate: list[Primary | Guard] = [terms.primary, *terms.guards]
    for part in gate if not problems else []:
        try:
            checks.append(_check(part, terms.confidence, shown, items, others, (model, against)))
        except DataError as error:
            problems.append(str(error))
    outcomes = {check.outcome for check in checks}
    word: Literal["promote", "reject", "inconclusive", "invalid"] = "promote"
    if problems or "fail" in outcomes or "open" in outcomes:
        word = "invalid" if problems else "reject" if "fail" in outcomes else "inconclusive"
    return Verdict(
        verdict=word,
        policy=candidate,
        report=evidence.digest,
        candidate=model,
        checks=checks,
        reasons=problems or [check.reason for check in checks],
        against=f"champion {champion.policy[:12]}" if champion else f"{against} of the same report",
    )


def _check(
    part: Primary | Guard,
    confidence: float,
    shown: Report,
    items: list[Item],
    others: list[Item],
    pair: tuple[str, str],
) -> Check:
    """Test one figure, item by item.

    Args:
        part: what to test.
        confidence: share, one-sided.
        shown: the report; it says which score a figure is made of.
        items: of the candidate.
        others: where the other model's items are.
        pair: the candidate and the other model.

    Raises:
        DataError: the report has no such figure, or an item of it is missing or was not scored.
    """
    model, against = pair
    what: Measure | None = next((figure for figure in shown.figures if figure.name == part.figure), None)
    if what is None:
        raise DataError(
            f"figure {part.figure!r} of the gate is not in the report: got "
            f"{sorted({figure.name for figure in shown.figures})}; name one of these"
        )
    for name, source in ((model, items), (against, others)):
        failed = [item for item in source if item.model == name and item.suite == what.suite and item.error]
        if failed:
            raise DataError(
                f"{len(failed)} items of suite {what.suite!r} failed for {name!r}: got {failed[0].error!r} "
                f"at {failed[0].item_id!r}, because scoring raised; evaluate again: the gate counts all"
            )
    change = figures.compare(items, what, model, against, others=others, confidence=round(2 * confidence - 1, 9))
    improvement = change.interval if what.better == "higher" else change.interval.negated()
    primary = isinstance(part, Primary)
    threshold = part.min_effect if isinstance(part, Primary) else -part.margin
    # One cluster, or no item on which the two differ, shows nothing.
    blind = improvement.clusters < 2 or (primary and improvement.low == improvement.high == 0)
    outcome: Literal["pass", "fail", "open"] = "open"
    if not blind and (improvement.low > threshold or improvement.high <= threshold):
        outcome = "pass" if improvement.low > threshold else "fail"
    unit = "%" if what.weight else what.unit
    words = {"pass": "above", "fail": "not above", "open": "not shown to be above"}[outcome]
    reason = (
        f"{part.figure} {'improves' if primary else 'changes'} by {improvement.value:+.4g} {unit} "
        f"({improvement.low:+.4g} to {improvement.high:+.4g}, n={improvement.n}), {words} {threshold:+.4g}"
    )
    return Check(
        figure=part.figure,
        role="primary" if primary else "guard",
        improvement=improvement,
        threshold=threshold,
        outcome=outcome,
        reason=reason,
    )


def _foreign(champion: Champion, shown: Report) -> list[str]:
    """Why the champion's stored items cannot be compared with this report's; empty when they can."""
    theirs = champion.fingerprint
    differing = sorted(
        name for name in theirs.keys() | shown.fingerprint.keys() if theirs.get(name) != shown.fingerprint.get(name)
    )
    if not differing:
        return []
    return [
        f"champion {champion.policy[:12]} was scored under another fingerprint: got other {', '.join(differing)}, because "
        "the evaluation changed since; evaluate the champion's own policy with these settings and register that"
    ]
