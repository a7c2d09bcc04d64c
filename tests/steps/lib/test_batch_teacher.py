"""Batch files against a real server on loopback: nothing is submitted twice, whatever breaks and whoever is killed."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from openai_server import Act, Server, serve
from ruamel.yaml import YAML
from teachers import SECRET, VARIABLE, collect, command, requests
from teachers import http as chat

from steps.lib.errors import BudgetSpent, ConfigError, Resumable, TeacherError
from steps.lib.ledger import RequestLedger
from steps.lib.rows import Candidate, read_parquet
from steps.lib.stopping import stop_signals
from steps.lib.teacher import open_client
from steps.lib.teacher_config import HttpTeacher

PROMPTS = [str(n) for n in range(8)]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)


def http(server: Server, **values: Any) -> HttpTeacher:
    return chat(server, **{"mode": "batch", "batch": {"poll_seconds": 0.02}, **values})


def echo(number: int, body: dict[str, Any]) -> Act:
    return Act(text="re: " + body["messages"][-1]["content"])


def notes(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("batches-*.json")
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


def test_a_file_of_requests_is_answered_at_half_the_price(tmp_path: Path) -> None:
    with serve(echo) as server:
        config = http(server, price={"input": 1, "output": 10})
        replies, failures, tally = collect(config, PROMPTS, tmp_path / "r")
        assert {p: r and r.text for p, r in replies.items()} == {p: f"re: {p}" for p in PROMPTS} and not failures
        (batch,), lines = server.batches.made, server.batches.files["file-0"].splitlines()
    assert batch["endpoint"] == "/v1/chat/completions" and batch["completion_window"] == "24h"
    wanted = requests(open_client(chat(server), 0), PROMPTS)
    assert [json.loads(line)["custom_id"] for line in lines] == [one.key for one in wanted], (
        "the keys of single requests"
    )
    assert json.loads(lines[0])["url"] == "/v1/chat/completions"
    assert replies["0"] is not None and replies["0"].cost == pytest.approx((7 * 1 + 3 * 10) / 1e6 / 2)
    assert tally.answered == tally.attempts == 8 and notes(tmp_path) == []
    assert SECRET.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_what_was_answered_one_by_one_is_not_in_the_file(tmp_path: Path) -> None:
    with serve(echo) as server:
        collect(chat(server), PROMPTS[:5], tmp_path / "r")
        _, _, tally = collect(http(server), PROMPTS, tmp_path / "r")
        assert tally.from_ledger == 5 and len(server.batches.files["file-0"].splitlines()) == 3


def test_files_keep_to_the_limits_of_requests_and_bytes(tmp_path: Path) -> None:
    with serve(echo) as server:
        replies, _, _ = collect(http(server, batch={"poll_seconds": 0.02, "max_requests": 3}), PROMPTS, tmp_path / "a")
        assert all(replies.values())
        sizes = [len(server.batches.files[one["input_file_id"]].splitlines()) for one in server.batches.made]
        assert sizes == [3, 3, 2]
        del server.batches.made[:]
        small = http(server, batch={"poll_seconds": 0.02, "max_megabytes": 0.0006})
        replies, _, _ = collect(small, PROMPTS, tmp_path / "b")
        assert all(replies.values()) and len(server.batches.made) > 2
        files = [server.batches.files[one["input_file_id"]] for one in server.batches.made]
        assert all(len(file) <= 600 or len(file.splitlines()) == 1 for file in files)


def test_lines_that_failed_are_failures_with_reasons(tmp_path: Path) -> None:
    acts = {"1": Act(status=400, raw=b'{"error": {"message": "long", "code": "context_length_exceeded"}}'),
            "2": Act(status=500, raw=b"{}"), "3": Act(text="", finish="length"), "4": Act(status=404, raw=b"{}"),
            "5": Act(raw=b'{"choices": []}')}  # fmt: skip
    with serve(lambda n, b: acts.get(b["messages"][-1]["content"]) or Act()) as server:
        replies, failures, _ = collect(http(server), PROMPTS, tmp_path / "r")
        assert {p: why.partition(":")[0] for p, why in failures.items()} == {
            "1": "context_overflow", "2": "http_500", "3": "empty", "4": "http_404", "5": "no_choices"}  # fmt: skip
        assert [p for p, reply in replies.items() if reply] == ["0", "6", "7"]
        acts.clear()
        replies, failures, _ = collect(http(server), PROMPTS, tmp_path / "r")
        assert all(replies.values()) and not failures
        assert len(server.batches.files[server.batches.made[1]["input_file_id"]].splitlines()) == 5


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_a_batch_that_ended_early_keeps_what_was_answered(tmp_path: Path, status: str) -> None:
    with serve(echo) as server:
        server.batches.status, server.batches.answered = status, 5
        replies, failures, _ = collect(http(server), PROMPTS, tmp_path / "r")
        assert [p for p, reply in replies.items() if reply] == PROMPTS[:5]
        assert set(failures.values()) == {f"batch_{status}: out of time"} and set(failures) == set(PROMPTS[5:])
        server.batches.status, server.batches.answered = "completed", None
        replies, _, tally = collect(http(server), PROMPTS, tmp_path / "r")
        assert all(replies.values()) and tally.from_ledger == 5 and len(server.batches.made) == 2


def test_a_batch_that_was_refused_says_why(tmp_path: Path) -> None:
    with serve(echo) as server:
        server.batches.status = "failed"
        _, failures, _ = collect(http(server), PROMPTS, tmp_path / "r")
    assert set(failures.values()) == {"batch_failed: invalid_json_line: line 1 is bad"} and len(failures) == 8
    assert notes(tmp_path) == []


def test_a_batch_that_the_endpoint_forgot_is_a_failure_and_not_the_end(tmp_path: Path) -> None:
    with serve(echo) as server:
        held_up(server, tmp_path)
        del server.batches.made[:]
        _, failures, _ = collect(http(server), PROMPTS, tmp_path / "r")
        assert {why.partition(":")[0] for why in failures.values()} == {"batch_lost"} and len(failures) == 8
        replies, _, _ = collect(http(server), PROMPTS, tmp_path / "r")
        assert all(replies.values())


def held_up(server: Server, folder: Path) -> None:
    """A run that submitted, and was stopped while it waited."""
    server.batches.held = True
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    started = time.monotonic()
    with stop_signals() as stop, pytest.raises(Resumable, match="SIGTERM"):
        collect(http(server), PROMPTS, folder / "r", stop)
    assert time.monotonic() - started < 3, "a stop does not wait for the batch"
    assert len(server.batches.made) == 1
    server.batches.held = False


def test_a_stopped_run_goes_on_waiting_for_the_same_batch(tmp_path: Path) -> None:
    with serve(echo) as server:
        held_up(server, tmp_path)
        (note,) = notes(tmp_path)
        assert note["id"] == "batch_0" and len(note["keys"]) == 8
        replies, _, _ = collect(http(server), [*PROMPTS, "new"], tmp_path / "r")
        assert all(replies.values()) and len(server.batches.made) == 2
        assert len(server.batches.files[server.batches.made[1]["input_file_id"]].splitlines()) == 1, "only what is new"


def test_a_run_killed_while_it_submitted_finds_its_batch_by_its_mark(tmp_path: Path) -> None:
    with serve(echo) as server:
        held_up(server, tmp_path)
        (path,) = tmp_path.glob("batches-*.json")
        (note,) = notes(tmp_path)
        path.write_text(json.dumps([{**note, "id": ""}]))  # as it was before the endpoint's answer came
        server.batches.made += [{"id": f"other_{n}", "metadata": None, "status": "completed"} for n in range(3)]
        server.batches.page = 2
        replies, _, _ = collect(http(server), PROMPTS, tmp_path / "r")
        assert all(replies.values()) and len(server.batches.made) == 4
        path.write_text(json.dumps([{**note, "id": "", "mark": "never came there"}]))
        (tmp_path / "r").unlink()
        replies, _, _ = collect(http(server), PROMPTS, tmp_path / "r")
        assert all(replies.values()) and len(server.batches.made) == 5, "it had not been submitted"


def test_an_answer_that_got_lost_does_not_submit_twice(tmp_path: Path) -> None:
    with serve(echo) as server:
        server.batches.lose, server.batches.cut = 1, 1
        replies, _, tally = collect(http(server), PROMPTS, tmp_path / "r")
        assert all(replies.values()) and tally.answered == 8 and len(server.batches.made) == 1
        assert not server.batches.lose and not server.batches.cut


def test_an_endpoint_without_batches_stops_the_teacher(tmp_path: Path) -> None:
    with serve(echo) as server:
        config = http(server, base_url=server.url.replace("/v1", "/other"))
        with pytest.raises(TeacherError, match="HTTP 404"):
            collect(config, PROMPTS, tmp_path / "r")
        with pytest.raises(ConfigError, match="got mode: batch, because nothing remembers"):
            open_client(http(server), 0)


USAGE = {"prompt_tokens": 100, "completion_tokens": 50}


def test_a_budget_is_reserved_for_whole_files_and_what_they_leave_pays_for_more(tmp_path: Path) -> None:
    with serve(lambda n, b: Act(usage=USAGE)) as server:
        config = http(server, budget_tokens=1000, max_tokens=50)
        for _ in range(2):
            with pytest.raises(BudgetSpent, match=r"got 900 of 1000 tokens used.*raise budget_tokens"):
                with RequestLedger(tmp_path / "r") as ledger:
                    spent = ledger.spent("t")
                collect(config, PROMPTS, tmp_path / "r", spent=spent)
            assert len(server.bodies) == 6 and len(server.batches.made) > 1, "one more could have passed it"
        with RequestLedger(tmp_path / "r") as ledger:
            assert len(ledger) == 6 and ledger.spent("t").tokens == 900
        replies, _, _ = collect(config.model_copy(update={"budget_tokens": 5000}), PROMPTS, tmp_path / "r")
        assert all(replies.values()) and len(server.bodies) == 8


def test_what_is_submitted_counts_whoever_asks_next(tmp_path: Path) -> None:
    """A stopped run's batch is not among the next run's questions: it is billed all the same."""
    with serve(lambda n, b: Act(usage=USAGE)) as server:
        held_up(server, tmp_path)
        config = http(server, budget_tokens=2000)
        with pytest.raises(BudgetSpent, match="got 0 of 2000 tokens used"):
            collect(config, ["other"], tmp_path / "r")
        assert len(server.batches.made) == 1
        replies, _, _ = collect(config.model_copy(update={"budget_tokens": 20_000}), ["other"], tmp_path / "r")
        assert all(replies.values()) and len(server.batches.made) == 2
        replies, _, _ = collect(http(server), PROMPTS, tmp_path / "r")
        assert all(replies.values()) and len(server.batches.made) == 2, "and it is still there"


def test_what_a_killed_run_had_read_is_not_counted_twice(tmp_path: Path) -> None:
    with serve(lambda n, b: Act(usage=USAGE)) as server:
        held_up(server, tmp_path)
        collect(chat(server), PROMPTS[:6], tmp_path / "r")  # as if it had read six lines
        config = http(server, budget_tokens=3000, max_tokens=1024)
        with RequestLedger(tmp_path / "r") as ledger:
            spent = ledger.spent("t")
        replies, _, _ = collect(config, [*PROMPTS, "new"], tmp_path / "r", spent=spent)
        assert all(replies.values()) and len(server.batches.made) == 2 and notes(tmp_path) == []


def test_a_batch_that_spans_windows_is_read_by_all_of_them(tmp_path: Path) -> None:
    with serve(echo) as server:
        held_up(server, tmp_path)
        config = http(server, batch={"poll_seconds": 0.02, "max_requests": 3})
        replies, _, _ = collect(config, PROMPTS, tmp_path / "r")
        assert {p: r and r.text for p, r in replies.items()} == {p: f"re: {p}" for p in PROMPTS}
        assert len(server.batches.made) == 1 and notes(tmp_path) == []


def test_lines_that_are_not_there_may_have_been_billed(tmp_path: Path) -> None:
    with serve(echo) as server:
        held_up(server, tmp_path)
        lines = server.batches.files["file-0"].splitlines(keepends=True)
        server.batches.files["file-0"] = b"".join(lines[:5])
        _, failures, _ = collect(http(server, budget_tokens=100_000), PROMPTS, tmp_path / "r")
        assert {why.partition(":")[0] for why in failures.values()} == {"no_line"} and list(failures) == PROMPTS[5:]
        with RequestLedger(tmp_path / "r") as ledger:
            assert ledger.spent("t").tokens > 5 * 10 + 3 * 1024


def test_an_address_that_changed_does_not_submit_again(tmp_path: Path) -> None:
    with serve(echo) as server, serve(echo) as other:
        held_up(server, tmp_path)
        with pytest.raises(TeacherError, match=f"8 requests were submitted to {server.url}; set it back, or delete"):
            collect(http(other), PROMPTS, tmp_path / "r")
        assert not other.batches.made


@pytest.mark.fault
def test_kill_9_while_waiting_submits_once(tmp_path: Path) -> None:
    rows = [{"id": f"p{n}", "lang": "en", "prompt": f"question {n}"} for n in range(20)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serve(echo) as server:
        server.batches.held = True
        teacher = http(server, api_key_env=None).model_dump(mode="json")
        settings = {"prompts": [{"name": "train", "path": str(tmp_path / "prompts.jsonl")}],
                    "prompt_file": "configs/prompts/plain.yaml", "teachers": [teacher]}  # fmt: skip
        with (tmp_path / "generate.yaml").open("w") as file:
            YAML(typ="safe").dump(settings, file)
        out = tmp_path / "store" / "g"
        run = command(tmp_path / "generate.yaml", out)
        for _ in range(2):
            before = server.batches.looks
            process = subprocess.Popen(run, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 60
            while server.batches.looks < before + 3 and time.monotonic() < deadline:
                time.sleep(0.02)
            process.kill()
            process.wait(10)
            assert len(server.batches.made) == 1 and not out.exists()
        server.batches.held = False
        said = subprocess.run(run, check=True, stderr=subprocess.PIPE, text=True).stderr
        assert len(server.batches.made) == 1 and "going on with batch batch_0, 20 requests" in said
    found = read_parquet(out / "candidates.parquet", Candidate)
    assert [row.answer for row in found] == [f"re: question {n}" for n in range(20)]
    assert not list(out.rglob("batches-*"))
