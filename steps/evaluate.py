"""Every model of the chain side by side on held-out data: base, pretrained, sft, and dpo, kto or rl; every figure has an interval.

Reads:  base, pretrained, sft, dpo, kto, rl: models (the same base is loaded once, adapters are switched); heldout (clean).
Writes: ``items.parquet`` (one row a model, suite and item), ``report.json``, ``report.md``, ``report.html``.
Source: bits per byte; verifiable rules (IFEval, 2311.07911); implicit reward (DPO, 2305.18290, equation 5); paired intervals by
        cluster (Miller 2024, 2411.00640).
Resume: every scored batch is kept the moment it is done; a model whose batches are all there is not even loaded.
Run:    python -m steps.evaluate --config FILE --base DIR --sft DIR --dpo DIR --heldout DIR --out DIR
"""

from __future__ import annotations

import json
import platform
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from steps.lib import evals, figures, history, inference, models, report, runtime
from steps.lib.artifact import lineage
from steps.lib.config import Section
from steps.lib.digests import digest_text
from steps.lib.door import main
from steps.lib.evals import Heldout, Limits
from steps.lib.figures import Comparison, Figure, Item
from steps.lib.measures import MEASURES
from steps.lib.models import Precision
from steps.lib.stages import Stages
from steps.lib.step import Context, Metrics
from steps.lib.work_ledger import WorkLedger

VERSION = "4"
RECORDS = ("report.md", "report.html")
COMPARED = (
    ("pretrained", "base"),
    ("sft", "pretrained"),
    ("dpo", "sft"),
    ("dpo", "base"),
    ("kto", "sft"),
    ("kto", "base"),
    ("rl", "sft"),
    ("rl", "base"),
)
ALIGNED = ("dpo", "kto", "rl")
"""Models whose reference is the sft policy."""


class EvaluateConfig(Section):
    """How the models are scored."""

    title: str = "prefline"
    """Heading of the report."""
    max_tokens: int = Field(256, ge=1)
    """Tokens of the longest answer."""
    window: int = Field(1024, ge=16)
    """Tokens of context when texts are scored."""
    batch_size: int = Field(16, ge=1)
    """Rows of a forward pass (in the key: floating-point sums depend on it)."""
    limit: int | None = Field(None, ge=1)
    """Items of each suite, the first ones; null: all. The report says when it was set."""
    samples: int = Field(6, ge=0)
    """Prompts whose answers stand side by side in the report, half of them in each language."""
    precision: Precision = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU."""


def run(
    config: EvaluateConfig,
    *,
    heldout: Path,
    base: Path,
    pretrained: Path | None = None,
    sft: Path | None = None,
    dpo: Path | None = None,
    kto: Path | None = None,
    rl: Path | None = None,
    out: Path,
    context: Context,
) -> Metrics:
    """Score every model, derive the figures, write the report.

    Raises:
        DataError: nothing is held out.
        Resumable: SIGTERM or SIGINT; the batches so far are kept.
    """
    chain = _distinct({"base": base, "pretrained": pretrained, "sft": sft, "dpo": dpo, "kto": kto, "rl": rl})
    suites = Heldout.read(heldout, config.limit)
    limits = Limits(config.max_tokens, config.window, config.batch_size)
    timer = runtime.Timer()
    with (
        runtime.stop_signals() as stop,
        WorkLedger(context.resume / "batches.sqlite", stop, context.log) as ledger,
    ):
        runtime.seed_torch(context.seed)
        items = _scored(config, chain, suites, limits, ledger, context)
    stop.check()
    metrics = Metrics()
    metrics.values |= {"batches": ledger.computed + ledger.kept, "batches_from_ledger": ledger.kept}
    for name in ALIGNED:
        if name in chain and "sft" in chain:
            items = evals.add_implicit(items, name, "sft")
    figures.write_items(out / "items.parquet", items)
    found = _report(config, chain, heldout, suites, items, limits, context.seed)
    report.write(found, out)
    metrics.tokens = sum(item.n_out for item in items if item.suite == "prompts")
    metrics.values["scoring_seconds"] = round(timer.seconds, 2)
    metrics.values |= {f"{f.name}/{f.model}": round(f.interval.value, 4) for f in found.figures}
    for suite in ("domain", "general", "prompts", "pairs"):
        scored = sum(item.suite == suite and item.model == "base" for item in items)
        metrics.rows.took(suite, len(getattr(suites, suite)))
        metrics.rows.gave(f"{suite} scored", scored)
        if suite == "pairs" and scored < len(suites.pairs):
            metrics.rows.drop("pairs", "too_long", len(suites.pairs) - scored)
    metrics.rows.balance({suite: [f"{suite} scored"] for suite in ("domain", "general", "prompts", "pairs")})
    return metrics


def _distinct(chain: dict[str, Path | None]) -> dict[str, Path]:
    """The stages that exist; a stage that was left out (its input stands again) is not scored twice."""
    found: dict[str, Path] = {}
    for name, folder in chain.items():
        if folder is not None and folder.resolve() not in {path.resolve() for path in found.values()}:
            found[name] = folder
    return found


def _scored(
    config: EvaluateConfig,
    chain: dict[str, Path],
    suites: Heldout,
    limits: Limits,
    ledger: WorkLedger,
    context: Context,
) -> list[Item]:
    """The items of every model, batch by batch."""
    load, conditions = Stages(config.precision), inference.conditions(config.precision)
    items: list[Item] = []
    for name, artifact in context.progress(chain.items(), "models", len(chain)):
        kept = ledger.kept
        tokenizer = models.load_tokenizer(models.model_folder(artifact))
        recall = ledger.about(model=inference.identity(artifact), **conditions)
        model = inference.Later(partial(load, artifact))
        new = evals.score_model(name, model, tokenizer, suites, limits, seed=context.seed, recall=recall)
        context.log.info("%s scored on %d items; %d batches were done before", name, len(new), ledger.kept - kept)
        items += new
    return items


def _report(
    config: EvaluateConfig,
    chain: dict[str, Path],
    heldout: Path,
    suites: Heldout,
    items: list[Item],
    limits: Limits,
    seed: int,
) -> report.Report:
    behind = {m["key"]: m for folder in (*chain.values(), heldout) for m in lineage(folder)}
    manifests = {m["step"]: m for m in behind.values()}
    taken, compared = _figures(chain, items)
    return report.Report(
        title=config.title,
        seed=seed,
        facts=_facts(config, suites),
        models=[
            report.ModelCard(name=name, digest=inference.identity(folder), chain=_stages(folder))
            for name, folder in chain.items()
        ],
        figures=taken,
        comparisons=compared,
        highlights=[
            "domain_bits_per_byte",
            "general_bits_per_byte",
            "format_rate",
            "rule_score",
            "implicit_reward_accuracy",
            "labels",
        ],
        samples=_samples(config, suites, items, list(chain)),
        rows=[
            report.StepRows.from_ledger(step, manifests[step]["rows"])
            for step in (
                "generate",
                "clean",
                "base",
                "pretrain",
                "sft",
                "pairs",
                "reference",
                "dpo",
                "kto",
                "reward",
                "rl",
            )
            if step in manifests and manifests[step]["rows"]["in"]
        ],
        lineage=report.nodes(behind.values()),
        histories=_histories(heldout, manifests),
        teachers=_teachers(manifests),
        funnel=report.funnels(manifests.get("generate", {}).get("metrics", {})),
        fingerprint=_fingerprint(suites, items, limits),
        notes=_notes(config, suites, items),
    )


def _notes(config: EvaluateConfig, suites: Heldout, items: list[Item]) -> list[str]:
    """What a reader must know of the items that were not scored."""
    notes = [f"Only the first {config.limit} items of each suite were scored (evaluate.limit)."] if config.limit else []
    long = len(suites.pairs) - len({item.item_id for item in items if item.suite == "pairs"})
    if long:
        notes.append(
            f"{long} of {len(suites.pairs)} pairs are longer than evaluate.window ({config.window} tokens): not scored."
        )
    return notes


def _figures(chain: dict[str, Path], items: list[Item]) -> tuple[list[Figure], list[Comparison]]:
    """Every measure that has items, of every model, and the paired differences along the chain."""
    taken: list[Figure] = []
    compared: list[Comparison] = []
    for what in MEASURES:
        having = {i.model for i in items if i.suite == what.suite and i.scores.get(what.score) is not None}
        against = "sft" if what.score == "implicit" else None
        taken += [figures.measure(items, what, name, against=against) for name in chain if name in having]
        if what.score != "implicit":
            compared += [
                figures.compare(items, what, new, old) for new, old in COMPARED if new in having and old in having
            ]
    return taken, compared


def _facts(config: EvaluateConfig, suites: Heldout) -> dict[str, str]:
    counts = {name: len(getattr(suites, name)) for name in ("domain", "general", "prompts", "pairs")}
    return {
        "task": suites.task.name if suites.task else "none (no rules)",
        "held-out items": ", ".join(f"{count} {name}" for name, count in counts.items()),
        "answers": f"greedy, at most {config.max_tokens} tokens",
    }


def _stages(artifact: Path) -> list[str]:
    chain = models.Chain.read(artifact)
    return [
        f"base {chain.base[:12]}",
        *(f"{stage.step} ({stage.method}) on {stage.digest[:12]}" for stage in chain.stages),
    ]


def _samples(config: EvaluateConfig, suites: Heldout, items: list[Item], names: list[str]) -> list[report.Sample]:
    """The first prompts of each language, with every model's answer."""
    half = (config.samples + 1) // 2
    chosen = [row for lang in ("en", "zh", "other") for row in [r for r in suites.prompts if r.lang == lang][:half]]
    answers = {(item.model, item.item_id): item.output for item in items if item.suite == "prompts"}
    shown: list[report.Sample] = []
    for row in chosen[: config.samples]:
        outputs = {name: answers[name, row.id] for name in names}
        rules = {name: suites.task.check(row.prompt, text) for name, text in outputs.items()} if suites.task else {}
        shown.append(report.Sample(id=row.id, prompt=row.prompt, lang=row.lang, outputs=outputs, rules=rules))
    return shown


def _histories(heldout: Path, manifests: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Loss curves of every training step that lies in the same store, thinned to what a plot can show."""
    root = heldout.resolve().parent.parent
    result: dict[str, list[dict[str, Any]]] = {}
    for step in ("base", "pretrain", "sft", "dpo", "kto", "reward", "rl"):
        path = root / manifests[step]["key"] / "record" / "history.jsonl" if step in manifests else None
        if path and path.exists():
            result[step] = history.thin(history.read(path))
    return result


def _teachers(manifests: dict[str, Any]) -> list[str]:
    return [teacher["name"] for teacher in manifests.get("generate", {}).get("config", {}).get("teachers", [])]


def _fingerprint(suites: Heldout, items: list[Item], limits: Limits) -> dict[str, str]:
    """What two evaluations must share to be compared item by item."""
    ids = sorted({(item.suite, item.item_id) for item in items})
    texts = [
        row.model_dump_json() for name in ("domain", "general", "prompts", "pairs") for row in getattr(suites, name)
    ]
    task = suites.task.model_dump_json() if suites.task else ""
    return {
        "suites": digest_text("\n".join(texts))[:16],
        "items": digest_text(json.dumps(ids))[:16],
        "task": digest_text(task)[:16],
        "scorer": evals.SCORER_VERSION,
        "generation": f"greedy, {limits.max_tokens} tokens, batch {limits.batch_size}, window {limits.window}",
        "machine": f"{platform.machine()} {models.device()}",
        **{name: version for name, version in runtime.versions().items() if name in ("torch", "transformers")},
    }


if __name__ == "__main__":
    main("evaluate")
