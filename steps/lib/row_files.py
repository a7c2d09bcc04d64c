"""Parquet files of rows that are written and read in parts: memory holds a row group, never a file.

A file with one row group has the bytes that ``rows.write_parquet`` gives, so small files did not change when this came.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from steps.lib.errors import DataError
from steps.lib.rows import Row, to_table

R = TypeVar("R", bound=Row)

GROUP_ROWS = 20_000
"""Rows that a row group has at most."""
GROUP_CHARS = 16 << 20
"""Characters that a row group has at most, if it has more than one row: documents are long."""


class RowFile(Generic[R]):
    """Writes tables of rows as they come. The bytes depend on the rows only, not on how they came.

    Args:
        path: the file; it is whole when the block ends without an error.
        kind: type of the rows.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        import pyarrow.parquet as pq

        self._schema = to_table([], kind).schema
        self._file = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._waiting: list[Any] = []
        """Tables that make less than a row group."""
        self._rows = self._chars = 0
        """Of the tables that wait."""
        self.count = 0
        """Rows so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and (self._rows or not self.count):
                self._flush()
        finally:
            self._file.close()

    def add(self, table: Any, chars: Any) -> None:
        """Take rows.

        Args:
            table: of rows, as ``rows.to_table`` makes it.
            chars: how many characters each row has.
        """
        start = 0
        for stop, size in enumerate(chars.tolist(), 1):
            if self._rows and (self._rows >= GROUP_ROWS or self._chars + size > GROUP_CHARS):
                self._take(table, start, stop - 1)
                self._flush()
                start = stop - 1
            self._rows += 1
            self._chars += size
        self._take(table, start, table.num_rows)
        self.count += table.num_rows

    def _take(self, table: Any, start: int, stop: int) -> None:
        if stop > start:
            self._waiting.append(table.slice(start, stop - start))

    def _flush(self) -> None:
        import pyarrow as pa

        whole = pa.concat_tables([self._schema.empty_table(), *self._waiting]).combine_chunks()
        self._file.write_table(whole, row_group_size=max(1, whole.num_rows))
        self._waiting, self._rows, self._chars = [], 0, 0


def number_of_rows(path: Path) -> int:
    """How many rows a file has.

    Raises:
        DataError: it is missing, or is not Parquet.
    """
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def read_part(path: Path, kind: type[R], start: int, stop: int) -> list[R]:
    """Rows ``start`` to ``stop`` of a file, checked; row groups without any of them are not read.

    Raises:
        DataError: it is missing, is not Parquet, or a row does not fit ``kind``.
    """
    from pydantic import ValidationError

    rows: list[R] = []
    with _opened(path) as file:
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        ends = list(itertools.accumulate(sizes))
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            low, high = max(start, end - size), min(stop, end)
            if low >= high:
                continue
            group = file.read_row_group(number).slice(low - (end - size), high - low)
            for place, record in enumerate(_records(group), low):
                try:
                    rows.append(kind.model_validate(record))
                except ValidationError as error:
                    first = error.errors()[0]
                    raise DataError(
                        f"{path} row {place}, field {'.'.join(map(str, first['loc']))}: {first['msg']}, "
                        f"got {first['input']!r:.80}; rebuild the step that writes it"
                    ) from None
    return rows


def _records(table: Any) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1000):
        yield from batch.to_pylist()


def _opened(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: got no file, because rows are expected there; build its step again"
        ) from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not readable as Parquet: got {error}; rebuild the step that writes it") from None


class LaidTexts:
    """Texts in a file, in their order, of which some are read again and again; a block around the reading.

    Args:
        path: of the file; it is gone when the block ends.
        batches: the texts.
    """

    def __init__(self, path: Path, batches: Iterable[list[str]]) -> None:
        self._path, self._batches = path, batches

    def __enter__(self) -> Self:
        import pyarrow as pa

        schema = pa.schema([("text", pa.large_string())])
        with pa.OSFile(str(self._path), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
            for texts in self._batches:
                file.write_batch(pa.record_batch([pa.array(texts, pa.large_string())], schema=schema))
        self._map = pa.memory_map(str(self._path))
        self._texts = pa.ipc.open_file(self._map).read_all()["text"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._texts
        self._map.close()
        self._path.unlink()

    def take(self, places: Any) -> list[str]:
        """Some of the texts, by their number."""
        texts: list[str] = self._texts.take(places).to_pylist()
        return texts
