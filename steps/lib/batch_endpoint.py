"""The batch half of an OpenAI-compatible endpoint: files, batches, their lines; each call again where it fails in passing."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from steps.lib.calls import Calls
from steps.lib.errors import TeacherError
from steps.lib.limits import backoff, pause
from steps.lib.teacher_config import HttpTeacher
from steps.lib.wire import Again, NotThere, Refused

ROUTE = "/v1/chat/completions"
MARK = "prefline"
"""Name of our mark in a batch's metadata."""
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
T = TypeVar("T")


class Stopped(Exception):
    """The run stops; the batches go on at the endpoint."""


class BatchEndpoint:
    """One endpoint, in one run.

    Every method raises TeacherError when the endpoint refuses or does not answer, and Stopped when the run stops.

    Args:
        calls: opened by the caller.
        config: the teacher.
        stop: nothing new is called when it is set.
    """

    def __init__(self, calls: Calls, config: HttpTeacher, stop: asyncio.Event) -> None:
        self._calls, self._config, self._stop = calls, config, stop

    async def upload(self, name: str, content: bytes) -> str:
        """Id of a new file of requests."""
        import aiohttp

        async def call() -> str:
            form = aiohttp.FormData()
            form.add_field("purpose", "batch")
            form.add_field("file", io.BytesIO(content), filename=name, content_type="application/jsonl")
            return _said(await self._calls.json("POST", "/files", data=form, file=True), "id")

        return await self._patiently(call)

    async def create(self, file: str, mark: str) -> str:
        """Id of a new batch of a file. An answer that gets lost makes no second one: the first has the mark."""
        asked = {"input_file_id": file, "endpoint": ROUTE, "completion_window": "24h", "metadata": {MARK: mark}}
        tried = False

        async def call() -> str:
            nonlocal tried
            if tried and (found := await self._find(mark)):
                return found
            tried = True
            return _said(await self._calls.json("POST", "/batches", data=json.dumps(asked).encode()), "id")

        return await self._patiently(call)

    async def find(self, mark: str) -> str:
        """Id of the batch with this mark in its metadata; "" when there is none."""
        return await self._patiently(lambda: self._find(mark))

    async def ended(self, id_: str, poll_seconds: float) -> dict[str, Any] | None:
        """The batch, when it has ended; None when the endpoint has forgotten it."""

        async def call() -> dict[str, Any] | None:
            try:
                batch = await self._calls.json("GET", f"/batches/{id_}")
            except NotThere:
                return None
            _said(batch, "status")
            return batch

        while (batch := await self._patiently(call)) is not None and batch["status"] not in ENDED:
            await pause(poll_seconds, self._stop)
        return batch

    async def lines(self, file: str, read: Callable[[bytes], None]) -> None:
        """Give each line of a file to ``read``; from the first one again when the download breaks."""

        async def call() -> None:
            async with contextlib.aclosing(self._calls.lines(f"/files/{file}/content")) as lines:
                async for line in lines:
                    read(line)

        await self._patiently(call)

    async def _find(self, mark: str) -> str:
        after = ""
        while True:
            page = await self._calls.json("GET", f"/batches?limit=100{after}")
            batches = page.get("data") or []
            for batch in batches:
                if (batch.get("metadata") or {}).get(MARK) == mark:
                    return _said(batch, "id")
            if not (batches and page.get("has_more")):
                return ""
            after = f"&after={_said(batches[-1], 'id')}"

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        problem, attempts = "", self._config.attempts
        for attempt in range(1, attempts + 1):
            if self._stop.is_set():
                raise Stopped
            try:
                return await call()
            except Refused as error:
                problem = str(error)
                break
            except Again as error:
                problem = str(error)
                if attempt < attempts:
                    wait = backoff(self._config.backoff_seconds, attempt)
                    await pause(max(wait, error.after or 0.0), self._stop)
        raise TeacherError(
            f"teacher {self._config.name} cannot be asked by batch files: got {problem}, endpoint {self._config.endpoint} "
            f"({self._config.base_url}); repair it, or set mode: chat where it has no batches, and run again: what was submitted "
            "goes on there and is not submitted twice"
        )


def _said(found: Mapping[str, Any], name: str) -> str:
    """A text that the endpoint has to say."""
    if not isinstance(value := found.get(name), str) or not value:
        raise Again(f"bad_json: no {name}")
    return value
