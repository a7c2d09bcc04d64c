"""The loop that asks: order, one request a key, a bounded window, windows of batches, teachers that die, errors that are not theirs."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from openai_server import Act, Server, serve

from steps.lib import exchange as engine
from steps.lib.asking import Client, OnOutcome, Request, Requests, Tally
from steps.lib.desk import NOT_ASKED, Job
from steps.lib.errors import Resumable, TeacherError
from steps.lib.exchange import Exchange
from steps.lib.ledger import Reply, RequestLedger
from steps.lib.stopping import Stop
from steps.lib.teacher import ScriptedClient, open_client
from steps.lib.teacher_config import HttpTeacher, ScriptedTeacherConfig

LOG = logging.getLogger("test")
DESK = ScriptedTeacherConfig(kind="scripted", name="scripted-desk", path=Path("data/seed/task/teacher.yaml"))


def http(server: Server, name: str = "t", **values: Any) -> Client:
    base = {"kind": "http", "name": name, "endpoint": "test", "base_url": server.url, "model": name, "backoff_seconds": 0.01,
            "timeout_seconds": 5, "concurrency": 4, "grace_seconds": 1, "attempts": 1}  # fmt: skip
    return open_client(HttpTeacher.model_validate({**base, **values}), 0)


def turns(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def request(client: Client, text: str) -> Request:
    return Requests(client, 0).make(turns(text), prompt=text, source=text)


def jobs(client: Client, texts: Sequence[str], name: str = "t") -> Iterator[Job[str]]:
    return (Job(text, name, request(client, text)) for text in texts)


def echo(number: int, body: dict[str, Any]) -> Act:
    return Act(text="re: " + body["messages"][-1]["content"], delay=0.02 * (number % 4))


def done(job: Job[Any]) -> None:
    return None


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ROOM", 20)
    monkeypatch.setattr(engine, "CHUNK", 5)


def test_a_requests_key_is_that_of_its_content() -> None:
    with serve() as server:
        for client in (http(server), http(server, structured_output=True), open_client(DESK, 3)):
            schema = {"type": "object", "x": "messages"}
            for text in ('say "messages"', "中 \0seed", "\ud83d"):
                made = Requests(client, 5, schema).make(turns(text), prompt=text, sample=2, source="s")
                said = client.identity() | {"messages": turns(text), "seed": made.seed, "sample": 2}
                sent = client.sends_schema()
                assert (made.schema is not None) == sent
                other = Requests(client, 5, {"type": "array"}).make(turns(text), prompt=text, sample=2)
                assert (other.key != made.key) == sent
                if not sent:
                    assert made.key == RequestLedger.key(**said, schema="")


def test_jobs_come_back_in_order_and_the_source_is_read_no_further_than_there_is_room(
    tmp_path: Path, small: None
) -> None:
    texts, pulled, ahead = [str(n) for n in range(120)], Counter[str](), []

    def watched(client: Client) -> Iterator[Job[str]]:
        for job in jobs(client, texts):
            pulled[job.payload] += 1
            yield job

    with (
        serve(lambda number, body: Act(delay=0.5 if number == 0 else 0.0)) as server,
        RequestLedger(tmp_path / "r") as ledger,
    ):
        client = http(server)
        with Exchange({"t": client}, ledger, Stop(), LOG, {}) as exchange:
            got = []
            for job in exchange.stream(watched(client), done):
                ahead.append(len(pulled) - len(got))
                got.append(job.payload)
    assert got == texts and max(ahead) <= 20 + 4 * 4 and server.most_in_flight == 4


def test_what_is_on_record_or_on_its_way_is_not_sent_again(tmp_path: Path, small: None) -> None:
    texts = ["a", "b", "a", "a", "c", "b"] * 10
    with serve(echo) as server, RequestLedger(tmp_path / "r") as ledger:
        client, tallies = http(server), dict[str, Tally]()
        ledger.put(request(client, "c").key, Reply("re: c"))
        with Exchange({"t": client}, ledger, Stop(), LOG, tallies) as exchange:
            found = [(job.payload, job.reply.text) for job in exchange.stream(jobs(client, texts), done) if job.reply]
        assert found == [(text, f"re: {text}") for text in texts]
        assert sorted(server.asked()) == ["a", "b"]
        tally = tallies["t"]
        assert (tally.requests, tally.from_ledger, tally.answered) == (60, 58, 2)


def test_a_stream_may_read_another(tmp_path: Path, small: None) -> None:
    texts = [str(n) for n in range(60)]
    with serve(echo) as server, RequestLedger(tmp_path / "r") as ledger:
        client = http(server)
        with Exchange({"t": client}, ledger, Stop(), LOG, {}) as exchange:
            first = exchange.stream(jobs(client, texts), done)
            second = (Job(job.payload, "t", request(client, job.reply.text)) for job in first if job.reply)
            found = [job.reply.text for job in exchange.stream(second, done) if job.reply]
    assert found == [f"re: re: {text}" for text in texts] and server.most_in_flight == 4


def test_a_dead_teacher_does_not_hold_up_the_others(tmp_path: Path, small: None) -> None:
    texts = [str(n) for n in range(100)]
    with serve(lambda n, b: Act(status=401)) as dead, serve(echo) as alive, RequestLedger(tmp_path / "r") as ledger:
        clients = {"dead": http(dead, "dead"), "alive": http(alive, "alive")}
        both = (job for text in texts for name, client in clients.items() for job in jobs(client, [text], name))
        got: list[Job[str]] = []
        with (
            Exchange(clients, ledger, Stop(), LOG, {}) as exchange,
            pytest.raises(TeacherError, match="dead cannot answer"),
        ):
            got += exchange.stream(both, done)
        assert len(ledger) == 100 and len(dead.bodies) <= 4 and ledger.failures() == {}
    with serve(lambda n, b: Act(status=401)) as dead, RequestLedger(tmp_path / "s") as ledger:
        client, pulled = http(dead), []
        with Exchange({"t": client}, ledger, Stop(), LOG, {}) as exchange, pytest.raises(TeacherError):
            for job in exchange.stream((pulled.append(0) or job for job in jobs(client, texts)), done):
                assert job.reason == NOT_ASKED and job.reply is None
    assert len(pulled) < 100, "with nobody left to ask, the source is not read on"


def test_an_error_that_is_no_teachers_ends_all_and_keeps_what_came(tmp_path: Path, small: None) -> None:
    def broken(job: Job[str]) -> None:
        if job.payload == "7":
            raise OSError(28, "No space left on device")

    with serve(echo) as server, RequestLedger(tmp_path / "r") as ledger:
        client = http(server)
        with (
            pytest.raises(OSError, match="No space left"),
            Exchange({"t": client}, ledger, Stop(), LOG, {}) as exchange,
        ):
            list(exchange.stream(jobs(client, [str(n) for n in range(100)]), broken))
        assert 7 <= len(ledger) < 100


def test_a_reader_that_gives_up_loses_nothing_that_is_in_flight(tmp_path: Path, small: None) -> None:
    with (
        serve(lambda number, body: Act(delay=0.3 if number else 0.0)) as server,
        RequestLedger(tmp_path / "r") as ledger,
    ):
        client = http(server)
        with pytest.raises(ValueError, match="enough"), Exchange({"t": client}, ledger, Stop(), LOG, {}) as exchange:
            for _ in exchange.stream(jobs(client, [str(n) for n in range(100)]), done):
                raise ValueError("enough")
        assert len(ledger) == len(server.bodies) < 20


class Noting(ScriptedClient):
    """The scripted client, with a note of what it was handed."""

    window = 8

    def __init__(self, cut: int | None = None) -> None:
        super().__init__(DESK, 0)
        self.windows: list[tuple[list[str], int]] = []
        self.cut = cut

    async def answer(
        self, requests: Sequence[Request], missing: frozenset[str], report: OnOutcome, stop: asyncio.Event
    ) -> None:
        self.windows.append(([request.prompt for request in requests], len(missing)))

        def until(request: Request, outcome: Any) -> None:
            if self.cut is not None:
                self.cut -= 1
                if self.cut < 0:
                    raise RuntimeError("killed")
            report(request, outcome)

        await super().answer(requests, missing, until, stop)


def follow_up(client: Client) -> Callable[[Job[str]], Request | None]:
    """Every third row is asked once more."""

    def settle(job: Job[str]) -> Request | None:
        if int(job.payload.partition(" ")[0]) % 3 or job.request is None or len(job.request.messages) > 1:
            return None
        more = [*job.request.messages, *turns("again")]
        return Requests(client, 0).make(more, prompt=f"{job.payload} again")

    return settle


@pytest.mark.parametrize("cut", [0, 3, 8, 9, 12, 20])
def test_windows_and_their_repairs_do_not_depend_on_where_a_run_was_killed(
    tmp_path: Path, small: None, cut: int
) -> None:
    texts = [f"{n} I want a refund for order A1234{n % 10}" for n in range(30)]

    def go(client: Noting, path: Path) -> list[tuple[str, str]]:
        with RequestLedger(path) as ledger, Exchange({"t": client}, ledger, Stop(), LOG, {}) as exchange:
            stream = exchange.stream(jobs(client, texts), follow_up(client))
            return [(job.payload, job.reply.text) for job in stream if job.reply]

    whole = Noting()
    expected = go(whole, tmp_path / "whole")
    assert [len(window) for window, _ in whole.windows] == [8, 3, 8, 3, 8, 2, 6, 2] and len(expected) == 30
    killed = Noting(cut)
    with pytest.raises(RuntimeError, match="killed"):
        go(killed, tmp_path / "cut")
    again = Noting()
    assert go(again, tmp_path / "cut") == expected
    asked = [window for window, _ in again.windows]
    assert asked == [window for window, _ in whole.windows][-len(asked) :], "windows with nothing missing are left out"
    assert sum(missing for _, missing in again.windows) == 30 + 10 - cut


def test_a_stop_is_seen_where_nothing_is_to_be_asked(tmp_path: Path, small: None) -> None:
    stop, client, seen = Stop(), Noting(), 0
    with RequestLedger(tmp_path / "r") as ledger:
        for n in range(200):
            ledger.put(request(client, str(n)).key, Reply("x"))
        with pytest.raises(Resumable), Exchange({"t": client}, ledger, stop, LOG, {}) as exchange:
            for _ in exchange.stream(jobs(client, [str(n) for n in range(200)]), done):
                seen += 1
                if seen == 30:
                    stop.signal = "SIGTERM"
    assert 30 <= seen < 200
