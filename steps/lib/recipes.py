"""Recipes: what generate does with its rows, in stages. One is chosen by ``kind``; docs/recipes.md compares them.

``answer`` gives answers to prompts. ``self_instruct``, ``evolve`` and ``personas`` make new prompts and answer them.
``documents`` makes questions and answers that rest on documents. ``revise`` has answers reviewed and rewritten. ``correct``
puts right what users rejected. With all of them ``generate.samples`` gives several answers of the last stage, for best-of-n
and pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from steps.lib.items import Answer, Item, Lost
from steps.lib.recipe_documents import Documents
from steps.lib.recipe_evolve import Evolve
from steps.lib.recipe_parts import Asking, RecipeBase, StagePlan, Work
from steps.lib.recipe_personas import Personas
from steps.lib.recipe_revise import Correct, Revise
from steps.lib.recipe_self_instruct import SelfInstruct
from steps.lib.rows import Prompt
from steps.lib.shortening import answered


class AnswerRecipe(RecipeBase):
    """Answers to the prompts that are given."""

    kind: Literal["answer"]

    def stages(self, config: Asking) -> list[StagePlan]:
        """One stage."""
        return [StagePlan("answer", config.prompt_file, config.samples)]

    def run(self, work: Work) -> Iterator[Answer | Lost]:
        """See ``RecipeBase.run``."""
        items = (Item(row.id, row) for row in work.rows if isinstance(row, Prompt))
        return answered(work, items)


Recipe = Annotated[
    AnswerRecipe | SelfInstruct | Evolve | Documents | Personas | Revise | Correct, Field(discriminator="kind")
]
"""A recipe's configuration, chosen by ``kind``."""


def digests(recipe: RecipeBase, answering: Path) -> dict[str, str]:
    """Content of the prompt files of a recipe's stages, for the step's key.

    Raises:
        ConfigError: a file is missing or wrong, or does not go with its stage.
    """
    files = recipe.read(answering)
    return {f"recipe {name}" if name else "prompt file": file.digest() for name, file in files.items()}
