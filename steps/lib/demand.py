"""What a stage will ask of each teacher: requests, those of them that are answered on record, and the tokens of the others.

Where the prompts of a stage are known before the run they are rendered as they will be sent, counted as the teacher counts, and
their keys looked up in the ledgers. Stages that show what an earlier one will say are counted roughly: their instructions, the
row's text, and what the stages before are expected to say. Of their answers only the number on record is known.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from steps.lib.asking import Requests
from steps.lib.errors import DataError, TeacherError
from steps.lib.on_record import OnRecord
from steps.lib.prompt_parts import LANGUAGES, ByLanguage
from steps.lib.prompts import OverBudget, PromptFile
from steps.lib.recipe_parts import StagePlan
from steps.lib.rows import Prompt, Row, Text
from steps.lib.rules import Language
from steps.lib.teacher import assign, open_client
from steps.lib.teacher_config import Teacher
from steps.lib.tokens import BOUND, Counter

LOOKED_AT = 2000
"""Rows that are rendered for an estimate."""
BYTES_A_TOKEN = 3
"""UTF-8 bytes of a token where no tokenizer is named: about one a Chinese character, one for three Latin letters."""
BEFORE = 2
"""Answers of earlier stages that a prompt is taken to hold: a revision shows an answer and what was found wrong with it."""


@dataclass(frozen=True)
class Demand:
    """What a stage will ask of one teacher."""

    requests: int
    held: int = 0
    """Of ``requests``: answered on record."""
    tokens: float = 0.0
    """Expected of a prompt that is not on record."""
    most: float = 0.0
    """The same, at most."""


@dataclass(frozen=True)
class _Prompt:
    """One request to be."""

    teacher: str
    tokens: float
    most: float
    key: str


@dataclass(frozen=True)
class Rows:
    """The rows that a run will read; of many only a sample is looked at."""

    sample: Sequence[Row]
    number: int
    """Of all."""
    seed: int
    """Of the run."""

    @classmethod
    def read(cls, rows: Iterable[Row], seed: int) -> Rows:
        """Go through all rows once; up to ``LOOKED_AT`` stay, each with the same chance."""
        draw = random.Random(f"{seed}\nestimate")
        sample: list[Row] = []
        number = 0
        for row in rows:
            number += 1
            if len(sample) < LOOKED_AT:
                sample.append(row)
            elif (place := draw.randrange(number)) < LOOKED_AT:
                sample[place] = row
        return cls(sample, number, seed)

    def of_all(self, looked_at: int) -> int:
        """So many in all, if the others are like the sample."""
        return round(looked_at * self.number / len(self.sample)) if self.sample else 0


def is_known(plan: StagePlan, file: PromptFile, first: bool) -> bool:
    """Whether the prompts of a stage are the rows themselves, each asked for a whole number of times."""
    return first and not file.variables and plan.per_row >= 1 and plan.per_row == int(plan.per_row)


@dataclass(frozen=True)
class Given:
    """What an estimate rests on."""

    teachers: Sequence[Teacher]
    counters: Mapping[str, Counter]
    """Teacher -> how its tokens are counted."""
    rows: Rows
    record: OnRecord


def known_demand(plan: StagePlan, file: PromptFile, given: Given) -> tuple[dict[str, Demand], int]:
    """Teacher -> demand of a stage whose prompts are known, and how many answers cannot be asked for since a prompt does not fit.

    Which teacher gets how many requests is as it will be.

    Raises:
        DataError: a row does not fit, and the prompt file says that this is an error.
    """
    teachers, rows, record = given.teachers, given.rows, given.record
    asked = list(_prompts(plan, file, given, _requests(file, teachers, rows.seed) if record.paths else {}))
    held = record.held([one.key for one in asked if one.key])
    demands = {}
    for teacher in teachers:
        own = [one for one in asked if one.teacher == teacher.name]
        missing = [one for one in own if one.key not in held]
        requests, there = rows.of_all(len(own)), rows.of_all(len(own) - len(missing))
        if own and not own[0].key:  # its identity is not known here: what is left is their number
            there = min(record.of(plan.name, teacher.name).number, requests)
        means = (fmean(one.tokens for one in missing), fmean(one.most for one in missing)) if missing else (0.0, 0.0)
        demands[teacher.name] = Demand(requests, there, *means)
    return demands, rows.of_all(len(rows.sample) * int(plan.per_row) - len(asked))


def _prompts(plan: StagePlan, file: PromptFile, given: Given, requests: Mapping[str, Requests]) -> Iterator[_Prompt]:
    """The first request of each answer, in the order of the run."""
    teachers, rows = given.teachers, given.rows
    times, shares = int(plan.per_row), [teacher.share for teacher in teachers]
    limited = file.max_context_tokens is not None
    for row in map(as_prompt, rows.sample):
        chosen = assign(shares, times, row.prompt, rows.seed) if len(teachers) > 1 else [0] * times
        for index, places in itertools.groupby(sorted(range(times), key=chosen.__getitem__), key=chosen.__getitem__):
            name = teachers[index].name
            count = given.counters[name]
            try:
                messages = file.render(row, rows.seed, count if limited else None).messages
            except OverBudget:
                if file.over_budget == "error":
                    raise
                continue
            most = BOUND.turns(messages)
            tokens = most / BYTES_A_TOKEN if count is BOUND else count.turns(messages)
            make = requests[name].make if name in requests else None
            for sample in places:
                key = make(messages, prompt=row.prompt, sample=sample).key if make else ""
                yield _Prompt(name, tokens, most, key)


def _requests(file: PromptFile, teachers: Sequence[Teacher], seed: int) -> dict[str, Requests]:
    """Teacher -> what makes its keys, without those whose identity cannot be told on this machine."""
    found = {}
    for teacher in teachers:
        if teacher.kind == "http":  # neither is in a key, and nothing is sent
            teacher = teacher.model_copy(
                update={"api_key_env": None, "api_key_block": None, "budget_usd": None, "mode": "chat"}
            )
        try:
            found[teacher.name] = Requests(open_client(teacher, seed), seed, file.sent_schema)
        except TeacherError:  # vllm is not installed
            continue
    return found


def rough_demand(
    plan: StagePlan, file: PromptFile, given: Given, said: Sequence[float], longest: int | None
) -> dict[str, Demand]:
    """Teacher -> demand of a stage whose prompts are not there yet.

    Args:
        said: tokens that an answer of each earlier stage is expected to have.
        longest: tokens of the pieces that a long row is cut into; None: it is not cut.
    """
    teachers, rows = given.teachers, given.rows
    shown = said[-BEFORE:] if file.variables else said[-1:]
    texts = [as_prompt(row).prompt for row in rows.sample] if file.variables or not said else []
    frame = max(BOUND(_frame(file, language, rows.seed)) for language in LANGUAGES)
    longest_answer = max(most_tokens(teacher) for teacher in teachers)
    shares = sum(teacher.share for teacher in teachers)
    demands = {}
    for teacher in teachers:
        count = given.counters[teacher.name]
        bytes_, tokens = [float(BOUND(text)) for text in texts], [likely(text, count) for text in texts]
        if longest is not None:
            bytes_ = [min(size, longest * BYTES_A_TOKEN) for size in bytes_]
            tokens = [min(size, longest) for size in tokens]
        requests = round(rows.number * plan.per_row * teacher.share / shares)
        demands[teacher.name] = Demand(
            requests,
            min(given.record.of(plan.name, teacher.name).number, requests),
            frame / BYTES_A_TOKEN + sum(shown) + (fmean(tokens) if tokens else 0.0),
            frame + len(shown) * longest_answer + (fmean(bytes_) if bytes_ else 0.0),
        )
    return demands


def _frame(file: PromptFile, language: Language, seed: int) -> str:
    """What a stage says whatever its variables hold."""
    row = Prompt(id="frame", lang=language, prompt="?")
    try:
        turns = file.render(row, seed, seen=dict.fromkeys(file.variables, "")).messages
    except DataError:  # a template that wants more than a text of one of its variables
        user = file.user if isinstance(file.user, ByLanguage) else ByLanguage(zh=file.user, en=file.user)
        return "\n".join((file.system.of(language), user.of(language)))
    return "\n".join(turn["content"] for turn in turns)


def likely(text: str, count: Counter) -> float:
    """Tokens of a text as its teacher counts them, or about so many."""
    return BOUND(text) / BYTES_A_TOKEN if count is BOUND else count(text)


def most_tokens(teacher: Teacher) -> int:
    """Tokens that an answer may have."""
    return 0 if teacher.kind == "scripted" else teacher.max_tokens


def as_prompt(row: Row) -> Prompt:
    """A row as the prompt it is, or with its text as one."""
    if isinstance(row, Prompt):
        return row
    text = row.text if isinstance(row, Text) else row.model_dump_json()
    return Prompt(id=row.id, lang=row.lang, source=row.source, prompt=text)
