"""The commands that look: what they print, their JSON, their exit codes, and that they change nothing unasked."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import example_report
import pytest
from looking import prefline
from minimal import Line, line_recipe
from rich.cells import cell_len
from s3_server import machine
from test_plan import config_of, everything, fake, fill

from flows.commands import gc, lineage, show, status, verify, why
from flows.plan import walk
from steps.lib import runs
from steps.lib.errors import ArtifactError, ConfigError
from steps.lib.registry import Registry
from steps.lib.remote import RemoteStore
from steps.lib.store import Store


@pytest.fixture
def line(tmp_path: Path) -> Line:
    line_recipe(tmp_path)
    return Line(tmp_path)


@pytest.fixture
def store(line: Line) -> Store:
    return Store(line.folder / "store")


@pytest.fixture(scope="module")
def filled_once(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A line with fake artifacts of all steps but promote; work on a copy."""
    line = Line(tmp_path_factory.mktemp("line"))
    line_recipe(line.folder)
    fill(config_of(line, "promote=null"), Store(line.folder / "store"))
    return line


@pytest.fixture
def filled(filled_once: Line, tmp_path: Path) -> Line:
    return filled_once.copy(tmp_path)


def words(line: Line, *more: str) -> list[str]:
    return [*more, "promote=null", "--recipe", str(line.recipe)]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def page(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def rows(text: str) -> dict[str, str]:
    """First word of each line of a table -> the line with single blanks."""
    return {line.split()[0]: " ".join(line.split()) for line in text.splitlines() if line.split()}


# --- from the shell --------------------------------------------------------------------------------------------------


def test_status_from_the_shell_ends_with_a_code_for_scripts(filled: Line, store: Store) -> None:
    before = everything(store.root)
    done = prefline("status", *words(filled))
    assert done.returncode == 0 and "9 of 9 steps are there" in done.stdout, done.stderr
    done = prefline("status", *words(filled, "dpo.beta=0.2"))
    assert done.returncode == 10 and "dpo.beta 0.1 -> 0.2" in done.stdout, done.stderr
    assert everything(store.root) == before


@pytest.mark.parametrize(("command", "code"), [("status", status.INCOMPLETE), ("verify", verify.BROKEN)])
def test_the_help_tells_the_exit_codes(command: str, code: int) -> None:
    text = " ".join(prefline(command, "--help").stdout.replace("│", " ").split())
    assert "The exit code is 0 when" in text and f"and {code} when" in text


def test_what_is_not_there_is_an_error_with_a_way_out(line: Line) -> None:
    done = prefline("show", "sft", *words(line))
    text = " ".join(done.stderr.split())
    assert done.returncode == 5 and "got state waits" in text and "; build it (prefline step sft" in text
    assert "prefline why sft" in text and "Traceback" not in done.stderr
    with pytest.raises(ArtifactError, match="has no lineage yet: got state waits"):
        lineage.lineage("sft", recipe=[line.recipe])
    with pytest.raises(ArtifactError, match="no key that begins so"):
        verify.verify("sft/123", recipe=[line.recipe])


def test_verify_from_the_shell_ends_with_5_when_something_was_broken(filled: Line, store: Store) -> None:
    [path] = (store.root / "sft").glob("*/result.txt")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert verify.verify("dpo", recipe=[filled.recipe]) == 0, "only what was asked for"
    done = prefline("verify", *words(filled))
    assert done.returncode == 5 and "other bytes" in done.stdout and "1 broken" in done.stdout
    assert "9 artifacts" in done.stdout and " GB/s" in done.stdout
    assert not path.exists() and list((store.root / "broken").glob("sft-*/result.txt"))


# --- status ----------------------------------------------------------------------------------------------------------


def test_status_shows_each_state_in_words(filled: Line, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    looks = {look.step: look for look in walk(config_of(filled, "promote=null"), store)}
    assert looks["pairs"].key and looks["dpo"].key
    shutil.rmtree(store.folder(looks["pairs"].key))
    (store.partial(looks["pairs"].key) / ".resume").mkdir(parents=True)
    assert status.status("promote=null", recipe=[filled.recipe]) == status.INCOMPLETE
    found = rows(said(capsys))
    assert re.match(r"sft done sft/[0-9a-f]{12} \d+ bytes 20\d\d-", found["sft"])
    assert re.match(r"pairs partial pairs/[0-9a-f]{12} written \d+ s ago", found["pairs"])
    assert (
        found["reference"] == "reference waits for pairs"
        and found["dpo"] == "dpo waits for pairs"
        and found["evaluate"] == "evaluate waits for pairs"
    )
    assert found["5"].startswith("5 of 9 steps are there")


def test_status_as_json(filled: Line, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.status("promote=null", "sft.lora.rank=8", recipe=[filled.recipe], json=True) == 10
    found = page(capsys)
    assert found["complete"] is False and found["store"] == str(store.root) and found["size"] > 0
    steps = {step["step"]: step for step in found["steps"]}
    assert steps["pretrain"]["state"] == "done" and Path(steps["pretrain"]["folder"]).is_dir()
    assert steps["sft"]["state"] == "stale" and "sft.lora.rank 4 -> 8" in steps["sft"]["note"]
    assert steps["dpo"] | {"note": ""} == {
        "step": "dpo",
        "state": "waits",
        "key": None,
        "folder": None,
        "size": None,
        "finished": None,
        "digest": None,
        "progress": [],
        "partial_age_seconds": None,
        "holder": None,
        "code_changed": [],
        "waits_for": ["sft"],
        "note": "",
    }


# --- why -------------------------------------------------------------------------------------------------------------


def test_why_names_the_value_that_differs(filled: Line, capsys: pytest.CaptureFixture[str]) -> None:
    why.why("dpo", "dpo.beta=0.2", "dpo.train.lr=0.5", "promote=null", recipe=[filled.recipe])
    text = said(capsys)
    assert "is not there; the store has others of this step" in text and "2 parts differ" in text
    table = rows(text)
    assert table["dpo.train.lr"] == "dpo.train.lr 0.5" or "dpo.train.lr 0.001 0.5" in " ".join(text.split())
    assert "dpo.beta 0.1 0.2" in " ".join(text.split())
    assert "input policy" in text and "sft/" in text, "what the key is made of"


def test_why_of_the_nearest_takes_the_fewest_changes(
    filled: Line, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(config_of(filled, "promote=null", "dpo.beta=0.3", "dpo.train.lr=0.5"), store, until="dpo")
    why.why("dpo", "dpo.beta=0.2", "promote=null", recipe=[filled.recipe], json=True)
    found = page(capsys)
    assert [change["part"] for change in found["changes"]] == ["dpo.beta"]
    assert (found["changes"][0]["old"], found["changes"][0]["new"]) == (0.1, 0.2)
    why.why("dpo", "dpo.beta=0.2", "dpo.train.lr=0.5", "promote=null", recipe=[filled.recipe], json=True)
    assert [(one["part"], one["old"]) for one in page(capsys)["changes"]] == [("dpo.beta", 0.3)]


def test_why_names_the_input_and_the_file(filled: Line, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with (filled.folder / "domain-train.jsonl").open("a") as file:
        file.write('{"id": "new", "lang": "en", "text": "The shop opens at nine on every working day of the week."}\n')
    why.why("clean", "promote=null", recipe=[filled.recipe], json=True)
    [change] = page(capsys)["changes"]
    assert change["part"].startswith("external domain/") and change["new_note"].endswith("domain-train.jsonl")
    fill(config_of(filled, "promote=null"), store, until="clean")
    why.why("base", "promote=null", recipe=[filled.recipe], json=True)
    [change] = page(capsys)["changes"]
    assert change["part"] == "input corpus" and change["old"] != change["new"]
    assert change["old_note"].startswith("clean/") and change["old_note"] != change["new_note"]
    why.why("base", "promote=null", recipe=[filled.recipe])
    assert change["new_note"] in said(capsys)


def test_why_of_a_hit_says_which_code_changed(filled: Line, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    look = next(one for one in walk(config_of(filled, "promote=null"), store) if one.step == "dpo")
    assert look.spec and look.artifact
    shutil.rmtree(look.artifact.path)
    fake(store, look.spec, code={"digest": "x", "files": {"steps/lost.py": "0"}})
    why.why(look.artifact.key[:10], recipe=[filled.recipe])
    text = " ".join(said(capsys).split())
    assert "is there; code changed since it was built:" in text and "steps/lost.py" in text
    assert "no other artifact of dpo in the store to compare with" in text


def test_why_of_a_step_that_waits_explains_what_it_waits_for(filled: Line, capsys: pytest.CaptureFixture[str]) -> None:
    why.why("evaluate", "sft.lora.rank=8", "promote=null", recipe=[filled.recipe])
    text = " ".join(said(capsys).split())
    assert text.startswith("evaluate waits for sft") and "sft.lora.rank 4 8" in text
    why.why("evaluate", "sft.lora.rank=8", "promote=null", recipe=[filled.recipe], json=True)
    found = page(capsys)
    assert found["waits_for"] == ["sft"] and [one["step"] for one in found["upstream"]] == ["sft"]
    assert found["upstream"][0]["changes"][0]["part"] == "sft.lora.rank"


def test_why_works_in_an_empty_store(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    why.why("generate", recipe=[line.recipe])
    text = said(capsys)
    assert "the store has no other of this step" in text and "generate.samples" in text
    assert "external prompt file" in text and "configs/prompts/aftersales.yaml" in text


# --- show ------------------------------------------------------------------------------------------------------------


def test_show_reads_the_manifest_for_people(filled: Line, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    show.show("dpo", "promote=null", recipe=[filled.recipe])
    text = " ".join(said(capsys).split())
    [folder] = (store.root / "dpo").iterdir()
    for part in (
        f"folder {folder}",
        "state done",
        "took 1.5 s",
        "tokens 1,234",
        "versions python 3.11",
        "policy sft/",
        "loss 0.5",
        "in prompts 9",
        "dropped prompts: too_long 2",
        "result.txt",
    ):
        assert part in text, part
    show.show(f"dpo/{folder.name[:6]}", recipe=[filled.recipe], json=True)
    found = page(capsys)
    assert found["key"] == f"dpo/{folder.name}" and found["state"] == "done" and found["metrics"] == {"loss": 0.5}
    assert found["folder"] == str(folder) and found["size"] == (folder / "result.txt").stat().st_size


# --- lineage ---------------------------------------------------------------------------------------------------------


def test_lineage_is_a_tree_in_which_each_stands_once(filled: Line, capsys: pytest.CaptureFixture[str]) -> None:
    lineage.lineage("dpo", "promote=null", recipe=[filled.recipe])
    lines = said(capsys).splitlines()
    assert re.match(r"dpo/[0-9a-f]{12}  [0-9a-f]{12}  7 rows", lines[0])
    full = [re.search(r"(\w+)/[0-9a-f]{12}", one)[1] for one in lines if "(above)" not in one]  # type: ignore[index]
    assert full == ["dpo", "sft", "pretrain", "base", "clean", "generate", "pairs", "reference"]
    assert sum("clean/" in one and "(above)" in one for one in lines) == 3, "pretrain, sft and pairs read it, too"
    lineage.lineage("dpo", "promote=null", recipe=[filled.recipe], json=True)
    nodes = {node["step"]: node for node in page(capsys)}
    assert nodes["dpo"]["inputs"]["policy"] == nodes["sft"]["key"] and len(nodes) == 8


def test_lineage_of_a_registered_model(filled: Line, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    [path] = (store.root / "dpo").iterdir()
    digest = json.loads((path / "manifest.json").read_text())["digest"]
    registry = Registry(filled.folder / "registry")
    example_report.safetensors(filled.folder / "files" / "adapter_model.safetensors")
    version = registry.register("desk", filled.folder / "files", facts={"policy": digest})
    registry.promote("desk", version.name, expected=None, verdict_digest="", reason="better")
    for words_ in ({}, {"alias": version.name}):
        lineage.lineage("desk", recipe=[filled.recipe], **words_)
        text = said(capsys)
        assert version.name in text.splitlines()[0] and f"dpo/{path.name[:12]}" in text.splitlines()[1]
    with pytest.raises(ArtifactError, match="model shop is not in the registry .* got desk"):
        lineage.lineage("shop", recipe=[filled.recipe])
    with pytest.raises(ArtifactError, match="no alias or version"):
        lineage.lineage("desk", recipe=[filled.recipe], alias="challenger")
    shutil.rmtree(path)
    with pytest.raises(ArtifactError, match="its files are in the registry all the same"):
        lineage.lineage("desk", recipe=[filled.recipe])


def test_lineage_shows_what_was_collected(filled: Line, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(store.root / "clean")
    [path] = (store.root / "sft").iterdir()
    lineage.lineage(f"sft/{path.name}", recipe=[filled.recipe])
    assert "(not in the store any more)" in said(capsys)


# --- verify ----------------------------------------------------------------------------------------------------------


def test_verify_reads_what_is_on_the_disk_and_not_what_is_remembered(
    filled: Line, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """A byte that changed without a write: the memo is told that the file is as it was."""
    from steps.lib import digests

    [path] = (store.root / "sft").glob("*/result.txt")
    path.write_bytes(b"?" + path.read_bytes()[1:])
    whole = json.loads((path.parent / "manifest.json").read_text())["files"]["result.txt"]["sha256"]
    digests._memo(os.getpid()).put(digests._signature(os.stat(path)), whole)
    assert status.status("promote=null", recipe=[filled.recipe]) == 0, "a look-up believes the memo"
    assert verify.verify(f"sft/{path.parent.name}", recipe=[filled.recipe], dry_run=True, json=True) == 5
    capsys.readouterr()
    assert path.exists(), "only reported"
    assert verify.verify("sft", recipe=[filled.recipe]) == 5
    assert "set aside in broken/" in said(capsys) and not path.exists()
    assert verify.verify(recipe=[filled.recipe], json=True) == 0
    found = page(capsys)
    assert found["checked"] == 8 and found["broken"] == {} and found["size"] > 0


def test_verify_checks_the_key_and_finds_folders_without_a_manifest(
    filled: Line, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    look = next(one for one in walk(config_of(filled, "promote=null"), store) if one.step == "dpo")
    assert look.spec and look.artifact
    shutil.rmtree(look.artifact.path)
    fake(store, look.spec, parts={**look.spec.parts, "seed": 7})
    [sft] = (store.root / "sft").iterdir()
    (sft / "manifest.json").unlink()
    assert verify.verify(recipe=[filled.recipe], json=True) == 5
    broken = page(capsys)["broken"]
    assert set(broken) == {look.artifact.key, f"sft/{sft.name}"}
    assert "made of the parts" in broken[look.artifact.key] and "no manifest.json" in broken[f"sft/{sft.name}"]
    assert sorted(path.name.partition("-")[0] for path in (store.root / "broken").glob("*.txt")) == ["dpo", "sft"]


# --- gc --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def old(filled: Line, store: Store) -> Line:
    """All artifacts are three days old."""
    when = time.time() - 3 * 24 * 3600
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))
    for look in walk(config_of(filled, "promote=null"), store):
        assert look.spec and look.artifact
        shutil.rmtree(look.artifact.path)
        fake(store, look.spec, finished=stamp)
        os.utime(look.artifact.path / "manifest.json", (when, when))
    return filled


def test_gc_shows_sizes_and_reasons_and_changes_nothing(
    old: Line, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    [sft] = (store.root / "sft").iterdir()
    gc.gc(recipe=[old.recipe], pin=f"sft/{sft.name[:8]}", reason="给论文用的模型 for the paper")
    assert f"sft/{sft.name} is pinned" in said(capsys)
    before = everything(store.root)
    gc.gc(recipe=[old.recipe])
    text = said(capsys)
    assert everything(store.root) == before
    table = [line for line in text.splitlines() if re.match(r" (goes|stays) ", line)]
    assert [line.split()[:2] for line in table] == [["goes", "artifact"]] * 4 + [["stays", "artifact"]] * 5
    assert "pinned: 给论文用的模型 for the paper" in text and f"behind sft/{sft.name}" in text
    assert "4 things may go" in text and "--delete deletes them" in text and "3 d" in text
    assert len({cell_len(line) for line in table}) == 1, "Chinese and English text line up"


def test_gc_deletes_what_it_showed_and_a_run_keeps_its_own(
    old: Line, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = {look.step: look for look in walk(config_of(old, "promote=null"), store)}
    record = runs.begin(store.place, "aftersales")
    for step in ("generate", "clean", "base"):
        record.reached(step, str(looks[step].key))
    record.end()
    gc.gc(recipe=[old.recipe], delete=True, json=True)
    found = page(capsys)
    gone = {item["name"] for item in found["items"] if item["goes"]}
    assert (
        gone == {looks[step].key for step in ("pretrain", "sft", "pairs", "reference", "dpo", "evaluate")}
        and found["deleted"]
    )
    assert set(store.keys()) == {looks[step].key for step in ("generate", "clean", "base")}
    gc.gc(recipe=[old.recipe], delete=True, keep_runs=0)
    assert "3 things deleted" in said(capsys) and list(store.keys()) == []


def test_pins_are_taken_away_by_their_start(old: Line, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    gc.gc("promote=null", recipe=[old.recipe], pin="dpo")
    with pytest.raises(ArtifactError, match="is not one pin"):
        gc.gc(recipe=[old.recipe], unpin="sft")
    gc.gc(recipe=[old.recipe], unpin="dpo/")
    assert runs.pins(store.place) == {} and "not pinned any more" in said(capsys)
    with pytest.raises(ArtifactError, match="cannot be pinned"):
        gc.gc("promote=null", "dpo.beta=0.7", recipe=[old.recipe], pin="dpo")
    with pytest.raises(ConfigError, match="--keep-runs"):
        gc.gc(recipe=[old.recipe], keep_runs=-1)


# --- a store at a URL ------------------------------------------------------------------------------------------------


@pytest.fixture
def at_url(filled: Line, url: str, tmp_path: Path) -> RemoteStore:
    """The filled store, uploaded to a real server that speaks S3; this machine's cache is empty."""
    builder = machine(url, tmp_path / "builder")
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3 * 24 * 3600))
    for look in walk(config_of(filled, "promote=null"), Store(filled.folder / "store")):
        assert look.spec
        builder.keep(fake(builder, look.spec, finished=when))
    recipe = json.loads(filled.recipe.read_text()) | {"store": url, "cache": str(tmp_path / "cache")}
    filled.recipe.write_text(json.dumps(recipe))
    return machine(url, tmp_path / "cache")


@pytest.mark.server
def test_the_commands_at_a_url(at_url: RemoteStore, filled: Line, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = [filled.recipe]
    assert status.status("promote=null", recipe=recipe) == 0
    assert "9 of 9 steps are there" in said(capsys)
    assert status.status("promote=null", "dpo.beta=0.2", recipe=recipe) == 10
    assert "dpo.beta 0.1 -> 0.2" in said(capsys)
    show.show("dpo", "promote=null", recipe=recipe)
    lineage.lineage("dpo", "promote=null", recipe=recipe)
    assert "candidates: generate/" in said(capsys)
    assert not at_url.root.exists(), "nothing was fetched"
    assert verify.verify(recipe=recipe) == 0
    [sft] = at_url.keys("sft")
    [path] = [name for name in at_url.remote.below(sft) if name.endswith("result.txt")]
    data = at_url.place.read(path)
    assert data
    at_url.place.write(path, data[:-1] + b"?")
    assert status.status("promote=null", recipe=recipe) == 0, "bytes are proved when they are fetched"
    capsys.readouterr()
    assert verify.verify("sft", recipe=recipe, json=True) == 5
    assert "other bytes" in page(capsys)["broken"][sft] and list(at_url.keys("sft")) == []
    assert any(name.endswith("result.txt") for name in at_url.remote.below("broken"))


@pytest.mark.server
def test_gc_at_a_url(at_url: RemoteStore, filled: Line, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = [filled.recipe]
    [pretrain], [sft], [dpo] = (list(at_url.keys(step)) for step in ("pretrain", "sft", "dpo"))
    gc.gc(recipe=recipe, pin=pretrain, reason="kept")
    at_url.set_aside(sft, "bad")
    capsys.readouterr()
    gc.gc(recipe=recipe, delete=True, json=True)
    items = {item["name"]: item for item in page(capsys)["items"]}
    assert items[dpo]["goes"] and items[dpo]["size"] > 0 and items[pretrain]["reason"] == "pinned: kept"
    kept = {key.partition("/")[0] for key in list(at_url.keys())}
    assert kept == {"generate", "clean", "base", "pretrain"} and at_url.remote.below(dpo) == {}
    assert at_url.remote.below(".locks") == {} and at_url.remote.below("broken")
    gc.gc(recipe=recipe, delete=True, broken=True)
    assert at_url.remote.below("broken") == {} and "1 thing deleted" in said(capsys)


@pytest.mark.server
def test_a_url_that_does_not_answer_is_an_error_with_a_way_out(at_url: RemoteStore, filled: Line) -> None:
    recipe = json.loads(filled.recipe.read_text()) | {"store": "s3://no-such-bucket/line"}
    filled.recipe.write_text(json.dumps(recipe))
    for look in (status.status, gc.gc, verify.verify):
        with pytest.raises(ArtifactError, match="no such bucket; make the bucket"):
            look(recipe=[filled.recipe])  # type: ignore[operator]
