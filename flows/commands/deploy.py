"""``prefline deploy``: deployments, schedules, automations, work pools and limits."""

from __future__ import annotations

import os
from typing import Annotated

from cyclopts import Parameter

from flows.commands.words import Overrides, Profile, Recipe, table, terminal

Slots = Annotated[int, Parameter(help="Runs that may train at once: one a device.")]
Active = Annotated[bool, Parameter(help="Let the schedules start runs; without it they are there, and paused.")]


def deploy(
    *overrides: Overrides,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    slots: Slots = 1,
    active: Active = False,
) -> None:
    """Tell the Prefect server of PREFECT_API_URL about all flows, with their forms, schedules, automations and limits.

    Runs work in this folder, on whatever machine a worker runs in it: prefect worker start --pool prefline. Deploying again
    replaces everything. Schedules and thresholds are in the section retrain of the configuration.
    """
    from flows.commands.run import SETTINGS, server_configured
    from steps.lib.errors import ConfigError

    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if not server_configured():
        raise ConfigError(
            "deploy has no server: got no PREFECT_API_URL, because deployments live there; set it, or run prefline up, "
            "which starts one"
        )
    from flows.deploy import deploy as put

    done = put(profile, [str(path) for path in recipe or []], overrides, slots=slots, active=active)
    console = terminal()
    grid = table("deployment", "pool")
    for name in done.deployments:
        grid.add_row(name, done.pools[1] if name.startswith("watch/") else done.pools[0])
    console.print(grid)
    console.print(f"automations: {'; '.join(done.automations)}")
    console.print("schedules start runs" if done.active else "schedules are paused; --active lets them start runs")
    console.print(
        f"next: prefect worker start --pool {done.pools[0]} (and --pool {done.pools[1]}), on machines with this folder"
    )
