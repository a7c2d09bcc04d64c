"""What asking will take, before the first request: requests, tokens, money and time, a stage and teacher.

Prompts are rendered as they will be sent and counted as the teacher counts: all of them up to ``LOOKED_AT`` rows, of more a sample
drawn by the seed. Stages that use what an earlier stage will say are counted roughly: their instructions, the row's text, and what
the stages before are expected to say. What the ledger of a stopped run holds already is subtracted, and its answers say better than
any guess how long answers are and how long they take.

*Expected* is what answers so far took, or the examples of the prompt file, or a quarter of ``max_tokens``. *At most* is every byte
a token, ``max_tokens`` of answer, and every repair used.
"""

from __future__ import annotations

import math
import random
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from steps.lib.errors import DataError
from steps.lib.gauge import count, duration, money
from steps.lib.prices import Price, price_of
from steps.lib.prompt_parts import LANGUAGES, ByLanguage
from steps.lib.prompts import OverBudget, PromptFile
from steps.lib.rows import Prompt, Row, Text
from steps.lib.rules import Language
from steps.lib.teacher import assign
from steps.lib.teacher_config import Teacher
from steps.lib.tokens import BOUND, Counter, counter

LOOKED_AT = 2000
"""Rows that are rendered for an estimate."""
KNOWN_FROM = 10
"""Answers on record from which their length and time are taken for those to come."""
UNKNOWN_SHARE = 0.25
"""Share of max_tokens that an answer is expected to have where nothing is known of it."""
BYTES_A_TOKEN = 3
"""UTF-8 bytes of a token where no tokenizer is named: about one a Chinese character, one for three Latin letters."""
BEFORE = 2
"""Answers of earlier stages that a prompt is taken to hold: a revision shows an answer and what was found wrong with it."""
COMPLAINT = 128
"""Tokens of the turn that asks again for an answer of another form, at most."""


class Plan(Protocol):
    """A stage of a recipe."""

    @property
    def name(self) -> str: ...
    @property
    def prompt_file(self) -> Path: ...
    @property
    def per_row(self) -> float: ...


@dataclass(frozen=True)
class Line:
    """One stage and teacher. Tokens, money and time are of what is still to be asked."""

    stage: str
    teacher: str
    requests: int
    held: int
    """Of ``requests``: answered on record."""
    tokens_in: int
    tokens_out: int
    most_in: int
    most_out: int
    cost: float | None
    """US dollars expected; None: nobody knows the price."""
    most_cost: float | None
    seconds: float | None
    """Expected; None: not known before some answers are on record."""
    basis: str
    """What the expected answers rest on."""
    alone: bool = False
    """Whether the teacher computes in this process, where nothing else runs beside it."""

    @property
    def missing(self) -> int:
        """Requests still to be asked."""
        return self.requests - self.held


@dataclass(frozen=True)
class Estimate:
    """All lines, and what a person must know of them."""

    lines: tuple[Line, ...]
    rows: int
    """Rows read."""
    looked_at: int
    """Rows rendered."""
    budgets: tuple[str, ...] = ()
    """For each budget: whether it is enough."""
    notes: tuple[str, ...] = ()

    @property
    def requests(self) -> int:
        """Requests in all, those on record included."""
        return sum(line.requests for line in self.lines)

    def total(self, name: str) -> float | None:
        """Sum over the lines; None where a line does not know it."""
        values = [getattr(line, name) for line in self.lines]
        return None if any(value is None for value in values) else math.fsum(values)

    @property
    def seconds(self) -> float | None:
        """Time of the whole: teachers over a network side by side, those in this process one after the other, beside them."""
        if any(line.seconds is None for line in self.lines):
            return None
        times: dict[tuple[bool, str], float] = {}
        for line in self.lines:
            place = (line.alone, "" if line.alone else line.teacher)
            times[place] = times.get(place, 0.0) + (line.seconds or 0.0)
        return max(times.values(), default=0.0)

    def summary(self) -> str:
        """The whole in one line."""
        cost, most = self.total("cost"), self.total("most_cost")
        price = "price not known of all" if cost is None or most is None else f"{money(cost)} (at most {money(most)})"
        missing = sum(line.missing for line in self.lines)
        tokens = [sum(line.tokens_in for line in self.lines), sum(line.tokens_out for line in self.lines)]
        return f"in all {missing:,} requests, tokens {count(tokens[0])} in {count(tokens[1])} out, {price}, {time_of(self.seconds)}"

    def page(self) -> dict[str, Any]:
        """As plain JSON."""
        names = ("requests", "held", "missing", "tokens_in", "tokens_out", "most_in", "most_out", "cost", "most_cost")
        return {
            "rows": self.rows,
            "looked_at": self.looked_at,
            "lines": [{**asdict(line), "missing": line.missing} for line in self.lines],
            "total": {**{name: self.total(name) for name in names}, "seconds": self.seconds},
            "budgets": list(self.budgets),
            "notes": list(self.notes),
        }

    def words(self) -> list[str]:
        """As lines of a log."""
        said = [
            f"{line.stage} by {line.teacher}: {line.missing:,} requests"
            + (f" ({line.held:,} of {line.requests:,} are on record)" if line.held else "")
            + f", tokens {count(line.tokens_in)} in {count(line.tokens_out)} out"
            f" (at most {count(line.most_in)} in {count(line.most_out)} out), {cost_of(line)}, {time_of(line.seconds)}"
            for line in self.lines
        ]
        return [*said, *([self.summary()] if len(said) > 1 else []), *self.budgets, *self.notes]


def cost_of(line: Line) -> str:
    """Money in words."""
    if line.cost is None or line.most_cost is None:
        return "price unknown"
    return "free" if not line.most_cost else f"{money(line.cost)} (at most {money(line.most_cost)})"


def time_of(seconds: float | None) -> str:
    """Time in words."""
    return "time unknown" if seconds is None else f"about {duration(seconds)}"


@dataclass
class _Tokens:
    """Tokens of the prompts of one stage and teacher."""

    rows: int = 0
    expected: float = 0.0
    most: float = 0.0


@dataclass(frozen=True)
class Answered:
    """What a ledger holds of one stage and teacher."""

    number: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class OnRecord:
    """What the ledger of a stopped run holds."""

    answered: Mapping[tuple[str, str], Answered] = field(default_factory=dict)
    """(stage, teacher) -> answers; the stage "" is all that says none."""
    usd: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Teacher -> tokens that were billed, failures included."""

    @property
    def total(self) -> int:
        """Answers of all stages and teachers."""
        return sum(one.number for one in self.answered.values())

    @classmethod
    def read(cls, path: Path | None) -> OnRecord:
        """Read a ledger; it is not written to. Where there is none, or another version wrote it, nothing is on record."""
        if path is None or not path.is_file():
            return cls()
        log = path.with_name(path.name + "-wal")
        mode = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"  # only the first looks at the log
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=1)) as ledger:
                answers = ledger.execute(
                    "SELECT stage, teacher, count(*), sum(tokens_in), sum(tokens_out), sum(seconds) FROM requests "
                    "WHERE status<>'failed' GROUP BY stage, teacher"
                ).fetchall()
                spent = ledger.execute(
                    "SELECT teacher, sum(cost), sum((tokens_in + tokens_out) * (attempts > 0)) FROM requests GROUP BY teacher"
                ).fetchall()
        except sqlite3.Error:
            return cls()
        return cls(
            {(stage, teacher): Answered(*values) for stage, teacher, *values in answers},
            {teacher: float(usd or 0) for teacher, usd, _ in spent},
            {teacher: int(tokens or 0) for teacher, _, tokens in spent},
        )


def estimate(
    plans: Sequence[Plan],
    teachers: Sequence[Teacher],
    rows: Iterable[Row],
    *,
    seed: int,
    ledger: Path | None = None,
    longest: int | None = None,
) -> Estimate:
    """Estimate what asking will take. Nothing is sent, and no key is needed.

    Args:
        plans: the stages of the recipe, in order.
        teachers: who answers, with their shares.
        rows: what is read, prompts or documents; gone through once.
        seed: of the run.
        ledger: of a stopped run, where there is one.
        longest: tokens of the pieces that a long row is cut into; None: it is not cut.

    Raises:
        ConfigError: a prompt file is wrong.
        DataError: a row does not fit, and the prompt file says that this is an error.
    """
    held = OnRecord.read(ledger)
    sample, number = _sample(rows, seed)
    counters = {teacher.name: counter(teacher) for teacher in teachers}
    lines: list[Line] = []
    notes: list[str] = []
    said: list[float] = []
    rough: list[str] = []
    longest_answer = max((_max_tokens(teacher) for teacher in teachers), default=0)
    for plan in plans:
        file = PromptFile.read(plan.prompt_file)
        exact = not (said or file.variables) and plan.per_row >= 1 and plan.per_row == int(plan.per_row)
        tokens = {t.name: _Tokens() for t in teachers}
        wanted = _exact(file, plan, teachers, counters, sample, seed, tokens) if exact else {}
        if not exact:
            shown = said[-BEFORE:] if file.variables else said[-1:]
            texts: Sequence[Row] = sample if file.variables or not said else ()
            for teacher in teachers:
                known = counters[teacher.name]
                found = _rough(file, known, texts, seed, longest)
                found.expected += found.rows * sum(shown)
                found.most += found.rows * len(shown) * longest_answer
                tokens[teacher.name] = found
            rough.append(plan.name)
        shares = sum(teacher.share for teacher in teachers)
        scale = number / len(sample) if sample else 0.0
        each = 0.0
        for teacher in teachers:
            requests = (
                round(scale * wanted.get(teacher.name, 0))
                if exact
                else round(number * plan.per_row * teacher.share / shares)
            )
            line = _line(plan.name, teacher, file, requests, tokens[teacher.name], held, counters[teacher.name])
            each = max(each, line.tokens_out / line.missing if line.missing else 0.0)
            lines.append(line)
        said.append(each)
    if rough:
        notes.append(
            f"prompts that hold what earlier stages say, or more than the row, are counted roughly: {', '.join(rough)}"
        )
    bases = list(dict.fromkeys(line.basis for line in lines if line.tokens_out))
    for basis in bases:
        of = f": {', '.join(_places(lines, basis))}" if len(bases) > 1 else ""
        notes.append(f"answers are expected as long as {basis}{of}")
    if number > len(sample):
        notes.append(
            f"{len(sample):,} of {number:,} rows were rendered, drawn by the seed; the others are taken to be like them"
        )
    if bare := sorted({t.name for t in teachers if t.kind == "http" and counters[t.name] is BOUND}):
        notes.append(
            f"{', '.join(bare)}: no tokenizer is named, so the tokens of prompts are expected at a third of their bytes"
        )
    return Estimate(tuple(lines), number, len(sample), tuple(_budgets(teachers, lines, held)), tuple(notes))


def _places(lines: Sequence[Line], basis: str) -> list[str]:
    return [f"{line.stage} by {line.teacher}" for line in lines if line.basis == basis and line.tokens_out]


def _sample(rows: Iterable[Row], seed: int) -> tuple[list[Row], int]:
    """Up to ``LOOKED_AT`` rows, each with the same chance, and how many there are."""
    draw = random.Random(f"{seed}\nestimate")
    sample: list[Row] = []
    number = 0
    for row in rows:
        number += 1
        if len(sample) < LOOKED_AT:
            sample.append(row)
        elif (place := draw.randrange(number)) < LOOKED_AT:
            sample[place] = row
    return sample, number


def _exact(
    file: PromptFile,
    plan: Plan,
    teachers: Sequence[Teacher],
    counters: Mapping[str, Counter],
    sample: Sequence[Row],
    seed: int,
    tokens: dict[str, _Tokens],
) -> dict[str, int]:
    """Render each row; which teacher gets how many requests is as it will be."""
    wanted = dict.fromkeys(tokens, 0)
    for row in sample:
        try:
            messages = file.render(_prompt(row), seed).messages
        except OverBudget:
            if file.over_budget == "error":
                raise
            continue
        times = max(1, round(plan.per_row))
        chosen = (
            assign([one.share for one in teachers], times, _prompt(row).prompt, seed)
            if len(teachers) > 1
            else [0] * times
        )
        for index in set(chosen):
            name = teachers[index].name
            number = chosen.count(index)
            wanted[name] += number
            most = BOUND.turns(messages)
            known = counters[name]
            tokens[name].rows += number
            tokens[name].most += number * most
            tokens[name].expected += number * (most / BYTES_A_TOKEN if known is BOUND else known.turns(messages))
    return wanted


def _rough(file: PromptFile, known: Counter, sample: Sequence[Row], seed: int, longest: int | None) -> _Tokens:
    """Tokens of a stage whose prompts are not there yet: the file's own words, and a row's text where it shows one."""
    frame = max(BOUND(_frame(file, language, seed)) for language in LANGUAGES)
    found = _Tokens()
    for text in (_text(row) for row in sample):
        most = float(BOUND(text))
        expected = most / BYTES_A_TOKEN if known is BOUND else float(known(text))
        if longest is not None:
            expected, most = min(expected, longest), min(most, longest * BYTES_A_TOKEN)
        found.rows += 1
        found.most += frame + most
        found.expected += frame / BYTES_A_TOKEN + expected
    return found if sample else _Tokens(1, frame / BYTES_A_TOKEN, frame)


def _frame(file: PromptFile, language: Language, seed: int) -> str:
    """What a stage says whatever its variables hold."""
    row = Prompt(id="frame", lang=language, prompt="?")
    try:
        turns = file.render(row, seed, seen=dict.fromkeys(file.variables, "")).messages
    except DataError:  # a template that wants more than a text of one of its variables
        user = file.user if isinstance(file.user, ByLanguage) else ByLanguage(zh=file.user, en=file.user)
        return "\n".join((file.system.of(language), user.of(language)))
    return "\n".join(turn["content"] for turn in turns)


def _line(
    stage: str,
    teacher: Teacher,
    file: PromptFile,
    requests: int,
    tokens: _Tokens,
    record: OnRecord,
    known: Counter,
) -> Line:
    """One line of the table."""
    seen = record.answered.get((stage, teacher.name)) or record.answered.get(("", teacher.name)) or Answered()
    held = min(seen.number, requests)
    left = requests - held
    limit = _max_tokens(teacher)
    enough = seen.number >= KNOWN_FROM
    if teacher.kind == "scripted":
        out, basis = 0.0, "a rule program"
    elif enough and seen.tokens_out:
        out, basis = seen.tokens_out / seen.number, f"the {seen.number:,} answers on record"
    elif file.shots and file.pool:
        texts = [f"{example.thought}\n{example.answer}" if example.thought else example.answer for example in file.pool]
        lengths = [BOUND(text) / BYTES_A_TOKEN if known is BOUND else known(text) for text in texts]
        out, basis = min(limit, sum(lengths) / len(lengths)), "those of the examples"
    else:
        out, basis = UNKNOWN_SHARE * limit, "a quarter of max_tokens"
    mean_in, most_in = (tokens.expected / tokens.rows, tokens.most / tokens.rows) if tokens.rows else (0.0, 0.0)
    if enough and seen.tokens_in:
        mean_in = seen.tokens_in / seen.number
    again = file.repairs
    line = Line(
        stage=stage,
        teacher=teacher.name,
        requests=requests,
        held=held,
        tokens_in=0 if teacher.kind == "scripted" else round(left * mean_in),
        tokens_out=round(left * out),
        most_in=0
        if teacher.kind == "scripted"
        else round(left * ((1 + again) * most_in + again * (limit + COMPLAINT))),
        most_out=left * (1 + again) * limit,
        cost=0.0,
        most_cost=0.0,
        seconds=None,
        basis=basis,
        alone=teacher.kind != "http",
    )
    price = _price(teacher)
    batch = teacher.kind == "http" and teacher.mode == "batch"
    if price is None:
        line = replace(line, cost=None, most_cost=None)
    else:
        line = replace(
            line,
            cost=price.of(line.tokens_in, line.tokens_out, batch=batch),
            most_cost=price.of(line.most_in, line.most_out, batch=batch),
        )
    return replace(line, seconds=_seconds(teacher, line, seen.seconds / seen.number if enough else None))


def _seconds(teacher: Teacher, line: Line, each: float | None) -> float | None:
    """Time of what is missing: of the requests at the concurrency there is, and not faster than the rates allow."""
    if not line.missing or teacher.kind == "scripted":
        return 0.0
    if teacher.kind != "http":
        return None if each is None else line.missing * each
    if teacher.mode == "batch" or each is None:
        return None
    times = [line.missing * each / teacher.concurrency]
    if teacher.requests_per_minute:
        times.append(60 * line.missing / teacher.requests_per_minute)
    if teacher.tokens_per_minute:
        times.append(60 * (line.tokens_in + line.tokens_out) / teacher.tokens_per_minute)
    return max(times)


def _budgets(teachers: Sequence[Teacher], lines: Sequence[Line], record: OnRecord) -> Iterable[str]:
    """Whether each budget is enough, in words."""
    for teacher in teachers:
        if teacher.kind != "http":
            continue
        own = [line for line in lines if line.teacher == teacher.name]
        if teacher.budget_usd is not None:
            used = record.usd.get(teacher.name, 0.0)
            if any(line.cost is None for line in own):
                yield f"{teacher.name}: budget_usd cannot be judged, because nobody knows the price of {teacher.model}"
            else:
                likely = used + math.fsum(line.cost or 0.0 for line in own)
                most = used + math.fsum(line.most_cost or 0.0 for line in own)
                yield _enough(teacher.name, "budget_usd", teacher.budget_usd, used, likely, most, money)
        if teacher.budget_tokens is not None:
            billed = float(record.tokens.get(teacher.name, 0))
            likely = billed + sum(line.tokens_in + line.tokens_out for line in own)
            most = billed + sum(line.most_in + line.most_out for line in own)
            yield _enough(
                teacher.name,
                "budget_tokens",
                teacher.budget_tokens,
                billed,
                likely,
                most,
                lambda n: f"{count(round(n))} tokens",
            )


def _enough(name: str, field: str, cap: float, used: float, likely: float, most: float, say: Any) -> str:
    """One budget in words."""
    spent = f", {say(used)} of it used before" if used else ""
    if most <= cap:
        return f"{name}: {field} {say(cap)} is enough: at most {say(most)} are used{spent}"
    if likely <= cap:
        return (
            f"{name}: {field} {say(cap)} is enough if answers are as expected ({say(likely)}), and not at the most "
            f"({say(most)}){spent}"
        )
    share = max(0.0, cap - used) / (likely - used) if likely > used else 0.0
    return (
        f"{name}: {field} {say(cap)} is not enough: {say(likely)} are expected{spent}; the run will stop after about "
        f"{share:.0%} of what is missing; raise it, or ask for less"
    )


def _price(teacher: Teacher) -> Price | None:
    if teacher.kind != "http":
        return Price(input=0.0, output=0.0)
    return price_of(teacher.model, teacher.price, teacher.price_file)


def _max_tokens(teacher: Teacher) -> int:
    return 0 if teacher.kind == "scripted" else teacher.max_tokens


def _prompt(row: Row) -> Prompt:
    return row if isinstance(row, Prompt) else Prompt(id=row.id, lang=row.lang, source=row.source, prompt=_text(row))


def _text(row: Row) -> str:
    return row.prompt if isinstance(row, Prompt) else row.text if isinstance(row, Text) else row.model_dump_json()
