"""A checkpoint is whole or is not taken."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from steps.lib import checkpoints
from steps.lib.checkpoints import MARK, Journal, keep, kept, mark, newest, written

pytestmark = pytest.mark.fault
LOG = logging.getLogger("prefline.test")


def write(resume: Path, update: int) -> Path:
    """What the Trainer writes."""
    made = written(resume) / f"checkpoint-{update}"
    (made / "deep").mkdir(parents=True)
    (made / "adapter_model.safetensors").write_bytes(b"weights" * update)
    (made / "deep" / "optimizer.pt").write_bytes(b"moments")
    return made


def checkpoint(resume: Path, update: int) -> Path:
    write(resume, update)
    return keep(resume, update)


def test_the_newest_by_number_is_taken_and_two_are_kept(tmp_path: Path) -> None:
    for update in (9, 10, 100):
        checkpoint(tmp_path, update)
    assert newest(tmp_path, LOG) == kept(tmp_path) / "checkpoint-100"
    assert sorted(path.name for path in kept(tmp_path).iterdir()) == ["checkpoint-10", "checkpoint-100"]
    assert checkpoints.update_of(kept(tmp_path) / "checkpoint-100") == 100


def test_a_clock_that_was_set_back_deletes_no_newer_one(tmp_path: Path) -> None:
    """Older checkpoints with later time stamps: the Trainer's own rotation would delete the one just written."""
    for update in (2, 4):
        os.utime(checkpoint(tmp_path, update), (4e9, 4e9))
    checkpoint(tmp_path, 6)
    assert newest(tmp_path, LOG) == kept(tmp_path) / "checkpoint-6"
    assert (kept(tmp_path) / "checkpoint-4").exists() and not (kept(tmp_path) / "checkpoint-2").exists()


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    assert newest(tmp_path, LOG) is None and newest(tmp_path / "nowhere", LOG) is None


@pytest.mark.parametrize("marked", [False, True], ids=["no mark", "marked"])
def test_what_a_crash_left_of_a_save_is_deleted(tmp_path: Path, marked: bool) -> None:
    checkpoint(tmp_path, 10)
    left = write(tmp_path, 20)
    (written(tmp_path) / "README.md").write_text("TRL writes one here")
    if marked:
        mark(left)
    assert newest(tmp_path, LOG) == kept(tmp_path) / "checkpoint-10"
    assert written(tmp_path).exists() and not list(written(tmp_path).iterdir()), "a full disk gets its room back"


def test_one_without_a_mark_is_deleted_wherever_it_lies(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10)
    (checkpoint(tmp_path, 20) / MARK).unlink()
    assert newest(tmp_path, LOG) == kept(tmp_path) / "checkpoint-10"
    assert [path.name for path in kept(tmp_path).iterdir()] == ["checkpoint-10"]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (
            lambda f: (f / "adapter_model.safetensors").write_bytes(b"weigh"),
            "adapter_model.safetensors with other bytes",
        ),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"Weights" + b"weights" * 19), "other bytes"),
        (lambda f: (f / "deep" / "optimizer.pt").unlink(), "no file deep/optimizer.pt"),
        (lambda f: (f / "scaler.pt").write_bytes(b"x"), "a file scaler.pt that complete.json does not name"),
        (lambda f: (f / MARK).write_text('{"adapter_model.saf'), "a complete.json that cannot be read"),
        (lambda f: (f / MARK).write_text("[]"), "a complete.json without files"),
        (lambda f: (f / MARK).write_text("{}"), "a complete.json without files"),
        (lambda f: (f / MARK).write_bytes(b"\xff"), "a complete.json that cannot be read"),
        (lambda f: (f / MARK).write_text(""), "a complete.json that cannot be read"),
    ],
    ids=["cut", "flipped", "missing", "foreign", "half a mark", "list", "no files", "bytes for a mark", "empty mark"],
)
def test_a_damaged_one_is_set_aside_and_the_older_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: Any, said: str
) -> None:
    checkpoint(tmp_path, 10)
    harm(checkpoint(tmp_path, 20))
    with caplog.at_level(logging.INFO, "prefline.test"):
        assert newest(tmp_path, LOG) == kept(tmp_path) / "checkpoint-10"
    [warned] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said in warned and warned.startswith("checkpoint-20 is damaged: got ") and "because" in warned
    [aside] = kept(tmp_path).glob("damaged-checkpoint-20-*")
    assert (aside / "deep").is_dir() and not (kept(tmp_path) / "checkpoint-20").exists(), "set aside, not deleted"
    assert newest(tmp_path, LOG) == kept(tmp_path) / "checkpoint-10", "and not found again"
    checkpoint(tmp_path, 20)
    assert newest(tmp_path, LOG) == kept(tmp_path) / "checkpoint-20", "the update can be saved again"


def test_a_file_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    made = checkpoint(tmp_path, 10)
    (made / "adapter_model.safetensors").unlink()
    (made / "adapter_model.safetensors").symlink_to(made / "nowhere")
    assert checkpoints.damage(made) == "no file adapter_model.safetensors"
    assert newest(tmp_path, LOG) is None


def test_all_damaged_means_from_the_start(tmp_path: Path) -> None:
    for update in (1, 2):
        (checkpoint(tmp_path, update) / "adapter_model.safetensors").write_bytes(b"")
    assert newest(tmp_path, LOG) is None
    assert len(list(kept(tmp_path).glob("damaged-*"))) == 2


def test_everything_is_on_the_disk_before_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss of power must not leave a mark without the bytes that it speaks of."""
    made = write(tmp_path, 1)
    flushed: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        assert not (made / MARK).exists() or len(flushed) == 5
        flushed.append(os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), made))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    mark(made)
    assert flushed[:2] == ["adapter_model.safetensors", "deep/optimizer.pt"] and set(flushed[2:4]) == {".", "deep"}
    assert flushed[4:] == [MARK + ".tmp", "."]
    assert set(json.loads((made / MARK).read_text())) == {"adapter_model.safetensors", "deep/optimizer.pt"}


# --- a journal of what can be computed again -------------------------------------------------------------------------


def test_a_journal_gives_back_what_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path, {"rows": "a"})
    assert journal.values == []
    for value in ([0.1, -2.5e-7], "a\nline\r", {"n": None}):
        journal.append(value)
    assert Journal(path, {"rows": "a"}).values == [[0.1, -2.5e-7], "a\nline\r", {"n": None}]
    assert Journal(path, {"rows": "b"}).values == [], "of other rows: begun afresh"
    assert Journal(path, {"rows": "a"}).values == []


@pytest.mark.parametrize("end", range(1, 12))
def test_a_torn_line_ends_a_journal_and_is_written_again(tmp_path: Path, end: int) -> None:
    path = tmp_path / "j"
    for value in (1, 2):
        Journal(path, "h").append(value)
    path.write_bytes(path.read_bytes()[:-end])
    journal = Journal(path, "h")
    assert journal.values == [1]
    journal.append(3)
    assert Journal(path, "h").values == [1, 3]


def test_a_changed_line_ends_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path, "h")
    for value in (11, 22, 33):
        journal.append(value)
    path.write_bytes(path.read_bytes().replace(b"22", b"23"))
    assert Journal(path, "h").values == [11]
    path.write_bytes(b"\xff\x00 not a journal\n")
    assert Journal(path, "h").values == []
