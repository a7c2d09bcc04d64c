"""The registry: versions, the chain of events, races, rollback."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from example_report import safetensors

from steps.lib import registry_files, tickets
from steps.lib.errors import ArtifactError, ConfigError
from steps.lib.registry import Registry

RACER = """
import sys
from pathlib import Path
from steps.lib.errors import ArtifactError
from steps.lib.registry import Registry
registry, versions, wanted = Registry(Path(sys.argv[1])), sys.argv[2].split(","), int(sys.argv[3])
wins = 0
while wins < wanted:
    now = registry.history("desk").aliases().get("champion")
    try:
        registry.promote("desk", versions[wins % len(versions)], expected=now, verdict_digest="0", reason="race")
        wins += 1
    except ArtifactError as error:
        assert "has moved" in str(error), error
"""


def model(folder: Path, text: str) -> Path:
    safetensors(folder / "adapter" / "adapter_model.safetensors", text)
    (folder / "chain.json").write_text(json.dumps({"base": "abc", "stages": [text]}))
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def add(registry: Registry, tmp_path: Path, text: str) -> str:
    return registry.register("desk", model(tmp_path / text, text), facts={"policy": text}).name


def test_register_is_immutable_and_idempotent(registry: Registry, tmp_path: Path) -> None:
    first, second = add(registry, tmp_path, "one"), add(registry, tmp_path, "two")
    assert add(registry, tmp_path, "one") == first
    assert first.startswith("v0001-") and second.startswith("v0002-")
    assert [version.facts["policy"] for version in registry.versions("desk")] == ["one", "two"]
    assert registry.versions("desk")[0].digest[:12] == first[6:]
    assert not list((tmp_path / "registry" / "desk" / "versions").glob(".*"))


def test_promote_and_rollback_are_byte_identical(registry: Registry, tmp_path: Path) -> None:
    one, two = add(registry, tmp_path, "one"), add(registry, tmp_path, "two")
    assert registry.champion("desk") is None
    registry.promote("desk", one, expected=None, verdict_digest="d1", reason="better")
    before = registry.resolve("desk", "champion")
    weights = (before.folder / "adapter" / "adapter_model.safetensors").read_bytes()
    registry.promote("desk", two, expected=one, verdict_digest="d2", reason="better still")
    assert registry.history("desk").replaced(two) == one
    event = registry.rollback("desk", expected=two, reason="complaints")
    after = registry.resolve("desk", "champion")
    assert (event.before, event.after) == (two, one) and after == before
    assert (after.folder / "adapter" / "adapter_model.safetensors").read_bytes() == weights
    assert [event.action for event in registry.history("desk").events] == [
        "register",
        "register",
        "promote",
        "promote",
        "rollback",
    ]
    cache = json.loads((tmp_path / "registry" / "desk" / "aliases.json").read_text())
    assert cache == {"seq": 5, "aliases": {"champion": one}}


def test_events_win_over_the_cache(registry: Registry, tmp_path: Path) -> None:
    one = add(registry, tmp_path, "one")
    registry.promote("desk", one, expected=None, verdict_digest="d", reason="r")
    (tmp_path / "registry" / "desk" / "aliases.json").write_text('{"seq": 0, "aliases": {"champion": "v0009-else"}}')
    assert registry.resolve("desk", "champion").name == one


def test_compare_and_swap(registry: Registry, tmp_path: Path) -> None:
    one, two = add(registry, tmp_path, "one"), add(registry, tmp_path, "two")
    registry.promote("desk", one, expected=None, verdict_digest="d", reason="r")
    with pytest.raises(ArtifactError, match="has moved: got 'v0001"):
        registry.promote("desk", two, expected=None, verdict_digest="d", reason="r")
    assert registry.resolve("desk", "champion").name == one


def test_rollback_needs_a_reason_and_a_target(registry: Registry, tmp_path: Path) -> None:
    one = add(registry, tmp_path, "one")
    registry.promote("desk", one, expected=None, verdict_digest="d", reason="r")
    with pytest.raises(ArtifactError, match="no reason"):
        registry.rollback("desk", expected=one, reason=" ")
    with pytest.raises(ArtifactError, match="nothing to go back to"):
        registry.rollback("desk", expected=one, reason="bad")


def test_a_damaged_version_is_not_promoted(registry: Registry, tmp_path: Path) -> None:
    one = registry.versions("desk")[0] if add(registry, tmp_path, "one") else None
    assert one is not None
    (one.folder / "chain.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"damaged: got other content in chain\.json"):
        registry.promote("desk", one.name, expected=None, verdict_digest="d", reason="r")
    assert registry.champion("desk") is None


def test_an_extra_file_is_damage(registry: Registry, tmp_path: Path) -> None:
    name = add(registry, tmp_path, "one")
    (registry.resolve("desk", name).folder / "evil.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"evil\.json"):
        registry.verify("desk", name)


def test_pickles_links_and_disguises_are_refused(registry: Registry, tmp_path: Path) -> None:
    folder = model(tmp_path / "m", "m")
    (folder / "training_args.bin").write_bytes(pickle.dumps({"lr": 1}))
    (folder / "fake.safetensors").write_bytes(pickle.dumps({"w": 1}))
    (folder / "link.json").symlink_to(folder / "chain.json")
    with pytest.raises(ArtifactError) as caught:
        registry.register("desk", folder, facts={})
    for name in ("training_args.bin (kind", "fake.safetensors (no safetensors header)", "link.json (a link)"):
        assert name in str(caught.value)
    assert not (tmp_path / "registry").exists()


def test_names_stay_inside_the_root(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="model name"):
        registry.register("../desk", model(tmp_path / "m", "m"), facts={})
    with pytest.raises(ArtifactError, match="has no alias or version"):
        registry.resolve("desk", "champion")


@pytest.mark.parametrize("harm", ["edit", "remove", "cut"])
def test_a_changed_log_is_noticed(registry: Registry, tmp_path: Path, harm: str) -> None:
    add(registry, tmp_path, "one")
    add(registry, tmp_path, "two")
    path = tmp_path / "registry" / "desk" / "events" / "000001.json"
    if harm == "edit":
        path.write_text(path.read_text().replace('"prefline"', '"somebody"'))
    elif harm == "remove":
        path.unlink()
    else:
        path.write_text(path.read_text()[:40])
    with pytest.raises(ArtifactError, match="event log"):
        registry.history("desk")


def test_what_a_crash_left_is_taken_up(registry: Registry, tmp_path: Path) -> None:
    """Killed between the rename and the event: the folder is there, the version is not; registering again makes it one."""
    name = add(registry, tmp_path, "one")
    (tmp_path / "registry" / "desk" / "events" / "000001.json").unlink()
    assert registry.versions("desk") == []
    add(registry, tmp_path, "two")
    assert add(registry, tmp_path, "one") == f"v0002-{name[6:]}"
    assert len(list((tmp_path / "registry" / "desk" / "versions").iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.pt", b"\x80\x04.", "kind of file"),
        ("modeling_evil.py", b"import os", "kind of file"),
        ("archive.zip", b"PK\x03\x04", "kind of file"),
        ("trainer_state.json", b"{}", "of a training run"),
        ("config.json", b'{"auto_map": {"AutoModel": "modeling_evil.Model"}}', "auto_map, which would run code"),
        ("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["x.T", null]}}', "auto_map, which would run code"),
        ("adapter/adapter_config.json", b'{"auto_mapping": {"parent_library": "os.path"}}', "which would be imported"),
        ("bad.json", b"{", "does not parse"),
        ("deep.json", b"[" * 200_000, "does not parse"),
        ("notes.txt", b"\xff\xfe\x00", "no UTF-8"),
        ("tokenizer.model", b"\x80\x04\x95", "a pickle"),
        ("huge.safetensors", (1 << 60).to_bytes(8, "little") + b"{}", "no safetensors header"),
        ("list.safetensors", (2).to_bytes(8, "little") + b"{]", "a safetensors header that does not parse"),
        ("tail.safetensors", (2).to_bytes(8, "little") + b"{}" + b"PK\x03\x04", "bytes that no tensor has"),
        ("items.jsonl.zst", b"\x28\xb5\x2f\xfd", "no items of an evaluation"),
        ("eval/items.jsonl.zst", b"not packed", "no items of an evaluation"),
        ("sub/SIGNATURE.txt/manifest.json", b"{", "does not parse"),
        ("SIGNATURE.json", b"{}", "kind of file"),
    ],
)
def test_what_could_run_or_fill_is_refused(
    registry: Registry, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    folder = model(tmp_path / "m", "m")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        registry.register("desk", folder, facts={})
    assert f"{name} (" in str(caught.value) and said in str(caught.value)
    assert not (tmp_path / "registry").exists()


def test_a_safetensors_file_that_was_cut_off_is_refused(registry: Registry, tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    folder = model(tmp_path / "m", "m")
    whole = len(header).to_bytes(8, "little") + header + bytes(16)
    (folder / "w.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match="cut off"):
        registry.register("desk", folder, facts={})
    (folder / "w.safetensors").write_bytes(whole)
    assert registry.register("desk", folder, facts={}).size > len(whole)


def test_a_pipe_and_a_linked_folder_are_refused(registry: Registry, tmp_path: Path) -> None:
    folder = model(tmp_path / "m", "m")
    os.mkfifo(folder / "pipe.json")
    (folder / "more").symlink_to(tmp_path)
    with pytest.raises(ArtifactError) as caught:
        registry.register("desk", folder, facts={})
    assert "more (a link)" in str(caught.value) and "pipe.json (no file)" in str(caught.value)


def test_a_packed_file_that_fills_the_disk_is_refused(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa

    folder = model(tmp_path / "m", "m")
    (folder / "eval").mkdir()
    with pa.CompressedOutputStream(str(folder / "eval" / "items.jsonl.zst"), "zstd") as file:
        file.write(b"0" * (8 << 20))
    assert (folder / "eval" / "items.jsonl.zst").stat().st_size < 4096
    monkeypatch.setattr(registry_files, "UNPACKED_BYTES", 4 << 20)
    with pytest.raises(ArtifactError, match="packed"):
        registry.register("desk", folder, facts={})


def test_records_do_not_make_another_version(registry: Registry, tmp_path: Path) -> None:
    """Built again on another machine: times and hosts differ, the model is the same."""
    folder = model(tmp_path / "m", "m")
    (folder / "lineage.json").write_text('{"host": "one"}')
    first = registry.register("desk", folder, facts={"policy": "m"})
    (folder / "lineage.json").write_text('{"host": "two"}')
    (folder / "README.md").write_text("# card\n")
    assert registry.register("desk", folder, facts={"policy": "m"}) == first
    assert json.loads((first.folder / "lineage.json").read_text()) == {"host": "one"}
    assert registry.register("desk", folder, facts={"policy": "another"}) != first
    (first.folder / "lineage.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"other content in lineage\.json"):
        registry.verify("desk", first.name)


def test_a_crash_before_the_event_is_taken_up_whatever_the_records_say(registry: Registry, tmp_path: Path) -> None:
    folder = model(tmp_path / "m", "m")
    (folder / "lineage.json").write_text('{"host": "one"}')
    name = registry.register("desk", folder, facts={}).name
    (tmp_path / "registry" / "desk" / "events" / "000001.json").unlink()
    (folder / "lineage.json").write_text('{"host": "two"}')
    assert registry.register("desk", folder, facts={}).name == name
    assert len(list((tmp_path / "registry" / "desk" / "versions").iterdir())) == 1


def test_a_challenger_is_pointed_at_until_it_is_champion(registry: Registry, tmp_path: Path) -> None:
    one, two = add(registry, tmp_path, "one"), add(registry, tmp_path, "two")
    registry.promote("desk", one, expected=None, verdict_digest="d", reason="better")
    event = registry.point("desk", two, alias="challenger", reason="inconclusive")
    assert registry.resolve("desk", "challenger").name == two and event.action == "point"
    assert registry.point("desk", two, alias="challenger", reason="again") == event, "nothing is recorded twice"
    registry.point("desk", one, alias="anchor", reason="approved by ann", expected=None)
    with pytest.raises(ArtifactError, match="alias anchor of desk has moved"):
        registry.point("desk", two, alias="anchor", reason="late", expected=None)
    registry.promote("desk", two, expected=one, verdict_digest="d", reason="better still")
    assert registry.history("desk").aliases() == {"champion": two, "anchor": one}
    registry.point("desk", None, alias="anchor", reason="no anchor any more")
    assert registry.history("desk").aliases() == {"champion": two}
    assert registry.history("desk").reigns() == [two, one]
    for alias, reason in (("champion", "r"), ("anchor", " "), ("Anchor/..", "r")):
        with pytest.raises(ArtifactError, match="only promote and rollback move champion"):
            registry.point("desk", one, alias=alias, reason=reason)


def test_an_alias_taken_away_by_nobody_changes_nothing(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="desk has no versions"):
        registry.point("desk", None, alias="anchor", reason="none")
    add(registry, tmp_path, "one")
    registry.point("desk", None, alias="anchor", reason="none")
    assert len(registry.history("desk").events) == 1
    with pytest.raises(ArtifactError, match="has no alias or version 'anchor'"):
        registry.resolve("desk", "anchor")


def test_a_rollback_counts_for_a_policy_under_any_report(registry: Registry, tmp_path: Path) -> None:
    one = add(registry, tmp_path, "one")
    registry.promote("desk", one, expected=None, verdict_digest="d", reason="better")
    two = registry.register("desk", model(tmp_path / "two", "two"), facts={"policy": "two", "report": "r1"}).name
    again = registry.register("desk", tmp_path / "two", facts={"policy": "two", "report": "r2"}).name
    assert again != two and registry.withdrawn("desk") == set()
    registry.promote("desk", two, expected=one, verdict_digest="d", reason="better")
    registry.rollback("desk", expected=two, reason="complaints")
    assert registry.withdrawn("desk") == {"two"} and registry.history("desk").rolled_back() == {two}
    registry.promote("desk", again, expected=one, verdict_digest="", reason="ann: mended upstream")
    assert registry.withdrawn("desk") == set()


def test_all_problems_of_a_registry_are_told(registry: Registry, tmp_path: Path) -> None:
    one, two = add(registry, tmp_path, "one"), add(registry, tmp_path, "two")
    assert registry.problems("desk") == [] and registry.models() == ["desk"]
    versions = tmp_path / "registry" / "desk" / "versions"
    (versions / one / "chain.json").write_text("{}")
    (versions / two / "manifest.json").unlink()
    found = registry.problems("desk")
    assert len(found) == 2 and "chain.json" in found[0] and "got no manifest.json" in found[1]
    (tmp_path / "registry" / "desk" / "events" / "000001.json").unlink()
    assert len(found := registry.problems("desk")) == 1 and "a gap in the numbers" in found[0]


def test_an_object_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got an URL, because an alias is claimed by a hard link"):
        Registry(Path("s3://bucket/registry"))


def test_a_file_system_without_links_is_said(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ArtifactError, match="has no hard links, which claim an event"):
        add(registry, tmp_path, "one")


@pytest.mark.fault
def test_racing_promotions_with_one_killed(registry: Registry, tmp_path: Path) -> None:
    """Four processes promote; one dies by SIGKILL. Every event is one swap from the state before it."""
    versions = [add(registry, tmp_path, text) for text in ("one", "two", "three")]
    command = [sys.executable, "-c", RACER, str(tmp_path / "registry"), ",".join(versions)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    racers = [subprocess.Popen([*command, "15"], env=environment) for _ in range(3)]
    victim = subprocess.Popen([*command, "100000"], env=environment)
    deadline = time.monotonic() + 60
    while len(registry.history("desk").events) < 12 and time.monotonic() < deadline:
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait(20) == -signal.SIGKILL
    assert [racer.wait(60) for racer in racers] == [0, 0, 0]
    history = registry.history("desk")  # raises when the chain is broken
    moves = [event for event in history.events if event.action == "promote"]
    assert len(moves) >= 45
    assert all(move.before == earlier.after for earlier, move in zip(moves, moves[1:], strict=False))
    assert registry.resolve("desk", "champion").name == moves[-1].after


def test_racing_registrations_number_without_gaps(registry: Registry, tmp_path: Path) -> None:
    folders = [model(tmp_path / f"r{index}", f"r{index}") for index in range(4)]
    code = (
        "import sys; from pathlib import Path; from steps.lib.registry import Registry; "
        "Registry(Path(sys.argv[1])).register('desk', Path(sys.argv[2]), facts={})"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "registry"), str(folder)], env=environment)
        for folder in [*folders, folders[0]]
    ]
    assert [run.wait(60) for run in runs] == [0] * 5
    names = [version.name[:5] for version in registry.versions("desk")]
    assert names == ["v0001", "v0002", "v0003", "v0004"]
    assert len(list((tmp_path / "registry" / "desk" / "versions").iterdir())) == 4


def test_what_a_killed_process_left_is_swept_and_what_a_live_one_writes_stays(
    registry: Registry, tmp_path: Path
) -> None:
    add(registry, tmp_path, "one")
    home = tmp_path / "registry" / "desk"
    code = "from steps.lib.tickets import mark; print(mark())"
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    alive = tickets.mark()
    elsewhere = "0" * 12 + dead[12:]
    for name in (dead, alive, elsewhere):
        (home / "versions" / f".{name}.partial").mkdir()
        for folder in (home, home / "events"):
            (folder / f".{name}.tmp").write_text("{")
    add(registry, tmp_path, "two")
    left = sorted(path.relative_to(home).as_posix() for path in home.rglob(".*"))
    assert left == sorted(
        f"{folder}.{name}"
        for one in (alive, elsewhere)
        for folder, name in (("versions/", f"{one}.partial"), ("", f"{one}.tmp"), ("events/", f"{one}.tmp"))
    )
