"""Measures of documents, many texts at a time: what the document filters of ``quality`` compare with their limits.

Each is a function of a ``Batch`` that gives a number for each text. The costly ones first compute a number that the true one
cannot pass, for all texts at once, and then the true one only where that could be over the limit: the results are exact. They
take (N,) ``judged``, the texts that no rule has dropped yet, and give 0 for the others.

Chinese and English are judged alike but for what the docstrings say. Lengths count characters; where a source counts words
between spaces, two Han characters stand for a word. A text is Chinese from a share of Han letters on (``language``).

Sources: "Gopher" is Rae et al., arXiv 2112.11446, appendix A.1.1, table A1 for repetition; "C4" is Raffel et al., arXiv
1910.10683, section 2.2; "FineWeb" is Penedo et al., arXiv 2406.17557, section 3.4 and datatrove's FineWebQualityFilter.

Letters in shape comments: N texts, C characters of them all, L lines that hold something, S stretches.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from steps.lib.codepoints import BLANK, DIGIT, END, HAN, LETTER, NEWLINE, SYMBOL, Batch, any_of, batches, ratio

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Shares = NDArray[np.float64]
    Marks = NDArray[np.bool_]

MIN_LINES = 5
"""Lines with text that a document has at least, or rules on the share of its lines do not judge it."""
MIN_LETTERS = 100
"""Letters that a document has at least, or rules on its words do not judge it; a Han character counts for two and a half."""
SHORT_LINE = {"zh": 10, "en": 30}
"""Characters up to which a line is short."""
PIECE = {"zh": 4, "en": 12}
"""Characters of what stands for two words."""
SIZE, STRETCH = 20, 1000
"""Characters of a piece, and of the stretches in which pieces that come again are counted."""


def word_ratio(batch: Batch) -> Shares:
    """Share of letters, digits and CJK among the visible characters. Source: DATA.md 3.4."""
    return ratio(batch.count(DIGIT, LETTER), batch.lengths - batch.count(NEWLINE, BLANK) + 1)


def symbol_ratio(batch: Batch) -> Shares:
    """Share of # and … . Source: DATA.md 3.4, after Gopher (symbols to words), on characters."""
    return ratio(batch.count(SYMBOL, SYMBOL), batch.lengths)


def sentence_marks(batch: Batch) -> Shares:
    """Share of marks that end a sentence, of both languages. Source: DATA.md 3.4."""
    return ratio(batch.count(END, END), batch.lengths)


def lost_characters(batch: Batch) -> Shares:
    """Share of characters that a wrong encoding has destroyed: U+FFFD, and the 锟斤拷 that it becomes in GBK. What can be
    read again was repaired before (``characters``). Source: our own."""
    return ratio(batch.marked(batch.codes == 0xFFFD) + 3 * batch.marked(batch.codes == ord("锟")), batch.lengths)


def duplicate_lines(batch: Batch, judged: Marks, above: float) -> Shares:
    """Share of non-empty lines that stood in the text before; 0 where it is not above ``above``. Source: Gopher, table A1."""
    return _duplicated(batch, judged, above, lambda text: duplicated_lines(text)[0])


def duplicate_line_chars(batch: Batch, judged: Marks, above: float) -> Shares:
    """Share of characters in such lines; 0 where it is not above ``above``. Source: Gopher, table A1 (.2; FineWeb: .01)."""
    return _duplicated(batch, judged, above, lambda text: duplicated_lines(text)[1], chars=True)


def duplicated_lines(text: str) -> tuple[float, float]:
    """Share of a text's non-empty lines that stood in it before, and of the characters in them."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    once = set(lines)
    return (1 - len(once) / len(lines), 1 - sum(map(len, once)) / sum(map(len, lines))) if lines else (0.0, 0.0)


def repetition(batch: Batch, judged: Marks, above: float) -> Shares:
    """Largest share of repeated pieces in any stretch, see ``repeated``; 0 where it is not above ``above``."""
    import numpy as np

    lengths = batch.lengths
    number = np.maximum(1, -(-(lengths - STRETCH // 2) // STRETCH))  # stretches of each text
    owners = np.repeat(np.arange(len(lengths)), number)
    starts = (np.arange(len(owners)) - np.repeat(np.cumsum(number) - number, number)) * STRETCH
    pieces = np.minimum(lengths[owners] - starts, STRETCH) - SIZE + 1
    enough = (pieces >= 4 * SIZE) & judged[owners]
    owners, starts, pieces = owners[enough], starts[enough], pieces[enough]
    places = _runs(batch.offsets[owners] + starts, pieces)
    bits = 12 if above >= 0.3 else 15
    buckets = 1 << bits
    seen = np.zeros((len(owners), buckets), np.bool_)
    seen.reshape(-1)[np.repeat(np.arange(len(owners)) * buckets, pieces) + _hashes(batch, SIZE, bits)[places]] = True
    most = 1 - np.count_nonzero(seen, axis=1) / pieces  # pieces that share a bucket make it larger, never smaller
    return _exact(batch, np.unique(owners[most > above]), above, repeated)


def repetitions(texts: Sequence[str], above: float) -> list[float]:
    """``repetition`` of any texts, all of them judged."""
    import numpy as np

    return [
        share
        for batch in batches(texts)
        for share in repetition(batch, np.ones(len(batch.texts), np.bool_), above).tolist()
    ]


def repeated(text: str) -> float:
    """Largest share of pieces of 20 characters that came before, in any stretch of 1,000 characters of the text.

    Stretches, because a long text repeats phrases, and because a generator that loops does so at its end.
    Source: Gopher's duplicate n-grams (table A1), on characters, by stretch.
    """
    worst = 0.0
    for start in range(0, max(1, len(text) - STRETCH // 2), STRETCH):
        part = text[start : start + STRETCH]
        number = len(part) - SIZE + 1
        if number >= 4 * SIZE:
            worst = max(worst, 1 - len({part[place : place + SIZE] for place in range(number)}) / number)
    return worst


def top_piece(batch: Batch, judged: Marks, chinese: Marks, above: float) -> Shares:
    """Share of the characters that the most frequent piece covers; 0 where it is not above ``above``.

    Pieces of 4 characters in zh, of 12 in en: about two words. A text has 20 times as many characters at least, or it is not
    judged. Source: Gopher's top 2-gram (table A1: .2), on characters.
    """
    import numpy as np

    found = np.zeros(len(batch.texts))
    for lang, chosen in (("zh", chinese), ("en", ~chinese)):
        width, buckets = PIECE[lang], 1 << 9
        pieces = np.where(chosen & judged & (batch.lengths >= 20 * width), batch.lengths - width + 1, 0)
        if not pieces.any():
            continue
        places = _runs(batch.offsets[:-1], pieces)
        keys = np.repeat(np.arange(len(pieces)) * buckets, pieces) + _hashes(batch, width, 9)[places]
        most = np.bincount(keys, minlength=len(pieces) * buckets).reshape(-1, buckets).max(axis=1)
        hopeful = np.flatnonzero((pieces > 0) & (ratio(most * width, batch.lengths) > above))
        found += _exact(batch, hopeful, above, functools.partial(topped, width=width))
    return found


def topped(text: str, width: int) -> float:
    """Share of the characters that the most frequent piece of ``width`` characters covers, 1 at most. Pieces without a letter or
    digit, such as rules and indents, do not count."""
    pieces = Counter(text[place : place + width] for place in range(len(text) - width + 1))
    most = next((count for piece, count in pieces.most_common() if any(map(str.isalnum, piece))), 0)
    return min(1.0, most * width / len(text)) if text else 0.0


def bullet_lines(batch: Batch) -> Shares:
    """Share of lines that begin with a bullet; 0 for under ``MIN_LINES`` lines. Source: Gopher (at most .9). Both languages
    alike; numbers (1. 一、) are no bullets."""
    return _lines(batch, _bullets()[batch.codes[batch.lines.firsts]])


def ellipsis_lines(batch: Batch) -> Shares:
    """Share of lines that end in … or ...; 0 for under ``MIN_LINES`` lines. Source: Gopher (at most .3).
    The Chinese …… ends in …, too."""
    lines, codes = batch.lines, batch.codes
    dots = (codes[lines.lasts] == 0x2E) & (codes[lines.lasts - 1] == 0x2E) & (codes[lines.lasts - 2] == 0x2E)
    return _lines(batch, (codes[lines.lasts] == 0x2026) | dots & (lines.lengths >= 3))


def open_lines(batch: Batch) -> Shares:
    """Share of lines that end without a mark; 0 for under ``MIN_LINES`` lines. Source: FineWeb (at most .88). Marks are those of
    both languages, with closing quotes and brackets: 。！？…；：”』」 too."""
    return _lines(batch, ~_closings()[batch.codes[batch.lines.lasts]])


def short_lines(batch: Batch, chinese: Marks) -> Shares:
    """Share of lines of up to 30 characters (zh: 10); 0 for under ``MIN_LINES`` lines. Source: FineWeb (at most .67); a Han
    character says about what three or four Latin letters say."""
    import numpy as np

    limits = np.where(chinese, SHORT_LINE["zh"], SHORT_LINE["en"])
    return _lines(batch, batch.lines.lengths <= limits[batch.lines.owners])


def braces(batch: Batch) -> Shares:
    """Share of { and }. Source: C4, which drops a page with a single one; here a share, since documents quote some code."""
    return ratio(batch.marked((batch.codes == 0x7B) | (batch.codes == 0x7D)), batch.lengths)


def word_length(batch: Batch) -> Shares:
    """Mean characters of a run without white space. Source: Gopher (3 to 10). Says nothing of Chinese, which has no
    spaces."""
    import numpy as np

    dark = batch.classes - np.uint8(NEWLINE) > BLANK - NEWLINE
    begins = dark.copy()
    begins[1:] &= ~dark[:-1]
    return ratio(batch.marked(dark), batch.marked(begins))


def judged_by_words(batch: Batch) -> Marks:
    """Texts with enough letters for rules on words."""
    found: NDArray[np.bool_] = batch.letters + 1.5 * batch.count(HAN, HAN) >= MIN_LETTERS
    return found


def stop_words(text: str, chinese: bool) -> int:
    """How many different words of the commonest a text has. Source: Gopher (2 of the, be, to, of, and, that, have, with); zh:
    single characters 的是在了和有不 (DATA.md 3.4)."""
    if chinese:
        return sum(letter in text for letter in "的是在了和有不")
    return len(_STOP_WORDS.intersection(text.lower().split()))


def lorem_ipsum(text: str, span: int = 2000) -> str | None:
    """Filler text of a page that was never written, once in ``span`` characters or oftener; zh: the words with which Chinese
    templates mark it. Source: C4, which drops a page with a single one; a long document may speak of it."""
    found = _FILLER.findall(text) if any(word in text for word in _FILLERS) else []
    return str(found[0]) if len(found) * span >= len(text) and found else None


def script_notice(text: str, most: int = 500) -> str | None:
    """A short page, of up to ``most`` characters, that asks for JavaScript, in both languages: the page itself was not read.
    Source: C4, which drops each line with the word; documents about the language stay here."""
    found = _SCRIPT.search(text) if len(text) <= most and any(word in text for word in _SCRIPTS) else None
    return found[0] if found else None


def _lines(batch: Batch, marks: Marks) -> Shares:
    import numpy as np

    return np.where(batch.lines.totals >= MIN_LINES, batch.lines.share(marks), 0.0)


def _duplicated(batch: Batch, judged: Marks, above: float, exact: Any, chars: bool = False) -> Shares:
    """Lines of one text with the same length and the same ends might be equal; where enough might, it is looked at."""
    import numpy as np

    lines, codes = batch.lines, batch.codes
    order = np.lexsort((codes[lines.firsts], codes[lines.lasts], lines.lengths, lines.owners))
    first, last = codes[lines.firsts][order], codes[lines.lasts][order]
    length, owner = lines.lengths[order], lines.owners[order]
    same = (first[1:] == first[:-1]) & (last[1:] == last[:-1]) & (length[1:] == length[:-1]) & (owner[1:] == owner[:-1])
    again = np.flatnonzero(same) + 1
    weights = length if chars else np.ones(len(length))
    part = np.bincount(owner[again], weights[again], len(batch.texts))
    whole = np.bincount(owner, weights, len(batch.texts))
    return _exact(batch, np.flatnonzero(judged & (ratio(part, whole) > above - 1e-9)), above, exact)


def _exact(batch: Batch, hopeful: NDArray[Any], above: float, measure: Any) -> Shares:
    """(N,) the measure of the hopeful texts, where it is above the limit."""
    import numpy as np

    found = np.zeros(len(batch.texts))
    for number in hopeful.tolist():
        value = measure(batch.texts[number])
        if value > above:
            found[number] = value
    return found


def _hashes(batch: Batch, width: int, bits: int) -> NDArray[np.int64]:
    """(C + N - width + 1,) a number of ``bits`` bits for each piece: equal pieces have equal ones."""
    import numpy as np

    mixed = batch.codes * np.uint32(0x9E3779B1)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x85EBCA77)
    total = np.concatenate([np.zeros(1, np.uint32), np.cumsum(mixed, dtype=np.uint32)])
    found: NDArray[np.int64] = (
        ((total[width:] - total[:-width]) * np.uint32(0xC2B2AE3D)) >> np.uint32(32 - bits)
    ).astype(np.int64)
    return found


def _runs(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """start, start + 1, ... of each run, one run after another."""
    import numpy as np

    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


@functools.cache
def _bullets() -> Marks:
    return any_of("•‣◦⁃▪▫■□●○◆◇►▶➢➤✓✔★☆*-–—·・※")


@functools.cache
def _closings() -> Marks:
    return any_of(".!?…;:。！？；：\"'”’」』)）]】》>`|")


_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_FILLERS = ("psum", "PSUM", "占位", "填充", "示例")
_SCRIPTS = ("avaScript", "avascript", "AVASCRIPT", "脚本")
"""Without one of these the patterns find nothing."""
_FILLER = re.compile(r"lorem ipsum dolor|(?:此处|这里)(?:是|为)?(?:占位|填充|示例)(?:文字|文本|内容)", re.IGNORECASE)
_SCRIPT = re.compile(
    r"(?:enable|turn on|activate|requires?|without|needs?) (?:your )?(?:browser['’]s )?JavaScript"
    r"|JavaScript (?:is|seems to be|must be|has been) (?:\w+ )?(?:disabled|enabled|required|turned off)"
    r"|(?:启用|开启|打开|允许|支持|禁用了?|关闭了?)[^。！？\n]{0,8}(?:JavaScript|脚本)",
    re.IGNORECASE,
)
