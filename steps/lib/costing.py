"""What the requests of a stage cost in tokens, money and time, and whether the budgets are enough.

*Expected* is what answers so far took, or the examples of the prompt file, or a quarter of ``max_tokens``. *At most* is every byte
a token, ``max_tokens`` of answer, and every repair used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from steps.lib.amounts import count, money
from steps.lib.bill import Estimate, Line
from steps.lib.demand import Demand, likely, most_tokens
from steps.lib.ledger import Spent
from steps.lib.on_record import Answered, OnRecord
from steps.lib.prices import Price, price_of
from steps.lib.prompts import PromptFile
from steps.lib.teacher_config import HttpTeacher, Teacher
from steps.lib.tokens import Counter

KNOWN_FROM = 10
"""Answers on record from which their length and time are taken for those to come."""
UNKNOWN_SHARE = 0.25
"""Share of max_tokens that an answer is expected to have where nothing is known of it."""
COMPLAINT = 128
"""Tokens of the turn that asks again for an answer of another form, at most."""


def answer_tokens(teacher: Teacher, file: PromptFile, seen: Answered, known: Counter) -> tuple[float, str]:
    """Tokens that an answer is expected to have, and what that rests on."""
    if teacher.kind == "scripted":
        return 0.0, "a rule program"
    if seen.number >= KNOWN_FROM and seen.tokens_out:
        return seen.tokens_out / seen.number, f"the {seen.number:,} answers on record"
    if file.shots:
        texts = [f"{example.thought}\n{example.answer}" if example.thought else example.answer for example in file.pool]
        return min(most_tokens(teacher), fmean(likely(text, known) for text in texts)), "those of the examples"
    return UNKNOWN_SHARE * most_tokens(teacher), "a quarter of max_tokens"


def line_of(
    stage: str, teacher: Teacher, file: PromptFile, demand: Demand, seen: Answered, answer: tuple[float, str]
) -> Line:
    """One stage and teacher.

    Args:
        answer: tokens of an answer, and what they rest on.
        seen: answers on record, which also say how long prompts are and how long an answer takes.
    """
    left, again, limit = demand.requests - demand.held, file.repairs, most_tokens(teacher)
    price: Price | None = Price(input=0.0, output=0.0)
    batch, each_in, most_in = False, demand.tokens, (1 + again) * demand.most + again * (limit + COMPLAINT)
    known = seen.number >= KNOWN_FROM
    if known and seen.tokens_in:
        each_in = seen.tokens_in / seen.number
    if teacher.kind == "scripted":
        each_in = most_in = 0.0
    if teacher.kind == "http":
        price, batch = price_of(teacher.model, teacher.price, teacher.price_file), teacher.mode == "batch"
    likely_in, likely_out = round(left * each_in), round(left * answer[0])
    top_in, top_out = round(left * most_in), left * (1 + again) * limit
    return Line(
        stage=stage,
        teacher=teacher.name,
        requests=demand.requests,
        held=demand.held,
        tokens_in=likely_in,
        tokens_out=likely_out,
        most_in=top_in,
        most_out=top_out,
        cost=price.of(likely_in, likely_out, batch=batch) if price else None,
        most_cost=price.of(top_in, top_out, batch=batch) if price else None,
        seconds=_seconds(teacher, left, likely_in + likely_out, seen.seconds / seen.number if known else None),
        basis=answer[1],
        alone=teacher.kind != "http",
    )


def _seconds(teacher: Teacher, requests: int, tokens: int, each: float | None) -> float | None:
    """Time of what is missing: of the requests at the concurrency there is, and not faster than the rates allow."""
    if not requests or teacher.kind == "scripted":
        return 0.0
    if each is None or (teacher.kind == "http" and teacher.mode == "batch"):
        return None
    if teacher.kind != "http":
        return requests * each
    times = [requests * each / teacher.concurrency]
    if teacher.requests_per_minute:
        times.append(60 * requests / teacher.requests_per_minute)
    if teacher.tokens_per_minute:
        times.append(60 * tokens / teacher.tokens_per_minute)
    return max(times)


def budgets(teachers: Sequence[Teacher], lines: Sequence[Line], record: OnRecord) -> Iterator[str]:
    """Whether each budget is enough, in words."""
    for teacher in teachers:
        if isinstance(teacher, HttpTeacher):
            own = [line for line in lines if line.teacher == teacher.name]
            yield from _budgets(teacher, own, record.spent.get(teacher.name, Spent()))


def _budgets(teacher: HttpTeacher, own: Sequence[Line], used: Spent) -> Iterator[str]:
    if teacher.budget_usd is not None:
        sums = Estimate(tuple(own)).cost
        if sums is None:
            yield (
                f"{teacher.name}: budget_usd cannot be kept, because nobody knows the price of {teacher.model}: the run will not "
                f"start; set `price`, or write the model into {teacher.price_file}"
            )
        else:
            yield _enough(f"{teacher.name}: budget_usd", teacher.budget_usd, used.usd, *sums, money)
    if teacher.budget_tokens is not None:
        likely_all = sum(line.tokens_in + line.tokens_out for line in own)
        most = sum(line.most_in + line.most_out for line in own)
        yield _enough(
            f"{teacher.name}: budget_tokens",
            teacher.budget_tokens,
            used.tokens,
            likely_all,
            most,
            lambda number: f"{count(round(number))} tokens",
        )


def _enough(name: str, cap: float, used: float, more: float, most: float, say: Callable[[float], str]) -> str:
    """One budget in words: what was used, what is expected to come, and what may come."""
    spent = f", {say(used)} of it used before" if used else ""
    if not most or used + most <= cap:
        return f"{name} {say(cap)} is enough: at most {say(used + most)} are used{spent}"
    if used + more <= cap:
        return (
            f"{name} {say(cap)} is enough if answers are as expected ({say(used + more)}), and not at the most "
            f"({say(used + most)}){spent}"
        )
    return (
        f"{name} {say(cap)} is not enough: {say(used + more)} are expected{spent}; the run will stop after about "
        f"{max(0.0, cap - used) / more:.0%} of what is missing; raise it, or ask for less"
    )
