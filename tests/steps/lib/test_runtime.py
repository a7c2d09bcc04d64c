"""The process around a step: what it says when the disk is at fault."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from steps.lib import runtime
from steps.lib.errors import ArtifactError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "is full: got .* because the step needed more .*; make room",
        ),
        (RuntimeError("unable to write: No space left on device (os error 28)"), "is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "is full"),
        (OSError(errno.EROFS, "Read-only file system"), "cannot be written: got .*, because it is read-only"),
    ],
)
def test_a_disk_at_fault_is_named_with_what_to_do(tmp_path: Path, error: Exception, said: str) -> None:
    told = runtime.storage_error(error, tmp_path / "not" / "there")
    assert isinstance(told, ArtifactError)
    with pytest.raises(ArtifactError, match=said):
        raise told
    try:
        raise ValueError("wrapped") from error
    except ValueError as outer:
        assert runtime.storage_error(outer, tmp_path) is not None


def test_another_error_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    assert runtime.storage_error(ValueError("cannot write a number"), tmp_path) is None
    assert runtime.storage_error(FileNotFoundError(errno.ENOENT, "no"), tmp_path) is None
    assert runtime.storage_error(PermissionError(errno.EACCES, "no", "/elsewhere/rows.jsonl"), tmp_path) is None
    told = runtime.storage_error(PermissionError(errno.EACCES, "no", str(tmp_path / "store" / "x")), tmp_path / "store")
    assert "belongs to somebody else" in str(told)
