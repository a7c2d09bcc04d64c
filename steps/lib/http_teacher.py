"""A teacher behind an OpenAI-compatible HTTP endpoint (vLLM, SGLang, ``transformers serve``, a vendor).

| what came                              | what we do                                                              |
|----------------------------------------|-------------------------------------------------------------------------|
| 408, 409, 429, 5xx, no connection      | again, after full jitter; ``Retry-After`` holds the whole endpoint       |
| half a JSON body, no choices, no text  | again; then recorded as failed, with the reason                          |
| 400, 422 and other 4xx                 | recorded as failed at once                                               |
| 401, 403, 404, a spent quota           | the teacher stops, once, with a TeacherError                             |
| many requests in a row without answer  | the teacher stops: nobody is there                                       |

Source of the jitter: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015 ("full jitter").
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from steps.lib.asking import OnOutcome, Outcome, Request
from steps.lib.config import Neutral, Section
from steps.lib.errors import TeacherError
from steps.lib.ledger import Reply

RETRIED = frozenset({408, 409, 429})
STOPPING = {
    401: "the key in {key} is missing or refused; set {key} to a valid key",
    403: "the key in {key} may not use this model; set {key} to a key that may, or name another model",
    404: "there is no such address or model; correct base_url or model (the key comes from {key})",
}
CAP_SECONDS = 60.0


class HttpTeacher(Section):
    """A model behind an OpenAI-compatible endpoint."""

    kind: Literal["http"]
    name: str = Field(min_length=1)
    """The teacher's name in rows, metrics and reports."""
    share: float = Field(default=1.0, gt=0)
    """Weight (any unit) of this teacher among the samples of a prompt."""
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
    structured_output: bool = False
    """Whether the endpoint understands response_format with a JSON Schema."""
    send_seed: bool = True
    """Whether the endpoint takes a seed."""
    tokenizer: Annotated[str | None, Neutral] = None
    """Folder or hub id of the model's tokenizer, to count what is sent; its content is in the key. null: a bound, one token
    a UTF-8 byte."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Which field carries max_tokens; newer vendors' models want max_completion_tokens."""
    concurrency: Annotated[int, Neutral] = Field(default=16, gt=0)
    """Requests in flight at a time."""
    timeout_seconds: Annotated[float, Neutral] = Field(default=300.0, gt=0)
    """Seconds from sending to the last byte of the answer."""
    attempts: Annotated[int, Neutral] = Field(default=5, gt=0)
    """Attempts a request and run."""
    backoff_seconds: Annotated[float, Neutral] = Field(default=1.0, gt=0)
    """Seconds: the longest wait before the second attempt; it doubles up to 60."""
    give_up_after: Annotated[int, Neutral] = Field(default=20, gt=0)
    """Requests in a row without any answer after which the teacher stops."""
    grace_seconds: Annotated[float, Neutral] = Field(default=10.0, ge=0)
    """Seconds that requests in flight get to finish after SIGTERM."""

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        scheme, _, rest = value.partition("://")
        if scheme not in ("http", "https") or not rest or "@" in rest.partition("/")[0]:
            raise ValueError("an address is http://HOST/v1 or https://HOST/v1, without user or password")
        return value


class _Again(Exception):
    """This attempt failed and another may not; ``after`` is the endpoint's own wish, in seconds."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class _Refused(Exception):
    """This request will never be answered."""


class HttpClient:
    """Answers requests over HTTP: ``concurrency`` workers take from one list, so never a task a row.

    Args:
        config: the endpoint.

    Raises:
        TeacherError: the environment variable of the key is not set.
    """

    alone = False

    def __init__(self, config: HttpTeacher) -> None:
        self.name = config.name
        self._config = config
        self._key = os.environ.get(config.api_key_env, "") if config.api_key_env else "none"
        if not self._key:
            raise TeacherError(
                f"teacher {config.name} has no key: got no environment variable {config.api_key_env}, because "
                f"api_key_env names it; set it (endpoint {config.endpoint}, {config.base_url})"
            )
        self._hold = 0.0
        self._silent = 0
        self._dead: TeacherError | None = None
        self._jitter = random.Random()

    def identity(self) -> dict[str, Any]:
        """Model, endpoint class and sampling; neither address nor key."""
        config = self._config
        return {
            "kind": "http",
            "endpoint": config.endpoint,
            "model": config.model,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": config.max_tokens,
            "send_seed": config.send_seed,
        }

    def sends_schema(self) -> bool:
        """Whether answers are held to the schema by the endpoint."""
        return self._config.structured_output

    async def answer(
        self, requests: Sequence[Request], missing: frozenset[str], report: OnOutcome, stop: asyncio.Event
    ) -> None:
        """Ask for what is missing. See ``asking.Client``."""
        import openai

        todo = iter([request for request in requests if request.key in missing])
        async with openai.DefaultAioHttpClient(timeout=self._config.timeout_seconds) as http:
            client = openai.AsyncOpenAI(
                base_url=self._config.base_url, api_key=self._key, max_retries=0, http_client=http
            )
            count = min(self._config.concurrency, len(missing))
            workers = [asyncio.create_task(self._work(client, todo, report, stop)) for _ in range(count)]
            watcher = asyncio.create_task(stop.wait())
            try:
                waiting: set[asyncio.Task[Any]] = {*workers}
                while waiting and not stop.is_set():
                    done, _ = await asyncio.wait({*waiting, watcher}, return_when=asyncio.FIRST_COMPLETED)
                    waiting -= done
                if waiting:
                    await asyncio.wait(waiting, timeout=self._config.grace_seconds)
                for worker in workers:
                    if worker.done():
                        worker.result()
            finally:
                for task in (watcher, *workers):
                    task.cancel()
                await asyncio.gather(watcher, *workers, return_exceptions=True)
        if self._dead:
            raise self._dead

    async def _work(self, client: Any, todo: Iterator[Request], report: OnOutcome, stop: asyncio.Event) -> None:
        while not (stop.is_set() or self._dead) and (request := next(todo, None)) is not None:
            outcome = await self._patiently(client, request, stop)
            if outcome is None:
                return
            report(request, outcome)
            self._silent = (
                0 if outcome.reply or outcome.reason.startswith(("http_400", "http_422", "empty")) else self._silent + 1
            )
            if self._silent >= self._config.give_up_after and not self._dead:
                self._dead = TeacherError(
                    f"teacher {self.name} does not answer: got {self._silent} requests in a row without an answer "
                    f"(last: {outcome.reason}), endpoint {self._config.endpoint} ({self._config.base_url}); start or "
                    "repair it, then run again: answers received so far are kept"
                )

    async def _patiently(self, client: Any, request: Request, stop: asyncio.Event) -> Outcome | None:
        """All attempts of one request; None when the run stops before they are used up."""
        reason = ""
        for attempt in range(1, self._config.attempts + 1):
            await _sleep(self._hold - time.monotonic(), stop)
            if stop.is_set() or self._dead:
                return None
            try:
                return Outcome(await self._once(client, request), attempts=attempt)
            except _Again as error:
                reason, wait = (
                    str(error),
                    self._jitter.uniform(0, min(CAP_SECONDS, self._config.backoff_seconds * 2 ** (attempt - 1))),
                )
                if error.after is not None:
                    self._hold = max(self._hold, time.monotonic() + error.after)
                if attempt < self._config.attempts:
                    await _sleep(wait, stop)
            except _Refused as error:
                return Outcome(None, str(error), attempt)
            except TeacherError as error:
                self._dead = self._dead or error
                return None
        return Outcome(None, reason, self._config.attempts)

    async def _once(self, client: Any, request: Request) -> Reply:
        import openai

        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                raw = await client.chat.completions.with_raw_response.create(**self._body(request))
        except TimeoutError:
            raise _Again(f"timeout: no answer in {self._config.timeout_seconds:g} s") from None
        except openai.APIConnectionError as error:
            # The client's transport calls a closed connection a ConnectTimeout; only the first cause tells them apart.
            cause = _root(error)
            if isinstance(cause, (TimeoutError, openai.APITimeoutError)):
                raise _Again(f"timeout: no answer in {self._config.timeout_seconds:g} s") from None
            raise _Again(f"connection: {self._clean(f'{type(cause).__name__} {cause}')}") from None
        except openai.APIStatusError as error:
            raise self._judge_status(error) from None
        except openai.OpenAIError as error:
            raise _Again(f"bad_reply: {self._clean(str(error))}") from None
        return self._read(raw.text, time.perf_counter() - started)

    def _body(self, request: Request) -> dict[str, Any]:
        config = self._config
        body: dict[str, Any] = {
            "model": config.model,
            "messages": list(request.messages),
            "temperature": config.temperature,
            "top_p": config.top_p,
            config.max_tokens_field: config.max_tokens,
        }
        if config.send_seed:
            body["seed"] = request.seed
        if request.schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": request.schema},
            }
        return body

    def _judge_status(self, error: Any) -> Exception:
        status, config = int(error.status_code), self._config
        spent = status == 429 and getattr(error, "code", None) == "insufficient_quota"
        if status in STOPPING or spent:
            variable = f"environment variable {config.api_key_env}" if config.api_key_env else "api_key_env (now null)"
            cause = "the quota is spent; pay, or wait" if spent else STOPPING[status].format(key=variable)
            return TeacherError(
                f"teacher {self.name} cannot answer: got HTTP {status} from endpoint {config.endpoint} "
                f"({config.base_url}, model {config.model}), because {cause}. Then run again: answers received "
                "so far are kept"
            )
        reason = f"http_{status}: {self._clean(str(error.response.text))}"
        if status in RETRIED or status >= 500:
            return _Again(reason, retry_after(error.response.headers.get("retry-after")))
        return _Refused(reason)

    def _read(self, text: str, seconds: float) -> Reply:
        try:
            body = json.loads(text)
        except ValueError:
            raise _Again(f"bad_json: {self._clean(text)}" if text.strip() else "bad_json: an empty body") from None
        choices = body.get("choices") if isinstance(body, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise _Again(f"no_choices: {self._clean(text)}")
        said, finish = choices[0].get("message"), str(choices[0].get("finish_reason") or "stop")
        content = said.get("content") if isinstance(said, dict) else None
        if not isinstance(content, str) or not content.strip():
            if finish in ("content_filter", "length"):
                raise _Refused(f"empty: finish_reason {finish}")
            raise _Again(f"empty: no text, finish_reason {finish}")
        usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
        tokens = [
            value if isinstance(value := usage.get(name), int) else 0 for name in ("prompt_tokens", "completion_tokens")
        ]
        return Reply(content, finish, str(body.get("model") or ""), tokens[0], tokens[1], round(seconds, 3))

    def _clean(self, text: str) -> str:
        """Foreign text for a reason: short, one line, and never with the key in it."""
        text = " ".join(text.split())
        return (text.replace(self._key, "***") if self._config.api_key_env else text)[:200]


def retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (a number or an HTTP date, RFC 9110 section 10.2.3), or None."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if seconds < float("inf") else None


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


async def _sleep(seconds: float, stop: asyncio.Event) -> None:
    """Sleep, or wake when the run stops."""
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), seconds)
