"""The items behind a check, model against model: which differ, and how often two equal models would differ so much."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from steps.lib.errors import DataError
from steps.lib.figures import Item, Measure
from steps.lib.gate_terms import Test
from steps.lib.stats import SMALL
from steps.lib.stats_exact import mcnemar, sign_flip


@dataclass(frozen=True)
class Pairs:
    """Two models on the same items of one score."""

    differences: dict[str, float]
    """Item -> score of the model less that of the other; not of a ratio's denominator."""
    clusters: dict[str, str]
    """Item -> its cluster."""
    binary: bool
    """Every score is 0 or 1."""

    @classmethod
    def of(cls, items: Sequence[Item], what: Measure, model: str, against: str) -> Pairs:
        """Take the pairs of two models that were scored on the same items.

        Raises:
            DataError: an item failed for one of the two; the gate counts all.
        """
        totals: dict[str, dict[str, float]] = {model: defaultdict(float), against: defaultdict(float)}
        clusters: dict[str, str] = {}
        binary = True
        for item in items:
            if item.suite != what.suite or item.model not in totals:
                continue
            if item.error:
                raise DataError(
                    f"item {item.item_id!r} of suite {what.suite!r} failed for {item.model!r}: got {item.error!r}, "
                    "because scoring raised; evaluate again: the gate counts all"
                )
            value = item.scores.get(what.score)
            if value is not None:
                binary = binary and value in (0, 1)
                totals[item.model][item.item_id] += value
                clusters[item.item_id] = item.cluster_id
        differences = {name: totals[model][name] - totals[against][name] for name in clusters}
        return cls(differences, clusters, binary)

    @property
    def num_discordant(self) -> int:
        """Items on which the two differ."""
        return sum(value != 0 for value in self.differences.values())

    def p(self, test: Test, *, lower_is_better: bool) -> tuple[float, str]:
        """One-sided p-value that the model is better, and the test it is of.

        Few independent 0/1 items take McNemar's test; all others exchange whole clusters (``stats_exact.sign_flip``).
        """
        sign = -1 if lower_is_better else 1
        names = set(self.clusters.values())
        if self.binary and len(names) == len(self.clusters) < SMALL:
            better, worse = (sum(side * v > 0 for v in self.differences.values()) for side in (sign, -sign))
            return mcnemar(better, worse, midp=test == "midp", one_sided=True), f"McNemar, {test}"
        sums: dict[str, float] = defaultdict(float)
        for name, value in self.differences.items():
            sums[self.clusters[name]] += sign * value
        return sign_flip(list(sums.values())), "exchange of clusters"
