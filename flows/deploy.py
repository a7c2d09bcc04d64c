"""Deployments, schedules, automations, work pools and limits, as code. Deploying again replaces all of them.

Two pools of the kind process: ``prefline`` runs what trains, with as many runs at once as there are devices;
``prefline-desk`` runs what only looks, and never waits behind a training. All is set from one configuration (section ``retrain``).

Source: Prefect 3.8.8; measured behaviour in docs/prefect.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.runner.storage import LocalStorage
from prefect.schedules import Cron, Interval
from prefect.types.entrypoint import EntrypointType

from flows.align import align
from flows.line import STEPS
from flows.retrain import retrain
from flows.retraining import RECIPE, Retraining
from flows.watch import EVENT, resource, watch

if TYPE_CHECKING:
    from prefect.flows import Flow

POOL, DESK = "prefline", "prefline-desk"
HEARTBEAT = 60
"""Seconds between two heartbeats of a flow run; workers hand it on (PREFECT_FLOWS_HEARTBEAT_FREQUENCY)."""
SILENCE = 4 * HEARTBEAT
"""Seconds without a heartbeat after which a run is called crashed; with less than three heartbeats healthy runs are, too."""
RETRAIN = "prefline: retrain on new bad cases"
ZOMBIES = "prefline: runs that died"


@dataclass(frozen=True)
class Deployed:
    """What stands in Prefect now."""

    deployments: tuple[str, ...]
    """``flow/deployment``."""
    automations: tuple[str, ...]
    pools: tuple[str, ...]
    active: bool
    """Whether schedules start runs."""


def deploy(
    profile: str,
    recipes: Sequence[str] = (),
    overrides: Sequence[str] = (),
    *,
    slots: int = 1,
    active: bool = False,
    root: Path | None = None,
) -> Deployed:
    """Make or replace everything.

    Args:
        profile: default of the forms.
        recipes: defaults of the forms; retrain's own recipe comes before them where it runs.
        overrides: defaults of the forms.
        slots: runs that may train at once: one a device.
        active: whether the schedules start runs now.
        root: folder of the project, in which runs work; None: this one.

    Raises:
        ConfigError: every problem of the configuration.
    """
    again = [RECIPE, *recipes]
    loop = Retraining.of(profile, again, overrides)
    settings = loop.config.retrain
    folder = (root or Path.cwd()).resolve()
    with get_client(sync_client=True) as client:
        for name, most in ((POOL, slots), (DESK, None)):
            try:
                client.read_work_pool(name)
                client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=most))
            except ObjectNotFound:
                client.create_work_pool(WorkPoolCreate(name=name, type="process", concurrency_limit=most))
    words = {"profile": profile, "overrides": list(overrides), "recipes": list(recipes)}
    loops = {**words, "recipes": again}
    limit = ConcurrencyLimitConfig(
        limit=1,
        collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        if settings.overlap == "cancel"
        else ConcurrencyLimitStrategy.ENQUEUE,
    )
    made = [
        _made(align, "align", folder, words, description="The whole line, from teacher data to the gate."),
        _made(align, "evaluate", folder, {**words, "until": "evaluate"}, description="The line up to the report."),
        *(
            _made(align, name, folder, {**words, "only": name}, description=f"The step {name} alone.", tags=["step"])
            for name in STEPS
            if name != "evaluate"
        ),
        _made(
            retrain,
            "retrain",
            folder,
            loops,
            description="New bad cases to a gated model.",
            schedule=Cron(settings.schedule, timezone=settings.timezone),
            active=active,
            limit=limit,
        ),
        _made(
            watch,
            "watch",
            folder,
            loops,
            pool=DESK,
            description="Counts new bad cases, and starts a retraining.",
            schedule=Interval(timedelta(minutes=settings.watch_minutes)),
            active=active,
            limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        ),
    ]
    ids = {one.name: one.apply() for one in made}
    automations = (_on_new_cases(resource(loop), ids["retrain"]), _on_silence())
    for automation in automations:
        _replace(automation)
    names = tuple(f"{one.flow_name}/{one.name}" for one in made)
    return Deployed(names, tuple(one.name for one in automations), (POOL, DESK), active)


def _made(
    flow: Flow[..., Any],
    name: str,
    root: Path,
    parameters: dict[str, Any],
    *,
    pool: str = POOL,
    description: str,
    schedule: Any = None,
    active: bool = True,
    limit: ConcurrencyLimitConfig | None = None,
    tags: Sequence[str] = (),
) -> RunnerDeployment:
    """A deployment whose runs work in the project's folder, with its installed code."""
    made = RunnerDeployment.from_flow(
        flow,
        name=name,
        parameters=parameters,
        description=description,
        work_pool_name=pool,
        schedule=schedule,
        paused=schedule is not None and not active,
        concurrency_limit=limit,
        tags=["prefline", *tags],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    made.storage = LocalStorage(path=str(root))
    return made


def _on_new_cases(name: str, deployment: Any) -> AutomationCore:
    return AutomationCore(
        name=RETRAIN,
        description="Starts retrain when the flow watch found enough new clusters of bad cases.",
        trigger=EventTrigger(
            expect={EVENT},
            match={"prefect.resource.id": name},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[RunDeployment(source="selected", deployment_id=deployment)],
    )


def _on_silence() -> AutomationCore:
    return AutomationCore(
        name=ZOMBIES,
        description="A run whose process died without a word is called crashed, so that its slot is free again.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENCE),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"no heartbeat for {SILENCE} s: its process died, or its machine went away; run it again to go on",
            )
        ],
    )


def _replace(automation: AutomationCore) -> None:
    with get_client(sync_client=True) as client:
        for old in client.read_automations_by_name(automation.name):
            client.delete_automation(old.id)
        client.create_automation(automation)
