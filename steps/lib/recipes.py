"""Recipes: what generate does with its rows, in stages. One is chosen by ``kind``; docs/recipes.md compares them.

``answer`` gives answers to prompts. ``self_instruct``, ``evolve`` and ``personas`` make new prompts and answer them.
``documents`` makes questions and answers that rest on documents. ``revise`` has answers reviewed and rewritten. ``correct``
puts right what users rejected. With all of them ``generate.samples`` gives several answers of the last stage, for best-of-n
and pairs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from steps.lib.programs import Answer, Asker, Item, Lost
from steps.lib.prompts import OverBudget, PromptFile
from steps.lib.recipe_documents import Documents
from steps.lib.recipe_evolve import Evolve
from steps.lib.recipe_parts import UNUSABLE, Asking, RecipeBase, StagePlan, fenced
from steps.lib.recipe_personas import Personas
from steps.lib.recipe_revise import Correct, Revise
from steps.lib.recipe_self_instruct import SelfInstruct
from steps.lib.rows import Prompt, Row

__all__ = ["AnswerRecipe", "Recipe", "StagePlan", "digests", "shorten"]


class AnswerRecipe(RecipeBase):
    """Answers to the prompts that are given."""

    kind: Literal["answer"]

    def stages(self, config: Asking) -> list[StagePlan]:
        """One stage."""
        return [StagePlan("answer", config.prompt_file, config.samples)]

    def run(
        self, asker: Asker, rows: Iterable[Row], answering: PromptFile, samples: int, drop_flags: Collection[str]
    ) -> Iterator[Answer | Lost]:
        """See ``RecipeBase.run``."""
        items = (Item(row.id, row) for row in rows if isinstance(row, Prompt))
        return asker.ask("answer", answering, items, samples=samples, drop_flags=drop_flags)


Recipe = Annotated[
    AnswerRecipe | SelfInstruct | Evolve | Documents | Personas | Revise | Correct, Field(discriminator="kind")
]
"""A recipe's configuration, chosen by ``kind``."""


def digests(recipe: RecipeBase) -> dict[str, str]:
    """Content of the prompt files of a recipe's stages, for the step's key.

    Raises:
        ConfigError: a file is missing or wrong.
    """
    return {f"recipe {name}": PromptFile.read(path).digest() for name, path in recipe.files().items()}


def shorten(asker: Asker, prompt_file: PromptFile, items: Iterable[tuple[Item, OverBudget]]) -> Iterator[Item | Lost]:
    """Items whose longest text did not fit, with a summary in its place (``over_budget: summarise``).

    The summary is what a template shows; the row keeps its own prompt, and the trail the text as it was. A summary that is
    still too long is lost as ``over_budget``, never cut.

    Args:
        asker: asks the teachers.
        prompt_file: asks for a summary of ``document`` in ``count`` tokens (configs/prompts/summarise.yaml).
        items: with what did not fit.
    """
    waiting: deque[tuple[Item, OverBudget]] = deque()

    def asked() -> Iterator[Item]:
        for item, over in items:
            waiting.append((item, over))
            yield fenced(Item(item.id, item.row), document=over.text, count=over.room)

    for answer in asker.ask("shorten", prompt_file, asked(), drop_flags=UNUSABLE):
        item, over = waiting.popleft()  # answers come in the order of the items
        if isinstance(answer, Lost):
            yield replace(answer, item=item)
            continue
        short = answer.parsed.answer
        if (size := asker.count(short)) > over.room:
            yield Lost(item, "summaries", "over_budget", f"{size} tokens, at most {over.room}: {short}", answer.teacher)
            continue
        note = {"variable": over.variable, "text": over.text}
        yield replace(
            item, seen={**item.seen, over.variable: short}, trail=(*item.trail, answer.item_with(note=note).trail[-1])
        )
