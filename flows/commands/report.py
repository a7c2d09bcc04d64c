"""``prefline report``: where the report of a configuration lies, and its text."""

from __future__ import annotations

from pathlib import Path


def report(*overrides: str, profile: str = "cpu-tiny", recipe: list[Path] | None = None, text: bool = False) -> None:
    """Print the path of the report that this configuration has in the store.

    Parameters
    ----------
    overrides
        Changes on top of the files, such as seed=1.
    profile
        Machine and size: the name of a file in configs/profiles.
    recipe
        YAML files between the profile and the overrides.
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
