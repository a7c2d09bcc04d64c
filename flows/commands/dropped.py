"""Rows that a step dropped, for ``prefline show STEP --dropped``: where they came from, why, and what stood in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from steps.lib.artifact import Artifact
    from steps.lib.dropped_rows import Shown

LIMIT = 20
"""Rows that are shown where --limit does not say how many."""
TEXT = 300
"""Characters of a row's text that are shown in a terminal."""


def dropped(
    artifact: Artifact, reason: str | None, kind: str | None, limit: int, *, whole: bool
) -> tuple[list[Shown], Counter[str]]:
    """The first rows that match, and how many rows there are of each reason.

    Args:
        artifact: of a step that keeps dropped rows.
        reason: only rows with this reason.
        kind: only rows of this kind.
        limit: rows, at most.
        whole: their whole text.

    Raises:
        ConfigError: no row has this reason, or there is no such kind; the message lists those that there are.
        DataError: the step keeps no dropped rows.
    """
    from itertools import islice

    from steps.lib.dropped_rows import KINDS, Shown, dropped_rows, reasons_of
    from steps.lib.errors import ConfigError, DataError

    path = artifact.path / "dropped.parquet"
    if not path.exists():
        raise DataError(
            f"dropped rows of {artifact.key} cannot be shown: got no dropped.parquet, because this step keeps none; "
            "clean, generate and pairs do"
        )
    if limit < 0:
        raise ConfigError(f"--limit {limit} is no number of rows: got less than 0; give 0 or more")
    counts = reasons_of(path)
    if reason is not None and reason not in counts:
        there = ", ".join(f"{name} {count:,}" for name, count in counts.most_common()) or "nothing was dropped"
        raise ConfigError(
            f"--reason {reason} is not among the reasons of {artifact.key}: got {reason!r}; there are {there}"
        )
    if kind is not None and kind not in KINDS.values():
        raise ConfigError(f"--kind {kind} is no kind of rows: got {kind!r}; there are {', '.join(KINDS.values())}")
    rows = islice(dropped_rows(path, reason, kind), limit)
    return [Shown.of(row, None if whole else TEXT) for row in rows], counts


def print_dropped(console: Console, shown: Sequence[Shown], counts: Counter[str], reason: str | None) -> None:
    """Print the counts of all reasons, and the rows."""
    from rich.padding import Padding
    from rich.rule import Rule
    from rich.text import Text

    from flows.commands.words import table
    from steps.lib.dropped_rows import visible

    grid = table("reason", "rows", right=("rows",))
    for name, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])):
        grid.add_row(Text(name, style="bold" if name == reason else ""), f"{count:,}")
    console.print(grid)
    for row in shown:
        head = Text(visible(row.reason), style="yellow")
        for fact, style in (
            (row.id, "bold"),
            (row.source, "cyan"),
            (row.kind, "dim"),
            (row.lang, "dim"),
            (row.place, "dim"),
        ):
            if fact:
                head.append("  " + visible(fact), style=style)
        console.print(Rule(head, align="left", style="dim"))
        if row.detail:
            console.print(Text(visible(row.detail), style="dim"))
        console.print(Padding(Text(visible(row.text)), (0, 0, 1, 2)))
    number = sum(counts.values()) if reason is None else counts[reason]
    console.print(Text(f"{len(shown)} of {number:,} dropped rows{f' ({reason})' if reason else ''}", style="bold"))
