"""Reading what others wrote: JSON, JSONL, CSV, Parquet, plain text or a hub id, in any of the known layouts.

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
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from steps.lib import formats, layouts
from steps.lib.config import Neutral, Section
from steps.lib.digests import digest_file, digest_folder
from steps.lib.errors import DataError
from steps.lib.language import detect
from steps.lib.layouts import Bad, Layout
from steps.lib.rows import Chat, Dropped, Lang, Pair, Prompt, Row, Text

R = TypeVar("R", bound=Row)
HEAD = 100
"""Rows that are looked at to find the layout."""


class Source(Section):
    """One file or hub data set to read."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the source in row ids, logs and messages; each source of a step has its own."""
    path: Annotated[Path | None, Neutral] = None
    """File: .json, .jsonl, .csv, .parquet, .txt. Its bytes go into the key, not its path."""
    hub: Annotated[str | None, Neutral] = None
    """Hub id of a data set, or a folder that ``datasets.load_dataset`` reads, in place of ``path``."""
    revision: Annotated[str | None, Neutral] = None
    """Commit, tag or branch of the hub data set; the commit it stands for goes into the key."""
    split: str = "train"
    """Split of the hub data set."""
    config_name: str | None = None
    """Configuration (subset) of the hub data set."""
    layout: Literal["auto"] | Layout = "auto"
    """Layout of the rows; ``auto`` detects it from the columns and logs what it took."""
    columns: dict[str, str] = {}
    """Names the layout expects -> names the file has, such as {prompt: question}."""
    documents: Literal["line", "blank_line"] = "line"
    """What ends a document of a plain text file: every line end, or a blank line."""
    limit: int | None = Field(default=None, ge=1)
    """Rows to take from the start; the rest is counted as dropped with reason ``limit``."""
    lang: Lang | None = None
    """Language of every row; null takes the row's own ``lang`` column, and without one detects it."""
    placeholders: dict[str, str] = {}
    """Values for placeholders such as {{name}} in the text; a row with another placeholder is rejected."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError(f"source {self.name!r} needs exactly one of path and hub")
        return self

    @property
    def where(self) -> str:
        """What messages call the source: its path or hub id."""
        return str(self.path or self.hub)


@dataclass(frozen=True)
class Rejected:
    """A row that could not be read: where it stands, why, and the row itself."""

    source: str
    file: str
    line: int
    """Line of the file; number of the row where the format has no lines. From 1."""
    field: str
    reason: str
    """Reason code, the same that the row ledger counts."""
    detail: str
    row: str
    """The row as JSON; an unreadable line as a JSON string."""
    count: int = 1
    """Rows this stands for; more than one only for ``limit``."""

    def dropped(self, step: str) -> Dropped:
        """As a row of dropped.parquet. It names the file without its folder: results do not depend on places."""
        place = f"{Path(self.file).name}:{self.line}" + (f" {self.field}" if self.field else "")
        return Dropped(
            id=f"{self.source}-{self.line}",
            source=self.source,
            step=step,
            reason=self.reason,
            detail=f"{place}: {self.detail}",
            row=self.row,
        )


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
        self._records = _records(opened.source)
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
            if not self._ids.execute("INSERT OR IGNORE INTO ids VALUES (?)", (row.id,)).rowcount:
                raise Bad("duplicate_id", "id", f"id {row.id!r} stands twice in this source")
            return row
        except Bad as bad:
            raw = record.raw if isinstance(record, formats.Unreadable) else record
            return Rejected(source.name, source.where, line, bad.field, bad.reason, bad.detail, _json(raw))

    def skip(self, count: int, ids: Iterable[str]) -> None:
        """Go behind the next ``count`` rows, which had these ids: they are parsed, but not made again."""
        self._ids.executemany("INSERT OR IGNORE INTO ids VALUES (?)", ((one,) for one in ids))
        with contextlib.suppress(StopIteration):
            for _ in range(count):
                self._next()

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
    head = [record for _, (_, record) in zip(range(HEAD), _records(source), strict=False)]
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


def read_texts(source: Source) -> Iterator[Text | Rejected]:
    """Documents of a source."""
    return iter(open_source(source, Text))


def read_prompts(source: Source) -> Iterator[Prompt | Rejected]:
    """Prompts of a source."""
    return iter(open_source(source, Prompt))


def read_chats(source: Source) -> Iterator[Chat | Rejected]:
    """Conversations of a source; each ends with an assistant turn."""
    return iter(open_source(source, Chat))


def read_pairs(source: Source) -> Iterator[Pair | Rejected]:
    """Preference pairs of a source."""
    return iter(open_source(source, Pair))


def digest(source: Source) -> str:
    """Content identity for the key: sha256 of the file or folder, or ``id@commit`` of a hub data set.

    A file's ending belongs to it: it says how the bytes are read.

    Raises:
        DataError: there is no such file, or the hub does not answer.
    """
    if source.path is not None:
        return digest_file(source.path) + source.path.suffix.lower()
    assert source.hub is not None
    if Path(source.hub).is_dir():
        return digest_folder(Path(source.hub))
    if source.revision and re.fullmatch(r"[0-9a-f]{40}", source.revision):
        return f"{source.hub}@{source.revision}"
    from huggingface_hub import HfApi

    try:
        return f"{source.hub}@{HfApi().dataset_info(source.hub, revision=source.revision).sha}"
    except (OSError, ValueError) as error:
        raise DataError(
            f"source {source.name}: hub data set {source.hub} has no commit to name: got "
            f"{type(error).__name__}: {error!s:.200}; check the id and the network, or set `revision` to a "
            "commit (40 hex digits)"
        ) from None


def _records(source: Source) -> Iterator[formats.Record]:
    return formats.records(source.path, source.documents) if source.path is not None else enumerate(_hub(source), 1)


def _hub(source: Source) -> Iterator[dict[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows = datasets.load_dataset(source.hub, name=source.config_name, revision=source.revision, split=source.split)
    except (DatasetsError, OSError, ValueError) as error:
        raise DataError(
            f"source {source.name}: hub data set {source.hub} cannot be loaded: got "
            f"{type(error).__name__}: {error!s:.200}; check id, split, config_name, network"
        ) from None
    yield from rows


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
