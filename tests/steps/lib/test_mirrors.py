"""Mirrors: real wandb offline, a real MLflow file store, a hub on loopback; and what happens when they fail or hang."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import socket
import time
from pathlib import Path

import pytest
from example_report import safetensors
from hub_server import hub

from steps.lib import mirrors
from steps.lib.config import key_view
from steps.lib.mirrors import FolderMirror, HubMirror, MirrorsConfig, MlflowMirror, WandbMirror
from steps.lib.registry import Registry, Version
from steps.lib.signing import SigningConfig

LOG = logging.getLogger("test")


@pytest.fixture
def version(tmp_path: Path) -> Version:
    registry = Registry(tmp_path / "registry")
    safetensors(tmp_path / "m" / "adapter" / "adapter_model.safetensors", "one")
    (tmp_path / "m" / "README.md").write_text("# card\n")
    return registry.register("desk", tmp_path / "m", facts={"policy": "p"})


def digests(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def test_no_key_depends_on_where_copies_go(tmp_path: Path) -> None:
    config = MirrorsConfig(folder=FolderMirror(folder=tmp_path), mlflow=MlflowMirror(tracking_uri="x"), max_seconds=1)
    assert key_view(config) == key_view(MirrorsConfig()) == key_view(SigningConfig(key=tmp_path)) == {}


def test_a_folder_gets_the_version_and_its_aliases_once(version: Version, tmp_path: Path) -> None:
    config = MirrorsConfig(folder=FolderMirror(folder=tmp_path / "share"))
    (sent,) = mirrors.send(config, version, ["champion"], LOG)
    copy = tmp_path / "share" / "desk" / version.name
    assert sent.ok and sent.place == str(copy) and digests(copy) == digests(version.folder)
    assert json.loads((copy.parent / "aliases.json").read_text()) == {"champion": version.name}
    assert mirrors.send(config, version, ["champion"], LOG) == [sent], "what was sent is not sent again"
    assert mirrors.results(version) == {"folder": sent}
    (moved,) = mirrors.send(config, version, ["challenger"], LOG)
    assert moved.ok and json.loads((copy.parent / "aliases.json").read_text()) == {"challenger": version.name}
    assert Registry(tmp_path / "registry").problems("desk") == [], "results lie beside the versions, not in them"


def test_a_mirror_that_fails_is_told_without_keys_and_tried_again(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SHARE_TOKEN", "s3cret-share")
    (tmp_path / "s3cret-share").write_text("a file where the folder would be")
    config = MirrorsConfig(folder=FolderMirror(folder=tmp_path / "s3cret-share"))
    (failed,) = mirrors.send(config, version, ["champion"], LOG)
    assert not failed.ok and "<SHARE_TOKEN>" in failed.problem and "s3cret" not in failed.problem
    assert "the next run tries again" in caplog.text
    (tmp_path / "s3cret-share").unlink()
    (sent,) = mirrors.send(config, version, ["champion"], LOG)
    assert sent.ok


def test_a_mirror_that_hangs_is_ended(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for name, value in {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }.items():
            monkeypatch.setenv(name, value)
        config = MirrorsConfig(hub=HubMirror(repo="org/desk"), max_seconds=1)
        started = time.monotonic()
        (late,) = mirrors.send(config, version, [], LOG)
    assert not late.ok and late.problem == "no end after 1 seconds" and time.monotonic() - started < 10


@pytest.mark.server
def test_the_hub_gets_a_commit_and_tags(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub() as server:
        for name, value in {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_TOKEN", "hf_made_up_for_this_test")
        (sent,) = mirrors.send(MirrorsConfig(hub=HubMirror(repo="org/desk")), version, ["champion"], LOG)
    assert sent.ok, sent.problem
    assert server.private is True
    assert server.files.keys() == digests(version.folder).keys()
    assert server.files["manifest.json"] == (version.folder / "manifest.json").read_bytes()
    assert server.tags == {version.name: server.commit, "champion": server.commit}


def test_wandb_offline_keeps_the_artifact(version: Version, tmp_path: Path) -> None:
    config = MirrorsConfig(wandb=WandbMirror(mode="offline", folder=tmp_path))
    (sent,) = mirrors.send(config, version, ["champion"], LOG)
    assert sent.ok, sent.problem
    (run,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    kept = run.read_bytes()
    assert b"adapter/adapter_model.safetensors" in kept and version.name.encode() in kept and b"champion" in kept


def test_mlflow_gets_a_version_with_its_digest(version: Version, tmp_path: Path) -> None:
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("mlflow is not installed; it is no requirement")
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    from mlflow import MlflowClient

    uri = (tmp_path / "mlruns").as_uri()
    config = MirrorsConfig(mlflow=MlflowMirror(tracking_uri=uri))
    (sent,) = mirrors.send(config, version, ["champion"], LOG)
    assert sent.ok, sent.problem
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    found = client.get_model_version_by_alias("desk", "champion")
    assert found.tags["manifest_sha256"] == version.digest and found.tags["policy"] == "p"
    (again,) = mirrors.send(config, version, ["champion", "anchor"], LOG)
    assert again.ok and len(client.search_model_versions("name='desk'")) == 1
    assert client.get_model_version_by_alias("desk", "anchor").version == found.version


def test_without_mlflow_it_is_said(version: Version, tmp_path: Path) -> None:
    if importlib.util.find_spec("mlflow"):
        pytest.skip("mlflow is installed here")
    (failed,) = mirrors.send(MirrorsConfig(mlflow=MlflowMirror(tracking_uri=str(tmp_path / "x"))), version, [], LOG)
    assert not failed.ok and "No module named 'mlflow'" in failed.problem
