"""What others wrote and steps read: a file, a folder of files, or a hub id; its identity, its records, its bad rows.

``opened`` makes rows of the records, in any of the known layouts.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from steps.lib import file_check, formats, lines
from steps.lib.config import Added, Neutral, Section
from steps.lib.digests import digest_files, digest_folder, digest_text
from steps.lib.errors import DataError
from steps.lib.layouts import Layout
from steps.lib.rows import Dropped, Lang


class Source(Section):
    """One file or hub data set to read."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the source in row ids, logs and messages; each source of a step has its own."""
    path: Annotated[Path | None, Neutral] = None
    """File, or folder of files of one format: .json, .jsonl, .csv, .tsv, .parquet, .txt, .md; all but .parquet also .gz, .bz2,
    .xz or .zst. The bytes go into the key, not the path; of a folder also the names inside it."""
    files: Annotated[str | None, Added] = None
    """Pattern of the files of a folder to read, such as ``*.jsonl`` or ``train/*.parquet``; null takes all, which must be of one
    format."""
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
    documents: formats.Documents = "line"
    """What ends a document of a plain text file: every line end, a blank line, or the file's end."""
    delimiter: Annotated[str | None, Added] = Field(default=None, min_length=1, max_length=1)
    """What stands between the cells of a CSV file; null looks for a comma, tab, semicolon or bar."""
    limit: int | None = Field(default=None, ge=1)
    """Rows to take from the start; the rest is counted as dropped with reason ``limit``."""
    lang: Lang | None = None
    """Language of every row; null takes the row's own ``lang`` column, and without one detects it."""
    placeholders: dict[str, str] = {}
    """Values for placeholders such as {{name}}, {{订单号}} or {{Order Number}}; a row with another placeholder is rejected."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError(f"source {self.name!r} needs exactly one of path and hub")
        return self

    @property
    def way(self) -> formats.Way:
        """How its files are read."""
        return formats.Way(self.documents, self.delimiter)

    @property
    def where(self) -> str:
        """What messages call the source: its path or hub id."""
        return str(self.path or self.hub)


@dataclass(frozen=True)
class Rejected:
    """A row that could not be read: where it stands, why, and the row itself."""

    source: str
    file: str
    """The source's file; of a folder the name inside it."""
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
    number: int = 0
    """Number of the file in a folder, from 1; 0 where the source is none."""

    def dropped(self, step: str) -> Dropped:
        """As a row of dropped.parquet. It names the file without its folder: results do not depend on places."""
        name = self.file if self.number else Path(self.file).name
        place = f"{printable(name)}:{self.line}" + (f" {self.field}" if self.field else "")
        return Dropped(
            id=numbered(self.source, self.number, self.line),
            source=self.source,
            step=step,
            reason=self.reason,
            detail=f"{place}: {self.detail}",
            row=self.row,
        )


def numbered(name: str, number: int, line: int) -> str:
    """The id of a row without one: the source's name and line, and between them the number of the file in a folder."""
    return f"{name}-{number}-{line}" if number else f"{name}-{line}"


def printable(text: str) -> str:
    """Text for messages: what UTF-8 cannot hold, and line ends, are written as escapes."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return plain if plain.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in plain)


def files_of(source: Source) -> tuple[list[Path], list[str]]:
    """The files of a source with a path, in the order of their names, and the names of what lies beside them and is not read.

    Raises:
        DataError: a folder without a file, with files of several formats, or with a link to another folder.
    """
    assert source.path is not None
    if not _is_folder(source.path):
        if source.files is not None and source.path.exists():
            raise DataError(
                f"source {source.name} cannot look for files: got {source.path}, which is one file, and `files: {source.files}`; "
                "name a folder, or leave `files` out"
            )
        return [source.path], []
    inside = _inside(source.path)
    if source.files is not None:
        taken = [name for name in inside if PurePosixPath(name).match(source.files)]
    else:
        taken = [name for name in inside if lines.endings(Path(name))[0] in formats.SUFFIXES]
        taken = [name for name in taken if not _about(name)] or taken
    if not taken:
        asked = f"that fits {source.files}" if source.files else f"of a known format ({', '.join(formats.SUFFIXES)})"
        raise DataError(
            f"source {source.name}: folder {source.path} has no file {asked}: got {printable(', '.join(inside)) or 'nothing':.200}"
            "; correct the path or `files`"
        )
    found = Counter(_family(name) for name in taken)
    if len(found) > 1:
        raise DataError(
            f"source {source.name}: folder {source.path} has files of several formats: got "
            f"{', '.join(f'{count} {family}' for family, count in sorted(found.items()))}; set `files`, such as "
            "'*.jsonl', or one source each"
        )
    return [source.path / name for name in taken], [name for name in inside if name not in set(taken)]


def checked_files(source: Source) -> tuple[list[Path], list[str]]:
    """``files_of``, each a file that can be read; none for a hub id.

    Raises:
        DataError: every file that cannot, in one message.
    """
    files, aside = files_of(source) if source.path is not None else ([], [])
    problems = []
    for file in files:
        try:
            file_check.check(file, source.way)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return files, aside


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        raise DataError(
            f"file {path} cannot be read: got {error.strerror}; allow it (chmod), or correct the path"
        ) from None


def _inside(folder: Path) -> list[str]:
    """Names of the files below a folder, sorted; what begins with a dot or an underscore is no data."""
    names: list[str] = []
    problems: list[str] = []

    def failed(error: OSError) -> None:
        problems.append(f"folder {error.filename} cannot be read: got {error.strerror}; allow it (chmod)")

    for place, below, files in os.walk(folder, onerror=failed):
        below[:] = sorted(name for name in below if not name.startswith((".", "_")))
        here = Path(place)
        problems += [
            f"folder {here / name} is a link to a folder: got {printable(os.readlink(here / name))}, because a link can lead in a "
            "circle; name that folder as a source of its own, or take the link away"
            for name in below
            if (here / name).is_symlink()
        ]
        names += [(here / name).relative_to(folder).as_posix() for name in files if not name.startswith((".", "_"))]
    if problems:
        raise DataError("\n".join(problems))
    return sorted(names)


def _family(name: str) -> str:
    ending = lines.endings(Path(name))[0]
    return ".json or .jsonl" if ending in formats.JSON else ending


def _about(name: str) -> bool:
    """Whether a file is about the data: README.md, LICENSE.txt."""
    return PurePosixPath(name).name.lower().startswith(("readme", "license"))


def digest(source: Source) -> str:
    """Content identity for the key: sha256 of the file or folder, or ``id@commit`` of a hub data set.

    A file's ending belongs to it: it says how the bytes are read. So do the names in a folder.

    Raises:
        DataError: there is no such file, or the hub does not answer.
    """
    if source.path is not None:
        files, _ = files_of(source)
        try:
            found = [
                content + "".join(lines.endings(file)) for content, file in zip(digest_files(files), files, strict=True)
            ]
        except OSError as error:
            raise DataError(
                f"file {error.filename} cannot be read: got {error.strerror}; allow it (chmod), or correct the path"
            ) from None
        if files == [source.path]:
            return found[0]
        names = [
            os.fsencode(file.relative_to(source.path).as_posix()).decode("utf-8", "backslashreplace") for file in files
        ]
        return digest_text(json.dumps(list(zip(names, found, strict=True))))
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


Found = tuple[int, int, Any]
"""Number of the file in a folder (0: there is none), line (number of the row where the format has no lines), record."""


def records_of(source: Source, start: int = 0) -> Iterator[Found]:
    """Records of a source as they stand there, behind the first ``start`` (``formats.records`` says what that costs)."""
    if source.path is None:
        yield from ((0, line, record) for line, record in _hub(source, start))
        return
    files, _ = files_of(source)
    for number, file in enumerate(files, 1 if files != [source.path] else 0):
        if start and start >= (rows := formats.survey(file, source.way).rows):
            start -= rows
            continue
        for line, record in formats.records(file, source.way, start):
            yield number, line, record
        start = 0


def count_records(source: Source) -> int:
    """How many records a source has (``formats.survey`` says what that costs)."""
    if source.path is None:
        return len(_loaded(source))
    return sum(formats.survey(file, source.way).rows for file in files_of(source)[0])


def _loaded(source: Source) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_dataset(source.hub, name=source.config_name, revision=source.revision, split=source.split)
    except (DatasetsError, OSError, ValueError) as error:
        raise _unloadable(source, error) from None


def _unloadable(source: Source, error: Exception) -> DataError:
    return DataError(
        f"source {source.name}: hub data set {source.hub} cannot be loaded: got "
        f"{type(error).__name__}: {error!s:.160}; check id, split, config_name, network"
    )


def _hub(source: Source, start: int) -> Iterator[tuple[int, Any]]:
    rows = _loaded(source)
    try:
        yield from enumerate(rows.skip(start) if start else rows, start + 1)
    except (OSError, ValueError, ImportError) as error:
        raise _unloadable(source, error) from None
