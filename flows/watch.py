"""The flow that looks after new bad cases: from a number of new clusters on, it sends the event that starts a retraining.

Run:  prefline retrain --waiting
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Completed

from flows.align import Profile
from flows.retraining import RECIPE, Retraining
from flows.tasks import failed
from steps.lib.errors import PreflineError

EVENT = "prefline.badcases.threshold"


@flow(name="watch", flow_run_name="watch-{profile}", validate_parameters=True)
def watch(
    profile: Profile = "cpu-tiny",
    overrides: list[str] = [],  # noqa: B006 - Prefect shows the default in its form
    recipes: list[str] = [RECIPE],  # noqa: B006
) -> State[Any]:
    """Count what came into the store of bad cases since the last retraining; send an event where it is enough.

    Args:
        profile: Machine and size of the run, as for retrain.
        overrides: Changes on top of the profile, such as retrain.threshold=20.
        recipes: YAML files between the profile and the overrides.
    """
    try:
        loop = Retraining.of(profile, recipes, overrides)
        found = loop.waiting()
    except PreflineError as error:
        return failed(error)
    enough = found.clusters >= loop.config.retrain.threshold or bool(found.deleted)
    counts = {"events": found.events, "clusters": found.clusters, "deleted": found.deleted}
    if enough:
        emit_event(event=EVENT, resource={"prefect.resource.id": resource(loop)}, payload=counts)
    told = f"{found.events} new events, {found.clusters} new clusters of {loop.config.retrain.threshold}"
    return Completed(name="Enough" if enough else "Waiting", message=told, data=counts)


def resource(loop: Retraining) -> str:
    """Name of a model's bad cases in Prefect's events."""
    assert loop.config.promote is not None, "Retraining.of refuses a line without it"
    return f"prefline.badcases.{loop.config.promote.name}"
