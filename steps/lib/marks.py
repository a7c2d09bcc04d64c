"""Flags on a teacher's answers: what may be wrong with one, as reason codes. Nothing here changes an answer.

| flag | what was seen |
|---|---|
| truncated | the server says that the answer was cut off (finish_reason length) |
| empty, unparsed, schema, repaired | how the prompt file's parser read it |
| refusal | it opens with a refusal to help |
| identity | it speaks of itself as an AI, or names its maker |
| think_tag | marks of hidden reasoning |
| special_tokens | a chat template's own marks |
| prompt_leak | words of the prompt file's instructions, or the headings of a known template |
| near_copy | it copies the answer of an example that was shown |
| echo | it is the prompt |
| wrong_language | it is in another language than the row, and the prompt asks for none |
| repetition | it goes round in circles |
| same_answer | all answers to the prompt are equal |

Which of them drop is ``drop_flags``. ``DROPPED`` is what nobody can use: cut off, empty, not of the asked shape, or with marks
in it that would open a turn when a model is trained on it. The others may be right in some task (a refusal is the right answer to
a bad request), so they are noted, counted, and left to ``clean`` (``allowed_flags``).

What is *not* judged: whether an answer follows instructions that stand in the material it was given (prompt injection). No
pattern tells that from an answer that speaks about them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

from steps.lib import phrases
from steps.lib.answers import wrong_language
from steps.lib.document_rules import repeated
from steps.lib.likeness import SIZE, folded, jaccard, known_shingles, said, shingles
from steps.lib.prompts import PromptFile
from steps.lib.repeats import without_frames
from steps.lib.rows import Lang
from steps.lib.rules import Language

Flag = Literal[
    "truncated", "empty", "unparsed", "schema", "repaired", "refusal", "identity", "think_tag", "special_tokens",
    "prompt_leak", "near_copy", "echo", "wrong_language", "repetition", "same_answer",
]  # fmt: skip
FLAGS: tuple[Flag, ...] = get_args(Flag)
DROPPED: tuple[Flag, ...] = ("truncated", "empty", "unparsed", "schema", "special_tokens")
"""The default of ``drop_flags``."""

COPY = 0.8
"""Jaccard similarity to a shown example's answer from which an answer is its copy: a name or a number may differ."""
TELLING = 96
"""UTF-8 bytes of folded text (32 Chinese characters, 96 Latin ones) that an answer has at least before it can be called a copy:
shorter ones come again because there is no other way to say it."""
CLOSED = 0.2
"""Share of a file's examples whose answer stands at another example, too, from which the task counts as one with a closed set
of answers, in which equal answers are no copies."""
RUN = {"zh": (8, 20), "en": (24, 60)}
"""Folded characters of a piece of the instructions, and how many of such pieces side by side make a leak."""
LOOPS = 0.5
"""Share of repeated pieces in a stretch of an answer above which it goes round in circles; the limit of clean's filter."""


class Marks:
    """The flags of answers to one prompt file.

    Args:
        file: its instructions must not come back, and its examples must not be copied.
    """

    def __init__(self, file: PromptFile) -> None:
        self._closed = closed([example.answer for example in file.pool])
        self._instructions = [
            _Instruction(text, size, run)
            for lang, (size, run) in RUN.items()
            for text in instructions(file, "zh" if lang == "zh" else "en")
            if len(folded(text)) >= size
        ]

    def of(
        self,
        answer: str,
        *,
        prompt: str,
        lang: Lang,
        shown: Iterable[str] = (),
        parsed: Sequence[str] = (),
        finish_reason: str = "stop",
        material: Iterable[Any] = (),
    ) -> tuple[str, ...]:
        """The flags of an answer, in the order of ``FLAGS``.

        Args:
            answer: as it was read by the prompt file's parser.
            prompt: the row's own text.
            lang: the row's language; "other": not judged.
            shown: answers of the examples that stood before the prompt.
            parsed: flags of the parser.
            finish_reason: as the server gave it.
            material: what else stood in the prompt, such as a document; an answer may be in its language.
        """
        found = set(parsed)
        if finish_reason == "length":
            found.add("truncated")
        if answer:
            words = said(answer)
            bare = folded(words)
            found |= self._about(answer, words, bare, prompt, shown)
            if not found & {"unparsed", "schema"} and wrong_language(words, prompt, lang, material):
                found.add("wrong_language")
        return tuple(flag for flag in FLAGS if flag in found) + tuple(sorted(found - set(FLAGS)))

    def _about(self, answer: str, words: str, bare: str, prompt: str, shown: Iterable[str]) -> set[str]:
        asked = folded(prompt)
        checks = {
            "refusal": phrases.refusal(words),
            "identity": phrases.identity(words),
            "think_tag": phrases.think_tag(answer),
            "special_tokens": phrases.special_token(answer),
            "prompt_leak": phrases.template_heading(answer)
            or any(one.leaks(bare, asked) for one in self._instructions),
            "near_copy": not self._closed and any(copies(bare, one) for one in shown),
            "echo": bare == asked and bool(bare),
            "repetition": loops(answer),
        }
        return {flag for flag, hit in checks.items() if hit}


def instructions(file: PromptFile, lang: Language) -> list[str]:
    """What a prompt file itself says to a teacher, without anything of a row: nothing of it belongs into an answer."""
    user = file.user if isinstance(file.user, str) else file.user.of(lang)
    texts = [file.system.of(lang), user]
    if file.chain_of_thought.mode != "none":
        texts.append(file.chain_of_thought.instruction.of(lang))
    return [part.strip() for text in texts for part in _VARIABLE.split(text) if part.strip()]


def closed(answers: Sequence[str]) -> bool:
    """Whether a task seems to have a closed set of answers, judged by the examples of its prompt file.

    It has when more than one in five says what another one says; so a classifier's labels, yes and no, or a desk with fixed
    sentences. One example says nothing.
    """
    bare = [folded(answer) for answer in answers]
    again = sum(bare.count(one) > 1 for one in bare)
    return again > CLOSED * len(bare)


def copies(bare: str, shown: str) -> bool:
    """Whether folded words copy an example's answer. Labels of JSON, such as an intent, are left out of both."""
    other = _bare(shown)
    if bare == other:
        return len(bare.encode()) >= TELLING
    if len(bare.encode()) < TELLING or not COPY <= len(bare) / max(1, len(other)) <= 1 / COPY:
        return False  # no sets of so different sizes are that alike
    pieces = known_shingles(other)
    looks = [bare[place : place + SIZE] in pieces for place in range(0, len(bare), 4)]
    if sum(looks) < 0.2 * len(looks):  # a quarter of the pieces: were four fifths shared, a fifth of these would be
        return False
    return jaccard(shingles(bare), pieces) >= COPY


def loops(answer: str) -> bool:
    """Whether the answer repeats itself: in any stretch of it, or, where it is short, all over. Rules and frames, which are
    drawn with one mark, count for nothing."""
    if len(answer) < 100:
        return bool(_SHORT_LOOP.search(without_frames(answer)))
    if not any(_may_loop(answer[start : start + 1000]) for start in range(0, max(1, len(answer) - 500), 1000)):
        return False
    return repeated(without_frames(answer)) > LOOPS


def _may_loop(stretch: str) -> bool:
    """A quick look: of the pieces that begin with some frequent letter, as many come again as of all pieces."""
    looks = [stretch[found.start() : found.start() + 20] for found in _FREQUENT.finditer(stretch)]
    return len(looks) < 10 or len(set(looks)) < 0.85 * len(looks)


class _Instruction:
    """One text of a prompt file, folded, and its pieces."""

    def __init__(self, text: str, size: int, run: int) -> None:
        self._text, self._size = folded(text), size
        self._pieces = known_shingles(self._text, size)
        self._ascii = self._text.isascii()
        self._run = min(run, max(size, int(0.8 * len(self._text))))

    def leaks(self, bare: str, asked: str) -> bool:
        """Whether so much of it stands in the answer, and not in the prompt."""
        size, pieces = self._size, self._pieces
        if bare.isascii() and not self._ascii:
            return False
        if not any(bare[place : place + size] in pieces for place in range(0, len(bare) - size + 1, size)):
            return False  # a run of twice the size holds a piece that begins at one of these places
        held = {bare[place : place + size] for place in range(len(bare) - size + 1)} & pieces
        own = sum(piece not in asked for piece in held)
        return own > 0 and own + size - 1 >= self._run


@lru_cache(maxsize=4096)
def _bare(example: str) -> str:
    """Folded words of an example: the same few come again and again."""
    return folded(said(example))


_VARIABLE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_FREQUENT = re.compile(r"[o，。的一是在]")
_SHORT_LOOP = re.compile(r"(.{1,12}?)\1{5,}", re.DOTALL)
