"""A teacher that is asked by files of requests (OpenAI's Batch API): cheaper, answered within a day.

A file is uploaded, a batch is made of it, and the batch is looked at until it has ended. What was submitted is written down before
and after submitting (``batch_notes.py``), so a run that was killed at any moment goes on waiting for the same batch.

| how a batch or a line ended        | what we do                                                             |
|------------------------------------|------------------------------------------------------------------------|
| output and error file              | each line is one outcome; a line with an error is a failure            |
| ``failed``                         | every request failed, with the endpoint's reason                       |
| ``expired``, ``cancelled``         | what was answered is kept; the others failed, and are asked again by the next run |
| no line at all, or no such batch   | failed as ``no_line``, ``batch_lost``; a budget counts them as billed   |

Source: OpenAI API reference, "Batch" (up to 50,000 requests and 200 MB a file; half the price; within 24 hours).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from steps.lib.asking import OnOutcome, Outcome, Request
from steps.lib.batch_notes import Note, Notes
from steps.lib.calls import Calls
from steps.lib.errors import ConfigError, TeacherError
from steps.lib.ledger import Spent
from steps.lib.limits import backoff, pause
from steps.lib.prices import Budget, Usage
from steps.lib.teacher_config import HttpTeacher
from steps.lib.wire import Again, NotThere, Refused, Wire, lost

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
MARK = "prefline"
"""Name of our mark in a batch's metadata."""
ROUTE = "/v1/chat/completions"
T = TypeVar("T")


class BatchClient:
    """Asks a window of requests at a time by batch files.

    Args:
        config: the endpoint.
        spent: what this teacher used in earlier runs.
        folder: where submitted batches are remembered.
        log: for what a person waits for.

    Raises:
        TeacherError: the key is not there; batches wait at another address.
        ConfigError: no folder, or a budget in US dollars without a known price.
    """

    alone = False

    def __init__(
        self, config: HttpTeacher, spent: Spent | None, folder: Path | None, log: logging.Logger | None = None
    ) -> None:
        if folder is None:
            raise ConfigError(
                f"teacher {config.name} cannot be asked by batch files here: got mode: batch, because nothing remembers what "
                "was submitted; set mode: chat"
            )
        self.name = config.name
        self.window = config.batch.max_requests
        self._config = config
        self._log = log or logging.getLogger("prefline")
        self._wire = Wire(config, self._log)
        self.counts = self._wire.counts
        self.budget = Budget(config.name, config.budget_usd, config.budget_tokens, spent or Spent())
        path = folder / f"batches-{hashlib.sha256(config.name.encode()).hexdigest()[:12]}.json"
        self._notes = Notes(path)
        self._open: dict[str, int] = {}
        """Request that was submitted and not read -> its number in the budget, whichever run submitted it."""
        for note in self._notes.read():
            if note.url != config.base_url:
                raise TeacherError(
                    f"teacher {config.name} waits for a batch elsewhere: got base_url {config.base_url}, because {len(note.keys)} "
                    f"requests were submitted to {note.url}; set it back, or delete {path} to submit (and pay for) them again"
                )
            self._open |= {key: self.budget.take(self._wire.usage(*most)) for key, most in note.keys.items()}

    def identity(self) -> dict[str, Any]:
        """The same as that of single requests: how a question travels changes no answer."""
        return self._wire.identity()

    def sends_schema(self) -> bool:
        """Whether answers are held to the schema by the endpoint."""
        return self._config.structured_output is not False

    async def answer(
        self, requests: Sequence[Request], missing: frozenset[str], report: OnOutcome, stop: asyncio.Event
    ) -> None:
        """Submit what is missing and not submitted yet, wait for all of it, report each line. See ``asking.Batching``."""
        wanted = {request.key: request for request in requests if request.key in missing}
        for request in requests:
            if request.key not in missing:  # read by a run that was killed before it could say so
                self._close(request.key, Usage())

        def tell(key: str, outcome: Outcome, used: Usage) -> None:
            self._close(key, used)
            report(wanted.pop(key), outcome)

        config = self._config
        async with Calls(self._wire, config.base_url, config.timeout_seconds) as self._calls:
            with contextlib.suppress(_Stopped):
                notes = await self._known(wanted, stop)
                while wanted:
                    for keys, content in self._files(wanted):
                        notes.append(await self._submit(keys, content, stop))
                    if not notes:
                        raise self.budget.error(self._most(next(iter(wanted.values()))))
                    for note in notes:
                        await self._collect(note, wanted, tell, stop)
                    notes = []  # what they did not use may pay for more

    def _close(self, key: str, used: Usage) -> None:
        if key in self._open:
            self.budget.settle(self._open.pop(key), used)

    def _most(self, request: Request) -> Usage:
        return self._wire.most(self._wire.payload(request))

    def _files(self, wanted: Mapping[str, Request]) -> Iterator[tuple[dict[str, tuple[int, int]], bytes]]:
        """Keys and content of the files for what is not submitted and surely paid for, within the limits of requests and bytes."""
        limit = int(self._config.batch.max_megabytes * 1e6)
        keys: dict[str, tuple[int, int]] = {}
        content = bytearray()
        for key, request in wanted.items():
            if key in self._open:
                continue
            payload = self._wire.payload(request)
            if not self.budget.fits(most := self._wire.most(payload)):
                break
            line = b'{"custom_id":"%s","method":"POST","url":"%s","body":%s}\n' % (
                key.encode(),
                ROUTE.encode(),
                payload,
            )
            if keys and (len(keys) == self._config.batch.max_requests or len(content) + len(line) > limit):
                yield keys, bytes(content)
                keys, content = {}, bytearray()
            self._open[key] = self.budget.take(most)
            keys[key] = most.tokens_in, most.tokens_out
            content += line
        if keys:
            yield keys, bytes(content)

    async def _known(self, wanted: Mapping[str, Request], stop: asyncio.Event) -> list[Note]:
        """Batches of earlier runs that hold some of these requests."""
        known: list[Note] = []
        for note in self._notes.read():
            if wanted.keys().isdisjoint(note.keys):
                continue
            if not note.id:  # killed while it was submitted: it is there, or it is not
                note.id = await self._patiently(partial(self._find, note.mark), stop)
                if not note.id:
                    for key in note.keys:
                        self._close(key, Usage())
                    note.keys = {}
                self._notes.keep(note)
            if note.id:
                known.append(note)
                self._log.info("teacher %s: going on with batch %s, %d requests", self.name, note.id, len(note.keys))
        return known

    async def _find(self, mark: str) -> str:
        """Id of the batch with this mark in its metadata; "" when the endpoint has none."""
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

    async def _submit(self, keys: dict[str, tuple[int, int]], content: bytes, stop: asyncio.Event) -> Note:
        """Upload a file and make a batch of it. The note is on the disk before the endpoint can know of the batch."""
        note = Note(uuid.uuid4().hex, self._config.base_url, keys)
        file = await self._patiently(partial(self._upload, f"{note.mark}.jsonl", content), stop)
        self._notes.keep(note)
        asked = {"input_file_id": file, "endpoint": ROUTE, "completion_window": "24h", "metadata": {MARK: note.mark}}
        tried = False

        async def create() -> str:
            nonlocal tried
            if tried and (found := await self._find(note.mark)):  # the endpoint made it, and its answer was lost
                return found
            tried = True
            return _said(await self._calls.json("POST", "/batches", data=json.dumps(asked).encode()), "id")

        note.id = await self._patiently(create, stop)
        self._notes.keep(note)
        self._log.info("teacher %s: submitted batch %s, %d requests", self.name, note.id, len(keys))
        return note

    async def _upload(self, name: str, content: bytes) -> str:
        import aiohttp

        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", io.BytesIO(content), filename=name, content_type="application/jsonl")
        return _said(await self._calls.json("POST", "/files", data=form, file=True), "id")

    async def _collect(
        self,
        note: Note,
        wanted: Mapping[str, Request],
        tell: Callable[[str, Outcome, Usage], None],
        stop: asyncio.Event,
    ) -> None:
        """Wait for the end of a batch, and tell what became of each of its requests that is wanted now."""
        while True:
            batch = await self._patiently(partial(self._look, note.id), stop)
            if batch is None or batch["status"] in ENDED:
                break
            await pause(self._config.batch.poll_seconds, stop)
        for name in ("output_file_id", "error_file_id"):
            if batch and (file := batch.get(name)):
                await self._patiently(partial(self._lines, str(file), note, wanted, tell), stop)
        reason, billed = f"no_line: batch {note.id}", True
        if batch is None:
            reason = "batch_lost: the endpoint knows no such batch"
        elif batch["status"] != "completed":
            told = (batch.get("errors") or {}).get("data") or []
            why = "; ".join(f"{one.get('code')}: {one.get('message')}" for one in told[:3])
            reason, billed = f"batch_{batch['status']}: {self._wire.clean(why)}", False
        for key in [key for key in note.keys if key in wanted]:
            used = self._wire.unknown(self._wire.payload(wanted[key])) if billed else Usage()
            tell(key, lost(reason, used), used)
        note.keys = {key: most for key, most in note.keys.items() if key in self._open}  # those of another window
        self._notes.keep(note)

    async def _look(self, id_: str) -> dict[str, Any] | None:
        """The batch; None when the endpoint has forgotten it."""
        try:
            batch = await self._calls.json("GET", f"/batches/{id_}")
        except NotThere:
            return None
        _said(batch, "status")
        return batch

    async def _lines(
        self, file: str, note: Note, wanted: Mapping[str, Request], tell: Callable[[str, Outcome, Usage], None]
    ) -> None:
        """Tell every line of an output or error file. A line that was told before (a download that broke) is passed over."""
        async with contextlib.aclosing(self._calls.lines(f"/files/{file}/content")) as lines:
            async for text in lines:
                if not text.strip():
                    continue
                try:
                    line = json.loads(text)
                    key = str(line["custom_id"])
                except (ValueError, TypeError, KeyError):
                    self._log.warning(
                        "teacher %s: a line of file %s cannot be read and is passed over", self.name, file
                    )
                    continue
                if key in note.keys and key in wanted:
                    tell(key, *self._read(line, wanted[key]))

    def _read(self, line: Mapping[str, Any], request: Request) -> tuple[Outcome, Usage]:
        """What one line says."""
        answer, error = line.get("response"), line.get("error")
        if not isinstance(answer, dict):
            error = error if isinstance(error, dict) else {"code": "no_response"}
            return Outcome(None, f"{error.get('code')}: {self._wire.clean(str(error.get('message') or ''))}"), Usage()
        status, found = answer.get("status_code"), answer.get("body")
        try:
            if status != 200:
                number = status if isinstance(status, int) else 500
                said = self._wire.judge(number, json.dumps(found, ensure_ascii=False), {})
                raise Refused(f"http_{status}: {said}") if isinstance(said, TeacherError) else said
            reply, used = self._wire.reply(found, self._wire.payload(request), 0.0)
        except (Again, Refused) as problem:
            return lost(str(problem), problem.usage), problem.usage
        return Outcome(reply), used

    async def _patiently(self, call: Callable[[], Awaitable[T]], stop: asyncio.Event) -> T:
        """One call to the endpoint, again where it fails in passing.

        Raises:
            TeacherError: it refuses, or does not answer. _Stopped: the run stops.
        """
        problem, attempts = "", self._config.attempts
        for attempt in range(1, attempts + 1):
            if stop.is_set():
                raise _Stopped
            try:
                return await call()
            except Refused as error:
                raise self._error(str(error)) from None
            except Again as error:
                problem = str(error)
                if attempt < attempts:
                    await pause(max(backoff(self._config.backoff_seconds, attempt), error.after or 0.0), stop)
        raise self._error(problem)

    def _error(self, problem: str) -> TeacherError:
        return TeacherError(
            f"teacher {self.name} cannot be asked by batch files: got {problem}, endpoint {self._config.endpoint} "
            f"({self._config.base_url}); repair it, or set mode: chat where it has no batches, and run again: what was submitted "
            "goes on there and is not submitted twice"
        )


class _Stopped(Exception):
    """The run stops; the batches go on at the endpoint."""


def _said(found: Mapping[str, Any], name: str) -> str:
    """A text that the endpoint has to say."""
    if not isinstance(value := found.get(name), str) or not value:
        raise Again(f"bad_json: no {name}")
    return value
