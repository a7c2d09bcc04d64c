"""Artifacts are whole or not there, and their digest is of their content alone."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.lib import store as stores
from steps.lib.errors import ArtifactError, DataError
from steps.lib.store import (
    MANIFEST,
    Artifact,
    Store,
    damage,
    digest_file,
    digest_folder,
    lineage,
    publish,
    work_folder,
)

KEY = "clean/" + "a" * 20
FILES = {"rows.parquet": b"rows", "model/weights.safetensors": b"weights", "record/log.jsonl": b"{}\n"}


def publish_at(root: Path, key: str = KEY, files: dict[str, bytes] = FILES, **facts: Any) -> Artifact:
    work = work_folder(root / key)
    for name, content in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content)
    (work / ".resume").mkdir()
    (work / ".resume" / "checkpoint").write_bytes(b"big")
    return publish(work, root / key, {"key": key, "step": key.split("/")[0], "inputs": {}, **facts})


def test_a_published_artifact_is_found_whole(tmp_path: Path) -> None:
    made = publish_at(tmp_path)
    found = Store(tmp_path).find(KEY)
    assert found is not None and found.path == tmp_path / KEY and (found.key, found.digest) == (KEY, made.digest)
    assert set(found.manifest["files"]) == set(FILES), "records are listed too; .resume is gone"
    assert not (found.path / ".resume").exists() and not work_folder(found.path).exists()
    assert found.manifest["files"]["rows.parquet"] == {"size": 4, "sha256": digest_file(found.path / "rows.parquet")}
    assert [artifact.key for artifact in Store(tmp_path).artifacts()] == [KEY]


def test_the_manifest_is_written_last_and_the_rename_comes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_fsync, real_replace = stores._fsync, os.replace

    def fsync(path: Path) -> None:
        assert not (work_folder(tmp_path / KEY) / MANIFEST).exists() or path.is_dir(), (
            "content is on disk before the manifest"
        )
        events.append(path.name)
        real_fsync(path)

    def replace(source: Any, target: Any) -> None:
        assert (Path(source) / MANIFEST).exists() and Path(target) == tmp_path / KEY
        events.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(stores, "_fsync", fsync)
    monkeypatch.setattr(stores.os, "replace", replace)
    publish_at(tmp_path)
    assert sorted(events[:3]) == ["log.jsonl", "rows.parquet", "weights.safetensors"]
    assert events[3:] == ["rename", "clean"], "the folder above is flushed after the rename"


@pytest.mark.parametrize("moment", ["_fsync", "replace"])
def test_a_crash_while_publishing_leaves_the_partial_folder_and_no_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stores if moment == "_fsync" else stores.os, moment, crash)
        with pytest.raises(KeyboardInterrupt):
            publish_at(tmp_path)
    assert Store(tmp_path).find(KEY) is None and not (tmp_path / KEY).exists()
    work = work_folder(tmp_path / KEY)
    assert (work / "rows.parquet").read_bytes() == b"rows"
    again = publish(work, tmp_path / KEY, {"key": KEY, "step": "clean", "inputs": {}})
    assert MANIFEST not in again.manifest["files"], "the manifest of the first try is no content"
    assert again.digest == publish_at(tmp_path / "other").digest


@pytest.mark.fault
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: (f / "rows.parquet").write_bytes(b"ro"), "rows.parquet of 2 bytes, where the manifest says 4"),
        (lambda f: (f / "model" / "weights.safetensors").unlink(), "no file model/weights.safetensors"),
        (lambda f: (f / MANIFEST).unlink(), "no manifest.json"),
        (lambda f: (f / MANIFEST).write_text('{"key": "cl'), "does not parse"),
        (lambda f: (f / MANIFEST).write_bytes(b"\xff\x00\xfe"), "does not parse"),
        (lambda f: (f / MANIFEST).write_text(""), "does not parse"),
        (lambda f: (f / MANIFEST).write_text("{}"), "does not parse"),
        (lambda f: shutil.rmtree(f / "model"), "no file model/weights.safetensors"),
    ],
)
def test_damage_is_found_set_aside_and_built_again(tmp_path: Path, harm: Any, said: str) -> None:
    digest = publish_at(tmp_path).digest
    harm(tmp_path / KEY)
    with pytest.raises(ArtifactError, match="is not a whole artifact"):
        Artifact.read(tmp_path / KEY)
    store = Store(tmp_path)
    assert store.find(KEY) is None and not (tmp_path / KEY).exists()
    [reason] = (tmp_path / "broken").glob("*.reason.txt")
    assert said in reason.read_text()
    assert reason.with_name(reason.name.removesuffix(".reason.txt")).is_dir(), "nothing is deleted"
    assert publish_at(tmp_path).digest == digest and store.find(KEY) is not None
    assert [artifact.key for artifact in store.artifacts()] == [KEY], "what is set aside is no artifact"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
@settings(max_examples=40, deadline=None)
def test_no_garbage_in_a_manifest_breaks_the_look_up(value: Any) -> None:
    for content in (
        value,
        {"key": KEY, "digest": "d", "files": value},
        {"key": KEY, "digest": "d", "files": {"rows.parquet": value}},
    ):
        with tempfile.TemporaryDirectory() as folder:
            publish_at(Path(folder))
            (Path(folder) / KEY / MANIFEST).write_text(json.dumps(content))
            if content != {"key": KEY, "digest": "d", "files": {}}:  # an artifact without files is whole
                assert Store(Path(folder)).find(KEY) is None
                assert len(list((Path(folder) / "broken").glob("*.reason.txt"))) == 1


def test_a_damaged_artifact_does_not_hide_the_others(tmp_path: Path) -> None:
    publish_at(tmp_path)
    publish_at(tmp_path, "sft/" + "b" * 20)
    (tmp_path / KEY / "rows.parquet").write_bytes(b"")
    assert [artifact.key for artifact in Store(tmp_path).artifacts()] == ["sft/" + "b" * 20]


def test_prefects_record_is_neither_listed_nor_digested(tmp_path: Path) -> None:
    plain = publish_at(tmp_path / "one")
    noted = publish_at(tmp_path / "two", files={**FILES, "prefect.json": b"{}"})
    assert noted.digest == plain.digest and "prefect.json" not in noted.manifest["files"]
    (plain.path / "prefect.json").write_text("{")
    assert damage(plain.path) is None


def test_building_again_sets_the_old_one_aside(tmp_path: Path) -> None:
    publish_at(tmp_path)
    publish_at(tmp_path, files={"rows.parquet": b"other"})
    assert (tmp_path / KEY / "rows.parquet").read_bytes() == b"other"
    [old] = [path for path in (tmp_path / "broken").iterdir() if path.is_dir()]
    assert (old / "rows.parquet").read_bytes() == b"rows"


# --- the output digest -----------------------------------------------------------------------------------------------

contents = st.dictionaries(
    st.sampled_from(["a", "b", "model/c", "model/d"]), st.binary(min_size=1, max_size=8), min_size=1
)


def digest_of(files: dict[str, bytes], key: str = KEY, records: tuple[str, ...] = ()) -> str:
    with tempfile.TemporaryDirectory() as folder:
        work = work_folder(Path(folder) / key)
        for name, content in files.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes(content)
        return publish(work, Path(folder) / key, {"key": key, "when": os.getpid()}, records=records).digest


@given(contents, st.binary(max_size=8))
@settings(max_examples=25, deadline=None)
def test_digest_does_not_depend_on_place_key_or_records(files: dict[str, bytes], log: bytes) -> None:
    digest = digest_of(files)
    assert digest_of(dict(reversed(files.items())), key="sft/" + "9" * 20) == digest
    assert digest_of({**files, "record/log.jsonl": log}) == digest
    assert digest_of({**files, "record/deep/er": log}) == digest
    assert digest_of({**files, "seen.parquet": log}, records=("seen.parquet",)) == digest


@given(contents, st.data())
@settings(max_examples=25, deadline=None)
def test_digest_depends_on_every_byte_and_name(files: dict[str, bytes], data: st.DataObject) -> None:
    digest = digest_of(files)
    name = data.draw(st.sampled_from(sorted(files)))
    at = data.draw(st.integers(0, len(files[name]) - 1))
    flipped = bytes(b ^ 1 if i == at else b for i, b in enumerate(files[name]))
    assert digest_of({**files, name: flipped}) != digest
    assert digest_of({**files, name: files[name][:-1]}) != digest
    assert digest_of({(f"{name}x" if n == name else n): content for n, content in files.items()}) != digest
    assert digest_of({**files, "new": b""}) != digest


def test_the_base_an_adapter_names_is_no_content_but_the_rest_is() -> None:
    def adapter(**values: Any) -> dict[str, bytes]:
        return {"adapter/adapter_config.json": json.dumps(values).encode(), "adapter/adapter_model.safetensors": b"w"}

    digest = digest_of(adapter(r=8, base_model_name_or_path="/home/a/model"))
    assert digest_of(adapter(base_model_name_or_path="/mnt/b", r=8)) == digest
    assert digest_of(adapter(r=8)) == digest
    assert digest_of(adapter(r=16, base_model_name_or_path="/home/a/model")) != digest


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


# --- lineage ---------------------------------------------------------------------------------------------------------


def test_lineage_names_every_ancestor_once(tmp_path: Path) -> None:
    def at(step: str) -> dict[str, str]:
        return {"key": f"{step}/{'0' * 20}", "digest": "d"}

    publish_at(tmp_path, f"clean/{'0' * 20}")
    publish_at(tmp_path, f"base/{'0' * 20}", inputs={"corpus": at("clean")})
    publish_at(tmp_path, f"sft/{'0' * 20}", inputs={"base": at("base"), "chats": at("clean"), "gone": at("nowhere")})
    found = [manifest["step"] for manifest in lineage(tmp_path / "sft" / ("0" * 20))]
    assert found[0] == "sft" and sorted(found) == ["base", "clean", "sft"]
    assert lineage(tmp_path / "nowhere") == []
