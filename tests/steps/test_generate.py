"""The whole step: faults of the teacher, kill -9 in the middle, order, counts."""

import json
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from openai_server import Act, Server, serve
from ruamel.yaml import YAML

from steps import generate
from steps.generate import GenerateConfig
from steps.lib.errors import ConfigError, DataError, PreflineError, TeacherError
from steps.lib.prompts import PromptFile
from steps.lib.rows import Candidate, Dropped, read_parquet
from steps.lib.step import Artifact, Spec, build

PROMPTS = [{"id": f"p{n}", "lang": "en", "prompt": f"question {n}", "intent": "x"} for n in range(40)]
SCRIPTED = {"kind": "scripted", "name": "scripted-desk", "path": "data/seed/task/teacher.yaml"}


def values(tmp_path: Path, url: str = "", prompts: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (PROMPTS if prompts is None else prompts)))
    teacher = {"kind": "http", "name": "server", "endpoint": "test", "base_url": url, "model": "m", "backoff_seconds": 0.01,
               "attempts": 2, "timeout_seconds": 5, "concurrency": 4}  # fmt: skip
    return {"prompts": [{"name": "train", "path": str(path)}], "prompt_file": "configs/prompts/plain.yaml",
            "teachers": [teacher] if url else [SCRIPTED], "max_failed_share": 0.0, **more}  # fmt: skip


def spec(settings: dict[str, Any], seed: int = 0) -> Spec:
    return Spec(generate, GenerateConfig.model_validate(settings), {}, seed)


def rows(artifact: Artifact) -> list[Candidate]:
    return read_parquet(artifact.path / "candidates.parquet", Candidate)


def echo(number: int, body: dict[str, Any]) -> Act:
    return Act(text="re: " + body["messages"][-1]["content"], delay=0.03 if number % 3 == 0 else 0.0)


def test_import_is_light() -> None:
    code = "import sys, steps.generate; print([m for m in ('torch', 'transformers', 'prefect', 'openai', 'aiohttp') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_candidates_come_in_prompt_order_whatever_order_answers_arrive(tmp_path: Path) -> None:
    with serve(echo) as server:
        first = build(spec(values(tmp_path, server.url, samples=2)), tmp_path / "a" / "1")
        server.decide = lambda number, body: Act(
            text="re: " + body["messages"][-1]["content"], delay=0.02 * (number % 5)
        )
        second = build(spec(values(tmp_path, server.url, samples=2)), tmp_path / "b" / "2")
    assert [row.id for row in rows(first)] == [f"p{n}/{k}" for n in range(40) for k in (0, 1)]
    assert all(row.answer == f"re: {row.prompt}" and row.teacher == "server" and row.request for row in rows(first))
    assert first.digest == second.digest
    metrics = first.manifest["metrics"]
    assert metrics["server/answered"] == metrics["server/requests"] == 80
    assert first.manifest["tokens"] == 800
    assert first.manifest["rows"]["in"] == {"answer": 80, "answers": 80, "prompts": 40}
    assert plain_record(first) == [("ok", 1)] * 80


def plain_record(artifact: Artifact) -> list[tuple[str, int]]:
    """(status, attempts) of every request on record; reading it writes nothing into the artifact."""
    names = sorted(path.name for path in (artifact.path / "record").iterdir())
    with closing(sqlite3.connect(artifact.path / "record" / "requests.sqlite")) as db:
        found = db.execute("SELECT status, attempts FROM requests").fetchall()
        assert sorted(path.name for path in (artifact.path / "record").iterdir()) == names
    return found


def begin(tmp_path: Path, server: Server, asked: int) -> tuple[subprocess.Popen[str], list[str], Path]:
    """Start the step in a process of its own, and wait until the server was asked so often."""
    config, out = tmp_path / "generate.yaml", tmp_path / "store" / "g"
    with config.open("w") as file:
        YAML(typ="safe").dump(values(tmp_path, server.url), file)
    command = [sys.executable, "-m", "steps.generate", "--config", str(config), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(server.bodies) < asked and time.monotonic() < deadline:
        time.sleep(0.01)
    return process, command, out


def go_on(tmp_path: Path, server: Server, command: list[str], out: Path) -> tuple[Artifact, str]:
    """Run the command again to its end. All that it leaves is what an undisturbed run leaves."""
    said = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True).stderr
    bodies = len(server.bodies)
    whole, artifact = build(spec(values(tmp_path, server.url)), tmp_path / "whole" / "g"), Artifact.read(out)
    del server.bodies[bodies:]
    assert artifact.digest == whole.digest and artifact.manifest["tokens"] == whole.manifest["tokens"] == 400
    names = ("tokens_in", "tokens_out", "candidates", "requests")
    assert all(artifact.manifest["metrics"][f"server/{n}"] == whole.manifest["metrics"][f"server/{n}"] for n in names)
    assert len(plain_record(artifact)) == 40
    return artifact, said


@pytest.mark.fault
def test_kill_9_in_the_middle_then_only_the_rest_is_asked_for(tmp_path: Path) -> None:
    with serve(lambda number, body: Act(text="re: " + body["messages"][-1]["content"], delay=0.05)) as server:
        process, command, out = begin(tmp_path, server, 15)
        process.kill()
        process.communicate(timeout=10)
        assert not out.exists() and (partial := out.parent / ".g.partial").is_dir()
        with closing(sqlite3.connect(partial / ".resume" / "requests.sqlite")) as db:
            held = db.execute("SELECT count(*) FROM requests WHERE status='ok'").fetchone()[0]
        asked = len(server.bodies)
        assert 0 < held <= asked < 40 and asked - held <= 4, "only what was in flight is lost"
        go_on(tmp_path, server, command, out)
        assert len(server.bodies) == asked + 40 - held


@pytest.mark.fault
def test_sigterm_gives_what_is_in_flight_a_grace_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    with serve(lambda number, body: Act(text="re: " + body["messages"][-1]["content"], delay=0.2)) as server:
        process, command, out = begin(tmp_path, server, 10)
        process.terminate()
        _, said = process.communicate(timeout=20)
        assert process.returncode == 75 and "Resumable: stopped by SIGTERM" in said
        assert not out.exists() and len(server.bodies) < 20
        artifact, _ = go_on(tmp_path, server, command, out)
        assert Counter(server.asked()) == {f"question {n}": 1 for n in range(40)}
    assert set(plain_record(artifact)) == {("ok", 1)}


@pytest.mark.fault
def test_a_ledger_that_a_power_cut_broke_is_set_aside_and_its_requests_are_asked_again(tmp_path: Path) -> None:
    with serve(lambda number, body: Act(text="re: " + body["messages"][-1]["content"], delay=0.05)) as server:
        process, command, out = begin(tmp_path, server, 20)
        process.terminate()
        process.communicate(timeout=20)
        ledger = out.parent / ".g.partial" / ".resume" / "requests.sqlite"
        ledger.write_bytes(ledger.read_bytes()[:-5000])
        del server.bodies[:]
        artifact, said = go_on(tmp_path, server, command, out)
        assert len(server.bodies) == 40
    assert "requests.sqlite is damaged" in said and "set aside as damaged-requests.sqlite-1" in said
    assert not list(artifact.path.rglob("damaged-*"))


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (Act(status=401), "HTTP 401"),
        (Act(status=429, headers={"Retry-After": "0"}), "http_429 40"),
        (Act(status=500), "http_500 40"),
        (Act(raw=b'{"choices": [{"mess'), "bad_json 40"),
        (Act(text=""), "empty 40"),
        (Act(close=True), "connection 40"),
    ],
)
def test_a_teacher_that_cannot_answer_leaves_no_artifact_and_its_rows_are_asked_again(
    tmp_path: Path, act: Act, says: str
) -> None:
    with serve(lambda number, body: act) as server:
        settings = values(tmp_path, server.url)
        settings["teachers"][0]["give_up_after"] = 1000
        with pytest.raises(TeacherError, match=says):
            build(spec(settings), tmp_path / "s" / "g")
        assert not (tmp_path / "s" / "g").exists()
        server.decide = echo
        artifact = build(spec(settings), tmp_path / "s" / "g")
    assert len(rows(artifact)) == 40


def test_some_failures_are_dropped_with_their_reason(tmp_path: Path) -> None:
    def decide(number: int, body: dict[str, Any]) -> Act:
        text = body["messages"][-1]["content"]
        if text == "question 3":
            return Act(status=500)
        return (
            Act(text="cut", finish="length")
            if text == "question 5"
            else Act(text="" if text == "question 7" else "fine")
        )

    with serve(decide) as server:
        with pytest.raises(
            TeacherError,
            match=r"lacks 2 of 40 answers: got server empty 1, server http_500 1 .*max_failed_share is 0.0",
        ):
            build(spec(values(tmp_path, server.url)), tmp_path / "s" / "g")
        before = len(server.bodies)
        artifact = build(spec(values(tmp_path, server.url, max_failed_share=0.05)), tmp_path / "s" / "g")
        assert {body["messages"][-1]["content"] for body in server.bodies[before:]} == {"question 3", "question 7"}
    dropped = read_parquet(artifact.path / "dropped.parquet", Dropped)
    assert {row.id: row.reason for row in dropped} == {"p3/0": "http_500", "p5/0": "truncated", "p7/0": "empty"}
    assert artifact.manifest["rows"]["dropped"]["answers"] == {"http_500": 1, "truncated": 1, "empty": 1}
    assert artifact.manifest["rows"]["out"]["candidates"] == len(rows(artifact)) == 37


def test_flags_are_noted_or_drop(tmp_path: Path) -> None:
    with serve(lambda number, body: Act(text="I cannot help with this.")) as server:
        artifact = build(spec(values(tmp_path, server.url)), tmp_path / "s" / "noted")
        assert {tuple(row.flags) for row in rows(artifact)} == {("refusal",)}
        assert artifact.manifest["metrics"]["flags/refusal"] == 40
        with pytest.raises(DataError, match=r"no candidate.*refusal 40"):
            build(spec(values(tmp_path, server.url, drop_flags=["refusal"], min_kept_share=0)), tmp_path / "s" / "none")


def test_thought_is_stored_apart(tmp_path: Path) -> None:
    answer = json.dumps({"intent": "usage", "order_number": None, "reply": "Press it."})
    with serve(lambda number, body: Act(text=f"Easy.\n### Answer\n{answer}")) as server:
        artifact = build(
            spec(values(tmp_path, server.url, prompt_file="configs/prompts/aftersales-cot.yaml")), tmp_path / "s" / "g"
        )
        assert "response_format" not in server.bodies[0]
    assert {(row.thought, row.answer) for row in rows(artifact)} == {("Easy.", answer)}


def test_scripted_teacher_offline_with_real_prompts(tmp_path: Path) -> None:
    settings = {"prompts": [{"name": "train", "path": "data/seed/task/prompts_train.jsonl", "limit": 60}], "samples": 2,
                "teachers": [SCRIPTED], "prompt_file": "configs/prompts/aftersales.yaml"}  # fmt: skip
    one, two = (build(spec(settings), tmp_path / "s" / name) for name in "12")
    assert one.digest == two.digest and build(spec(settings, seed=1), tmp_path / "s" / "3").digest != one.digest
    assert {row.teacher for row in rows(one)} == {"scripted-desk"}
    counts = one.manifest["rows"]
    assert counts["in"]["answers"] == 120 == counts["out"]["candidates"] + sum(counts["dropped"].get("answers", {}).values())
    file = PromptFile.read(Path("configs/prompts/aftersales.yaml"))
    assert all(file.parse(row.answer).flags == () for row in rows(one))


def test_two_teachers_share_the_samples(tmp_path: Path) -> None:
    with serve(echo) as server:
        settings = values(tmp_path, server.url, samples=2)
        settings["teachers"].append({**settings["teachers"][0], "name": "other", "model": "n"})
        artifact = build(spec(settings), tmp_path / "s" / "g")
    for n in range(40):
        assert sorted(row.teacher for row in rows(artifact) if row.id.startswith(f"p{n}/")) == ["other", "server"]
    assert Counter(body["model"] for body in server.bodies) == {"m": 40, "n": 40}


def test_bad_prompt_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    with serve(echo) as server:
        settings = values(tmp_path, server.url)
        with (tmp_path / "prompts.jsonl").open("a") as file:
            file.write('{"id": "cut", "prompt": "half a li\n{"id": "no", "prompt": ""}\n')
        artifact = build(spec(settings), tmp_path / "s" / "g")
    assert artifact.manifest["rows"]["in"]["prompts"] == 42
    assert sum(artifact.manifest["rows"]["dropped"]["prompts"].values()) == 2
    assert len(read_parquet(artifact.path / "dropped.parquet", Dropped)) == 2


def test_prompts_over_the_budget_follow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "prompt.yaml"
    long = [*PROMPTS[:3], {"id": "long", "lang": "en", "prompt": "x" * 900, "intent": "x"}]
    path.write_text("max_context_tokens: 200\nover_budget: drop_examples\n")
    with serve(echo) as server:
        settings = values(tmp_path, server.url, prompts=long, prompt_file=str(path))
        artifact = build(spec(settings), tmp_path / "s" / "g")
        assert [row.reason for row in read_parquet(artifact.path / "dropped.parquet", Dropped)] == ["over_budget"]
        path.write_text("max_context_tokens: 200\n")
        asked = len(server.bodies)
        with pytest.raises(PreflineError, match="row long is too long"):
            build(spec(settings), tmp_path / "s" / "h")
        assert len(server.bodies) == asked


def test_key_follows_content_not_places(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = spec(values(tmp_path / "a", "http://one/v1"))
    assert one.key() == spec(values(tmp_path / "b", "http://two/v1")).key()
    changed = values(tmp_path / "b", "http://two/v1", prompts=PROMPTS[1:])
    assert one.key() != spec(changed).key()
    assert (
        one.key() != spec(values(tmp_path / "a", "http://one/v1", prompt_file="configs/prompts/aftersales.yaml")).key()
    )


def test_where_a_file_lies_and_what_it_is_called_changes_no_output(tmp_path: Path) -> None:
    """A bad row's note names its file; the note is a record. The ending of the name says how to read the file."""
    digests, keys = [], []
    for folder, name in (("a", "prompts.jsonl"), ("b", "other.jsonl"), ("c", "prompts.txt")):
        (tmp_path / folder).mkdir()
        settings = values(tmp_path / folder, prompts=[{"prompt": "Where is my order?", "lang": "en"}, {"prompt": ""}])
        place = (tmp_path / folder / "prompts.jsonl").rename(tmp_path / folder / name)
        settings["prompts"][0]["path"] = str(place)
        keys.append(spec(settings).key())
        digests += [build(spec(settings), tmp_path / "s" / folder).digest] if name.endswith("jsonl") else []
    assert digests[0] == digests[1] and keys[0] == keys[1] != keys[2]


def test_names_must_differ(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="teachers has the name 'scripted-desk' twice"):
        GenerateConfig.model_validate(values(tmp_path, teachers=[SCRIPTED, SCRIPTED]))
    with pytest.raises(ConfigError, match="cannot be read"):
        spec(values(tmp_path, prompt_file=str(tmp_path / "none.yaml"))).key()
