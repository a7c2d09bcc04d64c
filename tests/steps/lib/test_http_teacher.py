"""An HTTP teacher against a real server on loopback that fails in every way."""

import json
import os
import signal
import threading
import time
from collections import Counter
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from openai_server import Act, serve
from teachers import LOG, SECRET, VARIABLE, collect, http, requests

from steps.lib.asking import ask
from steps.lib.config import key_view
from steps.lib.errors import Resumable, TeacherError
from steps.lib.ledger import RequestLedger
from steps.lib.runtime import Stop, stop_signals
from steps.lib.teacher import open_client
from steps.lib.wire import retry_after


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)


def test_answers_arrive_whole_and_no_secret_is_stored(tmp_path: Path) -> None:
    with serve(lambda number, body: Act(text="re: " + body["messages"][-1]["content"])) as server:
        replies, failures, tally = collect(http(server), ["a", "b", "中"], tmp_path / "r")
    assert {prompt: reply.text for prompt, reply in replies.items() if reply} == {
        "a": "re: a",
        "b": "re: b",
        "中": "re: 中",
    }
    assert not failures and (tally.answered, tally.tokens_in, tally.tokens_out) == (3, 21, 9)
    assert tally.models == {"m"}
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("m", 0.7, 1.0, 1024)
    assert isinstance(body["seed"], int)
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert SECRET.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_second_run_asks_nothing_and_failures_alone_are_asked_again(tmp_path: Path) -> None:
    def once(number: int, body: dict[str, Any]) -> Act:
        return Act(status=500) if body["messages"][-1]["content"] == "b" else Act()

    with serve(once) as server:
        _, failures, tally = collect(http(server, attempts=2), ["a", "b", "c"], tmp_path / "r")
        assert list(failures) == ["b"] and failures["b"].startswith("http_500")
        assert tally.failed == {"http_500": 1} and len(server.bodies) == 4
        server.decide = lambda number, body: Act()
        replies, failures, tally = collect(http(server), ["a", "b", "c"], tmp_path / "r")
        assert server.asked()[4:] == ["b"] and not failures and all(replies.values()) and tally.from_ledger == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_stops_the_teacher_once(tmp_path: Path, status: int) -> None:
    body = f'{{"error": {{"message": "bad key {SECRET}"}}}}'.encode()
    with serve(lambda n, b: Act(status=status, raw=body)) as server, pytest.raises(TeacherError) as caught:
        collect(http(server, concurrency=2), [str(n) for n in range(50)], tmp_path / "r")
    text = str(caught.value)
    assert f"HTTP {status}" in text and "TEST_TEACHER_KEY" in text and "endpoint test" in text and server.url in text
    assert SECRET not in text and len(server.bodies) <= 2
    with RequestLedger(tmp_path / "r") as ledger:
        assert ledger.failures() == {}, "rows of a dead teacher stay pending"


def test_a_spent_quota_stops_but_a_rate_limit_does_not(tmp_path: Path) -> None:
    body = json.dumps({"error": {"message": "pay", "code": "insufficient_quota"}}).encode()
    with serve([Act(status=429, raw=body)]) as server, pytest.raises(TeacherError, match="quota is spent"):
        collect(http(server, concurrency=1), ["a"], tmp_path / "r")


def test_a_missing_key_names_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_TEACHER_KEY")
    with serve() as server, pytest.raises(TeacherError, match="no environment variable TEST_TEACHER_KEY"):
        collect(http(server), ["a"], tmp_path / "r")


def test_429_holds_the_whole_endpoint_for_retry_after(tmp_path: Path) -> None:
    times: list[float] = []

    def decide(number: int, body: dict[str, Any]) -> Act:
        times.append(time.monotonic())
        return Act(status=429, headers={"Retry-After": "0.6"}) if number == 0 else Act(delay=0.05)

    with serve(decide) as server:
        replies, _, tally = collect(http(server, concurrency=1), ["a", "b"], tmp_path / "r")
    assert all(replies.values()) and tally.attempts == 3
    assert times[1] - times[0] >= 0.55


def test_retry_after_reads_seconds_and_dates() -> None:
    assert retry_after("3") == 3
    assert 8 < (retry_after(formatdate(time.time() + 10, usegmt=True)) or 0) <= 10
    assert retry_after(formatdate(time.time() - 10, usegmt=True)) == 0
    assert retry_after("soon") is None and retry_after(None) is None and retry_after("inf") is None


FAULTS = {
    "http_500": Act(status=500, raw=b"oops"),
    "http_503": Act(status=503),
    "http_408": Act(status=408),
    "http_409": Act(status=409),
    "bad_json": Act(raw=b'{"choices": [{"message": {"content": "ha'),
    "no_choices": Act(raw=b'{"choices": []}'),
    "empty": Act(text=""),
    "connection": Act(close=True),
    "timeout": Act(delay=3),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_passing_faults_are_retried(tmp_path: Path, reason: str) -> None:
    with serve([FAULTS[reason]]) as server:
        replies, _, tally = collect(
            http(server, timeout_seconds=0.3 if reason == "timeout" else 5), ["a"], tmp_path / "r"
        )
    assert replies["a"] is not None and replies["a"].text == "ok" and tally.attempts == 2


@pytest.mark.parametrize("reason", [*FAULTS, "half_body"])
def test_lasting_faults_are_recorded_with_their_reason(tmp_path: Path, reason: str) -> None:
    act = FAULTS.get(reason) or Act(raw=b'{"choices": [{"mess', promise=500)
    with serve(lambda number, body: act) as server:
        config = http(server, attempts=2, timeout_seconds=0.3 if reason == "timeout" else 5)
        replies, failures, tally = collect(config, ["a"], tmp_path / "r")
    assert replies["a"] is None and len(server.bodies) == 2 and tally.attempts == 2
    assert failures["a"].partition(":")[0] == ("connection" if reason == "half_body" else reason)


@pytest.mark.parametrize(("act", "reason"), [(Act(status=400), "http_400"), (Act(status=422), "http_422"),
                                             (Act(text="", finish="content_filter"), "empty: finish_reason content_filter")])  # fmt: skip
def test_a_refused_request_is_never_retried(tmp_path: Path, act: Act, reason: str) -> None:
    with serve(lambda number, body: act) as server:
        _, failures, _ = collect(http(server), ["a", "b"], tmp_path / "r")
    assert len(server.bodies) == 2 and all(text.startswith(reason) for text in failures.values())


def test_an_endpoint_that_is_not_there_stops_the_teacher(tmp_path: Path) -> None:
    with serve() as server:
        config = http(server, attempts=1, give_up_after=5, concurrency=1)
    with pytest.raises(TeacherError, match="got 5 requests in a row without an answer"):
        collect(config, [str(n) for n in range(100)], tmp_path / "r")
    with RequestLedger(tmp_path / "r") as ledger:
        assert len(ledger.failures()) == 5


def test_a_key_in_an_error_text_is_struck_out(tmp_path: Path) -> None:
    with serve(lambda number, body: Act(status=400, raw=f"your key {SECRET} is".encode())) as server:
        _, failures, _ = collect(http(server), ["a"], tmp_path / "r")
    assert failures["a"] == "http_400: your key *** is"


def test_concurrency_is_bounded_and_used(tmp_path: Path) -> None:
    with serve(lambda number, body: Act(delay=0.02)) as server:
        collect(http(server, concurrency=5), [str(n) for n in range(60)], tmp_path / "r")
    assert server.most_in_flight == 5 and len(server.bodies) == 60


def test_one_dead_teacher_does_not_stop_the_others(tmp_path: Path) -> None:
    with serve(lambda n, b: Act(status=401)) as dead, serve(lambda n, b: Act(delay=0.05)) as alive:
        clients = {"dead": open_client(http(dead, name="dead"), 0), "alive": open_client(http(alive, name="alive"), 0)}
        work = {name: (client, requests(client, [name + str(n) for n in range(8)])) for name, client in clients.items()}
        with RequestLedger(tmp_path / "r") as ledger, pytest.raises(TeacherError, match="teacher dead cannot answer"):
            list(ask(work, ledger, Stop(), LOG, {}))
        with RequestLedger(tmp_path / "r") as ledger:
            assert len(ledger) == 8


def test_sigterm_stops_asking_keeps_what_came_and_says_resumable(tmp_path: Path) -> None:
    prompts = [str(n) for n in range(200)]
    with serve(lambda number, body: Act(delay=0.05)) as server:
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        with stop_signals() as stop, pytest.raises(Resumable, match="SIGTERM"):
            collect(http(server), prompts, tmp_path / "r", stop)
        first = len(server.bodies)
        with RequestLedger(tmp_path / "r") as ledger:
            assert 0 < len(ledger) == first < 200, "what was in flight was waited for, nothing new was sent"
        collect(http(server, concurrency=32), prompts, tmp_path / "r")
        assert Counter(server.asked()) == Counter(prompts)


def test_schema_is_sent_only_where_the_endpoint_takes_one(tmp_path: Path) -> None:
    schema = {"type": "object"}
    with serve() as server:
        plain, held = open_client(http(server), 0), open_client(http(server, structured_output=True), 0)
        both = [requests(client, ["a"], schema=schema)[0] for client in (plain, held)]
        with RequestLedger(tmp_path / "r") as ledger:
            list(ask({"plain": (plain, both[:1]), "held": (held, both[1:])}, ledger, Stop(), LOG, {}))
    formats = [body.get("response_format") for body in server.bodies]
    assert None in formats
    assert {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}} in formats
    assert both[0].key != both[1].key
    assert requests(plain, ["a"])[0].key == both[0].key, "a schema that is not sent must not bill anew"


def test_key_holds_what_changes_the_answer_and_nothing_else() -> None:
    with serve() as server:
        key = requests(open_client(http(server), 0), ["a"])[0].key
        for same in ({"name": "x"}, {"concurrency": 9}, {"attempts": 1}, {"timeout_seconds": 9}, {"base_url": "https://else.where/v1"},
                     {"share": 3}, {"api_key_env": None}):  # fmt: skip
            assert requests(open_client(http(server, **same), 0), ["a"])[0].key == key, same
        for other in ({"model": "n"}, {"endpoint": "x"}, {"temperature": 0.1}, {"top_p": 0.5}, {"max_tokens": 7}):
            assert requests(open_client(http(server, **other), 0), ["a"])[0].key != key, other
        view = key_view(http(server))
    assert "base_url" not in view and "api_key_env" not in view and view["endpoint"] == "test"
