"""Small files of a store: exactly one creates, readers see whole files."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steps.lib.place import FolderPlace, Place

CREATORS = 8
NAMES = 40

CREATE = """
import errno, os, sys, time
from pathlib import Path
from steps.lib.place import FolderPlace

def no_links(*paths):
    raise OSError(errno.EPERM, "Operation not permitted")

root, who, links = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if links == "no":
    os.link = no_links
place = FolderPlace(root)
print("ready", flush=True)
sys.stdin.readline()
won = [number for number in range(int(sys.argv[4])) if place.create(f"deep/er/{number}", who.encode() * 1000)]
print(*won)
"""

REWRITE = """
import sys
from pathlib import Path
from steps.lib.place import FolderPlace
place = FolderPlace(Path(sys.argv[1]))
print("ready", flush=True)
for size in range(500):
    place.write("file", b"%d:" % size + b"x" * size)
"""


@pytest.mark.parametrize("links", ["yes", "no"])
def test_exactly_one_of_eight_processes_creates_a_file(tmp_path: Path, links: str) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, str(tmp_path), str(who), links, str(NAMES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for who in range(CREATORS)
    ]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    winners: dict[int, int] = {}
    for who, racer in enumerate(racers):
        said, _ = racer.communicate(timeout=30)
        assert racer.returncode == 0
        for number in map(int, said.split()):
            assert number not in winners, "two processes were told that they made the file"
            winners[number] = who
    assert set(winners) == set(range(NAMES))
    place = FolderPlace(tmp_path)
    for number, who in winners.items():
        assert place.read(f"deep/er/{number}") == str(who).encode() * 1000
    assert len(os.listdir(tmp_path / "deep" / "er")) == NAMES, "no temporary file stays"


def test_readers_see_the_old_bytes_or_the_new_ones(tmp_path: Path) -> None:
    place = FolderPlace(tmp_path)
    place.write("file", b"0:")
    with subprocess.Popen([sys.executable, "-c", REWRITE, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        seen = set()
        while writer.poll() is None:
            size, _, rest = (place.read("file") or b"").partition(b":")
            assert rest == b"x" * int(size)
            seen.add(int(size))
    assert writer.returncode == 0 and len(seen) > 10


def test_names_are_the_files_of_one_folder(tmp_path: Path) -> None:
    place: Place = FolderPlace(tmp_path / "store")
    assert place.names("runs") == [] and place.read("runs/a") is None
    for name in ("runs/b", "runs/a", "runs/deep/c", "runs/.a.left"):
        place.write(name, b"x")
    assert place.names("runs") == ["a", "b"], "no folder, nothing that a killed writer left"
    assert place.names("runs/a") == [] and place.read("runs/a/b") is None, "a file is no folder"


def test_delete_takes_the_leftovers_of_killed_writers_with_it(tmp_path: Path) -> None:
    place = FolderPlace(tmp_path)
    place.delete("runs/1")  # missing: fine
    for name in ("runs/1", "runs/11", "runs/.1.abcd", "runs/.11.abcd"):
        place.write(name, b"x")
    place.delete("runs/1")
    place.delete("runs/1")
    assert sorted(os.listdir(tmp_path / "runs")) == [".11.abcd", "11"]


def test_a_link_that_was_made_although_the_answer_says_no_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS sends a request again when its answer is lost; the second time the file is there already."""
    link = os.link

    def link_twice(source: Any, target: Any) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    place = FolderPlace(tmp_path)
    assert place.create("file", b"mine")
    monkeypatch.setattr(os, "link", link)
    assert not place.create("file", b"other") and place.read("file") == b"mine"


def test_a_file_that_could_not_be_written_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where links are not possible the name is taken first; it does not stay behind empty."""

    def no_links(*paths: Any) -> None:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit))
        raise OSError(errno.ENOTSUP, "Operation not supported")

    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(os, "link", no_links)
    try:
        with pytest.raises(OSError, match="File too large"):
            FolderPlace(tmp_path).create("file", b"data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []
