"""Preference pairs: the policy's own samples, best against worst; teacher against policy; imported pairs; bad cases.

Sources are scored (by the task's rules, a judge, or both), linted row by row, judged in both orders, weighed, and looked at as a
whole. docs/pairs.md says how.

Reads:  policy (sft): an adapter on its base; data (clean): ``chats.parquet``, ``pairs.parquet``, ``task.yaml``,
        ``heldout_*.parquet``; badcases (``cases.parquet`` too): ``pairs.parquet``, where a source is of that kind;
        corrections (correct): ``pairs.parquet``, of cases that only a teacher corrected.
Writes: ``pairs.parquet`` (Pair), ``samples.parquet`` (Candidate: every sample), ``dropped.parquet``, ``record/lint.json``,
        ``record/samples.sqlite`` and ``record/judge.sqlite`` (every answer; a later run with other settings reads them).
Source: best-of-n pairs as in Llama 2 (Touvron et al. 2023, 2307.09288, section 3.2.3); both orders of a judge: Zheng et al. 2023,
        2306.05685, section 3.4.
Run:    python -m steps.pairs --config FILE --policy DIR --data DIR --out DIR
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from steps.lib import inference, models, pair_making, pair_samples
from steps.lib.case_guard import CaseGuard
from steps.lib.config import Section
from steps.lib.door import main
from steps.lib.errors import ConfigError, DataError
from steps.lib.judge import JudgeConfig, judge_externals
from steps.lib.pair_judging import Bench, authors
from steps.lib.pair_lint import Guarded, Linted, PairLimits, lint
from steps.lib.pair_samples import Drawn
from steps.lib.pair_sources import (
    BadcasesSource,
    Book,
    ImportedSource,
    Made,
    PairSource,
    PolicySource,
    TeacherSource,
    weighed,
)
from steps.lib.pair_survey import Survey, survey
from steps.lib.rows import Candidate, Chat, Dropped, Pair, by_id, read_parquet, write_parquet
from steps.lib.rules import Task
from steps.lib.sources import digest
from steps.lib.step import Context, Metrics

VERSION = "3"


class PairsConfig(Section):
    """Where pairs come from, and which are good enough."""

    sources: list[PairSource] = Field([PolicySource(kind="policy"), ImportedSource(kind="imported")], min_length=1)
    """Where pairs come from; each kind (policy, teacher, imported, badcases) once at most."""
    prompts: int = Field(400, ge=1)
    """Training prompts that the policy answers (drawn with the seed), for the sources policy and teacher."""
    samples: int = Field(4, ge=2)
    """Answers of the policy to each prompt."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of the samples; greedy ones would all be equal."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Share of probability kept in sampling (nucleus)."""
    max_tokens: int = Field(256, ge=1)
    """Tokens of the longest sample; a longer one is cut, scored as it is, and flagged truncated."""
    batch_size: int = Field(16, ge=1)
    """Prompts sampled at once."""
    judge: JudgeConfig | None = None
    """Judge of the sources that ask for one; it has a ledger of its own, so another judge draws no sample again."""
    lint: PairLimits = PairLimits()
    """How much may be wrong with the pairs."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        problems: list[str] = []
        kinds = [source.kind for source in self.sources]
        if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            problems.append(f"sources have kind {', '.join(twice)} twice, because one of each is enough; take one out")
        asking = [source.kind for source in self.sources if self._asks(source)]
        if asking and self.judge is None:
            problems.append(
                f"sources {', '.join(asking)} ask a judge: got judge: null, because scored_by or confirm names one; set judge, or "
                "scored_by: rules and confirm: false"
            )
        if self.judge is not None and not asking:
            problems.append(
                "judge is never asked: got no source that asks one, because all have scored_by: rules, or confirm: false; set "
                "judge to null, or let a source ask"
            )
        if problems:
            raise ValueError("; and ".join(problems))
        return self

    def _asks(self, source: PairSource) -> bool:
        if isinstance(source, (ImportedSource, BadcasesSource)):
            return source.confirm
        return self.scorer(source) != "rules"

    def scorer(self, source: PolicySource | TeacherSource) -> str:
        """Who scores the answers of a source: rules, judge or both."""
        return source.scored_by or ("both" if self.judge else "rules")

    @property
    def sampled(self) -> int:
        """Samples of the policy that are drawn at most."""
        return self.prompts * self.samples if self._sampling() else 0

    @property
    def wants_badcases(self) -> bool:
        """Whether the input ``badcases`` is read."""
        return any(source.kind == "badcases" for source in self.sources)

    def _sampling(self) -> list[PolicySource | TeacherSource]:
        return [source for source in self.sources if isinstance(source, (PolicySource, TeacherSource))]

    def confirmed(self) -> list[str]:
        """Kinds of the sources whose pairs a judge must confirm, once they are made."""
        return [
            source.kind
            for source in self.sources
            if self._asks(source) and not (source.kind == "policy" and self.scorer(source) == "judge")
        ]

    def ruled(self) -> list[str]:
        """Kinds of the sources that the task's rules score."""
        return [source.kind for source in self._sampling() if self.scorer(source) != "judge"]


def externals(config: PairsConfig) -> dict[str, str]:
    """The judge's identity and prompt; benchmarks."""
    benchmarks = config.lint.decontaminate.benchmarks if config.lint.decontaminate else []
    return {
        **(judge_externals(config.judge) if config.judge else {}),
        **{f"benchmark/{source.name}": digest(source) for source in benchmarks},
    }


def run(
    config: PairsConfig,
    *,
    policy: Path,
    data: Path,
    badcases: Path | None = None,
    corrections: Path | None = None,
    out: Path,
    context: Context,
) -> Metrics:
    """Sample, score, judge, lint, weigh.

    Raises:
        ConfigError: nothing scores the samples, or bad cases are asked for and there are none.
        DataError: no pair, or a limit of the linter is passed; record/lint.json and dropped.parquet are in the partial folder.
    """
    metrics = Metrics()
    book = Book(metrics.rows)
    bench = Bench(config.judge, context) if config.judge else None
    chats = pair_samples.prompts_of(read_parquet(data / "chats.parquet", Chat), config.prompts, context.seed)
    drawn: Drawn | None = None
    made: Made = {}
    if config.sampled and chats:
        task = _task(config, data)
        drawing = inference.Sampling(config.temperature, config.top_p, config.max_tokens)
        drawn = pair_samples.draw(
            policy, chats, drawing, samples=config.samples, batch_size=config.batch_size, out=out, context=context
        )
        _counted(drawn, metrics)
        made |= _sampled(config, drawn, task, bench, book, context.seed)
    made |= _read(config, data, badcases, corrections, book)
    by_id(pair for pairs in made.values() for pair in pairs)
    linted = _linted(config, made, policy, data, badcases, book)
    kept = _confirmed(config, linted.made, bench, book) if bench else linted.made
    final = weighed(kept, config.sources, book)
    pairs = [pair for source in config.sources for pair in final.get(source.kind, [])]
    looked = survey(pairs, linted.lengths, config.lint)
    write_parquet(out / "dropped.parquet", book.dropped, Dropped)
    _report(config, linted, looked, bench, drawn, policy, out, context, metrics)
    if not pairs:
        reasons = dict(Counter(row.reason for row in book.dropped))
        raise DataError(
            f"no preference pairs: got 0 pairs, because of {reasons or 'nothing to make them from'}; "
            "lower min_margin of pairs.sources, raise pairs.samples or pairs.temperature, or import pairs in clean"
        )
    write_parquet(out / "pairs.parquet", pairs, Pair)
    write_parquet(out / "samples.parquet", drawn.candidates() if drawn else [], Candidate)
    metrics.rows.balance(
        {
            "prompts": ["prompts paired"],
            "teacher answers": ["teacher pairs"],
            "imported": ["imported pairs"],
            "bad cases": ["bad-case pairs"],
            "made": ["sound pairs"],
            "to judge": ["judged pairs"],
            "to mix": ["pairs"],
        }
    )
    _measured(pairs, final, metrics)
    return metrics


def _task(config: PairsConfig, data: Path) -> Task | None:
    """The rules, where a source needs them."""
    if not (kinds := config.ruled()):
        return None
    if not (data / "task.yaml").exists():
        raise ConfigError(
            f"pairs.sources {', '.join(kinds)} are scored by rules, but there are none: got data without task.yaml, because "
            "clean.task is not set; set clean.task to a file with rules, set scored_by: judge, or take these sources out"
        )
    return Task.read(data / "task.yaml")


def _counted(drawn: Drawn, metrics: Metrics) -> None:
    """What sampling took."""
    replies = [reply for row in drawn.answers for reply in row]
    metrics.tokens += sum(reply.tokens_out for reply in replies)
    metrics.values |= {
        "sampling_seconds": round(drawn.seconds, 2),
        "samples": len(replies),
        "samples_from_ledger": len(replies) - drawn.computed,
        "truncated_samples": sum(reply.finish_reason == "length" for reply in replies),
    }


def _sampled(config: PairsConfig, drawn: Drawn, task: Task | None, bench: Bench | None, book: Book, seed: int) -> Made:
    """Pairs of the sources policy and teacher."""
    made: Made = {}
    for source in config.sources:
        if isinstance(source, PolicySource):
            book.rows.took("prompts", len(drawn.chats))
            if config.scorer(source) == "judge":
                assert bench is not None
                made["policy"] = pair_making.judged(source, bench, drawn, book)
            else:
                assert task is not None
                made["policy"] = pair_making.ruled(source, task, drawn, book)
        elif isinstance(source, TeacherSource):
            ruled = task if config.scorer(source) != "judge" else None
            made["teacher"] = pair_making.taught(source, ruled, drawn, seed, book)
    return made


def _read(config: PairsConfig, data: Path, badcases: Path | None, corrections: Path | None, book: Book) -> Made:
    """Pairs of the sources imported and badcases."""
    made: Made = {}
    for source in config.sources:
        if isinstance(source, ImportedSource):
            made["imported"] = read_parquet(data / "pairs.parquet", Pair)
            book.rows.took("imported", len(made["imported"]))
            book.rows.gave("imported pairs", len(made["imported"]))
        elif isinstance(source, BadcasesSource):
            if badcases is None:
                raise ConfigError(
                    "pairs.sources asks for badcases, but the line has none: got no artifact of the step badcases, because its "
                    "section is null; set a section badcases, or take the source out"
                )
            made["badcases"] = [
                row
                for folder in (badcases, corrections)
                if folder
                for row in read_parquet(folder / "pairs.parquet", Pair)
            ]
            book.rows.took("bad cases", len(made["badcases"]))
            book.rows.gave("bad-case pairs", len(made["badcases"]))
    return made


def _confirmed(config: PairsConfig, made: Made, bench: Bench, book: Book) -> Made:
    """The pairs that the judge prefers the same way, of the sources that ask for that."""
    judged = config.confirmed()
    asked = [pair for kind, pairs in made.items() if kind in judged for pair in pairs]
    kept = by_id(pair_making.confirmed(asked, bench, book))
    return {
        kind: [kept[pair.id] for pair in pairs if pair.id in kept] if kind in judged else pairs
        for kind, pairs in made.items()
    }


def _linted(config: PairsConfig, made: Made, policy: Path, data: Path, badcases: Path | None, book: Book) -> Linted:
    """The pairs that are sound, row by row."""
    tokenizer = models.load_tokenizer(models.model_folder(policy))
    look = config.lint.decontaminate
    guarded = Guarded.of(data, look, CaseGuard.read(badcases).items) if look else None
    return lint(made, tokenizer, config.lint, guarded, book)


def _report(
    config: PairsConfig,
    linted: Linted,
    looked: Survey,
    bench: Bench | None,
    drawn: Drawn | None,
    policy: Path,
    out: Path,
    context: Context,
    metrics: Metrics,
) -> None:
    """Warnings into the log, figures into the metrics and record/lint.json.

    Raises:
        DataError: one, of all limits that are passed.
    """
    sources = {row.source for row in drawn.chats} if drawn else set()
    warned = bench.report(metrics, authors(policy, sources), out) if bench else []
    for message in warned:
        context.log.warning("%s", message)
    metrics.values |= {"warnings": len(warned), **linted.figures(), **looked.figures}
    problems = [*linted.problems(config.lint), *looked.problems]
    (out / "record").mkdir(exist_ok=True)
    told = {
        "figures": {**linted.figures(), **looked.figures},
        "limits": config.lint.model_dump(mode="json"),
        "problems": problems,
        "warnings": warned,
    }
    (out / "record" / "lint.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if problems:
        raise DataError("\n".join(problems))


def _measured(pairs: Iterable[Pair], final: Made, metrics: Metrics) -> None:
    """What the pairs are like."""
    rows = list(pairs)
    lengths = [(len(pair.chosen[-1].content), len(pair.rejected[-1].content)) for pair in rows]
    metrics.values |= {
        "pairs": len(rows),
        **{f"pairs/{kind}": len(own) for kind, own in final.items()},
        "mean_margin": round(sum(pair.margin for pair in rows) / len(rows), 4),
        "chosen_longer_share": round(sum(c > r for c, r in lengths) / len(lengths), 4),
    }


if __name__ == "__main__":
    main("pairs")
