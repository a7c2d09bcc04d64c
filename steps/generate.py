"""Teachers answer prompts.

Every prompt is answered ``samples`` times; shares say which teacher gives which sample. Each answer is committed to a
request ledger the moment it arrives, before it is read: a killed run asks only for what it had not received, and for
failures again. Prompts are read as they are asked, and rows written as they are made: memory does not grow with them.

Answers of other runs in the same store are taken over where the request is the same to the letter (teachers in this
process excepted): an edit to a prompt file asks only for the rows whose messages it changed.

Reads:  prompt sources (any layout that gives Prompt rows), a prompt file, what the teachers are made of, and the request
        ledgers of other runs in the same store.
Writes: candidates.parquet (Candidate, in the order of the prompts), dropped.parquet (Dropped: answers that did not come
        or that a flag in ``drop_flags`` keeps back, prompts that could not be read), record/requests.sqlite (every
        request, as it came).
Source: Self-Instruct (arXiv 2212.10560), section 2.2, for prompting with drawn examples; deviation: no new prompts are
        made.

Run:  python -m steps.generate --config generate.yaml --out DIR
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from steps.lib.code import closure
from steps.lib.config import Added, Neutral, Section
from steps.lib.door import main
from steps.lib.earlier import ledgers_beside
from steps.lib.errors import DataError
from steps.lib.estimate import Estimate, OnRecord
from steps.lib.estimate import estimate as estimated
from steps.lib.finished import FinishedParts
from steps.lib.gauge import Gauge
from steps.lib.items import Answer, Lost
from steps.lib.ledger import content_key
from steps.lib.making import Making
from steps.lib.marks import DROPPED, Flag
from steps.lib.opened import open_sources
from steps.lib.programs import Asker
from steps.lib.prompts import PromptFile
from steps.lib.provenance import unlicensed
from steps.lib.reading import Reading
from steps.lib.recipe_parts import Work
from steps.lib.recipes import AnswerRecipe, Recipe, digests
from steps.lib.rows import Candidate, Dropped, ParquetRows, Prompt
from steps.lib.sources import Rejected, Source, digest
from steps.lib.step import Context, Metrics
from steps.lib.stopping import stop_signals
from steps.lib.teacher import identities
from steps.lib.teacher_config import ScriptedTeacherConfig, Teacher

VERSION = "4"
RECORDS = ("dropped.parquet",)
NOT_TEACHERS = re.compile(
    r"answer|shorten|questions|support|persona|ask|(new|critique|revise)\d+|evolve\d+-.*|flags|agreement|funnel"
)
"""Stages of the recipes, and what else has figures under its name: metrics are called NAME/WHAT."""


class GenerateConfig(Section):
    """Prompts x teachers -> candidates."""

    prompts: list[Source] = Field(
        default=[Source(name="train", path=Path("data/seed/task/prompts_train.jsonl"))], min_length=1
    )
    """Sources of prompts. With more than one, a source's name goes in front of its rows' ids."""
    recipe: Annotated[Recipe, Added] = AnswerRecipe(kind="answer")
    """What is done with the rows, in stages (docs/recipes.md)."""
    prompt_file: Annotated[Path, Neutral] = Path("configs/prompts/aftersales.yaml")
    """What teachers are told when they answer (steps/lib/prompts.py); its content is in the key. Other stages of a recipe
    have prompt files of their own."""
    teachers: list[Teacher] = Field(
        default=[
            ScriptedTeacherConfig(kind="scripted", name="scripted-aftersales", path=Path("data/seed/task/teacher.yaml"))
        ],
        min_length=1,
    )
    """Who answers, each with a weight ``share``."""
    samples: int = Field(default=1, gt=0)
    """Answers to each prompt, of the recipe's last stage."""
    drop_flags: list[Flag] = list(DROPPED)
    """Flags (steps/lib/marks.py) that keep an answer out of the candidates; others are only noted on it."""
    max_failed_share: float = Field(default=0.02, ge=0, le=1)
    """Share (0 to 1) of the answers that may fail to come; above it the step fails, and running again asks for
    those only."""
    min_kept_share: float = Field(default=0.5, ge=0, le=1)
    """Share (0 to 1) of the answers that flags must leave; below it the step fails with the flags counted (and stops early
    where less than half of it is left after 500). Half: a teacher that wastes more than every second answer wants another
    prompt file, not more requests; small models that are made to write JSON keep more than that once they are told how."""

    @model_validator(mode="after")
    def _names_differ(self) -> GenerateConfig:
        for what, names in (("prompts", [s.name for s in self.prompts]), ("teachers", [t.name for t in self.teachers])):
            if twice := sorted(name for name, count in Counter(names).items() if count > 1):
                raise ValueError(f"{what} has the name {twice[0]!r} twice; give each its own name")
        if taken := [teacher.name for teacher in self.teachers if NOT_TEACHERS.fullmatch(teacher.name)]:
            raise ValueError(
                f"teachers has the name {taken[0]!r}, under which a stage or a figure stands in the metrics; choose another one"
            )
        return self


def externals(config: GenerateConfig) -> dict[str, str]:
    """Content of the prompt sources, the prompt file and the teachers."""
    return {
        **digests(config.recipe, config.prompt_file),
        **{f"source {source.name}": digest(source) for source in config.prompts},
        **identities(config.teachers),
    }


def run(config: GenerateConfig, *, out: Path, context: Context) -> Metrics:
    """Ask the teachers for what is missing, and write what they say in the order of the prompts."""
    files = config.recipe.read(config.prompt_file)
    prompt_file, metrics = files[""], Metrics()
    sources = open_sources([(source, config.recipe.rows) for source in config.prompts])
    for opened in sources:
        context.log.info("%s", opened)
    if bare := unlicensed(config.teachers):
        context.log.warning(
            "no licence note on %s: nobody wrote down what the answers may be used for (license of the teacher)",
            ", ".join(bare),
        )
    metrics.values["teachers_without_license"] = len(bare)
    expected = _expected(config, context)
    with (
        stop_signals() as stop,
        Asker(
            config.teachers,
            seed=context.seed,
            folder=context.resume,
            log=context.log,
            stop=stop,
            rows=metrics.rows,
            max_failed_share=config.max_failed_share,
            min_kept_share=config.min_kept_share,
            earlier=ledgers_beside(context.resume),
            gauge=Gauge(expected.requests if expected else None),
        ) as asker,
        _finished(config, prompt_file, asker, context) as finished,
    ):
        reading = Reading(sources, metrics.rows, context.resume / "rejected.jsonl", config.samples, finished)
        if config.recipe.kind == "answer" and not finished:  # other recipes show more than the row
            _check_budget(prompt_file, reading, asker)
        context.log.info(
            "%d samples a prompt from %s",
            config.samples,
            ", ".join(f"{teacher.name} ({teacher.kind})" for teacher in config.teachers),
        )
        results = context.progress(
            config.recipe.run(Work(asker, reading, files, config.samples, config.drop_flags)),
            "answers",
            expected.requests if expected else None,
            lambda: asker.gauge.reading().brief(),
        )
        with (
            ParquetRows(out / "candidates.parquet", Candidate) as candidates,
            ParquetRows(out / "dropped.parquet", Dropped) as dropped,
        ):
            making = Making(asker, config.teachers, config.drop_flags, candidates, dropped)
            if finished is None:
                making.write(results, keep=False)
            else:
                _in_parts(making, reading, asker, finished, results, config.samples)
            for row in reading.rejected():
                dropped.add(row)
        metrics.values |= {**asker.measures(), **making.summary.metrics([teacher.name for teacher in config.teachers])}
        metrics.cost = sum(used.cost for used in asker.ledger.used().values())
        (out / "record").mkdir(exist_ok=True)
        asker.ledger.save(out / "record" / "requests.sqlite")
    stop.check()
    _check_lost(metrics, making.summary.lost)
    metrics.tokens = sum(
        int(value) for name, value in metrics.values.items() if name.endswith(("/tokens_in", "/tokens_out"))
    )
    if not making.candidates.count:
        reasons = ", ".join(f"{reason} {count}" for reason, count in making.summary.lost.most_common())
        raise DataError(
            f"generate has no candidate: got {reading.count} prompts x {config.samples} samples, all dropped "
            f"({reasons}); "
            "look at the answers in requests.sqlite of the partial folder, then mend the prompt file or drop_flags"
        )
    context.log.info(
        "%d candidates, %d dropped; asked %d, from ledgers %d",
        making.candidates.count,
        making.dropped.count,
        sum(tally.answered for tally in asker.tallies.values()),
        sum(tally.from_ledger for tally in asker.tallies.values()),
    )
    return metrics


@contextmanager
def _finished(
    config: GenerateConfig, prompt_file: PromptFile, asker: Asker, context: Context
) -> Iterator[FinishedParts | None]:
    """Parts that an earlier run finished; None where rows are not worked on one by one, so that no part can be finished alone."""
    if config.recipe.kind != "answer" or prompt_file.summarises or not asker.apart:
        yield None
        return
    work = content_key({"key": context.key, "code": closure("steps.generate")["digest"]})
    with FinishedParts(context.resume / "finished.sqlite", work, asker.ledger, context.log) as parts:
        if parts:
            context.log.info("%d finished parts of an earlier run are taken over as they are", len(parts))
        yield parts


def _in_parts(
    making: Making,
    reading: Reading,
    asker: Asker,
    finished: FinishedParts,
    results: Iterator[Answer | Lost],
    samples: int,
) -> None:
    """Write the results part by part, each of which is finished at its end: a run that goes on takes it over.

    A part that lacks an answer is not finished: the next run asks for it again.
    """
    stage = "answer"
    for part in reading.parts():
        if part.finished:
            found = finished.get(part.start)
            assert found is not None, "it was there a moment ago"
            asker.absorb(stage, found.facts["answers"])
            making.take_over(found)
            continue
        before = asker.funnel(stage).plain()
        made = making.write(part.of(results, samples), keep=True)
        answers = asker.funnel(stage).since(before)
        if not any(what.startswith("failed:") for teacher, own in answers.items() if teacher for what in own):
            facts = {**part.facts(), "answers": answers, "summary": made.summary.plain()}
            finished.put(part.start, facts, made.tables())
    for one in results:  # there is none: the stage only looks at its counts
        raise AssertionError(one)


def _check_budget(prompt_file: PromptFile, reading: Reading, asker: Asker) -> None:
    """Where a prompt over the context budget is an error, find it before the first request.

    Raises:
        DataError: a prompt does not fit.
    """
    if prompt_file.max_context_tokens is None or prompt_file.over_budget != "error":
        return
    for teacher in asker.clients:
        for row in reading.all():
            if isinstance(row, Prompt):
                prompt_file.render(row, asker.seed, asker.counter(teacher))


def estimate(config: GenerateConfig, *, seed: int, resume: Path | None = None) -> Estimate:
    """What a run would ask, take and cost. Nothing is sent, and no key is needed.

    Args:
        config: of the step.
        seed: of the run.
        resume: folder ``.resume`` of the partial folder, where a stopped run left its ledger, or where it would be.

    Raises:
        PreflineError: a file that the configuration names is missing or wrong.
    """
    opened = open_sources([(source, config.recipe.rows) for source in config.prompts])
    rows = (row for one in opened for row in one if not isinstance(row, Rejected))
    return estimated(
        config.recipe.stages(config),
        config.teachers,
        rows,
        seed=seed,
        ledger=resume / "requests.sqlite" if resume else None,
        earlier=ledgers_beside(resume) if resume else (),
        longest=config.recipe.chunk_tokens if config.recipe.kind == "documents" else None,
    )


def _expected(config: GenerateConfig, context: Context) -> Estimate | None:
    """The estimate, told to the log; None where only rule programs answer, or where all seems to be on record already."""
    if all(teacher.kind == "scripted" for teacher in config.teachers):
        return None
    held = OnRecord.read(context.resume / "requests.sqlite").total
    paths = [source.path for source in config.prompts if source.path and source.path.suffix == ".jsonl"]
    if (
        held
        and config.recipe.kind == "answer"
        and len(paths) == len(config.prompts)
        and held >= config.samples * sum(map(_lines, paths))
    ):
        context.log.info("estimate: %d answers are on record, as many as are wanted", held)
        return None
    found = estimate(config, seed=context.seed, resume=context.resume)
    for line in found.words():
        context.log.info("estimate: %s", line)
    return found


def _lines(path: Path) -> int:
    """Lines of a file, counted without reading what is in them."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _check_lost(metrics: Metrics, lost: Counter[str]) -> None:
    """Prove that nothing vanished.

    Raises:
        DataError: the stages dropped more, or less, than lies in dropped.parquet.
    """
    kept_back = sum(sum(reasons.values()) for kind, reasons in metrics.rows.reasons.items() if kind != "prompts")
    if kept_back != lost.total():
        raise DataError(
            f"generate lost rows without a word: got {lost.total()} in dropped.parquet, because the stages counted "
            f"{kept_back}; report this as a defect of prefline"
        )


if __name__ == "__main__":
    main("generate")
