"""The configuration of retraining: where feedback comes from, where the loop keeps its records, and how much must be new."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

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
