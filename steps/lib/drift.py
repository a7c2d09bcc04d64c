"""How far a model went from a named, frozen reference: two divergences, one of each direction.

* ``kl_ref``: mean over the tokens of fixed held-out answers of sum_v p_ref(v) log(p_ref(v) / p(v)), over the whole vocabulary.
* ``kl_sampled``: mean over answers y that the model itself draws of log p(y) - log p_ref(y): drift where it really goes. An
  estimate without bias; a single answer's value may be negative (Schulman 2020, "Approximating KL Divergence", k1).

Letters in shapes: B rows, T positions of one piece, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from steps.lib import inference
from steps.lib.figures import Item, Measure
from steps.lib.inference import Later, Sampling
from steps.lib.rows import Lang
from steps.lib.work_ledger import Recall

SUITE = "drift"
FLOATS = 1 << 28
"""Numbers of one model's distributions that are held at once (1 GiB); more positions are done piece by piece."""
MEASURES = (
    Measure(
        name="kl_ref",
        label_en="KL of the reference from it",
        label_zh="参考模型到它的 KL",
        unit="nats/token",
        better="lower",
        suite=SUITE,
        score="kl_ref",
        weight="kl_ref_tokens",
        method="sum over the vocabulary of p_ref log(p_ref / p), on held-out answers",
    ),
    Measure(
        name="kl_sampled",
        label_en="KL from the reference, own answers",
        label_zh="自身回答上的 KL",
        unit="nats/answer",
        better="lower",
        suite=SUITE,
        score="kl_sampled",
        method="log p - log p_ref of answers that it draws (temperature 1)",
    ),
)


@dataclass(frozen=True)
class Row:
    """One prompt, and a fixed answer to it where there is one, as tokens."""

    id: str
    lang: Lang
    source: str
    prompt: list[int]
    answer: list[int] | None = None


@dataclass(frozen=True)
class Two:
    """A model and its reference; both are asked for in turn, since they may share their base."""

    model: Callable[[], Any]
    reference: Callable[[], Any]


def divergences(
    two: Two,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_size: int,
    recall: Recall | None = None,
    floats: int = FLOATS,
) -> list[float]:
    """Sum over the answer's positions of KL(reference || model), in nats, for each (prompt ids, answer ids).

    Args:
        floats: numbers of one model's distributions that are held at once, at most.
    """
    result = [0.0] * len(rows)
    for batch in inference.batches([len(prompt) + len(answer) for prompt, answer in rows], batch_size):
        scored = [(list(rows[i][0]), list(rows[i][1])) for i in batch]
        content = {"kind": "divergences", "rows": scored}

        def compute(scored: list[tuple[list[int], list[int]]] = scored) -> list[float]:
            return _divergences(two, scored, floats)

        for i, value in zip(batch, recall(content, compute) if recall else compute(), strict=True):
            result[i] = value
    return result


def _divergences(two: Two, rows: list[tuple[list[int], list[int]]], floats: int) -> list[float]:
    import torch

    sums = [0.0] * len(rows)
    first = min(len(prompt) for prompt, _ in rows) - 1
    last = max(len(prompt) + len(answer) for prompt, answer in rows) - 1  # the position behind needs no prediction
    size = max(1, floats // (len(rows) * two.reference().config.vocab_size))
    for start in range(first, last, size):
        stop = min(start + size, last)
        with torch.no_grad():
            old = torch.log_softmax(_logits(two.reference(), rows, start, stop).float(), dim=-1)  # (B, T, V)
            new = torch.log_softmax(_logits(two.model(), rows, start, stop).float(), dim=-1)
            kl = (old.exp() * (old - new)).sum(-1).double().cpu()  # (B, T)
        for number, (prompt, answer) in enumerate(rows):
            low, high = max(start, len(prompt) - 1), min(stop, len(prompt) + len(answer) - 1)
            if low < high:
                sums[number] += float(kl[number, low - start : high - start].sum())
    return sums


def _logits(model: Any, rows: list[tuple[list[int], list[int]]], start: int, stop: int) -> Any:
    """(B, T, V) logits at the positions from start to stop, rows padded on the right."""
    import torch

    model.eval()
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long, device=model.device)
    mask = torch.zeros_like(ids)
    for number, (prompt, answer) in enumerate(rows):
        tokens = [*prompt, *answer]
        ids[number, : len(tokens)] = torch.tensor(tokens, device=model.device)
        mask[number, : len(tokens)] = 1
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "logits_to_keep" not in inspect.signature(bare.forward).parameters:
        logits = model(input_ids=ids, attention_mask=mask).logits
        return logits[:, start - width : stop - width or None]
    places = torch.arange(
        start - width, stop - width, device=model.device
    )  # from the end: a learnt prompt comes before
    return model(input_ids=ids, attention_mask=mask, logits_to_keep=places).logits


def score(
    name: str,
    two: Two,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    window: int,
    batch_size: int,
    sampled: int,
    seed: int,
    recall: Recall | None = None,
) -> list[Item]:
    """An item a row.

    Args:
        name: of the model.
        rows: those whose prompt and answer do not fit ``window`` tokens have no ``kl_ref``.
        sampled: tokens of the longest answer that is drawn; 0: none is drawn.
        recall: keeps finished batches; must know both models.
    """
    fixed = [i for i, row in enumerate(rows) if row.answer and len(row.prompt) + len(row.answer) <= window]
    given = [(rows[i].prompt, rows[i].answer or []) for i in fixed]
    sums = dict(zip(fixed, divergences(two, given, batch_size=batch_size, recall=recall), strict=True))
    drawn: dict[int, tuple[int, float]] = {}
    free = [i for i, row in enumerate(rows) if not row.answer] if sampled else []
    if free:
        prompts = [rows[i].prompt for i in free]
        drawing = Sampling(1.0, 1.0, sampled)
        answers = inference.sampled_tokens(
            Later(two.model), tokenizer, prompts, drawing, seed=seed, batch_size=batch_size, recall=recall
        )
        said = list(zip(prompts, answers, strict=True))
        own, other = (
            inference.sequence_logps(Later(load), said, batch_size=batch_size, recall=_of(recall, which))
            for load, which in ((two.model, "model"), (two.reference, "reference"))
        )
        drawn = {i: (len(answers[n]), own[n] - other[n]) for n, i in enumerate(free)}
    items: list[Item] = []
    for i, row in enumerate(rows):
        scores: dict[str, float | None] = {}
        if i in sums:
            scores = {"kl_ref": round(sums[i], 6), "kl_ref_tokens": float(len(row.answer or ()))}
        if i in drawn:
            scores = {"kl_sampled": round(drawn[i][1], 6)}
        items.append(
            Item(
                model=name,
                suite=SUITE,
                item_id=row.id,
                cluster_id=row.id,
                lang=row.lang,
                slices=[f"source={row.source}"] if row.source else [],
                scores=scores,
                n_in=len(row.prompt),
                n_out=drawn[i][0] if i in drawn else len(row.answer or ()),
            )
        )
    return items


def _of(recall: Recall | None, which: str) -> Recall | None:
    """Batches of one of the two: log-probabilities of the same rows differ between them."""
    if recall is None:
        return None
    return lambda content, compute: recall({**content, "of": which}, compute)
