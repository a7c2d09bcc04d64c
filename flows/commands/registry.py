"""``prefline registry``: versions of a model, its champion, and the way back."""

from __future__ import annotations

from pathlib import Path

from flows.commands.words import table, terminal


def registry(
    name: str = "after-sales",
    *,
    folder: Path = Path("data/registry"),
    rollback: str | None = None,
    verify: bool = False,
) -> None:
    """List the versions of a model, or go back to the champion before.

    Parameters
    ----------
    name
        Name of the model (promote.name).
    folder
        Folder of the registry (promote.registry).
    rollback
        Reason for going back to the champion before; nothing is deleted.
    verify
        Check the digest of every file of every version.
    """

    from steps.lib.registry import Registry

    found = Registry(folder)
    if rollback is not None:
        champion = found.champion(name)
        found.rollback(name, expected=champion.name if champion else None, reason=rollback)
    champion = found.champion(name)
    grid = table("version", "alias", "digest", *(("files",) if verify else ()))
    for version in found.versions(name):
        alias = "champion" if champion and version.name == champion.name else ""
        checked = []
        if verify:
            found.verify(name, version.name)
            checked = ["whole"]
        grid.add_row(version.name, alias, version.digest[:12], *checked)
    terminal().print(grid)
