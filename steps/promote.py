"""The gate: is the candidate better than the champion, and nowhere worse that matters? Then the alias moves.

Reads:  policy (dpo, kto, rl or sft): ``adapter/`` and ``chain.json``, or ``model/``; report (evaluate): ``items.parquet`` and
        ``report.json``.
Writes: ``verdict.json``, ``report.md`` and ``report.html`` (the verdict first), ``record/registry.json``, ``record/mirrors.json``;
        the registry (a new version always, the alias champion only on ``promote``).
Source: paired, clustered differences, arXiv 2411.00640; one primary and non-inferiority guards as in the
        intersection-union test, Berger 1982; several primaries, Holm 1979. Figures are derived from the items, never from
        rounded numbers, and the champion's items are of the same run as the candidate's.
Resume: a version is its content, and the alias moves at most once: whatever was done before a kill is found and not done again.
Run:    python -m steps.promote --config FILE --policy DIR --report DIR --out DIR
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from steps.lib import figures, mirrors, model_files, models, parity, verdict_page, version_files
from steps.lib import report as reports
from steps.lib.artifact import Artifact
from steps.lib.card import CardConfig
from steps.lib.config import Neutral, Section
from steps.lib.digests import digest_text
from steps.lib.door import main
from steps.lib.figures import Item
from steps.lib.gate import Guard, Primary, Verdict, decide
from steps.lib.gate_terms import Spending, Test
from steps.lib.incumbents import ANCHOR, Incumbents
from steps.lib.look_log import FACT, LookLog, suite_digests
from steps.lib.mirrors import MirrorsConfig
from steps.lib.registry import CHALLENGER, CHAMPION, Registry
from steps.lib.report import Report
from steps.lib.runtime import seed_torch
from steps.lib.signing import SigningConfig
from steps.lib.step import Context, Metrics
from steps.lib.stopping import stop_signals

VERSION = "2"
RECORDS = ("report.md", "report.html")


class PromoteConfig(Section):
    """The gate and the registry."""

    registry: Annotated[Path, Neutral] = Path("data/registry")
    """Folder of the registry."""
    name: str = "after-sales"
    """Name of the model in the registry."""
    baseline: str = "sft"
    """Model of the same report that the first champion must beat."""
    primary: Primary | Annotated[tuple[Primary, ...], Field(min_length=1)] = Primary()
    """What must get better; of several, one must and none may get worse (they share the level by Holm's procedure)."""
    guards: tuple[Guard, ...] = (
        Guard(figure="general_bits_per_byte", margin=5.0),
        Guard(figure="format_rate", margin=0.05),
        Guard(figure="raw_logprob_accuracy", margin=0.05),
    )
    """What must not get worse, against the champion and against the anchor."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Share: one-sided confidence of every bound."""
    mcnemar: Test = "midp"
    """Test that primaries of fewer than 200 independent 0/1 items pass too; exact never promotes too often, and needs more."""
    allow_template_change: bool = False
    """Whether the chat template may be another one than the champion's; else that is a veto."""
    max_looks: int = Field(default=12, ge=1)
    """Verdicts on the same items, before they are called worn; with spending by quarter, as many as share a quarter's level."""
    spending: Spending = "none"
    """How verdicts on the same items share the level: each has all of it, or those of a calendar quarter share it equally."""
    card: Annotated[CardConfig, Neutral] = CardConfig()
    """What a person says of the model, in its card and its bill of materials; read when a version is registered."""
    signing: Annotated[SigningConfig, Neutral] = SigningConfig()
    """Keys that sign versions, and that they must be signed with."""
    mirrors: Annotated[MirrorsConfig, Neutral] = MirrorsConfig()
    """Copies elsewhere, made when all is done; none of them can stop a run."""

    @property
    def primaries(self) -> tuple[Primary, ...]:
        """``primary``, one or several."""
        return (self.primary,) if isinstance(self.primary, Primary) else self.primary


def externals(config: PromoteConfig, inputs: Mapping[str, str]) -> dict[str, str]:
    """What the registry adds to the verdict.

    It is the champion and the anchor that this policy meets: those before this very policy, so that a second run has the same key;
    the looks at held-out items before it; and whether a person took this policy back.
    """
    registry = Registry(config.registry)
    found = Incumbents.of(registry, config.name, inputs["policy"]).digests()
    log = LookLog.of(registry, config.name, inputs["policy"], inputs["report"])
    found["looks"] = log.digest(config.spending)
    if inputs["policy"] in registry.withdrawn(config.name):
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
    settled = {history.aliases().get(CHAMPION), *history.rolled_back()}
    if verdict.verdict == "promote" and version not in settled:
        return f"alias champion of model {config.name} is not at {version}"
    return None


def run(config: PromoteConfig, *, policy: Path, report: Path, out: Path, context: Context) -> Metrics:
    """Decide, register, and move the alias if the verdict is ``promote``.

    Raises:
        DataError: the report cannot be read.
        ModelError: the policy's base is nowhere.
        ArtifactError: the registry is damaged, or another run moved the alias meanwhile.
        Resumable: SIGTERM or SIGINT before anything was registered; later ones do not keep this from its end.
    """
    registry = Registry(config.registry, signing=config.signing)
    current = registry.history(config.name).aliases().get(CHAMPION)
    candidate, evidence = Artifact.read(policy).digest, Artifact.read(report)
    shown, items = reports.read(report), figures.read_items(report / "items.parquet")
    verdict = _decide(config, registry, policy, evidence, shown, items, context.seed)
    facts = {
        "policy": candidate,
        "report": evidence.digest,
        "model": verdict.candidate,
        FACT: suite_digests(items, verdict.candidate),
    }
    text = version_files.dumped(verdict)
    with stop_signals() as stop:
        staged = version_files.stage(
            context.resume / "version",
            name=config.name,
            policy=policy,
            report=report,
            shown=shown,
            items=items,
            verdict=verdict,
            told=config.card,
        )
        stop.check()
        version = registry.register(
            config.name, staged, facts=facts, base=models.base_of(policy), verdict_digest=digest_text(text)
        )
        (out / "verdict.json").write_text(text, encoding="utf-8")
        verdict_page.write(verdict, shown, out)
        if verdict.verdict == "promote" and current != version.name:
            registry.promote(
                config.name, version.name, expected=current, verdict_digest=digest_text(text), reason=verdict.reasons[0]
            )
        _challenge(registry, config.name, version.name, verdict)
        _record(out, registry, config.name, version.name, digest_text(text))
        aliases = sorted(a for a, named in registry.history(config.name).aliases().items() if named == version.name)
        sent = mirrors.send(config.mirrors, version, aliases, context.log)
        if sent:
            lines = json.dumps([one.model_dump() for one in sent], indent=1)
            (out / "record" / "mirrors.json").write_text(lines + "\n", encoding="utf-8")
    context.log.info("verdict %s for %s against %s", verdict.verdict, version.name, verdict.against)
    for reason in verdict.reasons:
        context.log.info("%s", reason)
    for warning in verdict.warnings:
        context.log.warning("%s", warning)
    metrics = Metrics(values={"verdict": verdict.verdict, "version": version.name, "looks": verdict.looks})
    for check in verdict.checks:
        name = f"{check.figure}_{ANCHOR}" if check.against == ANCHOR else check.figure
        metrics.values[f"{name}_low"] = round(check.improvement.low, 6)
    return metrics


def _decide(
    config: PromoteConfig,
    registry: Registry,
    policy: Path,
    evidence: Artifact,
    shown: Report,
    items: list[Item],
    seed: int,
) -> Verdict:
    """The gate's verdict; before a promotion also whether what is served is what was scored, and whether a person took it back."""
    candidate = Artifact.read(policy).digest

    def decided(problems: Sequence[str]) -> Verdict:
        return decide(
            config,
            candidate,
            evidence,
            shown,
            items,
            Incumbents.of(registry, config.name, candidate),
            problems=problems,
            template=model_files.template_digest(models.model_folder(policy)),
            log=LookLog.of(registry, config.name, candidate, evidence.digest),
        )

    verdict = decided(())
    if verdict.verdict == "promote":
        seed_torch(seed)
        if problems := parity.check(policy):
            verdict = decided(problems)
    if verdict.verdict == "promote" and candidate in registry.withdrawn(config.name):
        reason = "it was rolled back before; only a person may promote it again"
        verdict = verdict.model_copy(update={"verdict": "inconclusive", "reasons": [*verdict.reasons, reason]})
    return verdict


def _challenge(registry: Registry, name: str, version: str, verdict: Verdict) -> None:
    """The newest version that was not promoted is the challenger; one that was is none any more."""
    history = registry.history(name)
    aliases = history.aliases()
    newest = version == list(history.registered())[-1] and version != aliases.get(CHAMPION)
    if newest and verdict.verdict in ("reject", "inconclusive"):
        registry.point(name, version, alias=CHALLENGER, reason=f"verdict {verdict.verdict}")
    elif aliases.get(CHALLENGER) == version and version == aliases.get(CHAMPION):
        registry.point(name, None, alias=CHALLENGER, reason="it is champion now")


def _registered(registry: Registry, name: str, versions: Iterable[str], policy: str, report: str) -> str | None:
    """The one of some versions that has this policy with this report, by their digests."""
    for version in versions:
        if (registry.root / name / "versions" / version).is_dir():
            facts = registry.resolve(name, version).facts
            if (facts["policy"], facts["report"]) == (policy, report):
                return version
    return None


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
