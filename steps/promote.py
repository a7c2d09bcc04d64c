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
from typing import Annotated

from pydantic import Field

from steps.lib import figures
from steps.lib import report as reports
from steps.lib.artifact import Artifact
from steps.lib.config import Neutral, Section
from steps.lib.digests import digest_text
from steps.lib.door import main
from steps.lib.figures import Item
from steps.lib.gate import Champion, Guard, Primary, Verdict, decide
from steps.lib.registry import Registry, Version
from steps.lib.report import Report
from steps.lib.runtime import stop_signals
from steps.lib.step import Context, Metrics

VERSION = "1"
EVAL_REPORT, EVAL_ITEMS = "eval/report.json", "eval/items.jsonl.zst"


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
    incumbent = _incumbent(registry, config.name, candidate)
    verdict = decide(config, candidate, evidence, shown, items, _champion(incumbent) if incumbent else None)
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


def _champion(version: Version) -> Champion:
    """A version's evaluation as ``_stage`` kept it."""
    import pyarrow as pa

    with pa.CompressedInputStream(str(version.folder / EVAL_ITEMS), "zstd") as file:
        items = [Item.model_validate_json(line) for line in file.read().split(b"\n") if line]
    shown = Report.model_validate_json((version.folder / EVAL_REPORT).read_text(encoding="utf-8"))
    return Champion(version.facts["policy"], version.facts["model"], shown.fingerprint, items)


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
