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
import json
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from steps.lib.asking import OnOutcome, Outcome, Request
from steps.lib.batch_endpoint import ROUTE, BatchEndpoint, Stopped
from steps.lib.batch_notes import Note, Notes
from steps.lib.calls import Calls
from steps.lib.errors import ConfigError, TeacherError
from steps.lib.ledger import Spent
from steps.lib.prices import Budget, Usage
from steps.lib.teacher_config import HttpTeacher
from steps.lib.wire import Again, Refused, Wire, lost

Tell = Callable[[str, Outcome, Usage], None]
"""Key of a request, what became of it, what it used."""


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
        async with Calls(self._wire, config.base_url, config.timeout_seconds) as calls:
            endpoint = BatchEndpoint(calls, config, stop)
            with contextlib.suppress(Stopped):
                notes = await self._known(endpoint, wanted)
                while wanted:
                    for keys, content in self._files(wanted):
                        notes.append(await self._submit(endpoint, keys, content))
                    if not notes:
                        raise self.budget.error(self._most(next(iter(wanted.values()))))
                    for note in notes:
                        await self._collect(endpoint, note, wanted, tell)
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

    async def _known(self, endpoint: BatchEndpoint, wanted: Mapping[str, Request]) -> list[Note]:
        """Batches of earlier runs that hold some of these requests."""
        known: list[Note] = []
        for note in self._notes.read():
            if wanted.keys().isdisjoint(note.keys):
                continue
            if not note.id:  # killed while it was submitted: it is there, or it is not
                note.id = await endpoint.find(note.mark)
                if not note.id:
                    for key in note.keys:
                        self._close(key, Usage())
                    note.keys = {}
                self._notes.keep(note)
            if note.id:
                known.append(note)
                self._log.info("teacher %s: going on with batch %s, %d requests", self.name, note.id, len(note.keys))
        return known

    async def _submit(self, endpoint: BatchEndpoint, keys: dict[str, tuple[int, int]], content: bytes) -> Note:
        """Upload a file and make a batch of it. The note is on the disk before the endpoint can know of the batch."""
        note = Note(uuid.uuid4().hex, self._config.base_url, keys)
        file = await endpoint.upload(f"{note.mark}.jsonl", content)
        self._notes.keep(note)
        note.id = await endpoint.create(file, note.mark)
        self._notes.keep(note)
        self._log.info("teacher %s: submitted batch %s, %d requests", self.name, note.id, len(keys))
        return note

    async def _collect(self, endpoint: BatchEndpoint, note: Note, wanted: Mapping[str, Request], tell: Tell) -> None:
        """Wait for the end of a batch, and tell what became of each of its requests that is wanted now."""
        batch = await endpoint.ended(note.id, self._config.batch.poll_seconds)
        for name in ("output_file_id", "error_file_id"):
            if batch and (file := batch.get(name)):
                await endpoint.lines(str(file), partial(self._line, str(file), note, wanted, tell))
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

    def _line(self, file: str, note: Note, wanted: Mapping[str, Request], tell: Tell, text: bytes) -> None:
        """Tell one line of an output or error file, unless it was told before (a download that broke)."""
        if not text.strip():
            return
        try:
            line = json.loads(text)
            key = str(line["custom_id"])
        except (ValueError, RecursionError, TypeError, KeyError):
            self._log.warning("teacher %s: a line of file %s cannot be read and is passed over", self.name, file)
            return
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
