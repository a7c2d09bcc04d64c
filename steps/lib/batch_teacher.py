"""A teacher that is asked by files of requests (OpenAI's Batch API): cheaper, answered within a day.

A file is uploaded, a batch is made of it, and the batch is looked at until it has ended. What was submitted is written down before
and after submitting, so a run that was killed at any moment goes on waiting for the same batch: a note without a batch's id is
looked for among the endpoint's batches, by the mark that the note and the batch's metadata share.

| how a batch or a line ended        | what we do                                                             |
|------------------------------------|------------------------------------------------------------------------|
| output and error file              | each line is one outcome; a line with an error is a failure            |
| ``failed``                         | every request failed, with the endpoint's reason                       |
| ``expired``, ``cancelled``         | what was answered is kept; the others failed, and are asked again by the next run |
| no line at all                     | failed as ``no_line``                                                   |

Source: OpenAI API reference, "Batch" (up to 50,000 requests and 200 MB a file; half the price; within 24 hours).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from steps.lib import durable
from steps.lib.asking import OnOutcome, Outcome, Request
from steps.lib.errors import BudgetSpent, ConfigError, TeacherError
from steps.lib.ledger import Spent
from steps.lib.prices import Budget, Usage, most_tokens
from steps.lib.teacher_config import HttpTeacher
from steps.lib.wire import Again, Refused, Wire

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
MARK = "prefline"
"""Name of our mark in a batch's metadata."""
ROUTE = "/v1/chat/completions"
CAP_SECONDS = 60.0
T = TypeVar("T")
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
        TeacherError: the key is not there.
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
        self._notes = _Notes(folder / f"batches-{hashlib.sha256(config.name.encode()).hexdigest()[:12]}.json")

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
        import openai

        wanted = {request.key: request for request in requests if request.key in missing}
        reserved: dict[str, int] = {}

        def tell(key: str, outcome: Outcome, used: Usage) -> None:
            self.budget.settle(reserved.pop(key), used)
            report(wanted.pop(key), outcome)

        async with openai.DefaultAioHttpClient(timeout=self._config.timeout_seconds) as http:
            self._client: Any = openai.AsyncOpenAI(
                base_url=self._config.base_url, api_key=self._wire.key, max_retries=0, http_client=http
            )
            with contextlib.suppress(_Stopped):
                notes = await self._known(wanted.keys(), stop)
                for key in [key for note in notes for key in note["keys"] if key in wanted]:
                    reserved[key] = self.budget.take(self._most(wanted[key]))
                over: BudgetSpent | None = None
                fresh: list[Request] = []
                for key, request in wanted.items():
                    if key in reserved:
                        continue
                    if not self.budget.fits(most := self._most(request)):
                        over = self.budget.error(most)
                        break
                    reserved[key] = self.budget.take(most)
                    fresh.append(request)
                for keys, content in self._files(fresh):
                    notes.append(await self._submit(keys, content, stop))
                for note in notes:
                    await self._collect(note, wanted, tell, stop)
                if over:
                    raise over

    def _most(self, request: Request) -> Usage:
        return self._wire.usage(most_tokens(self._wire.body(request)), self._config.max_tokens)

    def _files(self, requests: Sequence[Request]) -> Iterator[tuple[list[str], bytes]]:
        """Keys and content of the files: each within the limits of requests and bytes."""
        limit = int(self._config.batch.max_megabytes * 1e6)
        keys: list[str] = []
        content = bytearray()
        for request in requests:
            line = {"custom_id": request.key, "method": "POST", "url": ROUTE, "body": self._wire.body(request)}
            text = json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
            if keys and (len(keys) == self._config.batch.max_requests or len(content) + len(text) > limit):
                yield keys, bytes(content)
                keys, content = [], bytearray()
            keys.append(request.key)
            content += text
        if keys:
            yield keys, bytes(content)

    async def _known(self, keys: Collection[str], stop: asyncio.Event) -> list[dict[str, Any]]:
        """Batches of earlier runs that hold some of these requests."""
        notes = [note for note in self._notes.read() if not set(keys).isdisjoint(note["keys"])]
        for note in [
            note for note in notes if not note["id"]
        ]:  # killed while it was submitted: it is there, or it is not
            note["id"] = await self._patiently(partial(self._find, note["mark"]), stop)
            if note["id"]:
                self._notes.keep(note)
            else:
                self._notes.drop(note)
        known = [note for note in notes if note["id"]]
        for note in known:
            self._log.info("teacher %s: going on with batch %s, %d requests", self.name, note["id"], len(note["keys"]))
        return known

    async def _find(self, mark: str) -> str:
        """Id of the batch with this mark in its metadata; "" when the endpoint has none."""
        async for batch in self._client.batches.list(limit=100):
            if (batch.metadata or {}).get(MARK) == mark:
                return str(batch.id)
        return ""

    async def _submit(self, keys: list[str], content: bytes, stop: asyncio.Event) -> dict[str, Any]:
        """Upload a file and make a batch of it. The note is on the disk before the endpoint can know of the batch."""
        note: dict[str, Any] = {"mark": uuid.uuid4().hex, "id": "", "keys": keys}
        file = await self._patiently(
            lambda: self._client.files.create(file=(f"{note['mark']}.jsonl", content), purpose="batch"), stop
        )
        self._notes.keep(note)

        async def create() -> str:
            if tried and (found := await self._find(note["mark"])):  # the endpoint made it, and its answer was lost
                return found
            tried.append(True)
            batch = await self._client.batches.create(
                input_file_id=file.id, endpoint=ROUTE, completion_window="24h", metadata={MARK: note["mark"]}
            )
            return str(batch.id)

        tried: list[bool] = []
        note["id"] = await self._patiently(create, stop)
        self._notes.keep(note)
        self._log.info("teacher %s: submitted batch %s, %d requests", self.name, note["id"], len(keys))
        return note

    async def _collect(
        self, note: dict[str, Any], wanted: Mapping[str, Request], tell: Tell, stop: asyncio.Event
    ) -> None:
        """Wait for the end of a batch, and tell what became of each of its requests."""
        while True:
            batch = await self._patiently(partial(self._look, note["id"]), stop)
            if batch is None or batch.status in ENDED:
                break
            await _sleep(self._config.batch.poll_seconds, stop)
        for file in [batch.output_file_id, batch.error_file_id] if batch else []:
            if file:
                await self._patiently(partial(self._lines, file, note, wanted, tell), stop)
        reason = "batch_lost: the endpoint knows no such batch" if batch is None else f"no_line: batch {note['id']}"
        if batch is not None and batch.status != "completed":
            data = (batch.errors.data if batch.errors else None) or []
            why = "; ".join(f"{one.code}: {one.message}" for one in data[:3])
            reason = f"batch_{batch.status}: {self._wire.clean(why)}"
        for key in [key for key in note["keys"] if key in wanted]:
            tell(key, Outcome(None, reason), Usage())
        self._notes.drop(note)

    async def _look(self, id_: str) -> Any:
        """The batch; None when the endpoint has forgotten it."""
        import openai

        try:
            return await self._client.batches.retrieve(id_)
        except openai.NotFoundError:
            return None

    async def _lines(self, file: str, note: dict[str, Any], wanted: Mapping[str, Request], tell: Tell) -> None:
        """Tell every line of an output or error file. A line that was told before (a download that broke) is passed over."""
        ours = set(note["keys"])
        async with self._client.files.with_streaming_response.content(file) as answer:
            lines = aiter(answer.iter_lines())
            while (text := await _next(lines)) is not None:
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
                if key in ours and key in wanted:
                    tell(key, *self._read(line, self._wire.body(wanted[key])))

    def _read(self, line: Mapping[str, Any], body: Mapping[str, Any]) -> tuple[Outcome, Usage]:
        """What one line says."""
        answer, error = line.get("response"), line.get("error")
        if not isinstance(answer, dict):
            code, message = (
                (error.get("code"), error.get("message")) if isinstance(error, dict) else ("no_response", "")
            )
            return Outcome(None, f"{code}: {self._wire.clean(str(message))}"), Usage()
        status, found = answer.get("status_code"), answer.get("body")
        try:
            if status != 200:
                number = status if isinstance(status, int) else 500
                said = self._wire.judge(number, json.dumps(found, ensure_ascii=False), {})
                raise Refused(f"http_{status}: {said}") if isinstance(said, TeacherError) else said
            reply, used = self._wire.reply(found, body, 0.0)
        except (Again, Refused) as problem:
            used = problem.usage
            lost = Outcome(None, str(problem), cost=used.cost, tokens_in=used.tokens_in, tokens_out=used.tokens_out)
            return lost, used
        return Outcome(reply), used

    async def _patiently(self, call: Callable[[], Awaitable[T]], stop: asyncio.Event) -> T:
        """One call to the endpoint, again where it fails in passing.

        Raises:
            TeacherError: it refuses, or does not answer. _Stopped: the run stops.
        """
        import openai

        for attempt in range(1, self._config.attempts + 1):
            if stop.is_set():
                raise _Stopped
            try:
                return await call()
            except openai.APIStatusError as error:
                said = self._wire.judge(int(error.status_code), str(error.response.text), error.response.headers)
                if not isinstance(said, Again):
                    raise said if isinstance(said, TeacherError) else self._error(str(said)) from None
                problem, after = str(said), said.after or 0.0
            except (openai.OpenAIError, Again) as error:
                problem, after = self._wire.clean(f"{type(error).__name__} {error}"), 0.0
            if attempt < self._config.attempts:
                wait = random.uniform(0, min(CAP_SECONDS, self._config.backoff_seconds * 2 ** (attempt - 1)))
                await _sleep(max(wait, after), stop)
        raise self._error(problem)

    def _error(self, problem: str) -> TeacherError:
        return TeacherError(
            f"teacher {self.name} cannot be asked by batch files: got {problem}, endpoint {self._config.endpoint} "
            f"({self._config.base_url}); repair it, or set mode: chat where it has no batches, and run again: what was submitted "
            "goes on there and is not submitted twice"
        )


class _Stopped(Exception):
    """The run stops; the batches go on at the endpoint."""


class _Notes:
    """What was submitted, in one small file: a list of {mark, id, keys}."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[dict[str, Any]]:
        """The notes, in the order of submitting."""
        return json.loads(self._path.read_text(encoding="utf-8")) if self._path.is_file() else []

    def keep(self, note: dict[str, Any]) -> None:
        """Write a note, in the place of an older one of the same mark."""
        notes = self.read()
        places = [place for place, one in enumerate(notes) if one["mark"] == note["mark"]]
        self._write([*notes[: places[0]], note, *notes[places[0] + 1 :]] if places else [*notes, note])

    def drop(self, note: dict[str, Any]) -> None:
        """Forget a batch whose lines are all told."""
        self._write([one for one in self.read() if one["mark"] != note["mark"]])

    def _write(self, notes: list[dict[str, Any]]) -> None:
        draft = self._path.with_name(f"{self._path.name}.new")
        durable.write(draft, json.dumps(notes))
        os.replace(draft, self._path)
        durable.fsync(self._path.parent)


async def _next(lines: AsyncIterator[str]) -> str | None:
    """The next line of a download; None at its end.

    Raises:
        Again: the connection broke. (While a body is read, the client library passes its transport's own errors on.)
    """
    try:
        return await anext(lines)
    except StopAsyncIteration:
        return None
    except Exception as error:
        raise Again(f"connection: {type(error).__name__} {error}") from None


async def _sleep(seconds: float, stop: asyncio.Event) -> None:
    """Sleep, or leave when the run stops."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    if stop.is_set():
        raise _Stopped
