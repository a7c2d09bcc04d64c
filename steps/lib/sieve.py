"""Passes over rows that keep, drop with a reason, or set aside; every drop is counted and kept whole.

Units: a document is compared whole. A conversation or pair is compared with held-out data and split by its user turns,
and with its like by user turns and answers; the system turn counts for neither.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from steps.lib.dedup import clusters, near_pairs, near_to
from steps.lib.ledger import RowLedger
from steps.lib.quality import Filters, Finding, judge_chat, judge_text, normalise
from steps.lib.rows import Chat, Dropped, Message, Pair, Prompt, Row, Text
from steps.lib.sources import Rejected
from steps.lib.store import digest_text

R = TypeVar("R", bound=Row)


@dataclass
class Sieve:
    """Runs the passes for a step, and holds what they counted and dropped."""

    step: str
    ledger: RowLedger = field(default_factory=RowLedger)
    dropped: list[Dropped] = field(default_factory=list)

    def drop(self, kind: str, row: Row, reason: str, detail: str = "") -> None:
        """Keep a row back, with the reason."""
        self.ledger.drop(kind, reason)
        self.dropped.append(
            Dropped(
                id=row.id,
                lang=row.lang,
                source=row.source,
                step=self.step,
                reason=reason,
                detail=detail,
                row=row.model_dump_json(),
            )
        )

    def counts(self, kind: str) -> str:
        """ "516 rows in, 9 dropped: identity 6, ...", for messages."""
        reasons = self.ledger.reasons.get(kind, Counter())
        ranked = sorted(reasons.items(), key=lambda one: (-one[1], one[0]))
        listed = ", ".join(f"{reason} {count}" for reason, count in ranked)
        total = sum(reasons.values())
        return f"{self.ledger.rows_in[kind]} rows in, {total} dropped" + (f": {listed}" if listed else "")

    def take(self, kind: str, rows: Iterable[R | Rejected]) -> list[R]:
        """Rows of one source, with their characters repaired; what could not be read is dropped."""
        taken: list[R] = []
        for row in rows:
            if isinstance(row, Rejected):
                self.ledger.took(kind, row.count)
                self.ledger.drop(kind, row.reason, row.count)
                self.dropped.append(row.dropped(self.step))
                continue
            self.ledger.took(kind)
            clean = repaired(row)
            if all(text for text in _texts(clean)):
                taken.append(clean)
            else:
                self.drop(kind, row, "empty", "nothing is left but white space and control characters")
        return taken

    def exact(self, kind: str, rows: Sequence[R]) -> list[R]:
        """The first row of each content."""
        first: dict[str, str] = {}
        kept: list[R] = []
        for row in rows:
            content = digest_text("\x00".join(_texts(row)))
            if content in first:
                self.drop(kind, row, "duplicate", _evidence(kept_id=first[content]))
            else:
                first[content] = row.id
                kept.append(row)
        return kept

    def filter(self, kind: str, rows: Sequence[R], filters: Filters) -> list[R]:
        """Rows that pass the filters of their kind."""
        kept: list[R] = []
        for row in rows:
            if finding := judge(row, filters):
                self.drop(kind, row, *finding)
            else:
                kept.append(row)
        return kept

    def guard(self, kind: str, rows: Sequence[R], heldout: Sequence[Row], threshold: float | None) -> list[R]:
        """Rows that are no copy (case, spaces and punctuation aside) and no near-copy of a held-out row.

        Each user turn is compared alone too: a held-out prompt may stand in the middle of a conversation.

        Args:
            threshold: Jaccard from which a row is a near-copy; None compares exact content only.
        """
        places = [(number, unit) for number, row in enumerate(rows) for unit in _asked_units(row)]
        guarded = [asked(row) for row in heldout]
        folded = {fold(text): number for number, text in reversed(list(enumerate(guarded)))}
        hits: dict[int, tuple[int, float]] = {}
        for number, unit in places:
            if (mark := fold(unit)) and mark in folded:
                hits.setdefault(number, (folded[mark], 1.0))
        copies = set(hits)
        if threshold is not None:
            for place, hit in near_to([unit for _, unit in places], guarded, threshold).items():
                hits.setdefault(places[place][0], hit)
        kept: list[R] = []
        for number, row in enumerate(rows):
            if number in hits:
                other, score = hits[number]
                reason = "heldout_copy" if number in copies else "near_heldout"
                self.drop(kind, row, reason, _evidence(heldout_id=heldout[other].id, jaccard=round(score, 4)))
            else:
                kept.append(row)
        return kept

    def near_copies(self, kind: str, rows: Sequence[R], threshold: float | None) -> list[R]:
        """One row of each cluster of near-copies: the one with most neighbours, then the first."""
        if threshold is None:
            return list(rows)
        found = near_pairs([whole(row) for row in rows], threshold)
        near: dict[int, dict[int, float]] = defaultdict(dict)
        for one, other, score in found:
            near[one][other] = near[other][one] = score
        labels = clusters(len(rows), found)
        best: dict[int, int] = {}
        for number in near:
            held = best.get(labels[number])
            if held is None or (len(near[number]), -number) > (len(near[held]), -held):
                best[labels[number]] = number
        kept: list[R] = []
        for number, row in enumerate(rows):
            stays = best.get(labels[number], number)
            if stays == number:
                kept.append(row)
                continue
            linked = stays if stays in near[number] else max(near[number], key=lambda one: (near[number][one], -one))
            self.drop(kind, row, "near_duplicate", _evidence(
                kept_id=rows[stays].id, linked_id=rows[linked].id, jaccard=round(near[number][linked], 4)))  # fmt: skip
        return kept

    def at_most(self, kind: str, rows: Sequence[R], number: int | None) -> list[R]:
        """The first ``number`` answers to the same prompt."""
        seen: Counter[str] = Counter()
        kept: list[R] = []
        for row in rows:
            seen[asked(row)] += 1
            count = seen[asked(row)]
            if number is not None and count > number:
                self.drop(kind, row, "answers_per_prompt", f"answer {count} to this prompt, at most {number}")
            else:
                kept.append(row)
        return kept


def split(rows: Sequence[R], share: float, threshold: float) -> tuple[list[R], list[R]]:
    """Rows to train on, and rows to hold out. Near-copies stay together, so no held-out row has one on the other side.

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
    kept = [row for row, label in zip(rows, labels, strict=True) if label not in out]
    return kept, [row for row, label in zip(rows, labels, strict=True) if label in out]


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
    turns = _turns(row)
    return asked(row) if turns is None else "\n".join(turn.content for turn in turns if turn.role != "system")


def asked(row: Row) -> str:
    """What is compared with held-out data and keeps a group together: the document; the user turns."""
    if isinstance(row, Text):
        return row.text
    if isinstance(row, Prompt):
        return row.prompt
    return "\n".join(turn.content for turn in _turns(row) or () if turn.role == "user")


def fold(text: str) -> str:
    """Letters and digits only, without case: equal for texts that differ by spaces and punctuation."""
    return "".join(re.findall(r"[^\W_]+", text.casefold()))


def repaired(row: R) -> R:
    """The row with ``normalise`` on every text of it."""
    if isinstance(row, Text):
        return row.model_copy(update={"text": normalise(row.text)})
    if isinstance(row, Prompt):
        return row.model_copy(update={"prompt": normalise(row.prompt)})
    names = ("messages",) if isinstance(row, Chat) else ("prompt", "chosen", "rejected")
    turns = {name: [turn.model_copy(update={"content": normalise(turn.content)}) for turn in getattr(row, name)]
             for name in names}  # fmt: skip
    return row.model_copy(update=turns)


def judge(row: Row, filters: Filters) -> Finding | None:
    """The first filter a row fails. A rejected answer may be bad, it is there for that; but it must differ."""
    if isinstance(row, Text):
        return judge_text(row.text, filters)
    if isinstance(row, Pair):
        if [turn.content for turn in row.chosen] == [turn.content for turn in row.rejected]:
            return "equal_pair", "chosen and rejected are the same"
        return judge_chat([*row.prompt, *row.chosen], filters.model_copy(update={"refusal": False}))
    return judge_chat(row.messages, filters) if isinstance(row, Chat) else None


def _turns(row: Row) -> list[Message] | None:
    if isinstance(row, Chat):
        return row.messages
    return [*row.prompt, *row.chosen, *row.rejected] if isinstance(row, Pair) else None


def _texts(row: Row) -> list[str]:
    turns = _turns(row)
    return [asked(row)] if turns is None else [turn.content for turn in turns]


def _asked_units(row: Row) -> list[str]:
    turns = [turn.content for turn in _turns(row) or () if turn.role == "user"]
    return [*turns, asked(row)] if len(turns) > 1 else [asked(row)]


def _evidence(**facts: Any) -> str:
    return json.dumps(facts, ensure_ascii=False)
