"""What each row is held to by itself: characters repaired, personal data replaced, then the rules, many rows at a time.

The order is that of the reasons: personal data, row filters, content rules, lengths in tokens of the student. A row is dropped
for the first that it fails. What becomes of one row does not hang on the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from steps.lib.characters import repair
from steps.lib.chat_rules import judge_rows
from steps.lib.config import key_view
from steps.lib.content import Content, judge_content
from steps.lib.facts import TURNS, texts_of
from steps.lib.personal import Personal
from steps.lib.personal_rows import redact_dropped, redact_rows
from steps.lib.quality import Filters, Finding, judge_texts
from steps.lib.rows import Dropped, Prompt, Row, Text
from steps.lib.student import Student, counts, judge_lengths, lengths
from steps.lib.toxicity import Toxicity

R = TypeVar("R", bound=Row)


@dataclass
class Seen(Generic[R]):
    """Some rows after the look at each."""

    rows: list[R]
    """With their characters repaired and without personal data."""
    findings: list[Finding | None]
    """For each row, the first rule it fails."""
    repaired: Counter[str] = field(default_factory=Counter)
    """Repair -> rows with it."""
    redacted: Counter[str] = field(default_factory=Counter)
    """Type of personal data -> how many were found."""


@dataclass(frozen=True)
class Standards:
    """The rules, in a form that another process can be given."""

    filters: Filters | None
    """None for rows that are held out, which no rule judges; their personal data goes all the same."""
    personal: Personal
    content: Content
    toxicity: Toxicity
    student: Student
    models: tuple[tuple[str, str], ...] = ()
    """Content of the student's tokenizer and of the classifier: their paths say nothing."""

    def unjudged(self) -> Standards:
        """For held-out rows."""
        return replace(self, filters=None)

    def facts(self) -> dict[str, Any]:
        """All of it that decides what becomes of a row, as JSON types."""
        found = {"personal": key_view(self.personal), "models": [list(model) for model in self.models]}
        if self.filters is None:
            return found
        sections = {
            "filters": self.filters,
            "content": self.content,
            "toxicity": self.toxicity,
            "student": self.student,
        }
        return found | {name: key_view(section) for name, section in sections.items()}

    def look(self, rows: Sequence[R]) -> Seen[R]:
        """Repair, redact and judge some rows of one type."""
        seen = Seen(list(rows), [None] * len(rows))
        seen.rows = self.mended(seen.rows, seen.repaired)
        for number, (row, done) in enumerate(redact_rows(seen.rows, self.personal)):
            seen.rows[number], seen.findings[number] = row, done.finding
            seen.redacted.update(done.counts)
        self._judge(seen)
        return seen

    def mended(self, rows: Sequence[R], repaired: Counter[str]) -> list[R]:
        """Rows with the characters of their texts repaired; what was repaired is counted."""
        texts = [texts_of(row) for row in rows]
        mended = iter(repair([text for own in texts for text in own]))
        found = []
        for row, own in zip(rows, texts, strict=True):
            new = [next(mended) for _ in own]
            repaired.update({code for one in new for code in one.codes})
            found.append(row if [one.text for one in new] == own else _with_texts(row, [one.text for one in new]))
        return found

    def kept_back(self, dropped: Dropped) -> Dropped:
        """A dropped row as it may be written."""
        return redact_dropped(dropped, self.personal)

    def _judge(self, seen: Seen[Any]) -> None:
        if self.filters is None or not seen.rows:
            return
        special = counts(self.student.tokenizer).special if self.student.tokenizer else ()
        if isinstance(seen.rows[0], Text):
            texts = [row.text for row in seen.rows]
            _first(seen, judge_texts(texts, self.filters, special))
            left = [number for number, finding in enumerate(seen.findings) if finding is None]
            content = judge_content([texts[number] for number in left], self.content, self.toxicity)
            for number, finding in zip(left, content, strict=True):
                seen.findings[number] = finding
        else:
            _first(seen, judge_rows(seen.rows, self.filters, self.content, self.toxicity, special))
        if self.student.tokenizer:
            _first(seen, judge_lengths(seen.rows, self.student, lengths(seen.rows, self.student)))


def _first(seen: Seen[Any], findings: Sequence[Finding | None]) -> None:
    """Take findings for the rows that have none yet."""
    seen.findings = [own or found for own, found in zip(seen.findings, findings, strict=True)]


def _with_texts(row: R, texts: Sequence[str]) -> R:
    """The row with these in place of its ``texts_of``."""
    if isinstance(row, Text):
        return row.model_copy(update={"text": texts[0]})
    if isinstance(row, Prompt):
        return row.model_copy(update={"prompt": texts[0]})
    left = iter(texts)
    return row.model_copy(
        update={
            name: [turn.model_copy(update={"content": next(left)}) for turn in getattr(row, name)]
            for kind, names in TURNS.items()
            if isinstance(row, kind)
            for name in names
        }
    )
