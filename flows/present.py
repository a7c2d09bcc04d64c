"""What a run shows in Prefect: its configuration, the steps that it built, and the report. These tasks are never cached."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from flows.engine import Outcome
from flows.line import AlignConfig
from steps.lib.artifact import Artifact


@task(name="configuration", cache_policy=NO_CACHE)
def configuration(config: AlignConfig, tags: Sequence[str]) -> None:
    """The resolved configuration as a Prefect artifact, and the run's tags."""
    run = FlowRunContext.get()
    if run and run.flow_run:
        run.client.update_flow_run(run.flow_run.id, tags=sorted({*run.flow_run.tags, *tags}))
    text = config.model_dump_json(indent=1)
    create_markdown_artifact(
        f"```json\n{text}\n```\n", key="configuration", description="Resolved configuration of the run"
    )


@task(name="report", cache_policy=NO_CACHE)
def summary(outcomes: Sequence[Outcome]) -> None:
    """The table of steps, and the evaluation's report where there is one, as one Prefect artifact."""
    create_markdown_artifact(table(outcomes), key="align-report", description="Steps of the run, and its report")


def step(artifact: Artifact) -> None:
    """What a step built, on the page of its task run. Called in the task: this is one call of the server's API."""
    name = artifact.key.partition("/")[0]
    create_markdown_artifact(facts(artifact), key=name, description=f"What {name} built")


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a line a step, and report.md below it."""
    lines = ["| step | state | seconds | key | folder |", "|---|---|---|---|---|"]
    for outcome in outcomes:
        state = "Cached" if outcome.cached else "built"
        lines.append(
            f"| {outcome.step} | {state} | {outcome.seconds:.1f} | `{outcome.artifact.key}` | `{outcome.artifact.path}` |"
        )
    text = "\n".join(lines) + "\n"
    for outcome in outcomes:
        report = outcome.artifact.path / "report.md"
        if outcome.step == "evaluate" and report.exists():
            text += "\n" + report.read_text(encoding="utf-8")
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
