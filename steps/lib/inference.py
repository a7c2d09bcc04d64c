"""Batched inference: sampling, log-probabilities of given answers, bits of given texts.

What a batch gives depends on the model and the batch alone, so a finished batch can be kept: with ``recall``
(``ledger.WorkLedger``), a continued run computes only the batches that are missing.

Letters in shapes: B rows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from steps.lib import model_files, models, runtime
from steps.lib.digests import digest_folder, digest_text
from steps.lib.streaming import Pieces
from steps.lib.work_ledger import Recall


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


@dataclass(frozen=True)
class Later:
    """A model that is loaded when a batch first needs it; stands wherever a loaded model does."""

    load: Callable[[], Any]


def identity(artifact: Path) -> str:
    """Digest of what makes a model: base weights, tokenizer, chat template; the adapter's weights and settings."""
    parts = [model_files.model_digest(models.model_folder(artifact))]
    if (artifact / "adapter").exists():
        settings = json.loads((artifact / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
        settings.pop("base_model_name_or_path", None)  # a path; the base stands above by its content
        parts += [digest_folder(artifact / "adapter", model_files.WEIGHTS), json.dumps(settings, sort_keys=True)]
    return digest_text("\n".join(parts))


def conditions(precision: str) -> dict[str, str]:
    """What else a batch's numbers depend on: precision, kind of device, libraries."""
    libraries = ("torch", "transformers", "peft", "tokenizers")
    found = {name: version for name, version in runtime.versions().items() if name in libraries}
    return {"precision": precision, "device": models.device().partition(":")[0], **found}


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
    recall: Recall | None = None,
    show: Callable[[str], None] | None = None,
) -> list[Answer]:
    """Answer each prompt once.

    Args:
        model: a loaded model, or ``Later``.
        prompts: token ids, generation prompt included.
        seed: with it and the prompts of the batch, the draws are fixed; a batch does not depend on earlier ones.
        recall: keeps finished batches.
        show: gets the pieces of an answer as they come (``streaming.Pieces``); for one prompt alone.

    Returns:
        Answers in the order of the prompts.
    """
    answers: dict[int, Answer] = {}
    for batch in batches([len(prompt) for prompt in prompts], batch_size):
        asked = [list(prompts[i]) for i in batch]
        content = {"kind": "answers", "prompts": asked, "seed": seed, **vars(sampling)}
        found = _kept(recall, content, partial(_answers, model, tokenizer, asked, sampling, seed_of(seed, asked), show))
        answers |= {i: Answer(*answer) for i, answer in zip(batch, found, strict=True)}
    return [answers[i] for i in range(len(prompts))]


def sequence_logps(
    model: Any,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_size: int,
    recall: Recall | None = None,
) -> list[float]:
    """Sum over the answer's tokens of log p(token | before), in nats, for each (prompt ids, answer ids)."""
    result = [0.0] * len(rows)
    for batch in batches([len(prompt) + len(answer) for prompt, answer in rows], batch_size):
        scored = [(list(rows[i][0]), list(rows[i][1])) for i in batch]
        content = {"kind": "log-probabilities", "rows": scored}
        for i, value in zip(batch, _kept(recall, content, partial(_logps, model, scored)), strict=True):
            result[i] = value
    return result


def text_nats(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    window: int,
    batch_size: int,
    recall: Recall | None = None,
) -> list[float]:
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
    for i, value in zip(owner, sequence_logps(model, rows, batch_size=batch_size, recall=recall), strict=True):
        nats[i] -= value
    return nats


def _kept(recall: Recall | None, content: Mapping[str, Any], compute: Callable[[], list[Any]]) -> list[Any]:
    found: list[Any] = recall(content, compute) if recall else compute()
    return found


def _ready(model: Any) -> Any:
    loaded = model.load() if isinstance(model, Later) else model
    loaded.eval()
    return loaded


def _answers(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    sampling: Sampling,
    seed: int,
    show: Callable[[str], None] | None = None,
) -> list[tuple[str, int, bool]]:
    """Text, tokens and whether it was finished, of the answer to each prompt of one batch."""
    drawn, ends = _drawn(model, tokenizer, prompts, sampling, seed, show)
    answers: list[tuple[str, int, bool]] = []
    for said in drawn:
        finished = bool(said) and said[-1] in ends
        kept = said[:-1] if finished else said
        answers.append((tokenizer.decode(kept, skip_special_tokens=True), len(kept), finished))
    return answers


def sampled_tokens(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int,
    batch_size: int,
    recall: Recall | None = None,
) -> list[list[int]]:
    """As ``generate``, but the tokens of each answer as they were drawn, the end of turn included where it was."""
    found: dict[int, list[int]] = {}
    for batch in batches([len(prompt) for prompt in prompts], batch_size):
        asked = [list(prompts[i]) for i in batch]
        content = {"kind": "answer tokens", "prompts": asked, "seed": seed, **vars(sampling)}
        drawn = _kept(recall, content, partial(_only_drawn, model, tokenizer, asked, sampling, seed_of(seed, asked)))
        found |= dict(zip(batch, drawn, strict=True))
    return [found[i] for i in range(len(prompts))]


def _only_drawn(model: Any, tokenizer: Any, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[list[int]]:
    return _drawn(model, tokenizer, prompts, sampling, seed)[0]


def _drawn(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    sampling: Sampling,
    seed: int,
    show: Callable[[str], None] | None = None,
) -> tuple[list[list[int]], list[int]]:
    """Tokens of the answer to each prompt of one batch, through the end of turn; and the tokens that end one."""
    import torch

    model = _ready(model)
    pad, ends = tokenizer.pad_token_id, end_tokens(model, tokenizer)
    model, given, width = left_padded(model, prompts, pad)
    options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.temperature > 0:
        options = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    if show:
        options["streamer"] = Pieces(tokenizer, ends, show)
    torch.manual_seed(seed)
    with torch.no_grad():
        output = model.generate(
            **given,
            max_new_tokens=sampling.max_tokens,
            pad_token_id=pad,
            eos_token_id=ends,
            **options,
        )
    drawn: list[list[int]] = []
    for new in output[:, width:].tolist():
        stops = [place for place, token in enumerate(new) if token in ends]
        drawn.append(new[: stops[0] + 1] if stops else new)
    return drawn, ends


def left_padded(model: Any, prompts: list[list[int]], pad: int) -> tuple[Any, dict[str, Any], int]:
    """What generates, its input with prompts padded on the left, and how many tokens of its output are not the answer's."""
    import torch

    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    rows = zip(padding, prompts, strict=True)
    ids = torch.tensor([[pad] * gap + prompt for gap, prompt in rows], device=model.device)
    mask = torch.tensor([[0] * gap + [1] * (width - gap) for gap in padding], device=model.device)  # (B, T)
    kind = model.active_peft_config.peft_type if hasattr(model, "peft_config") else ""
    if kind not in ("PROMPT_TUNING", "P_TUNING"):
        return model, {"input_ids": ids, "attention_mask": mask}, width
    # PEFT would put the learnt prompt before the padding, so that an answer would depend on its neighbours' lengths
    learnt = model.get_prompt(batch_size=len(ids))  # (B, P, H)
    words = model.word_embeddings(ids)  # (B, T, H)
    learnt = learnt.to(words.dtype)
    inputs = [torch.cat([w[:gap], p, w[gap:]]) for gap, p, w in zip(padding, learnt, words, strict=True)]
    whole = torch.cat([mask, mask.new_ones(len(ids), learnt.shape[1])], dim=1)  # padding stays on the left
    return model.get_base_model(), {"inputs_embeds": torch.stack(inputs), "attention_mask": whole}, 0


def _logps(model: Any, rows: list[tuple[list[int], list[int]]]) -> list[float]:
    """``sequence_logps`` of one batch."""
    import torch

    model = _ready(model)
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long, device=model.device)
    mask = torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(rows):
        tokens = [*prompt, *answer]
        ids[row, : len(tokens)] = torch.tensor(tokens, device=model.device)
        mask[row, : len(tokens)] = 1
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits  # (B, T, V); a learnt prompt's come before
        logits = logits[:, -width:][:, :-1].float()  # (B, T - 1, V)
        logps = torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None])[..., 0]  # (B, T - 1)
    starts = [len(prompt) - 1 for prompt, _ in rows]
    return [
        float(logps[row, start : start + len(answer)].sum())
        for row, (start, (_, answer)) in enumerate(zip(starts, rows, strict=True))
    ]
