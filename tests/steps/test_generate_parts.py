"""Going on behind finished parts: whatever a run wrote down before it died, the result is an uninterrupted run's, to the byte."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from openai_server import Act, serve
from ruamel.yaml import YAML

from steps import generate
from steps.generate import GenerateConfig
from steps.lib.artifact import Artifact
from steps.lib.errors import TeacherError
from steps.lib.finished import FinishedParts
from steps.lib.prompts import PromptFile
from steps.lib.step import Spec, build

PART = 6
"""Answers of a part: three prompts, or four where the words of the fourth are the third's."""
PROMPTS, PARTS = 23, 7


def rows(name: str, count: int) -> list[Any]:
    """Every fourth prompt has the words of the one before, row 7 cannot be read, and the last one has the id of the first."""
    made: list[Any] = [
        {"id": f"{name}{n}", "lang": "en", "prompt": f"question {name} {n - (n % 4 == 3)}", "intent": "x"}
        for n in range(count)
    ]
    made[7] = {"id": "none", "prompt": ""}
    return [*made, {**made[0], "prompt": f"question {name} again"}]


def settings(folder: Path, url: str, **more: Any) -> dict[str, Any]:
    """Two sources, one of them cut off by its limit; two teachers; flags that drop."""
    folder.mkdir(exist_ok=True, parents=True)
    for name, count in (("a", 14), ("b", 12)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(name, count)))
    (folder / "prompt.yaml").write_text("max_context_tokens: 200\nover_budget: drop_examples\n")
    teacher = {
        "kind": "http",
        "endpoint": "test",
        "base_url": url,
        "backoff_seconds": 0.01,
        "attempts": 1,
        "concurrency": 3,
    }
    return {
        "prompts": [
            {"name": "a", "path": str(folder / "a.jsonl")},
            {"name": "b", "path": str(folder / "b.jsonl"), "limit": 11},
        ],
        "prompt_file": str(folder / "prompt.yaml"),
        "teachers": [{**teacher, "name": name, "model": name} for name in ("m", "n")],
        "samples": 2,
        "drop_flags": ["truncated", "empty", "special_tokens", "same_answer"],
        "max_failed_share": 0.0,
        "min_kept_share": 0.0,
        **more,
    }


def say(number: int, body: dict[str, Any]) -> Act:
    """By the number in the question: cut off, marked, the same by both teachers, or different."""
    question = body["messages"][-1]["content"]
    place = sum(map(ord, question)) % 5
    text = f"About {question}: " + ("it is as it is." if place == 2 else f"{body['model']} says so." * (1 + place))
    return Act(text="<|im_end|>" if place == 0 else text, finish="length" if place == 1 else "stop")


def spec(values: dict[str, Any]) -> Spec:
    return Spec(generate, GenerateConfig.model_validate(values), {}, 0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"reading.PART": PART, "exchange.ROOM": 8, "exchange.CHUNK": 4, "rows.ROW_GROUP": 7}.items():
        monkeypatch.setattr(f"steps.lib.{name}", value)


class Cut(Exception):
    """Stands for the end of a run."""


def cut_after(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Let a run end right after so many parts were written down."""
    put, done = FinishedParts.put, 0

    def last(self: FinishedParts, *args: Any) -> None:
        nonlocal done
        put(self, *args)
        done += 1
        if done == parts:
            raise Cut

    monkeypatch.setattr(FinishedParts, "put", last)


def rendered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the rows that are rendered from now on; those of the estimate have no source in front."""
    ids, render = list[str](), PromptFile.render

    def noted(self: PromptFile, row: Any, *args: Any) -> Any:
        ids.extend([row.id] if "/" in row.id else [])
        return render(self, row, *args)

    monkeypatch.setattr(PromptFile, "render", noted)
    return ids


def compare(artifact: Artifact, whole: Artifact, *, paid_twice: bool = False) -> None:
    """Bytes, rows, counts; only what was asked in which run may differ, and what that cost where an answer was lost."""
    for name in ("candidates.parquet", "dropped.parquet"):
        assert (artifact.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert artifact.digest == whole.digest
    assert artifact.manifest["rows"] == whole.manifest["rows"]
    of_a_run = (
        "/answered",
        "/from_ledger",
        "/attempts",
        "/seconds",
        *(("/tokens_in", "/tokens_out") if paid_twice else ()),
    )
    names = {
        name for name in whole.manifest["metrics"] if not (name.startswith(("m/", "n/")) and name.endswith(of_a_run))
    }
    for name in sorted(names | artifact.manifest["metrics"].keys() - whole.manifest["metrics"].keys()):
        assert artifact.manifest["metrics"][name] == whole.manifest["metrics"][name], name


def held(partial: Path) -> list[int]:
    """Where the finished parts start."""
    with closing(sqlite3.connect(partial / ".resume" / "finished.sqlite")) as db:
        return [start for (start,) in db.execute("SELECT start FROM parts ORDER BY start")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """What an uninterrupted run makes; its parts are of another size, so that they cannot show in the bytes."""
    folder = tmp_path_factory.mktemp("whole")
    with serve(say) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("steps.lib.rows.ROW_GROUP", 7)
        found = build(spec(settings(folder, server.url)), folder / "s" / "g")
    rows = found.manifest["rows"]
    assert rows["out"]["asked prompts"] == PROMPTS and rows["dropped"]["prompts"].keys() >= {"duplicate_id", "limit"}
    assert {"truncated", "special_tokens", "same_answer"} <= rows["dropped"]["answer"].keys()
    return found


@pytest.mark.parametrize("parts", [1, 2, 5, 7])
def test_a_run_that_goes_on_takes_finished_parts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Artifact, parts: int
) -> None:
    with serve(say) as server:
        one = spec(settings(tmp_path, server.url))
        with monkeypatch.context() as patch, pytest.raises(Cut):
            cut_after(patch, parts)
            build(one, tmp_path / "s" / "g")
        assert len(held(tmp_path / "s" / ".g.partial")) == parts
        again = rendered(monkeypatch)
        artifact = build(one, tmp_path / "s" / "g")
        metrics = whole.manifest["metrics"]
        assert len(server.bodies) == metrics["m/answered"] + metrics["n/answered"], "nothing is asked twice"
    compare(artifact, whole)
    assert PROMPTS - 4 * parts <= len(set(again)) <= PROMPTS - 3 * parts or parts == PARTS and not again


def test_a_run_whose_parts_are_all_finished_asks_and_judges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Artifact
) -> None:
    with serve(say) as server:
        one = spec(settings(tmp_path, server.url))
        with monkeypatch.context() as patch, pytest.raises(Cut):
            patch.setattr("steps.lib.step.publish", stop)
            build(one, tmp_path / "s" / "g")
        asked = len(server.bodies)
        monkeypatch.setattr("steps.lib.making.Making.write", stop)
        monkeypatch.setattr(PromptFile, "parse", stop)
        artifact = build(one, tmp_path / "s" / "g")
        assert len(server.bodies) == asked
    compare(artifact, whole)


def stop(*args: Any, **kwargs: Any) -> Any:
    raise Cut


KILL = """
import os, signal, sys
from steps.lib import reading, rows, finished
from steps.generate import main
reading.PART, rows.ROW_GROUP, left = 6, 7, [int(sys.argv.pop(1))]
put = finished.FinishedParts.put
def last(self, *args):
    put(self, *args)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
finished.FinishedParts.put = last
main("generate")
"""


@pytest.mark.fault
def test_kill_9_again_and_again(tmp_path: Path, whole: Artifact) -> None:
    """In processes of their own."""
    with serve(say) as server:
        config, out = tmp_path / "generate.yaml", tmp_path / "store" / "g"
        with config.open("w") as file:
            YAML(typ="safe").dump(settings(tmp_path, server.url), file)
        found: list[int] = []
        for more in (3, 2):
            command = [sys.executable, "-c", KILL, str(more), "--config", str(config), "--out", str(out)]
            killed = subprocess.run(command, capture_output=True, text=True)
            assert killed.returncode == -signal.SIGKILL, killed.stderr
            found.append(len(held(out.parent / ".g.partial")))
        assert found == [3, 5]
        compare(build(spec(settings(tmp_path, server.url)), out), whole)


# --- what is not believed ---------------------------------------------------------------------------------------------


def edit(statement: str) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        with closing(sqlite3.connect(path)) as db, db:
            assert db.execute(statement).rowcount

    return harm


def overwrite(path: Path) -> None:
    path.write_bytes(b"no database" + os.urandom(3000))


HARMS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "facts": (
        "finished",
        edit("UPDATE parts SET facts = replace(facts, '\"kept\": ', '\"kept\": 1') WHERE start > 0"),
        "other bytes",
    ),
    "rows": ("finished", edit("UPDATE parts SET candidates = dropped WHERE start = 0"), "other bytes"),
    "file": ("finished", overwrite, "set aside as damaged-finished.sqlite-1"),
    "work": ("finished", edit("UPDATE parts SET work = 'x' WHERE start > 0"), "another configuration, content or code"),
    "ledger": ("requests", edit("UPDATE requests SET text = text || ' ' WHERE rowid = 9"), "ledger lost some"),
    "no ledger": ("requests", Path.unlink, "ledger lost some"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_parts_that_cannot_be_believed_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Artifact, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    with serve(say) as server:
        one = spec(settings(tmp_path, server.url))
        with monkeypatch.context() as patch, pytest.raises(Cut):
            cut_after(patch, 6)
            build(one, tmp_path / "s" / "g")
        file, do, says = HARMS[harm]
        do(tmp_path / "s" / ".g.partial" / ".resume" / f"{file}.sqlite")
        asked, ids = len(server.bodies), rendered(monkeypatch)
        capsys.readouterr()
        artifact = build(one, tmp_path / "s" / "g")
        again = len(server.bodies) - asked
    compare(artifact, whole, paid_twice=harm == "ledger")
    assert says in capsys.readouterr().err
    assert len(set(ids)) > PROMPTS - 6 * 3, "rows were made again"
    total = whole.manifest["metrics"]["m/answered"] + whole.manifest["metrics"]["n/answered"]
    assert again == total - asked + {"ledger": 1, "no ledger": asked}.get(harm, 0), (
        "only what the ledger lost is asked again"
    )


def test_parts_of_another_configuration_in_a_folder_named_by_hand_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(say) as server:
        with monkeypatch.context() as patch, pytest.raises(Cut):
            cut_after(patch, 4)
            build(spec(settings(tmp_path, server.url)), tmp_path / "by-hand")
        other = spec(settings(tmp_path, server.url, drop_flags=[]))
        fresh = build(other, tmp_path / "fresh")
        artifact = build(other, tmp_path / "by-hand")
    compare(artifact, fresh)


def test_parts_of_other_code_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Artifact) -> None:
    with serve(say) as server:
        one = spec(settings(tmp_path, server.url))
        with monkeypatch.context() as patch, pytest.raises(Cut):
            cut_after(patch, 5)
            build(one, tmp_path / "s" / "g")
        ids = rendered(monkeypatch)
        monkeypatch.setattr("steps.generate.closure", lambda name: {"digest": "another"})
        compare(build(one, tmp_path / "s" / "g"), whole)
    assert len(set(ids)) == PROMPTS


def test_a_part_that_lacks_an_answer_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Artifact
) -> None:
    def failing(number: int, body: dict[str, Any]) -> Act:
        return Act(status=500) if body["messages"][-1]["content"] == "question a 5" else say(number, body)

    with serve(failing) as server:
        one = spec(settings(tmp_path, server.url))
        with pytest.raises(TeacherError, match="lacks 2 of"):
            build(one, tmp_path / "s" / "g")
        assert len(held(tmp_path / "s" / ".g.partial")) == PARTS - 1
        asked, server.decide, ids = len(server.bodies), say, rendered(monkeypatch)
        artifact = build(one, tmp_path / "s" / "g")
        again = server.asked()[asked:]
    assert again == ["question a 5"] * 2 and "a/a5" in ids and len(set(ids)) <= 4
    compare(artifact, whole)
