"""Suites of verifiable instructions (``instructions``): IFEval's file, and rows of the same layout in Chinese or English.

Two kinds of items: one a prompt (all of its instructions kept), and one an instruction in the suite ``NAME.instructions``, whose
cluster is the prompt, since instructions of one prompt meet one answer.
Source: Zhou et al. 2023, 2311.07911, section 2.2: prompt and instruction level, strict and loose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steps.lib import suite_answers
from steps.lib.errors import DataError
from steps.lib.figures import Item, Measure
from steps.lib.instructions import RULES_VERSION, Instruction, instruction
from steps.lib.suite_answers import Question, Questions
from steps.lib.suites import Scored

COLUMNS = ("prompt", "instruction_id_list", "kwargs")


@dataclass(frozen=True)
class Instructions(Questions):
    """One such suite."""

    @classmethod
    def read(cls, name: str, path: Path, limit: int | None) -> Instructions:
        """Read it.

        Raises:
            DataError: a row is wrong, or names a rule that there is not; all of them are told.
        """
        found: list[Question] = []
        problems: list[str] = []
        for number, row in enumerate(suite_answers.read_rows(path, COLUMNS, limit)):
            one = Question(
                str(row.get("key", number)), row["prompt"], suite_answers.language_of(row, row["prompt"]), row
            )
            if len(row["instruction_id_list"]) != len(row["kwargs"]) or not row["kwargs"]:
                problems.append(
                    f"{path} row {one.id} is wrong: got other numbers of rules and arguments; give one each"
                )
                continue
            wrong = [rule.problem() for rule in rules_of(one)]
            problems += [f"{path} row {one.id} is wrong: {why}; correct the row" for why in wrong if why]
            found.append(one)
        if problems:
            raise DataError("\n".join(problems))
        return cls(name, suite_answers.unique(name, found))

    @property
    def measures(self) -> Sequence[Measure]:
        """Prompt and instruction level, strict and loose."""
        levels = (("prompt", "提示级", self.name), ("instruction", "指令级", f"{self.name}.instructions"))
        ways = (("strict", "严格"), ("loose", "宽松"))
        return [
            Measure(
                name=f"{self.name}_{level}_{way}",
                label_en=f"{self.name}: {level} level, {way}",
                label_zh=f"{self.name}：{level_zh}，{way_zh}",
                unit="share",
                suite=suite,
                score=way,
                method=f"share of {level}s whose rules hold (2311.07911); rules that do not apply are left out",
            )
            for level, level_zh, suite in levels
            for way, way_zh in ways
        ]

    def digest(self) -> str:
        """Of rows and rules."""
        return suite_answers.content_digest("instructions", RULES_VERSION, self.questions)

    def score(self, who: Scored) -> list[Item]:
        """Items of prompts, then those of their instructions."""
        items = suite_answers.answered(who, self.name, self.questions, _scores)
        return items + [
            _of_instruction(item, place, rule.name, f"{self.name}.instructions")
            for one, item in zip(self.questions, items, strict=True)
            for place, rule in enumerate(rules_of(one))
        ]


def rules_of(one: Question) -> list[Instruction]:
    """The instructions of a question."""
    return [
        instruction(name, arguments)
        for name, arguments in zip(one.row["instruction_id_list"], one.row["kwargs"], strict=True)
    ]


def _scores(one: Question, text: str) -> dict[str, float | None]:
    """``strict`` and ``loose`` of the prompt, and of each instruction ``strict:PLACE`` and ``loose:PLACE``."""
    scores: dict[str, float | None] = {}
    for way in ("strict", "loose"):
        kept = [getattr(rule, way)(text, one.lang) for rule in rules_of(one)]
        apply = [value for value in kept if value is not None]
        scores[way] = float(all(apply)) if apply else None
        scores |= {f"{way}:{place}": None if value is None else float(value) for place, value in enumerate(kept)}
    return scores


def _of_instruction(item: Item, place: int, rule: str, suite: str) -> Item:
    scores = {way: item.scores.get(f"{way}:{place}") for way in ("strict", "loose")}
    return item.model_copy(
        update={
            "suite": suite,
            "item_id": f"{item.item_id}:{place}",
            "cluster_id": item.cluster_id,
            "slices": [*item.slices, rule],
            "scores": scores,
            "output": "",
        }
    )
