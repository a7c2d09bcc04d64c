"""Files of feedback as checked events, and what cannot be taken, with the reason.

What is set aside is written without its user and without personal data; of a line that is no record only its digest and size: the
raw file, whose line is named, stays where it is.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from steps.lib import sources
from steps.lib.case_events import Event
from steps.lib.case_importers import Format, events_of
from steps.lib.config import Neutral, Section
from steps.lib.errors import ConfigError, DataError
from steps.lib.lines import Unreadable
from steps.lib.personal import Personal, find
from steps.lib.personal_records import redact_json, redact_raw
from steps.lib.rows import Dropped

USER_KEYS = re.compile(r"(?i)(?:author_?)?user_?(?:id|name|hash)?|user|completed_by|end_user|customer_?id")
"""Names of values that say who somebody is."""
SPECIAL = re.compile(
    r"<\|[^|>\s]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<(?:begin|end)▁of▁sentence>"
)
"""Tokens of chat templates: in the text of a user they would begin a turn."""


class CaseSource(Section):
    """One file, or folder of files, of feedback."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the source; cases of other formats than badcase get it before their id."""
    path: Annotated[Path, Neutral]
    """JSON, JSONL or CSV, or a folder of such files of one format; the bytes go into the key."""
    format: Format = "badcase"
    """badcase: events as they are kept; the others: exports of tools, as they come."""
    model: str = ""
    """Name of the production model, where the records have none."""
    tenant: str = ""
    """Tenant, where the records have none."""
    licence: str = ""
    """Licence of the texts, where the records have none."""
    bad_below: float = 0.5
    """Value of a thumb, rating, rule or judge below which the answer counts as bad: -1 and 0 are, 1 is not."""

    @property
    def file(self) -> sources.Source:
        """Where its records are."""
        return sources.Source(name=self.name, path=self.path)


@dataclass
class Read:
    """What came in."""

    events: list[tuple[CaseSource, Event]] = field(default_factory=list)
    quarantined: list[Dropped] = field(default_factory=list)
    """Records and events that cannot be taken."""
    rows: int = 0
    """Events, and records without one."""


@dataclass(frozen=True)
class Reader:
    """How events are read.

    Args:
        personal: what becomes of personal data in what is set aside.
        key: hashes user ids; empty: records with a user cannot be taken.
        variable: environment variable of the key, for the message.
        max_chars: characters of a record.
    """

    personal: Personal
    key: bytes
    variable: str
    max_chars: int

    def read(self, wanted: Sequence[CaseSource]) -> Read:
        """Every event of every source, in their order.

        Raises:
            DataError: a file is missing or is no file of records; every one is told.
            ConfigError: a record has a user, and there is no key to hash it.
        """
        problems: list[str] = []
        for source in wanted:
            try:
                sources.checked_files(source.file)
            except DataError as error:
                problems.append(str(error))
        if problems:
            raise DataError("\n".join(problems))
        found = Read()
        for source in wanted:
            for number, line, record in sources.records_of(source.file):
                self._take(found, source, sources.numbered(source.name, number, line), record)
        return found

    def records(self, source: CaseSource, records: Iterable[Any]) -> Read:
        """Every event of records that are at hand.

        Args:
            source: where they come from; its path is not read.
            records: one JSON value each.

        Raises:
            ConfigError: a record has a user, and there is no key to hash it.
        """
        found = Read()
        for number, record in enumerate(records):
            self._take(found, source, f"{source.name}#{number}", record)
        return found

    def _take(self, found: Read, source: CaseSource, where: str, record: Any) -> None:
        if isinstance(record, Unreadable):
            raw = record.raw.encode("utf-8", "surrogatepass")
            evidence = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
            self._aside(found, source, where, record.reason, "the line is no record", evidence)
            return
        if not isinstance(record, Mapping):
            self._aside(found, source, where, "schema", f"a {type(record).__name__}, not an object", {})
            return
        if len(json.dumps(record, ensure_ascii=False, default=str)) > self.max_chars:
            self._aside(found, source, where, "too_large", f"more than {self.max_chars} characters", {"id": where})
            return
        try:
            events = list(events_of(source.format, record))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            self._aside(found, source, where, "layout", f"not a record of {source.format}: {error!s:.200}", record)
            return
        if not events:
            self._aside(found, source, where, "no_annotation", "nothing was said of it", record)
        for place, values in enumerate(events):
            self._event(found, source, where if len(events) == 1 else f"{where}/{place}", values)

    def _event(self, found: Read, source: CaseSource, where: str, values: dict[str, Any]) -> None:
        if source.format != "badcase":
            values = {
                **values,
                "case_id": f"{source.name}:{values['case_id']}",
                "event_id": f"{source.name}:{values['event_id']}",
            }
        try:
            event = Event.model_validate(values)
        except ValidationError as error:
            self._aside(found, source, where, *_told(error), values)
            return
        if reason := self._unfit(event):
            self._aside(found, source, where, *reason, values)
            return
        found.rows += 1
        found.events.append((source, self._named(source, event)))

    def _named(self, source: CaseSource, event: Event) -> Event:
        """The event with a hash in place of the user, and the source's values where it has none."""
        changed: dict[str, Any] = {"user_id": "", "source": event.source or source.name}
        if event.user_id:
            if not self.key:
                raise ConfigError(
                    f"source {source.name} has user ids and no key to hash them: got no environment variable {self.variable}, "
                    "because a user may not be named in an artifact; set it to a secret that stays the same (openssl rand -hex 32)"
                )
            changed["user_hash"] = hmac.new(self.key, event.user_id.encode(), "sha256").hexdigest()[:20]
        changed["tenant"] = event.tenant or source.tenant
        changed["licence"] = event.licence or source.licence
        if source.model and not event.model.name:
            changed["model"] = event.model.model_copy(update={"name": source.model})
        return event.model_copy(update=changed)

    def _unfit(self, event: Event) -> tuple[str, str] | None:
        """Why a sound event may not come in."""
        ids = (event.case_id, event.event_id, event.tenant, event.trace_id, event.span_id, event.source)
        for text in ids:
            if hits := find(text, self.personal.looked_for(), self.personal.fictional):
                return "personal_id", f"an id holds a {hits[0].kind}"
        texts = [turn.content for turn in event.request.messages] if event.request else []
        texts += [event.correction.text] if event.correction else []
        for text in texts:
            if special := SPECIAL.search(text):
                return "special_token", f"a text holds {special[0]!r}"
        if event.request and event.request.tools:
            return "tools", "the request has tools, which no chat row holds"
        return None

    def _aside(self, found: Read, source: CaseSource, where: str, reason: str, detail: str, record: Any) -> None:
        found.rows += 1
        clean = redact_json(_anonymous(record), self.personal)
        row = json.dumps(clean, ensure_ascii=False, default=str)
        found.quarantined.append(
            Dropped(
                id=where,
                source=source.name,
                step="badcases",
                reason=reason,
                detail=redact_raw(detail, self.personal),
                row=row.encode("utf-8", "replace").decode(),
            )
        )


def key_of(variable: str) -> bytes:
    """The key of user ids, from the environment; empty where there is none.

    Raises:
        ConfigError: it is too short to be a secret.
    """
    key = os.environ.get(variable, "").strip().encode()
    if key and len(key) < 16:
        raise ConfigError(
            f"environment variable {variable} is too short: got {len(key)} characters, because user ids could be found by trying; "
            "give at least 16 (openssl rand -hex 32)"
        )
    return key


def _told(error: ValidationError) -> tuple[str, str]:
    """Reason and place of the first thing that is wrong. The value is not told: it may be personal."""
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(map(str, first["loc"])) or "event"
    reason = "role" if place.startswith("request.messages") and place.endswith("role") else "schema"
    return reason, f"{place}: {first['msg'].removeprefix('Value error, ')}"[:300]


def _anonymous(value: Any) -> Any:
    """A record without whoever it names."""
    if isinstance(value, Mapping):
        return {
            name: "<USER>" if USER_KEYS.fullmatch(str(name)) else _anonymous(inner) for name, inner in value.items()
        }
    return [_anonymous(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def digests(wanted: Sequence[CaseSource]) -> Iterator[tuple[str, str]]:
    """Name and content of every source, for the key.

    Raises:
        DataError: every file that is missing, in one message.
    """
    problems: list[str] = []
    for source in wanted:
        try:
            yield f"source/{source.name}", sources.digest(source.file)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
