"""Records of walks and pins: what is on record, who counts as going on, and stores that cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from minimal import ROOT

from steps.lib import runs
from steps.lib.place import FolderPlace
from steps.lib.runs import Record, begin, last, pin, pins, records, unpin
from steps.lib.tickets import Ticket


@pytest.fixture
def place(tmp_path: Path) -> FolderPlace:
    return FolderPlace(tmp_path)


def record(number: int, *keys: str, ended: str | None = "done", **facts: object) -> Record:
    steps = {key.partition("/")[0]: key for key in keys}
    known = Record(f"2026112{number}T080000Z-x", "run", "2026-11-23T08:00:00Z", steps, Ticket.new(), ended)
    return replace(known, **facts)  # type: ignore[arg-type]


def test_a_walk_is_on_record_as_far_as_it_came(place: FolderPlace) -> None:
    walk = begin(place, "aftersales")
    [found] = records(place)
    assert (found.name, found.steps, found.ended, found.live()) == ("aftersales", {}, None, True)
    walk.reached("generate", "generate/1a")
    walk.reached("clean", "clean/2b")
    assert records(place)[0].steps == {"generate": "generate/1a", "clean": "clean/2b"}
    assert records(place)[0].live()
    walk.end()
    assert (records(place)[0].ended, records(place)[0].live()) == ("done", False)


def test_the_newest_comes_first(place: FolderPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in (1, 3, 2):
        monkeypatch.setattr(time, "gmtime", lambda day=day: time.struct_time((2026, 11, day, 8, 0, 0, 0, 0, 0)))
        begin(place, f"day {day}").end()
    assert [one.name for one in records(place)] == ["day 3", "day 2", "day 1"]


def test_a_killed_walk_of_this_machine_does_not_go_on(place: FolderPlace) -> None:
    code = (
        "import sys, time; from pathlib import Path; from steps.lib.place import FolderPlace; from steps.lib.runs import begin\n"
        "begin(FolderPlace(Path(sys.argv[1])), 'killed').reached('clean', 'clean/1'); print('begun', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, place.root], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        [found] = records(place)
        alive = found.live()
        process.kill()
    assert alive and not records(place)[0].live()
    assert records(place)[0].ended is None and records(place)[0].steps == {"clean": "clean/1"}


def test_a_walk_elsewhere_goes_on_while_its_last_sign_is_recent() -> None:
    elsewhere = record(1, "clean/1", ended=None, walker=replace(Ticket.new(), host="another"))
    signed = runs.seconds(elsewhere.updated)
    assert elsewhere.live(signed + runs.RECENT - 1) and not elsewhere.live(signed + runs.RECENT + 1)
    assert elsewhere.live(signed - 1e6), "a clock that was set back"
    assert not replace(elsewhere, ended="done").live(signed)


def test_a_store_that_cannot_be_written_keeps_no_record_and_raises_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder, so nothing can be written below it, not even by root")
    with caplog.at_level("DEBUG", logger="prefline.runs"):
        walk = begin(FolderPlace(tmp_path / "file"), "x")
        walk.reached("clean", "clean/1")
        walk.end()
    assert [one.levelname for one in caplog.records] == ["DEBUG"], "said once, tried once"
    assert not walk.writable and os.listdir(tmp_path) == ["file"]


def test_only_the_newest_records_stay_and_those_that_go_on(place: FolderPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "KEPT", 5)
    old = begin(place, "goes on")
    for number in range(9):
        monkeypatch.setattr(time, "gmtime", lambda n=number: time.struct_time((2099, 1, 1 + n, 8, 0, 0, 0, 0, 0)))
        begin(place, str(number)).end()
    assert [one.name for one in records(place)] == ["8", "7", "6", "5", "4", "goes on"]
    old.end()
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((2099, 2, 1, 8, 0, 0, 0, 0, 0)))
    begin(place, "last")
    assert [one.name for one in records(place)] == ["last", "8", "7", "6", "5"]


def test_a_record_that_cannot_be_read_counts_for_nothing(place: FolderPlace) -> None:
    begin(place, "good")
    for name, text in (("half", '{"name": "x"'), ("list", "[]"), ("foreign", json.dumps({"name": "x", "steps": 1}))):
        place.write(f".runs/{name}.json", text.encode())
    assert [one.name for one in records(place)] == ["good"]
    ended: set[str] = set()
    assert [one.name for one in runs.going(place, ended)] == ["good"]
    assert len(ended) == 3 and [one.name for one in runs.going(place, ended)] == ["good"]


def test_the_last_runs_are_those_that_differ() -> None:
    first, second = ("generate/1", "sft/1", "dpo/1"), ("generate/1", "sft/1", "dpo/2")
    found = [record(9, *second), record(8, *second[:2]), record(7, *second), record(6, *first), record(5, "base/9")]
    assert [one.id[:8] for one in last(found, 2)] == ["20261129", "20261126"]
    assert [one.id[:8] for one in last(found, 9)] == ["20261129", "20261126", "20261125"]
    assert last(found, 0) == []


def test_pins_come_and_go(place: FolderPlace) -> None:
    pin(place, "sft/1a2b", "the paper's model 论文用")
    pin(place, "dpo/3c", "")
    assert pins(place) == {"sft/1a2b": "the paper's model 论文用", "dpo/3c": ""}
    pin(place, "dpo/3c", "again")
    unpin(place, "sft/1a2b")
    unpin(place, "sft/1a2b")
    assert pins(place) == {"dpo/3c": "again"}
    place.write(".pins/base-77", b"\xff not JSON")
    assert pins(place)["base/77"] == "", "in doubt it pins"
