"""The store of bad cases from the shell."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.commands import badcases
from steps.lib.errors import ConfigError, DataError


def event(name: str) -> dict[str, Any]:
    facts = {"schema_version": "badcase.v1", "case_id": name, "event_id": name, "ts": "2026-11-01T08:00:00+00:00"}
    return {**facts, "request": {"messages": [{"role": "user", "content": f"Where is {name}?"}]}}


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "cases.sqlite")


def test_a_case_from_its_arrival_to_its_export(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(event(name)) + "\n" for name in ("one", "two")))
    badcases.add(path, store=store)
    badcases.add(path, store=store)
    assert "2 new, 0 there already" in (said := capsys.readouterr().out) and "0 new, 2 there already" in said
    badcases.triage("one", "accepted", reason="it is wrong", by="ann", store=store)
    badcases.list_(state="accepted", store=store, json=True)
    said = capsys.readouterr().out
    assert [case["case_id"] for case in json.loads(said[said.index("[") :])] == ["one"]
    badcases.show("one", store=store)
    assert "Where is one?" in (said := capsys.readouterr().out) and "new -> accepted  ann: it is wrong" in said
    badcases.delete("two", reason="its sender asked", store=store)
    badcases.stats(store=store, json=True)
    said = capsys.readouterr().out
    counts = json.loads(said[said.index("{") :])
    assert (counts["accepted"], counts["flagged"], counts["events"]) == (1, 1, 4), "triage is an event, too"
    badcases.export(tmp_path / "out.jsonl", store=store)
    assert [json.loads(line)["event_id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        "one",
        "two",
        "one:accepted:1",
        "two:deleted",
    ]


def test_standard_input_and_what_is_set_aside(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body = json.dumps([event("one"), {"case_id": "bad"}]).encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(body)))
    with pytest.raises(SystemExit) as ended:
        badcases.add(store=store)
    assert ended.value.code == 3 and "shell#1: schema" in capsys.readouterr().out


def test_an_export_of_a_tool_is_imported_once(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    row = {"id": "r1", "input": [{"role": "user", "content": "Hello?"}], "output": "No.", "rejected": True}
    path.write_text(json.dumps(row) + "\n")
    for _ in range(2):
        badcases.import_(path, format="openai", name="logs", model="m", store=store)
    said = capsys.readouterr().out
    assert "1 new, 0 there already" in said and "0 new, 1 there already" in said, said


def test_what_is_wrong_is_said(store: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: got No such file"):
        badcases.add(tmp_path / "gone", store=store)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(DataError, match="holds no events"):
        badcases.add(tmp_path / "text", store=store)
    with pytest.raises(ConfigError, match="--state is wrong: got nice"):
        badcases.list_(state="nice", store=store)
    badcases.release("nobody", store=store)
