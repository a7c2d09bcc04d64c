"""Sources that were looked at: rows in any of the known layouts, one by one.

A bad row is handed on as ``Rejected``, with its line, field and reason; nothing is skipped in silence. A bad file stops
the step before it starts, and all bad files are named at once.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from pydantic import ValidationError

from steps.lib import layouts
from steps.lib.errors import ArtifactError, DataError
from steps.lib.formats import CSV
from steps.lib.language import detect
from steps.lib.layouts import Layout
from steps.lib.lines import Unreadable, endings
from steps.lib.rows import Row
from steps.lib.sources import Found, Rejected, Source, checked_files, count_records, numbered, printable, records_of
from steps.lib.turns import Bad

R = TypeVar("R", bound=Row)
HEAD = 100
"""Rows that are looked at to find the layout."""


@dataclass(frozen=True)
class Opened(Generic[R]):
    """A source that was looked at and can be read. It can be pickled."""

    source: Source
    kind: type[R]
    layout: Layout
    also: tuple[Layout, ...] = ()
    """Other layouts that the columns fit, where the layout was detected."""
    files: tuple[str, ...] = ()
    """Names of the files of a folder; none where the source is no folder."""
    aside: tuple[str, ...] = ()
    """Files of the folder that are not read."""

    def __str__(self) -> str:
        taken = "detected" if self.source.layout == "auto" else "as configured"
        if self.also:
            taken += f", though its columns fit {' and '.join(self.also)} too: set `layout` to have that"
        told = f"{self.source.name}: {self.source.where} as {self.kind.__name__}, layout {self.layout} ({taken})"
        if self.files:
            told += f", {len(self.files)} file{'s' if len(self.files) > 1 else ''}"
        return told + (f", not read: {printable(', '.join(self.aside)):.200}" if self.aside else "")

    def __iter__(self) -> Cursor[R]:
        """Rows in the order of the file. Ids are unique inside the source."""
        return Cursor(self)

    def behind(self, start: int, ids: Iterable[str] = ()) -> Cursor[R]:
        """What iterating gives behind the first ``start`` rows, bad ones among them; ``ids``: those that these had."""
        cursor = iter(self)
        cursor.skip(start, ids)
        return cursor

    def row(self, line: int, record: Any, number: int) -> R:
        """The row of a record.

        Args:
            line: where the record stands.
            number: of the file in a folder; 0 where there is none.

        Raises:
            Bad: it gives none.
        """
        if not isinstance(record, dict):
            if isinstance(record, Unreadable):
                raise Bad(record.reason, "", record.detail)
            raise Bad("not_object", "", f"got {type(record).__name__} {_short(record)}, where an object is needed")
        source = self.source
        if source.columns:
            record = _renamed(source, record)
        try:
            record = _ready(record, source.placeholders)
            fields = layouts.convert(self.kind, self.layout, record)
        except RecursionError:
            raise Bad("too_deep", "", "values are nested without end") from None
        given, lang = record.get("id"), source.lang or record.get("lang")
        if not given or type(given) is not str:
            if given is None or given == "":
                given = numbered(source.name, number, line)
            elif isinstance(given, (int, float)):
                given = f"{source.name}-{given}"
            else:
                raise Bad(
                    "wrong_type", "id", f"got {type(given).__name__} {_short(given)}, where text or a number is needed"
                )
        if len(given) > MAX_ID:
            raise Bad("wrong_type", "id", f"got {len(given):,} characters, where an id has {MAX_ID} at most")
        try:
            return self.kind.model_validate({
                **fields, "id": given, "source": source.name,
                "lang": lang if lang in ("zh", "en", "other") else detect(_spoken(fields)),
            })  # fmt: skip
        except ValidationError as error:
            first = error.errors()[0]
            raise Bad("wrong_type", ".".join(map(str, first["loc"])), first["msg"]) from None

    def refused(self, bad: Bad, line: int, record: Any, number: int) -> Rejected:
        """A record that gives no row, whole."""
        source, raw = self.source, record.raw if isinstance(record, Unreadable) else record
        file = self.files[number - 1] if number else source.where
        field, detail = printable(bad.field), printable(bad.detail)
        return Rejected(source.name, file, line, field, bad.reason, detail, _json(raw), number=number)

    def rest(self, rows: int) -> Rejected:
        """What stands for the rows behind the limit."""
        source = self.source
        assert source.limit is not None
        detail = f"{rows} rows after the first {source.limit} were not taken"
        return Rejected(source.name, source.where, source.limit + 1, "", "limit", detail, "{}", rows)


class Cursor(Generic[R]):
    """A walk over the rows of a source. Ids are remembered in a temporary file: memory does not grow with the rows."""

    def __init__(self, opened: Opened[R]) -> None:
        self._opened, self._limit = opened, opened.source.limit
        self._records = records_of(opened.source)
        self._taken, self._ended = 0, False
        self._ids = sqlite3.connect("", check_same_thread=False)
        self._ids.execute("PRAGMA journal_mode=OFF")
        self._ids.execute("CREATE TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R | Rejected:
        number, line, record = self._next()
        if record is _REST:
            return self._opened.rest(line - self._taken)
        try:
            row = self._opened.row(line, record, number)
            if not self._remember([row.id]):
                raise Bad("duplicate_id", "id", f"id {row.id!r} stands twice in this source")
            return row
        except Bad as bad:
            return self._opened.refused(bad, line, record, number)

    def skip(self, count: int, ids: Iterable[str]) -> None:
        """Go behind the next ``count`` rows, bad ones among them, which had these ids.

        Cost: one pass that only looks for line ends (JSONL), that reads footers (Parquet), or that reads every record but makes no
        rows; a process does it once for a file. Then up to 1,000 rows are parsed for nothing. Of Parquet the rows before the place
        in its row group are decoded. A packed file is unpacked from its beginning.
        """
        self._remember(ids)
        self._taken += count
        self._ended = self._limit is not None and self._taken > self._limit  # one row stood for all behind the limit
        self._records = records_of(self._opened.source, self._taken)

    def _remember(self, ids: Iterable[str]) -> int:
        """How many of the ids are new."""
        try:
            return self._ids.executemany("INSERT OR IGNORE INTO ids VALUES (?)", ((one,) for one in ids)).rowcount
        except sqlite3.OperationalError as error:
            raise ArtifactError(
                f"ids of source {self._opened.source.name} cannot be remembered: got {error!s}, because the folder for temporary "
                "files is full or cannot be written; make room there, or set TMPDIR to another folder"
            ) from error

    def _next(self) -> Found:
        """The next record, or once ``_REST`` for all behind the limit, with the number of the last of them."""
        if self._limit is None or self._taken < self._limit:
            record = next(self._records)
            self._taken += 1
            return record
        rows = self._taken if self._ended else count_records(self._opened.source)
        self._ended, self._records = True, iter(())  # which closes the file
        if rows <= self._taken:
            raise StopIteration
        return 0, rows, _REST


_REST = object()
MAX_ID = 1000
"""Characters of an id."""


def open_source(source: Source, kind: type[R]) -> Opened[R]:
    """Look at a source: the file can be read, and its layout gives rows of ``kind`` (Text, Prompt, Chat, Pair or Thumb).

    Raises:
        DataError: missing, not UTF-8, not what its name ends in, empty, or of no known layout.
    """
    files, aside = checked_files(source)
    head = [record for _, (_, _, record) in zip(range(HEAD), records_of(source), strict=False)]
    if not head:
        raise DataError(
            f"source {source.name} ({source.where}) is empty: got no row; give a file with rows, "
            "or take the source out of the configuration"
        )
    records = [record for record in head if isinstance(record, dict)]
    if not records:
        first = f"{head[0].detail}: {head[0].raw!r:.80}" if isinstance(head[0], Unreadable) else _short(head[0])
        raise DataError(
            f"source {source.name} ({source.where}) has no readable row: got {first} first, "
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
    folder = () if files == [source.path] else tuple(file.relative_to(str(source.path)).as_posix() for file in files)
    if source.layout == "auto":
        layout, *also = layouts.detect(kind, names, renamed) or (None,)
        if layout is None:
            cell = (
                ", because a CSV file's first line must name the columns"
                if endings(Path(source.where))[0] in CSV
                else ""
            )
            raise DataError(
                f"source {source.name} ({source.where}) gives no {kind.__name__} rows: got columns "
                f"{printable(', '.join(columns)):.300}{cell}; known layouts are {layouts.ways(kind)}; map names with `columns`"
            )
        return Opened(source, kind, layout, tuple(also), folder, tuple(aside))
    if source.layout not in fits:
        raise DataError(
            f"source {source.name} ({source.where}) cannot give {kind.__name__} rows: got layout "
            f"{source.layout}; layouts that can are {', '.join(fits)}"
        )
    return Opened(source, kind, source.layout, (), folder, tuple(aside))


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


def _ready(record: dict[str, Any], known: dict[str, str]) -> dict[str, Any]:
    """The record with its placeholders filled at every depth; text that no file can hold is refused."""
    changed = {}
    for name, value in record.items():
        kind = type(value)
        if kind is str:
            if "{{" not in value and (value.isascii() or _whole(value)):
                continue
        elif value is None or kind is int or kind is bool or kind is float:
            continue
        changed[name] = _fill(value, name, known)
    if not all(map(str.isascii, record)) and not _whole("".join(record)):
        raise Bad(
            "bad_unicode", next(name for name in record if not _whole(name)), "half of a surrogate pair in a name"
        )
    return {**record, **changed} if changed else record


def _fill(value: Any, field: str, known: dict[str, str]) -> Any:
    """``_ready`` for one value."""
    if isinstance(value, str):
        if not value.isascii() and not _whole(value):
            raise Bad("bad_unicode", field, "half of a surrogate pair: the text was cut inside a character")
        if "{{" not in value:
            return value
        unknown = set(_PLACEHOLDER.findall(value)) - set(known)
        if unknown:
            names = ", ".join(sorted(unknown))
            raise Bad("placeholder", field, f"no value for {names}; set `placeholders` of the source")
        return _PLACEHOLDER.sub(lambda found: known[found[1]], value)
    if isinstance(value, list):
        return [_fill(item, field, known) for item in value]
    if isinstance(value, dict):
        return {_fill(name, field, known): _fill(item, field, known) for name, item in value.items()}
    return value


def _whole(text: str) -> bool:
    """Whether a text has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_PLACEHOLDER = re.compile(r"\{\{\s*([^\W\d](?:[\w '-]{0,60}\w)?)\s*\}\}")
"""{{name}}, {{订单号}}, {{Order Number}}: letters of any script, and between them spaces, dashes and apostrophes. A dot is left to
code: ``${{ secrets.TOKEN }}`` is no gap in a text."""


def _spoken(fields: dict[str, Any]) -> str:
    """The text whose language is the row's: no system turn."""
    if "text" in fields or "prompt" in fields and isinstance(fields["prompt"], str):
        return str(fields.get("text", fields.get("prompt")))
    turns = fields.get("messages") or [*fields["prompt"], *fields.get("chosen", ()), *fields.get("completion", ())]
    return "\n".join(turn.content for turn in turns if turn.role != "system")


def _short(value: Any) -> str:
    """The beginning of a value, for a message."""
    try:
        return f"{value!r:.40}"
    except RecursionError:
        return "..."


def _json(record: Any) -> str:
    """JSON that UTF-8 can hold, whatever the record is."""
    try:
        text = json.dumps(record, ensure_ascii=False, default=str)
    except (RecursionError, ValueError, TypeError):
        text = json.dumps(f"a {type(record).__name__} that JSON cannot hold")
    return text.encode("utf-8", "backslashreplace").decode()
