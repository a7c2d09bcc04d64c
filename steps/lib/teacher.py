"""Teachers: one client for each kind, and which teacher gives which sample.

Four kinds: ``http`` (any OpenAI-compatible endpoint), ``local`` (a transformers checkpoint in this process), ``vllm``
(vLLM's offline engine) and ``scripted`` (a rule program, offline; its name must begin with "scripted", so that no report
takes it for a model).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from steps.lib.asking import Client, OnOutcome, Outcome, Request, draw
from steps.lib.batch_teacher import BatchClient
from steps.lib.digests import digest_file
from steps.lib.errors import TeacherError
from steps.lib.http_teacher import HttpClient
from steps.lib.ledger import Reply, Spent
from steps.lib.local_teacher import LocalClient
from steps.lib.teacher_config import AnyTeacher, HttpTeacher, LocalTeacher, ScriptedTeacherConfig, VllmTeacher
from steps.lib.tokens import tokenizer_identity
from steps.lib.vllm_teacher import VllmClient

BREATH = 64
"""Scripted answers between two looks at the stop flag."""


class ScriptedClient:
    """Answers by rules. The prompt is seen bare; template, examples and schema play no part."""

    alone = True
    window = 1024

    def __init__(self, config: ScriptedTeacherConfig, seed: int) -> None:
        self.name = config.name
        self._config = config
        self._seed = seed

    def identity(self) -> dict[str, Any]:
        """Content of the rules and the run's seed, from which they draw."""
        return {"kind": "scripted", "model": digest_file(self._config.path), "run_seed": self._seed}

    def sends_schema(self) -> bool:
        """Rules know no schema."""
        return False

    async def answer(
        self, requests: Sequence[Request], missing: frozenset[str], report: OnOutcome, stop: asyncio.Event
    ) -> None:
        """Answer what is missing. A prompt without a rule is a failure of that request. See ``asking.Client``."""
        from steps.lib.scripted import ScriptedTeacher

        teacher = ScriptedTeacher(self._config.path)
        for number, request in enumerate(request for request in requests if request.key in missing):
            if number % BREATH == 0:
                await asyncio.sleep(0)
            if stop.is_set():
                return
            try:
                text = teacher.answer(request.prompt, seed=self._seed, sample=request.sample)
            except TeacherError as error:
                report(request, Outcome(None, f"no_rule: {error}"))
            else:
                report(request, Outcome(Reply(text, model=self.name)))


def open_client(
    config: AnyTeacher,
    seed: int,
    spent: Spent | None = None,
    *,
    folder: Path | None = None,
    log: logging.Logger | None = None,
) -> Client:
    """The client of a teacher. Nothing is loaded or sent yet.

    Args:
        config: the teacher.
        seed: the run's.
        spent: what the ledger says that this teacher used already; its budget counts it.
        folder: where a batch that was submitted is remembered: beside the ledger.
        log: for warnings.

    Raises:
        TeacherError: an HTTP teacher's key is not there; vllm is not installed.
        ConfigError: a budget in US dollars for a model without a known price; mode batch without a folder.
    """
    if isinstance(config, HttpTeacher):
        if config.mode == "batch":
            return BatchClient(config, spent, folder, log)
        return HttpClient(config, spent, log)
    if isinstance(config, LocalTeacher):
        return LocalClient(config)
    if isinstance(config, VllmTeacher):
        return VllmClient(config)
    return ScriptedClient(config, seed)


def identities(teachers: Sequence[AnyTeacher]) -> dict[str, str]:
    """External identities for a step's key: what a path or hub id points to.

    An HTTP teacher has only its tokenizer: endpoint class and model name stand in the configuration.
    """
    found: dict[str, str] = {}
    for teacher in teachers:
        if isinstance(teacher, ScriptedTeacherConfig):
            found[f"teacher {teacher.name}"] = digest_file(teacher.path)
        elif isinstance(teacher, LocalTeacher | VllmTeacher):
            from steps.lib.model_files import hub_identity

            found[f"teacher {teacher.name}"] = hub_identity(teacher.model, teacher.revision)
        elif teacher.tokenizer is not None:
            found[f"tokenizer of {teacher.name}"] = tokenizer_identity(teacher.tokenizer)
    return found


def assign(shares: Sequence[float], samples: int, prompt: str, seed: int) -> list[int]:
    """Which teacher gives which sample of a prompt: index of a teacher for each sample.

    Systematic sampling: one draw a prompt, then equal strides, so that every prompt gets each teacher's share to
    within one sample, and all prompts together get it on average. It depends on the prompt alone, not on others or
    their order.
    """
    total = sum(shares)
    ends = [end / total for end in accumulate(shares)]
    start = draw(seed, prompt, "teacher")
    chosen = []
    for sample in range(samples):
        place = (start + sample) / samples
        chosen.append(next((index for index, end in enumerate(ends) if place < end), len(ends) - 1))
    return chosen
