"""Shares of the sources in what is trained on: exact counts of rows, chosen by content, nothing repeated.

The shares of tokens of domain and general text are ``pretrain.replay``'s matter, which knows the tokenizer.

Source: largest remainders (Hamilton's method): the counts add up to the total, and none is off by a whole row.

Letters in shape comments: N rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from steps.lib.config import Section
from steps.lib.errors import DataError
from steps.lib.splits import scattered

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SALT = 0xD6E8FEB86659FD93
"""So that what is left out by a mix has nothing to do with what is held out by a split."""


class Mix(Section):
    """How much each source of a kind gives."""

    weights: dict[str, float] = Field(min_length=1)
    """Parts of each source, such as {wiki: 3, c4: 1}; every source of the kind is named, and 0 leaves one out."""
    rows: int | None = Field(default=None, ge=1)
    """Rows of the mix; null takes as many as the scarcest source allows."""

    @field_validator("weights")
    @classmethod
    def _positive(cls, weights: dict[str, float]) -> dict[str, float]:
        bad = [f"{name}: {weight}" for name, weight in weights.items() if weight < 0]
        if bad or not any(weights.values()):
            raise ValueError(f"weights must not be negative, nor all 0; got {', '.join(bad) or 'nothing but 0'}")
        return weights


def misnamed(sources: Collection[str], mix: Mix) -> list[str]:
    """Problems: sources without a weight, and weights without a source."""
    lacking = [
        f"mix has no weight for source {name}: got {', '.join(mix.weights)}, because every source of the kind needs one; "
        f"add it (0 leaves it out)"
        for name in sources
        if name not in mix.weights
    ]
    return lacking + [
        f"mix gives a weight to {name}: got sources {', '.join(sources) or 'none'}, because no source of the kind has that name; "
        "correct it"
        for name in mix.weights
        if name not in sources
    ]


def quotas(available: Mapping[str, int], mix: Mix) -> dict[str, int]:
    """Rows that each source gives.

    Raises:
        DataError: a source without a weight, a weight without a source, or sources with too few rows; all in one message.
    """
    problems = misnamed(available, mix) + [
        f"source {name} has too few rows for the mix: got 0 after cleaning, because every row of it was dropped; give more data, "
        "or weight 0 to leave it out"
        for name, count in available.items()
        if not count and mix.weights.get(name)
    ]
    if problems:
        raise DataError("\n".join(problems))
    parts = {name: Fraction(str(weight)) for name, weight in mix.weights.items()}
    total = mix.rows
    if total is None:
        total = min(int(available[name] * sum(parts.values()) / part) for name, part in parts.items() if part)
    counts = _apportioned(total, parts)
    short = [
        f"source {name} has too few rows for the mix: got {available[name]} after cleaning, {count} are needed, because it has "
        f"{float(parts[name] / sum(parts.values())):.2%} of {total} rows; give more data, or lower `rows` or its weight"
        for name, count in counts.items()
        if count > available[name]
    ]
    if short:
        raise DataError("\n".join(short))
    return counts


def mixed(sources: NDArray[np.int64], names: Sequence[str], digests: NDArray[np.uint64], mix: Mix) -> NDArray[np.bool_]:
    """(N,) whether each row stands in the mix; one that does not is dropped as ``mix_surplus``.

    The rows of a source are taken by the hash of their content: their order decides nothing.

    Args:
        sources: (N,) number of each row's source in ``names``.
        digests: (N,) content digests (``splits.marks``), each once in a source.
    """
    import numpy as np

    available = np.bincount(sources, minlength=len(names)).tolist()
    counts = quotas(dict(zip(names, available, strict=True)), mix)
    chosen = np.zeros(len(sources), np.bool_)
    for number, name in enumerate(names):
        own = np.flatnonzero(sources == number)
        order = np.lexsort((own, scattered(digests[own] ^ np.uint64(_SALT))))
        chosen[own[order[: counts[name]]]] = True
    return chosen


def _apportioned(total: int, parts: Mapping[str, Fraction]) -> dict[str, int]:
    """``total`` in whole numbers by parts; of equal remainders the one named first gets more."""
    whole = sum(parts.values())
    exact = {name: total * part / whole for name, part in parts.items()}
    counts = {name: int(share) for name, share in exact.items()}
    by_rest = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_rest[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
