"""Tracking is online with a key and offline without one, and sends no secret along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from minimal import ROOT

from steps.lib.tracking import TrackingConfig, resolve_mode, run


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


def test_auto_is_offline_without_a_key() -> None:
    assert TrackingConfig().mode == "auto" and resolve_mode("auto") == "offline"


def test_auto_is_online_with_a_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert resolve_mode("auto") == "online"


@pytest.mark.parametrize("place", [".netrc", "named"])
def test_auto_is_online_with_a_key_in_netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str) -> None:
    """wandb login writes to the file that NETRC names, or to ~/.netrc."""
    if place == "named":
        monkeypatch.setenv("NETRC", str(tmp_path / "named"))
    else:
        monkeypatch.delenv("NETRC")
    (tmp_path / place).write_text("machine api.wandb.ai login user password " + "x" * 40 + "\n")
    (tmp_path / place).chmod(0o600)
    assert resolve_mode("auto") == "online"
    (tmp_path / place).write_text("machine elsewhere.org login user password x\n")
    assert resolve_mode("auto") == "offline"
    (tmp_path / place).write_text("not a netrc {")
    assert resolve_mode("auto") == "offline"


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_a_mode_that_is_named_is_taken(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert resolve_mode(mode) == mode


def test_the_environments_mode_wins_over_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert resolve_mode("auto") == "disabled"


def test_nothing_is_loaded_or_written_when_off(tmp_path: Path) -> None:
    info = {"mode": "disabled", "project": "p", "folder": str(tmp_path / "here"), "group": "g"}
    for given in (info, None):
        with run("sft", "sft/0", {}, given, tmp_path) as track:
            track({"loss": 1.0}, 3)
    assert not (tmp_path / "here").exists()


STEP = """
import json, sys
from pathlib import Path
from steps.lib.door import main
main("clean", ["--config", sys.argv[1], "--out", sys.argv[2], "--run-info", sys.argv[3]])
"""


@pytest.mark.server
def test_an_offline_run_has_its_group_and_job_type_and_no_secret(tmp_path: Path) -> None:
    """wandb's own service runs on loopback; two steps of one group make two runs."""
    secret, key = "sk-prefline-planted-secret", "wandbkeyplanted0123456789abcdef0123456789"
    (tmp_path / "text.jsonl").write_text(
        json.dumps({"text": "The garden of the house is open to all from nine to five."}) + "\n"
    )
    (tmp_path / "clean.yaml").write_text(f"domain:\n  - {{name: shop, path: {tmp_path / 'text.jsonl'}}}\n")
    info = {"tracking": {"mode": "offline", "project": "prefline", "folder": str(tmp_path), "group": "aftersales-77"}}
    environment = {
        **os.environ,
        "OPENAI_API_KEY": secret,
        "WANDB_API_KEY": key,
        "WANDB_DIR": "",
        "WANDB_CACHE_DIR": str(tmp_path / "c"),
    }
    environment.pop("WANDB_MODE", None)
    for out in ("one", "two"):
        done = subprocess.run(
            [sys.executable, "-c", STEP, str(tmp_path / "clean.yaml"), str(tmp_path / out), json.dumps(info)],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2, "one run a step"
    blob = b"".join(path.read_bytes() for run_ in runs for path in run_.rglob("*") if path.is_file())
    assert b"aftersales-77" in blob and b"clean" in blob and b"clean/" in blob
    for hidden in (secret, key, str(tmp_path / "clean.yaml"), "--run-info", "git@", "github.com"):
        assert hidden.encode() not in blob, f"{hidden} is in the files of the run"
