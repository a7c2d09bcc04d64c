"""The gate: is the candidate better than the champion, and nowhere worse that matters? Then the alias moves.

Reads:  policy (dpo, kto, rl or sft): ``adapter/`` and ``chain.json``, or ``model/``; report (evaluate): ``items.parquet`` and
        ``report.json``.
Writes: ``verdict.json``, ``record/registry.json``; the registry (a new version always, the alias only on ``promote``).
Source: paired, clustered differences, arXiv 2411.00640; one primary and non-inferiority guards as in the
        intersection-union test, Berger 1982. Figures are derived from the items, never from rounded numbers.
Resume: a version is its content, and the alias moves at most once: whatever was done before a kill is found and not done again.
Run:    python -m steps.promote --config FILE --policy DIR --report DIR --out DIR
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from steps.lib import figures
from steps.lib import report as reports
from steps.lib.artifact import Artifact
from steps.lib.config import Neutral, Section
from steps.lib.digests import digest_text
from steps.lib.door import main
from steps.lib.errors import DataError
from steps.lib.figures import Item, Measure, Plain
from steps.lib.registry import Registry, Version
from steps.lib.report import Report
from steps.lib.runtime import stop_signals
from steps.lib.stats import Interval
from steps.lib.step import Context, Metrics

VERSION = "1"
EVAL_REPORT, EVAL_ITEMS = "eval/report.json", "eval/items.jsonl.zst"


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


class PromoteConfig(Section):
    """The gate and the registry."""

    registry: Annotated[Path, Neutral] = Path("data/registry")
    """Folder of the registry."""
    name: str = "after-sales"
    """Name of the model in the registry."""
    baseline: str = "sft"
    """Model of the same report that the first champion must beat."""
    primary: Primary = Primary()
    """What must get better."""
    guards: tuple[Guard, ...] = (
        Guard(figure="general_bits_per_byte", margin=5.0),
        Guard(figure="format_rate", margin=0.05),
        Guard(figure="raw_logprob_accuracy", margin=0.05),
    )
    """What must not get worse."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Share: one-sided confidence of every bound."""


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


def externals(config: PromoteConfig, inputs: Mapping[str, str]) -> dict[str, str]:
    """What the registry adds to the verdict.

    It is the champion that this policy meets, with its evaluation: the one before this very policy, so that a second run has the
    same key; and whether this policy with this report was rolled back.
    """
    registry = Registry(config.registry)
    champion = _incumbent(registry, config.name, inputs["policy"])
    found = {"champion": champion.digest if champion else "none"}
    gone = registry.history(config.name).rolled_back()
    if _registered(registry, config.name, gone, inputs["policy"], inputs["report"]):
        found["rolled back"] = "yes"
    return found


def holds(config: PromoteConfig, folder: Path) -> str | None:
    """Why a cached verdict no longer holds; None while the registry shows it, or a person's rollback since."""
    verdict = Verdict.model_validate_json((folder / "verdict.json").read_text(encoding="utf-8"))
    registry = Registry(config.registry)
    history = registry.history(config.name)
    version = _registered(registry, config.name, history.registered(), verdict.policy, verdict.report)
    if version is None:
        return f"registry {config.registry} has no version of model {config.name} with this policy and report"
    settled = {history.aliases().get("champion"), *history.rolled_back()}
    if verdict.verdict == "promote" and version not in settled:
        return f"alias champion of model {config.name} is not at {version}"
    return None


def run(config: PromoteConfig, *, policy: Path, report: Path, out: Path, context: Context) -> Metrics:
    """Decide, register, and move the alias if the verdict is ``promote``.

    Raises:
        DataError: the report cannot be read.
        ArtifactError: the registry is damaged, or another run moved the alias meanwhile.
        Resumable: SIGTERM or SIGINT before anything was registered; later ones do not keep this from its end.
    """
    registry = Registry(config.registry)
    before = registry.history(config.name)
    current = before.aliases().get("champion")
    candidate, evidence = Artifact.read(policy).digest, Artifact.read(report)
    shown, items = reports.read(report), figures.read_items(report / "items.parquet")
    verdict = _decide(config, candidate, evidence, shown, items, _incumbent(registry, config.name, candidate))
    facts = {"policy": candidate, "report": evidence.digest, "model": verdict.candidate, "base": _base(policy)}
    with stop_signals() as stop:
        staged = _stage(policy, shown, items, context.resume / "version")
        stop.check()
        version = registry.register(config.name, staged, facts=facts)
        if verdict.verdict == "promote" and version.name in before.rolled_back():
            reason = "it was rolled back before; only a person may promote it again"
            verdict = verdict.model_copy(update={"verdict": "inconclusive", "reasons": [*verdict.reasons, reason]})
        text = verdict.model_dump_json(indent=1) + "\n"
        (out / "verdict.json").write_text(text, encoding="utf-8")
        if verdict.verdict == "promote" and current != version.name:
            registry.promote(
                config.name, version.name, expected=current, verdict_digest=digest_text(text), reason=verdict.reasons[0]
            )
        _record(out, registry, config.name, version.name, digest_text(text))
    context.log.info("verdict %s for %s against %s", verdict.verdict, version.name, verdict.against)
    for reason in verdict.reasons:
        context.log.info("%s", reason)
    metrics = Metrics(values={"verdict": verdict.verdict, "version": version.name})
    for check in verdict.checks:
        metrics.values[f"{check.figure}_low"] = round(check.improvement.low, 6)
    return metrics


def _decide(
    config: PromoteConfig,
    candidate: str,
    evidence: Artifact,
    shown: Report,
    items: list[Item],
    champion: Version | None,
) -> Verdict:
    """The verdict; nothing is written."""
    scored = {entry["digest"]: name for name, entry in evidence.manifest["inputs"].items() if name in shown.chain}
    model = scored.get(candidate, shown.chain[-1])
    against, others, problems = config.baseline, items, []
    if candidate not in scored:
        problems.append(
            f"report {evidence.key} is not about this policy: got models {sorted(scored.values())}, none "
            f"with digest {candidate[:12]}, because another policy was evaluated; evaluate this one"
        )
    if champion:
        against = champion.facts["model"]
        others = _champion_items(champion)
        problems += _foreign(champion, shown)
    elif against == model or against not in shown.chain:
        problems.append(
            f"baseline {against!r} cannot be compared: got models {shown.chain}, because the first "
            "champion must beat another model of the same report; set promote.baseline"
        )
    checks: list[Check] = []
    gate: list[Primary | Guard] = [config.primary, *config.guards]
    for part in gate if not problems else []:
        try:
            checks.append(_check(part, config.confidence, shown, items, others, (model, against)))
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
        against=f"champion {champion.facts['policy'][:12]}" if champion else f"{against} of the same report",
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


def _incumbent(registry: Registry, name: str, policy: str) -> Version | None:
    """The champion, or, while this very policy is champion, the one of another policy that it replaced."""
    history = registry.history(name)

    def is_other(version: str | None) -> bool:
        return version is None or registry.resolve(name, version).facts["policy"] != policy

    version = history.aliases().get("champion")
    if not is_other(version):
        entered = [
            event
            for event in history.events
            if event.action == "promote"
            and event.alias == "champion"
            and not is_other(event.after)
            and is_other(event.before)
        ]
        version = entered[-1].before
    return registry.resolve(name, version) if version else None


def _registered(registry: Registry, name: str, versions: Iterable[str], policy: str, report: str) -> str | None:
    """The one of some versions that has this policy with this report, by their digests."""
    for version in versions:
        if (registry.root / name / "versions" / version).is_dir():
            facts = registry.resolve(name, version).facts
            if (facts["policy"], facts["report"]) == (policy, report):
                return version
    return None


def _foreign(champion: Version, shown: Report) -> list[str]:
    """Why the champion's stored items cannot be compared with this report's; empty when they can."""
    theirs = Report.model_validate_json((champion.folder / EVAL_REPORT).read_text(encoding="utf-8")).fingerprint
    differing = sorted(
        name for name in theirs.keys() | shown.fingerprint.keys() if theirs.get(name) != shown.fingerprint.get(name)
    )
    if not differing:
        return []
    return [
        f"champion {champion.facts['policy'][:12]} was scored under another fingerprint: got other {', '.join(differing)}, because "
        "the evaluation changed since; evaluate the champion's own policy with these settings and register that"
    ]


def _stage(policy: Path, shown: Report, items: list[Item], folder: Path) -> Path:
    """A clean copy of what a version holds: the adapter and its chain (or the model), and the evaluation."""
    import pyarrow as pa

    shutil.rmtree(folder, ignore_errors=True)
    (folder / "eval").mkdir(parents=True)
    parts = ("adapter" if (policy / "adapter").is_dir() else "model", "chain.json")
    for part in parts:
        if (policy / part).is_dir():
            shutil.copytree(policy / part, folder / part, symlinks=True)
        elif (policy / part).exists():
            shutil.copyfile(policy / part, folder / part)
    (folder / EVAL_REPORT).write_text(reports.result(shown), encoding="utf-8")
    with pa.CompressedOutputStream(str(folder / EVAL_ITEMS), "zstd") as file:
        for item in items:
            file.write(item.model_dump_json().encode() + b"\n")
    return folder


def _champion_items(champion: Version) -> list[Item]:
    import pyarrow as pa

    with pa.CompressedInputStream(str(champion.folder / EVAL_ITEMS), "zstd") as file:
        return [Item.model_validate_json(line) for line in file.read().split(b"\n") if line]


def _base(policy: Path) -> str:
    """Digest of the base model that the adapter fits; empty for a whole model."""
    path = policy / "chain.json"
    return str(json.loads(path.read_text(encoding="utf-8")).get("base", "")) if path.exists() else ""


def _record(out: Path, registry: Registry, name: str, version: str, verdict_digest: str) -> None:
    """Where the version came to lie, and which one it replaced (when this run, or one that was killed, moved the alias)."""
    history = registry.history(name)
    champion = history.aliases().get("champion")
    facts = {
        "version": version,
        "verdict_digest": verdict_digest,
        "champion_before": history.replaced(version) if champion == version else champion,
        "champion": champion,
    }
    (out / "record").mkdir(exist_ok=True)
    (out / "record" / "registry.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main("promote")
