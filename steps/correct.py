"""Teachers answer bad cases that nobody corrected; what passes the case's rules and a judge in both orders becomes a pair.

A thumb down blesses no other answer by itself. A teacher's answer counts when every check holds that the case expects (where it
expects none: every rule of the task), and when the judge prefers it to the recorded answer whichever is shown first. Held-out cases
are never shown to a teacher.

Reads:  badcases: ``thumbs.parquet`` (bad answers without a correction), ``train.parquet``; the prompt file, the task file.
Writes: ``pairs.parquet`` (Pair: the recorded answer against the teacher's), ``dropped.parquet`` (Dropped),
        ``record/requests.sqlite``, ``record/judge.sqlite``.
Source: EVALUATION.md section 7, step 7; both orders: Zheng et al. 2023, 2306.05685, section 3.4.
Run:    python -m steps.correct --config FILE --badcases DIR --out DIR
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from steps.lib.case_choice import expected_of, last_turn
from steps.lib.case_pairs import pair_of
from steps.lib.config import Neutral, Section
from steps.lib.digests import digest_file
from steps.lib.door import main
from steps.lib.earlier import ledgers_beside
from steps.lib.errors import DataError
from steps.lib.items import Answer, Lost
from steps.lib.judge import JudgeConfig
from steps.lib.marks import DROPPED, Flag
from steps.lib.opened import open_sources
from steps.lib.pair_judging import Bench
from steps.lib.programs import Asker
from steps.lib.quality import Finding
from steps.lib.reading import Reading
from steps.lib.recipe_parts import Work
from steps.lib.recipe_revise import Correct
from steps.lib.recipes import digests
from steps.lib.rows import BadCase, Dropped, Pair, Thumb, read_parquet, write_parquet
from steps.lib.rules import Task
from steps.lib.sources import Source
from steps.lib.step import Context, Metrics
from steps.lib.stopping import stop_signals
from steps.lib.teacher import identities
from steps.lib.teacher_config import Teacher

VERSION = "1"


class CorrectConfig(Section):
    """Corrections by teachers, of bad cases that no person corrected."""

    teachers: list[Teacher] = Field(min_length=1)
    """Who answers, each with a weight ``share``."""
    judge: JudgeConfig
    """Who compares the teacher's answer with the recorded one, in both orders. It should be another model than the teachers."""
    prompt_file: Annotated[Path, Neutral] = Path("configs/prompts/correct.yaml")
    """What teachers are told; its content is in the key. Variables: prompt, answer, complaint, rules, fence."""
    task: Annotated[Path | None, Neutral] = None
    """Task file: its rules must hold where a case expects nothing of its own; its content is in the key."""
    drop_flags: list[Flag] = list(DROPPED)
    """Flags (steps/lib/marks.py) that keep an answer out."""
    max_failed_share: float = Field(default=0.1, ge=0, le=1)
    """Share (0 to 1) of the answers that may fail to come; above it the step fails, and running again asks for those only."""

    @property
    def recipe(self) -> Correct:
        """The recipe of the request."""
        return Correct(kind="correct")


def externals(config: CorrectConfig) -> dict[str, str]:
    """Content of the prompt files and the task, identity of teachers and judge."""
    judge = {f"judge {name}": value for name, value in identities([config.judge.teacher]).items()}
    return {
        **digests(config.recipe, config.prompt_file),
        **({"task": digest_file(config.task)} if config.task else {}),
        **identities(config.teachers),
        **judge,
        "judge prompt_file": digest_file(config.judge.prompt_file),
    }


def run(config: CorrectConfig, *, badcases: Path, out: Path, context: Context) -> Metrics:
    """Ask the teachers, check their answers, let the judge compare; see the top of the file.

    Raises:
        TeacherError: too many answers failed to come.
        DataError: a case cannot be checked.
    """
    cases = {case.id: case for case in read_parquet(badcases / "train.parquet", BadCase)}
    task = Task.read(config.task) if config.task else None
    metrics, files = Metrics(), config.recipe.read(config.prompt_file)
    thumbs = Source(name="cases", path=badcases / "thumbs.parquet")
    bare = read_parquet(badcases / "thumbs.parquet", Thumb)
    pairs: list[Pair] = []
    dropped: list[Dropped] = []
    if bare:
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
                min_kept_share=0.0,
                earlier=ledgers_beside(context.resume),
            ) as asker,
        ):
            reading = Reading(open_sources([(thumbs, Thumb)]), metrics.rows, context.resume / "rejected.jsonl", 1, None)
            results = list(
                context.progress(
                    config.recipe.run(Work(asker, reading, files, 1, config.drop_flags)), "answers", len(bare)
                )
            )
            metrics.values |= asker.measures()
            metrics.cost = sum(used.cost for used in asker.ledger.used().values())
            (out / "record").mkdir(exist_ok=True)
            asker.ledger.save(out / "record" / "requests.sqlite")
        stop.check()
        bench = Bench(config.judge, context)
        pairs, dropped = _judged(results, cases, task, bench)
        for warning in bench.report(metrics, {teacher.name: teacher.name for teacher in config.teachers}, out):
            context.log.warning("%s", warning)
    metrics.rows.took("bare cases", len(bare))
    metrics.rows.gave("pairs", len(pairs))
    for row in dropped:
        metrics.rows.drop("bare cases", row.reason)
    if len(bare) != len(pairs) + len(dropped):
        raise DataError(
            f"correct lost cases without a word: got {len(pairs)} pairs and {len(dropped)} dropped of {len(bare)}, because a stage "
            "gave neither; report this as a defect of prefline"
        )
    write_parquet(out / "pairs.parquet", pairs, Pair)
    write_parquet(out / "dropped.parquet", dropped, Dropped)
    context.log.info("%d bad cases without a correction: %d corrected, %d not", len(bare), len(pairs), len(dropped))
    metrics.values |= {"cases": len(bare), "corrected": len(pairs)}
    return metrics


def _judged(
    results: Iterable[Answer | Lost], cases: Mapping[str, BadCase], task: Task | None, bench: Bench
) -> tuple[list[Pair], list[Dropped]]:
    """Pairs of the answers that pass, and the others with reasons."""
    good: list[tuple[Answer, BadCase]] = []
    dropped: list[Dropped] = []
    for one in results:
        case = cases[one.item.id.removeprefix("badcases-")]
        if isinstance(one, Lost):
            dropped.append(_dropped(case, (one.reason, one.detail), ""))
        elif finding := _broken(case, one.parsed.answer, task):
            dropped.append(_dropped(case, finding, one.parsed.answer))
        else:
            good.append((one, case))
    verdicts = bench.compare([(case.id, last_turn(case), case.response, one.parsed.answer) for one, case in good])
    pairs: list[Pair] = []
    statuses: Counter[str] = Counter()
    for one, case in good:
        verdict = verdicts[case.id]
        statuses[verdict.status] += 1
        if verdict.status != "second":
            why = f"judge: {verdict.status}, said {' and '.join(verdict.said)} in the two orders"
            dropped.append(_dropped(case, ("judge", why), one.parsed.answer))
            continue
        made = case.model_copy(update={"correction": one.parsed.answer, "correction_by": "teacher", "verified": True})
        pairs.append(pair_of(made, task, teacher=one.teacher, request=one.request, judge=bench.evidence(verdict)))
    return pairs, dropped


def _broken(case: BadCase, answer: str, task: Task | None) -> Finding | None:
    """Which check the answer breaks."""
    expected = expected_of(case)
    if expected.by_program:
        kept: Mapping[str, bool | None] = expected.check(last_turn(case), answer, task)
    else:
        kept = task.check(last_turn(case), answer) if task else {}
    broken = [name for name, value in kept.items() if value is False]
    return ("rules", f"breaks {', '.join(broken)}") if broken else None


def _dropped(case: BadCase, finding: Finding, answer: str) -> Dropped:
    reason, detail = finding
    return Dropped(
        id=case.id, lang=case.lang, source=case.source, step="correct", reason=reason, detail=detail, row=answer
    )


if __name__ == "__main__":
    main("correct")
