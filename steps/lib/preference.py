"""Preference pairs: three accuracies, which disagree, and the margin of the implicit reward against a named reference.

| score | holds |
|---|---|
| raw_logprob | log p(chosen) > log p(rejected) |
| length_norm | the same by token |
| implicit | log p / p_ref of chosen > of rejected (2305.18290, equation 5); implicit_margin: by how many nats, without beta |
| raw_tie, implicit_tie | both sides are exactly equal: counted as wrong, and counted apart |
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from steps.lib import chat, inference
from steps.lib.digests import digest_text
from steps.lib.figures import Item
from steps.lib.rows import Pair
from steps.lib.suites import Limits
from steps.lib.work_ledger import Recall

Side = tuple[list[int], list[int]]
"""Tokens of the prompt and of the answer."""


def encoded(tokenizer: Any, pairs: Sequence[Pair]) -> list[list[Side]]:
    """Both sides of each pair.

    Raises:
        DataError: pairs that cannot be encoded.
    """
    return chat.each("held-out pairs", ((row.id, partial(_sides, tokenizer, row)) for row in pairs))


def _sides(tokenizer: Any, row: Pair) -> list[Side]:
    return [chat.encode_pair(tokenizer, row.prompt, side) for side in (row.chosen, row.rejected)]


def items(
    name: str, model: Any, pairs: Sequence[Pair], both: list[list[Side]], limits: Limits, recall: Recall | None
) -> list[Item]:
    """An item a pair that fits the window; the caller counts the others as too long."""
    fits = [all(len(prompt) + len(answer) <= limits.window for prompt, answer in two) for two in both]
    pairs = [row for row, fit in zip(pairs, fits, strict=True) if fit]
    sides = [side for two, fit in zip(both, fits, strict=True) if fit for side in two]
    logps = inference.sequence_logps(model, sides, batch_size=limits.batch_size, recall=recall)
    found: list[Item] = []
    for i, row in enumerate(pairs):
        chosen, rejected = logps[2 * i], logps[2 * i + 1]
        lengths = len(sides[2 * i][1]), len(sides[2 * i + 1][1])
        scores = {
            "logp_chosen": round(chosen, 6),
            "logp_rejected": round(rejected, 6),
            "raw_logprob": float(chosen > rejected),
            "raw_tie": float(chosen == rejected),
            "length_norm": float(chosen / lengths[0] > rejected / lengths[1]),
        }
        found.append(
            Item(
                model=name,
                suite="pairs",
                item_id=row.id,
                cluster_id=row.prompt[-1].content[:200],
                lang=row.lang,
                slices=[f"source={row.source}"] if row.source else [],
                scores=scores,
                n_in=len(sides[2 * i][0]),
                n_out=sum(lengths),
                prompt_digest=digest_text(row.prompt[-1].content)[:16],
            )
        )
    return found


def add_implicit(found: list[Item], policy: str, reference: str) -> list[Item]:
    """Add the implicit-reward score to the pair items of ``policy``; it means something against its own reference only.

    beta is positive, so its value does not change which side is ahead: L(c) - L_ref(c) > L(r) - L_ref(r)
    (Rafailov et al. 2023, 2305.18290, equation 5). A tie counts as wrong.
    """
    base = {item.item_id: item.scores for item in found if item.suite == "pairs" and item.model == reference}
    result: list[Item] = []
    for item in found:
        if item.suite == "pairs" and item.model == policy and item.item_id in base:
            margin = sum(
                sign * (_number(item.scores[side]) - _number(base[item.item_id][side]))
                for side, sign in (("logp_chosen", 1), ("logp_rejected", -1))
            )
            scores = {
                **item.scores,
                "implicit_margin": round(margin, 6),
                "implicit": float(margin > 0),
                "implicit_tie": float(margin == 0),
            }
            item = item.model_copy(update={"scores": scores})
        result.append(item)
    return result


def ties(found: Sequence[Item], score: str) -> dict[str, int]:
    """Model -> pairs whose sides are exactly equal by a score (``raw_tie``, ``implicit_tie``); models without any are left out."""
    counts: dict[str, int] = {}
    for item in found:
        if item.suite == "pairs" and item.scores.get(score):
            counts[item.model] = counts.get(item.model, 0) + 1
    return counts


def _number(value: float | None) -> float:
    assert value is not None
    return value
