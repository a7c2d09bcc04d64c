"""The flow that turns the loop: new bad cases -> data -> training -> gate -> promote or keep.

Run:  prefline retrain --profile cpu-tiny
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows import present
from flows.align import Profile
from flows.engine import Plan
from flows.retraining import RECIPE, Result, Retraining
from flows.tasks import PrefectEngine, failed
from steps.lib.errors import PreflineError


@flow(name="retrain", flow_run_name="retrain-{profile}", validate_parameters=True)
def retrain(
    profile: Profile = "cpu-tiny",
    overrides: list[str] = [],  # noqa: B006 - Prefect shows the default in its form
    recipes: list[str] = [RECIPE],  # noqa: B006
) -> Result | State[Any]:
    """Train again on the bad cases that came since the last run, measure against the champion, and promote what is better.

    Args:
        profile: Machine and size of the run.
        overrides: Changes on top of the profile, such as retrain.min_clusters=5.
        recipes: YAML files between the profile and the overrides.
    """
    try:
        loop = Retraining.of(profile, recipes, overrides)
        with loop.turn() as turn:
            if turn is None:
                return Completed(name="NothingNew", message=loop.why)
            name = f"{turn.taken.run}-{flow_run.get_id() or 'local'}"
            engine = PrefectEngine(
                turn.config,
                Plan(),
                group=name,
                tags=(profile, turn.config.name, turn.taken.run),
                title=f"{turn.taken.run}-{profile}-{turn.config.name}",
            )
            problem = engine.walk()
            result = None if problem else turn.finish(engine.outcomes)
            if result:
                engine.show(present.told, result)
            engine.leave(problem)
    except PreflineError as error:
        return failed(error)
    return result if result else failed(problem)  # type: ignore[arg-type]
