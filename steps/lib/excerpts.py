"""A few prompts with all their answers, out of what ``generate`` wrote; row groups are read one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from steps.lib.errors import DataError
from steps.lib.rows import Candidate, Dropped


@dataclass(frozen=True)
class Shown:
    """One answer, or what came in its place."""

    id: str
    teacher: str
    text: str
    """The answer; of a dropped one, the reply as it came or why none came."""
    flags: tuple[str, ...]
    """Of a dropped one: its reason."""
    agreement: float | None = None
    thought: str = ""
    provenance: str = "{}"
    evidence: str = "{}"

    def page(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "id": self.id,
            "teacher": self.teacher,
            "answer": self.text,
            "flags": list(self.flags),
            "agreement": self.agreement,
            **({"thought": self.thought} if self.thought else {}),
            "provenance": json.loads(self.provenance),
            "evidence": json.loads(self.evidence),
        }


@dataclass(frozen=True)
class Excerpt:
    """A prompt and its answers."""

    prompt: str
    lang: str
    source: str
    answers: tuple[Shown, ...]

    def page(self) -> dict[str, Any]:
        """As plain JSON."""
        answers = [answer.page() for answer in self.answers]
        return {"prompt": self.prompt, "lang": self.lang, "source": self.source, "answers": answers}


def excerpts(folder: Path, number: int, *, flag: str | None = None, dropped: bool = False) -> tuple[list[Excerpt], int]:
    """Prompts spread evenly over all that match, in their order, and how many match.

    Args:
        folder: of an artifact of generate.
        number: prompts, at most.
        flag: only those with an answer that has this flag (of dropped ones: that was dropped for this reason).
        dropped: of dropped.parquet in place of candidates.parquet.

    Raises:
        DataError: the file is missing or cannot be read, or it was written by a version that kept other columns.
    """
    path = folder / ("dropped.parquet" if dropped else "candidates.parquet")
    marks = "reason" if dropped else "flags"
    groups = _groups(path, "row" if dropped else "prompt", marks, _prompt_of if dropped else str)
    matching = [(first, last) for first, last, seen in groups if flag is None or flag in seen]
    step = len(matching) / number if number else 0
    chosen = matching if len(matching) <= number else [matching[int((place + 0.5) * step)] for place in range(number)]
    rows = list(_rows(path, chosen))
    found = []
    for group in rows:
        answers = tuple(_dropped(row) if dropped else _candidate(row) for row in group)
        prompt = _prompt_of(group[0]["row"]) if dropped else group[0]["prompt"]
        found.append(Excerpt(prompt, group[0]["lang"], group[0]["source"], answers))
    return found, len(matching)


def _candidate(record: dict[str, Any]) -> Shown:
    row = Candidate.model_validate(record)
    return Shown(
        row.id, row.teacher, row.answer, tuple(row.flags), row.agreement, row.thought, row.provenance, row.evidence
    )


def _dropped(record: dict[str, Any]) -> Shown:
    row = Dropped.model_validate(record)
    kept = json.loads(row.row)
    teacher = str(kept.get("teacher", "")) if isinstance(kept, dict) else ""
    return Shown(row.id, teacher, row.detail, (row.reason,))


def _prompt_of(row: str) -> str:
    """The prompt in a dropped row's JSON; of a row that could not be read as one, the JSON itself."""
    try:
        kept = json.loads(row)
    except ValueError:
        return row
    return str(kept["prompt"]) if isinstance(kept, dict) and "prompt" in kept else row


def _groups(path: Path, key: str, marks: str, prompt_of: Callable[[str], str]) -> Iterator[tuple[int, int, set[str]]]:
    """Neighbours with one prompt: first row, row behind the last, and their flags."""
    rows = ((place, prompt_of(record[key]), record[marks]) for place, record in enumerate(_records(path, [key, marks])))
    for _, group in groupby(rows, key=lambda row: row[1]):
        members = list(group)
        seen = {flag for _, _, found in members for flag in ([found] if isinstance(found, str) else found)}
        yield members[0][0], members[-1][0] + 1, seen


def _records(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if lacks := sorted(set(columns or ()) - set(file.schema_arrow.names)):
                raise DataError(
                    f"{path} has no column {', '.join(lacks)}: got {file.schema_arrow.names}, because another version wrote it; "
                    "build the step generate again (--force)"
                )
            for batch in file.iter_batches(1024, columns=columns):
                yield from batch.to_pylist()
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} cannot be read: got {error}; build the step generate again") from None


def _rows(path: Path, spans: Sequence[tuple[int, int]]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each span, in order; row groups without any are not read."""
    import pyarrow.parquet as pq

    waiting = list(spans)
    held: list[dict[str, Any]] = []
    with pq.ParquetFile(path) as file:
        start = 0
        for number in range(file.num_row_groups):
            end = start + file.metadata.row_group(number).num_rows
            if waiting and waiting[0][0] < end:
                records = file.read_row_group(number).to_pylist()
                while waiting and waiting[0][0] < end:
                    first, last = waiting[0]
                    held += records[max(first - start, 0) : last - start]
                    if last > end:
                        break  # it goes on in the next row group
                    yield held
                    held = []
                    waiting.pop(0)
            start = end
