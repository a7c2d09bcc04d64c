"""Prompts -> harder and rarer ones, round by round -> answers.

Source: Xu et al., "WizardLM", arXiv 2304.12244, section 3 and appendix A: in-depth evolving by four of their five operations
(add constraints, deepen, concretise, more reasoning steps), in-breadth evolving, elimination. Deviations:
  1. Not their fifth operation, complicating the input with code or tables.
  2. "No information gain" is ROUGE-L to the parent, not a teacher's verdict: no request, and the same each time.
  3. Words copied from the instruction are looked for in the instruction itself, so it works in any language and for any file.
  4. What cannot be answered is told by the flag ``refusal`` (both languages), theirs by "sorry" in under 80 words.
  5. The operation is drawn by the run's seed, the round and the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from steps.lib.asking import draw
from steps.lib.config import Neutral
from steps.lib.items import Answer, Item, Lost
from steps.lib.near import rouge_l
from steps.lib.programs import Asker
from steps.lib.prompts import PromptFile
from steps.lib.quality import Finding
from steps.lib.recipe_parts import UNUSABLE, Asking, Passed, StagePlan, Work, counted, fenced
from steps.lib.recipe_prompts import NewPrompts, child_of
from steps.lib.rows import Prompt
from steps.lib.shingles import tokens
from steps.lib.shortening import answered

Method = Literal["constraints", "deepen", "concretise", "reasoning", "breadth"]
ALL: tuple[Method, ...] = ("constraints", "deepen", "concretise", "reasoning", "breadth")
_COPIED = re.compile(
    r"#?\b(?:given|rewritten|created|evolved) (?:prompt|request)\b"
    r"|\bthe original (?:prompt|request) (?:is|was)\b|\brequest (?:to rewrite|for inspiration)\b"
    r"|(?:改写|重写|进化)后的(?:请求|提示|指令|问题)|原来的(?:请求|提示|指令)|待改写的?(?:请求|提示|指令)|给定的(?:请求|提示|指令)|作为启发的请求",
    re.IGNORECASE,
)
"""Names of the parts of an evolving instruction; WizardLM, section 3, elimination 4."""


class Evolve(NewPrompts):
    """Harder and rarer versions of prompts, then answers."""

    kind: Literal["evolve"]
    depth: Annotated[Path, Neutral] = Path("configs/prompts/evolve-depth.yaml")
    """Prompt file that asks for a harder version; its content is in the key."""
    breadth: Annotated[Path, Neutral] = Path("configs/prompts/evolve-breadth.yaml")
    """Prompt file that asks for a rarer one; its content is in the key."""
    methods: list[Method] = Field(default=list(ALL), min_length=1)
    """Operations to draw from, each as likely as its count in the list."""
    rounds: int = Field(default=2, gt=0)
    """Times that each prompt is evolved; one that is eliminated goes into the next round as it was."""
    gain: float = Field(default=0.9, gt=0, le=1)
    """ROUGE-L (0 to 1) to its parent from which a prompt counts as not evolved."""
    answer_seeds: bool = True
    """Answer the prompts that were given, too."""

    gives: ClassVar[Mapping[str, Sequence[str]]] = {"depth": ("method", "fence"), "breadth": ("method", "fence")}
    needs: ClassVar[Mapping[str, Sequence[str]]] = {
        "depth": ("prompt", "method", "fence"),
        "breadth": ("prompt", "fence"),
    }

    def stages(self, config: Asking) -> list[StagePlan]:
        """One request a row and round, split by the operations; answers to all versions."""
        wide = self.methods.count("breadth") / len(self.methods)
        plans = [
            StagePlan(f"evolve{number}-{name}", path, share)
            for number in range(1, self.rounds + 1)
            for name, path, share in (("depth", self.depth, 1 - wide), ("breadth", self.breadth, wide))
            if share
        ]
        return [*plans, StagePlan("answer", config.prompt_file, (self.rounds + self.answer_seeds) * config.samples)]

    def run(self, work: Work) -> Iterator[Answer | Lost]:
        """See ``RecipeBase.run``."""
        asker, files = work.asker, work.files
        given = asker.spool("evolve0", (Item(row.id, row) for row in work.rows if isinstance(row, Prompt)))
        current: Iterable[Item] = given
        children: list[Passed] = []
        for number in range(1, self.rounds + 1):
            parts: list[Passed] = []
            for name in ("depth", "breadth"):
                stage, kind = f"evolve{number}-{name}", f"prompts of evolve{number}-{name}"
                items = (
                    item
                    for item in (self._asked(item, number, asker.seed) for item in current)
                    if (item.seen["method"] == "breadth") == (name == "breadth")
                )
                found = self._made(asker, files[name], stage, kind, number, items)
                parts.append(Passed(asker, stage, counted(asker, kind, found)))
                yield from parts[-1].lost()
            children += parts
            # The child, or the parent where the child was eliminated, whose own item the loss carries.
            current = asker.spool(
                f"evolve{number}",
                (
                    one if isinstance(one, Item) else replace(one.item, sample=0, seen={})
                    for part in parts
                    for one in part
                ),
            )
        seeds: Iterable[Item] = given if self.answer_seeds else ()
        versions = chain(seeds, *(passed.items() for passed in children))
        answers = answered(replace(work, drop_flags={*work.drop_flags, "refusal"}), versions)
        yield from counted(asker, "screened answers", map(_worded, answers))

    def _asked(self, item: Item, number: int, seed: int) -> Item:
        method = self.methods[int(draw(seed, item.row.prompt, "evolve", number) * len(self.methods))]
        # The round is the sample, so that a parent that goes on is asked about afresh even by the same operation.
        return fenced(replace(item, sample=number), method=method)

    def _made(
        self, asker: Asker, prompt_file: PromptFile, stage: str, kind: str, number: int, items: Iterable[Item]
    ) -> Iterator[Item | Lost]:
        for answer in asker.ask(stage, prompt_file, items, drop_flags=UNUSABLE):
            if isinstance(answer, Lost):
                yield answer
                continue
            parent, text = answer.item.row, answer.parsed.answer
            if found := self._eliminated(answer, parent, text):
                yield Lost(answer.item, kind, found[0], f"{found[1]}: {text}", answer.teacher)
                continue
            child = child_of(parent, id=f"{answer.item.id}+{number}", prompt=text)
            note = {"method": answer.item.seen["method"], "parent": parent.prompt, "parent_id": parent.id}
            yield replace(answer.item_with(id=child.id, row=child, note=note), sample=0, seen={})

    def _eliminated(self, answer: Answer, parent: Prompt, text: str) -> Finding | None:
        if found := self.finding(text, answer, [parent.prompt]):
            return found
        if (score := rouge_l(text, parent.prompt)) >= self.gain:
            return "no_gain", f"ROUGE-L {score:.2f} to its parent"
        named = _COPIED.search(text)
        return ("copied_words", named[0]) if named and named[0].lower() not in parent.prompt.lower() else None


def _worded(answer: Answer | Lost) -> Answer | Lost:
    """WizardLM, section 3, elimination 3: an answer of punctuation alone."""
    if isinstance(answer, Answer) and not tokens(answer.parsed.answer):
        return Lost(answer.item, "screened answers", "no_words", answer.reply.text, answer.teacher)
    return answer
