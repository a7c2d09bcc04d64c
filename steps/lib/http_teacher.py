"""A teacher behind an OpenAI-compatible HTTP endpoint (vLLM, SGLang, Ollama, ``transformers serve``, a vendor).

| what came                              | what we do                                                              |
|----------------------------------------|-------------------------------------------------------------------------|
| 408, 409, 429, 5xx, no connection      | again, after full jitter; ``Retry-After`` holds the whole endpoint       |
| 429, no answer in time                 | half as many requests at a time, then one more a clean window            |
| half a JSON body, no choices, no text  | again; then recorded as failed, with the reason                          |
| 400, 422 and other 4xx                 | recorded as failed at once                                               |
| 401, 403, 404, a spent quota           | the teacher stops, once, with a TeacherError                             |
| many requests in a row without answer  | nothing but single probes; when those fail, too, the teacher stops       |
| the next request could pass the budget | nothing new is sent; BudgetSpent                                         |

Source of the jitter: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015 ("full jitter").
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import random
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from steps.lib.asking import Outcome, Request
from steps.lib.config import Added, Neutral, Section
from steps.lib.errors import BudgetSpent, TeacherError
from steps.lib.ledger import Reply, Spent
from steps.lib.limits import Breaker, Gate, Rates
from steps.lib.prices import Budget, Price, Usage, most_tokens
from steps.lib.wire import Again, Refused, Wire

T = TypeVar("T")
CAP_SECONDS = 60.0
OURS = frozenset({"model", "messages", "stream", "n", "temperature", "top_p", "seed", "max_tokens", "max_completion_tokens",
                  "response_format"})  # fmt: skip
"""Fields of a request that the configuration sets, or that would break the reading of the answer."""


class BatchFiles(Section):
    """How questions are asked by batch files (OpenAI's Batch API)."""

    poll_seconds: float = Field(default=30.0, gt=0)
    """Seconds between two looks at a batch."""
    max_requests: int = Field(default=50_000, gt=0, le=50_000)
    """Requests in one file; vendors take 50,000."""
    max_megabytes: float = Field(default=200.0, gt=0)
    """Megabytes (10^6 bytes) of one file; OpenAI takes 200."""


class HttpTeacher(Section):
    """A model behind an OpenAI-compatible endpoint."""

    kind: Literal["http"]
    name: str = Field(min_length=1)
    """The teacher's name in rows, metrics and reports."""
    share: float = Field(default=1.0, gt=0)
    """Weight (any unit) of this teacher among the samples of a prompt."""
    license: Annotated[str | None, Added] = Field(default=None, min_length=1)
    """What its answers may be used for, in your words, such as apache-2.0 or "vendor terms forbid training competitors"; it goes
    into every row's provenance. null: nobody wrote it down, which is counted and warned of."""
    temperature: float = Field(default=0.7, ge=0)
    """Divisor of the logits; 0 takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Share (0 to 1) of probability that sampling keeps."""
    max_tokens: int = Field(default=1024, gt=0)
    """Tokens an answer may have."""
    endpoint: str = Field(min_length=1)
    """Class of the endpoint, such as openai or vllm-bf16. It goes into the key in place of the address."""
    base_url: Annotated[str, Neutral]
    """Address up to and with /v1. It holds no user name and no password."""
    model: str = Field(min_length=1)
    """Model name as the endpoint knows it."""
    api_key_env: Annotated[str | None, Neutral] = None
    """Name of the environment variable that holds the key; null: the endpoint wants none."""
    api_key_block: Annotated[str | None, Neutral] = Field(default=None, pattern="^[a-z0-9][a-z0-9-]*$")
    """Name of the Prefect Secret block that holds the key, in place of a variable."""
    structured_output: bool | Literal["none", "json_schema", "json_object", "guided_json", "structured_outputs"] = False
    """How the endpoint is held to a JSON Schema: true or json_schema (response_format: OpenAI, vLLM, SGLang, Ollama from 0.5),
    structured_outputs (vLLM from 0.11), guided_json (vLLM before), json_object (JSON, whatever its shape: DeepSeek, Qwen);
    false or none."""
    extra_body: Annotated[dict[str, Any], Added()] = {}
    """Further fields of every request, such as {chat_template_kwargs: {enable_thinking: false}}; they are in the key."""
    send_seed: bool = True
    """Whether the endpoint takes a seed."""
    tokenizer: Annotated[str | None, Neutral] = None
    """Folder or hub id of the model's tokenizer, to count what is sent; its content is in the key. null: a bound, one token
    a UTF-8 byte."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Which field carries max_tokens; newer vendors' models want max_completion_tokens."""
    mode: Annotated[Literal["chat", "batch"], Neutral] = "chat"
    """chat: one request at a time, many at once; batch: files of requests, answered within a day, where the endpoint has them."""
    batch: Annotated[BatchFiles, Neutral] = BatchFiles()
    """Files of requests, for mode batch."""
    concurrency: Annotated[int, Neutral] = Field(default=16, gt=0)
    """Requests in flight at a time, at most: halved on 429 or timeout, then grown again."""
    requests_per_minute: Annotated[float | None, Neutral] = Field(default=None, gt=0)
    """Requests a minute; null: no limit."""
    tokens_per_minute: Annotated[int | None, Neutral] = Field(default=None, gt=0)
    """Tokens a minute, prompts and answers; null: no limit."""
    timeout_seconds: Annotated[float, Neutral] = Field(default=300.0, gt=0)
    """Seconds from sending to the last byte of the answer."""
    attempts: Annotated[int, Neutral] = Field(default=5, gt=0)
    """Attempts a request and run."""
    backoff_seconds: Annotated[float, Neutral] = Field(default=1.0, gt=0)
    """Seconds: the longest wait before the second attempt; it doubles up to 60."""
    give_up_after: Annotated[int, Neutral] = Field(default=20, gt=0)
    """Requests in a row without any answer after which only single probes are sent."""
    probe_seconds: Annotated[float, Neutral] = Field(default=10.0, gt=0)
    """Seconds before the first probe; they double up to 600."""
    probes: Annotated[int, Neutral] = Field(default=3, gt=0)
    """Probes in a row without an answer after which the teacher stops."""
    grace_seconds: Annotated[float, Neutral] = Field(default=10.0, ge=0)
    """Seconds that requests in flight get to finish after SIGTERM."""
    price: Annotated[Price | None, Neutral] = None
    """What tokens cost; null: what price_file says of the model."""
    price_file: Annotated[Path, Neutral] = Path("configs/prices.yaml")
    """Table of prices by model name."""
    budget_usd: Annotated[float | None, Neutral] = Field(default=None, ge=0)
    """US dollars that this teacher may cost, over all runs of one ledger; null: no limit."""
    budget_tokens: Annotated[int | None, Neutral] = Field(default=None, ge=0)
    """Tokens, prompts and answers, that this teacher may use, over all runs of one ledger; null: no limit."""

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        scheme, _, rest = value.partition("://")
        if scheme not in ("http", "https") or not rest or "@" in rest.partition("/")[0]:
            raise ValueError("an address is http://HOST/v1 or https://HOST/v1, without user or password")
        return value

    @field_validator("structured_output")
    @classmethod
    def _one_word_each(cls, value: bool | str) -> bool | str:
        return {"none": False, "json_schema": True}.get(value, value) if isinstance(value, str) else value

    @field_validator("extra_body")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(OURS & set(value)):
            raise ValueError(
                f"{', '.join(taken)} cannot stand there; other fields of the teacher set it, or it is not supported"
            )
        return value

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.api_key_env and self.api_key_block:
            raise ValueError("api_key_env and api_key_block exclude each other; leave one of them out")
        if self.tokens_per_minute is not None and self.tokens_per_minute < self.max_tokens:
            raise ValueError(
                f"tokens_per_minute {self.tokens_per_minute} is less than max_tokens {self.max_tokens}, so that one answer could "
                "take more than a minute's tokens; raise the first or lower the second"
            )
        return self


@dataclass(frozen=True)
class _Pass:
    """What an attempt holds while it is in flight."""

    probe: bool
    round: int
    tokens: int
    reserved: int


class HttpClient:
    """Answers requests over HTTP, one a call, as many calls at once as ``concurrency`` says. Opened in the loop that asks.

    Args:
        config: the endpoint.
        spent: what this teacher used in earlier runs.
        log: for warnings; never sees an answer or a key.

    Raises:
        TeacherError: the key is not there.
        ConfigError: a budget in US dollars without a known price.
    """

    alone = False

    def __init__(self, config: HttpTeacher, spent: Spent | None = None, log: logging.Logger | None = None) -> None:
        self.name = config.name
        self.concurrency = config.concurrency
        self.grace_seconds = config.grace_seconds
        self._config = config
        self._wire = Wire(config, log)
        self.counts = self._wire.counts
        """Answers by what is worth knowing of them: other_model, cost_estimated."""
        self.budget = Budget(config.name, config.budget_usd, config.budget_tokens, spent or Spent())
        self._jitter = random.Random()
        self._counted = (
            config.budget_usd is not None or config.budget_tokens is not None or config.tokens_per_minute is not None
        )
        self._fresh()

    def _fresh(self) -> None:
        config = self._config
        self._gate = Gate(config.concurrency)
        self._rates = Rates(config.requests_per_minute, config.tokens_per_minute)
        self._breaker = Breaker(config.give_up_after, config.probe_seconds, config.probes)
        self._hold = 0.0
        self._dead: TeacherError | None = None
        self._last = ""

    def identity(self) -> dict[str, Any]:
        """Model, endpoint class and sampling; neither address nor key."""
        return self._wire.identity()

    def sends_schema(self) -> bool:
        """Whether answers are held to the schema by the endpoint."""
        return self._config.structured_output is not False

    async def __aenter__(self) -> Self:
        import openai

        self._fresh()
        self._http = openai.DefaultAioHttpClient(timeout=self._config.timeout_seconds)
        await self._http.__aenter__()
        client = openai.AsyncOpenAI(base_url=self._config.base_url, api_key=self._wire.key, http_client=self._http)
        given = {**client.default_headers, **client.auth_headers}
        headers = {name: value for name, value in given.items() if isinstance(value, str)}
        address = f"{self._config.base_url.rstrip('/')}/chat/completions"
        self._blank = self._http.build_request("POST", address, headers=headers)
        del self._blank.headers["content-length"]
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.__aexit__(None, None, None)

    async def ask(self, request: Request, stop: asyncio.Event) -> Outcome | None:
        """All attempts of one request; None when the run stops before they are used up.

        Raises:
            TeacherError: the teacher cannot go on.
            BudgetSpent: this request could pass the budget.
        """
        body, billed, reason, attempt = self._wire.body(request), Usage(), "", 0
        while True:
            try:
                held = await self._admitted(body, stop)
            except (TeacherError, BudgetSpent):
                if not billed:
                    raise
                return _outcome(
                    None, reason, attempt, billed
                )  # what was paid for is written down; the next request will say it
            if held is None:
                return _outcome(None, reason, attempt, billed) if billed else None
            attempt += 1
            try:
                reply, usage = await self._send(body, held)
            except Again as error:
                billed, reason = billed + error.usage, str(error)
                if self._silence(held, error, attempt):
                    return _outcome(None, reason, attempt, billed)
                wait = min(CAP_SECONDS, self._config.backoff_seconds * 2 ** min(attempt - 1, 16))
                await _sleep(self._jitter.uniform(0, wait), stop)
            except Refused as error:
                self._breaker.heard()
                return _outcome(None, str(error), attempt, billed + error.usage)
            except TeacherError as error:
                self._dead = self._dead or error
                self._breaker.heard()  # those that wait learn of it
            else:
                self._breaker.heard()
                return _outcome(reply, "", attempt, billed + usage)

    def _silence(self, held: _Pass, error: Again, attempt: int) -> bool:
        """Take note of an attempt without an answer. Whether the request is given up: not while only probes are sent."""
        if error.after is not None:
            self._hold = max(self._hold, time.monotonic() + error.after)
        last = attempt >= self._config.attempts
        if str(error).startswith("empty"):
            self._breaker.heard()
            return last
        self._last = str(error)
        given_up = last and not self._breaker.open
        self._breaker.unheard(probe=held.probe, whole=given_up)
        return given_up

    async def _admitted(self, body: dict[str, Any], stop: asyncio.Event) -> _Pass | None:
        """Everything that an attempt needs before it is sent; None when the run stops first."""
        if stop.is_set():
            return None
        most = most_tokens(body) if self._counted else 0
        busy = self._breaker.open or self._gate.in_flight >= self._gate.limit or self._hold > time.monotonic()
        if busy or self._counted or self._config.requests_per_minute:
            return await _unless(stop, self._admit(most))
        return await self._admit(most)  # nothing to wait for

    async def _admit(self, most_in: int) -> _Pass:
        config = self._config
        tokens = most_in // 3 + config.max_tokens
        while True:
            probe = await self._breaker.enter()
            try:
                if self._dead or self._breaker.dead:
                    raise self._dead or self._nobody()
                held = await self._places(probe, tokens, self._wire.usage(most_in, config.max_tokens))
            except BaseException:
                if probe:
                    self._breaker.abandon()
                raise
            if held:
                return held

    async def _places(self, probe: bool, tokens: int, most: Usage) -> _Pass | None:
        """A place among those in flight, tokens of the rates, and money; None when the breaker opened meanwhile."""
        number = await self._gate.enter()
        try:
            await self._rates.acquire(tokens)
            while (wait := self._hold - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            if (self._breaker.open and not probe) or self._dead:
                self._rates.settle(tokens, 0)
                self._gate.leave(number, pressed=False, clean=False)
                return None
            return _Pass(probe, number, tokens, await self.budget.reserve(most))
        except BaseException:
            self._gate.leave(number, pressed=False, clean=False)
            raise

    async def _send(self, body: dict[str, Any], held: _Pass) -> tuple[Reply, Usage]:
        """One attempt. What it held is given back, with what it used."""
        used, pressed, clean, tokens = None, False, False, held.tokens
        try:
            reply, used = await self._once(body)
            clean, tokens = True, used.tokens
            return reply, used
        except (Again, Refused) as error:
            used, pressed, tokens = error.usage, isinstance(error, Again) and error.pressed, error.usage.tokens
            raise
        except TeacherError:
            used, tokens = Usage(), 0
            raise
        finally:  # a cancelled attempt may have been billed: it keeps what was reserved
            self._gate.leave(held.round, pressed=pressed, clean=clean)
            self._rates.settle(held.tokens, tokens)
            self.budget.settle(held.reserved, self._wire.most(body) if used is None else used)

    async def _once(self, body: dict[str, Any]) -> tuple[Reply, Usage]:
        started, config = time.perf_counter(), self._config
        late = f"timeout: no answer in {config.timeout_seconds:g} s"
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        try:
            async with asyncio.timeout(config.timeout_seconds):
                # By the client library's transport: its own post takes twice as long, and its chat.completions.create, which
                # walks all messages by their types, three times and more (0.5, 1.1 and 2.1 to 3.8 ms a request).
                raw = await self._http.send(self._request(content))
        except TimeoutError:
            raise Again(late, pressed=True, usage=self._wire.most(body)) from None
        except Exception as error:  # what fails on the way has no class in common
            # The transport calls a closed connection a ConnectTimeout; only the first cause tells them apart.
            cause = _root(error)
            if isinstance(cause, TimeoutError):
                raise Again(late, pressed=True, usage=self._wire.most(body)) from None
            unsent = (
                isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, ConnectionResetError)
            )
            said = self._wire.clean(f"{type(cause).__name__} {cause}")
            raise Again(f"connection: {said}", usage=Usage() if unsent else self._wire.most(body)) from None
        if raw.status_code >= 400:
            raise self._wire.judge(raw.status_code, raw.text, raw.headers)
        return self._wire.read(raw.content.decode("utf-8", "replace"), body, time.perf_counter() - started)

    def _request(self, content: bytes) -> Any:
        """A request of the client library, with the address and the headers that all have."""
        blank = self._blank
        return type(blank)(blank.method, blank.url, headers=blank.headers, content=content, extensions=blank.extensions)

    def _nobody(self) -> TeacherError:
        config, breaker = self._config, self._breaker
        return TeacherError(
            f"teacher {self.name} does not answer: got {breaker.silent} requests in a row without an answer and then "
            f"{breaker.failed_probes} failed probes (last: {self._last}), endpoint {config.endpoint} ({config.base_url}); start or "
            "repair it, then run again: answers received so far are kept"
        )


def _outcome(reply: Reply | None, reason: str, attempts: int, used: Usage) -> Outcome:
    """With what all attempts used: a reply that took a billed attempt before has cost both."""
    if reply is None:
        return Outcome(None, reason, attempts, cost=used.cost, tokens_in=used.tokens_in, tokens_out=used.tokens_out)
    whole = dataclasses.replace(reply, cost=used.cost, tokens_in=used.tokens_in, tokens_out=used.tokens_out)
    return Outcome(whole, attempts=attempts)


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What ``work`` gives, or None when the run stops first; then it is cancelled."""
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _sleep(seconds: float, stop: asyncio.Event) -> None:
    """Sleep, or wake when the run stops."""
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), seconds)
