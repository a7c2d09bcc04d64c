"""Files of rows in parts: the same bytes however the rows came, and the same rows however they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from steps.lib import row_files
from steps.lib.errors import DataError
from steps.lib.row_files import RowFile, number_of_rows, read_part
from steps.lib.rows import Chat, Text, messages, read_parquet, to_table, write_parquet

TEXTS = [Text(id=f"{n}", text="字" * (n % 7 + 1)) for n in range(50)]


def written(path: Path, size: int) -> bytes:
    with RowFile(path, Text) as file:
        for start in range(0, len(TEXTS), size):
            part = TEXTS[start : start + size]
            file.add(to_table(part, Text), np.array([len(row.text) for row in part]))
    return path.read_bytes()


def test_small_files_have_the_bytes_of_write_parquet(tmp_path: Path) -> None:
    chats = [Chat(id=f"{n}", messages=messages(("user", f"{n}"), ("assistant", "好"))) for n in range(9)]  # type: ignore[arg-type]
    for number, (rows, kind) in enumerate(((TEXTS, Text), (chats, Chat), ([], Text))):
        write_parquet(tmp_path / "whole", rows, kind)  # type: ignore[type-var]
        with RowFile(tmp_path / "parts", kind) as file:  # type: ignore[type-var]
            for row in rows:
                file.add(to_table([row], kind), np.array([1]))  # type: ignore[type-var]
        assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes(), number


def test_groups_hang_on_the_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "GROUP_ROWS", 8)
    monkeypatch.setattr(row_files, "GROUP_CHARS", 24)
    first = written(tmp_path / "a", 50)
    assert all(written(tmp_path / "b", size) == first for size in (1, 3, 8, 49))
    assert read_parquet(tmp_path / "a", Text) == TEXTS
    groups = pq.ParquetFile(tmp_path / "a").metadata
    sizes = [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]
    assert len(sizes) > 6 and max(sizes) <= 8
    for start, stop in ((0, 50), (0, 0), (7, 9), (49, 80), (20, 21)):
        assert read_part(tmp_path / "a", Text, start, stop) == TEXTS[start:stop]
    assert number_of_rows(tmp_path / "a") == 50


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is missing"):
        number_of_rows(tmp_path / "gone")
    (tmp_path / "bad").write_text("no Parquet")
    with pytest.raises(DataError, match="is not readable as Parquet"):
        number_of_rows(tmp_path / "bad")
    write_parquet(tmp_path / "texts", TEXTS, Text)
    with pytest.raises(DataError, match=r"texts row 3, field messages: Field required"):
        read_part(tmp_path / "texts", Chat, 3, 5)
