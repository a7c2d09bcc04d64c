"""The pins of fastapi and SQLAlchemy: newer ones break prefect 3.8.8, the second in silence.

With fastapi 0.155 the server does not even import. With SQLAlchemy 2.1 it looks healthy, and schedules never make a run.
"""

from __future__ import annotations

import asyncio
import importlib
from datetime import timedelta

import pytest

pytestmark = pytest.mark.flow


def test_the_server_imports() -> None:
    assert importlib.import_module("prefect.server.api.server").create_app


def test_an_interval_schedule_makes_a_scheduled_run(prefect_harness: None) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import IntervalSchedule
    from prefect.server.services.scheduler import schedule_deployments

    @flow
    def nothing() -> None: ...

    async def scheduled() -> list[str]:
        async with get_client() as client:
            flow_id = await client.create_flow(nothing)
            every = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(minutes=10)))
            deployment = await client.create_deployment(flow_id, "every-ten-minutes", schedules=[every])
            await schedule_deployments()  # what the server's scheduler does every minute, on the same database
            runs = await client.read_flow_runs()
        return [run.state.name for run in runs if run.deployment_id == deployment and run.state]

    states = asyncio.run(scheduled())
    assert states and set(states) == {"Scheduled"}
