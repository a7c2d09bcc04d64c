"""Draws of tokens: each row's own, so that its answer does not hang on who is drawn beside it.

A token is where the running sum of probabilities passes a number in [0, 1); the number is made from the row's seed and the token's
place in the answer, and from nothing else.

Letters in shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from steps.lib.errors import TeacherError
from steps.lib.inference import Sampling

LIKELY = 256
"""Tokens among which a share of probability (top_p) is looked for before all are sorted."""


def chance(seed: int, place: int) -> float:
    """The number in [0, 1) that decides token ``place`` of the answer to a row with this seed."""
    digest = hashlib.sha256(f"{seed}/{place}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def choose(logits: Any, sampling: Sampling, chances: Sequence[float]) -> list[int]:
    """One token a row.

    Args:
        logits: (R, V).
        sampling: temperature and top_p; temperature 0 takes the likeliest token.
        chances: one number in [0, 1) a row; the token is where the running sum of probabilities passes it.
    """
    import torch

    if bool(logits.isnan().any()):
        raise TeacherError(
            "the model gives no numbers: got NaN among its logits, because its weights are damaged, or their numbers are "
            "too large for dtype; take float32, or put the checkpoint there again"
        )
    if sampling.temperature == 0:
        return list(logits.argmax(-1).tolist())
    shares = torch.softmax(logits.float() / sampling.temperature, dim=-1)  # (R, V)
    if sampling.top_p >= 1:
        return _passed(shares, chances)
    found: list[int] = []
    count = min(LIKELY, shares.shape[-1])
    best, tokens = shares.topk(count, dim=-1)  # largest first
    enough = (best.sum(-1) >= sampling.top_p).tolist()
    for row, number in enumerate(chances):
        top, names = (best[row], tokens[row]) if enough[row] else shares[row].sort(descending=True, stable=True)
        kept = top * ((top.cumsum(-1) - top) < sampling.top_p)  # the fewest tokens whose sum reaches top_p
        found.append(int(names[_passed(kept[None], [number])[0]]))
    return found


def _passed(shares: Any, chances: Sequence[float]) -> list[int]:
    """Where each row's running sum passes its number's part of the whole."""
    import torch

    sums = shares.double().cumsum(-1)
    wanted = torch.tensor(chances, dtype=sums.dtype, device=sums.device)[:, None] * sums[:, -1:]
    places = torch.searchsorted(sums, wanted, right=True)[:, 0]
    return list(places.clamp(max=shares.shape[-1] - 1).tolist())
