"""``prefline run``: the whole line, through Prefect where there is something to do or somebody to show it to."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import Parameter

from flows.commands.words import Overrides, Profile, Recipe, table, terminal
from steps.lib.errors import PreflineError, Resumable

if TYPE_CHECKING:
    from rich.console import Console

    from flows.engine import Outcome, Plan
    from flows.line import AlignConfig


def run(
    *overrides: Overrides,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    only: str | None = None,
    start: Annotated[str | None, Parameter(name="--from")] = None,
    until: str | None = None,
    force: list[str] | None = None,
    strict_code: bool = False,
    dry_run: bool = False,
    gate: bool = False,
) -> None:
    """Run the line: generate, badcases, clean, pretrain, sft, pairs, reference, dpo, evaluate, promote.

    Every step that the store has already is shown as Cached. A stopped run goes on where it stopped. A run that ends is a success
    whatever the verdict; with --gate its exit code is that of the verdict.

    Parameters
    ----------
    only
        The one step to run; earlier ones must be in the store.
    start
        The first step to run; earlier ones must be in the store.
    until
        The last step to run.
    force
        Steps to build again although the store has them.
    strict_code
        Build steps again whose code changed since they were built.
    dry_run
        Only say what would be built, and what that takes, as prefline plan does. Nothing is sent.
    gate
        End with code 21 where the verdict is reject, 22 where it is inconclusive, 23 where it is invalid.
    """
    from flows.engine import Plan
    from flows.line import AlignConfig
    from steps.lib.config import layers_of, load

    config = load(
        AlignConfig, layers_of(profile, recipe or []), overrides
    ).value  # every problem, before Prefect starts
    plan = Plan.of(only, start, until, force or (), strict_code)
    if dry_run:
        from flows.commands.plan import look_ahead

        look_ahead(config, plan)
        return
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    outcomes = None if server_configured() else from_store(config, plan)
    if outcomes is None:
        words: dict[str, Any] = {
            "profile": profile,
            "overrides": list(overrides),
            "recipes": [str(path) for path in recipe or []],
            **{name: step for name, step in (("only", only), ("start", start), ("until", until)) if step},
            "force": list(force or ()),
            "strict_code": strict_code,
        }
        outcomes = through_prefect(words)
    show(outcomes)
    if gate:
        end_as_the_gate(outcomes)


def end_as_the_gate(outcomes: Sequence[Outcome]) -> None:
    """Leave with the exit code of the verdict.

    Raises:
        ConfigError: there is no verdict.
    """
    from steps.lib.errors import ConfigError
    from steps.lib.gate import EXIT, Verdict

    folder = next((one.artifact.path for one in outcomes if one.step == "promote"), None)
    if folder is None:
        raise ConfigError(
            "--gate has no verdict to end with: got a run without promote, because it was left out; run promote, or leave --gate "
            "out"
        )
    verdict = Verdict.model_validate_json((folder / "verdict.json").read_text(encoding="utf-8"))
    if code := EXIT[verdict.verdict]:
        sys.exit(code)


SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # a first start migrates its database: 20 s were too few
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # it prints every event that did not reach a server that is gone
    "PREFECT_CLIENT_MAX_RETRIES": "4",  # 30 s: a server that is started again takes 5 to 20; the default waits 60
}
"""Prefect's environment for a run from the shell; what is set already stays."""

WAY_OUT = (
    "what was finished is in the store; start the server again (prefect server start) and run the same command: it goes on "
    "where it stopped; prefline step NAME --upstream needs no server"
)


def server_configured() -> bool:
    """Whether a server is configured: environment, .env, prefect.toml, pyproject.toml or Prefect's profile.

    Only Prefect knows all of these places; the import takes a second and starts nothing.
    """
    import prefect.settings

    return bool(prefect.settings.get_current_settings().api.url)


def from_store(config: AlignConfig, plan: Plan) -> list[Outcome] | None:
    """The outcome of a run that has nothing to do; None where something is to be built."""
    from flows.engine import Engine

    class Missing(Exception):
        """A step is not in the store."""

    class Look(Engine):
        """Builds nothing."""

        def build(self, spec: Any) -> NoReturn:
            raise Missing

    engine = Look(config, plan, group=config.name)
    try:
        engine.run()
    except Missing:
        return None
    return engine.outcomes


def through_prefect(words: dict[str, Any]) -> list[Outcome]:
    """Run the flow.

    Raises:
        PreflineError: of the step that failed, or because Prefect's server cannot be reached.
    """
    import httpx
    import prefect.settings
    from prefect.exceptions import Abort

    from flows.align import align
    from flows.tasks import ServerGone

    if not server_configured() and not prefect.settings.get_current_settings().server.ephemeral.enabled:
        raise PreflineError(
            "Prefect has no server: got no PREFECT_API_URL, because PREFECT_SERVER_ALLOW_EPHEMERAL_MODE=false forbids one for "
            "this run alone; set PREFECT_API_URL, or run prefline step NAME --upstream, which needs no server"
        )
    quiet()
    try:
        outcomes: list[Outcome] = align(**words)  # type: ignore[assignment]  # a failed State comes out as its exception
        return outcomes
    except ServerGone as gone:
        if gone.error is None:
            show(gone.outcomes)
        _leave(gone.error or _unreachable(gone, "it was stopped or lost in mid-run"))
    except Abort as error:
        raise PreflineError(
            f"run was ended by Prefect's server: got {error}, because somebody cancelled or deleted it there; run the same command "
            "again to go on"
        ) from None
    except KeyboardInterrupt:
        raise Resumable(
            "run was stopped by Ctrl-C: what was finished is kept; run the same command again to go on"
        ) from None
    except httpx.TransportError as error:
        _leave(_unreachable(error, "it was stopped or lost in mid-run"))
    except RuntimeError as error:
        if not isinstance(error.__cause__, httpx.HTTPError):
            raise
        raise _unreachable(error, "none is running there") from None


def _unreachable(error: BaseException, cause: str) -> PreflineError:
    import prefect.settings

    url = prefect.settings.get_current_settings().api.url or "its own, started for this run"
    return PreflineError(
        f"Prefect's server ({url}) does not answer: got {error or type(error).__name__}, because {cause}; {WAY_OUT}"
    )


def _leave(error: PreflineError) -> NoReturn:
    """Say it as the command does, and leave at once: Prefect would try for minutes to send what nobody takes."""
    sys.stdout.flush()
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    sys.stderr.flush()
    if "prefect.server.api.server" in sys.modules:  # Prefect started a server for this run: it must not stay
        from prefect.server.api.server import SubprocessASGIServer

        SubprocessASGIServer().stop()
    os._exit(error.exit_code)


def quiet() -> None:
    """Of Prefect's own lines only the address of the run reaches the terminal: the steps speak there, and errors are said once.

    Who asks for a level (PREFECT_LOGGING_LEVEL) sees Prefect's lines too. The server gets all of them.
    """
    if "PREFECT_LOGGING_LEVEL" in os.environ:
        return

    def passes(record: logging.LogRecord) -> bool:
        return not record.name.startswith("prefect") or record.getMessage().startswith("View at ")

    for handler in logging.getLogger().handlers:
        handler.addFilter(passes)
    logging.raiseExceptions = False  # no word of lines that did not reach a server that is gone


def show(outcomes: Sequence[Outcome]) -> None:
    """The steps of the run, the headline figures, the verdict, and where the report is."""

    console = terminal(120)
    numbers = ("seconds", "rows in", "rows out", "dropped")
    columns = ("step", "state", *numbers, "artifact")
    grid = table(*columns, right=numbers, whole=columns)
    for outcome in outcomes:
        rows = outcome.artifact.manifest["rows"]
        dropped = sum(sum(reasons.values()) for reasons in rows["dropped"].values())
        counts = [sum(rows["in"].values()), sum(rows["out"].values()), dropped]
        grid.add_row(
            outcome.step,
            "[dim]Cached[/]" if outcome.cached else "[green]built[/]",
            f"{outcome.seconds:.1f}",
            *(str(count) for count in counts),
            outcome.artifact.key,
        )
    console.print(grid)
    by_step = {o.step: o.artifact.path for o in outcomes if (o.artifact.path / "manifest.json").exists()}  # fetched
    if "evaluate" in by_step:
        _figures(console, by_step["evaluate"])
    if "promote" in by_step:
        import json

        verdict = json.loads((by_step["promote"] / "verdict.json").read_text())
        console.print(f"verdict: [bold]{verdict['verdict']}[/]  {'; '.join(verdict['reasons'])}")
    if page := by_step.get("promote") or by_step.get("evaluate"):
        console.print(f"report:  {_near(page / 'report.html')}", soft_wrap=True)


def _figures(console: Console, folder: Path) -> None:
    """One line a highlighted figure: its value for every model."""

    from steps.lib import report

    found = report.read(folder)
    grid = table("held-out figure", *found.chain, right=found.chain)
    for group in found.by_figure(found.highlights):
        values = {figure.model: figure for figure in group}
        scale, unit = (100, " %") if group[0].unit == "share" else (1, "")
        digits = 1 if scale == 100 else 3
        cells = [f"{values[m].interval.value * scale:.{digits}f}{unit}" if m in values else "" for m in found.chain]
        grid.add_row(f"{group[0].label_en} {group[0].label_zh}", *cells)
    console.print(grid)


def _near(path: Path) -> Path:
    """Relative to here, where that is shorter."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
