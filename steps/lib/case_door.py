"""A small door over HTTP for bad cases: ``POST /badcases`` takes one event, a list, or JSONL, and answers when they are stored.

Whoever sends has a token; a body is refused by its size before it is read whole, and senders by their rate. What is wrong with a
record is told in the answer and kept; a request that cannot be read at all is a 4xx, and no half of it is stored.

Source: RFC 9110 (statuses), RFC 6585 (429 with Retry-After), RFC 6750 (bearer tokens).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from steps.lib.case_store import CaseStore
from steps.lib.errors import ConfigError, PreflineError

TOKEN_CHARS = 16
"""Characters that a token has at least."""


class Rate:
    """Events a minute, by sender: a bucket that fills again evenly.

    Args:
        per_minute: events.
        clock: seconds; for tests.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = per_minute, clock
        self._left: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def wait(self, sender: str, count: int) -> float:
        """Take ``count`` events; the seconds to wait where there is no room for them, else 0."""
        with self._lock:
            now = self._clock()
            left, before = self._left.get(sender, (float(self._most), now))
            left = min(self._most, left + (now - before) * self._most / 60)
            if count > left:
                self._left[sender] = (left, now)
                return (min(count, self._most) - left) * 60 / self._most
            self._left[sender] = (left - count, now)
            if len(self._left) > 10_000:  # a sender whose bucket is full again need not be remembered
                full = [
                    name for name, (had, at) in self._left.items() if had + (now - at) * self._most / 60 >= self._most
                ]
                for name in full:
                    del self._left[name]
            return 0.0


def app(store_url: str, *, token: str, max_bytes: int = 1_000_000, per_minute: int = 600) -> FastAPI:
    """The application; ``uvicorn`` serves it.

    Args:
        store_url: as ``CaseStore.open`` takes it.
        token: what a sender has to show.
        max_bytes: of a body.
        per_minute: events of one address.

    Raises:
        ConfigError: the token is too short, or the store cannot be opened.
    """
    from fastapi import FastAPI

    if len(token) < TOKEN_CHARS:
        raise ConfigError(
            f"token of the door is too short: got {len(token)} characters, because it could be found by trying; give at least "
            f"{TOKEN_CHARS} (openssl rand -hex 32)"
        )
    wanted = hashlib.sha256(token.encode()).digest()
    store = CaseStore.open(store_url)
    rate = Rate(per_minute)
    door = FastAPI(title="prefline bad cases", docs_url=None, redoc_url=None, openapi_url=None)

    def no(status: int, problem: str, **headers: str) -> Response:
        return JSONResponse({"problem": problem}, status_code=status, headers=headers)

    @door.get("/healthz")
    def healthz() -> dict[str, Any]:
        return {"ok": True, "events": store.head()}

    @door.post("/badcases")
    async def badcases(request: Request) -> Response:
        if not _shows(request, wanted):
            return no(401, "no valid bearer token", **{"WWW-Authenticate": "Bearer"})
        body = await _body(request, max_bytes)
        if body is None:
            return no(413, f"the body has more than {max_bytes} bytes; send fewer events at a time")
        try:
            records = records_of(body)
        except ValueError as error:
            return no(400, f"the body is no JSON, no list and no JSONL: {error}")
        sender = request.client.host if request.client else ""
        if seconds := rate.wait(sender, max(1, len(records))):
            return no(429, f"more than {per_minute} events a minute", **{"Retry-After": str(int(seconds) + 1)})
        try:
            done = await run_in_threadpool(store.ingest, records, source="http")
        except PreflineError as error:
            return no(422, str(error))
        told = [{"place": row.id, "reason": row.reason, "detail": row.detail} for row in done.quarantined]
        status = 200 if done.new or done.same or not told else 422
        return JSONResponse({"new": done.new, "same": done.same, "quarantined": told}, status_code=status)

    return door


def records_of(body: bytes) -> list[Any]:
    """The records of a body: a JSON value, a JSON list, or JSON a line.

    Raises:
        ValueError: it is none of these; empty bodies are none.
    """
    text = body.decode("utf-8")
    if not text.strip():
        raise ValueError("the body is empty")
    try:
        value = _json(text)
    except ValueError:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) < 2:
            raise
        return [_json(line) for line in lines]
    return value if isinstance(value, list) else [value]


def _json(text: str) -> Any:
    def twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands twice")
        return found

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(text, object_pairs_hook=twice, parse_constant=constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _shows(request: Request, wanted: bytes) -> bool:
    kind, _, shown = request.headers.get("authorization", "").partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(hashlib.sha256(shown.strip().encode()).digest(), wanted)


async def _body(request: Request, most: int) -> bytes | None:
    """The body, or None when it is too large: told by its header, or found while it comes."""
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > most:
        return None
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > most:
            return None
    return bytes(found)
