"""A checkpoint is whole or is not taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steps.lib import checkpoints

pytestmark = pytest.mark.fault


def checkpoint(folder: Path, update: int, *, marked: bool = True) -> Path:
    made = folder / f"checkpoint-{update}"
    (made / "deep").mkdir(parents=True)
    (made / "adapter_model.safetensors").write_bytes(b"weights" * update)
    (made / "deep" / "optimizer.pt").write_bytes(b"moments")
    if marked:
        checkpoints.mark(made)
    return made


def test_the_newest_by_number_is_taken(tmp_path: Path) -> None:
    for update in (9, 10, 100):
        checkpoint(tmp_path, update)
    assert checkpoints.newest_valid(tmp_path) == tmp_path / "checkpoint-100"


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    assert checkpoints.newest_valid(tmp_path) is None and checkpoints.newest_valid(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "harm",
    [
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"weigh"),
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"Weights" + b"weights" * 19),  # the size is right
        lambda f: (f / "deep" / "optimizer.pt").unlink(),
        lambda f: (f / checkpoints.MARK).unlink(),
        lambda f: (f / checkpoints.MARK).write_text('{"adapter_model.saf'),
        lambda f: (f / checkpoints.MARK).write_text("[]"),
        lambda f: (f / checkpoints.MARK).write_bytes(b"\xff"),
        lambda f: (f / checkpoints.MARK).write_text(""),
    ],
    ids=["cut", "flipped", "missing", "no mark", "half a mark", "foreign mark", "bytes for a mark", "empty mark"],
)
def test_a_crash_in_mid_save_falls_back_to_the_older_whole_one(tmp_path: Path, harm: Any) -> None:
    checkpoint(tmp_path, 10)
    harm(checkpoint(tmp_path, 20))
    assert checkpoints.newest_valid(tmp_path) == tmp_path / "checkpoint-10"
    [aside] = tmp_path.glob("damaged-checkpoint-20-*")
    assert (aside / "deep").is_dir() and not (tmp_path / "checkpoint-20").exists(), (
        "set aside, not deleted, and not found again"
    )
    assert checkpoints.newest_valid(tmp_path) == tmp_path / "checkpoint-10"


def test_all_damaged_means_from_the_start(tmp_path: Path) -> None:
    for update in (1, 2):
        checkpoint(tmp_path, update, marked=False)
    assert checkpoints.newest_valid(tmp_path) is None
    assert len(list(tmp_path.glob("damaged-*"))) == 2


def test_the_same_update_can_be_set_aside_twice(tmp_path: Path) -> None:
    for _ in range(2):
        checkpoint(tmp_path, 3, marked=False)
        assert checkpoints.newest_valid(tmp_path) is None
    assert len(list(tmp_path.glob("damaged-*"))) == 2


def test_a_mark_names_every_file_and_can_be_renewed(tmp_path: Path) -> None:
    made = checkpoint(tmp_path, 1)
    assert set(json.loads((made / checkpoints.MARK).read_text())) == {"adapter_model.safetensors", "deep/optimizer.pt"}
    (made / "adapter_model.safetensors").write_bytes(b"new")
    assert not checkpoints.valid(made)
    checkpoints.mark(made)
    assert checkpoints.valid(made)
