"""Signatures of versions."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest
from example_report import safetensors

from steps.lib import signing
from steps.lib.errors import ArtifactError, ConfigError
from steps.lib.registry import Registry
from steps.lib.signing import SigningConfig


def model(folder: Path, text: str) -> Path:
    safetensors(folder / "model" / "model.safetensors", text)
    return folder


def keys(folder: Path, name: str) -> SigningConfig:
    found = SigningConfig(key=folder / f"{name}.pem", trusted=folder / f"{name}.pub")
    assert found.key and found.trusted
    signing.new_key(found.key, found.trusted)
    return found


def test_a_signed_version_may_become_champion_and_an_unsigned_one_not(tmp_path: Path) -> None:
    ours = keys(tmp_path, "ours")
    assert ours.key and stat.S_IMODE(ours.key.stat().st_mode) == 0o600
    plain, signed = Registry(tmp_path / "r"), Registry(tmp_path / "r", signing=ours)
    reader = Registry(tmp_path / "r", signing=SigningConfig(trusted=ours.trusted))
    one = plain.register("desk", model(tmp_path / "one", "one"), facts={})
    with pytest.raises(ArtifactError, match=r"v0001-\w+ of desk is not signed by .*ours\.pub: got no signature"):
        reader.promote("desk", one.name, expected=None, verdict_digest="d", reason="r")
    assert reader.champion("desk") is None and len(reader.problems("desk")) == 1 and plain.problems("desk") == []
    assert signed.register("desk", model(tmp_path / "one", "one"), facts={}) == one, "signing is not another version"
    reader.promote("desk", one.name, expected=None, verdict_digest="d", reason="r")
    assert reader.problems("desk") == []


def test_a_signature_is_of_one_model_one_manifest_and_one_key(tmp_path: Path) -> None:
    ours, theirs = keys(tmp_path, "ours"), keys(tmp_path, "theirs")
    registry = Registry(tmp_path / "r", signing=ours)
    one = registry.register("desk", model(tmp_path / "one", "one"), facts={})
    two = registry.register("desk", model(tmp_path / "two", "two"), facts={})
    assert ours.trusted and theirs.trusted
    assert signing.problem(one, ours.trusted) is None
    assert "another key" in str(signing.problem(one, theirs.trusted))
    shutil.copyfile(one.folder / "SIGNATURE.json", two.folder / "SIGNATURE.json")
    assert signing.problem(two, ours.trusted) == "a signature of something else"
    (tmp_path / "r" / "desk").rename(tmp_path / "r" / "other")
    assert signing.problem(registry.resolve("other", one.name), ours.trusted) == "a signature of something else"
    (tmp_path / "r" / "other" / "versions" / one.name / "SIGNATURE.json").write_text('{"signature": "€"}')
    assert signing.problem(registry.resolve("other", one.name), ours.trusted) == "a SIGNATURE.json that does not parse"


def test_a_file_that_changed_after_signing_is_still_damage(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r", signing=keys(tmp_path, "ours"))
    one = registry.register("desk", model(tmp_path / "one", "one"), facts={})
    safetensors(one.folder / "model" / "model.safetensors", "two")
    with pytest.raises(ArtifactError, match=r"damaged: got other content in model/model\.safetensors"):
        registry.verify("desk", one.name)
    manifest = json.loads((one.folder / "manifest.json").read_text())
    (one.folder / "manifest.json").write_text(json.dumps({**manifest, "facts": {"policy": "better"}}))
    with pytest.raises(ArtifactError, match="is not the one registered"):
        registry.verify("desk", one.name)


def test_a_wrong_key_is_said(tmp_path: Path) -> None:
    ours = keys(tmp_path, "ours")
    assert ours.key and ours.trusted
    with pytest.raises(ConfigError, match="never written over"):
        signing.new_key(ours.key, tmp_path / "new")
    for path, got in ((tmp_path / "none.pem", "No such file"), (tmp_path / "text.pem", "no PEM file")):
        (tmp_path / "text.pem").write_text("key")
        registry = Registry(tmp_path / "r", signing=SigningConfig(key=path))
        with pytest.raises(ConfigError, match=f"cannot be used: got {got}"):
            registry.register("desk", model(tmp_path / "one", "one"), facts={})
