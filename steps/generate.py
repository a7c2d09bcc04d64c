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

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from steps.lib.agreement import Agreement, all_same, groups
from steps.lib.config import Added, Neutral, Section
from steps.lib.door import main
from steps.lib.earlier import ledgers_beside
from steps.lib.errors import DataError
from steps.lib.estimate import Estimate, OnRecord
from steps.lib.estimate import estimate as estimated
from steps.lib.gauge import Gauge
from steps.lib.ledger import RowLedger
from steps.lib.marks import DROPPED, Flag
from steps.lib.programs import Answer, Asker, Lost
from steps.lib.prompts import PromptFile
from steps.lib.provenance import evidence, provenance, unlicensed
from steps.lib.recipes import AnswerRecipe, Recipe, digests
from steps.lib.rows import Candidate, Dropped, ParquetRows, Prompt, Row
from steps.lib.runtime import stop_signals
from steps.lib.sources import Rejected, Source, digest, open_sources
from steps.lib.step import Context, Metrics
from steps.lib.teacher import identities
from steps.lib.teacher_config import ScriptedTeacherConfig, Teacher

VERSION = "2"
RECORDS = ("dropped.parquet",)


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
    reading = _Reading(config, context, metrics.rows)
    counts, agreement = _Counts(), Agreement()
    licenses = {teacher.name: teacher.license for teacher in config.teachers}
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
    ):
        if config.recipe.kind == "answer":  # other recipes show more than the row
            _check_budget(prompt_file, reading, asker)
        context.log.info(
            "%d samples a prompt from %s",
            config.samples,
            ", ".join(f"{teacher.name} ({teacher.kind})" for teacher in config.teachers),
        )
        results = config.recipe.run(asker, reading, files, config.samples, config.drop_flags)
        with (
            ParquetRows(out / "candidates.parquet", Candidate) as candidates,
            ParquetRows(out / "dropped.parquet", Dropped) as dropped,
        ):
            identities_of = {name: client.identity() for name, client in asker.clients.items()}
            shown = context.progress(
                results, "answers", expected.requests if expected else None, lambda: asker.gauge.reading().brief()
            )
            for group in groups(shown, lambda one: one.item.row.prompt):
                for one, value in _compared(group, agreement, asker, config.drop_flags):
                    counts.add(one)
                    if isinstance(one, Lost):
                        dropped.add(_dropped(one))
                        continue
                    origin = provenance(
                        teacher=one.teacher,
                        identity=identities_of[one.teacher],
                        answered=one.reply.model,
                        license=licenses[one.teacher],
                        stage=one.stage,
                        prompt_file=one.prompt_file,
                    )
                    candidates.add(candidate(one, value, origin))
            for row in reading.rejected():
                dropped.add(row)
        metrics.values |= {**asker.measures(), **agreement.metrics()}
        metrics.cost = sum(used.cost for used in asker.ledger.used().values())
        (out / "record").mkdir(exist_ok=True)
        asker.ledger.save(out / "record" / "requests.sqlite")
    stop.check()
    counts.measure(metrics, [teacher.name for teacher in config.teachers])
    if not candidates.count:
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts.lost.most_common())
        raise DataError(
            f"generate has no candidate: got {reading.count} prompts x {config.samples} samples, all dropped "
            f"({reasons}); "
            "look at the answers in requests.sqlite of the partial folder, then mend the prompt file or drop_flags"
        )
    context.log.info(
        "%d candidates, %d dropped; asked %d, from ledgers %d",
        candidates.count,
        dropped.count,
        sum(tally.answered for tally in asker.tallies.values()),
        sum(tally.from_ledger for tally in asker.tallies.values()),
    )
    return metrics


class _Reading:
    """The prompts of all sources, read once as they are asked for; what could not be read waits on disk for its turn."""

    def __init__(self, config: GenerateConfig, context: Context, rows: RowLedger) -> None:
        self._sources = open_sources([(source, config.recipe.rows) for source in config.prompts])
        self._rows, self._path = rows, context.resume / "rejected.jsonl"
        self.count = 0
        """Prompts so far."""
        for opened in self._sources:
            context.log.info("%s", opened)

    def __iter__(self) -> Iterator[Row]:
        with self._path.open("w", encoding="utf-8") as file:
            for row in self.all():
                if isinstance(row, Rejected):
                    self._rows.took("prompts", row.count)
                    self._rows.drop("prompts", row.reason, row.count)
                    file.write(row.dropped("generate").model_dump_json() + "\n")
                    continue
                self._rows.took("prompts")
                self._rows.gave("asked prompts")
                self.count += 1
                yield row
        self._rows.balance({"prompts": ["asked prompts"]})

    def all(self) -> Iterator[Row | Rejected]:
        """Rows of all sources, uncounted. Two sources may use the same ids; the source's name tells them apart."""
        for opened in self._sources:
            for row in opened:
                if len(self._sources) > 1 and not isinstance(row, Rejected):
                    row = row.model_copy(update={"id": f"{row.source}/{row.id}"})
                yield row

    def rejected(self) -> Iterator[Dropped]:
        """Rows that could not be read, when all were."""
        with self._path.open(encoding="utf-8") as file:
            yield from (Dropped.model_validate_json(line) for line in file)


def _check_budget(prompt_file: PromptFile, reading: _Reading, asker: Asker) -> None:
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


def _compared(
    group: Sequence[Answer | Lost], agreement: Agreement, asker: Asker, drop_flags: Collection[str]
) -> Iterator[tuple[Answer | Lost, float | None]]:
    """All results of one prompt, each with its agreement with the others; answers that are all equal are flagged so."""
    said = [one for one in group if isinstance(one, Answer)]
    values = agreement.compare([one.parsed.answer for one in said], [one.teacher for one in said])
    same, of = all_same(values), iter(values)
    for one in group:
        if isinstance(one, Lost):
            yield one, None
        elif same and "same_answer" in drop_flags:
            yield asker.keep_back(one, "same_answer"), next(of)
        else:
            yield (replace(one, flags=(*one.flags, "same_answer")) if same else one), next(of)


def candidate(answer: Answer, agreement: float | None, origin: str) -> Candidate:
    """The row of an answer, with its agreement with the others and its provenance."""
    row = answer.item.row
    return Candidate.model_construct(
        id=f"{answer.item.id}/{answer.item.sample}",
        lang=row.lang,
        source=row.source,
        prompt=row.prompt,
        answer=answer.parsed.answer,
        thought=answer.parsed.thought,
        teacher=answer.teacher,
        sample=answer.item.sample,
        flags=list(answer.flags),
        request=answer.request,
        agreement=agreement,
        provenance=origin,
        evidence=evidence(source=row.source, row=row.id, facts=row.facts, trail=answer.item.trail),
    )


def _dropped(lost: Lost) -> Dropped:
    row, sample = lost.item.row, lost.item.sample
    kept = {**row.__dict__, "sample": sample, "teacher": lost.teacher}
    if lost.item.trail:
        kept["trail"] = [dict(entry) for entry in lost.item.trail]
    return Dropped.model_construct(
        id=f"{lost.item.id}/{sample}",
        lang=row.lang,
        source=row.source,
        step="generate",
        reason=lost.reason,
        detail=lost.detail,
        row=json.dumps(kept, ensure_ascii=False),
    )


class _Counts:
    """What the results of a run have in common."""

    def __init__(self) -> None:
        self.lost: Counter[str] = Counter()
        self._flags: Counter[str] = Counter()
        self._teachers: Counter[str] = Counter()
        self._fewer, self._last = 0, ""

    def add(self, one: Answer | Lost) -> None:
        """Count one result."""
        if isinstance(one, Lost):
            self.lost[one.reason] += 1
            return
        self._flags.update(one.flags)
        self._teachers[one.teacher] += 1
        if one.rendered.fewer and one.item.id != self._last:
            self._fewer += 1
            self._last = one.item.id

    def measure(self, metrics: Metrics, teachers: Iterable[str]) -> None:
        """Write the counts down, and prove that nothing vanished."""
        kept_back = sum(sum(reasons.values()) for kind, reasons in metrics.rows.reasons.items() if kind != "prompts")
        if kept_back != self.lost.total():
            raise DataError(
                f"generate lost rows without a word: got {self.lost.total()} in dropped.parquet, because the stages counted "
                f"{kept_back}; report this as a defect of prefline"
            )
        metrics.values |= {f"{name}/candidates": self._teachers[name] for name in teachers}
        metrics.values |= {f"flags/{flag}": count for flag, count in sorted(self._flags.items())}
        metrics.values["prompts_with_fewer_examples"] = self._fewer
        metrics.tokens = sum(
            int(value) for name, value in metrics.values.items() if name.endswith(("/tokens_in", "/tokens_out"))
        )


if __name__ == "__main__":
    main("generate")
