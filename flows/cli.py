"""The command ``prefline``. Commands are import strings: ``--help`` loads neither torch nor prefect."""

from __future__ import annotations

import sys

from cyclopts import App

from steps.lib.errors import PreflineError

app = App(
    name="prefline",
    help="Teacher data, domain text and bad cases in; an aligned, evaluated and gated language model out.",
    version_flags=["--version"],
)
app.command("flows.commands.run:run", name="run", help="Run the line through Prefect; what the store has is Cached.")
app.command("flows.commands.step:step", name="step", help="Run one step through the store, without Prefect.")
app.command("flows.commands.config:config", name="config", help="Show each value, where it came from, and its doc.")
app.command("flows.commands.report:report", name="report", help="Where the report of a configuration lies.")
app.command("flows.commands.registry:registry", name="registry", help="Versions of a model, its champion, rollback.")


def main() -> None:
    """Run the command; an error of ours is a message and an exit code, not a traceback."""
    try:
        app()
    except PreflineError as error:
        from rich.console import Console

        Console(stderr=True, highlight=False).print(f"[bold red]{type(error).__name__}[/]: ", end="")
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
