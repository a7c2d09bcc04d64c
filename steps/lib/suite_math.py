"""GSM8K: the last number of an answer is the number of the reference, exactly.

Source: Cobbe et al. 2021, 2110.14168 (the reference stands behind ####). The last number of the whole answer is taken, without
separators of thousands; full-width digits count.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from steps.lib import suite_answers
from steps.lib.errors import DataError
from steps.lib.figures import Item, Measure
from steps.lib.suite_answers import Question, Questions
from steps.lib.suites import Scored

MATH_VERSION = "1"
ASKED = {
    "en": "Think step by step. End with a line that holds #### and the answer as a number.",
    "zh": "请一步一步思考，最后一行写 #### 和数字答案。",
}
_NUMBER = re.compile(r"(?:(?<![0-9A-Za-z)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


def last_number(text: str) -> Decimal | None:
    """The last number in a text."""
    plain = unicodedata.normalize("NFKC", text).replace("−", "-")
    found = _NUMBER.findall(plain)
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        return None


@dataclass(frozen=True)
class Gsm8k(Questions):
    """Word problems with one number as the answer."""

    @classmethod
    def read(cls, name: str, path: Path, limit: int | None) -> Gsm8k:
        """Read the public layout (question, answer).

        Raises:
            DataError: a row is wrong, or its reference has no number behind ####.
        """
        found: list[Question] = []
        problems: list[str] = []
        for number, row in enumerate(suite_answers.read_rows(path, ("question", "answer"), limit)):
            lang = suite_answers.language_of(row, row["question"])
            prompt = f"{row['question']}\n\n{ASKED['zh' if lang == 'zh' else 'en']}"
            one = Question(str(row.get("id", number)), prompt, lang, row)
            if reference_of(one) is None:
                problems.append(f"{path} row {one.id} has no reference: got no number behind ####; correct the row")
            found.append(one)
        if problems:
            raise DataError("\n".join(problems))
        return cls(name, suite_answers.unique(name, found))

    @property
    def measures(self) -> Sequence[Measure]:
        """The share of right answers."""
        return [
            Measure(
                name=f"{self.name}_accuracy",
                label_en=f"{self.name}: right answers",
                label_zh=f"{self.name}：答案正确",
                unit="share",
                suite=self.name,
                score="correct",
                method="the last number equals the reference",
            )
        ]

    def digest(self) -> str:
        """Of rows, the words that ask, and the scorer."""
        return suite_answers.content_digest("gsm8k", MATH_VERSION, self.questions, ASKED)

    def score(self, who: Scored) -> list[Item]:
        """An item a problem."""
        return suite_answers.answered(
            who, self.name, self.questions, lambda one, text: {"correct": float(last_number(text) == reference_of(one))}
        )


def reference_of(one: Question) -> Decimal | None:
    """The number behind the last #### of the reference."""
    _, mark, number = str(one.row["answer"]).rpartition("####")
    return last_number(number) if mark else None
