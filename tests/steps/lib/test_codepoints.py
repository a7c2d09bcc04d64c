import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.lib import codepoints
from steps.lib.codepoints import BLANK, DIGIT, END, HAN, LATIN, LETTER, NEWLINE, SYMBOL, Batch, batches, table

TEXTS = st.lists(st.text(st.sampled_from("ab Zé1²你好。．!?#…\n\t\u3000\ud800カ한я"), max_size=30), max_size=12)


def test_classes_are_those_of_str() -> None:
    kinds = table()
    every = [chr(code) for code in range(0x110000)]
    assert ((kinds >= DIGIT) & (kinds <= LETTER)).tolist() == list(map(str.isalnum, every))
    assert ((kinds >= LATIN) & (kinds <= LETTER)).tolist() == list(map(str.isalpha, every))
    assert ((kinds == NEWLINE) | (kinds == BLANK)).tolist() == list(map(str.isspace, every))
    assert (kinds == DIGIT).tolist() == list(map(str.isdecimal, every))


@pytest.mark.parametrize(
    ("letter", "kind"),
    [("é", LATIN), ("ả", LATIN), ("中", HAN), ("𠀀", HAN), ("カ", codepoints.KANA), ("한", codepoints.HANGUL), ("я", LETTER),
     ("。", END), ("…", SYMBOL), ("²", codepoints.NUMBER), ("-", codepoints.OTHER)],
)  # fmt: skip
def test_class_of(letter: str, kind: int) -> None:
    assert table()[ord(letter)] == kind


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_counts_and_lines_are_those_of_each_text(texts: list[str]) -> None:
    batch = Batch(texts)
    assert batch.count(DIGIT, LETTER).tolist() == [sum(map(str.isalnum, text)) for text in texts]
    assert (batch.count(NEWLINE, BLANK) - 1).tolist() == [sum(map(str.isspace, text)) for text in texts]
    assert batch.letters.tolist() == [sum(map(str.isalpha, text)) for text in texts]
    lines = batch.lines
    found = [
        (owner, "".join(map(chr, batch.codes[first : last + 1])))
        for owner, first, last in zip(lines.owners, lines.firsts, lines.lasts, strict=True)
    ]
    assert found == [
        (number, line.strip()) for number, text in enumerate(texts) for line in text.split("\n") if line.strip()
    ]
    assert lines.lengths.tolist() == [len(line) for _, line in found]
    assert lines.totals.tolist() == np.bincount(lines.owners, minlength=len(texts)).tolist()


def test_batches_hold_every_text_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codepoints, "TEXTS", 3)
    monkeypatch.setattr(codepoints, "CHARS", 10)
    texts = ["a", "", "b", "c", "x" * 50, "d", "ee"]
    cut = [list(batch.texts) for batch in batches(texts)]
    assert cut == [["a", "", "b"], ["c", "x" * 50], ["d", "ee"]]
    assert list(batches([])) == []
