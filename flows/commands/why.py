"""``prefline why``: what a key is made of, and what differs from the nearest other artifact of the step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flows.commands.words import Json, Overrides, Profile, Recipe, Target, print_json, table, terminal

if TYPE_CHECKING:
    from rich.console import Console

    from flows.plan import Look
    from steps.lib.artifact import Artifact
    from steps.lib.parts import Change, Part
    from steps.lib.store import Store


def why(
    target: Target, *overrides: Overrides, profile: Profile = "cpu-tiny", recipe: Recipe = None, json: Json = False
) -> None:
    """Show what a step's key is made of, and which parts differ from the nearest earlier artifact of the step.

    The nearest is the one with the fewest differing parts, and of those the newest. For a step that waits, the steps that it waits
    for are explained.
    """
    from flows.plan import opened, resolve, walk

    config, store = opened(profile, recipe, overrides)
    look = resolve(target, config, store)
    chain = [look]
    if look.waits_for:
        chain += [other for other in walk(config, store) if other.step in look.waits_for]
    if json:
        pages = [_page(one, store) for one in chain]
        print_json({**pages[0], "upstream": pages[1:]})
        return

    console = terminal()
    for one in chain:
        _show(console, one, store)


def plain(change: Change) -> str:
    """A change in one line: ``dpo.beta 0.1 -> 0.2``."""
    if change.name.startswith(("input ", "external ")):
        part = change.new or change.old
        what = f" ({part.note})" if part and part.note else ""
        return f"{change.name}{what if change.old and change.new else ''} {_verb(change)}"
    return f"{change.name} {_value(change.old)} -> {_value(change.new)}"


def _verb(change: Change) -> str:
    return "differs" if change.old and change.new else "is new" if change.new else "is gone"


def _value(part: Part | None, limit: int = 60) -> str:
    import json

    if part is None:
        return "(none)"
    value = part.value
    if isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef"):
        return value[:12]
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _head(look: Look) -> str:
    """What there is, in a sentence."""
    from flows.plan import ago
    from steps.lib.references import who

    said = {
        "done": "is there",
        "changed code": f"is there; code changed since it was built: {', '.join(look.code)} (--strict-code builds it again)",
        "running": f"is being built by {who(look.holder) if look.holder else 'somebody'}",
        "partial": f"is begun, last written {ago(look.age or 0)} ago: a run goes on from there",
        "stale": f"is there, but {look.reason}" if look.reason else "is not there; the store has others of this step",
        "missing": "is not there, and the store has no other of this step",
        "damaged": f"is damaged, and a run builds it again: {look.reason}",
        "blocked": f"cannot be told: {look.reason}",
        "waits": f"waits for {', '.join(look.waits_for)}: its key is made of what comes out there, which is not known yet",
    }
    return said[look.state]


def _show(console: Console, look: Look, store: Store) -> None:
    from rich.text import Text

    from flows.plan import differing

    console.print(Text.assemble((look.key or look.step, "bold"), f" {_head(look)}"))
    if not look.parts:
        return
    found = differing(look, store)
    if found:
        _changes(console, look, *found)
    else:
        console.print(f"no other artifact of {look.step} in the store to compare with", style="dim")
    _made_of(console, look)


def _changes(console: Console, look: Look, other: Artifact, changes: list[Change]) -> None:
    from rich.text import Text

    from flows.plan import short

    count = f"{len(changes)} part{'s differ' if len(changes) > 1 else ' differs'}"
    built = str(other.manifest.get("finished", ""))[:16].replace("T", " ")
    console.print(Text(f"{count} from the nearest other, {other.key}{f', built {built}' if built else ''}:"))
    grid = table("part", short(other.key), short(look.key or look.step))
    for change in changes:
        grid.add_row(*(Text(text) for text in (change.name, _side(change.old), _side(change.new))))
    console.print(grid)


def _side(part: Part | None) -> str:
    if part is None or not part.note:
        return _value(part)
    return f"{_value(part)}  {part.note}"


def _made_of(console: Console, look: Look) -> None:
    from rich.text import Text

    grid = table(f"{look.step}'s key is made of", "")
    for part in look.parts:
        grid.add_row(Text(part.name), Text(_side(part)))
    console.print(grid)


def _page(look: Look, store: Store) -> dict[str, Any]:
    from flows.plan import differing

    found = differing(look, store)
    return {
        "step": look.step,
        "key": look.key,
        "state": look.state,
        "reason": look.reason,
        "code_changed": list(look.code),
        "waits_for": list(look.waits_for),
        "parts": {part.name: part.value for part in look.parts},
        "nearest": found[0].key if found else None,
        "changes": list(_entries(found[1])) if found else [],
    }


def _entries(changes: list[Change]) -> Iterator[dict[str, Any]]:
    for change in changes:
        entry: dict[str, Any] = {"part": change.name}
        for side, part in (("old", change.old), ("new", change.new)):
            entry[side] = part.value if part else None
            entry[f"{side}_note"] = part.note if part else ""
        yield entry
