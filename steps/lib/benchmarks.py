"""What guards the training data: the texts of benchmark sets, read as they stand, and those of held-out rows.

A guard that cannot be read whole guards nothing, so nothing is skipped here: a file that is missing or empty, one bad line, a row
without a text, and the step stops before it cleans anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from steps.lib.errors import DataError
from steps.lib.lines import Unreadable
from steps.lib.overlap import Decontaminate, Guard, Item, contaminated
from steps.lib.quality import Finding
from steps.lib.rows import Chat, Message, Pair, Prompt, Row, Text, Thumb
from steps.lib.sources import Source, checked_files, records_of

MOST = 5
"""Bad lines of a file that are told."""


def benchmark_items(config: Decontaminate) -> list[Item]:
    """Every text of every benchmark, named ``source:line/column``.

    Raises:
        DataError: every set that is missing, empty or not readable to its last row, in one message.
    """
    items: list[Item] = []
    problems: list[str] = []
    for source in config.benchmarks:
        try:
            items += _read(source)
        except DataError as error:
            problems.append(str(error))
    if problems:
        head = (
            "" if len(problems) == 1 else f"{len(problems)} problems in the benchmarks that guard the training data:\n"
        )
        raise DataError(head + "\n".join(problems))
    return items


def heldout_items(rows: Iterable[Row], config: Decontaminate) -> list[Item]:
    """Texts of held-out rows: documents, and prompts by their user turns; with ``answers`` also what was answered.

    They are told by how much of them a row holds, not by one long stretch: two articles may quote the same sentence, and two
    prompts of one service begin alike.
    """
    texts: list[tuple[str, str]] = []
    for row in rows:
        if isinstance(row, Text):
            texts.append((row.id, row.text))
        elif isinstance(row, Prompt):
            texts.append((row.id, row.prompt))
            reference = json.loads(row.facts).get("reference") if config.answers else None
            texts += [(f"{row.id}/reference", reference)] if isinstance(reference, str) else []
        else:
            texts += [(row.id, turn.content) for turn in _turns(row)[0] if turn.role == "user"]
            if config.answers and isinstance(row, Pair):
                texts += [(f"{row.id}/{name}", getattr(row, name)[-1].content) for name in ("chosen", "rejected")]
    return [Item(name, text, runs=False) for name, text in texts]


def searched(row: Row) -> list[str]:
    """The texts of a training row that are searched for guarded ones: the document; each turn but the system's.

    The system turn is the user's own wording, and the same in thousands of rows.
    """
    if isinstance(row, Text):
        return [row.text]
    if isinstance(row, Prompt):
        return [row.prompt]
    asked, answered = _turns(row)
    return [turn.content for turn in (*asked, *answered) if turn.role != "system"]


def contaminated_rows(rows: Sequence[Row], table: Guard, config: Decontaminate) -> list[Finding | None]:
    """For each row, what guarded item the first of its texts with one holds; see ``contaminated``."""
    texts = [searched(row) for row in rows]
    found = iter(contaminated([text for own in texts for text in own], table, config))
    hits = [[next(found) for _ in own] for own in texts]
    return [next((hit for hit in own if hit), None) for own in hits]


def _turns(row: Row) -> tuple[list[Message], list[Message]]:
    """The turns of a row before what was answered (all of a chat's), and the answers."""
    if isinstance(row, Chat):
        return row.messages, []
    if isinstance(row, Pair):
        return row.prompt, [*row.chosen, *row.rejected]
    return (row.prompt, row.completion) if isinstance(row, Thumb) else ([], [])


def _read(source: Source) -> list[Item]:
    """The texts of one set."""
    checked_files(source)
    items: list[Item] = []
    bad: list[str] = []
    rows = 0
    for number, line, record in records_of(source):
        rows += 1
        if isinstance(record, Unreadable):
            bad.append(f"line {line}: {record.detail}")
            continue
        strange = [theirs for theirs in source.columns.values() if not isinstance(record, dict) or theirs not in record]
        if strange:
            bad.append(f"line {line}: no column {', '.join(strange)}, which `columns` names")
            continue
        chosen = {name: record[name] for name in source.columns.values()} if source.columns else record
        texts = [(place, text) for place, text in _texts(chosen) if text.strip()]
        if not texts:
            bad.append(f"line {line}: no text in it")
        here = f"{source.name}:{number}:{line}" if number else f"{source.name}:{line}"
        items += [Item(f"{here}{place}", text) for place, text in texts]
    if bad:
        more = f" and {len(bad) - MOST} more" if len(bad) > MOST else ""
        raise DataError(
            f"benchmark {source.name} ({source.where}) is not readable whole: got {'; '.join(bad[:MOST])}{more}, because what is "
            "not read would not guard the training data; mend these rows, or take them out"
        )
    if not rows:
        raise DataError(
            f"benchmark {source.name} ({source.where}) is empty: got no row, because it was configured to guard the training data; "
            "give a file with rows, or take it out of `clean.decontaminate.benchmarks`"
        )
    return items


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a record, with its place."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, f"{place}/{name}")
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{place}/{number}")
