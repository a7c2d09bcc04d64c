"""Documents -> pieces -> questions -> answers that rest on the piece -> a check that they do. The piece is kept as evidence.

Source: the flow of InstructLab SDG and its successor sdg_hub (documents -> questions and answers -> faithfulness critic), after
Sudalairaj et al., "LAB", arXiv 2403.01081, section 3.2.2 (knowledge: grounded answers, then a check of faithfulness).
Deviations:
  1. Pieces are cut by the teacher's tokens at sentences of both languages (``chunks``), with overlap; every one is counted.
  2. Questions come as one list a piece, so that they differ; answers are asked for one by one, so that they can be sampled.
  3. The check gives true or false by schema. What cannot be read is missing, and its answer is dropped, never kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, model_validator

from steps.lib.chunks import Chunk, chunks
from steps.lib.config import Neutral
from steps.lib.fences import disarm
from steps.lib.items import Answer, Item, Lost
from steps.lib.near import NearIndex
from steps.lib.opened import open_source
from steps.lib.programs import Asker
from steps.lib.prompts import PromptFile
from steps.lib.quality import Finding
from steps.lib.recipe_parts import (
    UNUSABLE,
    Asking,
    Passed,
    StagePlan,
    Work,
    counted,
    fenced,
    most_tokens,
    unfenced,
)
from steps.lib.recipe_prompts import NewPrompts, child_of
from steps.lib.rows import Prompt, Row, Text
from steps.lib.shortening import answered
from steps.lib.sources import Rejected

LOOKED_AT = 200
"""Documents of each source that are cut for an estimate."""
_SILENT = re.compile(r"\A\W*(?:the (?:text|passage) does(?: not|n't|n’t) say|材料里没有答案)\W*\Z", re.IGNORECASE)
_LOOSE = re.compile(
    r"\b(?:this|the) (?:text|passage|author|article|excerpt|paragraph)\b|\babove\b|文中|本文|作者|上述|上文|这段|该段|材料",
    re.IGNORECASE,
)


class Documents(NewPrompts):
    """Questions and answers from documents."""

    kind: Literal["documents"]
    questions: Annotated[Path, Neutral] = Path("configs/prompts/documents-questions.yaml")
    """Prompt file that asks for questions; its content is in the key."""
    check: Annotated[Path | None, Neutral] = Path("configs/prompts/documents-check.yaml")
    """Prompt file that asks whether the piece supports the answer; null: no check."""
    chunk_tokens: int = Field(default=800, gt=0)
    """Tokens of the teacher that a piece of a document may have."""
    overlap_tokens: int = Field(default=80, ge=0)
    """Tokens of whole sentences that a piece repeats of the one before it, at most."""
    min_tokens: int = Field(default=40, ge=0)
    """Tokens that are new in a piece, at least; a shorter rest is dropped and counted."""
    per_chunk: int = Field(default=3, gt=0)
    """Questions that one request asks for."""
    near: float = Field(default=0.7, gt=0, le=1)
    """ROUGE-L (0 to 1) to an earlier question of the same document from which one is dropped."""
    standalone: bool = True
    """Drop questions that point at "the text" or "the author", which nobody sees beside them."""

    gives: ClassVar[Mapping[str, Sequence[str]]] = {
        "": ("document", "fence"),
        "questions": ("document", "count", "fence"),
        "check": ("document", "answer", "fence"),
    }
    needs: ClassVar[Mapping[str, Sequence[str]]] = {
        "": ("prompt", "document", "fence"),
        "questions": ("document", "fence"),
        "check": ("prompt", "document", "answer", "fence"),
    }
    reads: ClassVar[Mapping[str, str]] = {"questions": "questions", "check": "supported"}

    @model_validator(mode="after")
    def _moves(self) -> Documents:
        if self.overlap_tokens >= self.chunk_tokens:
            raise ValueError(
                f"overlap_tokens is {self.overlap_tokens} and chunk_tokens {self.chunk_tokens}, because a piece must bring "
                "something new; lower overlap_tokens"
            )
        return self

    @property
    def rows(self) -> type[Row]:
        """Documents."""
        return Text

    def stages(self, config: Asking) -> list[StagePlan]:
        """By the pieces of the first documents of each source."""
        documents = pieces = 0
        count = most_tokens(config.teachers)
        for source in config.prompts:
            for _, row in zip(range(LOOKED_AT), open_source(source, Text), strict=False):
                if not isinstance(row, Rejected):
                    documents += 1
                    pieces += sum(one.fresh >= self.min_tokens for one in self._cut(row.text, count))
        mean = pieces / documents if documents else 0.0
        answers = mean * self.per_chunk * config.samples
        plans = [
            StagePlan("questions", self.questions, mean),
            StagePlan("answer", config.prompt_file, answers),
        ]
        return [*plans, StagePlan("support", self.check, answers)] if self.check else plans

    def run(self, work: Work) -> Iterator[Answer | Lost]:
        """See ``RecipeBase.run``."""
        asker, files = work.asker, work.files
        pieces = Passed(asker, "chunks", counted(asker, "chunks", self._pieces(asker, work.rows)))
        yield from pieces.lost()
        asked = Passed(asker, "questions", counted(asker, "made questions", self._asked(asker, files, pieces)))
        yield from asked.lost()
        said = answered(work, asked.items())
        answers = counted(asker, "screened answers", map(_spoken, unfenced("screened answers", said)))
        if not self.check:
            yield from answers
            return
        whole: TypeAdapter[Answer] = TypeAdapter(Answer)
        given = Passed(asker, "answers", (_to_check(answer, whole) for answer in answers))
        yield from given.lost()
        yield from counted(asker, "checked answers", self._checked(asker, files["check"], given.items(), whole))

    def _problems(self, name: str, path: Path, file: PromptFile) -> Iterator[str]:
        yield from super()._problems(name, path, file)
        if name == "check" and file.schema_ is None:
            yield (
                f"generate.recipe.check ({path}), schema is missing: got none, because a verdict in free text is never read; "
                "write one with the field supported (boolean), or check: null"
            )

    def _cut(self, text: str, count: Any) -> Iterator[Chunk]:
        return chunks(text, count, self.chunk_tokens, self.overlap_tokens)

    def _pieces(self, asker: Asker, rows: Iterable[Row]) -> Iterator[Item | Lost]:
        for row in rows:
            for number, piece in enumerate(self._cut(row.text, asker.count) if isinstance(row, Text) else ()):
                made = Prompt(id=f"{row.id}#{number}", lang=row.lang, source=row.source, prompt=piece.text)
                entry = {
                    "stage": "chunk",
                    "document": row.id,
                    "start": piece.start,
                    "end": piece.end,
                    "text": piece.text,
                }
                item = Item(made.id, made, trail=(entry,))
                if piece.fresh < self.min_tokens:
                    detail = f"{piece.fresh} new tokens, at least {self.min_tokens}"
                    yield Lost(item, "chunks", "short_rest" if number else "too_short", detail)
                else:
                    yield fenced(item, document=piece.text, count=self.per_chunk)

    def _asked(self, asker: Asker, files: Mapping[str, PromptFile], pieces: Passed) -> Iterator[Item | Lost]:
        document, index, kind = "", NearIndex(self.near), "made questions"
        for answer in asker.ask("questions", files["questions"], pieces.items(), drop_flags=UNUSABLE):
            if isinstance(answer, Lost):
                yield answer
                continue
            if (own := answer.item.trail[0]["document"]) != document:
                document, index = own, NearIndex(self.near)

            def keep(place: int, text: str, answer: Answer = answer, index: NearIndex = index) -> Item | Lost:
                piece = answer.item.trail[0]["text"]
                child = child_of(answer.item.row, id=f"{answer.item.id}.{place}", prompt=text)
                item = fenced(answer.item_with(id=child.id, row=child), document=piece)
                return self.screened(item, answer, kind, index, [piece])

            yield from self.entries(answer, kind, "questions", self.per_chunk, keep)

    def finding(self, text: str, answer: Answer, shown: Sequence[str]) -> Finding | None:
        """See ``NewPrompts.finding``; and whether a question can be understood alone."""
        if found := super().finding(text, answer, shown):
            return found
        loose = _LOOSE.search(text) if self.standalone else None
        return ("not_standalone", loose[0]) if loose else None

    def _checked(
        self, asker: Asker, prompt_file: PromptFile, items: Iterable[Item], whole: TypeAdapter[Answer]
    ) -> Iterator[Answer | Lost]:
        for check in asker.ask("support", prompt_file, items, drop_flags=UNUSABLE - {"refusal"}):
            if isinstance(check, Lost):
                yield check
                continue
            answer = whole.validate_python(check.item.seen["whole"])
            value = check.parsed.value
            supported = value.get("supported") if isinstance(value, dict) else None
            if supported is not True:
                reason = "unsupported" if supported is False else "unparsed"
                yield Lost(answer.item, "checked answers", reason, check.reply.text, check.teacher)
            else:
                yield replace(answer, item=replace(answer.item, trail=check.item_with().trail))


def _spoken(answer: Answer | Lost) -> Answer | Lost:
    if isinstance(answer, Answer) and _SILENT.match(answer.parsed.answer):
        return Lost(answer.item, "screened answers", "no_answer", answer.reply.text, answer.teacher)
    return answer


def _to_check(answer: Answer | Lost, whole: TypeAdapter[Answer]) -> Item | Lost:
    """The item that asks about an answer. It carries the answer itself, as data, past the stage."""
    if isinstance(answer, Lost):
        return answer
    text = disarm(answer.parsed.answer, "supported")
    document = disarm(answer.item.seen["document"], "supported")
    item = fenced(replace(answer.item, id=f"{answer.item.id}/{answer.item.sample}"), document=document, answer=text)
    return replace(item, seen={**item.seen, "whole": whole.dump_python(answer, mode="json")})
