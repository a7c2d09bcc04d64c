"""File formats: JSON, JSONL, CSV, Parquet and plain text as records with their line.

JSONL, CSV, Parquet and text are streamed; a .json list is read whole.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib.errors import DataError

Record = tuple[int, Any]
"""Line, or number of the row where the format has no lines, from 1; and the record, or ``Unreadable``."""

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet", ".txt", ".md")


@dataclass(frozen=True)
class Unreadable:
    """A line that is no record: a reason code, what was seen, and the line."""

    reason: str
    detail: str
    raw: str


def check(path: Path) -> None:
    """Look at a file as a whole.

    Raises:
        DataError: missing, of no known format, of 0 bytes, or text that is not UTF-8.
    """
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise DataError(
            f"file {path} is missing: got {got}, because the configuration names it; correct the path "
            "(relative ones start at the working directory)"
        )
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"file {path} is of no known format: got {path.suffix or 'no suffix'}; known are {', '.join(SUFFIXES)}"
        )
    if path.stat().st_size == 0:
        raise DataError(f"file {path} is empty: got 0 bytes; give a file with rows")
    if path.suffix.lower() == ".parquet":
        return
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    with path.open("rb") as file:
        while True:
            block = file.read(1 << 20)
            try:
                line += decoder.decode(block, final=not block).count("\n")
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise DataError(
                    f"file {path} is not UTF-8: got byte 0x{error.object[error.start]:02x} in line {line}, "
                    "because it was saved in another encoding (GBK, UTF-16?); save it as UTF-8"
                ) from None
            if not block:
                return


def records(path: Path, documents: str = "line") -> Iterator[Record]:
    """Records of a file in its order; the suffix names the format.

    Args:
        documents: what ends a document of a plain text file: "line" or "blank_line".

    Raises:
        DataError: a .json file that is no list, a .csv file without a header, a .parquet file that is none.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path)
    if suffix == ".csv":
        return _csv(path)
    if suffix in (".txt", ".md"):
        return _plain(path, documents)
    return _json_list(path) if suffix == ".json" and not _is_jsonl(path) else _jsonl(path)


def _is_jsonl(path: Path) -> bool:
    """Whether a .json file holds one object a line."""
    with path.open(encoding="utf-8-sig") as file:
        first = file.readline().strip()
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def _json_list(path: Path) -> Iterator[Record]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(
            f"file {path} is not JSON: got {error}; repair it, or name it .jsonl if each line is a row"
        ) from None
    if not isinstance(value, list):
        raise DataError(
            f"file {path} is no list of rows: got {type(value).__name__}, because a .json file holds one "
            "list of objects; wrap the rows in [ ]"
        )
    yield from enumerate(value, 1)


def _jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield number, Unreadable("json", f"not JSON ({error}); perhaps cut off", line.rstrip("\r\n"))


def _csv(path: Path) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        if not all(name.strip() for name in header) or len(set(header)) != len(header):
            raise DataError(
                f"file {path} has no header: got {', '.join(header)!r:.120} as its first line, because "
                "that line must name each column once; add it"
            )
        number = 0
        while True:
            number += 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, Unreadable("csv", f"not CSV ({error}); a quote may not be closed", "")
                continue
            if len(cells) != len(header) and cells:
                detail = f"{len(cells)} cells, where the header names {len(header)}"
                yield number, Unreadable("csv", detail, ",".join(cells))
            elif cells:
                yield number, dict(zip(header, cells, strict=True))


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"file {path} is not readable as Parquet: got {error!s:.160}; write it again") from None
    with file:
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                number += 1
                yield number, record


def _plain(path: Path, documents: str) -> Iterator[Record]:
    kept: list[str] = []
    start = 1
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if documents == "line":
                if line.strip():
                    yield number, {"text": line.rstrip("\n")}
            elif line.strip():
                start = start if kept else number
                kept.append(line)
            elif kept:
                yield start, {"text": "".join(kept).rstrip("\n")}
                kept = []
    if kept:
        yield start, {"text": "".join(kept).rstrip("\n")}
