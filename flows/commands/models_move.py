"""``prefline models promote, rollback, prune``: what a person does to aliases and versions; all of it goes into the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from flows.commands.models import By, Folder, Name, Which, found, opened
from flows.commands.words import Json, Overrides, Profile, Recipe, print_json, table, terminal

if TYPE_CHECKING:
    from steps.lib.events import Event
    from steps.lib.registry import Registry

CHAMPION = "champion"
NOTHING = "none"
Reason = Annotated[str, Parameter(help="Why, in one sentence; it stands in the log for ever.")]
Alias = Annotated[str, Parameter(help="champion, anchor, challenger, or one of your own.")]
Expect = Annotated[
    str | None,
    Parameter(
        help="Version that the alias must have now, or none; else nothing is done. Without it: what it has when you ask."
    ),
]


def promote(
    which: Which,
    *overrides: Overrides,
    reason: Reason,
    alias: Alias = CHAMPION,
    expect: Expect = None,
    name: Name = None,
    folder: Folder = None,
    by: By = None,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
) -> None:
    """Move an alias to a version by a person's word, past the gate. Every byte of the version is checked first."""
    registry, model = opened(name, folder, overrides, profile, recipe, by)
    _said(reason, "promote")
    version = found(registry, model, which)
    current = _expected(registry, model, alias, expect)
    if current == version.name:
        terminal().print(f"{alias} of {model} is at {version.name} already; nothing was done", markup=False)
        return
    if alias == CHAMPION:
        event = registry.promote(
            model, version.name, expected=current, verdict_digest="", reason=f"by a person: {reason.strip()}"
        )
    else:
        event = registry.point(model, version.name, alias=alias, reason=reason.strip(), expected=current)
    _moved(model, event)


def rollback(
    *overrides: Overrides,
    reason: Reason,
    to: Which = "",
    alias: Alias = CHAMPION,
    expect: Expect = None,
    name: Name = None,
    folder: Folder = None,
    by: By = None,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
) -> None:
    """Move an alias back to the version before, or to another one. Nothing is deleted, and no later run of the same line undoes it.

    Parameters
    ----------
    to
        Version to go back to; without it, the one that the present one replaced.
    """
    registry, model = opened(name, folder, overrides, profile, recipe, by)
    _said(reason, "rollback")
    target = found(registry, model, to).name if to else None
    current = _expected(registry, model, alias, expect)
    _moved(model, registry.rollback(model, expected=current, reason=reason.strip(), to=target, alias=alias))


def prune(
    *overrides: Overrides,
    keep: int = 3,
    yes: bool = False,
    name: Name = None,
    folder: Folder = None,
    by: By = None,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    json: Json = False,
) -> None:
    """Say which versions and bases nothing needs any more; with --yes, delete their weights. What tells of them stays.

    Parameters
    ----------
    keep
        Champions that stay, the last ones; what an alias names, or a rollback would go back to, stays besides.
    yes
        Do it.
    """
    from rich.filesize import decimal
    from rich.text import Text

    from steps.lib.errors import ConfigError

    if keep < 1:
        raise ConfigError(f"--keep is wrong: got {keep}, because the champion itself is one; give 1 or more")
    registry, model = opened(name, folder, overrides, profile, recipe, by)
    kept = registry.prune(model, keep=keep, dry=not yes)
    if json:
        print_json([vars(one) for one in kept])
        return
    grid = table("what", "name", "size", "", "reason", right=("size",))
    for one in kept:
        word = ("deleted" if yes else "would go") if one.goes else "stays"
        grid.add_row(one.kind, Text(one.name), decimal(one.size), word, Text(one.reason))
    console = terminal()
    console.print(grid)
    if not yes and any(one.goes for one in kept):
        console.print("nothing was deleted; --yes does it")


def _expected(registry: Registry, model: str, alias: str, expect: str | None) -> str | None:
    """The version that the alias must have when it moves."""
    if expect is None:
        return registry.history(model).aliases().get(alias)
    return None if expect == NOTHING else found(registry, model, expect).name


def _said(reason: str, verb: str) -> None:
    from steps.lib.errors import ConfigError

    if not reason.strip():
        raise ConfigError(
            f"--reason of {verb} is empty: got {reason!r}, because the log must say why an alias moved; give one sentence"
        )


def _moved(model: str, event: Event) -> None:
    text = f"{event.alias} of {model}: {event.before or NOTHING} -> {event.after} (event {event.seq}, by {event.actor})"
    terminal().print(text, markup=False)
