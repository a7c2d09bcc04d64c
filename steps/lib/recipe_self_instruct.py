"""Seeds -> new prompts like them -> answers.

Source: Wang et al., "Self-Instruct", arXiv 2212.10560, section 2.2. Deviations:
  1. Each seed leads one request a round, in place of requests until a number is reached: costs are known before.
  2. Demonstrations are of the seed's language, drawn by the run's seed and the texts; the machine-made ones come from rounds
     that are over, so that no request hangs on the order in which answers arrive.
  3. ROUGE-L is over words and single CJK characters (``near``); theirs splits at spaces and has a test for ASCII.
  4. No step that tells classification from other tasks, and answers are asked for one prompt at a time.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from steps.lib.config import Neutral
from steps.lib.items import Answer, Item, Lost
from steps.lib.near import NearIndex
from steps.lib.programs import Asker
from steps.lib.prompts import PromptFile
from steps.lib.recipe_parts import (
    UNUSABLE,
    Asking,
    Passed,
    StagePlan,
    Work,
    counted,
    fenced,
)
from steps.lib.recipe_prompts import NewPrompts, child_of
from steps.lib.rendering import language_for
from steps.lib.rows import Prompt, Row
from steps.lib.rules import Language
from steps.lib.shortening import answered


class SelfInstruct(NewPrompts):
    """New prompts after the manner of seeds, then answers. Seeds and new prompts are held in memory."""

    kind: Literal["self_instruct"]
    new: Annotated[Path, Neutral] = Path("configs/prompts/self-instruct.yaml")
    """Prompt file that asks for new prompts; its content is in the key."""
    rounds: int = Field(default=2, gt=0)
    """Times that each seed leads a request; later rounds show prompts of earlier ones."""
    per_request: int = Field(default=4, gt=0)
    """New prompts that one request asks for."""
    seeds_shown: int = Field(default=6, gt=0)
    """Seeds among the demonstrations, with the leading one."""
    made_shown: int = Field(default=2, ge=0)
    """New prompts of earlier rounds among the demonstrations."""
    near: float = Field(default=0.7, gt=0, le=1)
    """ROUGE-L (0 to 1) to an earlier prompt from which a new one is dropped."""
    answer_seeds: bool = True
    """Answer the seeds, too."""

    gives: ClassVar[Mapping[str, Sequence[str]]] = {"new": ("shown", "count", "fence")}
    needs: ClassVar[Mapping[str, Sequence[str]]] = {"new": ("shown", "fence")}
    reads: ClassVar[Mapping[str, str]] = {"new": "prompts"}

    def stages(self, config: Asking) -> list[StagePlan]:
        """One request a seed and round; answers to all that may come of them."""
        answers = self.rounds * self.per_request + self.answer_seeds
        rounds = [StagePlan(f"new{number}", self.new, 1) for number in range(1, self.rounds + 1)]
        return [*rounds, StagePlan("answer", config.prompt_file, answers * config.samples)]

    def run(self, work: Work) -> Iterator[Answer | Lost]:
        """See ``RecipeBase.run``."""
        asker, files = work.asker, work.files
        seeds, twice = _distinct(work.rows)
        yield from twice
        index = NearIndex(self.near)
        pool: dict[Language, list[str]] = {"zh": [], "en": []}
        made: dict[Language, list[str]] = {"zh": [], "en": []}
        for row in seeds:
            index.add(row.id, row.prompt)
            pool[language_for(row)].append(row.prompt)
        names = {row.id for row in seeds}
        rounds: list[Passed] = []
        for number in range(1, self.rounds + 1):
            leads = (Item(row.id, row) for row in seeds)
            asked = (self._shown(item, number, asker.seed, pool, made) for item in leads)
            kind = f"prompts of new{number}"
            found = self._made(asker, files["new"], number, kind, asked, index, names)
            passed = Passed(asker, f"new{number}", counted(asker, kind, found))
            yield from passed.lost()
            for item in passed.items():
                made[language_for(item.row)].append(item.row.prompt)
            for texts in made.values():
                texts.sort()
            rounds.append(passed)
        first = (Item(row.id, row) for row in seeds) if self.answer_seeds else iter(())
        items = chain(first, *(passed.items() for passed in rounds))
        yield from answered(work, items)

    def _shown(
        self,
        item: Item,
        number: int,
        seed: int,
        pool: Mapping[Language, Sequence[str]],
        made: Mapping[Language, Sequence[str]],
    ) -> Item:
        lang, own = language_for(item.row), item.row.prompt
        draw = random.Random(f"{seed}\n{number}\n{own}")
        others = [text for text in draw.sample(pool[lang], min(self.seeds_shown, len(pool[lang]))) if text != own]
        machine = draw.sample(made[lang], min(self.made_shown, len(made[lang])))
        shown = [own, *others[: self.seeds_shown - 1], *machine]
        draw.shuffle(shown)
        return fenced(item, shown=shown, count=self.per_request)

    def _made(
        self,
        asker: Asker,
        prompt_file: PromptFile,
        number: int,
        kind: str,
        items: Iterable[Item],
        index: NearIndex,
        seeds: Collection[str],
    ) -> Iterator[Item | Lost]:
        for answer in asker.ask(f"new{number}", prompt_file, items, drop_flags=UNUSABLE):
            if isinstance(answer, Lost):
                yield answer
                continue
            shown = answer.item.seen["shown"]

            def keep(place: int, text: str, answer: Answer = answer, shown: Sequence[str] = shown) -> Item | Lost:
                row = answer.item.row
                child = child_of(row, id=f"{row.id}+{number}.{place}", prompt=text)
                item = replace(answer.item_with(id=child.id, row=child, note={"shown": shown}), seen={})
                return self.screened(item, answer, kind, index, shown, seeds)

            yield from self.entries(answer, kind, "prompts", self.per_request, keep)


def _distinct(rows: Iterable[Row]) -> tuple[list[Prompt], list[Lost]]:
    """Seeds in the order of their texts, whatever the order they came in, and those whose text an other one has."""
    seeds: list[Prompt] = []
    twice: list[Lost] = []
    given = sorted((row for row in rows if isinstance(row, Prompt)), key=lambda row: (row.prompt, row.id))
    for row in given:
        if seeds and seeds[-1].prompt == row.prompt:
            twice.append(Lost(Item(row.id, row), "seeds", "duplicate", f"the same text as {seeds[-1].id}"))
        else:
            seeds.append(row)
    return seeds, twice
