"""Texts as one flat array of code points, and the class of each: what filters and scripts are counted from, 200 texts at a time.

Source: DATA.md 3.4: one pass over code points serves filters and script ratios, 5 times as fast as patterns of ``re``. The
number of texts does not change what comes out, it only keeps a batch inside the processor's cache.

Letters in shape comments: N texts, C characters of them all, L lines that hold something.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TEXTS = 200
"""Texts of a batch (DATA.md 3.1: 1,000 are slower)."""
CHARS = 1 << 18
"""Characters from which a batch takes no further text."""

OTHER, NEWLINE, BLANK, DIGIT, NUMBER, LATIN, HAN, KANA, HANGUL, LETTER, END, SYMBOL = range(12)
"""Classes: everything else; \\n; other white space; decimal digits; other numbers (², Ⅷ, 〇); letters of Latin alphabets; Han
characters; kana; Hangul; other letters; marks that end a sentence (。！？.!?); # and … . NEWLINE and BLANK are what ``str.isspace``
is true for, DIGIT to LETTER ``str.isalnum``, LATIN to LETTER ``str.isalpha``."""
_LETTERS_END = 0x33480
"""No code point from here on is a letter, a digit or white space (Unicode 17)."""
SCRIPTS = {
    LATIN: r"A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
    HAN: r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003347f",
    KANA: r"\u3041-\u3096\u30a1-\u30fa",
    HANGUL: r"\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3",
}
"""Class -> its code points, of which only letters are taken."""


@dataclass(frozen=True)
class Batch:
    """Some texts, one after another, each with a newline behind it."""

    texts: Sequence[str]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) characters of each text."""
        import numpy as np

        return np.fromiter(map(len, self.texts), np.int64, len(self.texts))

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(N + 1,) text i has codes[offsets[i] : offsets[i + 1] - 1]; its newline stands behind them."""
        import numpy as np

        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths + 1)])

    @cached_property
    def codes(self) -> NDArray[np.uint32]:
        """(C + N,) code points of the texts."""
        import numpy as np

        return np.frombuffer("\n".join([*self.texts, ""]).encode("utf-32-le", "surrogatepass"), np.uint32)

    @cached_property
    def classes(self) -> NDArray[np.uint8]:
        """(C + N,) class of each code point."""
        taken: NDArray[np.uint8] = table().take(self.codes)
        return taken

    @cached_property
    def lines(self) -> Lines:
        """The lines that hold more than white space."""
        return Lines.of(self)

    def count(self, first: int, last: int) -> NDArray[np.int64]:
        """(N,) code points of the classes from ``first`` to ``last``. NEWLINE counts the newline behind the text, too."""
        import numpy as np

        return self.marked(self.classes - np.uint8(first) <= last - first)  # lower classes wrap round to 255

    def marked(self, marks: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(N,) how many of the code points (C + N,) are marked. The newline behind each text makes this right for empty ones."""
        import numpy as np

        if not len(self.texts):
            return np.zeros(0, np.int64)
        found: NDArray[np.int64] = np.add.reduceat(marks.view(np.uint8), self.offsets[:-1], dtype=np.int32).astype(
            np.int64
        )
        return found

    @cached_property
    def letters(self) -> NDArray[np.int64]:
        """(N,) letters of all scripts."""
        return self.count(LATIN, LETTER)


@dataclass(frozen=True)
class Lines:
    """Lines that hold more than white space, without the white space around them."""

    owners: NDArray[np.int64]
    """(L,) number of the text."""
    firsts: NDArray[np.int64]
    """(L,) place of the first character in ``codes``."""
    lasts: NDArray[np.int64]
    """(L,) place of the last one."""
    totals: NDArray[np.int64]
    """(N,) lines of each text."""

    @classmethod
    def of(cls, batch: Batch) -> Lines:
        """The lines of a batch."""
        import numpy as np

        ends = np.flatnonzero(batch.classes == NEWLINE)
        dark = np.flatnonzero(batch.classes - np.uint8(NEWLINE) > BLANK - NEWLINE)
        until = np.searchsorted(dark, ends)
        since = np.concatenate([np.zeros(1, np.int64), until[:-1]])
        full = until > since
        owners = np.searchsorted(batch.offsets, ends[full], "right") - 1
        totals = np.bincount(owners, minlength=len(batch.texts))
        return cls(owners, dark[since[full]], dark[until[full] - 1], totals)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(L,) characters of each line."""
        return self.lasts - self.firsts + 1

    def share(self, marks: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(N,) share of each text's lines that are marked; 0 without lines."""
        import numpy as np

        return ratio(np.bincount(self.owners[marks], minlength=len(self.totals)), self.totals)


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """part / whole, and 0 where there is no whole."""
    import numpy as np

    found: NDArray[np.float64] = np.divide(part, whole, out=np.zeros(len(whole)), where=whole != 0)
    return found


def batches(texts: Sequence[str]) -> Iterator[Batch]:
    """The texts in their order; a batch ends after ``TEXTS`` texts or ``CHARS`` characters."""
    start = chars = 0
    for number, text in enumerate(texts):
        chars += len(text)
        if number - start + 1 == TEXTS or chars >= CHARS:
            yield Batch(texts[start : number + 1])
            start, chars = number + 1, 0
    if start < len(texts):
        yield Batch(texts[start:])


def any_of(letters: str) -> NDArray[np.bool_]:
    """(0x110000,) True for these characters: a table to look code points up in."""
    import numpy as np

    found = np.zeros(0x110000, np.bool_)
    found[list(map(ord, letters))] = True
    return found


@functools.cache
def stacked() -> re.Pattern[str]:
    """More combining marks on one letter than any script has. To put them in order takes time that grows with their square.

    Source: UAX 15, section 13 (30 marks are enough for every language).
    """
    marks = any_of("".join(letter for letter in map(chr, range(0x20000)) if unicodedata.combining(letter)))
    return re.compile(f"[{''.join(f'{chr(low)}-{chr(high - 1)}' for low, high in _spans(marks))}]{{31,}}")


def _spans(marks: NDArray[np.bool_]) -> list[list[int]]:
    """First code point of each run of marked ones, and the one behind its last."""
    import numpy as np

    edges: list[list[int]] = np.flatnonzero(np.diff(marks, prepend=False, append=False)).reshape(-1, 2).tolist()
    return edges


@functools.cache
def table() -> NDArray[np.uint8]:
    """(0x110000,) class of each code point."""
    import numpy as np

    every = "".join(map(chr, range(_LETTERS_END)))
    found = np.zeros(0x110000, np.uint8)
    for kind, pattern in (
        (BLANK, r"\s+"), (NUMBER, r"[^\W_]+"), (DIGIT, r"\d+"), (NEWLINE, r"\n"), (END, "[。！？.!?]"), (SYMBOL, "[#…]"),
    ):  # fmt: skip
        for run in re.finditer(pattern, every):
            found[run.start() : run.end()] = kind
    letters = np.fromiter(map(str.isalpha, every), np.bool_, len(every))
    found[: len(every)][letters] = LETTER
    for kind, span in SCRIPTS.items():
        for run in re.finditer(f"[{span}]+", every):
            found[run.start() : run.end()][letters[run.start() : run.end()]] = kind
    return found
