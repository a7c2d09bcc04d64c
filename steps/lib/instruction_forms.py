"""Rules on the shape of an answer, in Chinese and English: paragraphs, lists, sections, titles, openings and ends.

Full-width brackets and quotation marks count as their Latin sisters do.
"""

from __future__ import annotations

import re
from typing import Any

from steps.lib.rows import Lang
from steps.lib.rules import parse_strict

_QUOTES = {'"': '"', "“": "”", "「": "」", "『": "』", "＂": "＂"}
_EDGE = "\"'“”‘’「」『』*_#（(【[ \t"
ANSWERS = {
    "en": ("My answer is yes.", "My answer is no.", "My answer is maybe."),
    "zh": ("我的回答是肯定的。", "我的回答是否定的。", "我的回答是不确定。"),
}
"""What a constrained response is one of."""


def number_paragraphs(text: str, lang: Lang, *, num_paragraphs: int) -> bool:
    """So many paragraphs exactly, with a line of *** between them; none is empty but what stands before or behind all."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    if any(not part for part in parts[1:-1]):
        return False
    return sum(map(bool, parts)) == num_paragraphs


def nth_paragraph_first_word(
    text: str, lang: Lang, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """So many paragraphs exactly, blank lines between them, and this one starts with the word."""
    parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    if len(parts) != num_paragraphs or nth_paragraph > len(parts):
        return False
    opening = parts[nth_paragraph - 1].lstrip(_EDGE).lower()
    wanted = first_word.lower()
    return opening.startswith(wanted) and (
        not wanted[-1].isascii() or not re.match(r"[\w'’]", opening[len(wanted) :]) or not wanted[-1].isalnum()
    )


def number_placeholders(text: str, lang: Lang, *, num_placeholders: int) -> bool:
    """So many [placeholders] at least; 【】 and ［］ count too."""
    return len(re.findall(r"\[[^\[\]\n]+\]|【[^【】\n]+】|［[^［］\n]+］", text)) >= num_placeholders


def postscript(text: str, lang: Lang, *, postscript_marker: str) -> bool:
    """A line holds the marker, with words behind it."""
    marker = postscript_marker.strip()
    pattern = {"P.P.S": r"p\.\s?p\.\s?s\.?", "P.S.": r"p\.\s?s\.?"}.get(marker, re.escape(marker.lower()))
    return bool(re.search(rf"(?:^|[\s。！？!?.]){pattern}[\W_]*\w", text.lower(), re.MULTILINE))


def number_bullet_lists(text: str, lang: Lang, *, num_bullets: int) -> bool:
    """So many bullet points exactly: lines that start with *, - or •."""
    return len(re.findall(r"^\s*(?:\*(?!\*)|-(?!-)|[•·])\s*\S", text, re.MULTILINE)) == num_bullets


def number_highlighted_sections(text: str, lang: Lang, *, num_highlights: int) -> bool:
    """So many *highlighted* or **highlighted** sections at least."""
    double = re.findall(r"\*\*[^\n*]*[^\n*\s][^\n*]*\*\*", text)
    rest = re.sub(r"\*\*[^\n*]*\*\*", "\n", text)
    single = re.findall(r"\*[^\n*]*[^\n*\s][^\n*]*\*", rest)
    return len(double) + len(single) >= num_highlights


def multiple_sections(text: str, lang: Lang, *, section_spliter: str, num_sections: int) -> bool:
    """So many sections at least, each of which opens with the splitter and a number: Section 1, 第一节."""
    word = re.escape(section_spliter)
    pattern = rf"\b{word}\s?\d+" if section_spliter.isascii() else rf"第\s?[\d一二三四五六七八九十]+\s?{word}"
    return len(re.findall(pattern, text)) >= num_sections


def constrained_response(text: str, lang: Lang) -> bool:
    """One of the fixed answers stands in it, and no other of them."""
    return sum(answer in text for answer in ANSWERS["zh" if lang == "zh" else "en"]) == 1


def json_format(text: str, lang: Lang) -> bool:
    """The whole answer is JSON, in a fence or without."""
    bare = re.sub(r"\A\s*```(?:json|JSON|Json)?\s*\n?|\n?\s*```\s*\Z", "", text)
    try:
        parse_strict(bare.strip())
    except ValueError:
        return False
    return True


def title(text: str, lang: Lang) -> bool:
    """A title in <<double angular brackets>> or 《》 stands on a line."""
    return bool(re.search(r"<<[^\n<>]*[^\s<>][^\n<>]*>>|《[^\n《》]*[^\s《》][^\n《》]*》", text))


def two_responses(text: str, lang: Lang) -> bool:
    """Two answers that differ, with six asterisks between them."""
    parts = [part.strip() for part in re.split(r"(?<!\*)\*{6}(?!\*)", text)]
    if any(not part for part in parts[1:-1]):
        return False
    found = [part for part in parts if part]
    return len(found) == 2 and found[0] != found[1]


def repeat_prompt(text: str, lang: Lang, *, prompt_to_repeat: str) -> bool:
    """It opens with the request, word for word, and an answer follows."""
    wanted = prompt_to_repeat.strip().lower()
    said = text.strip().lower()
    return said.startswith(wanted) and bool(re.search(r"\w", said[len(wanted) :]))


def end_checker(text: str, lang: Lang, *, end_phrase: str) -> bool:
    """It ends with the phrase; a quotation mark may close behind it."""
    return text.strip().strip('"”」』').lower().endswith(end_phrase.strip().strip('"”」』').lower())


def quotation(text: str, lang: Lang) -> bool:
    """The whole answer stands in double quotation marks."""
    said = text.strip()
    return len(said) > 2 and _QUOTES.get(said[0]) == said[-1]


FORM_RULES: dict[str, Any] = {
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
}
"""As ``WORD_RULES``."""
