"""Whether a candidate may replace the champion: each figure of the gate compared item by item, and the verdict of all.

A primary figure must get better and no guard may get worse: the intersection-union test, Berger 1982. All models of a verdict were
scored in one run, so that nothing but the model differs. Nothing is read and nothing is written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from steps.lib.artifact import Artifact
from steps.lib.errors import DataError
from steps.lib.figures import Item, Plain
from steps.lib.gate_checks import Check, guards, primaries
from steps.lib.gate_terms import Guard, Primary, Terms
from steps.lib.gate_vetoes import regressions, template_change
from steps.lib.incumbents import ANCHOR, CHAMPION, Incumbents
from steps.lib.look_log import LookLog, spent, suite_digests
from steps.lib.registry import Version
from steps.lib.report import Report

__all__ = ["EXIT", "Check", "Guard", "Primary", "Verdict", "Word", "decide"]

Word = Literal["promote", "reject", "inconclusive", "invalid"]
EXIT: dict[Word, int] = {"promote": 0, "reject": 21, "inconclusive": 22, "invalid": 23}
"""Exit code of a command that ends with a verdict; none of them is an error's (``errors``)."""


class Verdict(Plain):
    """The decision with its evidence. It names no path, no time and no version number."""

    verdict: Word
    reasons: list[str]
    policy: str
    """Output digest of the candidate's artifact."""
    report: str
    """Output digest of the report's artifact."""
    candidate: str
    against: str
    """``champion`` and its policy digest, or the name of a model of the same report."""
    checks: list[Check] = Field(default_factory=list)
    vetoes: list[str] = Field(default_factory=list)
    """What no gain outweighs."""
    warnings: list[str] = Field(default_factory=list)
    """What a person should know and the verdict does not hang on."""
    looks: int = 0
    """Verdicts on these items before this one."""


def decide(
    terms: Terms,
    candidate: str,
    evidence: Artifact,
    shown: Report,
    items: Sequence[Item],
    incumbents: Incumbents,
    *,
    problems: Sequence[str] = (),
    template: str = "",
    log: LookLog | None = None,
) -> Verdict:
    """The verdict on a candidate.

    Args:
        terms: the gate.
        candidate: output digest of the policy.
        evidence: artifact of the report.
        shown: the report; it says which policies were scored.
        items: of the report.
        incumbents: the champion and the anchor that the registry has for this candidate; without a champion the baseline of the
            report is to be beaten.
        problems: vetoes that were found elsewhere (what is served is not what was scored, say).
        template: digest of the candidate's chat template.
        log: earlier looks at the same items.
    """
    model, faults = _candidate(candidate, evidence, shown)
    against = CHAMPION if incumbents.champion else terms.baseline
    faults += _strangers(incumbents, shown)
    if not incumbents.champion and (against == model or against not in shown.chain):
        faults.append(
            f"baseline {against!r} cannot be compared: got models {shown.chain}, because the first "
            "champion must beat another model of the same report; set promote.baseline"
        )
    checks: list[Check] = []
    vetoes = list(problems)
    warnings: list[str] = []
    looks, level = _looks(terms, shown, items, model, log or LookLog())
    if not faults:
        checks, vetoed, faults = _compare(terms, 1 - level if level else terms.confidence, shown, items, model, against)
        vetoes += vetoed
        if incumbents.champion:
            old = str(incumbents.champion.facts.get("template", ""))
            if template and old:
                vetoes += template_change(template, old, allowed=terms.allow_template_change)
            else:
                warnings.append("the chat templates of candidate and champion were not compared: one is not known")
    if looks >= terms.max_looks:
        warnings.append(
            f"these items were looked at {looks} times before (promote.max_looks={terms.max_looks}), so what is chosen on them "
            "looks better than it is; take fresh items"
        )
    word: Word = _word(checks)
    reasons = [*vetoes, *(check.reason for check in checks)]
    if level is None:
        word = "inconclusive" if word == "promote" else word
        reasons.append(
            f"the level of this quarter is spent: got {terms.max_looks} looks at these items; take fresh items"
        )
    if faults or vetoes:
        word = "invalid" if faults else "reject"
    return Verdict(
        verdict=word,
        policy=candidate,
        report=evidence.digest,
        candidate=model,
        checks=checks,
        reasons=faults + vetoes if faults else reasons,
        against=f"champion {_policy(incumbents.champion)[:12]}"
        if incumbents.champion
        else f"{against} of the same report",
        vetoes=vetoes,
        warnings=warnings,
        looks=looks,
    )


def _compare(
    terms: Terms, confidence: float, shown: Report, items: Sequence[Item], model: str, against: str
) -> tuple[list[Check], list[str], list[str]]:
    """Checks, vetoes, and why some of them could not be made."""
    checks: list[Check] = []
    vetoes: list[str] = []
    faults: list[str] = []
    others = [against, *(name for name in (ANCHOR,) if name in shown.chain)]
    try:
        checks += primaries(terms, confidence, shown, items, (model, against))
    except DataError as error:
        faults.append(str(error))
    for other in others:
        try:
            checks += guards(terms, shown, items, (model, other))
        except DataError as error:
            faults.append(str(error))
    try:
        vetoes += regressions(items, model, against)
    except DataError as error:
        faults.append(str(error))
    return checks, vetoes, list(dict.fromkeys(faults))


def _word(checks: Sequence[Check]) -> Word:
    """What the checks say: one primary passes and none is shown to lose; every guard passes."""
    leading = [check for check in checks if check.role == "primary"]
    following = {check.outcome for check in checks if check.role == "guard"}
    lost = any(check.improvement.high < 0 and check.outcome == "fail" for check in leading)
    if lost or "fail" in following or all(check.outcome == "fail" for check in leading):
        return "reject"
    if "open" in following or not any(check.outcome == "pass" for check in leading):
        return "inconclusive"
    return "promote"


def _candidate(candidate: str, evidence: Artifact, shown: Report) -> tuple[str, list[str]]:
    """What the report calls the candidate, and what is wrong if it is not in it."""
    own = [card for card in shown.models if card.name not in (CHAMPION, ANCHOR)]
    scored = {entry["digest"]: name for name, entry in evidence.manifest["inputs"].items() if name in shown.chain}
    scored |= {card.policy: card.name for card in own if card.policy}
    if candidate in scored:
        return scored[candidate], []
    return own[-1].name, [
        f"report {evidence.key} is not about this policy: got models {sorted(scored.values())}, none "
        f"with digest {candidate[:12]}, because another policy was evaluated; evaluate this one"
    ]


def _strangers(incumbents: Incumbents, shown: Report) -> list[str]:
    """Why the report's champion or anchor is not the registry's; empty when they are the same."""
    scored = {card.name: card.policy for card in shown.models if card.name in (CHAMPION, ANCHOR)}
    wanted = {name: _policy(version) for name, version in incumbents.named().items()}
    return [
        f"the {name} of the report is not the registry's: got policy {scored.get(name, '')[:12] or 'none'} where the registry has "
        f"{wanted.get(name, '')[:12] or 'none'}, because it moved since, or evaluate reads another registry; run evaluate again "
        "with the registry and name that promote has"
        for name in (CHAMPION, ANCHOR)
        if scored.get(name) != wanted.get(name)
    ]


def _looks(terms: Terms, shown: Report, items: Sequence[Item], model: str, log: LookLog) -> tuple[int, float | None]:
    """Earlier looks at the primaries' items, and the level that is left for this one."""
    wanted = {part.figure for part in terms.primaries}
    suites = suite_digests(items, model, {figure.suite for figure in shown.figures if figure.name in wanted})
    return log.count(suites), spent(terms, log.count(suites, this_quarter=True))


def _policy(version: Version | None) -> str:
    return str(version.facts["policy"]) if version else ""
