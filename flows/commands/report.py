"""``prefline report``: where the report of a configuration lies, and its text."""

from __future__ import annotations

from flows.commands.words import Overrides, Profile, Recipe


def report(*overrides: Overrides, profile: Profile = "cpu-tiny", recipe: Recipe = None, text: bool = False) -> None:
    """Print the path of the report that this configuration has in the store: with its verdict, where promote wrote one.

    Parameters
    ----------
    text
        Print report.md instead of the path of report.html; on a terminal its tables are drawn.
    """
    import sys

    from flows.engine import Engine, Plan
    from flows.line import STEPS, AlignConfig
    from flows.plan import walk
    from steps.lib.config import layers_of, load

    config = load(AlignConfig, layers_of(profile, recipe or []), overrides).value
    engine = Engine(config, Plan(start=STEPS[-1], until="evaluate"))
    engine.run()
    folder = engine.outcomes[-1].artifact.path
    for look in walk(config, engine.store):
        if look.step == "promote" and look.there and look.artifact:
            decided = engine.store.fetch(look.artifact, alone=True).path
            folder = decided if (decided / "report.html").exists() else folder
    if not text:
        print(folder / "report.html")
    elif sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown((folder / "report.md").read_text(encoding="utf-8")))
    else:
        print((folder / "report.md").read_text(encoding="utf-8"))
