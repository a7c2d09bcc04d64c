"""What others wrote and steps read: JSON, JSONL, CSV, Parquet, plain text or a hub id; its identity, its records, its bad rows.

``opened`` makes rows of the records, in any of the known layouts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from steps.lib import formats
from steps.lib.config import Neutral, Section
from steps.lib.digests import digest_file, digest_folder
from steps.lib.errors import DataError
from steps.lib.layouts import Layout
from steps.lib.rows import Dropped, Lang


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


def records_of(source: Source) -> Iterator[formats.Record]:
    """Records of a source as they stand there, each with its line (number of the row where the format has no lines)."""
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
