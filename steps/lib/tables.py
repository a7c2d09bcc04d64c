"""Parquet files: batches of rows from any row on, without reading what stands before its row group."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steps.lib.errors import DataError
from steps.lib.lines import Unreadable

BATCH = 1024
"""Rows that are made Python objects at a time."""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:  # it would hold every row group that was asked for
            yield file
    except PermissionError:
        raise DataError(
            f"file {path} cannot be read: got Permission denied, because this user has no right to; allow it (chmod)"
        ) from None
    except (pa.ArrowException, OSError) as error:
        first = str(error).split("\n")[0]
        raise DataError(f"file {path} is not readable as Parquet: got {first:.160}; write it again") from None


def check_table(path: Path) -> None:
    """Look at a file's footer.

    Raises:
        DataError: it is no Parquet, it is cut off, or two of its columns have one name.
    """
    with _opened(path) as file:
        names = file.schema_arrow.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"file {path} has columns of one name: got {', '.join(twice)} twice; rename one of them")


def count_rows(path: Path) -> int:
    """Rows of a file, from its footer."""
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def table_rows(path: Path, start: int = 0) -> Iterator[tuple[int, Any]]:
    """(Number from 1, record or ``Unreadable``) of each row behind the first ``start``. Whole row groups before it are not read.

    Memory: about one row group as it is packed, and ``BATCH`` rows unpacked.
    """
    with _opened(path) as file:
        groups, before = list(range(file.num_row_groups)), 0
        while groups and before + (rows := file.metadata.row_group(groups[0]).num_rows) <= start:
            before += rows
            groups.pop(0)
        for batch in file.iter_batches(batch_size=BATCH, row_groups=groups):
            skipped = max(0, min(start - before, batch.num_rows))
            yield from enumerate(_records(batch.slice(skipped)), before + skipped + 1)
            before += batch.num_rows


def _records(batch: Any) -> list[Any]:
    """Rows of a batch as Python values; a row that has none as ``Unreadable``."""
    try:
        rows: list[Any] = batch.to_pylist()
        return rows
    except (ValueError, OverflowError, KeyError):
        if batch.num_rows != 1:
            return [row for number in range(batch.num_rows) for row in _records(batch.slice(number, 1))]
    kept: dict[str, str] = {}
    bad = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            kept[name] = str(column.to_pylist()[0])
        except UnicodeDecodeError as error:
            bad.append(("encoding", f"byte 0x{error.object[error.start]:02x} in column {name} is not UTF-8"))
            kept[name] = error.object.decode("utf-8", "backslashreplace")
        except (ValueError, OverflowError, KeyError) as error:
            bad.append(("wrong_type", f"column {name} holds what Python cannot ({error!s:.80})"))
            kept[name] = str(column)[:1000]
    reason, detail = bad[0] if bad else ("wrong_type", "the row has no Python value")
    return [Unreadable(reason, detail, str(kept))]
