"""``prefline retrain``: one turn of the loop, through Prefect where a server is configured."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flows.commands.words import Json, Overrides, Profile, Recipe, print_json, table, terminal

if TYPE_CHECKING:
    from flows.retraining import Result, Retraining


def retrain(
    *overrides: Overrides,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    waiting: bool = False,
    json: Json = False,
) -> None:
    """Train again on the bad cases that came since the last run; promote what is better, and tell what became of each case.

    configs/recipes/retrain.yaml comes before the recipes that are named.

    Parameters
    ----------
    waiting
        Only say what came since the last run: events, and new clusters. Nothing is trained.
    """
    from flows.retraining import RECIPE, Retraining

    recipes = [Path(RECIPE), *(recipe or [])]
    loop = Retraining.of(profile, recipes, overrides)
    if waiting:
        found = loop.waiting()
        print_json(vars(found)) if json else print(
            f"{found.events} new events, {found.clusters} new clusters, {found.deleted} trained-on cases deleted"
        )
        return
    result = _turned(loop, profile, [str(one) for one in recipes], overrides)
    if result is None:
        print_json({"run": None, "reason": loop.why}) if json else print(f"nothing to do: {loop.why}")
    elif json:
        print_json({**vars(result), "outcomes": {name: vars(one) for name, one in result.outcomes.items()}})
    else:
        _show(result)


def _turned(loop: Retraining, profile: str, recipes: list[str], overrides: tuple[str, ...]) -> Result | None:
    """The run's result; None where nothing was to be done."""
    from flows.commands.run import SETTINGS, quiet, server_configured
    from flows.engine import Engine, Plan

    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if server_configured():
        from flows.retrain import retrain as flow

        quiet()
        state = flow(profile=profile, recipes=recipes, overrides=list(overrides), return_state=True)  # type: ignore[call-overload]
        if state.name == "NothingNew":
            loop.why = str(state.message)
            return None
        result: Result = state.result()  # type: ignore[assignment]
        return result
    with loop.turn() as turn:
        if turn is None:
            return None
        engine = Engine(turn.config, Plan(), group=turn.taken.run)
        engine.run()
        return turn.finish(engine.outcomes)


def _show(result: Result) -> None:
    console = terminal()
    grid = table("what became of the cases", "count", right=("count",))
    for name, count in result.counts().items():
        grid.add_row(name, str(count))
    console.print(grid)
    serves = "it serves now" if result.promoted else "the champion stays"
    console.print(f"{result.run}: verdict [bold]{result.verdict}[/], version {result.version}; {serves}")
    sys.stdout.flush()
