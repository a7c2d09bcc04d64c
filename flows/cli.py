"""The command ``prefline``. Commands are import strings: ``--help`` loads neither torch nor prefect."""

from __future__ import annotations

import os
import select
import signal
import sys

from cyclopts import App

from steps.lib.errors import PreflineError

app = App(
    name="prefline",
    help="Teacher data, domain text and bad cases in; an aligned, evaluated and gated language model out.",
    version_flags=["--version"],
)
app.command("flows.commands.run:run", name="run", help="Run the line through Prefect; what the store has is Cached.")
app.command(
    "flows.commands.retrain:retrain", name="retrain", help="Train again on new bad cases, and promote what is better."
)
app.command("flows.commands.step:step", name="step", help="Run one step through the store, without Prefect.")
app.command(
    "flows.commands.status:status",
    name="status",
    help="What the store has for a configuration.\n\nExit code: 0 when a run would build nothing, 10 when it would.",
)
app.command(
    "flows.commands.plan:plan",
    name="plan",
    help="What a run would build, and what that takes.\n\nExit code: 0 when a run would build nothing, 10 when it would.",
)
app.command("flows.commands.why:why", name="why", help="What a key is made of, and what differs from earlier ones.")
app.command("flows.commands.show:show", name="show", help="An artifact's manifest, readable.")
app.command(
    "flows.commands.lineage:lineage", name="lineage", help="The chain behind an artifact or a registered model."
)
app.command(
    "flows.commands.verify:verify",
    name="verify",
    help="Read every byte of the store again.\n\nExit code: 0 when all are whole, 5 when one was broken.",
)
app.command("flows.commands.gc:gc", name="gc", help="What nothing refers to any more, and deleting it.")
app.command(
    "flows.commands.deploy:deploy", name="deploy", help="Deployments, schedules and automations on a Prefect server."
)
app.command("flows.commands.up:up", name="up", help="Server, workers and deployments on this machine.")
app.command("flows.commands.config:config", name="config", help="Show each value, where it came from, and its doc.")
app.command(
    "flows.commands.doctor:doctor",
    name="doctor",
    help="Whether this machine and this configuration can run.\n\nExit code: 0 when nothing must be mended, 1 when something must.",
)
prompt = App(name="prompt", help="Prompt files: which there are, and the exact messages that one makes of a row.")
prompt.command("flows.commands.prompt:render", name="render", help="The exact messages of a row, and their tokens.")
prompt.command(
    "flows.commands.prompt:list_", name="list", help="All prompt files: languages, examples, schema, digest."
)
app.command(prompt)
app.command("flows.commands.report:report", name="report", help="Where the report of a configuration lies.")
app.command("flows.commands.chat:chat", name="chat", help="Talk with models of the line, or let them answer prompts.")
models = App(
    name="models", help="Versions of a model in the registry: what they are, which one serves, and taking one out."
)
for word, place, said in (
    ("list", "models:list_", "Every version of a model, with its aliases."),
    ("show", "models:show", "A version: verdict, figures, digests, files, events."),
    ("promote", "models_move:promote", "Move an alias to a version by a person's word."),
    ("rollback", "models_move:rollback", "Move an alias back; nothing is deleted."),
    ("export", "models_export:export", "A version as plain transformers or PEFT loads it."),
    ("import", "models_import:import_", "A version of another registry becomes one of this."),
    ("prune", "models_move:prune", "Which versions and bases nothing needs any more."),
    (
        "verify",
        "models:verify",
        "Read every byte of the registry again.\n\nExit code: 0 when all is whole, 5 when something is not.",
    ),
):
    models.command(f"flows.commands.{place}", name=word, help=said)
app.command(models)
badcases = App(name="badcases", help="The store of bad cases: what came in, in which state it is, and taking it out.")
for word, said in (
    ("add", "Store events of badcase.v1 from a file or standard input."),
    ("import", "Store an export of a feedback tool."),
    ("list", "Cases, the newest first."),
    ("show", "A case: its events and the moves of its state."),
    ("triage", "Move a case to another state."),
    ("delete", "Delete the texts of a case; a tombstone stays."),
    ("stats", "Cases by state; events; what was deleted since."),
    ("export", "Write the log as JSONL, which the step badcases reads."),
    ("release", "Give back the cases that a run claimed and will not finish."),
    ("serve", "A door over HTTP: POST /badcases."),
):
    badcases.command(
        f"flows.commands.badcases:{word if word not in ('list', 'import') else word + '_'}", name=word, help=said
    )
app.command(badcases)


def main() -> None:
    """Run the command; an error of ours is a message and an exit code, not a traceback.

    Where nobody reads on (``| head``), it ends quietly, with the exit code of the signal SIGPIPE.
    """
    try:
        try:
            if (words := sys.argv[1:])[:1] == ["step"] and (name := _page_of(words)):
                from flows.commands.step import page

                page(name, words)
            else:
                app()
        except PreflineError as error:
            from rich.console import Console

            Console(stderr=True, highlight=False).print(f"[bold red]{type(error).__name__}[/]: ", end="")
            sys.stderr.write(f"{error}\n")
            sys.exit(error.exit_code)
        finally:
            if sys.stdout:
                sys.stdout.flush()  # what it raises at the end of the interpreter, nobody can catch
    except (BrokenPipeError, SystemExit) as error:
        if not _nobody_reads(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)


def _page_of(words: list[str]) -> str | None:
    """The step whose own page ``prefline step NAME --help`` asks for."""
    named = [word for word in words[1:] if not word.startswith("-")]
    return named[0] if named and {"--help", "-h"} & set(words) else None


def _nobody_reads(error: BaseException) -> bool:
    """Whether a command ended because its output is a pipe without a reader; a socket breaks with the same error."""
    if isinstance(error, SystemExit):
        return isinstance(error.__context__, BrokenPipeError)  # as rich ends a program
    out = select.poll()
    out.register(1, 0)
    return any(event & select.POLLERR for _, event in out.poll(0))


if __name__ == "__main__":
    main()
