"""Scores as they come in: checked, as arrays, and numbered by cluster."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from steps.lib.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    Groups = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def floats(name: str, values: Sequence[float]) -> Floats:
    """Finite numbers (n,), at least one.

    Raises:
        DataError: none, or one that is not finite.
    """
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise DataError(
            f"{name} of a figure: got shape {array.shape}, because a suite is empty; "
            "leave the figure out or give the suite items"
        )
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array))[0])
        raise DataError(
            f"{name}[{where}] of a figure is not finite: got {array[where]}, because the item was not "
            "scored; score the item again, a figure over fewer items is another figure"
        )
    return array


def positive(name: str, values: Sequence[float]) -> Floats:
    """Denominators of a ratio (n,).

    Raises:
        DataError: as ``floats``, or one is not positive.
    """
    array = floats(name, values)
    if not (array > 0).all():
        raise DataError(
            f"{name} of a ratio must be positive: got {array.min()}, because a document is empty; drop the document"
        )
    return array


def same_length(a: Floats, b: Floats) -> None:
    """Refuse scores that cannot be paired.

    Raises:
        DataError: the two differ in length.
    """
    if len(a) != len(b):
        raise DataError(
            f"paired scores differ in length: got {len(a)} and {len(b)}, because the models were not "
            "scored on the same items; score both on the same suite"
        )


def groups(clusters: Sequence[Hashable] | None, n: int) -> Groups:
    """Cluster numbers (n,) from 0, in order of first appearance.

    Raises:
        DataError: not one cluster a value.
    """
    import numpy as np

    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise DataError(
            f"clusters differ in length from the scores: got {len(clusters)} and {n}; give one cluster an item"
        )
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)


def binary(values: Floats) -> bool:
    """Whether every score is 0 or 1."""
    return bool(((values == 0) | (values == 1)).all())


def bounded(values: Floats) -> bool:
    """Whether every score lies between 0 and 1."""
    return bool(((values >= 0) & (values <= 1)).all())


def constant(values: Floats) -> bool:
    """Whether all scores are equal."""
    return bool((values == values[0]).all())


def singletons(numbers: Groups) -> bool:
    """Whether every item is its own cluster."""
    return int(numbers.max()) + 1 == len(numbers)
