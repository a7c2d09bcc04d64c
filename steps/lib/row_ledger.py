"""Rows in and out of a step, by reason. A step that loses a row without a word fails here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from steps.lib.errors import DataError


@dataclass
class RowLedger:
    """Rows in and out of a step. ``balance`` proves that nothing vanished.

    Rows are counted a kind ("prompts", "chats", ...): ``took`` what came in, ``gave`` what went out under another or the same
    name, ``dropped`` what stayed behind, by reason.
    """

    rows_in: Counter[str] = field(default_factory=Counter)
    rows_out: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, Counter[str]] = field(default_factory=dict)

    def took(self, kind: str, count: int = 1) -> None:
        """Count rows that came in."""
        self.rows_in[kind] += count

    def gave(self, kind: str, count: int = 1) -> None:
        """Count rows that went out."""
        self.rows_out[kind] += count

    def drop(self, kind: str, reason: str, count: int = 1) -> None:
        """Count rows that came in as ``kind`` and were not passed on."""
        self.reasons.setdefault(kind, Counter())[reason] += count

    def balance(self, flows: Mapping[str, Iterable[str]]) -> None:
        """Check that for each kind in: in = out + dropped.

        Args:
            flows: kind in -> kinds out that its rows became (one row in is one row out, or one drop).

        Raises:
            DataError: the sums differ; the step has a defect and must not publish.
        """
        for kind, outs in flows.items():
            out = sum(self.rows_out[name] for name in outs)
            lost = sum(self.reasons.get(kind, Counter()).values())
            if self.rows_in[kind] != out + lost:
                raise DataError(
                    f"row ledger of {kind} does not balance: got {self.rows_in[kind]} in, {out} out and {lost} dropped, "
                    "because a row vanished without a reason; report this as a defect of prefline"
                )

    def dump(self) -> dict[str, Any]:
        """The ledger as plain JSON."""
        return {
            "in": dict(sorted(self.rows_in.items())),
            "out": dict(sorted(self.rows_out.items())),
            "dropped": {kind: dict(sorted(reasons.items())) for kind, reasons in sorted(self.reasons.items())},
        }
