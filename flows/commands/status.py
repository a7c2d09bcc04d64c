"""``prefline status``: what the store has for a configuration, and what a run would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.commands.words import Overrides, Profile, Recipe, print_json, table, terminal

if TYPE_CHECKING:
    from flows.plan import Look
    from steps.lib.store import Store

INCOMPLETE = 10
"""Exit code when a run would have something to build; no error has it."""
COLOURS = {
    "done": "green",
    "changed code": "yellow",
    "partial": "cyan",
    "running": "bold cyan",
    "stale": "yellow",
    "missing": "bold",
    "damaged": "bold red",
    "blocked": "bold red",
    "waits": "dim",
}


def status(*overrides: Overrides, profile: Profile = "cpu-tiny", recipe: Recipe = None, json: bool = False) -> int:
    """Show what the store has for this configuration. Nothing is run or written.

    done: a run reuses it. changed code: reused, too, but built by other code (--strict-code builds it again). partial: a run goes
    on from there. running: a process builds it now. stale: the store has results of the step, but of another configuration or
    input. missing: it has none. damaged: a run sets it aside and builds it again. blocked: something it reads is missing.
    waits: a step before it is not there, so its key is not known yet.

    Exit code: 0 when a run would build nothing, 10 when it would, others for errors.

    Parameters
    ----------
    json
        JSON in place of a table. The exit code is 0 when a run would build nothing, and 10 when it would.
    """
    from flows.plan import opened, walk

    config, store = opened(profile, recipe, overrides)
    looks = walk(config, store)
    complete = all(look.there for look in looks)
    if json:
        steps = [_plain(look, store) for look in looks]
        page = {"store": store.name, "complete": complete, "size": _size(looks), "steps": steps}
        print_json(page)
    else:
        _show(looks, store)
    return 0 if complete else INCOMPLETE


def _show(looks: list[Look], store: Store) -> None:

    from rich.filesize import decimal
    from rich.text import Text

    from flows.plan import short

    console = terminal()
    whole = ("step", "state", "key", "size", "built")
    grid = table(*whole, "", right=("size",), whole=whole)
    for look in looks:
        artifact = look.artifact if look.there else None
        grid.add_row(
            look.step,
            Text(look.state, style=COLOURS[look.state]),
            Text(short(look.key) if look.key else "", style="" if look.there else "dim"),
            decimal(artifact.size) if artifact else "",
            str(artifact.manifest.get("finished", ""))[:16].replace("T", " ") if artifact else "",
            Text(note(look, store), style="dim" if look.state == "waits" else ""),
        )
    console.print(grid)
    there = sum(look.there for look in looks)
    console.print(
        Text(f"{there} of {len(looks)} steps are there, {decimal(_size(looks))} in {store.name}"), soft_wrap=True
    )


def note(look: Look, store: Store) -> str:
    """One line on a step's state."""
    from flows.commands.why import plain
    from flows.plan import ago, differing, short
    from steps.lib.references import who

    far = ", ".join(str(progress) for progress in look.progress)
    since = f"written {ago(look.age)} ago" if look.age is not None else ""
    if look.state == "changed code":
        more = f" and {len(look.code) - 3} more" if len(look.code) > 3 else ""
        return f"code changed since: {', '.join(look.code[:3])}{more}"
    if look.state == "running":
        return "; ".join(part for part in (who(look.holder) if look.holder else "", far, since) if part)
    if look.state == "partial":
        return "; ".join(part for part in (far, since) if part)
    if look.state == "waits":
        return f"for {', '.join(look.waits_for)}"
    if look.state == "stale" and not look.reason:
        found = differing(look, store)
        if found is None:
            return "the store has results of which the parts are not known"
        artifact, changes = found
        more = f" and {len(changes) - 2} more" if len(changes) > 2 else ""
        return f"{'; '.join(map(plain, changes[:2]))}{more} (against {short(artifact.key)})"
    return look.reason


def _size(looks: list[Look]) -> int:
    return sum(look.artifact.size for look in looks if look.artifact and look.there)


def _plain(look: Look, store: Store) -> dict[str, Any]:
    artifact = look.artifact if look.there else None
    return {
        "step": look.step,
        "state": look.state,
        "key": look.key,
        "folder": str(artifact.path) if artifact else None,
        "size": artifact.size if artifact else None,
        "finished": artifact.manifest.get("finished") if artifact else None,
        "digest": artifact.digest if artifact else None,
        "progress": [{"done": one.done, "total": one.total, "unit": one.unit} for one in look.progress],
        "partial_age_seconds": None if look.age is None else round(look.age, 1),
        "holder": {"host": look.holder.host, "pid": look.holder.pid, "since": look.holder.since}
        if look.holder
        else None,
        "code_changed": list(look.code),
        "waits_for": list(look.waits_for),
        "note": note(look, store),
    }
