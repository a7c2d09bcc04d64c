"""``prefline report``: where the report of a configuration lies, and its text."""

from __future__ import annotations

from flows.commands.words import Overrides, Profile, Recipe


def report(*overrides: Overrides, profile: Profile = "cpu-tiny", recipe: Recipe = None, text: bool = False) -> None:
    """Print the path of the report that this configuration has in the store.

    Parameters
    ----------
    text
        Print report.md instead of the path of report.html.
    """
    from flows.engine import Engine, Plan
    from flows.line import STEPS, AlignConfig
    from steps.lib.config import layers_of, load

    config = load(AlignConfig, layers_of(profile, recipe or []), overrides).value
    engine = Engine(config, Plan(start=STEPS[-1], until="evaluate"))
    engine.run()
    folder = engine.outcomes[-1].artifact.path
    print((folder / "report.md").read_text(encoding="utf-8") if text else folder / "report.html")
