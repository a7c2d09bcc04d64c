"""``prefline plan`` and ``--dry-run``: what a run would find and build, and what that takes. Nothing is sent or written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from flows.commands.status import INCOMPLETE
from flows.commands.words import Json, Overrides, Profile, Recipe, print_json, table, terminal

if TYPE_CHECKING:
    from rich.console import Console

    from flows.engine import Plan
    from flows.forecast import Expected
    from flows.line import AlignConfig
    from flows.plan import Look
    from steps.lib.bill import Estimate, Line
    from steps.lib.store import Store


def plan(
    *overrides: Overrides,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    only: str | None = None,
    start: Annotated[str | None, Parameter(name="--from")] = None,
    until: str | None = None,
    force: list[str] | None = None,
    strict_code: bool = False,
    json: Json = False,
) -> int:
    """Show what a run would build and why, and what it takes: rows, tokens, requests, money, time, memory, disk. Nothing is run.

    Figures are those of the nearest earlier artifact of each step, scaled; the last column says of which. What a step that was
    never built takes is not known.

    Exit code: 0 when a run would build nothing, 10 when it would, others for errors.

    Parameters
    ----------
    only
        The one step of the run.
    start
        Its first step.
    until
        Its last step.
    force
        Steps that it builds again although the store has them.
    strict_code
        Count a step as to be built whose code changed since it was built.
    """
    from flows.engine import Plan
    from flows.line import AlignConfig
    from steps.lib.config import layers_of, load

    config = load(AlignConfig, layers_of(profile, recipe or []), overrides).value
    return look_ahead(config, Plan.of(only, start, until, force or (), strict_code), json=json)


def look_ahead(config: AlignConfig, plan: Plan, *, json: bool = False) -> int:
    """Print what a run with this plan would do, and what that takes.

    Returns:
        0, or ``INCOMPLETE`` where something would be built.
    """
    from flows.forecast import forecast
    from flows.plan import planned
    from steps.lib.stores import open_store

    store = open_store(config.store, config.cache)
    looks = planned(config, plan, store)
    coming = forecast(looks, plan, store)
    if json:
        print_json(_page(looks, plan, coming, store))
    else:
        _show(looks, plan, coming, store)
    return INCOMPLETE if coming else 0


def _would(look: Look, plan: Plan) -> str:
    """What a run would do with the step."""
    from flows.forecast import builds

    if look.there:
        return "built again" if builds(look, plan) else "Cached"
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


def _show(looks: Sequence[Look], plan: Plan, coming: dict[str, Expected], store: Store) -> None:
    from rich.text import Text

    console = terminal(132)
    grid = table("step", "would be", "artifact", "note", whole=("step", "would be", "artifact"))
    for look in looks:
        grid.add_row(look.step, _would(look, plan), Text(look.key or ""), Text(_note(look, store)))
    console.print(grid)
    if coming:
        _show_coming(console, list(coming.values()))
    for one in coming.values():
        if one.asked:
            print_estimate(console, one.asked)
    console.print("nothing was run and nothing was sent")


def _show_coming(console: Console, steps: Sequence[Expected]) -> None:
    """What each step would take, and all together."""
    from rich.text import Text

    from flows.forecast import COLUMNS as numbers
    from flows.forecast import cells, total, total_cells, unknown

    grid = table("to build", *numbers, "basis", right=numbers, whole=("to build", *numbers))
    for one in steps:
        grid.add_row(one.step, *cells(one), Text(one.basis))
    grid.add_section()
    whole = total(steps)
    grid.add_row("in all", *total_cells(whole), Text(unknown(whole.unknown)))
    console.print(grid)


def _page(looks: Sequence[Look], plan: Plan, coming: dict[str, Expected], store: Store) -> dict[str, Any]:
    from dataclasses import asdict

    from flows.forecast import total

    def of(one: Expected) -> dict[str, Any]:
        return {name: value for name, value in vars(one).items() if name not in ("step", "asked")}

    return {
        "store": store.name,
        "builds": list(coming),
        "steps": [
            {
                "step": look.step,
                "state": look.state,
                "would_be": _would(look, plan),
                "key": look.key,
                "note": _note(look, store),
                "expected": of(coming[look.step]) if look.step in coming else None,
            }
            for look in looks
        ],
        "total": asdict(total(list(coming.values()))),
    }


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
