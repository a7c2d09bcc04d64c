"""New prompts of recipes: how they are read out of a reply, and why one is not kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence

from steps.lib.fences import fence_in
from steps.lib.items import Answer, Item, Lost
from steps.lib.language import detect
from steps.lib.near import NearIndex
from steps.lib.phrases import special_token
from steps.lib.quality import Finding
from steps.lib.recipe_parts import RecipeBase
from steps.lib.rendering import language_for
from steps.lib.replies import Parsed
from steps.lib.rows import Prompt
from steps.lib.shingles import tokens

RUN = (10, 8)
"""Chinese characters, and words, in a row that are copied when the instruction has them, too."""
_CLAUSE = re.compile(r"[^\n。！？!?；;：:.]+")
_LISTED = re.compile(r"^[ \t]*(?:(?:[\[【(（]?\d{1,3}[\]】)）.、．:：]|[-*•])[ \t]*)+(\S.*)$", re.MULTILINE)


class NewPrompts(RecipeBase):
    """What recipes that make prompts ask of each."""

    min_chars: int = 4
    """Characters (letters, digits, CJK) a new prompt has at least."""
    max_chars: int = 4000
    """Characters a new prompt has at most."""
    same_language: bool = True
    """Drop a new prompt that is not in the language of the row it comes from."""

    def finding(self, text: str, answer: Answer, shown: Sequence[str]) -> Finding | None:
        """Why a new prompt is not kept, or None.

        Args:
            text: the new prompt.
            answer: it stands in.
            shown: the material that the teacher saw, whose words it may use.
        """
        visible = sum(map(len, tokens(text)))
        if visible < self.min_chars:
            return "too_short", f"{visible} characters, at least {self.min_chars}"
        if len(text) > self.max_chars:
            return "too_long", f"{len(text)} characters, at most {self.max_chars}"
        if mark := special_token(text):
            return "special_token", mark
        lang = language_for(answer.item.row)
        if self.same_language and (got := detect(text)) != lang:
            return "wrong_language", f"{got}, not {lang}"
        instruction = answer.rendered.messages[-1]["content"]
        if mark := copied_words(text, shown, instruction, str(answer.item.seen.get("fence", ""))):
            return "copied_words", mark
        if any(text in example.answer for example in answer.rendered.examples):
            return "near_copy", "it stands in the answer of an example that was shown"
        return None

    def screened(
        self, item: Item, answer: Answer, kind: str, index: NearIndex, shown: Sequence[str], seeds: Collection[str] = ()
    ) -> Item | Lost:
        """A new item, which the index then holds, or why it is not kept: for itself, or because an earlier one is near.

        Args:
            item: its prompt is the new text.
            answer: it stands in.
            kind: of row, for the counts.
            index: texts so far.
            shown: see ``finding``.
            seeds: names in the index that are of given prompts.
        """
        text = item.row.prompt
        found = self.finding(text, answer, shown)
        if found is None and (near := index.nearest(text)) is not None:
            reason = "near_seed" if near.name in seeds else "near_earlier"
            found = reason, f"ROUGE-L {near.score:.2f} to {near.name}"
        if found is not None:
            return Lost(item, kind, *found, answer.teacher)
        index.add(item.id, text)
        return item

    def entries(
        self, answer: Answer, kind: str, field: str, most: int, keep: Callable[[int, str], Item | Lost]
    ) -> Iterator[Item | Lost]:
        """Items of the list that was asked for. No entry is a loss, and so are those over ``most``, together.

        Args:
            answer: holds the list.
            kind: of row, for the counts.
            field: of the JSON answer that holds it.
            most: entries that were asked for.
            keep: what becomes of an entry, by its place and text.
        """
        texts = listed(answer.parsed, field)
        if not texts:
            yield Lost(answer.item, kind, "no_list", answer.reply.text, answer.teacher)
        for place, text in enumerate(texts[:most]):
            yield keep(place, text)
        if extra := texts[most:]:
            yield Lost(answer.item, kind, "surplus", "\n".join(extra), answer.teacher)


def copied_words(text: str, shown: Sequence[str], instruction: str, fence: str) -> str:
    """Words of the instruction in a text that should be the teacher's own; "" where there are none.

    A fence counts, a whole clause of the instruction (6 words or 8 Chinese characters, or more), and any stretch of ``RUN`` of
    them; words of what was shown in the instruction do not.
    """
    if mark := fence_in(text, fence):
        return mark
    for material in shown:
        instruction = instruction.replace(material, "\n")
    for clause in _CLAUSE.findall(instruction):
        words = str(clause).strip()
        if (
            len(tokens(words)) >= (6 if words.isascii() else 8)
            and words in text
            and not any(words in one for one in shown)
        ):
            return words
    told = _stretches(instruction)
    copied = [stretch for stretch in _stretches(text) if stretch in told]
    if copied:
        own = set().union(*map(_stretches, shown))
        copied = [stretch for stretch in copied if stretch not in own]
    return " ".join(copied[0]) if copied else ""


def _stretches(text: str) -> dict[tuple[str, ...], None]:
    """All stretches of a text that are as long as ``RUN`` says, in their order."""
    words = tokens(text)
    found = (tuple(words[at : at + size]) for size in RUN for at in range(len(words) - size + 1))
    return dict.fromkeys(one for one in found if len(one) == RUN["".join(one).isascii()])


def listed(parsed: Parsed, field: str) -> list[str]:
    """The texts of a list that was asked for: a field of the JSON value where there is one, else numbered lines.

    Numbers and dashes at the front of a line are no part of its text. Where no line has one, those that end with a question mark
    are the list; nothing else is taken for an entry.
    """
    if parsed.value is None:
        numbered = [found.strip() for found in _LISTED.findall(parsed.answer)]
        return numbered or [line.strip() for line in parsed.answer.splitlines() if line.rstrip().endswith(("?", "？"))]
    entries = parsed.value.get(field) if isinstance(parsed.value, dict) else None
    return [one.strip() for one in entries if isinstance(one, str) and one.strip()] if isinstance(entries, list) else []


def child_of(row: Prompt, *, id: str, prompt: str) -> Prompt:
    """A new prompt that comes from a row: its source and language, none of its labels, which are of the old prompt."""
    return Prompt(id=id, lang=row.lang, source=row.source, prompt=prompt)
