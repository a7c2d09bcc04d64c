"""``prefline verify``: every byte of every artifact, read afresh."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.commands.words import Json, Profile, Recipe, print_json, table, terminal

if TYPE_CHECKING:
    from steps.lib.store import Store

BROKEN = 5
"""Exit code when something was broken: that of ArtifactError."""


def verify(
    *targets: str,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    dry_run: bool = False,
    json: Json = False,
) -> int:
    """Read every byte of the artifacts and compare it with the manifests; check each key against its parts.

    What is broken is set aside in broken/ with the reason, and built again when it is needed.

    Exit code: 0 when all are whole, 5 when one was broken, others for errors.

    Parameters
    ----------
    targets
        Steps (all their artifacts), keys, starts of keys; a word with "=" is an override (store=FOLDER). Without any: the whole
        store.
    dry_run
        Only say what is broken. The exit code is 0 when all are whole, and 5 when one was broken.
    """
    import sys
    import time

    from rich.console import Console
    from rich.progress import track

    from flows.plan import opened, reaching, split

    names, overrides = split(targets)
    _, store = opened(profile, recipe, overrides)
    console = Console(stderr=True, highlight=False)
    broken: dict[str, str] = {}
    aside: dict[str, str] = {}
    with reaching(store):
        keys = _keys(names, store)
        started, size = time.perf_counter(), 0
        for key in track(keys, "verify", console=console, transient=True, disable=not sys.stderr.isatty()):
            read, problem = whole(store, key)
            size += read
            if problem:
                broken[key] = problem
                aside[key] = "" if dry_run else _set_aside(store, key)
    seconds = time.perf_counter() - started
    if json:
        page = {"store": store.name, "checked": len(keys), "size": size, "seconds": round(seconds, 3), "broken": broken}
        print_json(page)
    else:
        _show(store, len(keys), size, seconds, broken, aside)
    return BROKEN if broken else 0


def _keys(names: list[str], store: Store) -> list[str]:
    """Keys of the targets, each once; all keys without a target."""
    from flows.plan import matching
    from steps.lib.errors import ArtifactError
    from steps.lib.references import without_manifest

    if not names:
        return [*store.keys(), *without_manifest(store)]
    found: list[str] = []
    for name in names:
        keys = matching(name, store)
        if not keys:
            raise ArtifactError(
                f"artifact {name} is not in the store {store.name}: got no key that begins so, because it was never built "
                "here, or was collected; give a step, or a key that `prefline status` shows"
            )
        found += [key for key in keys if key not in found]
    return found


def whole(store: Store, key: str) -> tuple[int, str | None]:
    """Bytes that an artifact should have, and what is wrong with it after reading all of them."""
    import json

    from steps.lib.artifact import MANIFEST
    from steps.lib.step import key_of

    problem = store.prove(key)
    try:
        manifest = json.loads(store.place.read(f"{key}/{MANIFEST}") or b"")
        size = sum(int(facts["size"]) for facts in manifest["files"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0, problem
    parts = manifest.get("parts")
    if problem is None and parts is not None and key_of(parts) != key:
        problem = f"the key {key_of(parts)}, made of the parts that the {MANIFEST} lists, at the place of {key}"
    return size, problem


def _set_aside(store: Store, key: str) -> str:
    """Set an artifact aside, unless somebody builds it now. What happened, in words."""
    from steps.lib.collect import Busy, alone
    from steps.lib.errors import ArtifactError

    try:
        with alone(store, key):
            _, problem = whole(store, key)
            if problem is None or store.look(key) is None:
                return "built again or deleted by another process meanwhile"
            store.set_aside(key, problem)
            return "set aside in broken/"
    except Busy as error:
        return f"stays: {error}"
    except ArtifactError as error:
        return f"stays: {error}"


def _show(store: Store, count: int, size: int, seconds: float, broken: dict[str, str], aside: dict[str, str]) -> None:

    from rich.filesize import decimal
    from rich.text import Text

    console = terminal()
    if broken:
        grid = table("broken", "got", "")
        for key, problem in broken.items():
            grid.add_row(Text(key, style="bold red"), Text(problem), Text(aside[key] or "only reported"))
        console.print(grid)
    speed = f"{size / seconds / 1e9:.2f} GB/s" if seconds > 0 and size else "nothing to read"
    said = f"{count} artifacts, {decimal(size)} read in {seconds:.1f} s ({speed}): "
    end = Text(f"{len(broken)} broken", style="bold red") if broken else Text("all whole", style="green")
    console.print(Text.assemble(said, end, f" in {store.name}"), soft_wrap=True)
