"""``prefline registry``: versions of a model, its champion, and the way back."""

from __future__ import annotations

from pathlib import Path


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
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from steps.lib.registry import Registry

    found = Registry(folder)
    if rollback is not None:
        champion = found.champion(name)
        found.rollback(name, expected=champion.name if champion else None, reason=rollback)
    champion = found.champion(name)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("version", "alias", "digest") + (("files",) if verify else ()):
        table.add_column(column)
    for version in found.versions(name):
        alias = "champion" if champion and version.name == champion.name else ""
        checked = []
        if verify:
            found.verify(name, version.name)
            checked = ["whole"]
        table.add_row(version.name, alias, version.digest[:12], *checked)
    Console(highlight=False).print(table)
