"""The door for bad cases: a real server on loopback, and bodies that nobody should send."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steps.lib.case_door import Rate, app, records_of
from steps.lib.case_store import CaseStore
from steps.lib.errors import ConfigError

pytestmark = pytest.mark.server
TOKEN = "a token of more than sixteen"


def event(name: str, **more: Any) -> dict[str, Any]:
    facts = {"schema_version": "badcase.v1", "case_id": name, "event_id": name, "ts": "2026-11-01T08:00:00+00:00"}
    return {**facts, "request": {"messages": [{"role": "user", "content": "Where is it?"}]}, **more}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of a server in a process of its own, and its store."""
    store = tmp_path_factory.mktemp("door") / "cases.sqlite"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import sys, uvicorn; from steps.lib.case_door import app;"
        f"uvicorn.run(app(sys.argv[1], token=sys.argv[2], max_bytes=20000, per_minute=2000), port={port}, log_level='error')"
    )
    environment = {**os.environ, "PREFLINE_USER_KEY": "a key of thirty-two characters!!"}
    process = subprocess.Popen([sys.executable, "-c", code, str(store), TOKEN], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/healthz", timeout=1)
                break
            time.sleep(0.05)
        yield url, store
        assert process.poll() is None, "it is still there"
    finally:
        process.terminate()
        process.wait(10)


def post(url: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        f"{url}/badcases", data=body, headers={"Authorization": f"Bearer {TOKEN}", **headers}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_an_event_a_list_and_lines_are_taken_once(door: tuple[str, Path]) -> None:
    url, path = door
    assert post(url, json.dumps(event("one")).encode()) == (200, {"new": 1, "same": 0, "quarantined": []})
    assert post(url, json.dumps([event("one"), event("two", user_id="ann")]).encode())[1] == {
        "new": 1,
        "same": 1,
        "quarantined": [],
    }
    lines = "\n".join(json.dumps(event(name)) for name in ("three", "four")).encode()
    assert post(url, lines)[1]["new"] == 2
    with CaseStore.open(str(path)) as store:
        assert [one["event_id"] for one in store.events()][:4] == ["one", "two", "three", "four"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"{}", {"Authorization": "Bearer wrong"}, 401, "token"),
        (b"{}", {"Authorization": "Basic x"}, 401, "token"),
        (b"x" * 30_000, {}, 413, "more than 20000 bytes"),
        (b"{", {}, 400, "no JSON"),
        (b"", {}, 400, "empty"),
        (b"\xff\xfe", {}, 400, "no JSON"),
        (b'{"a": 1, "a": 2}', {}, 400, "twice"),
        (b'{"a": NaN}', {}, 400, "NaN"),
        (b"[" * 15_000, {}, 400, "no JSON"),
    ],
)
def test_a_body_that_cannot_be_taken_is_told(
    door: tuple[str, Path], body: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    got, answer = post(door[0], body, **headers)
    assert got == status and said in answer["problem"]


def test_what_is_wrong_with_a_record_is_told_with_its_place(door: tuple[str, Path]) -> None:
    status, answer = post(door[0], json.dumps([event("good"), {"case_id": "bad"}]).encode())
    assert status == 200 and answer["new"] == 1
    assert [(one["place"], one["reason"]) for one in answer["quarantined"]] == [("http#1", "schema")]
    assert post(door[0], b'"text"')[0] == 422


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["case_id", "event_id", "ts", "request", "messages", "role", "content", "signal", "expected", "x"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_body_is_a_server_error_or_half_a_row(door: tuple[str, Path], body: bytes) -> None:
    status, answer = post(door[0], body)
    assert status in (200, 400, 422) and ("problem" in answer or answer.keys() == {"new", "same", "quarantined"})
    with CaseStore.open(str(door[1])) as store:
        assert all({"case_id", "event_id", "ts"} <= one.keys() for one in store.events())


def test_a_sender_who_sends_too_much_waits() -> None:
    now = [0.0]
    rate = Rate(60, clock=lambda: now[0])
    assert rate.wait("a", 60) == 0 and rate.wait("a", 1) == pytest.approx(1.0) and rate.wait("b", 1) == 0
    now[0] = 30.0
    assert rate.wait("a", 30) == 0 and rate.wait("a", 1) == pytest.approx(1.0)


def test_a_short_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="token of the door is too short: got 3 characters"):
        app(str(tmp_path / "x.sqlite"), token="abc")


def test_a_body_is_one_value_a_list_or_lines() -> None:
    assert records_of(b'{"a": 1}') == [{"a": 1}] and records_of(b"[1, 2]") == [1, 2]
    assert records_of(b'{"a": 1}\n\n{"a": 2}\n') == [{"a": 1}, {"a": 2}]
