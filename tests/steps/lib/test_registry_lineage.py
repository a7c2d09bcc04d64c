"""lineage.json of a version: read from the manifests of a real chain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from minimal import TinyChain

from steps.lib.registry_lineage import accelerators, here, write_lineage


def test_accelerators_are_named_without_a_library(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"0000:0{number}").mkdir()
        (tmp_path / f"0000:0{number}" / "information").write_text("Model: \t NVIDIA H200\nIRQ: 4\n")
    assert accelerators(tmp_path) == ["NVIDIA H200", "NVIDIA H200"] and accelerators(tmp_path / "none") == []


def test_this_machine_is_described() -> None:
    found = here()
    assert found["cores"] >= 1 and len(found["packages_sha256"]) == 64 and found["packages"] > 50
    assert found["versions"]["torch"] and len(found["git"]) in (0, 40, 46)


@pytest.mark.tiny
def test_everything_behind_a_policy_is_told(chain: TinyChain, tmp_path: Path) -> None:
    page = json.loads(write_lineage(tmp_path, chain.sft.path, None, {"dtype": "float32"}).read_text())
    entries = {entry["step"]: entry for entry in page["artifacts"]}
    assert page["policy"] == chain.sft.key and entries.keys() >= {"sft", "pretrain"}
    assert page["evaluation"] == {"dtype": "float32"} and page["missing"] == []
    for artifact in (chain.sft, chain.pretrain):
        entry = entries[artifact.manifest["step"]]
        assert (entry["key"], entry["digest"]) == (artifact.key, artifact.digest)
        assert entry["seed"] == artifact.manifest["parts"]["seed"] and len(entry["config_sha256"]) == 64
        assert entry["git"] == artifact.manifest["git"] and entry["versions"]["torch"] and entry["precision"]
        for name, key in entry["inputs"].items():
            assert key in {one["key"] for one in page["artifacts"]}, name


@pytest.mark.tiny
def test_what_the_store_has_no_more_is_said(chain: TinyChain, tmp_path: Path) -> None:
    shutil.copytree(chain.sft.path, tmp_path / "store" / chain.sft.key)
    page = json.loads(write_lineage(tmp_path, tmp_path / "store" / chain.sft.key, None, {}).read_text())
    assert {entry["key"] for entry in page["artifacts"]} == {chain.sft.key}
    assert chain.pretrain.key in page["missing"]
