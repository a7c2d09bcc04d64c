"""What is wrong with an answer beside its question: the question again, JSON that is none, no end, another language.

Each rule gives what was seen, or None. All of them look at letters, never at words between blanks, and know zh and en.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from steps.lib.facts import fold
from steps.lib.language import detect
from steps.lib.phrases import asks_for_language
from steps.lib.rows import Lang

LONG_ENOUGH = 8
"""Letters and digits from which an answer can be its question with other punctuation; "1+1=?" and "11" are not the same."""
CUT_FROM = 60
"""UTF-8 bytes (20 Chinese characters) an answer has before its end can be missing; a short one may be a word that was asked for."""
MIXED = 0.1
"""Share of Chinese characters in a text from which it counts as Chinese with names or code in it."""
LETTERS = 20
"""Letters (Latin; a Chinese character counts for three) without which the language of an answer is not judged."""


def near_echo(question: str, answer: str) -> str | None:
    """The answer is the question with other case, blanks or punctuation, and nothing or next to nothing beside it.

    Source: ours; data-juicer and datatrove look at one text at a time.
    """
    if len(answer) > 2 * len(question) or len(question) > 2 * len(answer):
        return None
    asked, said = fold(question), fold(answer)
    if len(asked) < LONG_ENOUGH or asked not in said:
        return None
    room = len(asked) // 20 if len(asked) >= 5 * LONG_ENOUGH else 0
    return "the answer is the question" if len(said) - len(asked) <= room else None


def bad_json(question: str, answer: str, system: str = "") -> str | None:
    """The answer is to be JSON, and cannot be read as JSON.

    It is to be when it has a fence of ``json``, when it begins as an object or a list of objects, or when the question or the
    system turn asks for nothing but JSON (用JSON回答, "reply in JSON only"). JSON lines are read line by line; text before and
    after is no fault, unless nothing but JSON was asked for. What reads is Python's ``json``, without NaN and Infinity.
    """
    for fence in _FENCE.findall(answer) if "```" in answer else ():
        if problem := _unread(fence):
            return f"a fence of json: {problem}"
    if "```" not in answer and _OPENS.match(answer):
        return _unread(answer.strip(), whole=False)
    if "json" not in system.lower() and "json" not in question.lower():
        return None
    if _ONLY_JSON.search(f"{system}\n{question}") and not _ASKS_ABOUT.search(question):
        fences = _ANY_FENCE.findall(answer)
        if problem := _unread(fences[0] if len(fences) == 1 else answer.strip()):
            return f"only JSON was asked for: {problem}"
    return None


def cut_off(answer: str) -> str | None:
    """The answer has no end: an open fence, a comma, an open bracket or a word that wants another one (the; 和) comes last.

    An open fence that is a slip of the writer's is none: a sentence or a fence ends the answer. A word that is cut in the middle is
    not seen: that wants a dictionary.
    """
    if answer.count("```") % 2 and not _CLOSED.search(answer):
        return "a code fence is open"
    if len(answer[:CUT_FROM].encode("utf-8", "surrogatepass")) < CUT_FROM or not (
        found := _HANGING.search(answer[-40:])
    ):
        return None
    return f"ends with {found[0].strip()!r}"


def wrong_language(words: str, prompt: str, lang: Lang, material: Iterable[Any] = ()) -> bool:
    """Whether the answer is in another language than the row, for no reason that the prompt gives.

    Not judged: rows of another language than zh and en; short answers; what stands in code, in formulas and in addresses; names of
    JSON's members; a prompt that speaks of a language or of translating, or holds markup; and one that quotes a word of the
    answer's language or, with its material, holds a stretch of it.
    """
    if lang == "other" or (lang == "en" and words.isascii()):
        return False
    if lang == "zh" and _mostly_chinese(words):
        return False
    text = _KEYS.sub(" ", _CODE.sub(" ", words))
    found = detect(text)
    if found == lang or sum(3 if letter > "\u2e7f" else 1 for letter in text if letter.isalpha()) < LETTERS:
        return False
    if asks_for_language(prompt) or _MARKUP.search(prompt):
        return False
    stretch = _HAN if found == "zh" else _LATIN if found == "en" else _FOREIGN
    return not any(stretch.search(text) for text in (prompt, *material) if isinstance(text, str))


def answer_language(question: str, answer: str, around: str = "") -> str | None:
    """The answer is in another language than its question, and nothing gives a reason; see ``wrong_language``.

    Args:
        around: what was said before, the system turn too; it may give the reason.
    """
    if question.isascii() and answer.isascii():
        return None
    if _HAN.search(question) and _mostly_chinese(answer):
        return None  # whatever the question's language: it holds Chinese itself
    asked = detect(question)
    if not wrong_language(answer, f"{around}\n{question}" if around else question, asked):
        return None
    return f"asked in {asked}, answered in another language"


def _mostly_chinese(text: str) -> bool:
    """Chinese, maybe with names or code in it, and no Japanese."""
    return len("".join(_HANS.findall(text))) >= MIXED * len(text) and not _KANA.search(text)


def _unread(text: str, whole: bool = True) -> str | None:
    """Why a text is no JSON; None: it is, or it is JSON lines.

    Args:
        whole: nothing may come behind the value.
    """
    try:
        if whole:
            _DECODER.decode(text)
        else:
            _DECODER.raw_decode(text)
    except (ValueError, RecursionError) as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > 1 and all(_is_json(line) for line in lines):
            return None
        place = (
            f"line {error.lineno} column {error.colno}"
            if isinstance(error, json.JSONDecodeError)
            else "its depth or words"
        )
        return f"{error.msg if isinstance(error, json.JSONDecodeError) else 'not readable'}, {place}"
    return None


def _is_json(line: str) -> bool:
    try:
        _DECODER.decode(line)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
_FENCE = re.compile(r"^[ \t]*```json[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_ANY_FENCE = re.compile(r"^[ \t]*```\w*[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_OPENS = re.compile(r'\s*\{\s*"[^"\n]{1,80}"\s*:|\s*\[\s*\{\s*"[^"\n]{1,80}"\s*:')
_ONLY_JSON = re.compile(
    r"\b(?:only|nothing but|just|solely|exclusively)\b[^.\n]{0,30}\bjson\b(?! (?:and|or) )"
    r"|\bjson\b[^.\n]{0,30}\b(?:only|nothing else|alone)\b"
    r"|\b(?:answer|reply|respond) (?:in|with|as) (?:valid |strict |a |one )*json\b"
    r"|(?:只|仅)(?:能|需|要|许)?(?:用|以|按|输出|返回|回答|给出|回复)[^。\n]{0,12}json|(?:用|以)\s*json\s*(?:格式|对象)?\s*(?:回答|回复|作答)",
    re.IGNORECASE,
)
_ASKS_ABOUT = re.compile(
    r"\b(?:how|why|what|explain|difference|code|script|function|endpoint|api)\b|如何|怎么|怎样|为什么|解释|代码|函数|接口",
    re.IGNORECASE,
)
_CLOSED = re.compile(r"(?:[.!?。！？]|^[ \t]*```)\s*\Z", re.MULTILINE)
_HANGING = re.compile(
    r"(?:[,，、(（「《【\[{]|[—–]|\b(?:the|an|and|or|because|its|their|your|our|which|whose|such as|including)"
    r"|(?:以及|并且|而且|因为|例如|比如|其中|包括|和|与|或|的是))\s*\Z",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"</[A-Za-z]\w*>")
_KEYS = re.compile(r'"[^"\n]{0,80}"\s*:')
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$[^$\n]*\$|https?://\S+", re.DOTALL)
_HANS = re.compile(r"[\u3400-\u9fff]+")
_KANA = re.compile(r"[\u3041-\u3096\u30a1-\u30fa]")
_HAN = re.compile(r"[\u3400-\u9fff]{2}")
_LATIN = re.compile(r"(?:[A-Za-z]+[ ,.'’-]+){2}[A-Za-z]+|[A-Za-z]{12}|[\"'“‘「《(（][A-Za-z]{3,}")
_FOREIGN = re.compile(r"[^\W\d_a-zA-Z\u3400-\u9fff]{2}")
