"""A small real OpenAI-compatible server on loopback. It does per request what a test tells it to.

Batch files, too: every line is answered by the same ``decide``, and ``Batches`` says how a batch as a whole ends.
"""

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
    model: str = ""
    """The model that says it answered; "": the one that was asked for."""
    usage: dict[str, Any] | None = field(default_factory=lambda: {"prompt_tokens": 7, "completion_tokens": 3})
    """None: the server says nothing of it."""
    thought: str = ""
    """Given back as ``reasoning_content``."""

    def answer(self, number: int, body: dict[str, Any]) -> dict[str, Any]:
        """A well-made answer."""
        message = {"role": "assistant", "content": self.text}
        return {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": 0,
            "model": self.model or body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {**message, "reasoning_content": self.thought} if self.thought else message,
                    "finish_reason": self.finish,
                }
            ],
            **({"usage": self.usage} if self.usage is not None else {}),
        }


Decide = Callable[[int, dict[str, Any]], Act]


@dataclass
class Batches:
    """How batches go, and what was submitted."""

    polls: int = 1
    """Looks at a batch that find it still in progress."""
    status: str = "completed"
    """How a batch ends."""
    answered: int | None = None
    """Lines that are answered before it ends; None: all."""
    held: bool = False
    """No batch ends while this is set."""
    lose: int = 0
    """Answers to "create" that are lost on the way: the batch is there, the connection is closed."""
    cut: int = 0
    """Downloads that break off in the middle."""
    files: dict[str, bytes] = field(default_factory=dict)
    made: list[dict[str, Any]] = field(default_factory=list)
    """Every batch that was submitted."""
    page: int = 100
    """Batches of one page of the list."""
    looks: int = 0
    """How often somebody looked at a batch."""


class Server:
    """``decide(number, body)`` acts on request ``number`` (from 0, by arrival)."""

    def __init__(self, decide: Decide) -> None:
        self.decide = decide
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.batches = Batches()
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
        content = act.raw if act.raw is not None else json.dumps(act.answer(number, body)).encode()
        return web.Response(body=content, status=act.status, headers=act.headers, content_type="application/json")

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch"
        name = f"file-{len(self.batches.files)}"
        self.batches.files[name] = form["file"].file.read()  # type: ignore[union-attr]
        return web.json_response({"id": name, "object": "file", "bytes": 1, "created_at": 0, "filename": "f", "purpose": "batch",
                                  "status": "processed"})  # fmt: skip

    async def _create(self, request: web.Request) -> web.Response:
        asked, plan = await request.json(), self.batches
        batch = {"id": f"batch_{len(plan.made)}", "object": "batch", "endpoint": asked["endpoint"], "created_at": 0,
                 "input_file_id": asked["input_file_id"], "completion_window": asked["completion_window"],
                 "metadata": asked.get("metadata"), "status": "validating"}  # fmt: skip
        plan.made.append(batch)
        if plan.lose:
            plan.lose -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(batch)

    async def _list(self, request: web.Request) -> web.Response:
        every, after = self.batches.made[::-1], request.query.get("after")
        start = next(place for place, one in enumerate(every, 1) if one["id"] == after) if after else 0
        end = start + self.batches.page
        return web.json_response({"object": "list", "data": every[start:end], "has_more": end < len(every)})

    async def _look(self, request: web.Request) -> web.Response:
        plan = self.batches
        plan.looks += 1
        batch = next((one for one in plan.made if one["id"] == request.match_info["id"]), None)
        if batch is None:
            return web.json_response({"error": {"message": "no such batch"}}, status=404)
        batch["looks"] = batch.get("looks", 0) + 1
        if batch["looks"] > plan.polls and not plan.held and batch["status"] in ("validating", "in_progress"):
            self._end(batch)
        return web.json_response(batch)

    def _end(self, batch: dict[str, Any]) -> None:
        """Answer the lines: good ones into the output file, the others into the error file."""
        plan, good, bad = self.batches, [], []
        batch["status"] = plan.status
        if plan.status == "failed":
            batch["errors"] = {
                "object": "list",
                "data": [{"code": "invalid_json_line", "message": "line 1 is bad", "line": 1}],
            }
            return
        for place, text in enumerate(plan.files[batch["input_file_id"]].splitlines()):
            line = json.loads(text)
            named = {"id": f"line-{place}", "custom_id": line["custom_id"]}
            if plan.answered is not None and place >= plan.answered:
                bad.append(
                    {**named, "response": None, "error": {"code": f"batch_{plan.status}", "message": "out of time"}}
                )
                continue
            number = len(self.bodies)
            self.bodies.append(line["body"])
            act = self.decide(number, line["body"])
            body = json.loads(act.raw) if act.raw is not None else act.answer(number, line["body"])
            found = {**named, "response": {"status_code": act.status, "request_id": "r", "body": body}, "error": None}
            (good if act.status == 200 else bad).append(found)
        for kind, lines in (("output", good[::-1]), ("error", bad)):  # in no order
            if lines:
                batch[f"{kind}_file_id"] = f"{batch['id']}-{kind}"
                plan.files[f"{batch['id']}-{kind}"] = "".join(json.dumps(one) + "\n" for one in lines).encode()

    async def _content(self, request: web.Request) -> web.StreamResponse:
        content = self.batches.files[request.match_info["id"]]
        if not self.batches.cut:
            return web.Response(body=content)
        self.batches.cut -= 1
        assert request.transport is not None
        request.transport.write(  # type: ignore[attr-defined]
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content[: len(content) // 2]
        )
        request.transport.close()
        return web.Response()

    def _serve(self) -> None:
        async def start() -> None:
            app = web.Application(client_max_size=1 << 28)
            app.router.add_post("/v1/chat/completions", self._chat)
            app.router.add_post("/v1/files", self._upload)
            app.router.add_get("/v1/files/{id}/content", self._content)
            app.router.add_post("/v1/batches", self._create)
            app.router.add_get("/v1/batches", self._list)
            app.router.add_get("/v1/batches/{id}", self._look)
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
