"""Batched inference with a loaded model: sampling, log-probabilities of given answers, bits of given texts.

Letters in shapes: B rows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    temperature: float
    """0 is greedy."""
    top_p: float
    max_tokens: int
    """Tokens of the longest answer."""


@dataclass(frozen=True)
class Answer:
    """A generated answer."""

    text: str
    tokens: int
    finished: bool
    """Whether the end of turn was generated; False means it was cut at max_tokens."""


def seed_of(*parts: object) -> int:
    """A seed that depends on its parts only (Python's ``hash`` differs from process to process)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of near lengths, longest first. The batches depend on the lengths only."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the tokenizer's end of sequence and the generation config's (Llama 3 has several)."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in (tokenizer.eos_token_id, *more) if token is not None})


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int,
    batch_size: int,
    done: Callable[[int, Answer], None] | None = None,
    check: Callable[[], None] | None = None,
) -> list[Answer]:
    """Answer each prompt once.

    Args:
        prompts: token ids, generation prompt included.
        seed: with it and the prompts of the batch, the draws are fixed; a batch does not depend on earlier ones.
        done: called with the prompt's index after each batch, for ledgers.
        check: called between batches; may raise to stop.

    Returns:
        Answers in the order of the prompts.
    """
    import torch

    answers: dict[int, Answer] = {}
    pad = tokenizer.pad_token_id
    ends = end_tokens(model, tokenizer)
    model.eval()
    for batch in batches([len(prompt) for prompt in prompts], batch_size):
        if check:
            check()
        width = max(len(prompts[i]) for i in batch)
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + list(prompts[i]) for i in batch], device=model.device)
        mask = torch.tensor(
            [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in batch], device=model.device
        )  # (B, T), padded on the left
        torch.manual_seed(seed_of(seed, [list(prompts[i]) for i in batch]))
        options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if sampling.temperature > 0:
            options = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        with torch.no_grad():
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=sampling.max_tokens,
                pad_token_id=pad,
                eos_token_id=ends,
                **options,
            )
        for row, i in enumerate(batch):
            new = output[row, width:].tolist()
            stops = [place for place, token in enumerate(new) if token in ends]
            finished = bool(stops)
            new = new[: stops[0]] if finished else new
            answers[i] = Answer(tokenizer.decode(new, skip_special_tokens=True), len(new), finished)
            if done:
                done(i, answers[i])
    return [answers[i] for i in range(len(prompts))]


def sequence_logps(model: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_size: int) -> list[float]:
    """Sum over the answer's tokens of log p(token | before), in nats, for each (prompt ids, answer ids)."""
    import torch

    result = [0.0] * len(rows)
    model.eval()
    for batch in batches([len(prompt) + len(answer) for prompt, answer in rows], batch_size):
        width = max(len(rows[i][0]) + len(rows[i][1]) for i in batch)
        ids = torch.zeros((len(batch), width), dtype=torch.long, device=model.device)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            tokens = [*rows[i][0], *rows[i][1]]
            ids[row, : len(tokens)] = torch.tensor(tokens, device=model.device)
            mask[row, : len(tokens)] = 1
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()  # (B, T - 1, V)
            logps = torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None])[..., 0]  # (B, T - 1)
        for row, i in enumerate(batch):
            start = len(rows[i][0]) - 1
            result[i] = float(logps[row, start : start + len(rows[i][1])].sum())
    return result


def text_nats(model: Any, tokenizer: Any, texts: Sequence[str], *, window: int, batch_size: int) -> list[float]:
    """-log p(text) of each text, in nats; divide by ln 2 and the UTF-8 bytes for bits per byte.

    A text longer than ``window`` tokens is scored window by window; each window starts after one separator token, so no token
    goes unscored.
    """
    separator = tokenizer.eos_token_id
    rows: list[tuple[list[int], list[int]]] = []
    owner: list[int] = []
    for i, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), window - 1):
            rows.append(([separator], ids[start : start + window - 1]))
            owner.append(i)
    nats = [0.0] * len(texts)
    for i, value in zip(owner, sequence_logps(model, rows, batch_size=batch_size), strict=True):
        nats[i] -= value
    return nats
