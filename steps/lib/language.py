"""Which of our languages a text is in, by the scripts of its letters. Offline, no model.

Source: DATA.md 3.5 (script ratio: zh .98 to 1.0 right). It cannot tell English from other Latin alphabets: German reads
as "en" here. A detector for those goes behind ``detect``.
"""

from __future__ import annotations

import re

from steps.lib.rows import Lang

HAN_SHARE = 0.2
"""Share of letters from which a text counts as Chinese: one Han character says about what four Latin letters say."""
KANA_SHARE = 0.05
"""Share of kana among kana + Han above which a text is Japanese (DATA.md 3.5)."""

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]+")
_KANA = re.compile(r"[\u3041-\u3096\u30a1-\u30fa]+")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f]+")
_LETTERS = re.compile(r"[^\W\d_]+")


def detect(text: str) -> Lang:
    """zh, en or other; a text without letters is other."""
    letters = _count(_LETTERS, text)
    if not letters:
        return "other"
    if text.isascii():
        return "en"
    han, kana = _count(_HAN, text), _count(_KANA, text)
    if kana + han >= HAN_SHARE * letters:
        return "other" if kana > KANA_SHARE * (kana + han) else "zh"
    return "en" if _count(_LATIN, text) >= 0.5 * letters else "other"


def _count(pattern: re.Pattern[str], text: str) -> int:
    """Characters that the pattern's runs cover."""
    return sum(map(len, pattern.findall(text)))
