"""Every model of the chain side by side on held-out data: base, pretrained, sft, and dpo, kto or rl; every figure has an interval.

The champion and the anchor of a registry are scored in the same run, on the same items: no stored number is compared.

Reads:  base, pretrained, sft, dpo, kto, rl: models (the same base is loaded once, adapters are switched); heldout (clean);
        held-out bad cases (badcases); the files of ``evaluate.suites``; the registry.
Writes: ``items.parquet`` (one row a model, suite and item), ``report.json``, ``report.md``, ``report.html``;
        ``record/latency.json``, ``record/judge.sqlite``.
Source: bits per byte; verifiable rules (IFEval, 2311.07911); implicit reward (DPO, 2305.18290, equation 5); paired intervals by
        cluster (Miller 2024, 2411.00640).
Resume: every scored batch and every verdict is kept the moment it is done; a model whose batches are all there is not even loaded.
Run:    python -m steps.evaluate --config FILE --base DIR --sft DIR --dpo DIR --heldout DIR --out DIR
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from steps.lib import case_grading, evaluated, figures, latency, pairwise, report, runtime, stopping, suite_config
from steps.lib.artifact import MANIFEST
from steps.lib.asking import Tally
from steps.lib.config import Neutral, Section
from steps.lib.door import main
from steps.lib.earlier import ledgers_beside
from steps.lib.errors import ConfigError
from steps.lib.evals import Heldout
from steps.lib.evaluated import Evaluated
from steps.lib.figures import Item
from steps.lib.incumbents import Incumbents
from steps.lib.judged import Judged, judge_models
from steps.lib.lm_eval import LmEval, LmEvalConfig
from steps.lib.models import Precision
from steps.lib.pair_judging import authors
from steps.lib.pairwise import PairwiseConfig
from steps.lib.registry import Registry, Version
from steps.lib.rubric import RubricConfig, rubric_externals
from steps.lib.scored_models import Scoring
from steps.lib.step import Context, Metrics
from steps.lib.suite_cases import SuiteCases
from steps.lib.suite_config import AnySuite
from steps.lib.suites import Limits, Suite
from steps.lib.work_ledger import WorkLedger

VERSION = "5"
RECORDS = ("report.md", "report.html")
CANDIDATES = ("dpo", "kto", "rl", "sft", "pretrained", "base")
"""Inputs of which the first that is there is the candidate."""


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
    suites: tuple[AnySuite, ...] = ()
    """Suites besides the held-out ones: kind ifeval, rules, gsm8k, format or choices, each with its file."""
    lm_eval: LmEvalConfig | None = None
    """Public benchmarks through lm-eval (extra lm-eval)."""
    case_repeats: int = Field(1, ge=1)
    """Answers drawn for each bad case, all of which must pass; more than one shows which cases are flaky."""
    case_temperature: float = Field(0.0, ge=0)
    """Temperature of these draws; above 0 where there is more than one."""
    rubric: RubricConfig | None = None
    """Judge of bad cases that no program can tell; null: these are left out, and the report says how many."""
    pairwise: PairwiseConfig | None = None
    """Judge that compares the answers of two models, and which two; null: nobody is asked."""
    reference: Literal["base", "pretrained", "sft", "champion", "anchor"] = "sft"
    """Frozen model that implicit rewards and divergences are against; where it is not there, sft."""
    kl_tokens: int = Field(64, ge=0)
    """Tokens of the longest answer that is drawn for ``kl_sampled``; 0 draws none."""
    registry: Annotated[Path | None, Neutral] = None
    """Folder of the registry whose champion and anchor are scored in the same run (they go into the key); null: none is. In a line
    with promote it is that of promote."""
    name: Annotated[str, Neutral] = "after-sales"
    """Name of the model in the registry; in a line with promote that of promote."""
    latency: Annotated[int, Neutral] = Field(4, ge=0)
    """Prompts that each model answers one at a time while times are taken (a record, not part of the result); 0 takes none."""

    @field_validator("suites")
    @classmethod
    def _apart(cls, suites: tuple[AnySuite, ...]) -> tuple[AnySuite, ...]:
        if problem := suite_config.names_problem(suites):
            raise ValueError(problem)
        return suites

    @model_validator(mode="after")
    def _drawn(self) -> Self:
        if self.case_repeats > 1 and not self.case_temperature:
            raise ValueError(
                f"case_repeats is {self.case_repeats} at case_temperature 0: got equal answers, because greedy decoding draws "
                "nothing; set case_temperature, or case_repeats to 1"
            )
        return self


def externals(config: EvaluateConfig, inputs: Mapping[str, str]) -> dict[str, str]:
    """Content of the suites' files and of the judges' prompts, and the versions that the candidate meets.

    Raises:
        DataError: files of suites are missing.
        ConfigError: a task of lm-eval is wrong, or a judge's prompt file.
    """
    found = suite_config.externals(config.suites)
    if config.lm_eval:
        found["suite/lm_eval"] = LmEval(config.lm_eval).digest()
    if config.rubric and "badcases" in inputs:
        found |= rubric_externals(config.rubric)
    if config.pairwise:
        found |= pairwise.externals(config.pairwise)
    if config.registry:
        policy = next(inputs[name] for name in CANDIDATES if name in inputs)
        found |= Incumbents.of(Registry(config.registry), config.name, policy).digests()
    return found


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
    badcases: Path | None = None,
    out: Path,
    context: Context,
) -> Metrics:
    """Score every model, ask the judge, derive the figures, write the report.

    Raises:
        DataError: nothing is held out, or a suite cannot be read.
        ConfigError: the judge is to compare what is not scored.
        TeacherError: a judge cannot answer at all.
        Resumable: SIGTERM or SIGINT; the batches so far are kept.
    """
    chain = _distinct({"base": base, "pretrained": pretrained, "sft": sft, "dpo": dpo, "kto": kto, "rl": rl})
    given = {"base": base, "pretrained": pretrained, "sft": sft, "dpo": dpo, "kto": kto, "rl": rl}
    versions = _incumbents(config, next(folder for name in CANDIDATES if (folder := given[name])))
    *before, candidate = chain
    chain = {
        **{name: chain[name] for name in before},
        **{name: version.folder for name, version in versions.items()},
        candidate: chain[candidate],
    }
    held = Heldout.read(heldout, config.limit)
    tally = Tally()
    cases = _cases(config, badcases, held, context, tally) if badcases else None
    suites: list[Suite] = suite_config.read(config.suites, config.limit)
    suites += [suite for suite in (cases, LmEval(config.lm_eval) if config.lm_eval else None) if suite is not None]
    prompts = _prompts(config.pairwise, list(chain), held, suites) if config.pairwise else {}
    scoring = Scoring(
        chain=chain,
        held=held,
        suites=suites,
        limits=Limits(config.max_tokens, config.window, config.batch_size),
        precision=config.precision,
        wanted=config.reference,
        kl_tokens=config.kl_tokens,
        latency=config.latency,
        context=context,
    )
    timer = runtime.Timer()
    with (
        stopping.stop_signals() as stop,
        WorkLedger(context.resume / "batches.sqlite", stop, context.log) as ledger,
    ):
        runtime.seed_torch(context.seed)
        items, times = scoring.scored(ledger)
        items, notes = scoring.against_reference(items, ledger)
    stop.check()
    judged = Judged(tally=tally)
    if config.pairwise:
        judged = judge_models(
            config.pairwise,
            items,
            list(chain),
            prompts,
            context.resume,
            seed=context.seed,
            log=context.log,
            progress=context.progress,
            earlier=ledgers_beside(context.resume, pairwise.LEDGER),
            kin=authors(chain[candidate]),
            tally=tally,
        )
    pairwise.keep(context.resume, out / "record", context.log)
    metrics = Metrics(tokens=tally.tokens_in + tally.tokens_out, cost=tally.cost)
    metrics.values |= {"batches": ledger.computed + ledger.kept, "batches_from_ledger": ledger.kept}
    items = scoring.stamped(items + judged.items, config.pairwise.suite if config.pairwise else "")
    figures.write_items(out / "items.parquet", items)
    if times:
        latency.write(out, times)
    found = Evaluated(
        title=config.title,
        seed=context.seed,
        limit=config.limit,
        samples=config.samples,
        precision=config.precision,
        limits=scoring.limits,
        heldout=heldout,
        chain=chain,
        versions=versions,
        held=scoring.held,
        suites=scoring.suites,
        items=items,
        reference=scoring.reference,
        notes=notes,
        times=times,
        judged=judged,
        cases=cases,
    ).report()
    report.write(found, out)
    metrics.tokens += sum(item.n_out for item in items if item.output)
    metrics.values["scoring_seconds"] = round(timer.seconds, 2)
    metrics.values |= {
        f"{figure.name}/{figure.model}" + (f" {figure.against}" if figure in judged.figures else ""): round(
            figure.interval.value, 4
        )
        for figure in found.figures
    }
    _count(metrics, scoring, items)
    return metrics


def _count(metrics: Metrics, scoring: Scoring, items: list[Item]) -> None:
    """The ledger of rows: every item of every suite was scored, or is a pair that is too long."""
    sizes = {name: len(getattr(scoring.held, name)) for name in evaluated.BUILT_IN} | {
        s.name: len(s) for s in scoring.suites
    }
    for suite, size in sizes.items():
        scored = sum(item.suite == suite and item.model == next(iter(scoring.chain)) for item in items)
        metrics.rows.took(suite, size)
        metrics.rows.gave(f"{suite} scored", scored)
        if suite == "pairs" and scored < size:
            metrics.rows.drop("pairs", "too_long", size - scored)
    metrics.rows.balance({suite: [f"{suite} scored"] for suite in sizes})


def _cases(config: EvaluateConfig, folder: Path, held: Heldout, context: Context, tally: Tally) -> SuiteCases:
    """The held-out bad cases, with their judge."""
    judge = None
    if config.rubric:
        judge = case_grading.grader(
            config.rubric,
            context.resume / pairwise.LEDGER,
            seed=context.seed,
            log=context.log,
            earlier=ledgers_beside(context.resume, pairwise.LEDGER),
            tally=tally,
        )
    return SuiteCases.read(
        folder,
        config.limit,
        task=held.task,
        grader=judge,
        repeats=config.case_repeats,
        temperature=config.case_temperature,
    )


def _prompts(config: PairwiseConfig, models: list[str], held: Heldout, suites: Sequence[Suite]) -> Mapping[str, str]:
    """Item id -> what was asked, of the suite whose answers are judged. All that may be wrong shows before a model runs."""
    pairwise.compared(config, models)
    known = {"prompts": {row.id: row.prompt for row in held.prompts}} | {one.name: one.prompts for one in suites}
    if not known.get(config.suite):
        raise ConfigError(
            f"evaluate.pairwise.suite is {config.suite!r}: got no answers to compare, because suites with answers are "
            f"{', '.join(sorted(name for name, asked in known.items() if asked)) or 'none'} here; name one of these"
        )
    return known[config.suite]


def _distinct(chain: dict[str, Path | None]) -> dict[str, Path]:
    """The stages that exist; a stage that was left out (its input stands again) is not scored twice."""
    found: dict[str, Path] = {}
    for name, folder in chain.items():
        if folder is not None and folder.resolve() not in {path.resolve() for path in found.values()}:
            found[name] = folder
    return found


def _incumbents(config: EvaluateConfig, candidate: Path) -> dict[str, Version]:
    """Name in the report -> version that the candidate meets."""
    if config.registry is None:
        return {}
    policy = str(json.loads((candidate / MANIFEST).read_text(encoding="utf-8"))["digest"])
    return Incumbents.of(Registry(config.registry), config.name, policy).named()


if __name__ == "__main__":
    main("evaluate")
