"""Answers -> critique by stated principles -> revised answers; and answers that users rejected -> corrected ones.

Source: Madaan et al., "Self-Refine", arXiv 2303.17651, section 2 (feedback, refine); Bai et al., "Constitutional AI",
arXiv 2212.08073, section 3.1 (critique and revision by a principle that is drawn). Deviations:
  1. One critique may be by several principles; they are drawn by the run's seed, the round and the prompt.
  2. A fixed number of rounds: no teacher is asked whether it may stop, so the requests are known before.
  3. The worse answer stays on the trail under ``rejected``, the first as ``first``, so that pairs can be made from one run.
Correcting is the same with a person's verdict in the critique's place.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from steps.lib.config import Neutral
from steps.lib.items import Answer, Item, Lost
from steps.lib.prompt_parts import ByLanguage
from steps.lib.prompts import PromptFile
from steps.lib.recipe_parts import UNUSABLE, Asking, Passed, RecipeBase, StagePlan, Work, counted, fenced, unfenced
from steps.lib.rendering import language_for
from steps.lib.rows import Prompt, Row, Thumb
from steps.lib.shortening import answered

PRINCIPLES = [
    ByLanguage(
        zh="答案要答其所问，请求里的每一项要求都要做到。",
        en="The answer does what the request asks for, every part of it.",
    ),
    ByLanguage(
        zh="答案要真实：没有编造的事实、数字和出处，没有把握的地方要说明。",
        en="The answer is true: no invented facts, figures or sources, and it says what is not certain.",
    ),
    ByLanguage(
        zh="答案要清楚、完整、不啰嗦，先说结论。",
        en="The answer is clear, complete and no longer than needed, the main point first.",
    ),
    ByLanguage(
        zh="答案不得伤害他人、教唆违法、歧视或泄露隐私。",
        en="The answer harms nobody, helps with no crime, does not discriminate and gives no private data away.",
    ),
]


class Revise(RecipeBase):
    """Answers that their teacher reviews and rewrites."""

    kind: Literal["revise"]
    critique: Annotated[Path, Neutral] = Path("configs/prompts/critique.yaml")
    """Prompt file that asks what is wrong with an answer; its content is in the key."""
    revise: Annotated[Path, Neutral] = Path("configs/prompts/revise.yaml")
    """Prompt file that asks for the better answer; its content is in the key."""
    principles: list[ByLanguage] = Field(default=PRINCIPLES, min_length=1)
    """What answers are held to, in both languages."""
    drawn: int | None = Field(default=None, gt=0)
    """Principles in each critique, drawn; null: all, in their order."""
    rounds: int = Field(default=1, gt=0)
    """Times of critique and revision; the last revision is sampled."""

    gives: ClassVar[Mapping[str, Sequence[str]]] = {
        "critique": ("answer", "principles", "rules", "fence"),
        "revise": ("answer", "critique", "rules", "fence"),
    }
    needs: ClassVar[Mapping[str, Sequence[str]]] = {
        "critique": ("prompt", "answer", "principles", "fence"),
        "revise": ("prompt", "answer", "critique", "fence"),
    }

    def stages(self, config: Asking) -> list[StagePlan]:
        """An answer, then a critique and a revision a round."""
        plans = [StagePlan("answer", config.prompt_file, 1)]
        for number in range(1, self.rounds + 1):
            last = config.samples if number == self.rounds else 1
            plans += [
                StagePlan(f"critique{number}", self.critique, 1),
                StagePlan(f"revise{number}", self.revise, last),
            ]
        return plans

    def run(self, work: Work) -> Iterator[Answer | Lost]:
        """See ``RecipeBase.run``."""
        asker, files = work.asker, work.files
        flags = {*work.drop_flags, *UNUSABLE}
        first = (Item(row.id, row) for row in work.rows if isinstance(row, Prompt))
        answers, answering = answered(replace(work, samples=1, drop_flags=flags), first), files[""]
        for number in range(1, self.rounds + 1):
            drafts = self._drafts(answers, answering, number, asker.seed)
            given = Passed(asker, f"drafts{number}", drafts)
            yield from given.lost()
            reviews = asker.ask(f"critique{number}", files["critique"], given.items(), drop_flags=UNUSABLE)
            kind = f"reviews{number}"
            made = (_reviewed(one) for one in unfenced(kind, reviews))
            reviewed = Passed(asker, kind, counted(asker, kind, made))
            yield from reviewed.lost()
            final = number == self.rounds
            answers = asker.ask(
                f"revise{number}",
                files["revise"],
                reviewed.items(),
                samples=work.samples if final else 1,
                drop_flags=work.drop_flags if final else flags,
            )
        revised = unfenced("screened answers", answers)
        yield from counted(asker, "screened answers", _formed(revised, answering, work.drop_flags))

    def _drafts(
        self, answers: Iterable[Answer | Lost], answering: PromptFile, number: int, seed: int
    ) -> Iterator[Item | Lost]:
        """Items for a critique of the answers so far."""
        for answer in answers:
            if isinstance(answer, Lost):
                yield answer
                continue
            row, text = answer.item.row, answer.parsed.answer
            lang = language_for(row)
            wanted = [one.of(lang) for one in self.principles]
            if self.drawn is not None and self.drawn < len(wanted):
                wanted = random.Random(f"{seed}\n{number}\n{row.prompt}").sample(wanted, self.drawn)
            note: dict[str, Any] = {"first": text} if number == 1 else {}
            item = answer.item_with(note={**note, "rejected": text})
            yield fenced(item, answer=text, principles=wanted, rules=answering.system.of(lang).strip())


class Correct(RecipeBase):
    """Right answers in place of bad ones. Reads thumbs (steps/lib/layouts.py) and works on those that are down."""

    kind: Literal["correct"]
    complaint: list[str] = ["complaint", "feedback", "comment", "reason"]
    """Columns that may say what was wrong; the first with text in it counts."""

    gives: ClassVar[Mapping[str, Sequence[str]]] = {"": ("answer", "complaint", "rules", "fence")}
    needs: ClassVar[Mapping[str, Sequence[str]]] = {"": ("prompt", "answer", "complaint", "fence")}

    @property
    def rows(self) -> type[Row]:
        """Single answers with a verdict."""
        return Thumb

    def stages(self, config: Asking) -> list[StagePlan]:
        """One request a bad case."""
        return [StagePlan("answer", config.prompt_file, config.samples)]

    def run(self, work: Work) -> Iterator[Answer | Lost]:
        """See ``RecipeBase.run``."""
        asker = work.asker
        cases = Passed(asker, "cases", counted(asker, "cases", self._cases(work.rows)))
        yield from cases.lost()
        answers = answered(work, cases.items())
        yield from counted(asker, "screened answers", map(_changed, unfenced("screened answers", answers)))

    def _cases(self, rows: Iterable[Row]) -> Iterator[Item | Lost]:
        for row in rows:
            if not isinstance(row, Thumb):
                continue
            users = [turn.content for turn in row.prompt if turn.role == "user"]
            rules = "\n".join(turn.content for turn in row.prompt if turn.role == "system")
            bad = row.completion[-1].content
            prompt = Prompt(id=row.id, lang=row.lang, source=row.source, prompt="\n".join(users) or bad)
            facts = json.loads(row.evidence)
            said = next(
                (text for name in self.complaint if isinstance(text := facts.get(name), str) and text.strip()), ""
            )
            entry = {"stage": "case", "rejected": bad, "complaint": said, "system": rules}
            item = Item(row.id, prompt, trail=(entry,))
            if row.label:
                yield Lost(item, "cases", "thumbs_up", "the answer has a thumb up; there is nothing to correct")
            elif len(users) != 1 or len(row.prompt) > 1 + bool(rules) or len(row.completion) != 1:
                yield Lost(item, "cases", "not_one_user_turn", f"{len(row.prompt)} turns before the answer")
            else:
                yield fenced(item, answer=bad, complaint=said, rules=rules)


def _changed(answer: Answer | Lost) -> Answer | Lost:
    if isinstance(answer, Answer) and answer.parsed.answer.strip() == answer.item.trail[0]["rejected"].strip():
        return Lost(answer.item, "screened answers", "unchanged", "the answer is the rejected one", answer.teacher)
    return answer


def _reviewed(review: Answer | Lost) -> Item | Lost:
    if isinstance(review, Lost):
        return review
    seen = review.item.seen
    return fenced(review.item_with(), answer=seen["answer"], rules=seen["rules"], critique=review.parsed.answer)


def _formed(
    answers: Iterable[Answer | Lost], answering: PromptFile, drop_flags: Collection[str]
) -> Iterator[Answer | Lost]:
    """Revised answers in the form that first answers have, which the revising prompt file does not know."""
    for answer in answers:
        if isinstance(answer, Lost) or answering.schema_ is None:
            yield answer
            continue
        flags = tuple(flag for flag in answering.parse(answer.parsed.answer).flags if flag in ("unparsed", "schema"))
        if bad := next((flag for flag in flags if flag in drop_flags), ""):
            yield Lost(answer.item, "screened answers", bad, answer.reply.text, answer.teacher)
        else:
            yield replace(answer, flags=(*answer.flags, *(flag for flag in flags if flag not in answer.flags)))
