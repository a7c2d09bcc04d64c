"""The configuration of retraining: where feedback comes from, where the loop keeps its records, and how much must be new."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator

from steps.lib.config import Section


class RetrainConfig(Section):
    """Retraining on new bad cases (flow ``retrain``). It decides which events the step badcases reads, and no key by itself."""

    feedback: str = Field("data/badcases.sqlite", min_length=1)
    """Store of bad cases (docs/badcase_store.md): a SQLite file, or the address of a PostgreSQL database. It serves one model."""
    folder: Path = Path("data/retrain")
    """Folder of the loop's records, a folder a run; whoever retrains that model shares it."""
    min_clusters: int = Field(0, ge=0)
    """Clusters that must be new since the last run; with fewer a run ends at once, unless a case that was trained on was deleted.
    0: any new event is enough."""
    threshold: int = Field(10, ge=1)
    """New clusters from which the flow ``watch`` sends the event that starts a retraining."""
    schedule: str = Field("0 3 * * *", pattern=r"^\S+( \S+){4}$")
    """Cron: when the deployment ``retrain`` is started (``prefline deploy``)."""
    timezone: str = "UTC"
    """Time zone of the schedule, such as Asia/Shanghai."""
    watch_minutes: int = Field(10, ge=1)
    """Minutes between two looks of the deployment ``watch``."""
    overlap: Literal["cancel", "queue"] = "cancel"
    """What becomes of a retraining that is to start while another one goes: cancel (what is new waits for the next) or queue."""

    @field_validator("timezone")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(
                f"{value!r} is no time zone; take a name such as UTC, Asia/Shanghai or Europe/Berlin"
            ) from None
        return value
