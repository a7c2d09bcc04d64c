"""Row filters: a reason code each, and the thresholds that switch them.

``judge_texts`` gives the first reason for which a document is not kept, or None, by the measures of ``document_rules``; chats are
judged in ``chat_rules``. Rules count characters, never words between spaces: Chinese has none (DATA.md 3.4
lists the English rules that keep 0 % of good Chinese documents).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from steps.lib import document_rules as rules
from steps.lib.codepoints import HAN, HANGUL, Batch, batches
from steps.lib.config import Added, Section
from steps.lib.language import chinese, languages
from steps.lib.phrases import special_token
from steps.lib.rows import Lang

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Finding = tuple[str, str]
"""Reason code, and what was seen."""


class Filters(Section):
    """Thresholds of the row filters; null (or false) switches one off."""

    languages: list[Lang] = ["zh", "en"]
    """Languages that are kept; rows with under 20 letters are not judged. An empty list keeps all."""
    text_min_chars: int | None = Field(default=20, ge=0)
    """Characters a document has at least."""
    text_max_chars: int | None = Field(default=100_000, ge=1)
    """Characters a document has at most."""
    word_ratio: float | None = Field(default=0.7, ge=0, le=1)
    """Share of letters, digits and CJK among a document's visible characters, at least."""
    symbol_ratio: float | None = Field(default=0.02, ge=0, le=1)
    """Share of # and … in a document, at most."""
    sentence_marks: float | None = Field(default=0.001, ge=0, le=1)
    """Share of sentence marks (。！？.!?) in a document, at least."""
    duplicate_lines: float | None = Field(default=0.3, ge=0, le=1)
    """Share of a document's lines that stood there before, at most."""
    repetition: float | None = Field(default=0.5, ge=0, le=1)
    """Share of repeated 20-character pieces in any stretch of 1,000 characters of a document or answer, at most."""
    lost_characters: float | None = Field(default=0.01, ge=0, le=1)
    """Share of characters of a document that a wrong encoding has destroyed (U+FFFD, 锟斤拷), at most."""
    duplicate_line_chars: Annotated[float | None, Added] = Field(default=None, ge=0, le=1)
    """Share of a document's characters in lines that stood there before, at most."""
    top_piece: float | None = Field(default=0.3, ge=0, le=1)
    """Share of a document's characters that its most frequent piece (zh 4, en 12 characters) covers, at most."""
    bullet_lines: Annotated[float | None, Added] = Field(default=None, ge=0, le=1)
    """Share of lines that begin with a bullet, at most, in documents of 5 lines or more."""
    ellipsis_lines: float | None = Field(default=0.3, ge=0, le=1)
    """Share of lines that end in … or ..., at most, in documents of 5 lines or more."""
    open_lines: Annotated[float | None, Added] = Field(default=None, ge=0, le=1)
    """Share of lines that end without a mark, at most, in documents of 5 lines or more."""
    short_lines: Annotated[float | None, Added] = Field(default=None, ge=0, le=1)
    """Share of lines of up to 30 characters (zh: 10), at most, in documents of 5 lines or more."""
    braces: Annotated[float | None, Added] = Field(default=None, ge=0, le=1)
    """Share of { and } in a document, at most; off, because documents may quote code."""
    word_min_chars: Annotated[float | None, Added] = Field(default=None, ge=0)
    """Characters of a word in the mean, at least; documents with Han, kana or Hangul are not judged."""
    word_max_chars: Annotated[float | None, Added] = Field(default=None, ge=0)
    """Characters of a word in the mean, at most; documents with Han, kana or Hangul are not judged."""
    stop_words: Annotated[int | None, Added] = Field(default=None, ge=0)
    """Different words of the commonest (en: the, be, to, of ...; zh: 的是在了和有不) in a document of 100 letters, at least."""
    lorem_ipsum: bool = True
    """Drop documents with filler text (lorem ipsum, 此处为占位文字)."""
    script_notice: bool = True
    """Drop short documents that ask for JavaScript: the page itself was not read."""
    chat_max_chars: int | None = Field(default=20_000, ge=1)
    """Characters a conversation has at most."""
    special_tokens: bool = True
    """Drop rows whose text holds a chat template's own marks, such as <|im_start|>."""
    think_tags: bool = True
    """Drop chats whose answers hold <think> or </think>."""
    identity: bool = True
    """Drop chats whose answers speak "as an AI language model" (作为一个AI语言模型)."""
    refusal: bool = True
    """Drop chats whose last answer opens with a refusal to help."""
    prompt_leak: bool = True
    """Drop chats whose answers hold the system turn or the marks of a prompt template."""
    echo: bool = True
    """Drop chats whose last answer is the question."""


def judge_texts(texts: Sequence[str], filters: Filters, special: Sequence[str] = ()) -> list[Finding | None]:
    """The first filter that each document fails. What one document gets does not hang on the others.

    Args:
        special: special tokens of the student.
    """
    found: list[Finding | None] = []
    for batch in batches(texts):
        verdicts: list[Finding | None] = [None] * len(batch.texts)
        for reason, failed, detail in _judged(batch, filters, special, verdicts):
            for number in failed.tolist():
                verdicts[number] = verdicts[number] or (reason, detail(number))
        found += verdicts
    return found


def _judged(
    batch: Batch, filters: Filters, special: Sequence[str], verdicts: Sequence[Finding | None]
) -> Iterator[tuple[str, NDArray[np.intp], Callable[[int], str]]]:
    """Each filter that is on, in order: its reason, the numbers of the texts that fail it, what was seen in one of them."""
    import numpy as np

    def least(reason: str, values: NDArray[Any], limit: float) -> tuple[str, NDArray[np.intp], Callable[[int], str]]:
        return reason, np.flatnonzero(values < limit), lambda number: f"{values[number]:.4f}, at least {limit}"

    def most(reason: str, values: NDArray[Any], limit: float) -> tuple[str, NDArray[np.intp], Callable[[int], str]]:
        return reason, np.flatnonzero(values > limit), lambda number: f"{values[number]:.4f}, at most {limit}"

    def seen(reason: str, look: Callable[[int], str | None]) -> tuple[str, NDArray[np.intp], Callable[[int], str]]:
        marks = {number: mark[:80] for number in still() if (mark := look(number))}
        return reason, np.array(list(marks), np.intp), marks.__getitem__

    def still() -> list[int]:
        return [number for number, verdict in enumerate(verdicts) if verdict is None]

    def undecided() -> NDArray[np.bool_]:
        return np.array([verdict is None for verdict in verdicts])

    lengths, texts = batch.lengths, batch.texts
    if (low := filters.text_min_chars) is not None:
        yield "too_short", np.flatnonzero(lengths < low), lambda one: f"{lengths[one]} characters, at least {low}"
    if (high := filters.text_max_chars) is not None:
        yield "too_long", np.flatnonzero(lengths > high), lambda one: f"{lengths[one]} characters, at most {high}"
    if filters.languages:
        judged = [number for number in still() if batch.letters[number] >= 20]
        spoken = dict(zip(judged, languages(batch, judged), strict=True))
        yield seen("wrong_language", lambda one: _stranger(spoken.get(one), filters))
    if filters.special_tokens:
        yield seen("special_token", lambda one: special_token(texts[one], special))
    if filters.word_ratio is not None:
        yield least("word_ratio", rules.word_ratio(batch), filters.word_ratio)
    if filters.sentence_marks is not None:
        yield least("sentence_marks", rules.sentence_marks(batch), filters.sentence_marks)
    if filters.symbol_ratio is not None:
        yield most("symbol_ratio", rules.symbol_ratio(batch), filters.symbol_ratio)
    if (limit := filters.duplicate_lines) is not None:
        yield most("duplicate_lines", rules.duplicate_lines(batch, undecided(), limit), limit)
    if (limit := filters.repetition) is not None:
        yield most("repetition", rules.repetition(batch, undecided(), limit), limit)
    if filters.lost_characters is not None:
        yield most("lost_characters", rules.lost_characters(batch), filters.lost_characters)
    if (limit := filters.duplicate_line_chars) is not None:
        yield most("duplicate_line_chars", rules.duplicate_line_chars(batch, undecided(), limit), limit)
    if (limit := filters.top_piece) is not None:
        yield most("top_piece", rules.top_piece(batch, undecided(), chinese(batch), limit), limit)
    if filters.bullet_lines is not None:
        yield most("bullet_lines", rules.bullet_lines(batch), filters.bullet_lines)
    if filters.ellipsis_lines is not None:
        yield most("ellipsis_lines", rules.ellipsis_lines(batch), filters.ellipsis_lines)
    if filters.open_lines is not None:
        yield most("open_lines", rules.open_lines(batch), filters.open_lines)
    if filters.short_lines is not None:
        yield most("short_lines", rules.short_lines(batch, chinese(batch)), filters.short_lines)
    if filters.braces is not None:
        yield most("braces", rules.braces(batch), filters.braces)
    if filters.word_min_chars is not None or filters.word_max_chars is not None:
        values = np.where(
            rules.judged_by_words(batch) & (batch.count(HAN, HANGUL) == 0), rules.word_length(batch), np.nan
        )
        if filters.word_min_chars is not None:
            yield least("short_words", values, filters.word_min_chars)
        if filters.word_max_chars is not None:
            yield most("long_words", values, filters.word_max_chars)
    if (fewest := filters.stop_words) is not None:
        han, enough = chinese(batch), rules.judged_by_words(batch)
        words = {one: rules.stop_words(texts[one], bool(han[one])) for one in still() if enough[one]}
        yield seen(
            "stop_words", lambda one: f"{words[one]}, at least {fewest}" if words.get(one, fewest) < fewest else None
        )
    if filters.lorem_ipsum:
        yield seen("lorem_ipsum", lambda one: rules.lorem_ipsum(texts[one]))
    if filters.script_notice:
        yield seen("script_notice", lambda one: rules.script_notice(texts[one]))


def _stranger(lang: Lang | None, filters: Filters) -> str | None:
    return None if lang is None or lang in filters.languages else f"{lang}, kept are {', '.join(filters.languages)}"
