"""Sources that were looked at: rows in any of the known layouts, one by one.

A bad row is handed on as ``Rejected``, with its line, field and reason; nothing is skipped in silence. A bad file stops
the step before it starts, and all bad files are named at once.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from pydantic import ValidationError

from steps.lib import formats, layouts
from steps.lib.errors import ArtifactError, DataError
from steps.lib.language import detect
from steps.lib.layouts import Bad, Layout
from steps.lib.rows import Row
from steps.lib.sources import Rejected, Source, records_of

R = TypeVar("R", bound=Row)
HEAD = 100
"""Rows that are looked at to find the layout."""


@dataclass(frozen=True)
class Opened(Generic[R]):
    """A source that was looked at and can be read."""

    source: Source
    kind: type[R]
    layout: Layout

    def __str__(self) -> str:
        taken = "detected" if self.source.layout == "auto" else "as configured"
        return f"{self.source.name}: {self.source.where} as {self.kind.__name__}, layout {self.layout} ({taken})"

    def __iter__(self) -> Cursor[R]:
        """Rows in the order of the file. Ids are unique inside the source."""
        return Cursor(self)

    def behind(self, skip: int, ids: Iterable[str]) -> Iterator[R | Rejected]:
        """What comes behind the first ``skip`` rows, which had these ids."""
        cursor = iter(self)
        cursor.skip(skip, ids)
        return cursor

    def row(self, line: int, record: Any) -> R:
        """The row of a record.

        Raises:
            Bad: it gives none.
        """
        if isinstance(record, formats.Unreadable):
            raise Bad(record.reason, "", record.detail)
        if not isinstance(record, dict):
            raise Bad("not_object", "", f"got {type(record).__name__} {record!r:.40}, where an object is needed")
        renamed = _renamed(self.source, record)
        record = {name: _fill(value, name, self.source.placeholders) for name, value in renamed.items()}
        fields = layouts.convert(self.kind, self.layout, record)
        given, lang = record.get("id"), self.source.lang or record.get("lang")
        if not isinstance(given, str) or not given:
            given = f"{self.source.name}-{line if given in (None, '') else given}"
        try:
            return self.kind.model_validate({
                **fields, "id": given, "source": self.source.name,
                "lang": lang if lang in ("zh", "en", "other") else detect(_spoken(fields)),
            })  # fmt: skip
        except ValidationError as error:
            first = error.errors()[0]
            raise Bad("wrong_type", ".".join(map(str, first["loc"])), first["msg"]) from None


class Cursor(Generic[R]):
    """A walk over the rows of a source. Ids are remembered in a temporary file: memory does not grow with the rows."""

    def __init__(self, opened: Opened[R]) -> None:
        self._opened, self._limit = opened, opened.source.limit
        self._records = records_of(opened.source)
        self._taken = self._rest = 0
        self._ids = sqlite3.connect("", check_same_thread=False)
        self._ids.execute("PRAGMA journal_mode=OFF")
        self._ids.execute("CREATE TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R | Rejected:
        source = self._opened.source
        line, record = self._next()
        if record is _REST:
            detail = f"{self._rest} rows after the first {self._limit} were not taken"
            return Rejected(source.name, source.where, line, "", "limit", detail, "{}", self._rest)
        try:
            row = self._opened.row(line, record)
            if not self._remember([row.id]):
                raise Bad("duplicate_id", "id", f"id {row.id!r} stands twice in this source")
            return row
        except Bad as bad:
            raw = record.raw if isinstance(record, formats.Unreadable) else record
            return Rejected(source.name, source.where, line, bad.field, bad.reason, bad.detail, _json(raw))

    def skip(self, count: int, ids: Iterable[str]) -> None:
        """Go behind the next ``count`` rows, which had these ids: they are parsed, but not made again."""
        self._remember(ids)
        with contextlib.suppress(StopIteration):
            for _ in range(count):
                self._next()

    def _remember(self, ids: Iterable[str]) -> int:
        """How many of the ids are new."""
        try:
            return self._ids.executemany("INSERT OR IGNORE INTO ids VALUES (?)", ((one,) for one in ids)).rowcount
        except sqlite3.OperationalError as error:
            raise ArtifactError(
                f"ids of source {self._opened.source.name} cannot be remembered: got {error!s}, because the folder for temporary "
                "files is full or cannot be written; make room there, or set TMPDIR to another folder"
            ) from error

    def _next(self) -> formats.Record:
        """The next record, or once ``_REST`` for all behind the limit."""
        if self._limit is None or self._taken < self._limit:
            record = next(self._records)
            self._taken += 1
            return record
        self._rest = sum(1 for _ in self._records)
        if not self._rest:
            raise StopIteration
        return self._taken + 1, _REST


_REST = object()


def open_source(source: Source, kind: type[R]) -> Opened[R]:
    """Look at a source: the file can be read, and its layout gives rows of ``kind`` (Text, Prompt, Chat, Pair or Thumb).

    Raises:
        DataError: missing, not UTF-8, not what its name ends in, empty, or of no known layout.
    """
    if source.path is not None:
        formats.check(source.path)
    head = [record for _, (_, record) in zip(range(HEAD), records_of(source), strict=False)]
    if not head:
        raise DataError(
            f"source {source.name} ({source.where}) is empty: got no row; give a file with rows, "
            "or take the source out of the configuration"
        )
    records = [record for record in head if isinstance(record, dict)]
    if not records:
        raise DataError(
            f"source {source.name} ({source.where}) has no readable row: got {head[0]!s:.120} first, "
            f"because none of its first {len(head)} rows is an object; check the file's format"
        )
    columns = list(dict.fromkeys(str(name) for record in records for name in record))
    strange = sorted(set(source.columns.values()) - set(columns))
    if strange:
        raise DataError(
            f"source {source.name} ({source.where}) has no column {', '.join(strange)}, which its "
            f"`columns` names: got {', '.join(columns)}; correct `columns`"
        )
    renamed = [_renamed(source, record) for record in records]
    names = {name for record in renamed for name in record}
    fits = layouts.FITS[kind]
    if source.layout == "auto":
        layout = layouts.detect(kind, names, renamed[0])
        if layout is None:
            cell = ", because a CSV file's first line must name the columns" if source.where.endswith(".csv") else ""
            raise DataError(
                f"source {source.name} ({source.where}) gives no {kind.__name__} rows: got columns "
                f"{', '.join(columns):.300}{cell}; known layouts are {layouts.ways(kind)}; map names with `columns`"
            )
        return Opened(source, kind, layout)
    if source.layout not in fits:
        raise DataError(
            f"source {source.name} ({source.where}) cannot give {kind.__name__} rows: got layout "
            f"{source.layout}; layouts that can are {', '.join(fits)}"
        )
    return Opened(source, kind, source.layout)


def open_sources(asked: Sequence[tuple[Source, type[Any]]]) -> list[Opened[Any]]:
    """``open_source`` for several.

    Raises:
        DataError: every problem of every source, in one message.
    """
    opened: list[Opened[Any]] = []
    problems: list[str] = []
    for source, kind in asked:
        try:
            opened.append(open_source(source, kind))
        except DataError as error:
            problems.append(str(error))
    if problems:
        head = "" if len(problems) == 1 else f"{len(problems)} problems in the data sources:\n"
        raise DataError(head + "\n".join(problems))
    return opened


def _renamed(source: Source, record: dict[str, Any]) -> dict[str, Any]:
    theirs = {name: ours for ours, name in source.columns.items()}
    return {theirs.get(name, name): value for name, value in record.items()}


def _fill(value: Any, field: str, known: dict[str, str]) -> Any:
    """Fill {{placeholders}} at every depth, and refuse text that no file can hold."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise Bad("bad_unicode", field, "half of a surrogate pair: the text was cut inside a character")
        unknown = set(_PLACEHOLDER.findall(value)) - set(known) if "{{" in value else set()
        if unknown:
            names = ", ".join(sorted(unknown))
            raise Bad("placeholder", field, f"no value for {names}; set `placeholders` of the source")
        return _PLACEHOLDER.sub(lambda found: known[found[1]], value) if "{{" in value else value
    if isinstance(value, list):
        return [_fill(item, field, known) for item in value]
    if isinstance(value, dict):
        return {name: _fill(item, field, known) for name, item in value.items()}
    return value


_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")


def _spoken(fields: dict[str, Any]) -> str:
    """The text whose language is the row's: no system turn."""
    if "text" in fields or "prompt" in fields and isinstance(fields["prompt"], str):
        return str(fields.get("text", fields.get("prompt")))
    turns = fields.get("messages") or [*fields["prompt"], *fields.get("chosen", ()), *fields.get("completion", ())]
    return "\n".join(turn.content for turn in turns if turn.role != "system")


def _json(record: Any) -> str:
    """JSON that UTF-8 can hold, whatever the record is."""
    text = json.dumps(record, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode()
