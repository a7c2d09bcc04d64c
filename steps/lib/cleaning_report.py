"""The report of clean: one self-contained page, the same bytes for the same rows. Its bars are HTML, so nothing is loaded to draw.

It shows rows by kind and source, why rows were dropped, lengths and languages before and after, and examples of each reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.lib.dropped_rows import Shown, visible
from steps.lib.facts import LANGS
from steps.lib.row_ledger import RowLedger
from steps.lib.row_tables import Rows
from steps.lib.rows import Dropped
from steps.lib.sifted import Written, by_source
from steps.lib.splits import Stratum

TEXT = 240
"""Characters of an example."""
EDGES = (0, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
"""Characters at which a bar of the lengths begins."""
COLOURS = ("#d55e00", "#e69f00", "#cc79a7", "#56b4e9", "#009e73")
"""Of the most frequent reasons; the others share grey (see ``row_plots``)."""


@dataclass
class Kind:
    """What the page shows of a kind."""

    name: str
    read: int
    left: int
    lengths: list[tuple[str, int, int]] = field(default_factory=list)
    """(from so many characters, rows read, rows left)."""
    langs: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def most(self) -> int:
        """Rows of the longest bar."""
        return max((max(before, after) for _, before, after in self.lengths), default=1) or 1


def write(
    path: Path,
    tables: Sequence[Rows],
    ledger: RowLedger,
    examples: Mapping[str, Sequence[Dropped]],
    warned: Sequence[str],
    mended: Mapping[str, int],
    strata: Sequence[tuple[str, Stratum]],
) -> None:
    """Write the page.

    Args:
        path: of report.html.
        tables: of every kind.
        ledger: of the step.
        examples: reason -> some rows that were dropped for it.
        warned: sentences of warning.
        mended: repair of characters or type of personal data -> how many.
        strata: (kind, what was held out of one of its sources in one language).
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    sources = [entry for rows in tables if rows.shards for entry in by_source(rows)]
    totals: Counter[str] = Counter()
    for reasons in ledger.reasons.values():
        totals.update(reasons)
    ranked = sorted(totals, key=lambda reason: (-totals[reason], reason))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["visible"] = visible
    page = environment.get_template("cleaning_report.html.jinja").render(
        rows_in=sum(entry.rows_in for entry in sources),
        kept=sum(entry.kept for entry in sources),
        held=sum(entry.held for entry in sources),
        dropped=sum(totals.values()),
        sources=[(entry, _bar(entry, ranked)) for entry in sources],
        colours=list(zip(ranked, COLOURS, strict=False)),
        others=len(ranked) > len(COLOURS),
        reasons=[(reason, totals[reason], _kinds(reason, ledger)) for reason in ranked],
        kinds=[_kind(rows) for rows in tables if len(rows)],
        examples=[(reason, [Shown.of(row, TEXT) for row in examples.get(reason, ())]) for reason in ranked],
        warned=warned,
        mended=list(mended.items()),
        strata=[(kind, one) for kind, one in strata if one.rows],
    )
    path.write_text(page, encoding="utf-8")


def _bar(entry: Written, ranked: Sequence[str]) -> list[tuple[str, str, float, int]]:
    """(reason, colour, per cent of the rows in, rows) of each piece of a source's bar."""
    total = max(entry.rows_in, 1)
    named = dict(zip(ranked, COLOURS, strict=False))
    pieces: list[tuple[str, str, int]] = [("kept", "#b9d3c6", entry.kept), ("held out", "#7f9c8e", entry.held)]
    pieces += [(reason, colour, entry.dropped[reason]) for reason, colour in named.items()]
    pieces.append(("other reasons", "#9aa5b1", sum(n for reason, n in entry.dropped.items() if reason not in named)))
    return [(reason, colour, round(100 * count / total, 3), count) for reason, colour, count in pieces if count]


def _kinds(reason: str, ledger: RowLedger) -> str:
    counts = {kind: reasons[reason] for kind, reasons in sorted(ledger.reasons.items()) if reasons.get(reason)}
    return ", ".join(f"{kind} {count:,} ({count / ledger.rows_in[kind]:.1%})" for kind, count in counts.items())


def _kind(rows: Rows) -> Kind:
    import numpy as np

    chars, lang, alive = rows.facts["chars"], rows.facts["lang"], rows.alive
    place = np.searchsorted(EDGES, chars, "right") - 1
    both: list[Any] = [np.bincount(some, minlength=len(EDGES)).tolist() for some in (place, place[alive])]
    shown = [number for number, count in enumerate(both[0]) if count]
    span = range(shown[0], shown[-1] + 1) if shown else range(0)
    langs: list[Any] = [np.bincount(some, minlength=len(LANGS)).tolist() for some in (lang, lang[alive])]
    return Kind(
        rows.name,
        len(rows),
        int(alive.sum()),
        [(f"{EDGES[number]:,}", both[0][number], both[1][number]) for number in span],
        [(name, langs[0][number], langs[1][number]) for number, name in enumerate(LANGS) if langs[0][number]],
    )
