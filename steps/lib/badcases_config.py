"""The configuration of badcases: where feedback comes from, how alike cases may be, how many may come from one place."""

from __future__ import annotations

from collections import Counter
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from steps.lib.case_events import Author
from steps.lib.case_reading import CaseSource
from steps.lib.config import Neutral, Section
from steps.lib.personal import Personal


class BadcasesConfig(Section):
    """What production says of its answers, and what of it is measured and trained on."""

    sources: list[CaseSource] = Field(min_length=1)
    """Files of feedback. Events are never taken away from them: what is deleted is one more event."""
    record: Annotated[Path | None, Neutral] = None
    """The cases.parquet of an earlier run: its clusters stay on their side. Null decides every side anew: right for the first run
    only."""
    task: Annotated[Path | None, Neutral] = None
    """Task file, for expectations that name its rules."""
    salt: str = Field("prefline", min_length=1)
    """Salt of the split; another one draws other sides for new clusters."""
    holdout: int = Field(30, ge=0, le=100)
    """Percent of the new clusters that are held out."""
    user_key_env: Annotated[str, Neutral] = "PREFLINE_USER_KEY"
    """Environment variable with the key that hashes user ids; the key itself goes into no file. A mark of it goes into the key of
    the step."""
    duplicate: float = Field(0.8, gt=0, le=1)
    """Jaccard similarity of character n-grams from which one of two requests stands for both."""
    cluster: float = Field(0.4, gt=0, le=1)
    """Jaccard similarity from which two requests are one cluster."""
    guard: float = Field(0.3, gt=0, le=1)
    """Jaccard similarity to a held-out case from which a case is not trained on."""
    max_per_user: int | None = Field(5, ge=1)
    """Cases of one user, the first ones stay; null: any number."""
    max_per_tenant: int | None = Field(None, ge=1)
    """Cases of one tenant; null: any number."""
    max_per_cluster: int | None = Field(3, ge=1)
    """Cases of one cluster; null: any number."""
    alarm: int = Field(5, ge=2)
    """Cases of a cluster from which it is told when two users or fewer sent all of them."""
    few_users: Literal["tell", "hold"] = "hold"
    """hold: what users themselves corrected in such a cluster is set aside (few_users) until somebody accepts or verifies it."""
    corrections: list[Author] = ["human_expert", "human_user", "teacher"]
    """Authors whose corrections become chosen answers; one of a teacher counts only when a person verified it and the case's own
    rules hold for it."""
    models: list[str] = []
    """Names or version digests of the production models whose answers may be rejected ones; empty: every model that is named."""
    as_of: date | None = None
    """Day on which cases past their retention go; null: none goes."""
    max_chars: int = Field(200_000, ge=1000)
    """Characters of a record; a longer one is set aside."""
    max_quarantined: float | None = Field(0.5, ge=0, le=1)
    """Share of the events that may be set aside; more is an error. Null: any."""
    personal: Personal = Personal()
    """What becomes of personal data."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        twice = [name for name, count in Counter(source.name for source in self.sources).items() if count > 1]
        if twice:
            raise ValueError(f"source names {', '.join(twice)} stand twice; give each source its own name")
        if not self.guard <= self.cluster <= self.duplicate:
            raise ValueError(
                f"guard {self.guard}, cluster {self.cluster} and duplicate {self.duplicate} do not rise, but what is guarded is "
                "less alike than a cluster, and a cluster less than a copy; let guard <= cluster <= duplicate"
            )
        if self.personal.keep_raw:
            raise ValueError(
                "personal.keep_raw is true, but no personal data may leave the files of feedback; take it out"
            )
        return self
