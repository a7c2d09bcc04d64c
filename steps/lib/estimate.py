"""What asking will take, before the first request: requests, tokens, money and time, a stage and teacher. Nothing is sent.

``demand`` counts what is asked, ``costing`` says what that costs, ``bill`` how people read it, ``on_record`` what ledgers hold.
Answers on record are not asked for again, and say better than any guess how long answers are and how long they take.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from steps.lib.bill import Estimate, Line
from steps.lib.costing import answer_tokens, budgets, line_of
from steps.lib.demand import Given, Rows, is_known, known_demand, rough_demand
from steps.lib.on_record import OnRecord
from steps.lib.prompts import PromptFile
from steps.lib.recipe_parts import StagePlan
from steps.lib.rows import Row
from steps.lib.teacher_config import Teacher
from steps.lib.tokens import BOUND, counter

__all__ = ["Estimate", "OnRecord", "estimate"]


def estimate(
    plans: Sequence[StagePlan],
    teachers: Sequence[Teacher],
    rows: Iterable[Row],
    *,
    seed: int,
    ledger: Path | None = None,
    earlier: Iterable[Path] = (),
    longest: int | None = None,
) -> Estimate:
    """Estimate what asking will take. No key is needed.

    Args:
        plans: the stages of the recipe, in order.
        teachers: who answers, with their shares.
        rows: what is read, prompts or documents; gone through once.
        seed: of the run.
        ledger: of a stopped run, where there is one.
        earlier: ledgers of other runs, whose answers are taken over.
        longest: tokens of the pieces that a long row is cut into; None: it is not cut.

    Raises:
        ConfigError: a prompt file is wrong.
        DataError: a row does not fit, and the prompt file says that this is an error.
    """
    record, read = OnRecord.read(ledger, earlier), Rows.read(rows, seed)
    counters = {teacher.name: counter(teacher) for teacher in teachers}
    given = Given(teachers, counters, read, record)
    lines: list[Line] = []
    said: list[float] = []
    rough: list[str] = []
    notes: list[str] = []
    for plan in plans:
        file = PromptFile.read(plan.prompt_file)
        if is_known(plan, file, first=not said):
            demands, unfit = known_demand(plan, file, given)
            if unfit:
                what = "summarised first, which is not counted here" if file.summarises else "dropped"
                notes.append(
                    f"{unfit:,} answers of {plan.name} are not counted: prompts over max_context_tokens are {what}"
                )
        else:
            demands = rough_demand(plan, file, given, said, longest)
            rough.append(plan.name)
        longest_said = 0.0
        for teacher in teachers:
            seen = record.of(plan.name, teacher.name)
            answer = answer_tokens(teacher, file, seen, counters[teacher.name])
            lines.append(line_of(plan.name, teacher, file, demands[teacher.name], seen, answer))
            longest_said = max(longest_said, answer[0])
        said.append(longest_said)
    bare = sorted(t.name for t in teachers if t.kind == "http" and counters[t.name] is BOUND)
    notes += _notes(lines, read, rough, record)
    if bare:
        notes.append(
            f"{', '.join(bare)}: no tokenizer is named, so the tokens of prompts are expected at a third of their bytes"
        )
    return Estimate(tuple(lines), tuple(budgets(teachers, lines, record)), tuple(notes))


def _notes(lines: Sequence[Line], rows: Rows, rough: Sequence[str], record: OnRecord) -> Iterable[str]:
    """What the figures rest on."""
    if rough:
        yield f"prompts that hold what earlier stages say, or more than the row, are counted roughly: {', '.join(rough)}"
    if counted := [stage for stage in rough if any(line.held for line in lines if line.stage == stage)]:
        yield (
            f"which answers of {', '.join(counted)} are on record shows only when they are asked for: their number in the ledger "
            "of the stopped run is subtracted, requests that asked again among them"
        )
    if rough and len(record.paths) > 1:
        yield f"what ledgers of other runs hold for {', '.join(rough)} is not subtracted"
    bases = list(dict.fromkeys(line.basis for line in lines if line.tokens_out))
    for basis in bases:
        places = [f"{line.stage} by {line.teacher}" for line in lines if line.basis == basis and line.tokens_out]
        yield f"answers are expected to be as long as {basis}" + (f": {', '.join(places)}" if len(bases) > 1 else "")
    if rows.number > len(rows.sample):
        yield (
            f"{len(rows.sample):,} of {rows.number:,} rows were rendered, drawn by the seed; the others are taken to be like "
            "them, also in what is on record"
        )
