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
from steps.lib.finished import FinishedParts
from steps.lib.prompts import PromptFile
from steps.lib.rows import Candidate, Chat, Dropped, Message, ParquetRows, read_parquet, write_parquet
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
    assert first.manifest["rows"]["in"] == {"answer": 80, "prompts": 40}
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
    assert artifact.manifest["rows"]["dropped"]["answer"] == {"http_500": 1, "truncated": 1, "empty": 1}
    assert artifact.manifest["rows"]["out"]["answer kept"] == len(rows(artifact)) == 37


def test_flags_are_noted_or_drop(tmp_path: Path) -> None:
    with serve(lambda number, body: Act(text="I cannot help with this.")) as server:
        artifact = build(spec(values(tmp_path, server.url)), tmp_path / "s" / "noted")
        assert {tuple(row.flags) for row in rows(artifact)} == {("refusal",)}
        assert artifact.manifest["metrics"]["flags/refusal"] == 40
        with pytest.raises(DataError, match=r"no candidate.*refusal 40"):
            build(spec(values(tmp_path, server.url, drop_flags=["refusal"], min_kept_share=0)), tmp_path / "s" / "none")


def test_thought_is_stored_apart(tmp_path: Path) -> None:
    answer = json.dumps({"intent": "usage", "order_number": None, "reply": "Press it."})
    with serve(lambda number, body: Act(text=f"Easy.\n### Answer\n{answer}", thought="Hm.")) as server:
        artifact = build(
            spec(values(tmp_path, server.url, prompt_file="configs/prompts/aftersales-cot.yaml")), tmp_path / "s" / "g"
        )
        assert "response_format" not in server.bodies[0]
    assert {(row.thought, row.answer) for row in rows(artifact)} == {("Hm.\nEasy.", answer)}


def test_scripted_teacher_offline_with_real_prompts(tmp_path: Path) -> None:
    settings = {"prompts": [{"name": "train", "path": "data/seed/task/prompts_train.jsonl", "limit": 60}], "samples": 2,
                "teachers": [SCRIPTED], "prompt_file": "configs/prompts/aftersales.yaml"}  # fmt: skip
    one, two = (build(spec(settings), tmp_path / "s" / name) for name in "12")
    assert one.digest == two.digest and build(spec(settings, seed=1), tmp_path / "s" / "3").digest != one.digest
    assert {row.teacher for row in rows(one)} == {"scripted-desk"}
    counts = one.manifest["rows"]
    assert (
        counts["in"]["answer"]
        == 120
        == counts["out"]["answer kept"] + sum(counts["dropped"].get("answer", {}).values())
    )
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
    teacher = values(tmp_path, "http://one/v1")["teachers"][0]
    for name in ("answer", "critique12", "evolve1-depth", "flags"):
        with pytest.raises(ValueError, match=f"teachers has the name '{name}', under which a stage or a figure stands"):
            GenerateConfig.model_validate(values(tmp_path, teachers=[{**teacher, "name": name}]))
    GenerateConfig.model_validate(values(tmp_path, teachers=[{**teacher, "name": "answerer"}]))
    with pytest.raises(ConfigError, match="cannot be read"):
        spec(values(tmp_path, prompt_file=str(tmp_path / "none.yaml"))).key()


# --- answers that have not the asked form -----------------------------------------------------------------------------

JSON_FILE = """
system: {zh: 只写 JSON。, en: Write JSON only.}
repairs: 2
schema: {type: object, required: [reply], properties: {reply: {type: string}}}
"""


def asking_json(tmp_path: Path, url: str, **more: Any) -> dict[str, Any]:
    path = tmp_path / "json.yaml"
    path.write_text(JSON_FILE, encoding="utf-8")
    return values(tmp_path, url, **{"prompt_file": str(path), **more})


def first_of(body: dict[str, Any]) -> tuple[int, int]:
    """Number of the question, and how often it was asked again."""
    said = [turn["content"] for turn in body["messages"] if turn["role"] == "user"]
    return int(said[0].rpartition(" ")[2]), len(said) - 1


def stubborn(number: int, body: dict[str, Any]) -> Act:
    """By the question's number modulo 5: good; fenced; good when asked again; good at the second time; never good."""
    question, again = first_of(body)
    kind = question % 5
    good = json.dumps({"reply": f"re: {question}"})
    if kind == 1:
        return Act(text=f"```json\n{good}\n```")
    return Act(text=good if again >= max(0, kind - 1) and kind < 4 else "I say: no.", delay=0.03)


def check_stubborn(artifact: Artifact) -> None:
    kept = {int(row.prompt.rpartition(" ")[2]): row for row in rows(artifact)}
    assert sorted(kept) == [n for n in range(40) if n % 5 < 4]
    assert all(json.loads(row.answer) == {"reply": f"re: {n}"} for n, row in kept.items())
    assert all(row.flags == (["repaired"] if n % 5 == 1 else []) for n, row in kept.items())
    dropped = read_parquet(artifact.path / "dropped.parquet", Dropped)
    assert [row.reason for row in dropped] == ["unparsed"] * 8 and {row.detail for row in dropped} == {"I say: no."}
    metrics, counts = artifact.manifest["metrics"], artifact.manifest["rows"]
    assert [metrics[f"answer/{name}"] for name in ("asked", "answered", "parsed", "kept", "repairs")] == [
        40,
        40,
        32,
        32,
        8 + 16 + 16,
    ]
    assert counts["in"]["answer"] == 40 == counts["out"]["answer kept"] + sum(counts["dropped"]["answer"].values())
    assert metrics["flags/repaired"] == 8 and len(plain_record(artifact)) == 40 + 40


def test_answers_are_mended_or_asked_for_again_and_counted(tmp_path: Path) -> None:
    with serve(stubborn) as server:
        artifact = build(spec(asking_json(tmp_path, server.url)), tmp_path / "s" / "g")
        check_stubborn(artifact)
        assert len(server.bodies) == 80
        one = next(body for body in server.bodies if first_of(body) == (2, 1))
        assert [turn["role"] for turn in one["messages"]] == ["system", "user", "assistant", "user"]
        assert one["messages"][2]["content"] == "I say: no."


def test_what_was_cut_off_is_no_data_and_not_asked_for_again(tmp_path: Path) -> None:
    with serve(
        lambda number, body: Act(text='{"reply": "half a', finish="length" if number % 4 == 0 else "stop")
    ) as server:
        settings = asking_json(tmp_path, server.url, min_kept_share=0, prompts=PROMPTS)
        settings["prompts"] = [{**settings["prompts"][0]}]
        with pytest.raises(DataError, match="no candidate"):
            build(spec(settings), tmp_path / "s" / "g")
        with closing(sqlite3.connect(tmp_path / "s" / ".g.partial" / ".resume" / "requests.sqlite")) as db:
            cut = dict(db.execute("SELECT status, count(*) FROM requests GROUP BY status"))
    again = Counter(first_of(body)[1] for body in server.bodies)
    assert cut["truncated"] == len(range(0, len(server.bodies), 4)) and again[1] < again[0] == 40


CUT = """
import os, signal, sys
import steps.lib.rows as rows
from steps.generate import main
rows.ROW_GROUP = 8
write = rows.ParquetRows._flush
def flush(self):
    write(self)
    os.kill(os.getpid(), signal.SIGKILL)
rows.ParquetRows._flush = flush
sys.argv = ["generate", *sys.argv[1:]]
main("generate")
"""


@pytest.mark.fault
@pytest.mark.parametrize("moment", ["asking", pytest.param("repair", marks=pytest.mark.long), "writing"])
def test_kill_9_at_any_moment_asks_for_nothing_twice_that_was_received(tmp_path: Path, moment: str) -> None:
    with serve(stubborn) as server:
        config, out = tmp_path / "generate.yaml", tmp_path / "store" / "g"
        with config.open("w") as file:
            YAML(typ="safe").dump(asking_json(tmp_path, server.url), file)
        arguments = ["--config", str(config), "--out", str(out)]
        command = [sys.executable, "-m", "steps.generate", *arguments]
        killed = [sys.executable, "-c", CUT, *arguments] if moment == "writing" else command
        process = subprocess.Popen(killed, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            asked = [first_of(body) for body in list(server.bodies)]
            if (moment == "asking" and len(asked) >= 7) or (moment == "repair" and (7, 1) in asked):
                process.kill()
            time.sleep(0.002)
        process.communicate(timeout=10)
        assert process.returncode == -9 and not out.exists()
        with closing(sqlite3.connect(out.parent / ".g.partial" / ".resume" / "requests.sqlite")) as db:
            held = db.execute("SELECT count(*) FROM requests").fetchone()[0]
        sent = len(server.bodies)
        assert 0 < held <= sent <= held + 4 and sent < 80, "only what was in flight is lost"
        subprocess.run(command, check=True, stderr=subprocess.PIPE)
        assert len(server.bodies) == sent + 80 - held
        more = Counter(json.dumps(body["messages"]) for body in server.bodies)
        assert sum(more.values()) - len(more) == sent - held
        whole = build(spec(asking_json(tmp_path, server.url)), tmp_path / "whole" / "g")
    artifact = Artifact.read(out)
    check_stubborn(artifact)
    assert artifact.digest == whole.digest
    for name in ("dropped.parquet", "candidates.parquet"):
        assert (artifact.path / name).read_bytes() == (whole.path / name).read_bytes()


# --- floors -----------------------------------------------------------------------------------------------------------


def test_too_few_kept_answers_stop_the_step_and_nothing_is_lost(tmp_path: Path) -> None:
    with serve(stubborn) as server:
        strict = {**asking_json(tmp_path, server.url), "min_kept_share": 0.9}
        says = r"answer keeps too little: got 32 of 40 answers \(dropped: unparsed 8\), because min_kept_share is 0.9"
        with pytest.raises(DataError, match=says):
            build(spec(strict), tmp_path / "s" / "g")
        assert not (tmp_path / "s" / "g").exists() and len(server.bodies) == 80
        check_stubborn(build(spec(asking_json(tmp_path, server.url)), tmp_path / "s" / "g"))
        assert len(server.bodies) == 80


def test_hopeless_answers_stop_the_step_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steps.lib.inquiry.EARLY", 10)
    monkeypatch.setattr("steps.lib.exchange.ROOM", 8)
    monkeypatch.setattr("steps.lib.exchange.CHUNK", 4)
    many = [{**PROMPTS[0], "id": str(n), "prompt": f"question {n * 5 + (4 if n % 5 else 0)}"} for n in range(200)]
    with serve(stubborn) as server, pytest.raises(DataError, match=r"got 2 of 10 answers \(dropped: unparsed 8\)"):
        build(spec(asking_json(tmp_path, server.url, prompts=many)), tmp_path / "s" / "g")
    assert len(server.bodies) < 150


# --- answers of other runs --------------------------------------------------------------------------------------------


def test_an_edit_to_a_prompt_file_asks_only_for_the_rows_it_changes(tmp_path: Path) -> None:
    prompts = [*PROMPTS[:10], *({"id": f"z{n}", "lang": "zh", "prompt": f"问题 {n}", "intent": "x"} for n in range(10))]
    path = tmp_path / "prompt.yaml"

    def made(server: Server, text: str) -> tuple[Artifact, list[str]]:
        path.write_text(text, encoding="utf-8")
        one, before = spec(values(tmp_path, server.url, prompts=prompts, prompt_file=str(path))), len(server.bodies)
        return build(one, tmp_path / "store" / one.key()), server.asked()[before:]

    with serve(lambda number, body: Act(text=f"{number}")) as server:
        first, asked = made(server, "system: {zh: 请回答, en: Answer}\n")
        assert len(asked) == 20
        second, asked = made(server, "system: {zh: 请简短回答, en: Answer}\n# a comment\n")
        assert sorted(asked) == sorted(f"问题 {n}" for n in range(10))
        assert [row.answer for row in rows(second)][:10] == [row.answer for row in rows(first)][:10]
        metrics = second.manifest["metrics"]
        assert (metrics["server/answered"], metrics["server/from_ledger"], metrics["server/requests"]) == (10, 10, 20)
        assert len(plain_record(second)) == 20 and second.manifest["tokens"] == 200
        third, asked = made(server, "system: {zh: 请回答, en: Answer}\nmax_context_tokens: 900\n")
        assert asked == [] and third.key != first.key
        assert [row.answer for row in rows(third)] == [row.answer for row in rows(first)]
        assert rows(third)[0].provenance != rows(first)[0].provenance, "the file's digest"


def test_a_run_that_was_stopped_under_another_key_pays_for_the_next(tmp_path: Path) -> None:
    with serve(lambda number, body: Act(text="x") if number < 30 else Act(status=500)) as server:
        one = spec(values(tmp_path, server.url))
        with pytest.raises(TeacherError):
            build(one, tmp_path / "store" / one.key())
        server.decide, server.bodies[:] = echo, []
        other = spec(values(tmp_path, server.url, drop_flags=[]))
        assert len(rows(build(other, tmp_path / "store" / other.key()))) == 40
        assert 10 <= len(server.bodies) < 20


# --- rows -------------------------------------------------------------------------------------------------------------


def test_the_same_ids_in_two_sources_are_told_apart(tmp_path: Path) -> None:
    settings = values(tmp_path, prompts=[{"id": "a", "lang": "en", "prompt": "Where is my order?"}, {"prompt": ""}])
    settings["prompts"].append({**settings["prompts"][0], "name": "more"})
    artifact = build(spec(settings), tmp_path / "s" / "g")
    assert [row.id for row in rows(artifact)] == ["train/a/0", "more/a/0"]
    assert [row.source for row in read_parquet(artifact.path / "dropped.parquet", Dropped)] == ["train", "more"]


def test_rows_come_in_groups_and_the_bytes_depend_on_the_rows_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setattr("steps.lib.rows.ROW_GROUP", 7)
    made = [Dropped(id=str(n), step="generate", reason="x" * n, row="{}") for n in range(30)]
    files = [tmp_path / name for name in ("one.parquet", "two.parquet")]
    for path in files:
        with ParquetRows(path, Dropped) as writer:
            for row in made:
                writer.add(row)
        assert writer.count == 30
    assert files[0].read_bytes() == files[1].read_bytes() and read_parquet(files[0], Dropped) == made
    groups = pq.ParquetFile(files[0])
    assert [groups.metadata.row_group(n).num_rows for n in range(groups.num_row_groups)] == [7, 7, 7, 7, 2]
    for count in (0, 5):
        with ParquetRows(files[0], Dropped) as writer:
            for row in made[:count]:
                writer.add(row)
        write_parquet(files[1], made[:count], Dropped)
        assert files[0].read_bytes() == files[1].read_bytes()
    chats = [Chat(id="a", messages=[Message(role="user", content="你好")]), Chat(id="b", messages=[])]
    write_parquet(files[0], chats, Chat)
    assert read_parquet(files[0], Chat) == chats


@pytest.mark.long
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python holds at the end of a part. An id that is kept takes 100 bytes, a row with what it was asked nearly 5,000.

    What another thread or a late import takes on the way comes once; what is kept of the rows comes in both rounds.
    """
    import gc
    import tracemalloc

    from steps.lib.language import detect

    put, held = FinishedParts.put, list[int]()

    def noted(self: FinishedParts, *args: Any) -> None:
        put(self, *args)
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])

    monkeypatch.setattr(FinishedParts, "put", noted)
    for name, value in {
        "exchange.ROOM": 50,
        "exchange.CHUNK": 25,
        "rows.ROW_GROUP": 50,
        "reading.PART": 50,
        "lines.BLOCK": 4096,
        "teacher.ScriptedClient.window": 25,
    }.items():
        monkeypatch.setattr(f"steps.lib.{name}", value)
    assert (
        detect("Dieser Satz ist deutsch, und nur das Modell sieht es.") == "other"
    )  # loads it, as one of many rows does
    gc.collect()
    gc.freeze()  # what other modules made need not be looked through at each part
    peaks = []
    try:
        for place, count in enumerate((200, 500, 2000, 500, 2000)):  # the first warms up
            prompts = [
                {"id": f"p{n}", "lang": "en", "prompt": f"I want a refund for order A{n + 10000}"} for n in range(count)
            ]
            one = spec(values(tmp_path, prompts=prompts, prompt_file="configs/prompts/aftersales.yaml"))
            tracemalloc.start()
            build(one, tmp_path / "s" / str(place))
            peaks.append(max(held))
            held.clear()
            tracemalloc.stop()
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    assert min(peaks[2] - peaks[1], peaks[4] - peaks[3]) / 1500 < 60, peaks
