"""A teacher in this process: a transformers checkpoint, asked in batches.

Batches are made of *all* requests, sorted by length, and each is seeded by its own request keys. A batch that was cut
short by a kill is computed again whole and gives the same answers, so the result does not depend on where a run was
resumed.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from steps.lib.asking import OnOutcome, Outcome, Request
from steps.lib.config import Added, Neutral, Section
from steps.lib.ledger import Reply
from steps.lib.models import Precision


class LocalTeacher(Section):
    """A transformers model in this process."""

    kind: Literal["local"]
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
    max_tokens: int = Field(default=256, gt=0)
    """Tokens an answer may have."""
    model: Annotated[str, Neutral]
    """Folder or hub id; its content is in the key, not its name."""
    revision: Annotated[str | None, Neutral] = None
    """Commit or tag of a hub id; null: the newest."""
    dtype: Precision = "auto"
    """Precision of the weights; auto: bfloat16 on a GPU, float32 on a CPU."""
    batch_size: int = Field(default=16, gt=0)
    """Requests answered at a time. It decides what is drawn together, and so counts as changing results."""


@dataclass
class _Loaded:
    tokenizer: Any
    model: Any


class LocalClient:
    """Answers requests with a model in this process, loaded when first needed."""

    alone = True
    window = 1024

    def __init__(self, config: LocalTeacher) -> None:
        self.name = config.name
        self._config = config
        self._loaded: _Loaded | None = None
        self._tokenizer: Any = None
        self._identity: dict[str, Any] = {}

    def identity(self) -> dict[str, Any]:
        """Content of the model, bytes of the chat template, sampling, precision and batch size."""
        if not self._identity:
            from steps.lib.models import hub_identity, load_tokenizer

            config = self._config
            self._tokenizer = load_tokenizer(config.model, config.revision)
            template = hashlib.sha256(str(self._tokenizer.chat_template).encode()).hexdigest()
            self._identity = {
                "kind": "local",
                "model": hub_identity(config.model, config.revision),
                "template": template,
                "temperature": config.temperature,
                "top_p": config.top_p,
                "max_tokens": config.max_tokens,
                "dtype": config.dtype,
                "batch_size": config.batch_size,
            }
        return self._identity

    def sends_schema(self) -> bool:
        """A transformers model is not held to a schema; answers are checked afterwards."""
        return False

    async def answer(
        self, requests: Sequence[Request], missing: frozenset[str], report: OnOutcome, stop: asyncio.Event
    ) -> None:
        """Generate batch by batch, in a thread, so that signals are seen. See ``asking.Client``."""
        from steps.lib.chat import encode_prompt

        self.identity()
        encoded = [(encode_prompt(self._tokenizer, request.messages), request) for request in requests]
        encoded.sort(key=lambda pair: (len(pair[0]), pair[1].key))
        size = self._config.batch_size
        for start in range(0, len(encoded), size):
            batch = encoded[start : start + size]
            if stop.is_set():
                return
            if not any(request.key in missing for _, request in batch):
                continue
            outcomes = await asyncio.to_thread(
                self._generate, [ids for ids, _ in batch], [request for _, request in batch]
            )
            for (_, request), outcome in zip(batch, outcomes, strict=True):
                if request.key in missing:
                    report(request, outcome)

    def _load(self) -> _Loaded:
        if self._loaded is None:
            from steps.lib.models import load_model

            self.identity()
            self._loaded = _Loaded(
                self._tokenizer,
                load_model(self._config.model, self._config.dtype, revision=self._config.revision).eval(),
            )
        return self._loaded

    def _generate(self, prompts: list[list[int]], requests: list[Request]) -> list[Outcome]:
        from steps.lib.inference import Sampling, generate

        loaded, config = self._load(), self._config
        room = getattr(loaded.model.config, "max_position_embeddings", None) or 2**31
        fit = [index for index, ids in enumerate(prompts) if len(ids) + config.max_tokens <= room]
        started = time.perf_counter()
        answers = generate(
            loaded.model,
            loaded.tokenizer,
            [prompts[index] for index in fit],
            Sampling(config.temperature, config.top_p, config.max_tokens),
            seed=_batch_seed([requests[index] for index in fit]),
            batch_size=config.batch_size,
        )
        each = round((time.perf_counter() - started) / max(1, len(fit)), 3)
        outcomes = {
            index: Outcome(
                Reply(
                    answer.text, "stop" if answer.finished else "length", "", len(prompts[index]), answer.tokens, each
                )
            )
            for index, answer in zip(fit, answers, strict=True)
        }
        for index in set(range(len(prompts))) - set(fit):
            outcomes[index] = Outcome(
                None, f"context_overflow: {len(prompts[index])} + {config.max_tokens} tokens, the model has {room}"
            )
        return [outcomes[index] for index in range(len(prompts))]


def _batch_seed(requests: list[Request]) -> int:
    text = "\n".join(request.key for request in requests)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
