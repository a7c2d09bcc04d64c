"""Texts or prompts -> who would write or ask them -> what such a person would ask -> answers.

Source: Ge et al., "Persona-Hub", arXiv 2406.20094, sections 2.1 (text to persona), 2.3 (deduplication) and 3 (prompting with a
persona, zero-shot). Deviations:
  1. Near-equal personas are told by ROUGE-L at 0.9, theirs by MinHash and embeddings at 0.9; prompts are held apart, too.
  2. No persona-to-persona expansion.
  3. Our own templates, Chinese and English; their data is not used, and its licence does not matter here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from steps.lib.chunks import chunks
from steps.lib.config import Neutral
from steps.lib.items import Answer, Item, Lost
from steps.lib.near import NearIndex
from steps.lib.programs import Asker
from steps.lib.recipe_parts import UNUSABLE, Asking, Passed, StagePlan, Work, counted, fenced
from steps.lib.recipe_prompts import NewPrompts, child_of
from steps.lib.rows import Prompt, Row, Text
from steps.lib.shortening import answered


class Personas(NewPrompts):
    """Prompts of imagined persons, then answers. Personas and prompts are held in memory, to tell near-equal ones."""

    kind: Literal["personas"]
    read_as: Literal["prompt", "text"] = "prompt"
    """What the sources hold: prompts, or documents."""
    persona: Annotated[Path, Neutral] = Path("configs/prompts/persona.yaml")
    """Prompt file that asks for a persona; its content is in the key."""
    asks: Annotated[Path, Neutral] = Path("configs/prompts/persona-prompt.yaml")
    """Prompt file that asks what the persona would ask; its content is in the key."""
    excerpt_tokens: int = Field(default=600, gt=0)
    """Tokens of a text from which a persona is imagined: its first sentences."""
    per_persona: int = Field(default=1, gt=0)
    """Requests that each persona makes."""
    persona_near: float = Field(default=0.9, gt=0, le=1)
    """ROUGE-L (0 to 1) to an earlier persona from which one is dropped."""
    near: float = Field(default=0.7, gt=0, le=1)
    """ROUGE-L (0 to 1) to an earlier request from which one is dropped."""

    gives: ClassVar[Mapping[str, Sequence[str]]] = {"persona": ("document", "fence"), "asks": ("persona", "fence")}
    needs: ClassVar[Mapping[str, Sequence[str]]] = gives

    @property
    def rows(self) -> type[Row]:
        """Prompts or documents, by ``read_as``."""
        return Text if self.read_as == "text" else Prompt

    def stages(self, config: Asking) -> list[StagePlan]:
        """One persona a row."""
        return [
            StagePlan("persona", self.persona, 1),
            StagePlan("ask", self.asks, self.per_persona),
            StagePlan("answer", config.prompt_file, self.per_persona * config.samples),
        ]

    def run(self, work: Work) -> Iterator[Answer | Lost]:
        """See ``RecipeBase.run``."""
        asker, files = work.asker, work.files
        shown = self._shown(asker, work.rows)
        found = self._made(
            asker.ask("persona", files["persona"], shown, drop_flags=UNUSABLE), "personas", self._persona
        )
        personas = Passed(asker, "personas", counted(asker, "personas", found))
        yield from personas.lost()
        asked = asker.ask("ask", files["asks"], personas.items(), samples=self.per_persona, drop_flags=UNUSABLE)
        requests = Passed(asker, "requests", counted(asker, "requests", self._made(asked, "requests", self._request)))
        yield from requests.lost()
        yield from answered(work, requests.items())

    def _shown(self, asker: Asker, rows: Iterable[Row]) -> Iterator[Item]:
        for row in rows:
            text = row.text if isinstance(row, Text) else row.prompt if isinstance(row, Prompt) else ""
            piece = next(chunks(text, asker.count, self.excerpt_tokens))
            entry: dict[str, Any] = {
                "stage": "excerpt", "document": row.id, "start": piece.start, "end": piece.end, "text": piece.text,
            }  # fmt: skip
            shown = Prompt(id=row.id, lang=row.lang, source=row.source, prompt=piece.text)
            yield fenced(Item(row.id, shown, trail=(entry,)), document=piece.text)

    def _made(
        self, answers: Iterable[Answer | Lost], kind: str, make: Callable[[Answer], Item]
    ) -> Iterator[Item | Lost]:
        index = NearIndex(self.persona_near if kind == "personas" else self.near)
        for answer in answers:
            if isinstance(answer, Lost):
                yield answer
                continue
            yield self.screened(make(answer), answer, kind, index, [answer.item.row.prompt])

    def _persona(self, answer: Answer) -> Item:
        """The persona takes the text's place: it decides the draws of the next stage."""
        child = child_of(answer.item.row, id=f"{answer.item.id}+p", prompt=answer.parsed.answer)
        return fenced(answer.item_with(id=child.id, row=child), persona=answer.parsed.answer)

    def _request(self, answer: Answer) -> Item:
        child = child_of(answer.item.row, id=f"{answer.item.id}{answer.item.sample}", prompt=answer.parsed.answer)
        return replace(answer.item_with(id=child.id, row=child), sample=0, seen={})
