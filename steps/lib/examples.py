"""Worked examples of a prompt file, and which of them are shown before a prompt.

``similar`` and ``diverse`` compare prompts by their characters (three in a row, two where one is Chinese: a Chinese word has
two): *lexically*, not by meaning. Two prompts that say the same in other words are far apart here, and so are a Chinese
prompt and its English translation. In exchange nothing is downloaded, nothing is asked, and the choice is the same on every
machine.

Sources: Liu et al., "What Makes Good In-Context Examples for GPT-3?", arXiv 2101.06804 (the nearest examples of a pool;
deviation: they compare sentence embeddings); Zhao et al., "Calibrate Before Use", arXiv 2102.09690, section 4 (what stands
near the end of a prompt weighs most, so the nearest example is shown last); Gonzalez, "Clustering to minimize the maximum
intercluster distance", Theoretical Computer Science 38, 1985 (farthest-point choice, at most twice the best radius).
"""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steps.lib.rules import Language

Pick = Literal["fixed", "random", "same_language", "similar", "diverse"]
BITS = 21
"""Bits of a code point: three of them fit into 63, so a gram is its own number and no two collide."""
CJK = (0x3040, 0x9FFF, 0xF900, 0xFAFF, 0x20000)
"""Kana and Han from the first to the second, from the third to the fourth, and from the fifth on."""
DIGITS = 9
"""Decimals of a similarity that count: beyond, machines may differ, and the order of the file decides."""


class Example(BaseModel):
    """One worked example: a line of the examples file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lang: Language
    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    thought: str = ""
    facts: dict[str, Any] = Field(default_factory=dict)
    seen: dict[str, Any] = Field(default_factory=dict)
    """Values of the prompt file's ``variables``, as a recipe gives them for a row."""


def read_examples(path: Path) -> list[Example]:
    """The examples of a JSONL file, checked line by line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"file cannot be read: {error}; give a JSONL file of examples") from None
    pool: list[Example] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            pool += [Example.model_validate_json(line)] if line.strip() else []
        except ValidationError as error:
            problems += [f"line {' '.join(map(str, (number, *e['loc'])))}: {e['msg']}" for e in error.errors()]
    if problems:
        raise ValueError("; ".join(problems))
    return pool


class Pool:
    """Examples to choose from.

    Args:
        examples: in the order of their file.
        pick: how they are chosen.
        own_language: only those of the row's language.
    """

    def __init__(self, examples: Sequence[Example], pick: Pick, own_language: bool) -> None:
        self._pick = pick
        self._own = own_language
        everything = list(range(len(examples)))
        self._shelves: dict[Language | None, _Shelf] = {None: _Shelf(examples, everything)}
        for lang in ("zh", "en") if own_language else ():
            self._shelves[lang] = _Shelf(examples, [i for i in everything if examples[i].lang == lang])

    def choose(self, prompt: str, lang: Language, shots: int, seed: int) -> list[int]:
        """Examples for one prompt, in the order in which they are shown: at most ``shots``, and never the prompt itself."""
        shelf = self._shelves[lang if self._own else None]
        if self._pick == "similar":
            return shelf.nearest(prompt, shots)[::-1]
        own = shelf.same(prompt)
        if self._pick == "diverse":
            return [index for index in shelf.spread(shots) if index not in own][:shots]
        others = [index for index in shelf.members if index not in own] if own else shelf.members
        if self._pick == "fixed":
            return others[:shots]
        return random.Random(f"{seed}\n{prompt}").sample(others, min(shots, len(others)))

    def keep(self, chosen: Sequence[int], count: int) -> list[int]:
        """The ``count`` examples that stay when not all fit: the nearest ones, or else the first."""
        return list(chosen[len(chosen) - count :] if self._pick == "similar" else chosen[:count])

    def similarity(self, prompt: str, lang: Language, index: int) -> float:
        """Lexical similarity of a prompt and an example, 0 to 1."""
        shelf = self._shelves[lang if self._own else None]
        return float(shelf.grams.scores(prompt)[shelf.members.index(index)])


class _Shelf:
    """The examples that a row may be shown, with what is computed of them once."""

    def __init__(self, examples: Sequence[Example], members: list[int]) -> None:
        self.members = members
        self._prompts = [examples[index].prompt.strip() for index in members]
        self._by_prompt: dict[str, list[int]] = {}
        for index, prompt in zip(members, self._prompts, strict=True):
            self._by_prompt.setdefault(prompt, []).append(index)
        self._most = max(Counter(self._prompts).values(), default=0)
        self._spread: dict[int, list[int]] = {}

    def same(self, prompt: str) -> Sequence[int]:
        """The examples whose prompt is this one."""
        return self._by_prompt.get(prompt.strip(), ())

    @cached_property
    def grams(self) -> Grams:
        """The grams of all prompts."""
        return Grams(self._prompts)

    def nearest(self, prompt: str, count: int) -> list[int]:
        """The most similar examples, most similar first; equal ones in the order of the file."""
        import numpy as np

        scores = np.round(self.grams.scores(prompt), DIGITS)
        if own := self.same(prompt):
            scores[[self.members.index(index) for index in own]] = -1.0
        count = min(count, len(scores) - len(own))
        if count <= 0:
            return []
        edge = np.partition(scores, len(scores) - count)[len(scores) - count]
        near = np.flatnonzero(scores >= edge)
        return [self.members[place] for place in near[np.argsort(-scores[near], kind="stable")][:count]]

    def spread(self, count: int) -> list[int]:
        """The most central example, then again and again the one that is least like all chosen before.

        A row that is itself among them is left out, so there are as many more as prompts can be equal.
        """
        if count not in self._spread:
            self._spread[count] = [self.members[place] for place in self.grams.spread(count + self._most)]
        return self._spread[count]


class Grams:
    """Cosine of the character grams of texts, weighted by how rare each is among the texts (TF-IDF).

    Letters are compared without case and width (NFKC, casefold), and runs of white space as one blank. Chinese needs no
    word splitting. Each text lies in an inverted index, so a prompt touches only the texts that share a gram with it.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        import numpy as np

        found = [np.unique(_codes(text), return_counts=True) for text in texts]
        sizes = [len(codes) for codes, _ in found]
        codes = np.concatenate([codes for codes, _ in found]) if found else np.zeros(0, np.int64)
        counts = np.concatenate([counts for _, counts in found]) if found else np.zeros(0, np.int64)
        rows = np.repeat(np.arange(len(texts)), sizes)
        self._count = len(texts)
        self._known, at, shared = np.unique(codes, return_inverse=True, return_counts=True)
        self._rarity = np.log((1 + len(texts)) / (1 + shared)) + 1
        self._new = float(np.log(1 + len(texts)) + 1)
        weights = counts * self._rarity[at]
        weights /= np.sqrt(np.bincount(rows, weights**2, len(texts)))[rows]
        self._texts = [slice(end - size, end) for end, size in zip(np.cumsum(sizes), sizes, strict=True)]
        self._at, self._weights = at, weights
        order = np.argsort(at, kind="stable")
        self._rows, self._filed = rows[order], weights[order]
        self._ends = np.cumsum(shared)
        self._starts = self._ends - shared

    def scores(self, text: str) -> Any:
        """Similarity to each text, 0 to 1."""
        import numpy as np

        codes, counts = np.unique(_codes(text), return_counts=True)
        at = np.searchsorted(self._known, codes)
        known = at < len(self._known)
        known[known] = self._known[at[known]] == codes[known]
        at = at[known]
        weights = counts[known] * self._rarity[at]
        strange = float(np.sum((counts[~known] * self._new) ** 2))
        return self._against(at, weights / np.sqrt(np.sum(weights**2) + strange))

    def spread(self, count: int) -> list[int]:
        """Places of ``count`` texts, far from each other: the most central one, then the farthest from all so far."""
        import numpy as np

        if not self._count:
            return []
        middle = np.bincount(self._at, self._weights, len(self._known))
        sums = np.bincount(self._rows, self._filed * np.repeat(middle, self._ends - self._starts), self._count)
        chosen = [int(np.argmax(np.round(sums, DIGITS)))]
        nearest = np.full(self._count, -1.0)
        while len(chosen) < min(count, self._count):
            own = self._texts[chosen[-1]]
            nearest = np.maximum(nearest, np.round(self._against(self._at[own], self._weights[own]), DIGITS))
            nearest[chosen] = np.inf
            chosen.append(int(np.argmin(nearest)))
        return chosen

    def _against(self, at: Any, weights: Any) -> Any:
        import numpy as np

        lengths = self._ends[at] - self._starts[at]
        offsets = np.repeat(self._starts[at] - (np.cumsum(lengths) - lengths), lengths)
        places = offsets + np.arange(len(offsets))
        return np.bincount(self._rows[places], np.repeat(weights, lengths) * self._filed[places], self._count)


def _codes(text: str) -> Any:
    """The grams of a text as numbers: pairs with a CJK character in them, and triples without one. A blank stands before
    and after the text, so that one character alone has grams, too."""
    import numpy as np

    plain = f" {' '.join(unicodedata.normalize('NFKC', text).casefold().split())} ".ljust(3)
    points = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    cjk = (points >= CJK[0]) & ((points <= CJK[1]) | (points >= CJK[2]))
    cjk &= (points <= CJK[3]) | (points >= CJK[4])
    two = (points[:-1] << BITS) | points[1:]
    with_cjk = cjk[:-1] | cjk[1:]
    three = (two[:-1] << BITS) | points[2:]
    return np.concatenate([two[with_cjk], three[~(with_cjk[:-1] | cjk[2:])]])
