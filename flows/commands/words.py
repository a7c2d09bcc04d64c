"""What the commands share: words of the command line, and the ways to print."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Overrides = Annotated[str, Parameter(help="Changes on top of the files, such as dpo.beta=0.05 or store=FOLDER.")]
Profile = Annotated[str, Parameter(help="Machine and size: the name of a file in configs/profiles.")]
Recipe = Annotated[list[Path] | None, Parameter(help="YAML files between the profile and the overrides.")]
Target = Annotated[
    str, Parameter(help="A step (the one of this configuration), a key, or the start of a key such as sft/1a2b.")
]
Json = Annotated[bool, Parameter(help="JSON in place of text.")]


def print_json(page: Any) -> None:
    """Print a page for programs."""
    import json

    print(json.dumps(page, ensure_ascii=False, indent=1))


def terminal(wide: int = 160) -> Console:
    """A console as wide as the terminal; in a file or a pipe, as wide as ``wide`` columns."""
    import sys

    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else wide, highlight=False)


def table(*columns: str, right: Collection[str] = (), whole: Collection[str] = ()) -> Table:
    """An empty table with a line under its head.

    Args:
        columns: their names.
        right: those of numbers.
        whole: those that are never broken into lines; the others fold.
    """
    from rich import box
    from rich.table import Table

    found = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        found.add_column(name, justify="right" if name in right else "left", no_wrap=name in whole, overflow="fold")
    return found
