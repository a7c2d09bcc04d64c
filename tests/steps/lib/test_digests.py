"""Digests are of bytes alone; a file that was not written since is not read again."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from steps.lib import digests
from steps.lib.digests import Memo, digest_file, digest_files, digest_folder, digest_text
from steps.lib.errors import DataError


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were read."""
    seen: list[str] = []
    real = hashlib.file_digest

    def file_digest(file: object, kind: str) -> object:
        seen.append(Path(file.name).name)  # type: ignore[attr-defined]
        return real(file, kind)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    return seen


def test_it_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("预览 one".encode())
    assert digest_file(tmp_path / "a") == hashlib.sha256("预览 one".encode()).hexdigest() == digest_text("预览 one")


def test_an_unchanged_file_is_read_once_by_all_processes(tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "a").write_text("one")
    first = digest_file(tmp_path / "a")
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a").unlink()  # the link count changes ctime
    assert digest_file(tmp_path / "b") == first and reads == ["a", "b"]
    os.rename(tmp_path / "b", tmp_path / "c")
    digest_file(tmp_path / "c")
    before = len(reads)
    digests._memo.cache_clear()  # as another process
    assert digest_file(tmp_path / "c") == first and len(reads) == before
    assert digest_file(tmp_path / "c", fresh=True) == first and len(reads) == before + 1


def test_a_write_shows_even_with_the_old_size_and_time(tmp_path: Path, reads: list[str]) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    facts, first = path.stat(), digest_file(path)
    path.write_text("two")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert digest_file(path) != first and len(reads) == 2


def test_two_writes_within_one_tick_of_the_clock(tmp_path: Path) -> None:
    """A kernel's time stamps have ticks: a write right after hashing may leave the stamp as it was."""
    path = tmp_path / "a"
    wrong = 0
    for number in range(40):
        path.write_text(f"{number:02d}")
        digest_file(path)
        path.write_text(f"{number + 1:02d}")
        wrong += digest_file(path) != digest_text(f"{number + 1:02d}")
    assert wrong == 0


def test_a_stamp_from_the_future_or_of_whole_seconds_is_not_trusted_while_it_is_young(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = digests._signature
    monkeypatch.setattr(
        digests, "_signature", lambda facts: (*real(facts)[:3], *(s // 10**9 * 10**9 for s in real(facts)[3:]))
    )
    (tmp_path / "a").write_text("one")
    assert digest_file(tmp_path / "a") == digest_file(tmp_path / "a") and len(reads) == 2


def test_a_file_that_is_written_while_it_is_read_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    real = hashlib.file_digest

    def slow(file: object, kind: str) -> object:
        digest = real(file, kind)  # type: ignore[arg-type]
        path.write_text("two")
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", slow)
        digest_file(path)
    assert digest_file(path) == digest_text("two")


def test_a_memo_that_is_damaged_or_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    signature = (1, 2, 3, 4, 5)
    (tmp_path / "memo").write_bytes(b"no database" * 100)
    memo = Memo(tmp_path / "memo")
    memo.put(signature, "d")
    assert Memo(tmp_path / "memo").get(signature) == "d", "made anew"
    (tmp_path / "file").write_text("")
    blind = Memo(tmp_path / "file" / "memo")  # a file where the folder should be
    blind.put(signature, "d")
    assert blind.get(signature) == "d" and blind.get((1, 2, 3, 4, 6)) is None
    one, two = Memo(tmp_path / "both"), Memo(tmp_path / "both")
    one.put((2**63 - 1, -(2**63), 0, 0, 0), "big")
    assert two.get((2**63 - 1, -(2**63), 0, 0, 0)) == "big"


def test_many_large_files_are_read_in_parallel_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "PARALLEL_BYTES", 10)
    paths = [tmp_path / f"{number}" for number in range(12)]
    for path in paths:
        path.write_text(path.name * 9)
    assert digest_files(paths) == [digest_text(path.name * 9) for path in paths]


def test_remembering_is_quick(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    digest_file(tmp_path / "a")
    start = time.perf_counter()
    for _ in range(200):
        digest_file(tmp_path / "a")
    assert time.perf_counter() - start < 1


def test_digest_of_a_folder_is_of_names_and_bytes_that_match(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("1")
    (tmp_path / "b.txt").write_text("2")
    one = digest_folder(tmp_path, ("*.json",))
    (tmp_path / "b.txt").write_text("3")
    assert digest_folder(tmp_path, ("*.json",)) == one and digest_folder(tmp_path, ("*.json", "a*")) == one
    (tmp_path / "a.json").rename(tmp_path / "c.json")
    assert digest_folder(tmp_path, ("*.json",)) != one


def test_a_file_that_is_missing_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.yaml is missing: got no such file, because .*; correct the path"):
        digest_file(tmp_path / "nothing.yaml")
    with pytest.raises(DataError, match="is a folder: got a folder, because .*; name one file"):
        digest_file(tmp_path)
