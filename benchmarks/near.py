"""Near-copies: documents a core-second, precision and recall, on documents built from a seed; datasketch and text-dedup on request.

The corpus is that of DATA.md section 6: half English, half Chinese, 300 words on average, drawn by frequency from 50,000 made-up
words a language. A fifth of the documents are edited copies, at 1, 3, 5, 10 and 20 % of the words; a tenth of the others share one
of 20 long paragraphs a language; and some clusters of 3 to 9 copies at 3 % are added. Truth is the exact Jaccard similarity of the
sets of five tokens, as strings, in plain Python: of every planted pair, and of every pair that is reported. Each engine runs alone
in a process of its own; speed is by CPU time.

Run:  OMP_NUM_THREADS=1 python benchmarks/near.py [--documents 20000] [--peer datasketch] [--peer text_dedup]
"""

from __future__ import annotations

import argparse
import json
import pickle
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from pathlib import Path

from steps.lib.dedup import among
from steps.lib.shingles import tokens
from steps.lib.signatures import sketch

RATES = (1, 3, 5, 10, 20)
WORDS, PARAGRAPHS, PARAGRAPH = 50_000, 20, 120
THRESHOLD = 0.7
Pair = tuple[int, int]


@dataclass(frozen=True)
class Corpus:
    """Documents, and what was planted among them."""

    texts: list[str]
    planted: dict[Pair, tuple[str, int]]
    """Pair (lower number first) -> language and percent of words edited."""


class Language:
    """Made-up words, the common ones short, and sentences of them."""

    def __init__(self, name: str, draw: random.Random) -> None:
        self.name, self._draw = name, draw
        self.joint, self.stop = (" ", ".") if name == "en" else ("", "。")
        words: set[str] = set()
        while len(words) < WORDS:
            if name == "en":
                words.add("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 10))))
            else:
                size = draw.choices((1, 2, 3, 4), (10, 70, 14, 6))[0]
                words.add("".join(chr(0x4E00 + draw.randrange(4000)) for _ in range(size)))
        ranked = sorted(words)
        draw.shuffle(ranked)
        short = sorted(
            ranked[::2], key=len
        )  # every other place is for the short ones first: a word has 4.4 letters, 1.7 characters
        self._words = [word for pair in zip(short, ranked[1::2], strict=True) for word in pair]
        self._weights = list(accumulate(1 / (rank + 2.7) for rank in range(WORDS)))
        self.paragraphs = [self.draw(PARAGRAPH) for _ in range(PARAGRAPHS)]

    def draw(self, number: int) -> list[str]:
        """Words by their frequency."""
        return self._draw.choices(self._words, cum_weights=self._weights, k=number)

    def edited(self, words: list[str], percent: int) -> list[str]:
        """A copy: half of the edits replace a word, a quarter drop one, a quarter put one in."""
        copy: list[str] = []
        places = set(self._draw.sample(range(len(words)), round(len(words) * percent / 100)))
        for place, word in enumerate(words):
            if place not in places:
                copy.append(word)
                continue
            kind = self._draw.random()
            copy += self.draw(1) if kind < 0.5 else [] if kind < 0.75 else [word, *self.draw(1)]
        return copy

    def text(self, words: list[str]) -> str:
        """Sentences end on certain words, so that an edit moves no end far away; a line has six."""
        parts, size, sentences = [], 0, 0
        for word in words:
            size += 1
            if (7 * len(word) + ord(word[0])) % 13 and size < 24:
                parts.append(word + self.joint)
                continue
            sentences += 1
            size = 0
            parts.append(word + self.stop + ("\n" if sentences % 6 == 0 else self.joint))
        return "".join(parts)


def corpus(number: int, seed: int = 1) -> Corpus:
    """``number`` documents, and one in a hundred more in clusters."""
    draw = random.Random(seed)
    made: list[tuple[str, int, str, int]] = []  # text, base, language, percent
    bases = number * 2 // 5
    copies = number // 50  # a language and a rate
    for language in (Language("en", draw), Language("zh", draw)):
        for base in range(bases):
            words = language.draw(draw.randint(200, 400))
            if draw.random() < 0.1:
                words[:PARAGRAPH] = draw.choice(language.paragraphs)
            number_of_base = base if language.name == "en" else bases + base
            made.append((language.text(words), number_of_base, language.name, 0))
            if base < copies * len(RATES):
                percent = RATES[base // copies]
                made.append((language.text(language.edited(words, percent)), number_of_base, language.name, percent))
            elif base < copies * len(RATES) + number // 1200:
                for _ in range(draw.randint(2, 8)):
                    made.append((language.text(language.edited(words, 3)), number_of_base, language.name, 3))
    draw.shuffle(made)
    members: dict[int, list[int]] = defaultdict(list)
    for place, (_, base, _, _) in enumerate(made):
        members[base].append(place)
    planted = {
        pair: (made[pair[0]][2], max(made[pair[0]][3], made[pair[1]][3]))
        for group in members.values()
        for pair in combinations(group, 2)
    }
    return Corpus([text for text, _, _, _ in made], planted)


def ours(texts: Sequence[str]) -> set[Pair]:
    """Verified pairs."""
    found = among(sketch(texts), lambda rows: [texts[row] for row in rows.tolist()], THRESHOLD)
    return set(zip(found.left.tolist(), found.right.tolist(), strict=True))


def datasketch(texts: Sequence[str]) -> set[Pair]:
    """Pairs of datasketch's MinHash LSH, 128 hashes, 16 bands of 8 rows, xxh32 instead of the slower default; not verified.

    It gets our shingles, cut by a regular expression: cut at spaces it finds no Chinese copies at all.
    """
    import xxhash
    from datasketch import MinHash, MinHashLSH

    parts = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")
    index = MinHashLSH(params=(16, 8), num_perm=128)
    found: set[Pair] = set()
    first = MinHash(num_perm=128, hashfunc=xxhash.xxh32_intdigest)
    for number, text in enumerate(texts):
        words = parts.findall(text.lower())
        signature = first.copy()
        signature.update_batch({" ".join(words[place : place + 5]).encode() for place in range(len(words) - 4)})
        found |= {(other, number) for other in index.query(signature)}
        index.insert(number, signature)
    return found


def text_dedup(texts: Sequence[str]) -> set[Pair]:
    """Edges of text-dedup 0.4's MinHash as its command line has it: 250 hashes of 64 bits, its own shingles and best bands for .7,
    xxh3 instead of the slower default sha1; not verified. Reading and writing of data sets, which it does besides, is left out.
    """
    import numpy as np
    from text_dedup import minhash
    from text_dedup.utils import optimal_param
    from text_dedup.utils.hashfunc import xxh3_32hash

    number, top, prime = 250, np.uint32((1 << 32) - 1), np.uint64((1 << 61) - 1)
    bands, rows = optimal_param(THRESHOLD, number, false_positive_weight=0.5, false_negative_weight=0.5)
    ranges = [(band * rows, (band + 1) * rows) for band in range(bands)]
    draw = np.random.RandomState(42)
    permutations = tuple(draw.randint(low, prime, size=(number,), dtype=np.uint64) for low in (1, 0))
    tables: list[dict[bytes, set[int]]] = [defaultdict(set) for _ in range(bands)]
    for place, text in enumerate(texts):
        if len(minhash.NON_ALPHA.split(text.lower())) < 5:  # its min_length: such documents are no part of its result
            continue
        marks = minhash.embed_func(
            text,
            place,
            num_perm=number,
            ngram_size=5,
            min_length=5,
            hashranges=ranges,
            permutations=permutations,
            hash_func=xxh3_32hash,
            dtype=np.uint64,
            max_hash=top,
            modulo_prime=prime,
        )
        for table, mark in zip(tables, marks["__signatures__"], strict=True):
            table[mark].add(place)
    clusters = (cluster for table in tables for cluster in table.values() if len(cluster) > 1)
    return {(min(cluster), place) for cluster in clusters for place in cluster if place != min(cluster)}


PEERS = ("datasketch", "text_dedup")
ENGINES = {"ours": ours, "datasketch": datasketch, "text_dedup": text_dedup}


def exact(made: Corpus, pairs: set[Pair]) -> dict[Pair, float]:
    """Exact Jaccard of pairs, by sets of strings."""
    sets: dict[int, set[tuple[str, ...]]] = {}
    scores: dict[Pair, float] = {}
    for pair in sorted(pairs):
        for number in pair:
            if number not in sets:
                words = tokens(made.texts[number])
                sets[number] = {tuple(words[place : place + 5]) for place in range(len(words) - 4)}
        one, other = (sets[number] for number in pair)
        scores[pair] = len(one & other) / len(one | other)
        sets.pop(pair[0] if len(sets) > 5000 else -1, None)
    return scores


def run_engine(name: str, path: Path) -> None:
    """Run one engine alone in this process and print what it took."""
    with path.open("rb") as file:
        made: Corpus = pickle.load(file)
    ENGINES[name](made.texts[:50])  # imports and tables
    before = held_mb("VmRSS")
    started = time.process_time()
    found = ENGINES[name](made.texts)
    seconds = time.process_time() - started
    peak = held_mb("VmHWM")
    print(json.dumps({"seconds": seconds, "peak": peak, "own": peak - before, "pairs": sorted(found)}))


def held_mb(field: str) -> float:
    """Memory of this program in MB, now (VmRSS) or at most (VmHWM; the figure of getrusage is inherited from the parent)."""
    return float(re.findall(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def main() -> None:
    """Build the corpus, run the engines one after another, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument(
        "--peer", action="append", choices=PEERS, default=[], help="measure it too; it must be installed"
    )
    parser.add_argument("--engine", nargs=2, metavar=("NAME", "CORPUS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        run_engine(arguments.engine[0], Path(arguments.engine[1]))
        return
    made = corpus(arguments.documents)
    size = sum(len(text.encode()) for text in made.texts)
    print(f"{len(made.texts)} documents, {size / 1e6:.0f} MB, {len(made.planted)} planted pairs")
    truth = exact(made, set(made.planted))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus"
        path.write_bytes(pickle.dumps(made))
        for name in ("ours", *arguments.peer):
            command = [sys.executable, __file__, "--engine", name, str(path)]
            got = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            report(name, made, truth, got)


def report(name: str, made: Corpus, truth: dict[Pair, float], got: dict[str, float | list[list[int]]]) -> None:
    """One engine's speed, precision and recall."""
    found = {(one, other) for one, other in got["pairs"]}  # type: ignore[union-attr]
    scores = {**truth, **exact(made, found - truth.keys())}
    true = {pair for pair, score in scores.items() if score >= THRESHOLD}
    print(
        f"{name}: {len(made.texts) / float(got['seconds']):,.0f} documents a core-second ({got['seconds']:.2f} s), "  # type: ignore[arg-type]
        f"peak {got['peak']:.0f} MB, of that {got['own']:.0f} MB beyond the documents; "
        f"{len(found)} pairs, precision {len(found & true) / max(1, len(found)):.4f}, "
        f"recall {len(found & true) / max(1, len(true)):.4f} of {len(true)}"
    )
    cells: dict[tuple[str, int], list[Pair]] = defaultdict(list)
    for pair, cell in made.planted.items():
        cells[cell].append(pair)
    for (language, percent), pairs in sorted(cells.items()):
        alike = [pair for pair in pairs if truth[pair] >= THRESHOLD]
        hits = sum(pair in found for pair in alike)
        mean = sum(truth[pair] for pair in pairs) / len(pairs)
        print(
            f"  {language} {percent:2d} %: {len(pairs)} pairs, mean Jaccard {mean:.3f}, {len(alike)} at {THRESHOLD} or more, "
            f"{hits} of them found, {sum(pair in found for pair in pairs)} of all"
        )


if __name__ == "__main__":
    main()
