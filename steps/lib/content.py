"""Content rules: what a text says that is no text to learn from. Documents here; of chats, see ``chat_rules``.

Each rule is a function with its source in a module of its own (boilerplate, markup, toxicity, answers); here is which are on.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from steps.lib.answers import answer_language, bad_json, cut_off, near_echo
from steps.lib.boilerplate import boilerplate
from steps.lib.config import Section
from steps.lib.markup import answer_markup, document_markup
from steps.lib.quality import Finding
from steps.lib.toxicity import Toxicity, classifier, toxic_density


class Content(Section):
    """Content rules; null (or false) switches one off."""

    boilerplate: float | None = Field(default=0.3, ge=0, le=1)
    """Share of a document's characters in lines that every page of a site has, at most."""
    markup: float | None = Field(default=5.0, ge=0)
    """Pieces of leftover markup on 1,000 characters of a document, at most; documents about markup are kept."""
    answer_boilerplate: float | None = Field(default=None, ge=0, le=1)
    """Share of an answer's characters in such lines, at most; null, for "follow our account" may be the right answer."""
    answer_markup: bool = True
    """Drop chats with an answer that holds leftover markup, where the question is not about markup or code."""
    near_echo: bool = True
    """Drop chats with an answer that is its question with other case, blanks or punctuation."""
    bad_json: bool = True
    """Drop chats with an answer that is to be JSON and cannot be read as JSON."""
    cut_off: bool = True
    """Drop chats with an answer that has no end: an open code fence, or a comma or a word like "the" comes last."""
    answer_language: bool = True
    """Drop chats with an answer in another language than its question, where nothing asks for that."""


def judge_content(texts: Sequence[str], content: Content, toxicity: Toxicity | None = None) -> list[Finding | None]:
    """For each document, the first content rule it fails. The same for every size of a batch."""
    found: list[Finding | None] = [_judge(text, content) for text in texts]
    return judge_toxicity(texts, found, toxicity)


def judge_toxicity(
    texts: Sequence[str], found: Sequence[Finding | None], toxicity: Toxicity | None
) -> list[Finding | None]:
    """The findings, with toxic_words or toxic where there was none."""
    findings = list(found)
    if toxicity is None:
        return findings
    if toxicity.words is not None:
        for number, text in enumerate(texts):
            if findings[number] is None and (density := toxic_density(text)) > toxicity.words:
                findings[number] = "toxic_words", f"{density:.2f} on 1,000 characters, at most {toxicity.words:g}"
    if toxicity.model is not None:
        left = [number for number, finding in enumerate(findings) if finding is None]
        scores = classifier(toxicity.model)([texts[number] for number in left]) if left else []
        for number, score in zip(left, scores, strict=True):
            if score >= toxicity.model.threshold:
                findings[number] = "toxic", f"{toxicity.model.label} {score:.3f}, below {toxicity.model.threshold:g}"
    return findings


def judge_answer(questions: Sequence[str], answer: str, system: str, content: Content) -> Finding | None:
    """The first content rule an answer fails.

    Args:
        questions: the user turns before it, the last one is the one it answers.
        system: what the system turn says.
    """
    asked = questions[-1] if questions else ""
    around = "\n".join((system, *questions)) if system or len(questions) != 1 else asked
    seen: str | None
    if content.near_echo and asked and (seen := near_echo(asked, answer)):
        return "near_echo", seen
    if content.bad_json and (seen := bad_json(asked, answer, system)):
        return "bad_json", seen
    if content.cut_off and (seen := cut_off(answer)):
        return "cut_off", seen
    if content.answer_language and (seen := answer_language(asked, answer, around)):
        return "answer_language", seen
    if content.answer_markup and (seen := answer_markup(around, answer)):
        return "markup", seen[:80]
    return _boilerplate(answer, content.answer_boilerplate)


def _judge(text: str, content: Content) -> Finding | None:
    if found := _boilerplate(text, content.boilerplate):
        return found
    if content.markup is not None and (density := document_markup(text)) > content.markup:
        return "markup", f"{density:.2f} on 1,000 characters, at most {content.markup:g}"
    return None


def _boilerplate(text: str, limit: float | None) -> Finding | None:
    if limit is None:
        return None
    share, seen = boilerplate(text)
    return ("boilerplate", f"{share:.4f}, at most {limit:g}: {seen[:80]}") if share > limit else None
