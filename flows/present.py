"""What a run shows in Prefect: its configuration, the steps that it built, and the report. These tasks are never cached.

A step that was built shows its facts, and what a person looks for first: learning curves, the figures, the gate, and the way to the
page. A step from the store shows nothing, so that a run with nothing to do costs no call.
"""

from __future__ import annotations

import base64
import json
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
from prefect import task
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import PrefectException

from flows.engine import Outcome
from flows.forecast import COLUMNS, Expected, cells, total, total_cells, unknown
from flows.line import AlignConfig
from flows.retraining import Result
from steps.lib.artifact import Artifact
from steps.lib.errors import DataError

PERIOD = 5.0
"""Seconds between two looks at how far a step is."""


@task(name="configuration", cache_policy=NO_CACHE)
def configuration(config: AlignConfig, tags: Sequence[str], name: str) -> None:
    """The resolved configuration as a Prefect artifact, and the run's tags and name."""
    run = FlowRunContext.get()
    if run and run.flow_run:
        run.client.update_flow_run(run.flow_run.id, name=name, tags=sorted({*run.flow_run.tags, *tags}))
    text = config.model_dump_json(indent=1)
    create_markdown_artifact(
        f"```json\n{text}\n```\n", key="configuration", description="Resolved configuration of the run"
    )


@task(name="plan", cache_policy=NO_CACHE)
def plan(coming: Sequence[Expected]) -> None:
    """The steps that will be built, and what that takes, before the first one starts."""
    create_markdown_artifact(plan_table(coming), key="plan", description="Steps to build, and what they will take")


@task(name="report", cache_policy=NO_CACHE)
def summary(outcomes: Sequence[Outcome]) -> None:
    """The table of steps, and the evaluation's report where there is one, as one Prefect artifact."""
    create_markdown_artifact(table(outcomes), key="align-report", description="Steps of the run, and its report")


@task(name="bad cases", cache_policy=NO_CACHE)
def told(result: Result) -> None:
    """What became of the bad cases of a retraining: counts, and a row a case."""
    lines = [f"**{result.verdict}**: version {result.version}, run {result.run}", "", "| cases | count |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in result.counts().items()]
    create_markdown_artifact("\n".join(lines) + "\n", key="bad-cases", description="What became of the bad cases")
    rows = [
        {"case": name, "outcome": one.outcome, "moved to": result.moved.get(name, ""), "detail": one.detail}
        for name, one in result.outcomes.items()
    ]
    create_table_artifact(rows[:1000], key="bad-cases-table", description=f"{len(rows)} cases, the first 1000 here")


def step(artifact: Artifact) -> None:
    """What a step built, on the page of its task run. Called in the task: each of its artifacts is one call of the server's API."""
    name = artifact.key.partition("/")[0]
    create_markdown_artifact(facts(artifact), key=name, description=f"What {name} built")
    page = artifact.path / "report.html"
    if page.exists():
        create_link_artifact(page.as_uri(), link_text=f"{name}: report.html", key=f"{name}-page")
    rows = gate(artifact) if name == "promote" else figures(artifact) if name == "evaluate" else []
    if rows:
        what = "The gate's checks" if name == "promote" else "Figures on held-out items, with their intervals"
        create_table_artifact(rows, key=f"{name}-table", description=what)
    if drawing := picture(artifact):
        create_image_artifact(image_url=drawing, key=f"{name}-plot", description=f"What {name} looks like")


@contextmanager
def progress(name: str) -> Iterator[Path | None]:
    """Show how far a step is, as a progress artifact on its task run; gives the file in which the step's process tells it.

    Every ``PERIOD`` seconds at most is one call of the server's API. What cannot be shown is no reason to stop.
    """
    if TaskRunContext.get() is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="prefline-") as folder:
        path, over = Path(folder) / "progress.json", threading.Event()
        watcher = threading.Thread(target=copy_context().run, args=(_follow, name, path, over), daemon=True)
        watcher.start()
        try:
            yield path
        finally:
            over.set()
            watcher.join(PERIOD)


def _follow(name: str, path: Path, over: threading.Event) -> None:
    shown: UUID | None = None
    last, ended = "", False
    while not ended:
        ended = over.wait(PERIOD)
        with suppress(OSError, ValueError, httpx.HTTPError, PrefectException):
            text = path.read_text(encoding="utf-8")
            if text == last:
                continue
            last, told = text, json.loads(text)
            percent = round(100.0 * min(1.0, told["done"] / told["total"]), 1)
            what = f"{name}: {told['done']:,} of {told['total']:,} {told['unit']}"
            if shown is None:
                shown = cast("UUID", create_progress_artifact(percent, key=f"{name}-progress", description=what))
            else:
                update_progress_artifact(shown, percent, description=what)


def plan_table(coming: Sequence[Expected]) -> str:
    """A row a step, and the sum."""
    heads = ("to build", *COLUMNS, "basis")
    whole = total(coming)
    rows = [(one.step, *cells(one), one.basis) for one in coming]
    rows.append(("**in all**", *total_cells(whole), unknown(whole.unknown)))
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(text.replace('|', '/') for text in line)} |\n" for line in lines)


def figures(artifact: Artifact) -> list[dict[str, Any]]:
    """A row a figure, a column a model; none where the report cannot be read."""
    from steps.lib import report, wording

    try:
        shown = report.read(artifact.path)
    except DataError:
        return []
    return [
        {
            "figure": f"{group[0].label_en} {group[0].label_zh}",
            **{
                name: ", ".join(
                    f"{wording.value(one)} ({wording.span(one)})" for one in group if one.model == name
                ).replace(wording.SPACE, " ")
                for name in shown.chain
            },
            "n": group[0].interval.n,
            "better": group[0].better,
        }
        for group in shown.by_figure()
    ]


def gate(artifact: Artifact) -> list[dict[str, Any]]:
    """A row a check of the verdict, and the verdict in the first one; none where there is no verdict."""
    from steps.lib.decision import Decision

    try:
        found = Decision.model_validate_json((artifact.path / "verdict.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    rows = [{"check": "verdict", "result": found.verdict, "reason": f"{found.candidate} against {found.against}"}]
    rows += [
        {"check": f"{one.figure} ({one.role})", "result": one.outcome, "reason": one.reason} for one in found.checks
    ]
    said = {one.reason for one in found.checks}
    return rows + [{"check": "", "result": "", "reason": reason} for reason in found.reasons if reason not in said]


def picture(artifact: Artifact) -> str:
    """A plot of the step as the address of an image: how training went, or the report's first figure; empty without one."""
    from steps.lib import history, plots, report

    name = artifact.key.partition("/")[0]
    drawn = ""
    try:
        if name == "evaluate":
            shown = report.read(artifact.path)
            first = next((group for group in shown.by_figure(shown.highlights or None) if len(group) > 1), [])
            if first:
                values = {one.model: one.interval for one in first}
                what = first[0]
                drawn = plots.bars(what.label_en, what.label_zh, what.unit, values, better=what.better)
        elif (path := artifact.path / "record" / "history.jsonl").exists():
            lines = history.thin(history.read(path))
            drawn = plots.answers_curve(lines) if name == "rl" else plots.loss_curve(name, lines)
    except DataError:
        return ""
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.encode()).decode()}" if drawn else ""


def verdict(outcomes: Sequence[Outcome]) -> list[str]:
    """Markdown: what the gate said, with its first reason, and the next step; nothing without a gate."""
    from steps.lib.decision import Decision

    folder = next((one.artifact.path for one in outcomes if one.step == "promote"), None)
    if folder is None or not (folder / "verdict.json").exists():
        return []
    found = Decision.model_validate_json((folder / "verdict.json").read_text(encoding="utf-8"))
    after = {
        "promote": "It serves now; to take it back: `prefline models rollback`.",
        "reject": "The champion stays; the table below says what got worse.",
        "inconclusive": "The champion stays; more items would tell (the reasons say how many).",
        "invalid": "The champion stays; mend what the reasons name, and run again.",
    }
    reasons = f" {found.reasons[0]}." if found.reasons else ""
    return [
        f"## Verdict: {found.verdict}",
        "",
        f"{found.candidate} against {found.against}.{reasons} {after[found.verdict]}",
        "",
    ]


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: the verdict, a line a step, and report.md below it: promote's where there is one, else evaluate's."""
    lines = [*verdict(outcomes), "| step | state | seconds | key | folder |", "|---|---|---|---|---|"]
    for outcome in outcomes:
        state = "Cached" if outcome.cached else "built"
        lines.append(
            f"| {outcome.step} | {state} | {outcome.seconds:.1f} | `{outcome.artifact.key}` | `{outcome.artifact.path}` |"
        )
    text = "\n".join(lines) + "\n"
    pages = {outcome.step: outcome.artifact.path / "report.md" for outcome in outcomes}
    for name in ("promote", "evaluate"):  # promote's has the verdict, and all that evaluate's has
        if name in pages and pages[name].exists():
            return text + "\n" + pages[name].read_text(encoding="utf-8")
    return text


def facts(artifact: Artifact) -> str:
    """Markdown: where the artifact lies, its metrics, and its rows."""
    manifest = artifact.manifest
    lines = [
        f"`{artifact.key}` in {manifest['seconds']:.1f} s on {manifest['host']}",
        "",
        f"Folder: `{artifact.path}`",
        "",
    ]
    report = artifact.path / "report.html"
    if report.exists():
        lines += [f"Report: [{report.name}]({report.as_uri()})", ""]
    if manifest["metrics"]:
        lines += ["| metric | value |", "|---|---|"]
        lines += [
            f"| {name} | {value:.6g} |" if isinstance(value, float) else f"| {name} | {value} |"
            for name, value in manifest["metrics"].items()
        ]
        lines.append("")
    rows = manifest["rows"]
    counts = [("in", name, count) for name, count in rows["in"].items()]
    counts += [("out", name, count) for name, count in rows["out"].items()]
    counts += [
        ("dropped", f"{name}: {reason}", count)
        for name, reasons in rows["dropped"].items()
        for reason, count in reasons.items()
    ]
    if counts:
        lines += [
            "| rows | of | count |",
            "|---|---|---|",
            *(f"| {way} | {name} | {count} |" for way, name, count in counts),
        ]
    return "\n".join(lines) + "\n"
