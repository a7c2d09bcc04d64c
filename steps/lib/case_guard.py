"""Keeps held-out cases out of training data: what clean looks for, and what it does when it cannot look.

Every case of a held-out cluster guards, also one that cannot be measured with. Rows go that are alike in characters; the passes of
held-out rows and benchmarks (near-copies by tokens, contained texts) run over the same texts. Without the file there is no clean.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from steps.lib.case_choice import common_answers, guard_texts
from steps.lib.case_clusters import HOLDOUT, asked
from steps.lib.case_grams import Grams
from steps.lib.digests import digest_text
from steps.lib.overlap import Item
from steps.lib.row_tables import Found, Rows
from steps.lib.rows import BadCase, Text, read_parquet
from steps.lib.sieve import Sieve

if TYPE_CHECKING:
    from steps.lib.row_tables import Places


@dataclass(frozen=True)
class CaseGuard:
    """Held-out cases, as far as other rows are searched for them."""

    cases: tuple[BadCase, ...] = ()
    common: frozenset[str] = frozenset()
    """Good answers that cases of the training side have too, folded; they are no sign of a held-out case."""

    @classmethod
    def read(cls, folder: Path | None) -> CaseGuard:
        """The held-out side of an artifact of the step badcases; none without one.

        Raises:
            DataError: the artifact's cases cannot be read.
        """
        if folder is None:
            return cls()
        rows = read_parquet(folder / "cases.parquet", BadCase)
        return cls(tuple(case for case in rows if case.split == HOLDOUT and case.prompt), common_answers(rows))

    @property
    def items(self) -> list[Item]:
        """Texts that may stand in no row."""
        texts = [(case.id, n, text) for case in self.cases for n, text in enumerate(guard_texts(case, self.common))]
        return [Item(f"case:{name}/{number}", text, runs=False) for name, number, text in texts]

    @cached_property
    def _digest(self) -> str:
        return digest_text(json.dumps([[case.id, asked(case)] for case in self.cases], ensure_ascii=False))

    @cached_property
    def _grams(self) -> Grams:
        return Grams([asked(case) for case in self.cases])

    def sift(self, sieve: Sieve, rows: Rows, threshold: float) -> None:
        """Drop the rows whose user turns are alike in characters. Documents are told by what they contain, not here."""
        import numpy as np

        if not self.cases or rows.row is Text:
            return
        places = rows.kept()
        content = {
            "pass": "near_cases",
            "kind": rows.name,
            "threshold": threshold,
            "rows": rows.digest(places),
            "cases": self._digest,
        }
        found: Sequence[tuple[int, int, float]] = sieve.recall(content, lambda: self._near(rows, places, threshold))

        def detail(number: int) -> str:
            _, case, score = found[number]
            return json.dumps(
                {"heldout_id": f"case:{self.cases[case].id}", "jaccard": round(score, 4)}, ensure_ascii=False
            )

        numbers = np.array([one[0] for one in found], np.int64)
        sieve.sift(rows, Found(places[numbers], ["near_heldout"], detail))

    def _near(self, rows: Rows, places: Places, threshold: float) -> list[tuple[int, int, float]]:
        """(number in ``places``, case that is most like it, similarity) of each row that goes."""
        hits: list[tuple[int, int, float]] = []
        number = 0
        for batch in rows.text_batches(places, "asked"):
            for text in batch:
                if near := self._grams.near(text, threshold):
                    hits.append((number, *near[0]))
                number += 1
        return hits
