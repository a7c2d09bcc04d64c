"""``prefline gc``: what of the store may go, and deleting it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.commands.words import Json, Overrides, Profile, Recipe, print_json, table, terminal

if TYPE_CHECKING:
    from flows.line import AlignConfig
    from steps.lib.collect import Item
    from steps.lib.store import Store


def gc(
    *overrides: Overrides,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    delete: bool = False,
    keep_runs: int = 5,
    broken: bool = False,
    pin: str | None = None,
    unpin: str | None = None,
    reason: str = "",
    json: Json = False,
) -> None:
    """Show what of the store may go and what stays, with sizes and reasons; delete it with --delete.

    What stays: artifacts that an alias of a registry names or that a rollback would go back to, pinned ones, locked ones, those of
    runs that go on and of the last runs, everything younger than an hour, and all that these were made from.

    Parameters
    ----------
    delete
        Delete it. Without this word nothing is changed.
    keep_runs
        Newest runs whose artifacts stay; runs that used nothing of their own are not counted.
    broken
        Empty broken/, too.
    pin
        Keep this artifact (a step, a key, or the start of a key), whatever runs do; nothing is collected.
    unpin
        Take a pin away; nothing is collected.
    reason
        Why, for --pin.
    """
    from flows.plan import opened, reaching
    from steps.lib.collect import collect, survey
    from steps.lib.errors import ConfigError

    if keep_runs < 0:
        raise ConfigError(f"--keep-runs is wrong: got {keep_runs}, because a number of runs is meant; give 0 or more")
    config, store = opened(profile, recipe, overrides)
    if pin or unpin:
        with reaching(store):
            _pins(pin, unpin, reason, config, store)
        return
    registries = [config.promote.registry] if config.promote else []
    with reaching(store):
        items = survey(store, registries, keep_runs=keep_runs, broken=broken)
        if delete:
            ended = {(item.kind, item.name): item for item in collect(store, items, registries, keep_runs=keep_runs)}
            items = [ended.get((item.kind, item.name), item) for item in items]
    if json:
        from dataclasses import asdict

        page = {"store": store.name, "deleted": delete, "size": sum(item.size for item in items if item.goes)}
        print_json({**page, "items": [asdict(item) for item in items]})
    else:
        _show(items, store, delete)


def _pins(pin: str | None, unpin: str | None, reason: str, config: AlignConfig, store: Store) -> None:
    from flows.plan import resolve
    from steps.lib import runs
    from steps.lib.errors import ArtifactError

    if pin:
        look = resolve(pin, config, store)
        if look.artifact is None:
            raise ArtifactError(
                f"{look.key or look.step} cannot be pinned: got state {look.state}, because only what is there can be kept; "
                f"build it first (prefline step {look.step} --upstream)"
            )
        runs.pin(store.place, look.artifact.key, reason)
        print(f"{look.artifact.key} is pinned, with all that it was made from")
    if unpin:
        pins = runs.pins(store.place)
        known = [key for key in pins if key.startswith(unpin) or key.partition("/")[2].startswith(unpin)]
        if len(known) != 1:
            raise ArtifactError(
                f"pin {unpin} is not one pin: got {known or 'none'}, because the pins of {store.name} are "
                f"{list(pins) or 'none'}; give one of them"
            )
        runs.unpin(store.place, known[0])
        print(f"{known[0]} is not pinned any more")


def _show(items: list[Item], store: Store, deleted: bool) -> None:
    """One line a thing, what goes first; old locks in one line."""

    from rich.filesize import decimal
    from rich.text import Text

    from flows.plan import ago, short

    console = terminal()
    whole = ("", "what", "name", "size", "age")
    grid = table(*whole, "why", right=("size", "age"), whole=whole)
    word = Text("deleted" if deleted else "goes", style="red")
    locks = [item for item in items if item.kind == "lock" and item.goes]
    for item in sorted((one for one in items if one.kind != "lock"), key=lambda one: (not one.goes, -one.size)):
        name = short(item.name) if item.kind in ("artifact", "partial") else item.name
        state = word if item.goes else Text("stays", style="green")
        grid.add_row(
            state, item.kind, Text(name), decimal(item.size), ago(item.age) if item.age else "", Text(item.reason)
        )
    if locks:
        grid.add_row(word, "locks", f"{len(locks)} of .locks/", "", "", locks[0].reason)
    console.print(grid)
    going = [item for item in items if item.goes]
    stays = sum(item.size for item in items if not item.goes)
    count = f"{len(going)} {'thing' if len(going) == 1 else 'things'} {'deleted' if deleted else 'may go'}"
    said = f"{count}, {decimal(sum(item.size for item in going))}; "
    rest = f"{decimal(stays)} stay in {store.name}"
    hint = "" if deleted or not going else ". Nothing was changed; --delete deletes them"
    console.print(Text(said + rest + hint), soft_wrap=True)
