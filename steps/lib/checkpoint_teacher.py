"""What teachers with a checkpoint of their own have in common (``kind: local`` and ``kind: vllm``): what they are to a key, and
requests as tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steps.lib.asking import Outcome, Request
from steps.lib.teacher_config import LocalTeacher, VllmTeacher


@dataclass(frozen=True)
class Asked:
    """A request and its prompt."""

    request: Request
    ids: list[int]


class Checkpoint:
    """A teacher's model as everybody outside the engine sees it; the tokenizer is loaded when first needed.

    Args:
        config: names the model.
        more: of the key, what this kind of teacher adds.
    """

    def __init__(self, config: LocalTeacher | VllmTeacher, **more: Any) -> None:
        self._config, self._more = config, more
        self._identity: dict[str, Any] = {}
        self.tokenizer: Any = None
        """There once ``identity`` was asked for."""

    def identity(self) -> dict[str, Any]:
        """Content of the model, bytes of the chat template, sampling and precision."""
        if not self._identity:
            from steps.lib.model_files import hub_identity
            from steps.lib.models import load_tokenizer

            config = self._config
            self.tokenizer = load_tokenizer(config.model, config.revision)
            self._identity = {
                "kind": config.kind,
                "model": hub_identity(config.model, config.revision),
                "template": hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest(),
                "temperature": config.temperature,
                "top_p": config.top_p,
                "max_tokens": config.max_tokens,
                "dtype": config.dtype,
                **self._more,
            }
        return self._identity

    @property
    def name(self) -> str:
        """The model as rows and the ledger name it: the digest of its files."""
        return str(self.identity()["model"])

    def fitting(
        self, requests: Sequence[Request], room: int, who: str
    ) -> tuple[list[Asked], list[tuple[Request, Outcome]]]:
        """Requests with their tokens, and those whose answer would not fit behind them.

        Args:
            requests: all of them.
            room: tokens of prompt and answer together. who: whose limit that is.
        """
        from steps.lib.chat import encode_prompt

        self.identity()
        most = self._config.max_tokens
        found: list[Asked] = []
        failed: list[tuple[Request, Outcome]] = []
        for request in requests:
            ids = encode_prompt(self.tokenizer, request.messages)
            if len(ids) + most > room:
                failed.append(
                    (request, Outcome(None, f"context_overflow: {len(ids)} + {most} tokens, {who} has {room}"))
                )
            else:
                found.append(Asked(request, ids))
        return found, failed
