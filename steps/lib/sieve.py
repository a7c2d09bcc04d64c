"""Passes over rows that keep, drop with a reason, or set aside; every drop is counted and kept whole.

A pass over all rows gives findings (number of a row -> reason and evidence), which a step can keep and go on from. What is done
to each row alone stands in ``shards``.

Units: a document is compared whole. A conversation or pair is compared with held-out data and split by its user turns,
and with its like by user turns and answers; the system turn counts for neither.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from steps.lib.dedup import clusters, near_pairs, near_to
from steps.lib.digests import digest_text
from steps.lib.quality import Finding
from steps.lib.row_ledger import RowLedger
from steps.lib.rows import Dropped, Prompt, Row, Text, Thumb
from steps.lib.shards import Shard, set_aside, texts_of, turns_of
from steps.lib.work_ledger import Recall

R = TypeVar("R", bound=Row)
Findings = Mapping[int, Finding]
"""Number of a row -> why it is not kept."""


@dataclass
class Sieve:
    """Runs the passes for a step, and holds what they counted and dropped."""

    step: str
    recall: Recall
    """Keeps finished passes."""
    ledger: RowLedger = field(default_factory=RowLedger)
    dropped: list[Dropped] = field(default_factory=list)

    def drop(self, kind: str, row: Row, reason: str, detail: str = "") -> None:
        """Keep a row back, with the reason."""
        self.ledger.drop(kind, reason)
        self.dropped.append(set_aside(self.step, row, reason, detail))

    def counts(self, kind: str) -> str:
        """ "516 rows in, 9 dropped: identity 6, ...", for messages."""
        reasons = self.ledger.reasons.get(kind, Counter())
        ranked = sorted(reasons.items(), key=lambda one: (-one[1], one[0]))
        listed = ", ".join(f"{reason} {count}" for reason, count in ranked)
        total = sum(reasons.values())
        return f"{self.ledger.rows_in[kind]} rows in, {total} dropped" + (f": {listed}" if listed else "")

    def add(self, kind: str, shard: Shard[Any]) -> None:
        """Count what a shard took and dropped."""
        self.ledger.took(kind, len(shard.rows))
        for row, count in shard.dropped:
            self.ledger.took(kind, count)
            self.ledger.drop(kind, row.reason, count)
            self.dropped.append(row)

    def sift(self, kind: str, rows: Sequence[R], *findings: Findings) -> list[R]:
        """Rows without a finding. The others are dropped: those of the first findings first, each in the rows' order."""
        gone: set[int] = set()
        for found in findings:
            for number in sorted(found.keys() - gone):
                self.drop(kind, rows[number], *found[number])
            gone |= found.keys()
        return [row for number, row in enumerate(rows) if number not in gone]

    def guard(self, kind: str, rows: Sequence[R], heldout: Sequence[Row], threshold: float | None) -> list[R]:
        """Rows that are no copy and no near-copy of a held-out row; see ``guarded``."""
        facts = {"pass": "guarded", "threshold": threshold, "heldout": digest_rows(heldout)}
        return self.sift(kind, rows, self._found(rows, facts, partial(guarded, rows, heldout, threshold)))

    def near_copies(self, kind: str, rows: Sequence[R], threshold: float | None) -> list[R]:
        """One row of each cluster of near-copies; see ``near_copies``. Without a threshold, all."""
        if threshold is None:
            return list(rows)
        facts = {"pass": "near_copies", "threshold": threshold}
        return self.sift(kind, rows, self._found(rows, facts, partial(near_copies, rows, threshold)))

    def split(self, rows: Sequence[R], share: float, threshold: float) -> tuple[list[R], list[R]]:
        """Rows to train on, and rows to hold out; see ``apart``."""
        facts = {"pass": "apart", "share": share, "threshold": threshold, "rows": digest_rows(rows)}
        out = set(self.recall(facts, partial(apart, rows, share, threshold)))
        kept = [row for number, row in enumerate(rows) if number not in out]
        return kept, [row for number, row in enumerate(rows) if number in out]

    def _found(self, rows: Sequence[Row], facts: Mapping[str, Any], compute: Callable[[], Findings]) -> Findings:
        found = self.recall({**facts, "rows": digest_rows(rows)}, lambda: list(compute().items()))
        return {number: (reason, detail) for number, (reason, detail) in found}


def digest_rows(rows: Iterable[Row]) -> str:
    """Digest of rows in their order, ids and all."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.model_dump_json().encode() + b"\n")
    return digest.hexdigest()


def copies(rows: Sequence[Row]) -> dict[int, Finding]:
    """Rows whose content an earlier one has."""
    first: dict[str, str] = {}
    found: dict[int, Finding] = {}
    for number, row in enumerate(rows):
        content = digest_text("\x00".join(texts_of(row)))
        if content in first:
            found[number] = "duplicate", _evidence(kept_id=first[content])
        else:
            first[content] = row.id
    return found


def contradictions(rows: Sequence[Thumb]) -> dict[int, Finding]:
    """Answers that got thumbs up and thumbs down: all of them, since nothing says which verdict is right."""
    verdicts: dict[tuple[str, ...], dict[bool, str]] = defaultdict(dict)
    contents = [tuple(texts_of(row)) for row in rows]
    for row, content in zip(rows, contents, strict=True):
        verdicts[content].setdefault(row.label, row.id)
    return {
        number: ("contradiction", _evidence(other_id=verdicts[content][not row.label]))
        for number, (row, content) in enumerate(zip(rows, contents, strict=True))
        if len(verdicts[content]) == 2
    }


def guarded(rows: Sequence[Row], heldout: Sequence[Row], threshold: float | None) -> dict[int, Finding]:
    """Rows that are a copy (case, spaces and punctuation aside) or a near-copy of a held-out row.

    Each user turn is compared alone too: a held-out prompt may stand in the middle of a conversation.

    Args:
        threshold: Jaccard from which a row is a near-copy; None compares exact content only.
    """
    places = [(number, unit) for number, row in enumerate(rows) for unit in _asked_units(row)]
    texts = [asked(row) for row in heldout]
    folded = {fold(text): number for number, text in reversed(list(enumerate(texts)))}
    hits: dict[int, tuple[int, float]] = {}
    for number, unit in places:
        if (mark := fold(unit)) and mark in folded:
            hits.setdefault(number, (folded[mark], 1.0))
    same = set(hits)
    if threshold is not None:
        for place, hit in near_to([unit for _, unit in places], texts, threshold).items():
            hits.setdefault(places[place][0], hit)
    return {
        number: (
            "heldout_copy" if number in same else "near_heldout",
            _evidence(heldout_id=heldout[other].id, jaccard=round(score, 4)),
        )
        for number, (other, score) in hits.items()
    }


def near_copies(rows: Sequence[Row], threshold: float) -> dict[int, Finding]:
    """All rows but one of each cluster of near-copies: the one with most neighbours stays, then the first."""
    pairs = near_pairs([whole(row) for row in rows], threshold)
    near: dict[int, dict[int, float]] = defaultdict(dict)
    for one, other, score in pairs:
        near[one][other] = near[other][one] = score
    labels = clusters(len(rows), pairs)
    best: dict[int, int] = {}
    for number in near:
        held = best.get(labels[number])
        if held is None or (len(near[number]), -number) > (len(near[held]), -held):
            best[labels[number]] = number
    found: dict[int, Finding] = {}
    for number in near:
        stays = best[labels[number]]
        if stays == number:
            continue
        linked = stays if stays in near[number] else max(near[number], key=lambda one: (near[number][one], -one))
        found[number] = (
            "near_duplicate",
            _evidence(kept_id=rows[stays].id, linked_id=rows[linked].id, jaccard=round(near[number][linked], 4)),
        )
    return found


def surplus(rows: Sequence[Row], most: int) -> dict[int, Finding]:
    """Answers to a prompt after the first ``most``."""
    seen: Counter[str] = Counter()
    found: dict[int, Finding] = {}
    for number, row in enumerate(rows):
        seen[asked(row)] += 1
        if (count := seen[asked(row)]) > most:
            found[number] = "answers_per_prompt", f"answer {count} to this prompt, at most {most}"
    return found


def apart(rows: Sequence[Row], share: float, threshold: float) -> list[int]:
    """Numbers of the rows to hold out. Near-copies stay together, so no held-out row has one on the other side.

    A group's side hangs on the smallest content digest in it, not on the order or number of rows: rows that are added
    leave the others where they are. The group that comes first goes out when none would.

    Source: DATA.md 3.7.

    Args:
        share: fraction of the groups to hold out.
        threshold: Jaccard of the units that makes two rows one group.
    """
    units = [asked(row) for row in rows]
    links = near_pairs(units, threshold)
    first: dict[str, int] = {}
    links += [(first.setdefault(fold(unit), number), number, 1.0) for number, unit in enumerate(units)]
    labels = clusters(len(rows), links)
    marks: dict[int, str] = {}
    for label, unit in zip(labels, units, strict=True):
        marks[label] = min(marks.get(label, "g"), digest_text(unit))
    order = {label: int(digest_text(mark)[:16], 16) / 16**16 for label, mark in marks.items()}
    out = {label for label, value in order.items() if value < share}
    if not out and len(order) > 1 and share > 0:
        out = {min(order, key=lambda label: order[label])}
    return [number for number, label in enumerate(labels) if label in out]


def distinct(rows: Iterable[R]) -> list[R]:
    """Rows with unique ids: where two sources use the same id, the later one gets its source's name before it."""
    seen: set[str] = set()
    named: list[R] = []
    for row in rows:
        one = row.model_copy(update={"id": f"{row.source}-{row.id}"}) if row.id in seen else row
        seen.add(one.id)
        named.append(one)
    return named


def whole(row: Row) -> str:
    """What near-copies of the same kind are told by: the document; user turns and answers."""
    turns = turns_of(row)
    return asked(row) if turns is None else "\n".join(turn.content for turn in turns if turn.role != "system")


def asked(row: Row) -> str:
    """What is compared with held-out data and keeps a group together: the document; the user turns."""
    if isinstance(row, Text):
        return row.text
    if isinstance(row, Prompt):
        return row.prompt
    return "\n".join(turn.content for turn in turns_of(row) or () if turn.role == "user")


def fold(text: str) -> str:
    """Letters and digits only, without case: equal for texts that differ by spaces and punctuation."""
    return "".join(re.findall(r"[^\W_]+", text.casefold()))


def _asked_units(row: Row) -> list[str]:
    turns = [turn.content for turn in turns_of(row) or () if turn.role == "user"]
    return [*turns, asked(row)] if len(turns) > 1 else [asked(row)]


def _evidence(**facts: Any) -> str:
    return json.dumps(facts, ensure_ascii=False)
