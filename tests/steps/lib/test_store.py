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

from steps.lib import publishing
from steps.lib.artifact import MANIFEST, Artifact, damage, lineage, seal
from steps.lib.digests import digest_file
from steps.lib.errors import ArtifactError
from steps.lib.publishing import clear, publish
from steps.lib.store import Store, work_folder

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
    real_fsync, real_replace = publishing.fsync, os.replace

    def fsync(path: Path) -> None:
        assert not (work_folder(tmp_path / KEY) / MANIFEST).exists() or path.is_dir(), (
            "content is on disk before the manifest"
        )
        events.append(path.name)
        real_fsync(path)

    def replace(source: Any, target: Any) -> None:
        events.append(f"{Path(source).name} -> {Path(target).name}")
        real_replace(source, target)

    monkeypatch.setattr(publishing, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    publish_at(tmp_path)
    name = KEY.split("/")[1]
    assert sorted(events[:3]) == ["log.jsonl", "rows.parquet", "weights.safetensors"]
    assert events[3:] == [
        "manifest.json.tmp -> manifest.json",
        f".resume -> .{name}.resume",
        f".{name}.partial -> {name}",
        "clean",
    ], "what resuming needs is safe until the manifest is; the folder above is flushed after the rename"
    assert sorted(path.name for path in (tmp_path / "clean").iterdir()) == [name]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_crash_while_publishing_leaves_the_partial_folder_and_no_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publishing if moment == "fsync" else os, moment, crash)
        with pytest.raises(KeyboardInterrupt):
            publish_at(tmp_path)
    assert Store(tmp_path).find(KEY) is None and not (tmp_path / KEY).exists()
    work = work_folder(tmp_path / KEY)
    assert (work / "rows.parquet").read_bytes() == b"rows" and (work / ".resume" / "checkpoint").exists()
    again = publish(work, tmp_path / KEY, {"key": KEY, "step": "clean", "inputs": {}})
    assert MANIFEST not in again.manifest["files"], "the manifest of the first try is no content"
    assert again.digest == publish_at(tmp_path / "other").digest


def flip(path: Path) -> None:
    """Another byte, the same size and the same mtime: as a bad cable or a careless tool leaves it."""
    facts, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def sealed(path: Path, **values: Any) -> None:
    """A manifest of another artifact: whole, but not this one's."""
    manifest = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({**manifest, "seal": seal(manifest)}))


def in_place_of(path: Path) -> Path:
    path.unlink()
    return path


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
        (lambda f: (f / MANIFEST).write_text('{"files": {}}'), "without its seal, as older versions wrote it"),
        (lambda f: shutil.rmtree(f / "model"), "no file model/weights.safetensors"),
        (lambda f: flip(f / "rows.parquet"), "rows.parquet with other bytes"),
        (lambda f: flip(f / "record" / "log.jsonl"), "log.jsonl with other bytes"),
        (lambda f: change(f / MANIFEST, tokens=7), "was changed after it was written"),
        (
            lambda f: sealed(f / MANIFEST, key="clean/" + "b" * 20),
            "the artifact clean/bbbbbbbbbbbbbbbbbbbb at the place of",
        ),
        (lambda f: in_place_of(f / "rows.parquet").mkdir(), "rows.parquet that is no file"),
        (lambda f: in_place_of(f / "rows.parquet").symlink_to("rows.parquet"), "rows.parquet that cannot be read"),
        (lambda f: in_place_of(f / MANIFEST).mkdir(), "a manifest.json that cannot be read"),
    ],
)
def test_damage_is_found_set_aside_and_built_again(
    tmp_path: Path, harm: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    digest = publish_at(tmp_path).digest
    assert Store(tmp_path).find(KEY), "its digests are remembered"
    harm(tmp_path / KEY)
    if "at the place of" not in said:
        with pytest.raises(ArtifactError, match="is not a whole artifact"):
            Artifact.read(tmp_path / KEY, deep=True)
    store = Store(tmp_path)
    with caplog.at_level("WARNING"):
        assert store.find(KEY) is None and not (tmp_path / KEY).exists()
    assert said in caplog.text and "it is built again when it is needed" in caplog.text
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
@settings(max_examples=20, deadline=None)
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


def test_a_file_that_the_manifest_does_not_list_is_set_aside_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish_at(tmp_path)
    (tmp_path / KEY / "model" / "more.safetensors").write_bytes(b"foreign")
    (tmp_path / KEY / ".DS_Store").write_bytes(b"a file system's own")
    assert Store(tmp_path).find(KEY), "the artifact itself is whole"
    assert not (tmp_path / KEY / "model" / "more.safetensors").exists() and (tmp_path / KEY / ".DS_Store").exists()
    [aside] = (tmp_path / "broken").glob("*/model/more.safetensors")
    assert aside.read_bytes() == b"foreign" and "more.safetensors of artifact clean/" in caplog.text


def test_every_byte_is_proved_but_none_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_at(tmp_path)
    monkeypatch.setattr("hashlib.file_digest", None)  # reading would fail
    assert Store(tmp_path).find(KEY), "publishing has read it"
    (tmp_path / KEY / "rows.parquet").touch()
    with pytest.raises(TypeError):
        Store(tmp_path).find(KEY)
    monkeypatch.undo()
    assert Store(tmp_path).find(KEY), "a touched file has the same bytes"
    monkeypatch.setattr("hashlib.file_digest", None)
    assert Store(tmp_path).find(KEY) and damage(tmp_path / KEY, deep=True) is None
    with pytest.raises(TypeError):
        damage(tmp_path / KEY, deep=True, fresh=True)


def test_a_crash_between_the_manifest_and_the_rename_needs_no_second_run(tmp_path: Path) -> None:
    made = publish_at(tmp_path)
    os.replace(tmp_path / KEY, work_folder(tmp_path / KEY))
    assert damage(work_folder(tmp_path / KEY), key=KEY, deep=True) is None
    again = publishing.finish(work_folder(tmp_path / KEY), tmp_path / KEY, made.manifest)
    (tmp_path / "clean" / f".{'a' * 20}.resume").mkdir()
    found = Store(tmp_path).find(KEY)
    assert found and again.digest == made.digest == found.digest
    assert [path.name for path in (tmp_path / "clean").iterdir()] == ["a" * 20], "a leftover of publishing is swept"


def test_what_a_crashed_attempt_had_written_is_cleared_but_for_what_resuming_needs(tmp_path: Path) -> None:
    for name in ("half.parquet", "model/shard", ".resume/checkpoint-4/weights", "record/log.jsonl", "manifest.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    clear(tmp_path)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".resume/checkpoint-4/weights", "record/log.jsonl"] and not (tmp_path / "link").is_symlink()
    clear(tmp_path / "nothing")


def test_removing_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_at(tmp_path)
    monkeypatch.setattr("shutil.rmtree", lambda path: None)  # killed before the deletion
    Store(tmp_path).remove(KEY)
    assert Store(tmp_path).find(KEY) is None and list(Store(tmp_path).keys()) == []


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
@settings(max_examples=12, deadline=None)
def test_digest_does_not_depend_on_place_key_or_records(files: dict[str, bytes], log: bytes) -> None:
    digest = digest_of(files)
    assert digest_of(dict(reversed(files.items())), key="sft/" + "9" * 20) == digest
    assert digest_of({**files, "record/log.jsonl": log}) == digest
    assert digest_of({**files, "record/deep/er": log}) == digest
    assert digest_of({**files, "seen.parquet": log}, records=("seen.parquet",)) == digest


@given(contents, st.data())
@settings(max_examples=12, deadline=None)
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
