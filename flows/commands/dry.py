"""``--dry-run``: what a run would find in the store and build, and what asking teachers would take. Nothing is sent or written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.commands.words import table, terminal

if TYPE_CHECKING:
    from rich.console import Console

    from flows.engine import Plan
    from flows.line import AlignConfig
    from flows.plan import Look
    from steps.lib.bill import Estimate, Line
    from steps.lib.store import Store


def dry_run(config: AlignConfig, plan: Plan) -> None:
    """Print the steps of the plan, and the estimate of each that can give one.

    Raises:
        PreflineError: what the estimate needs to read is missing or wrong.
    """
    from rich.text import Text

    from flows.line import STEPS
    from flows.plan import walk
    from steps.lib.stores import open_store

    store = open_store(config.store, config.cache)
    first, last = (STEPS.index(name) if name else None for name in (plan.start, plan.until))
    looks = [
        look
        for look in walk(config, store)
        if (first is None or STEPS.index(look.step) >= first) and (last is None or STEPS.index(look.step) <= last)
    ]
    console = terminal(120)
    grid = table("step", "would be", "artifact", "note", whole=("step", "would be", "artifact"))
    for look in looks:
        grid.add_row(look.step, _would(look, plan), Text(look.key or ""), Text(_note(look, store)))
    console.print(grid)
    for look in looks:
        if (not look.there or look.step in plan.force) and look.spec is not None:
            _estimate(console, look, store)
    console.print("nothing was run and nothing was sent")


def _would(look: Look, plan: Plan) -> str:
    """What a run would do with the step."""
    if look.there:
        changed = plan.strict_code and look.state == "changed code"
        return "built again" if look.step in plan.force or changed else "Cached"
    words = {
        "partial": "gone on with",
        "waits": "built, behind others",
        "blocked": "stopped at",
        "running": "waited for",
    }
    return words.get(look.state, "built")


def _note(look: Look, store: Store) -> str:
    """How far it is, or why it is not there, where there is something to say."""
    from flows.commands.status import note

    return "" if look.there else note(look, store)


def _estimate(console: Console, look: Look, store: Store) -> None:
    assert look.spec is not None
    give: Any = getattr(look.spec.module, "estimate", None)
    if give is None:
        return
    resume = store.partial(look.spec.key()) / ".resume"
    print_estimate(console, give(look.spec.config, seed=look.spec.seed, resume=resume))


def print_estimate(console: Console, found: Estimate) -> None:
    """The table of an estimate: what is still to be asked, a line a stage and teacher; then budgets and notes."""
    from rich.text import Text

    from steps.lib.amounts import count
    from steps.lib.bill import time_of

    numbers = ("requests", "on\nrecord", "tokens in\n(at most)", "tokens out\n(at most)", "USD\n(at most)")
    grid = table("stage", "teacher", *numbers, "time", right=numbers, whole=numbers[:2])
    for line in found.lines:
        grid.add_row(
            Text(line.stage),
            Text(line.teacher),
            f"{line.missing:,}",
            f"{line.held:,}",
            f"{count(line.tokens_in)} ({count(line.most_in)})",
            f"{count(line.tokens_out)} ({count(line.most_out)})",
            _price(line),
            time_of(line.seconds).removeprefix("time "),
        )
    console.print(grid)
    if len(found.lines) > 1:
        console.print(Text(found.summary()))
    for text in (*found.budgets, *found.notes):
        console.print(Text(text))


def _price(line: Line) -> str:
    """Money without its unit."""
    from steps.lib.amounts import money

    if line.cost is None or line.most_cost is None:
        return "unknown"
    return f"{money(line.cost)} ({money(line.most_cost)})".replace(" USD", "") if line.most_cost else "free"
