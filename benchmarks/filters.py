"""Documents a core-second of the five document heuristics, over code points and in plain ``re``, with equal counts by reason.

The corpus is that of DATA.md section 6, *Filters*: made-up words drawn by frequency, half English, half Chinese, one fault in 8 of
them. Both ways judge the same documents in the same process, in turns; each time is processor time, the best of the rounds.
Further lines: the same with all filters of documents that are on by default, languages, and the repair of characters.

Run:  python benchmarks/filters.py [--documents 100000]
"""

from __future__ import annotations

import argparse
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate

from steps.lib.characters import repair
from steps.lib.codepoints import Batch, table
from steps.lib.language import detect_many
from steps.lib.quality import Filters, Finding, judge_texts

FIVE = ("word_ratio", "symbol_ratio", "sentence_marks", "duplicate_lines")
"""The heuristics beside length."""
_BLANK = re.compile(r"\s+")
_WORDY = re.compile(r"[^\W_]+")
_SYMBOLS = re.compile("[#…]")
_MARKS = re.compile("[。！？.!?]")
_LINE = re.compile(r"[^\n]+")


def corpus(number: int, seed: int = 0) -> list[str]:
    """Documents of 200 to 400 made-up words, every other one in Chinese, some with a fault by their number modulo 40."""
    draw = random.Random(seed)
    weights = list(accumulate(1 / (rank + 2.7) for rank in range(50_000)))
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    han = [
        bytes((high, low)).decode("gb2312") for high in range(0xB0, 0xD7) for low in range(0xA1, 0xFF)
    ]  # the common ones
    english = sorted(
        dict.fromkeys("".join(draw.choices(letters, k=draw.randint(2, 10))) for _ in range(60_000)), key=len
    )[:50_000]
    sizes = draw.choices((1, 2, 3, 4), (0.10, 0.70, 0.14, 0.06), k=60_000)
    chinese = sorted(dict.fromkeys("".join(draw.choices(han, k=size)) for size in sizes), key=len)[:50_000]
    return [
        faulty(text(draw, chinese if one % 2 else english, weights, one % 2 == 1), one, one % 2 == 1)
        for one in range(number)
    ]


def text(draw: random.Random, words: Sequence[str], weights: list[float], zh: bool) -> str:
    """One document. A sentence ends behind words that say so themselves, or after 24; a newline follows every sixth."""
    pieces, since, ended = [], 0, 0
    for word in draw.choices(words, cum_weights=weights[: len(words)], k=draw.randint(200, 400)):
        since += 1
        if (7 * len(word) + ord(word[0])) % 13 and since < 24:
            pieces.append(word if zh else word + " ")
            continue
        ended, since = ended + 1, 0
        pieces.append(word + ("。" if zh else ". ") + ("" if ended % 6 else "\n"))
    return "".join(pieces).strip()


def faulty(one: str, number: int, zh: bool) -> str:
    """The document with the fault of its number."""
    match number % 40:
        case 0 | 1:
            return one[:20] if number % 40 == 0 else one + "#…" * 60
        case 2:
            return "\n".join([one[:60].replace("\n", " ")] * 12)
        case 3:
            return re.sub("[。.]", "，" if zh else ",", one)
        case 4:
            return one + "|-=*/+" * (len(one) // 6)
    return one


def plain(one: str, filters: Filters) -> Finding | None:
    """The five heuristics in plain ``re``, as one writes them."""
    if len(one) < (low := filters.text_min_chars or 0):
        return "too_short", f"{len(one)} characters, at least {low}"
    if len(one) > (high := filters.text_max_chars or len(one)):
        return "too_long", f"{len(one)} characters, at most {high}"
    visible = len(one) - sum(map(len, _BLANK.findall(one)))
    value = sum(map(len, _WORDY.findall(one))) / visible if visible else 0.0
    if filters.word_ratio is not None and value < filters.word_ratio:
        return "word_ratio", f"{value:.4f}, at least {filters.word_ratio}"
    value = len(_MARKS.findall(one)) / len(one) if one else 0.0
    if filters.sentence_marks is not None and value < filters.sentence_marks:
        return "sentence_marks", f"{value:.4f}, at least {filters.sentence_marks}"
    value = len(_SYMBOLS.findall(one)) / len(one) if one else 0.0
    if filters.symbol_ratio is not None and value > filters.symbol_ratio:
        return "symbol_ratio", f"{value:.4f}, at most {filters.symbol_ratio}"
    lines = [line.strip() for line in _LINE.findall(one) if line.strip()]
    value = 1 - len(set(lines)) / len(lines) if lines else 0.0
    if filters.duplicate_lines is not None and value > filters.duplicate_lines:
        return "duplicate_lines", f"{value:.4f}, at most {filters.duplicate_lines}"
    return None


def five() -> Filters:
    """Filters with nothing on but length and the other four."""
    off = {
        name: False if isinstance(value, bool) else [] if isinstance(value, list) else None
        for name, value in Filters().model_dump().items()
    }
    on = {name: value for name, value in Filters().model_dump().items() if name in FIVE}
    return Filters.model_validate({**off, **on, "text_min_chars": 50, "text_max_chars": 20_000})


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Processor seconds of the best round."""
    best = float("inf")
    for _ in range(rounds):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def main() -> None:
    """Judge the corpus both ways and print counts and rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    documents, filters = corpus(arguments.documents), five()
    chars = sum(map(len, documents)) / len(documents)
    print(f"{len(documents)} documents, {chars:.0f} characters in the mean, load {os.getloadavg()[0]:.1f}")
    (
        table(),
        repair(["\u00e9"]),
        detect_many(["Das ist ein Satz, nach dem das Modell gefragt wird."]),
    )  # loaded before the clock
    fast, slow = judge_texts(documents, filters), [plain(one, filters) for one in documents]
    if fast != slow:
        number = next(number for number, pair in enumerate(zip(fast, slow, strict=True)) if pair[0] != pair[1])
        raise SystemExit(f"the two ways differ: document {number} is {fast[number]} and {slow[number]}")
    counts = Counter(finding[0] if finding else "kept" for finding in fast)
    print("equal findings: " + ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items())))
    rates = {
        "five heuristics, plain re": lambda: [plain(one, filters) for one in documents],
        "five heuristics, code points": lambda: judge_texts(documents, filters),
        "+ repetition": lambda: judge_texts(documents, filters.model_copy(update={"repetition": 0.5})),
        "all filters of documents but language, default": lambda: judge_texts(documents, Filters(languages=[])),
        "languages (made-up words: the model is always asked)": lambda: detect_many(documents),
        "repair of characters": lambda: repair(documents),
        "code points alone": lambda: [
            Batch(documents[start : start + 200]).classes for start in range(0, len(documents), 200)
        ],
    }
    first = 0.0
    for label, work in rates.items():
        rate = len(documents) / seconds(work, arguments.rounds)
        first = first or rate
        print(f"{label:<56}{rate:>10,.0f} documents a core-second, {rate / first:5.2f} times plain re")


if __name__ == "__main__":
    main()
