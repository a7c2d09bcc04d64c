"""``badcase.v1``: one event of one bad case, as a line of JSON. A correction, a verdict or a deletion is one more event.

Source: EVALUATION.md section 7. Deviations:
  1. An event says neither its cluster nor its split: those are decided here, so no event can put a case into training.
  2. ``user_id`` may stand in an event in place of ``user_hash``; it is hashed with a key while it is read, and never written.
  3. ``pii`` is written, never believed: every text is searched again.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from steps.lib.case_expected import Expected
from steps.lib.rows import Message

Tag = Literal["factual", "format", "language", "refusal_over", "refusal_under", "safety", "verbosity", "tool", "style"]
Severity = Literal["critical", "major", "minor"]
Status = Literal["new", "triaged", "accepted", "rejected", "quarantined"]
Author = Literal["human_expert", "human_user", "teacher"]
SEVERITIES: tuple[Severity, ...] = ("critical", "major", "minor")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class Model(_Part):
    """The production model that answered."""

    name: str = ""
    version_digest: str = ""
    adapter_digest: str = ""
    template_digest: str = ""


class Asked(_Part):
    """What the model was asked."""

    messages: list[Message] = Field(min_length=1, max_length=200)
    tools: list[Any] = []
    params: dict[str, Any] = {}

    @model_validator(mode="after")
    def _ends_with_the_user(self) -> Asked:
        if self.messages[-1].role != "user":
            raise ValueError(f"messages end with {self.messages[-1].role!r}; the answer belongs into response")
        if any(not turn.content.strip() for turn in self.messages):
            raise ValueError("a message is empty")
        return self


class Answered(_Part):
    """What the model answered."""

    text: str = ""
    finish_reason: str = ""
    usage: dict[str, Any] = {}
    latency: float | None = Field(default=None, ge=0)
    """Seconds."""


class Signal(_Part):
    """Why somebody, or something, says that an answer was bad."""

    kind: Literal["thumb", "rating", "edit", "regenerate", "copy", "escalation", "rule", "judge"]
    value: float | None = None
    """thumb, rating, rule, judge: a number; what is below the source's ``bad_below`` is bad."""
    annotator_kind: Literal["human_user", "human_expert", "llm", "code"] = "human_user"
    confidence: float | None = Field(default=None, ge=0, le=1)

    def bad(self, below: float) -> bool:
        """Whether it says that the answer was bad. Somebody who edits, asks again or asks for a person says so without a number."""
        if self.kind in ("edit", "regenerate", "escalation"):
            return True
        return self.kind != "copy" and self.value is not None and self.value < below


class Correction(_Part):
    """A better answer."""

    text: str = Field(min_length=1)
    author_kind: Author
    verified_by: str = ""
    """Role or hash of the person who checked it; empty: nobody did."""

    @property
    def rank(self) -> int:
        """A person's own before what nobody checked: an expert's or a verified one, a user's, a teacher's."""
        return 2 if self.author_kind == "human_expert" or self.verified_by else int(self.author_kind == "human_user")


class Language(_Part):
    """Language of the request."""

    declared: str = ""
    detected: str = ""


class Event(_Part):
    """One event."""

    schema_version: Literal["badcase.v1"] = "badcase.v1"
    case_id: str = Field(min_length=1, max_length=200)
    event_id: str = Field(min_length=1, max_length=200)
    """The same event sent twice has the same one."""
    ts: str
    """When it happened: ISO 8601."""
    ingest_ts: str = ""
    source: str = Field("", max_length=200)
    trace_id: str = Field("", max_length=200)
    span_id: str = Field("", max_length=200)
    session_id: str = Field("", max_length=200)
    user_id: str = Field("", max_length=500)
    user_hash: str = Field("", max_length=64, pattern=r"^[0-9a-f]*$")
    tenant: str = Field("", max_length=200)
    lang: Language = Language()
    workload: str = Field("", max_length=200, alias="app/workload_id")
    model: Model = Model()
    request: Asked | None = None
    response: Answered | None = None
    retrieved_context_ref: str = Field("", max_length=500)
    signal: Signal | None = None
    tags: list[Tag] = []
    severity: Severity | None = None
    comment: str = ""
    correction: Correction | None = None
    expected: Expected | None = None
    pii: dict[str, Any] = {}
    consent: bool | None = None
    licence: str = Field("", max_length=200)
    status: Status | None = None
    retention_until: str = ""
    """Last day on which the case may be kept: YYYY-MM-DD."""
    deleted: bool = False

    @field_validator("ts", "ingest_ts")
    @classmethod
    def _moment(cls, value: str) -> str:
        return utc(value) if value else value

    @field_validator("retention_until")
    @classmethod
    def _day(cls, value: str) -> str:
        return date.fromisoformat(value).isoformat() if value else value

    @model_validator(mode="after")
    def _timed(self) -> Event:
        if not self.ts:
            raise ValueError("ts is empty")
        return self


def utc(moment: str) -> str:
    """A moment of ISO 8601 in UTC, so that moments sort as text; without a zone it is UTC.

    Raises:
        ValueError: it is none.
    """
    read = datetime.fromisoformat(moment)
    read = read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    return read.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
