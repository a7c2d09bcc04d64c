"""Samples of the policy: which prompts it answers, and every answer in a ledger of its own.

The ledger knows a batch by its content (weights, tokenizer, template, sampling, prompts, seed, libraries). So it does not matter
who scores the samples, how, or how often: they are drawn once, and those of finished artifacts beside this one count, too.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from steps.lib import chat, inference, models, runtime, stopping
from steps.lib.earlier import ledgers_beside
from steps.lib.ledger import Reply, RequestLedger
from steps.lib.rows import Candidate, Chat
from steps.lib.step import Context

LEDGER = "samples.sqlite"


@dataclass(frozen=True)
class Drawn:
    """Prompts, and ``samples`` answers to each in the same order."""

    chats: list[Chat]
    answers: list[list[Reply]]
    seconds: float
    computed: int
    """Samples that this run drew; the others were on record."""

    def __iter__(self) -> Any:
        return iter(zip(self.chats, self.answers, strict=True))

    def candidates(self) -> list[Candidate]:
        """Every sample as a row."""
        return [
            Candidate(
                id=f"{row.id}-sample{k}",
                lang=row.lang,
                source=row.source,
                prompt=asked(row),
                answer=reply.text,
                teacher="policy",
                sample=k,
                flags=["truncated"] if reply.finish_reason == "length" else [],
            )
            for row, replies in self
            for k, reply in enumerate(replies)
        ]


def asked(row: Chat) -> str:
    """What the user asked."""
    return next(turn.content for turn in row.messages if turn.role == "user")


def prompts_of(chats: Sequence[Chat], count: int, seed: int) -> list[Chat]:
    """``count`` prompts, drawn with the seed, in their order: one chat a prompt, the first. Rules read one user turn, so longer
    conversations are not sampled."""
    seen: dict[str, Chat] = {}
    for row in chats:
        turns = [turn for turn in row.messages if turn.role != "system"]
        if [turn.role for turn in turns] == ["user", "assistant"]:
            seen.setdefault(turns[0].content, row)
    fit = list(seen.values())
    order = list(range(len(fit)))
    random.Random(seed).shuffle(order)
    return [fit[i] for i in sorted(order[:count])]


def draw(
    policy: Path,
    chats: list[Chat],
    drawing: inference.Sampling,
    *,
    samples: int,
    batch_size: int,
    out: Path,
    context: Context,
) -> Drawn:
    """``samples`` answers a prompt, in the prompts' order.

    A batch whose answers are all in the ledger is not sampled again; one that was cut off is drawn again, the same.

    Args:
        policy: artifact.
        chats: whose prompts are answered.
        drawing: how answers are drawn.
        samples: answers a prompt.
        batch_size: prompts at once.
        out: gets the ledger, as ``record/samples.sqlite``.
        context: of the step.

    Raises:
        Resumable: a signal came; finished batches are kept.
    """
    runtime.seed_torch(context.seed)
    tokenizer = models.load_tokenizer(models.model_folder(policy))
    prompts = chat.each("chats", ((row.id, partial(chat.encode_prompt, tokenizer, row.messages[:-1])) for row in chats))
    identity = {"policy": inference.identity(policy), **inference.conditions("auto"), **vars(drawing)}
    jobs = [
        (sample, batch)
        for sample in range(samples)
        for batch in inference.batches([len(prompt) for prompt in prompts], batch_size)
    ]
    answers: list[list[Reply | None]] = [[None] * samples for _ in chats]
    timer, computed = runtime.Timer(), 0
    model: Any = None
    with stopping.stop_signals() as stop, _ledger(context.resume, context.log) as ledger:
        for sample, batch in context.progress(jobs, "sampling", len(jobs)):
            stop.check()
            seed = inference.seed_of(context.seed, sample)
            drawn = RequestLedger.key(**identity, prompts=[prompts[i] for i in batch], seed=seed)
            keys = [RequestLedger.key(batch=drawn, place=place) for place in range(len(batch))]
            held = ledger.get_many(keys)
            known = [held.get(key) for key in keys]
            if not all(known):
                model = model or models.load_merged(policy)
                new = inference.generate(
                    model, tokenizer, [prompts[i] for i in batch], drawing, seed=seed, batch_size=len(batch)
                )
                known = [Reply(a.text, "stop" if a.finished else "length", tokens_out=a.tokens) for a in new]
                computed += len(known)
                for key, reply, i in zip(keys, known, batch, strict=True):
                    assert reply is not None
                    ledger.put(key, reply, source=chats[i].id)
            for i, reply in zip(batch, known, strict=True):
                answers[i][sample] = reply
        (out / "record").mkdir(exist_ok=True)
        ledger.save(out / "record" / LEDGER)
    stop.check()
    done = [[reply for reply in row if reply is not None] for row in answers]
    return Drawn(chats, done, timer.seconds, computed)


def _ledger(resume: Path, log: logging.Logger) -> RequestLedger:
    return RequestLedger(resume / LEDGER, log, ledgers_beside(resume, LEDGER))
