"""A small real OpenAI-compatible server on loopback. It does per request what a test tells it to."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Act:
    """What the server does with one request."""

    text: str | None = "ok"
    finish: str = "stop"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    """The whole body, in place of a well-made one."""
    delay: float = 0.0
    """Seconds before the answer."""
    close: bool = False
    """Close the connection without a word."""
    promise: int | None = None
    """Content-Length that is promised; the connection closes after ``raw``."""
    model: str = "server-model"


Decide = Callable[[int, dict[str, Any]], Act]


class Server:
    """``decide(number, body)`` acts on request ``number`` (from 0, by arrival)."""

    def __init__(self, decide: Decide) -> None:
        self.decide = decide
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._thread = threading.Thread(target=self._serve)
        self._ready = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def asked(self) -> list[str]:
        """Last user turn of each request, by arrival."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = len(self.bodies)
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        act = self.decide(number, body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(act.delay)
        finally:
            self.in_flight -= 1
        assert request.transport is not None
        if act.close:
            request.transport.abort()
            return web.Response()
        if act.promise is not None:
            request.transport.write(  # type: ignore[attr-defined]
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % act.promise
                + (act.raw or b"")
            )
            request.transport.close()
            return web.Response()
        answer = {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": 0,
            "model": act.model,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": act.text}, "finish_reason": act.finish}
            ],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }
        content = act.raw if act.raw is not None else json.dumps(answer).encode()
        return web.Response(body=content, status=act.status, headers=act.headers, content_type="application/json")

    def _serve(self) -> None:
        async def start() -> None:
            app = web.Application()
            app.router.add_post("/v1/chat/completions", self._chat)
            self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
            await self._runner.setup()
            site = web.TCPSite(self._runner, "127.0.0.1", 0)
            await site.start()
            self.port = self._runner.addresses[0][1]

        self._loop.run_until_complete(start())
        self._ready.set()
        self._loop.run_forever()
        assert self._runner is not None
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.close()

    def __enter__(self) -> Server:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@contextmanager
def serve(decide: Decide | list[Act] | None = None) -> Iterator[Server]:
    """A running server. A list is used up request by request; after it, and without one, every answer is "ok"."""
    if callable(decide):
        chosen = decide
    else:
        script = decide or []

        def chosen(number: int, body: dict[str, Any]) -> Act:
            return script[number] if number < len(script) else Act()

    with Server(chosen) as server:
        yield server
