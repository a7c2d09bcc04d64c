"""What a suite of an evaluation is: items, how one model is scored on them, and which figures follow.

A suite gives one row (``figures.Item``) a model and item, and a row for every item in any case: one that could not be scored
has an ``error``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from steps.lib.figures import Item, Measure
from steps.lib.work_ledger import Recall


@dataclass(frozen=True)
class Limits:
    """How a model is run."""

    max_tokens: int
    """Tokens of the longest answer."""
    window: int
    """Tokens of context when texts are scored."""
    batch_size: int
    """Rows of a forward pass; part of a report's fingerprint, since floating-point sums depend on it."""


@dataclass(frozen=True)
class Scored:
    """One model while it is scored."""

    name: str
    """Its name in the report."""
    model: Any
    """``inference.Later``, or a loaded model."""
    tokenizer: Any
    limits: Limits
    seed: int
    recall: Recall | None = None
    """Keeps the model's finished batches (``WorkLedger.about`` the model)."""


class Suite(Protocol):
    """One suite."""

    @property
    def name(self) -> str:
        """Its name in items and measures; unique in a report."""
        ...

    @property
    def measures(self) -> Sequence[Measure]:
        """The figures that follow from its items."""
        ...

    @property
    def prompts(self) -> Mapping[str, str]:
        """Item id -> what a model is asked; empty where it writes no answer."""
        ...

    def __len__(self) -> int:
        """Items."""
        ...

    def digest(self) -> str:
        """Of all that decides its items' scores: rows, settings and the scorer's version. Part of the report's fingerprint."""
        ...

    def score(self, who: Scored) -> list[Item]:
        """An item for each of its items."""
        ...
