"""``prefline run``: the whole line through Prefect, with a summary at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.console import Console

    from flows.engine import Outcome


def run(
    *overrides: str,
    profile: str = "cpu-tiny",
    recipe: list[Path] | None = None,
    only: str | None = None,
    start: Annotated[str | None, Parameter(name="--from")] = None,
    until: str | None = None,
    force: list[str] | None = None,
) -> None:
    """Run the line: generate, clean, pretrain, sft, pairs, dpo, evaluate, promote.

    Every step that the store has already is shown as Cached. A stopped run goes on where it stopped.

    Parameters
    ----------
    overrides
        Changes on top of the files, such as dpo.beta=0.05.
    profile
        Machine and size: the name of a file in configs/profiles.
    recipe
        YAML files between the profile and the overrides.
    only
        The one step to run; earlier ones must be in the store.
    start
        The first step to run; earlier ones must be in the store.
    until
        The last step to run.
    force
        Steps to build again although the store has them.
    """
    from flows.engine import Plan
    from flows.line import AlignConfig
    from steps.lib.config import layers_of, load

    load(AlignConfig, layers_of(profile, recipe or []), overrides)  # every problem, before Prefect starts
    Plan.of(only, start, until, force or ())
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from rich.console import Console

    from flows.align import align
    from flows.engine import Outcome
    from steps.lib.store import Artifact

    words: dict[str, Any] = {
        "profile": profile,
        "overrides": list(overrides),
        "recipes": [str(path) for path in recipe or []],
        "only": only,
        "start": start,
        "until": until,
        "force": list(force or ()),
    }
    steps = align(**words)
    outcomes = [Outcome(s["step"], Artifact.read(Path(s["path"])), s["cached"], s["seconds"]) for s in steps]
    _show(Console(width=None if sys.stdout.isatty() else 120, highlight=False), outcomes)


SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # a first start migrates its database: 20 s were too few
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
}
"""Prefect's environment for a run from the shell; what is set already stays."""


def _show(console: Console, outcomes: Sequence[Outcome]) -> None:
    """The steps of the run, the headline figures, the verdict, and where the report is."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("step", "state", "seconds", "rows in", "rows out", "dropped", "artifact"):
        table.add_column(
            name, justify="right" if name in ("seconds", "rows in", "rows out", "dropped") else "left", no_wrap=True
        )
    for outcome in outcomes:
        rows = outcome.artifact.manifest["rows"]
        dropped = sum(sum(reasons.values()) for reasons in rows["dropped"].values())
        counts = [sum(rows["in"].values()), sum(rows["out"].values()), dropped]
        table.add_row(
            outcome.step,
            "[dim]Cached[/]" if outcome.cached else "[green]built[/]",
            f"{outcome.seconds:.1f}",
            *(str(count) for count in counts),
            outcome.artifact.key,
        )
    console.print(table)
    by_step = {outcome.step: outcome.artifact.path for outcome in outcomes}
    if "evaluate" in by_step:
        _figures(console, by_step["evaluate"])
    if "promote" in by_step:
        import json

        verdict = json.loads((by_step["promote"] / "verdict.json").read_text())
        console.print(f"verdict: [bold]{verdict['verdict']}[/]  {'; '.join(verdict['reasons'])}")
    if "evaluate" in by_step:
        console.print(f"report:  {_near(by_step['evaluate'] / 'report.html')}", soft_wrap=True)


def _figures(console: Console, folder: Path) -> None:
    """One line a highlighted figure: its value for every model."""
    from rich import box
    from rich.table import Table

    from steps.lib import report

    found = report.read(folder)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("held-out figure")
    for name in found.chain:
        table.add_column(name, justify="right")
    for group in found.by_figure(found.highlights):
        values = {figure.model: figure for figure in group}
        scale, unit = (100, " %") if group[0].unit == "share" else (1, "")
        digits = 1 if scale == 100 else 3
        cells = [f"{values[m].interval.value * scale:.{digits}f}{unit}" if m in values else "" for m in found.chain]
        table.add_row(f"{group[0].label_en} {group[0].label_zh}", *cells)
    console.print(table)


def _near(path: Path) -> Path:
    """Relative to here, where that is shorter."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
