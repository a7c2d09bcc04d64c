"""Shingles of five tokens as 64-bit hashes, for Chinese and English, by few passes of numpy over small blocks.

Source: DATA.md 3.1, steps 1 to 4 (the classes of characters, single Han characters as tokens, five tokens a shingle).
Deviations, each measured (docs/duplicates.md):
  1. A word is hashed from its own bytes, eight at a time, not by a polynomial over all characters of the block: work goes with
     the tokens, not with the characters, and no powers are needed.
  2. Texts of ASCII alone are cut as bytes; the others as code points. A token's hash is the same in both.
  3. Case is one bit of ASCII; only blocks with other letters that have a case are lowered, each text alone, since lower() looks
     around and may change a length.
  4. Nothing is drawn or seeded: the random numbers of characters and places are splitmix64 mixes of their numbers.

Letters in shape comments: N texts, C characters, T tokens (and windows: one begins at each token), W words.
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]
    Ints = NDArray[np.int64]

WIDTH = 5
"""Tokens a shingle. A text with fewer has none, and is compared by exact content only."""

BLOCK_TEXTS = 62
"""Most texts of a block: what is sorted by text has six bits for it, and 63 marks what is none."""
BLOCK_LETTERS = 60_000
"""Characters of a block, so that its arrays stay in a core's cache. A longer text is a block of its own."""

_LONG = 64
"""Bytes of a word from which it is hashed alone: a line of base64 must not cost a pass every eight bytes."""
_Q = 0xC2B2AE3D27D4EB4F
_CJK = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0xF900, 0xFAFF), (0x3040, 0x30FF), (0xAC00, 0xD7AF), (0x20000, 0x2FA1F),
)  # fmt: skip
_WORDS = ((0x0000, 0x303F), (0xFF00, 0xFFEE))


def tokens(text: str) -> list[str]:
    """Tokens of a text in plain Python: what is hashed here. Runs of letters and digits; single CJK characters."""
    table, words, run = _classes(), [], ""
    for letter in text.lower():
        kind = table[ord(letter)] & 3
        if kind != 1 and run:
            words.append(run)
            run = ""
        if kind == 2:
            words.append(letter)
        elif kind == 1:
            run += letter
    return [*words, run] if run else words


@dataclass(frozen=True)
class Block:
    """Windows of five tokens of some texts; those that reach into the next text are marked, not cut out."""

    texts: list[int]
    """Numbers of the texts, at most ``BLOCK_TEXTS``."""
    windows: Hashes
    """(T,) the hash of the five tokens that begin at each token."""
    firsts: Ints
    """(n + 1,) first token of each of the n texts."""

    @functools.cached_property
    def beyond(self) -> Ints:
        """Tokens at which no shingle begins: the last four of each text."""
        import numpy as np

        last = self.firsts[1:, None] - np.arange(1, WIDTH)
        inside: Ints = last[last >= self.firsts[:-1, None]]
        return inside

    @functools.cached_property
    def counts(self) -> Ints:
        """(n,) shingles of each text."""
        import numpy as np

        counts: Ints = np.maximum(np.diff(self.firsts) - (WIDTH - 1), 0)
        return counts


def blocks(texts: Sequence[str]) -> Iterator[Block]:
    """Every text once, in blocks: those of ASCII alone together, and the others. How they fall changes no hash."""
    groups: tuple[list[int], list[int]] = [], []
    letters = [0, 0]
    for number, text in enumerate(texts):
        kind = int(text.isascii())
        group = groups[kind]
        if group and (len(group) == BLOCK_TEXTS or letters[kind] + len(text) > BLOCK_LETTERS):
            yield _block(group.copy(), texts, bool(kind))
            group.clear()
            letters[kind] = 0
        group.append(number)
        letters[kind] += len(text)
    for kind, group in enumerate(groups):
        if group:
            yield _block(group, texts, bool(kind))


def mix(values: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    import numpy as np

    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _block(group: list[int], texts: Sequence[str], ascii_alone: bool) -> Block:
    """Sums of five tokens times the powers of an odd number: pairs, pairs of pairs, and the fifth."""
    import numpy as np

    some = [texts[number] for number in group]
    # (T + 4,): four zeros follow, so that there is a window at each token
    token, firsts = _ascii_tokens(some) if ascii_alone else _tokens(some)
    two = token[1:] * np.uint64(_Q)
    two += token[:-1]
    four = two[2:] * np.uint64(pow(_Q, 2, 2**64))
    four += two[:-2]
    five = token[4:] * np.uint64(pow(_Q, 4, 2**64))
    five += four[: len(five)]
    return Block(group, five, firsts)


@functools.cache
def _classes() -> Any:
    """(0x110000,) class of each code point: 2 a token of its own (CJK), 1 part of a run (letters, numbers), 0 a gap.

    And 4 where lower() changes it and it is not ASCII (beyond 0xFFFF all that have a case are gaps).
    """
    import numpy as np

    table = np.zeros(0x110000, np.uint8)
    for low, high in _WORDS:
        table[low : high + 1] = [unicodedata.category(chr(code))[0] in "LN" for code in range(low, high + 1)]
    for low, high in _CJK:
        table[low : high + 1] = 2
    table[128:0x10000] |= np.array([chr(code).lower() != chr(code) for code in range(128, 0x10000)], np.uint8) << 2
    return table


@functools.cache
def _letters() -> Any:
    """(0x110000,) the hash of each code point that is a token of its own, and 0 for all others."""
    import numpy as np

    table = mix(np.arange(1, 0x110001, dtype=np.uint64)) | np.uint64(1)
    table[_classes() != 2] = 0  # Han, kana and hangul have no case
    return table


def _ascii_tokens(texts: Sequence[str]) -> tuple[Hashes, Ints]:
    """Token hashes of ASCII texts (and four zeros), and the first token of each text."""
    import numpy as np

    # One gap before, and room for a load of eight bytes behind the last letter.
    codes = np.frombuffer(("\n" + "\n".join(texts) + "\n       ").encode("ascii"), np.uint8)  # (C,)
    low = codes | np.uint8(0x20)
    word = (low - np.uint8(97)) < 26
    word |= (codes - np.uint8(48)) < 10
    edges = np.flatnonzero(word[1:] != word[:-1])
    edges += 1
    starts, ends = edges[::2], edges[1::2]
    token = np.zeros(len(starts) + WIDTH - 1, np.uint64)
    token[: len(starts)] = _words(low, starts, ends - starts)
    return token, _firsts(starts, [len(text) for text in texts])


def _tokens(texts: Sequence[str]) -> tuple[Hashes, Ints]:
    """Token hashes of any texts (and four zeros), and the first token of each text."""
    import numpy as np

    codes = _codes(texts)
    kind = _classes().take(codes)  # (C,)
    if kind.max() > 3:
        texts = [text.lower() for text in texts]
        codes = _codes(texts)
        kind = _classes().take(codes) & np.uint8(3)
    run = kind & np.uint8(1)
    starts = np.flatnonzero(kind[1:] > run[:-1])
    starts += 1
    token = np.zeros(len(starts) + WIDTH - 1, np.uint64)
    token[: len(starts)] = _letters().take(codes.take(starts))
    ends = np.flatnonzero(run[1:] < run[:-1])
    if len(ends):
        ends += 1
        which = np.flatnonzero(token[: len(starts)] == 0)  # (W,) tokens that are words
        begins = starts[which]
        sizes = ends - begins
        low = codes.astype(np.uint8) | np.uint8(0x20)
        wide = (codes > 127) & (run > 0)
        if not wide.any():
            token[which] = _words(low, begins, sizes)
        else:
            count = np.cumsum(wide)
            plain = count[ends - 1] == count[begins - 1]
            some, others = np.flatnonzero(plain), np.flatnonzero(~plain)
            token[which[some]] = _words(low, begins[some], sizes[some])
            # Letters of words are below 0x10000: two bytes each.
            codes = codes | ((codes - np.uint32(65) < 26).astype(np.uint32) << np.uint32(5))
            pairs = codes.astype(np.uint16).view(np.uint8)
            token[which[others]] = ~_words(pairs, begins[others] * 2, sizes[others] * 2)
    return token, _firsts(starts, [len(text) for text in texts])


def _codes(texts: Sequence[str]) -> NDArray[np.uint32]:
    """(C,) code points, half characters too: a gap before each text, and room for a load of eight bytes behind the last letter."""
    import numpy as np

    return np.frombuffer(("\n" + "\n".join(texts) + "\n       ").encode("utf-32-le", "surrogatepass"), np.uint32)


def _firsts(starts: Ints, lengths: list[int]) -> Ints:
    """(n + 1,) first token of each text; a gap of one stands before each."""
    import numpy as np

    places = np.ones(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=places[1:])
    places[1:] += np.arange(2, len(lengths) + 2)
    return np.searchsorted(starts, places)


def _words(letters: NDArray[np.uint8], starts: Ints, sizes: Ints) -> Hashes:
    """(W,) hash of the bytes of each word, none of which are eight zeros; eight at a time."""
    import numpy as np

    eights: Any = np.ndarray((len(letters) - 7,), "<u8", letters, strides=(1,))
    hashes = _eight(eights, starts, sizes)
    more = np.flatnonzero(sizes > 8)
    if not len(more):
        return hashes
    long = more[sizes[more] > _LONG]
    for place in range(8, _LONG, 8):
        more = more[sizes[more] > place] if place > 8 else more
        if not len(more):
            break
        hashes[more] = mix(hashes[more] + _eight(eights, starts[more] + place, sizes[more] - place))
    for number in long.tolist():
        start = int(starts[number])
        digest = hashlib.blake2b(letters[start : start + int(sizes[number])].tobytes(), digest_size=8).digest()
        hashes[number] = int.from_bytes(digest, "little")
    return hashes


def _eight(eights: Any, starts: Ints, sizes: Ints) -> Hashes:
    """Up to eight bytes at each place, what is behind the word shifted out, mixed."""
    import numpy as np

    value: Hashes = eights.take(starts)
    value <<= (64 - 8 * np.minimum(sizes, 8)).astype(np.uint64)
    return mix(value)
