"""Samples of what generate wrote, for ``prefline show``: a prompt, and its answers side by side where the terminal is wide."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from steps.lib.excerpts import Excerpt, Shown

NARROWEST = 38
"""Columns that an answer needs to stand beside another one; in fewer they stand one below the other."""
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


def print_samples(console: Console, found: Sequence[Excerpt], matching: int, what: str) -> None:
    """Print excerpts, and of how many they are."""
    from rich.text import Text

    console.print(Text(f"{len(found)} of {matching:,} {what}", style="bold"))
    for excerpt in found:
        _print(console, excerpt)


def visible(text: str) -> str:
    """Teacher text fit for a terminal: what would move its cursor, change colours or turn lines round becomes U+FFFD."""
    return _CONTROLS.sub("\ufffd", text.expandtabs(4))


def _print(console: Console, excerpt: Excerpt) -> None:
    from rich import box
    from rich.padding import Padding
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    heading = " ".join(word for word in (visible(excerpt.lang), visible(excerpt.source)) if word)
    console.print(Rule(Text(heading, style="dim"), align="left", style="dim"))
    console.print(Text(visible(excerpt.prompt), style="bold"))
    beside = max(1, min(len(excerpt.answers), console.width // NARROWEST))
    for start in range(0, len(excerpt.answers), beside):
        row = excerpt.answers[start : start + beside]
        if beside == 1:
            console.print(_head(row[0]))
            console.print(Padding(Text(visible(row[0].text)), (0, 0, 1, 2)))
            continue
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
        for answer in row:
            grid.add_column(_head(answer), ratio=1, overflow="fold")
        for _ in range(beside - len(row)):
            grid.add_column("", ratio=1)
        grid.add_row(*(Text(visible(answer.text)) for answer in row))
        console.print(grid)


def _head(answer: Shown) -> Text:
    """Teacher, agreement with the others, and flags."""
    from rich.text import Text

    head = Text(visible(answer.teacher) or "no teacher", style="cyan")
    if answer.agreement is not None:
        head.append(f"  agrees {answer.agreement:.2f}", style="default")
    for flag in answer.flags:
        head.append(f"  {visible(flag)}", style="yellow")
    return head
