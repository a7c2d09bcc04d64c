"""What goes to an OpenAI-compatible endpoint and what comes back, for single requests and for batch files alike.

Bodies, usage, prices, and what each failure means. Nothing is sent here.

Sources: OpenAI API reference (chat completions, errors); vLLM documentation, "Structured Outputs" (``structured_outputs`` from
0.11, ``guided_json`` before, removed in 0.12); Ollama (from 0.5) and SGLang take ``response_format`` with a JSON Schema; DeepSeek
and DashScope document ``json_object``. ``reasoning_content`` is DeepSeek's name for thoughts, ``reasoning`` Ollama's and newer
vLLM's.
"""

from __future__ import annotations

import email.utils
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from steps.lib.api_keys import key_of, place_of
from steps.lib.asking import Outcome, Request
from steps.lib.errors import ConfigError, TeacherError
from steps.lib.ledger import Reply
from steps.lib.prices import Usage, likely_tokens, most_tokens, price_of
from steps.lib.teacher_config import HttpTeacher

RETRIED = frozenset({408, 409, 429})
STOPPING = {
    401: "the key in {key} is missing or refused; set {key} to a valid key",
    403: "the key in {key} may not use this model; set {key} to a key that may, or name another model",
    404: "there is no such address or model; correct base_url or model (the key comes from {key})",
}
CODES = {
    "context_length_exceeded": "context_overflow",
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
    "data_inspection_failed": "content_filter",
}
"""An endpoint's code of an error -> our reason."""
CONTEXT_WORDS = ("maximum context length", "context window", "longer than the model's context")
"""How vLLM, SGLang and others say that a prompt is too long; they give no code."""


class Again(Exception):
    """This attempt failed and another may not.

    Args:
        reason: code, then optionally ": detail".
        after: the endpoint's own wish, in seconds. pressed: it is overloaded, so less should be asked at a time.
        usage: what the attempt was billed, or may have been.
    """

    def __init__(
        self, reason: str, after: float | None = None, *, pressed: bool = False, usage: Usage | None = None
    ) -> None:
        super().__init__(reason)
        self.after, self.pressed, self.usage = after, pressed, usage or Usage()


class NotThere(TeacherError):
    """HTTP 404."""


class Refused(Exception):
    """This request will never be answered. ``usage``: what it was billed all the same."""

    def __init__(self, reason: str, usage: Usage | None = None) -> None:
        super().__init__(reason)
        self.usage = usage or Usage()


def lost(reason: str, used: Usage, attempts: int = 1) -> Outcome:
    """A request without an answer, with what it was billed all the same."""
    return Outcome(None, reason, attempts, cost=used.cost, tokens_in=used.tokens_in, tokens_out=used.tokens_out)


class Wire:
    """The language of one endpoint.

    Args:
        config: the endpoint.
        log: for warnings.

    Raises:
        TeacherError: the key is not there.
        ConfigError: a budget in US dollars without a known price; the missing key is told with it.
    """

    def __init__(self, config: HttpTeacher, log: logging.Logger | None) -> None:
        self._config = config
        self._log = log or logging.getLogger("prefline")
        self._price = price_of(config.model, config.price, config.price_file)
        self._batch = config.mode == "batch"
        self.counts: Counter[str] = Counter()
        self.key, problem = key_of(config)
        if config.budget_usd is not None and self._price is None:
            unknown = (
                f"budget of teacher {config.name} cannot be kept: got budget_usd {config.budget_usd:g} and no price, because "
                f"{config.price_file} has no model {config.model!r}; set price: {{input: ..., output: ...}} (US dollars for a "
                "million tokens; 0 for a server of your own), or write the model into that file"
            )
            raise ConfigError([unknown, *([problem] if problem else [])])
        if problem:
            raise TeacherError(problem)

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
            **({"extra_body": config.extra_body} if config.extra_body else {}),
            **({"structured_output": mode} if isinstance(mode := config.structured_output, str) else {}),
        }

    def payload(self, request: Request) -> bytes:
        """One request as the JSON that is sent. Half a surrogate pair, which UTF-8 cannot hold, becomes "?"."""
        return _ENCODER.encode(self._body(request)).encode("utf-8", "replace")

    def _body(self, request: Request) -> dict[str, Any]:
        config = self._config
        body: dict[str, Any] = {
            "model": config.model,
            "messages": list(request.messages),
            "temperature": config.temperature,
            "top_p": config.top_p,
            config.max_tokens_field: config.max_tokens,
            **config.extra_body,
        }
        if config.send_seed:
            body["seed"] = request.seed
        if request.schema is None:
            return body
        if config.structured_output == "json_object":
            body["response_format"] = {"type": "json_object"}
        elif config.structured_output == "guided_json":
            body["guided_json"] = request.schema
        elif config.structured_output == "structured_outputs":
            body["structured_outputs"] = {"json": request.schema}
        else:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": request.schema},
            }
        return body

    def usage(self, tokens_in: int, tokens_out: int) -> Usage:
        """So many tokens with their price; without a known price they cost nothing."""
        cost = self._price.of(tokens_in, tokens_out, batch=self._batch) if self._price else 0.0
        return Usage(tokens_in, tokens_out, cost)

    def most(self, payload: bytes) -> Usage:
        """The most that a request can use."""
        return self.usage(most_tokens(payload), self._config.max_tokens)

    def unknown(self, payload: bytes) -> Usage:
        """What an attempt without an answer may have been billed. Counted where a budget must hold, whatever happened there."""
        if self._config.budget_usd is None and self._config.budget_tokens is None:
            return Usage()
        self.counts["cost_estimated"] += 1
        return self.most(payload)

    def judge(self, status: int, text: str, headers: Mapping[str, str]) -> Exception:
        """What an HTTP status other than 200 means."""
        config, (code, message) = self._config, _error_of(text)
        spent = status == 429 and code == "insufficient_quota"
        if status in STOPPING or spent:
            cause = "the quota is spent; pay, or wait" if spent else STOPPING[status].format(key=place_of(config))
            return (NotThere if status == 404 else TeacherError)(
                f"teacher {config.name} cannot answer: got HTTP {status} from endpoint {config.endpoint} "
                f"({config.base_url}, model {config.model}), because {cause}. Then run again: answers received "
                "so far are kept"
            )
        if status in RETRIED or status >= 500:
            after = retry_after(headers.get("retry-after"))
            return Again(f"http_{status}: {self.clean(text)}", after, pressed=status == 429)
        known = CODES.get(code) or ("context_overflow" if any(words in message for words in CONTEXT_WORDS) else "")
        return Refused(f"{known or f'http_{status}'}: {self.clean(text)}")

    def read(self, text: str, payload: bytes, seconds: float) -> tuple[Reply, Usage]:
        """The reply in an answer's JSON text, and what it used.

        Raises:
            Again: there is no answer in it, and another attempt may have one.
            Refused: there never will be.
        """
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            said = self.clean(text) if text.strip() else "an empty body"
            raise Again(f"bad_json: {said}", usage=self.unknown(payload)) from None
        return self.reply(found, payload, seconds)

    def reply(self, found: Any, payload: bytes, seconds: float) -> tuple[Reply, Usage]:
        """The same for JSON that was read already."""
        choices = found.get("choices") if isinstance(found, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            said = self.clean(json.dumps(found, ensure_ascii=False))
            raise Again(f"no_choices: {said}", usage=self._told(found) or self.unknown(payload))
        message, finish = choices[0].get("message"), str(choices[0].get("finish_reason") or "stop")
        content, thought = (
            _text(message, "content"),
            _text(message, "reasoning_content") or _text(message, "reasoning"),
        )
        usage = self._told(found)
        if not content.strip():
            usage = usage or self.unknown(payload)
            if finish in ("content_filter", "length"):
                raise Refused(f"empty: finish_reason {finish}", usage)
            raise Again(f"empty: no text, finish_reason {finish}", usage=usage)
        if usage is None:
            self.counts["cost_estimated"] += 1
            usage = self.usage(likely_tokens(payload), likely_tokens((content + thought).encode("utf-8", "replace")))
        model = _text(found, "model")
        self._look_at(model)
        spent, seconds = (usage.tokens_in, usage.tokens_out), round(seconds, 3)
        return Reply(content, finish, model, *spent, seconds, cost=usage.cost, thought=thought), usage

    def clean(self, text: str) -> str:
        """Foreign text for a reason: short, one line, and never with the key in it."""
        text = " ".join(text.split())
        return (text.replace(self.key, "***") if self._config.api_key_env or self._config.api_key_block else text)[:200]

    def _told(self, found: Any) -> Usage | None:
        """What the endpoint says that was used; None when it says nothing."""
        usage = found.get("usage") if isinstance(found, dict) else None
        if not isinstance(usage, dict):
            return None
        told = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
        tokens = [one for one in told if type(one) is int and one >= 0]
        return self.usage(*tokens) if len(tokens) == 2 else None

    def _look_at(self, model: str) -> None:
        """A model that is not the one that was asked for is kept, counted, and told once."""
        asked, answered = (name.rpartition("/")[2].lower() for name in (self._config.model, model))
        if not answered or answered == asked or answered.startswith((f"{asked}-", f"{asked}:", f"{asked}@")):
            return
        self.counts["other_model"] += 1
        if self.counts["other_model"] == 1:
            self._log.warning(
                "teacher %s was asked for model %s and answered as %s: its answers are kept, with that name in the ledger; look "
                "at what the endpoint serves",
                self._config.name,
                self._config.model,
                self.clean(model),
            )


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


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


def _text(said: Any, name: str) -> str:
    value = said.get(name) if isinstance(said, dict) else None
    return value if isinstance(value, str) else ""


def _error_of(text: str) -> tuple[str, str]:
    """Code and message of an error's JSON, as vendors write them; empty where there are none."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return "", text
    error = body.get("error", body) if isinstance(body, dict) else {}
    if not isinstance(error, dict):
        return "", str(error)
    return str(error.get("code") or ""), str(error.get("message") or "")
