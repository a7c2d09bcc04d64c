"""What a run shows in Prefect: its configuration, its steps, and the report. These tasks are never cached."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.engine import Outcome
from flows.line import AlignConfig


@task(name="configuration", cache_policy=NO_CACHE)
def configuration(config: AlignConfig) -> None:
    """The resolved configuration as a Prefect artifact."""
    text = config.model_dump_json(indent=1)
    create_markdown_artifact(
        f"```json\n{text}\n```\n", key="configuration", description="Resolved configuration of the run"
    )


@task(name="report", cache_policy=NO_CACHE)
def summary(outcomes: Sequence[Outcome]) -> None:
    """The table of steps, and the evaluation's report where there is one, as one Prefect artifact."""
    create_markdown_artifact(table(outcomes), key="align-report", description="Steps of the run, and its report")


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a line a step, and report.md below it."""
    lines = ["| step | state | seconds | key |", "|---|---|---|---|"]
    for outcome in outcomes:
        state = "Cached" if outcome.cached else "built"
        lines.append(f"| {outcome.step} | {state} | {outcome.seconds:.1f} | `{outcome.artifact.key}` |")
    text = "\n".join(lines) + "\n"
    for outcome in outcomes:
        report = outcome.artifact.path / "report.md"
        if outcome.step == "evaluate" and report.exists():
            text += "\n" + report.read_text(encoding="utf-8")
    return text
