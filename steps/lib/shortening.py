"""A summary in place of a text that does not fit into the context budget (``over_budget: summarise`` of what answers)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from steps.lib.items import Answer, Item, Lost
from steps.lib.programs import Asker
from steps.lib.prompts import OverBudget, PromptFile
from steps.lib.recipe_parts import UNUSABLE, Passed, Work, counted, fenced


def answered(work: Work, items: Iterable[Item]) -> Iterator[Answer | Lost]:
    """The stage ``answer`` of a recipe, with a summary where a text is too long and the prompt file says so."""
    asker, answering = work.asker, work.files[""]
    if answering.summarises:
        fitting = Passed(asker, "fitting", _fitting(asker, answering, work.files["summarise"], items))
        yield from fitting.lost()
        items = fitting.items()
    yield from asker.ask("answer", answering, items, samples=work.samples, drop_flags=work.drop_flags)


def _fitting(
    asker: Asker, answering: PromptFile, summarising: PromptFile, items: Iterable[Item]
) -> Iterator[Item | Lost]:
    """The items in their order, those that are too long with a summary."""
    every = asker.spool("whole", items)
    over: set[str] = set()

    def too_long() -> Iterator[tuple[Item, OverBudget]]:
        for item in every:
            if error := _over(asker, answering, item):
                over.add(item.id)
                yield item, error

    made = counted(asker, "summaries", _shorten(asker, answering, summarising, too_long()))
    shorter = iter(Passed(asker, "shorter", made))
    for item in every:
        yield next(shorter) if item.id in over else item


def _over(asker: Asker, answering: PromptFile, item: Item) -> OverBudget | None:
    """What does not fit, by the teacher for whom it is the most, where a shorter text would help."""
    found: list[OverBudget] = []
    for teacher in asker.clients:
        try:
            answering.render(item.row, asker.seed, asker.counter(teacher), item.seen or None)
        except OverBudget as error:
            found.append(error)
    worst = max(found, key=lambda error: error.size - error.limit, default=None)
    return worst if worst and worst.variable else None


def _shorten(
    asker: Asker, answering: PromptFile, summarising: PromptFile, items: Iterable[tuple[Item, OverBudget]]
) -> Iterator[Item | Lost]:
    """Items whose longest text did not fit, with a summary in its place.

    The summary is what a template shows; the row keeps its own prompt, and the trail the text as it was. What is still too long is
    lost as ``over_budget``, never cut.
    """
    waiting: deque[tuple[Item, OverBudget]] = deque()

    def asked() -> Iterator[Item]:
        for item, over in items:
            waiting.append((item, over))
            yield fenced(Item(item.id, item.row), document=over.text, count=over.room)

    for answer in asker.ask("shorten", summarising, asked(), drop_flags=UNUSABLE):
        item, over = waiting.popleft()  # answers come in the order of the items
        if isinstance(answer, Lost):
            yield replace(answer, item=item)
            continue
        note = {"variable": over.variable, "text": over.text}
        entry = answer.item_with(note=note).trail[-1]
        shorter = replace(item, seen={**item.seen, over.variable: answer.parsed.answer}, trail=(*item.trail, entry))
        still = _over(asker, answering, shorter)
        yield Lost(item, "summaries", "over_budget", str(still), answer.teacher) if still else shorter
