"""Row filters: small pure functions with a reason code each, and the thresholds that switch them.

``normalise`` repairs characters. ``judge_text`` and ``judge_chat`` give the first reason for which a row is not kept,
or None. Rules count characters, never words between spaces: Chinese has none (DATA.md 3.4 lists the English rules that
keep 0 % of good Chinese documents).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise

from pydantic import Field

from steps.lib.config import Section
from steps.lib.language import detect
from steps.lib.phrases import identity, refusal, special_token, template_heading, think_tag
from steps.lib.rows import Lang, Message

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


def normalise(text: str) -> str:
    """NFC; line ends to newline; controls, zero-width characters, byte order marks out; odd spaces folded; stripped.

    Joiners (200C, 200D) stay behind emoji and scripts that need them. Punctuation stays as it is.
    Source: DATA.md 3.7 (NFKC and ftfy rewrite the punctuation of every Chinese document).
    """
    if text.isascii() and not _ODD.search(text):
        return text.strip()
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _SPACES.sub(" ", _ODD.sub("", text))
    return _JOINERS.sub("", text).strip()


def word_ratio(text: str) -> float:
    """Share of letters, digits and CJK among the visible characters. Source: DATA.md 3.4."""
    visible = len(text) - sum(map(len, _BLANK.findall(text)))
    return sum(map(len, _WORDY.findall(text))) / visible if visible else 0.0


def symbol_ratio(text: str) -> float:
    """Share of # and … . Source: DATA.md 3.4, after Rae et al., "Gopher", arXiv 2112.11446, table A1."""
    return (text.count("#") + text.count("…")) / len(text) if text else 0.0


def sentence_marks(text: str) -> float:
    """Share of marks that end a sentence, of both languages. Source: DATA.md 3.4."""
    return sum(map(text.count, "。！？.!?")) / len(text) if text else 0.0


def duplicate_lines(text: str) -> float:
    """Share of non-empty lines that stood in the text before. Source: Gopher, arXiv 2112.11446, table A1."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return 1 - len(set(lines)) / len(lines) if lines else 0.0


def repetition(text: str, size: int = 20, stretch: int = 1000) -> float:
    """Largest share of repeated pieces of ``size`` characters in any stretch of the text.

    Stretches, because a long text repeats phrases, and because a generator that loops does so at its end.
    Source: Gopher's duplicate n-grams (arXiv 2112.11446, table A1), on characters, by stretch.
    """
    worst = 0.0
    for start in range(0, max(1, len(text) - stretch // 2), stretch):
        part = text[start : start + stretch]
        number = len(part) - size + 1
        if number >= 4 * size:
            worst = max(worst, 1 - len({part[place : place + size] for place in range(number)}) / number)
    return worst


def prompt_leak(text: str, system: str = "") -> str | None:
    """The answer repeats the system turn (20 characters or more of it) or a template's headings. See DATA.md 2.5."""
    return system if len(system) >= 20 and system in text else template_heading(text)


def judge_text(text: str, filters: Filters) -> Finding | None:
    """The first filter a document fails."""
    if filters.text_min_chars is not None and len(text) < filters.text_min_chars:
        return "too_short", f"{len(text)} characters, at least {filters.text_min_chars}"
    if filters.text_max_chars is not None and len(text) > filters.text_max_chars:
        return "too_long", f"{len(text)} characters, at most {filters.text_max_chars}"
    return (
        _language(text, filters)
        or (_mark("special_token", special_token(text)) if filters.special_tokens else None)
        or _least("word_ratio", word_ratio, text, filters.word_ratio)
        or _least("sentence_marks", sentence_marks, text, filters.sentence_marks)
        or _most("symbol_ratio", symbol_ratio, text, filters.symbol_ratio)
        or _most("duplicate_lines", duplicate_lines, text, filters.duplicate_lines)
        or _most("repetition", repetition, text, filters.repetition)
    )


def judge_chat(turns: Sequence[Message], filters: Filters) -> Finding | None:
    """The first filter a conversation fails. Short answers are good answers: there is no least length."""
    spoken = [turn.content for turn in turns if turn.role != "system"]
    answers = [turn.content for turn in turns if turn.role == "assistant"]
    system = turns[0].content if turns[0].role == "system" else ""
    if not all(spoken):
        return "empty", "a turn has no text"
    length = sum(len(turn.content) for turn in turns)
    if filters.chat_max_chars is not None and length > filters.chat_max_chars:
        return "too_long", f"{length} characters, at most {filters.chat_max_chars}"
    if filters.echo and any(
        one.role == "user" and one.content.casefold() == other.content.casefold() for one, other in pairwise(turns)
    ):
        return "echo", "the answer is the question"
    if finding := _language("\n".join(spoken), filters):
        return finding
    checks: list[tuple[bool, str, Callable[[str], str | None], Sequence[str]]] = [
        (filters.special_tokens, "special_token", special_token, [turn.content for turn in turns]),
        (filters.think_tags, "think_tag", think_tag, answers),
        (filters.identity, "identity", identity, answers),
        (filters.refusal, "refusal", refusal, answers[-1:]),
        (filters.prompt_leak, "prompt_leak", lambda answer: prompt_leak(answer, system), answers),
    ]
    for on, reason, check, texts in checks:
        for text in texts if on else ():
            if seen := check(text):
                return reason, seen[:80]
    for answer in answers:
        if finding := _most("repetition", repetition, answer, filters.repetition):
            return finding
    return None


def _language(text: str, filters: Filters) -> Finding | None:
    lang = detect(text)
    if not filters.languages or lang in filters.languages or sum(map(str.isalpha, text)) < 20:
        return None
    return "wrong_language", f"{lang}, kept are {', '.join(filters.languages)}"


def _least(name: str, measure: Callable[[str], float], text: str, limit: float | None) -> Finding | None:
    if limit is None or (value := measure(text)) >= limit:
        return None
    return name, f"{value:.4f}, at least {limit}"


def _most(name: str, measure: Callable[[str], float], text: str, limit: float | None) -> Finding | None:
    if limit is None or (value := measure(text)) <= limit:
        return None
    return name, f"{value:.4f}, at most {limit}"


def _mark(reason: str, seen: str | None) -> Finding | None:
    return (reason, seen[:80]) if seen else None


_ODD = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]")
_SPACES = re.compile(r"[\u00a0\u2000-\u200a\u202f\u3000]")
_JOINERS = re.compile(r"(?<![\u0600-\u0dff\u2600-\u27bf\ufe0f\U0001f000-\U0001faff])[\u200c\u200d]")
_BLANK = re.compile(r"\s+")
_WORDY = re.compile(r"[^\W_]+")
