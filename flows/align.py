"""The flow that people trigger: the whole line through Prefect.

Run:  prefline run --profile cpu-tiny
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from flows.engine import Outcome, Plan
from flows.line import AlignConfig
from flows.tasks import PrefectEngine, failed
from steps.lib.config import layers_of, load
from steps.lib.errors import PreflineError

Profile = Literal["cpu-tiny", "cpu-small", "gpu-24gb", "gpu-80gb", "gpu-8x80gb"]
Step = Literal[
    "generate",
    "badcases",
    "correct",
    "clean",
    "base",
    "pretrain",
    "sft",
    "pairs",
    "reference",
    "dpo",
    "kto",
    "reward",
    "rl",
    "evaluate",
    "promote",
]

WHOLE = ("all", "first", "last")
"""What the form says where no step is chosen: a choice without one would be a text box there."""


@flow(name="align", flow_run_name="align-{profile}", validate_parameters=True)
def align(
    profile: Profile = "cpu-tiny",
    overrides: list[str] = [],  # noqa: B006 - Prefect shows the default in its form
    recipes: list[str] = [],  # noqa: B006
    only: Literal["all", Step] = "all",
    start: Literal["first", Step] = "first",
    until: Literal["last", Step] = "last",
    force: list[Step] = [],  # noqa: B006
    strict_code: bool = False,
) -> list[Outcome] | State[Any]:
    """Teacher data to a gated model: generate, badcases, clean, pretrain, sft, pairs, reference, dpo (or kto), evaluate, promote.

    Args:
        profile: Machine and size of the run.
        overrides: Changes on top of the profile, such as dpo.beta=0.05.
        recipes: YAML files between the profile and the overrides.
        only: The one step to run, or all; earlier ones must be in the store.
        start: The first step to run; earlier ones must be in the store.
        until: The last step to run.
        force: Steps to build again although the store has them.
        strict_code: Build steps again whose code changed since they were built.
    """
    try:
        config = load(AlignConfig, layers_of(profile, [Path(recipe) for recipe in recipes]), overrides).value
        alone, first, last = (None if name in WHOLE else name for name in (only, start, until))
        plan = Plan.of(alone, first, last, force, strict_code)
    except PreflineError as error:
        return failed(error)
    engine = PrefectEngine(
        config,
        plan,
        group=f"{config.name}-{flow_run.get_id() or 'local'}",
        tags=(profile, config.name),
        title=f"{alone or 'align'}-{profile}-{config.name}",
    )
    problem = engine.walk()
    engine.leave(problem)
    if problem:
        return failed(problem)
    return engine.outcomes
