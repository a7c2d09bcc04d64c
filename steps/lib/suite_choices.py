"""Multiple choice by log-likelihood: the choice that the model finds likeliest as its answer to the question.

``correct`` compares the sums of log p over the tokens of each choice and the end of the turn, ``correct_norm`` these by UTF-8
byte of the choice, which spares long ones (Brown et al. 2020, 2005.14165, section 2.4, normalise by token; bytes compare across
tokenizers). A tie for the first place is wrong. Nothing is generated, so a model that cannot follow a format is measured too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib import chat, inference, suite_answers
from steps.lib.digests import digest_text
from steps.lib.errors import DataError
from steps.lib.figures import Item, Measure
from steps.lib.rows import Message
from steps.lib.suite_answers import Question, Questions
from steps.lib.suites import Scored

CHOICES_VERSION = "1"
Tokens = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Choices(Questions):
    """One such suite."""

    @classmethod
    def read(cls, name: str, path: Path, limit: int | None) -> Choices:
        """Read rows with question, choices, and answer: place from 0, letter, or the choice itself.

        Raises:
            DataError: a row is wrong: fewer than two choices, one twice, or an answer that is none of them.
        """
        found: list[Question] = []
        problems: list[str] = []
        for number, row in enumerate(suite_answers.read_rows(path, ("question", "choices", "answer"), limit)):
            one = Question(
                str(row.get("id", number)), row["question"], suite_answers.language_of(row, row["question"]), row
            )
            choices = row["choices"]
            if len(choices) < 2 or len(set(choices)) < len(choices) or not all(choices):
                problems.append(
                    f"{path} row {one.id} is wrong: got choices {choices}, because they must differ; mend it"
                )
            elif right_of(row) is None:
                problems.append(
                    f"{path} row {one.id} is wrong: got answer {row['answer']!r}, which is no choice; mend it"
                )
            found.append(one)
        if problems:
            raise DataError("\n".join(problems))
        return cls(name, suite_answers.unique(name, found))

    @property
    def measures(self) -> Sequence[Measure]:
        """Right by sum, and right by byte."""
        ways = (("correct", "", "", "sum of log p"), ("correct_norm", ", by byte", "，按字节", "log p / UTF-8 byte"))
        return [
            Measure(
                name=f"{self.name}_{'accuracy' if score == 'correct' else 'accuracy_norm'}",
                label_en=f"{self.name}: right choice{en}",
                label_zh=f"{self.name}：选择正确{zh}",
                unit="share",
                suite=self.name,
                score=score,
                method=f"the right choice has the highest {how}",
            )
            for score, en, zh, how in ways
        ]

    @property
    def prompts(self) -> Mapping[str, str]:
        """None: choices are scored, no answer is written."""
        return {}

    def digest(self) -> str:
        """Of rows and scorer."""
        return suite_answers.content_digest("choices", CHOICES_VERSION, self.questions)

    def score(self, who: Scored) -> list[Item]:
        """An item a question; its output is the choice that was taken."""
        errors: dict[str, str] = {}
        encoded: list[tuple[Question, list[Tokens]]] = []
        for one in self.questions:
            asked = [Message(role="user", content=one.prompt)]
            try:
                said = [[Message(role="assistant", content=choice)] for choice in one.row["choices"]]
                encoded.append((one, [chat.encode_pair(who.tokenizer, asked, answer) for answer in said]))
            except Exception as error:  # told as the item's error; the others are scored
                errors[one.id] = f"{type(error).__name__}: {error}"
        rows = [row for _, both in encoded for row in both]
        logps = iter(inference.sequence_logps(who.model, rows, batch_size=who.limits.batch_size, recall=who.recall))
        found = {one.id: (both, [next(logps) for _ in both]) for one, both in encoded}
        return [self._item(who, one, found.get(one.id), errors.get(one.id, "")) for one in self.questions]

    def _item(self, who: Scored, one: Question, found: tuple[list[Tokens], list[float]] | None, error: str) -> Item:
        both, logps = found or ([], [])
        choices = one.row["choices"]
        return Item(
            model=who.name,
            suite=self.name,
            item_id=one.id,
            cluster_id=str(one.row.get("cluster") or one.id),
            lang=one.lang,
            scores=scores_of(logps, choices, right_of(one.row)) if logps else {},
            output=choices[max(range(len(logps)), key=logps.__getitem__)] if logps else "",
            n_in=len(both[0][0]) if both else 0,
            n_out=sum(len(answer) for _, answer in both),
            error=error,
            prompt_digest=digest_text(one.prompt)[:16],
        )


def right_of(row: Mapping[str, Any]) -> int | None:
    """Place of the right choice; None where the row names none."""
    answer, choices = row["answer"], row["choices"]
    if isinstance(answer, bool):
        return None
    if isinstance(answer, int):
        return answer if 0 <= answer < len(choices) else None
    if answer in choices:
        return int(choices.index(answer))
    place = ord(answer.upper()) - ord("A") if isinstance(answer, str) and len(answer) == 1 else -1
    return place if 0 <= place < len(choices) else None


def scores_of(logps: Sequence[float], choices: Sequence[str], right: int | None) -> dict[str, float | None]:
    """Scores of one question."""
    by_byte = [logp / len(choice.encode()) for logp, choice in zip(logps, choices, strict=True)]

    def wins(values: Sequence[float]) -> float:
        others = [value for place, value in enumerate(values) if place != right]
        return float(right is not None and values[right] > max(others))

    return {"correct": wins(logps), "correct_norm": wins(by_byte)}
