"""An HTTP teacher against a real server on loopback that fails in every way."""

import asyncio
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from openai_server import Act, serve
from pydantic import ValidationError
from teachers import LOG, SECRET, VARIABLE, collect, http, requests

from steps.lib.asking import Outcome
from steps.lib.config import key_view
from steps.lib.errors import BudgetSpent, ConfigError, Resumable, TeacherError
from steps.lib.exchange import ask
from steps.lib.http_teacher import HttpClient
from steps.lib.ledger import RequestLedger, Spent
from steps.lib.stopping import Stop, stop_signals
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
    "bad_json: too deep": Act(raw=b"[" * 100_000),
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
    assert failures["a"].partition(":")[0] == ("connection" if reason == "half_body" else reason.partition(":")[0])


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


def test_a_thought_is_kept_apart_from_the_answer(tmp_path: Path) -> None:
    with serve([Act(text="4", thought="2 and 2 …"), Act(text="", thought="on and on", finish="length")]) as server:
        replies, failures, _ = collect(http(server, concurrency=1), ["a", "b"], tmp_path / "r")
    assert replies["a"] is not None and (replies["a"].text, replies["a"].thought) == ("4", "2 and 2 …")
    assert failures["b"] == "empty: finish_reason length"


def test_another_model_is_kept_counted_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serve(lambda n, b: Act(model="qwen-9b" if n % 2 else "M-2024-07-18")) as server:
        client = open_client(http(server, concurrency=1, model="org/m"), 0, log=LOG)
        wanted = requests(client, [str(n) for n in range(6)])
        with RequestLedger(tmp_path / "r") as ledger:
            list(ask({"t": (client, wanted)}, ledger, Stop(), LOG, {}))
            assert Counter(ledger.get(one.key).model for one in wanted) == {"qwen-9b": 3, "M-2024-07-18": 3}  # type: ignore[union-attr]
    assert client.counts == {"other_model": 3}  # type: ignore[attr-defined]
    told = [record.getMessage() for record in caplog.records if "was asked for model org/m" in record.getMessage()]
    assert len(told) == 1 and "answered as qwen-9b" in told[0]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"error": {"message": "too long", "code": "context_length_exceeded"}}, "context_overflow"),
        ({"message": "This model's maximum context length is 4096 tokens.", "code": 400}, "context_overflow"),
        ({"error": {"message": "policy", "code": "content_filter"}}, "content_filter"),
        ({"error": {"message": "输入数据可能包含不当内容", "code": "data_inspection_failed"}}, "content_filter"),
        ({"error": "bad request"}, "http_400"),
    ],
)
def test_why_a_request_was_refused_is_a_reason_of_its_own(tmp_path: Path, body: dict[str, Any], reason: str) -> None:
    with serve(lambda n, b: Act(status=400, raw=json.dumps(body).encode())) as server:
        _, failures, _ = collect(http(server), ["a"], tmp_path / "r")
    assert failures["a"].startswith(f"{reason}: ") and len(server.bodies) == 1


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
FORMS: dict[Any, dict[str, Any]] = {
    True: {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}},
    "json_schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}},
    "json_object": {"response_format": {"type": "json_object"}},
    "guided_json": {"guided_json": SCHEMA},
    "structured_outputs": {"structured_outputs": {"json": SCHEMA}},
    False: {},
    "none": {},
}


def test_every_server_is_held_to_a_schema_in_its_own_way(tmp_path: Path) -> None:
    keys: dict[Any, str] = {}
    with serve() as server:
        for form, sent in FORMS.items():
            client = open_client(http(server, structured_output=form), 0)
            wanted = requests(client, ["a"], schema=SCHEMA)
            keys[form] = wanted[0].key
            with RequestLedger(tmp_path / f"r-{form}") as ledger:
                list(ask({"t": (client, wanted)}, ledger, Stop(), LOG, {}))
            body = server.bodies[-1]
            names = ("response_format", "guided_json", "structured_outputs")
            assert {name: body[name] for name in names if name in body} == sent, form
    assert keys[True] == keys["json_schema"] and keys[False] == keys["none"]
    assert len({keys[form] for form in (True, "json_object", "guided_json", "structured_outputs", False)}) == 5


def test_extra_fields_are_sent_and_in_the_key(tmp_path: Path) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "top_k": 20}
    with serve() as server:
        config = http(server, extra_body=extra)
        collect(config, ["a"], tmp_path / "r")
        assert {name: server.bodies[0][name] for name in extra} == extra
        plain = open_client(http(server), 0)
        assert requests(open_client(config, 0), ["a"])[0].key != requests(plain, ["a"])[0].key
        assert "extra_body" not in key_view(http(server)) and key_view(config)["extra_body"] == extra
        for bad in ("model", "stream", "n", "messages"):
            with pytest.raises(ValidationError, match=f"{bad} cannot stand there"):
                http(server, extra_body={bad: 1})


def test_limits_that_contradict_each_other_are_refused() -> None:
    with serve() as server:
        with pytest.raises(ValidationError, match="tokens_per_minute 100 is less than max_tokens 1024"):
            http(server, tokens_per_minute=100)
        with pytest.raises(ValidationError, match="exclude each other"):
            http(server, api_key_block="big-key")


def test_without_usage_the_cost_is_estimated_and_counted(tmp_path: Path) -> None:
    with serve(
        lambda n, b: Act(text="abc" * 20, usage=None if n else {"prompt_tokens": 10, "completion_tokens": 2})
    ) as server:
        client = open_client(http(server, concurrency=1, price={"input": 1, "output": 10}), 0)
        wanted = requests(client, ["a", "b"])
        with RequestLedger(tmp_path / "r") as ledger:
            list(ask({"t": (client, wanted)}, ledger, Stop(), LOG, {}))
            told, guessed = (ledger.get(one.key) for one in wanted)
    assert told is not None and told.cost == pytest.approx((10 * 1 + 2 * 10) / 1e6)
    assert guessed is not None and guessed.tokens_out == 21 and guessed.cost > 21 * 10 / 1e6
    assert client.counts == {"cost_estimated": 1}  # type: ignore[attr-defined]


# Limits


def test_under_pressure_fewer_are_asked_at_a_time(tmp_path: Path) -> None:
    """A server that bears three at a time, asked by sixteen: few refusals, and nothing lost."""
    with serve() as server:
        server.decide = lambda n, b: Act(status=429) if server.in_flight >= 3 else Act(delay=0.03)
        config = http(server, concurrency=16, attempts=40, give_up_after=100)
        replies, failures, tally = collect(config, [str(n) for n in range(150)], tmp_path / "r")
    refused = tally.attempts - 150
    assert all(replies.values()) and not failures
    assert refused < 90, "about 40; sixteen at a time meet 170 to 250"


def test_timeouts_halve_too(tmp_path: Path) -> None:
    with serve(lambda n, b: Act(delay=1.5 if n < 4 else 0)) as server:
        client = open_client(http(server, concurrency=8, timeout_seconds=0.3), 0)
        wanted = requests(client, [str(n) for n in range(4)])
        with RequestLedger(tmp_path / "r") as ledger:
            list(ask({"t": (client, wanted)}, ledger, Stop(), LOG, {}))
            assert len(ledger) == 4
    assert client._gate.limit < 8  # type: ignore[attr-defined]


def test_requests_and_tokens_a_minute_are_kept(tmp_path: Path) -> None:
    times: list[float] = []

    def decide(number: int, body: dict[str, Any]) -> Act:
        times.append(time.monotonic())
        return Act(usage={"prompt_tokens": 20, "completion_tokens": 980})

    with serve(decide) as server:
        collect(http(server, requests_per_minute=1200, concurrency=16), [str(n) for n in range(35)], tmp_path / "r")
        assert times[-1] - times[0] >= 0.6, "20 at once, then one every 50 ms"
        del times[:]
        config = http(server, tokens_per_minute=120_000, max_tokens=1000, concurrency=16)
        collect(config, [f"t{n}" for n in range(6)], tmp_path / "r")
        assert times[-1] - times[0] >= 1.5, (
            "2,000 tokens a second, 1,000 each; one second's worth is there at the start"
        )


def test_an_outage_costs_probes_and_not_rows(tmp_path: Path) -> None:
    with serve(lambda n, b: Act(status=503) if 10 <= n < 17 else Act()) as server:
        config = http(server, concurrency=1, attempts=1, give_up_after=3, probes=6)
        replies, failures, _ = collect(config, [str(n) for n in range(40)], tmp_path / "r")
    assert len(failures) == 3, "those that opened the breaker; then single probes, until one is answered"
    assert sum(reply is not None for reply in replies.values()) == 37
    assert len(server.bodies) == 40 + 4


def test_rows_of_a_dead_teacher_stay_open_and_the_next_run_asks_for_them(tmp_path: Path) -> None:
    prompts = [str(n) for n in range(30)]
    with serve(lambda n, b: Act(status=503)) as server:
        config = http(server, concurrency=8, attempts=2, give_up_after=4, probes=2)
        with pytest.raises(
            TeacherError, match=r"requests in a row without an answer and then 2 failed probes \(last: http_503"
        ):
            collect(config, prompts, tmp_path / "r")
        with RequestLedger(tmp_path / "r") as ledger:
            assert 4 <= len(ledger.failures()) <= 11
        server.decide = lambda n, b: Act()
        replies, _, _ = collect(config, prompts, tmp_path / "r")
    assert all(replies.values())


# Budgets


def usage_of(number: int) -> dict[str, int]:
    return {"prompt_tokens": 5 + number % 7, "completion_tokens": 1 + (number * 37) % 50}


def test_a_budget_ends_the_asking_before_it_is_passed(tmp_path: Path) -> None:
    prompts = [str(n) for n in range(200)]
    billed: list[dict[str, int]] = []

    def decide(number: int, body: dict[str, Any]) -> Act:
        billed.append(usage_of(number))
        text = "" if number % 10 == 3 else "fine"  # an empty answer is billed, and is asked for again
        return Act(text=text, usage=billed[-1], delay=0.002 * (number % 3))

    def paid() -> float:
        return sum(one["prompt_tokens"] * 1 + one["completion_tokens"] * 10 for one in billed) / 1e6

    with serve(decide) as server:
        config = http(server, price={"input": 1, "output": 10}, budget_usd=0.02, max_tokens=50, concurrency=8)
        with pytest.raises(
            BudgetSpent, match=r"budget of teacher t is spent: got 0\.01\d+ of 0\.02 USD used"
        ) as caught:
            collect(config, prompts, tmp_path / "r")
        assert caught.value.exit_code == 75
        assert 0.02 - 0.0008 < paid() <= 0.02, "one more could have passed it, and none did"
        with RequestLedger(tmp_path / "r") as ledger:
            held = len(ledger)
        asked = len(server.bodies)
        with pytest.raises(BudgetSpent):
            collect(config, prompts, tmp_path / "r", spent=Spent(paid(), 0))
        assert len(server.bodies) == asked, "what was spent before counts"
        more = config.model_copy(update={"budget_usd": 1.0})
        replies, _, tally = collect(more, prompts, tmp_path / "r", spent=Spent(paid(), 0))
    assert all(replies.values()) and tally.from_ledger == held


def test_what_may_have_been_billed_counts_against_a_budget(tmp_path: Path) -> None:
    """Half an answer: nobody knows what it cost, so it counts as the most that it can."""
    with serve([Act(raw=b'{"choices": [{"mess')]) as server:
        client = open_client(http(server, budget_tokens=100_000, max_tokens=500, concurrency=1), 0)
        wanted = requests(client, ["a"])
        with RequestLedger(tmp_path / "r") as ledger:
            list(ask({"t": (client, wanted)}, ledger, Stop(), LOG, {}))
            reply = ledger.get(wanted[0].key)
    assert reply is not None and reply.tokens_out == 503 and reply.tokens_in > 7
    assert client.budget.used.tokens == reply.tokens_in + reply.tokens_out  # type: ignore[attr-defined]
    assert client.counts == {"cost_estimated": 1}  # type: ignore[attr-defined]


def test_what_a_stop_cut_off_counts_in_the_runs_that_go_on(tmp_path: Path) -> None:
    """Requests that outlive the grace are billed, and nobody hears their answer: the ledger holds their worst case."""
    with serve(
        lambda n, b: Act(delay=3 if n < 4 else 0, usage={"prompt_tokens": 100, "completion_tokens": 50})
    ) as server:
        config = http(server, max_tokens=50, budget_tokens=1500, grace_seconds=0.1)
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        with stop_signals() as stop, pytest.raises(Resumable, match="SIGTERM"):
            collect(config, [str(n) for n in range(30)], tmp_path / "r", stop)
        with RequestLedger(tmp_path / "r") as ledger:
            spent, failures = ledger.spent("t"), ledger.failures()
        assert len(server.bodies) == len(failures) == 4 and set(failures.values()) == {
            "stopped: no answer in the grace of a stop"
        }
        assert spent.tokens >= 4 * 150
        with pytest.raises(BudgetSpent):
            collect(config, [str(n) for n in range(30)], tmp_path / "r", spent=spent)
        assert 5 <= len(server.bodies) <= 1500 // 150


def test_a_failure_that_was_billed_says_so(tmp_path: Path) -> None:
    with serve(
        lambda n, b: Act(text="", finish="length", usage={"prompt_tokens": 9, "completion_tokens": 50})
    ) as server:
        client = open_client(http(server, price={"input": 1, "output": 2}), 0)
        assert isinstance(client, HttpClient)

        async def once() -> Outcome | None:
            async with client:
                return await client.ask(requests(client, ["a"])[0], asyncio.Event())

        outcome = asyncio.run(once())
    assert outcome is not None and outcome.reply is None
    assert (outcome.tokens_in, outcome.tokens_out, outcome.cost) == (9, 50, pytest.approx(109 / 1e6))


def test_a_budget_without_a_price_is_an_error_before_the_first_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as server:
        with pytest.raises(
            ConfigError, match=r"got budget_usd 1 and no price, because configs/prices\.yaml has no model 'm'"
        ):
            open_client(http(server, budget_usd=1), 0)
        open_client(http(server, budget_usd=1, model="gpt-4o-mini"), 0)
        open_client(http(server, budget_tokens=1), 0)
        monkeypatch.delenv(VARIABLE)
        with pytest.raises(ConfigError, match=rf"(?s)2 problems.*no price.*no environment variable {VARIABLE}"):
            open_client(http(server, budget_usd=1), 0)
        assert not server.bodies


def test_money_and_limits_are_not_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFLINE_SECRET_B", "x")
    with serve() as server:
        key, view = requests(open_client(http(server), 0), ["a"])[0].key, key_view(http(server))
        for same in ({"budget_usd": 1, "price": {"input": 1, "output": 1}}, {"budget_tokens": 5}, {"requests_per_minute": 3}, {"probes": 9},
                     {"tokens_per_minute": 3000}, {"api_key_env": None, "api_key_block": "b"}):  # fmt: skip
            config = http(server, **same)
            assert requests(open_client(config, 0), ["a"])[0].key == key and key_view(config) == view, same


# Secrets


def test_a_block_is_read_from_the_variable_that_flows_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda n, b: Act(status=400, raw=b"key hunter-2-hunter is bad")) as server:
        config = http(server, api_key_env=None, api_key_block="big-key")
        with pytest.raises(
            TeacherError,
            match=r"no environment variable PREFLINE_SECRET_BIG_KEY, because api_key_block names the Prefect Secret block big-key, which a "
            r"step by itself cannot read; start the step through prefline",
        ):
            open_client(config, 0)
        monkeypatch.setenv("PREFLINE_SECRET_BIG_KEY", "hunter-2-hunter")
        _, failures, _ = collect(config, ["a"], tmp_path / "r")
    assert server.headers[0]["Authorization"] == "Bearer hunter-2-hunter"
    assert failures["a"] == "http_400: key *** is bad"


# All at once


@pytest.mark.fault
def test_a_storm_loses_nothing_and_asks_for_no_answer_twice(tmp_path: Path) -> None:
    """Three of ten answers are 429, 500, a reset, half a body or a stall, at random; 400 rows, in two runs."""
    prompts, rng, answered = [f"question {n}" for n in range(400)], random.Random(7), Counter[str]()
    storm = [Act(status=429, headers={"Retry-After": "0.05"}), Act(status=429), Act(status=500), Act(close=True),
             Act(raw=b'{"choices": [{"mess', promise=500), Act(raw=b'{"choi'), Act(delay=3)]  # fmt: skip

    def decide(number: int, body: dict[str, Any]) -> Act:
        if rng.random() < 0.3:
            return rng.choice(storm)
        prompt = body["messages"][-1]["content"]
        answered[prompt] += 1
        return Act(text=f"re: {prompt}", delay=rng.random() * 0.01)

    with serve(decide) as server:
        config = http(server, concurrency=16, timeout_seconds=0.5, attempts=4, give_up_after=50)
        collect(config, prompts, tmp_path / "r")
        replies, failures, _ = collect(config.model_copy(update={"attempts": 15}), prompts, tmp_path / "r")
        assert not failures and {p: r and r.text for p, r in replies.items()} == {p: f"re: {p}" for p in prompts}
        assert answered == dict.fromkeys(prompts, 1), "an answer that came was never asked for again"
        with RequestLedger(tmp_path / "r") as ledger:
            attempts = ledger.execute("SELECT sum(attempts) FROM requests")[0][0]
        assert attempts == len(server.bodies) > 400
