"""Repair of characters: text that was read in the wrong encoding, controls, bidi marks, odd spaces, decomposed letters.

``repair`` looks at many texts at a time and takes up only those that hold an odd code point; the others come out as they are,
without white space around them. Punctuation stays as it is: NFKC and ftfy's defaults rewrite that of every Chinese document
(DATA.md 3.7). A text that was repaired is not changed by a second repair.

Codes of repairs:
  mojibake     UTF-8 that was read as Latin-1, Windows-1252 or the like ("â€™", "ä½\xa0å¥½"), or as GBK ("浣犲ソ")
  controls     control characters, and code points that are none (U+FDD0, U+FFFE)
  bidi         marks that turn the direction of what follows (200E, 200F, 061C, 202A-202E, 2066-2069)
  zero_width   zero-width characters, byte order marks, soft hyphens, tags; joiners, but for emoji and scripts that need them
  spaces       other spaces than the plain one
  line_ends    \\r\\n, \\r, and the separators 2028, 2029
  nfc          letters in pieces (e + U+0301)
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steps.lib.codepoints import any_of, batches, stacked

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CODES = ("mojibake", "controls", "bidi", "zero_width", "spaces", "line_ends", "nfc")
ROUNDS = 4
"""Passes over a text until nothing changes: what is taken out may bring together what belongs together."""
GBK_SHARE = 0.2
"""Share of a line's characters beyond ASCII, of the kind that begins a Han character of UTF-8 read as GBK, from which it is
tried: of such a line they are a third, of Chinese under .03."""


@dataclass(frozen=True)
class Repaired:
    """A text after its repair."""

    text: str
    codes: tuple[str, ...] = ()
    """What was repaired, in the order of ``CODES``; white space around the text does not count."""


def repair(texts: Sequence[str]) -> list[Repaired]:
    """Each text, repaired. What becomes of one does not hang on the others."""
    found: list[Repaired] = []
    for batch in batches(texts):
        odd = batch.marked(_suspects()[batch.codes]).tolist()
        found += [_mended(text) if odd[number] else Repaired(text.strip()) for number, text in enumerate(batch.texts)]
    return found


def normalise(text: str) -> str:
    """``repair`` of one text, without what was repaired."""
    if text.isascii() and "\r" not in text and not _CONTROLS.search(text):
        return text.strip()
    return repair([text])[0].text


def _mended(text: str) -> Repaired:
    codes: set[str] = set()
    for _ in range(ROUNDS):
        before = text
        for code, mend in _MENDS:
            if (mended := mend(text)) != text:
                codes.add(code)
                text = mended
        text = text.strip()
        if text == before:
            break
    return Repaired(text, tuple(code for code in CODES if code in codes))


def _decoded(text: str) -> str:
    """Lines of UTF-8 that was read as something else, read again; every other line stays as it is."""
    if not (_MOJIBAKE.search(text) or _as_gbk(text)):
        return text
    return "\n".join(map(_decoded_line, text.split("\n")))


def _decoded_line(line: str) -> str:
    if _as_gbk(line):
        line = _RUN.sub(_from_gbk, _QUOTE.sub(_from_gbk, line))
    if not _MOJIBAKE.search(line):
        return line
    import ftfy

    mended: str = ftfy.fix_encoding(line, _ftfy())
    return mended


@functools.cache
def _ftfy() -> Any:
    """ftfy's switches, of which only those of encodings matter to ``fix_encoding``; the others would touch good text."""
    import ftfy

    return ftfy.TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )


def _as_gbk(text: str) -> bool:
    """Whether a text might be UTF-8 that was read as GBK."""
    if "鈥" in text:
        return True
    if not _GBK.search(text):
        return False
    return any(
        len(_GBK.findall(line)) >= GBK_SHARE * (1 + sum(letter > "\x7f" for letter in line))
        for line in text.split("\n")
    )


def _from_gbk(run: re.Match[str]) -> str:
    """Characters beyond ASCII, read again; themselves when their bytes of GBK are no UTF-8 of a quote or of two Han characters."""
    try:
        again = run[0].encode("gb18030").decode("utf-8")
    except UnicodeError:
        return run[0]
    return again if again[0] in "‘’“”–—…" or len(_HAN.findall(again)) >= 2 else run[0]


def _line_ends(text: str) -> str:
    return _LINES.sub("\n", text)


def _plain_spaces(text: str) -> str:
    return _SPACES.sub(" ", text)


def _nfc(text: str) -> str:
    """Composed letters; heaps of marks that are no writing stay as they are (``stacked``)."""
    pieces, place = [], 0
    for heap in stacked().finditer(text):
        pieces += [unicodedata.normalize("NFC", text[place : heap.start()]), heap[0]]
        place = heap.end()
    return "".join([*pieces, unicodedata.normalize("NFC", text[place:])])


_BIDI = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufff9-\ufffb\ufffe\uffff]")
_ZERO = re.compile(
    r"[\u00ad\u180e\u200b\u2060-\u2064\ufeff]"
    r"|(?<![\u0600-\u0dff\u2600-\u27bf\ufe0f\U0001f000-\U0001faff])[\u200c\u200d]"
    r"|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0000-\U000e007f]+"
)
_SPACES = re.compile(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_LINES = re.compile(r"\r\n?|[\u2028\u2029]")
_NEXT = "[\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_MOJIBAKE = re.compile(f"[\u00c2-\u00df]{_NEXT}|[\u00e0-\u00ef]{_NEXT}[{_NEXT[1:-1]} ]|ð{_NEXT}{{2}}")
"""Bytes of UTF-8 for one character, as Latin-1 or Windows-1252 show them; a byte A0 may have become a plain space."""
_QUOTE = re.compile("鈥[^\x00-\x7f]")
_RUN = re.compile(r"[^\x00-\x7f]+")
_HAN = re.compile(r"[\u4e00-\u9fff]")
_GBK = re.compile(
    "["
    + "".join(
        bytes((high, low)).decode("gbk") for high in range(0xE4, 0xEA) for low in (*range(0x80, 0xC0),) if low != 0x7F
    )
    + "]"
)
"""What the first two bytes of a Han character in UTF-8 are in GBK."""
_MENDS = (
    ("mojibake", _decoded),
    ("line_ends", _line_ends),
    ("controls", functools.partial(_CONTROLS.sub, "")),
    ("bidi", functools.partial(_BIDI.sub, "")),
    ("zero_width", functools.partial(_ZERO.sub, "")),
    ("spaces", _plain_spaces),
    ("nfc", _nfc),
)


@functools.cache
def _suspects() -> NDArray[np.bool_]:
    """(0x110000,) code points without which a text needs no repair."""
    found = any_of("\r\u200c\u200d鈥")
    every = "".join(map(chr, range(0x10000)))
    for pattern in (_CONTROLS, _BIDI, _ZERO, _SPACES, _LINES, _GBK, re.compile("[\u00c2-\u00f4]")):
        for run in pattern.finditer(every):
            found[run.start() : run.end()] = True
    found[0xE0000:0xE0080] = True
    # a text is normal when each code point is normal alone and joins none before it
    for letter in map(
        chr, (*range(0x80, 0x3400), *range(0xA000, 0xAC00), *range(0xF900, 0x20000), *range(0x2F800, 0x2FA20))
    ):
        if unicodedata.combining(letter) or not unicodedata.is_normalized("NFC", letter):
            found[ord(letter)] = True
        elif (parts := unicodedata.decomposition(letter)) and "<" not in parts:
            found[[int(part, 16) for part in parts.split()[1:]]] = True
    found[0x1161:0x1176] = found[0x11A8:0x11C3] = True
    return found
