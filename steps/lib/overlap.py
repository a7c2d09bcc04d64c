"""Texts that hold a guarded one (a benchmark's item, a held-out row), whole or in part; Chinese and English alike.

A guarded item is known by the hashes of its 13-grams. An n-gram that stands in many items is boilerplate and counts for none.
A text is contaminated when it holds

* ``share``: stretches of 13 tokens or more that cover this share of an item, counted in columns (of what is no boilerplate);
* ``run``: one unbroken stretch of so many columns of an item (documents are exempt: articles quote the same sentence);
* ``whole``: an item that is too short for n-grams, or all boilerplate, from its first token to its last.

A column is half a Han character, or one letter or digit: thirteen English words have about 60, and so have 30 Han characters.

Source: 13-grams, and frequent ones left out: Brown et al., arXiv 2005.14165, appendix C. DATA.md 3.7 (13 characters are too few
for Chinese, hence columns).
Deviations:
  1. Covered columns in place of the share of n-grams: one edited word kills 13 n-grams, but uncovers one word.
  2. The row is dropped whole. Brown et al. cut 200 characters around a hit, which leaves the rest of an item in the text.
  3. Tokens are those of ``shingles``. A 13-gram is three of its windows of 5 tokens, 4 tokens apart.

Letters in shape comments: G n-grams that are no boilerplate, P their places, T tokens of all items or of a block, I items.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from steps.lib.config import Section
from steps.lib.quality import Finding
from steps.lib.shingles import WIDTH, Block, blocks, tokens
from steps.lib.sources import Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GRAM = 13
"""Tokens of an n-gram."""
EQUAL = 10
"""Columns from which a text that is a short item, and nothing else, is contaminated; under it "yes" would be."""
_ODD = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)


class Decontaminate(Section):
    """When a row holds too much of a benchmark or of held-out data. A column is half a Han character, or one letter or digit."""

    benchmarks: list[Source] = []
    """Benchmark sets: every text of every row is guarded, whatever its column; ``columns`` names those to guard, if not all."""
    share: float | None = Field(default=0.5, gt=0, le=1)
    """Share of a guarded text's columns that is too much of it, in stretches of 13 tokens or more; null: no limit."""
    run: int | None = Field(default=60, ge=26)
    """Columns of a benchmark text from which one unbroken stretch is too much; null: no limit. (Held-out rows go by ``share``.)"""
    short: int = Field(default=20, ge=10)
    """Columns from which a guarded text of under 13 tokens may not stand inside a row; a shorter one may not be a whole turn."""
    boilerplate: int = Field(default=10, ge=1)
    """Guarded texts that may share 13 tokens; what stands in more of them is boilerplate, and counts for none."""
    answers: bool = False
    """Guard the answers of held-out prompts and pairs too, not the prompts alone. Those of benchmarks always are."""

    @model_validator(mode="after")
    def _read_as_they_stand(self) -> Decontaminate:
        for source in self.benchmarks:
            strange = [
                name
                for name in ("layout", "limit", "lang", "placeholders")
                if getattr(source, name) != type(source).model_fields[name].get_default(call_default_factory=True)
            ]
            if strange:
                raise ValueError(
                    f"benchmark {source.name!r} sets {', '.join(strange)}, but benchmarks are guarded whole and as they stand; "
                    "take it out"
                )
        return self


@dataclass(frozen=True)
class Item:
    """A text that no training row may hold."""

    id: str
    text: str
    runs: bool = True
    """Whether one long stretch of it is enough."""


@dataclass(frozen=True)
class Guard:
    """The table of guarded items. It can be pickled, and is never changed."""

    ids: tuple[str, ...]
    """(I,) name of each item; of items with equal tokens the first."""
    runs: NDArray[np.bool_]
    """(I,)"""
    firsts: NDArray[np.int64]
    """(I + 1,) item i has the tokens firsts[i] : firsts[i + 1]."""
    columns: NDArray[np.int64]
    """(T + 1,) columns before each token."""
    weight: NDArray[np.int64]
    """(I,) columns that the item's n-grams cover; 0: it is known by ``verses``."""
    slots: NDArray[np.uint8]
    """Bits, by the leading ones of a hash: whether an n-gram may be guarded."""
    hashes: NDArray[np.uint64]
    """(G,) sorted."""
    spread: NDArray[np.int64]
    """(G + 1,) n-gram g stands at places[spread[g] : spread[g + 1]]."""
    places: NDArray[np.int64]
    """(P,) its first token."""
    heads: NDArray[np.uint64]
    """First shingle of each verse, sorted."""
    head_slots: NDArray[np.uint8]
    """The same table for these."""
    verses: tuple[tuple[int, NDArray[np.uint64]], ...]
    """(item, its shingles) of those that must stand whole, in the order of ``heads``."""
    digest: str
    """Of all items: what a result that was kept depends on."""

    def __len__(self) -> int:
        return len(self.ids)


def guard(items: Iterable[Item], config: Decontaminate) -> Guard:
    """The table of some items. Those with under 5 tokens guard nothing: they are in every text."""
    import numpy as np

    digest = hashlib.sha256()
    known: dict[bytes, tuple[Item, NDArray[np.int64]]] = {}
    for item in items:
        digest.update(f"{item.id}\x00{item.text}\x00{item.runs}\x01".encode("utf-8", "surrogatepass"))
        words = tokens(item.text)
        if len(words) >= WIDTH:
            name = hashlib.sha256(" ".join(words).encode("utf-8", "surrogatepass")).digest()
            known.setdefault(name, (item, np.fromiter(map(_width, words), np.int64, len(words))))
    kept = [item for item, _ in known.values()]
    widths = [own for _, own in known.values()]
    firsts = np.cumsum([0, *map(len, widths)])
    columns = np.concatenate(([0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *widths]))))
    parts: list[tuple[Any, Any, Any]] = [(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))]
    lines: dict[int, NDArray[np.uint64]] = {}
    for block in blocks([item.text for item in kept]):
        names = np.array(block.texts)
        every = _grams(block.windows)
        own, place = _inside(block, np.arange(len(every)))
        parts.append((every[place], names[own], place - block.firsts[own] + firsts[names[own]]))
        lines |= {one: _lines(block, number) for number, one in enumerate(block.texts)}
    grams, owner, token = (np.concatenate(some) for some in zip(*parts, strict=True))
    order = np.lexsort((owner, grams))  # by n-gram, then by item
    grams, owner, token = grams[order], owner[order], token[order]
    fresh = np.ones(len(grams), bool)
    fresh[1:] = grams[1:] != grams[:-1]
    holders = fresh.copy()
    holders[1:] |= owner[1:] != owner[:-1]
    number = np.cumsum(fresh) - 1
    rare = (np.bincount(number, weights=holders) <= config.boilerplate)[number] if len(grams) else fresh
    weight = np.zeros(len(kept), np.int64)
    np.add.at(weight, *_covered(np.sort(token[rare]), firsts, columns))
    full = columns[firsts[1:]] - columns[firsts[:-1]]
    weight[weight < np.minimum(_least(config), full)] = 0
    rare &= weight[owner] > 0
    hashes, spread = np.unique(grams[rare], return_index=True)
    verses = [(one, lines[one]) for one in np.flatnonzero((weight == 0) & (full >= EQUAL)).tolist()]
    verses.sort(key=lambda verse: int(verse[1][0]))
    heads = np.array([shingle[0] for _, shingle in verses], np.uint64)
    return Guard(
        ids=tuple(item.id for item in kept),
        runs=np.array([item.runs for item in kept], bool),
        firsts=firsts,
        columns=columns,
        weight=weight,
        slots=_slots(hashes),
        hashes=hashes,
        spread=np.append(spread, rare.sum()),
        places=token[rare],
        heads=heads,
        head_slots=_slots(heads),
        verses=tuple(verses),
        digest=digest.hexdigest(),
    )


def contaminated(texts: Sequence[str], table: Guard, config: Decontaminate) -> list[Finding | None]:
    """For each text, what guarded item it holds: ("contaminated", JSON with the item, the rule, its share and longest run)."""
    found: list[Finding | None] = [None] * len(texts)
    for block in blocks(texts):
        whole, parts = _verses(block, table, config), _parts(block, table, config)
        for number, text in enumerate(block.texts):
            if hit := whole.get(number) or parts.get(number):
                found[text] = "contaminated", json.dumps(hit, ensure_ascii=False)
    return found


def _parts(block: Block, table: Guard, config: Decontaminate) -> dict[int, dict[str, Any]]:
    """Number of a text in the block -> the item of which it holds most, by its n-grams."""
    import numpy as np

    grams = _grams(block.windows)
    owner, hits = _inside(block, _known(grams, table.slots))
    number = np.searchsorted(table.hashes, grams[hits])
    number[number == len(table.hashes)] = 0
    same = table.hashes[number] == grams[hits] if len(table.hashes) else np.zeros(len(hits), bool)
    if not same.any():
        return {}
    total = len(table.columns)
    owner, number = np.divmod(np.unique(owner[same] * len(table.hashes) + number[same]), len(table.hashes))
    count = table.spread[number + 1] - table.spread[number]
    behind = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    token = table.places[np.repeat(table.spread[number], count) + behind]
    text, token = np.divmod(np.sort(np.repeat(owner, count) * total + token), total)
    item = np.searchsorted(table.firsts, token, "right") - 1

    other = np.ones(len(token), bool)  # where another text or item begins
    other[1:] = (text[1:] != text[:-1]) | (item[1:] != item[:-1])
    broken = other.copy()  # where a stretch begins
    broken[1:] |= token[1:] != token[:-1] + 1
    starts = np.flatnonzero(broken)
    ends = np.append(starts[1:], len(token)) - 1
    lengths = table.columns[token[ends] + GRAM] - table.columns[token[starts]]
    run = np.maximum.reduceat(lengths, np.flatnonzero(other[starts]))
    fresh = token.copy()  # the first token of the n-gram that the one before does not cover
    fresh[1:] = np.where(other[1:], token[1:], np.maximum(token[1:], token[:-1] + GRAM))
    pairs = np.flatnonzero(other)
    covered = np.add.reduceat(table.columns[token + GRAM] - table.columns[fresh], pairs)
    text, item = text[pairs], item[pairs]
    share = covered / table.weight[item]
    full = table.columns[table.firsts[item + 1]] - table.columns[table.firsts[item]]
    much = np.zeros(len(pairs), bool)
    if config.share is not None:
        much = (share >= config.share) & (covered >= np.minimum(_least(config), full))
    long = table.runs[item] & (run >= config.run) if config.run is not None else np.zeros(len(pairs), bool)

    best: dict[int, dict[str, Any]] = {}
    bad = np.flatnonzero(much | long)
    for one in bad[np.lexsort((item[bad], -share[bad], text[bad]))].tolist():
        facts = {"rule": "share" if much[one] else "run", "share": round(float(share[one]), 3), "run": int(run[one])}
        best.setdefault(int(text[one]), {"guard_id": table.ids[item[one]], **facts})
    return best


def _verses(block: Block, table: Guard, config: Decontaminate) -> dict[int, dict[str, Any]]:
    """Number of a text -> the longest item that stands in it whole, of those that n-grams do not tell."""
    import numpy as np

    best: dict[int, dict[str, Any]] = {}
    if not len(table.heads):
        return best
    windows = block.windows
    hits = _known(windows, table.head_slots)
    owner = np.searchsorted(block.firsts, hits, "right") - 1
    low, high = (np.searchsorted(table.heads, windows[hits], side) for side in ("left", "right"))
    for hit, text, verse, last in zip(hits.tolist(), owner.tolist(), low.tolist(), high.tolist(), strict=True):
        for item, lines in table.verses[verse:last]:
            end = hit + len(lines)
            if end + WIDTH - 1 > block.firsts[text + 1] or not np.array_equal(windows[hit:end], lines):
                continue
            columns = int(table.columns[table.firsts[item + 1]] - table.columns[table.firsts[item]])
            alone = len(lines) == block.counts[text]
            if columns >= config.short or alone:
                facts = {"guard_id": table.ids[item], "rule": "whole", "share": 1.0, "run": columns}
                if text not in best or columns > best[text]["run"]:
                    best[text] = facts
    return best


def _least(config: Decontaminate) -> int:
    """Columns that must be covered for ``share``, unless the item has fewer: two thirds of a run. Half a short item is nothing."""
    return 40 if config.run is None else config.run * 2 // 3


def _width(token: str) -> int:
    """Columns of a token: two for a character that is a token of its own, one for a letter or digit."""
    return 2 if len(token) == 1 and token >= "\u2e80" else len(token)


def _grams(windows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """(T - 8,) hash of the 13 tokens that begin at each token; the last ones of a text reach into the next."""
    import numpy as np

    reach = GRAM - WIDTH
    if len(windows) <= reach:
        return np.zeros(0, np.uint64)
    grams = windows[reach // 2 : len(windows) - reach // 2] * np.uint64(_ODD[0])
    grams += windows[:-reach]
    grams += windows[reach:] * np.uint64(_ODD[1])
    return grams


def _inside(block: Block, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of tokens of a block those at which an n-gram of one text begins: the number of that text, and the token."""
    import numpy as np

    owner = np.searchsorted(block.firsts, places, "right") - 1
    inside = block.firsts[owner + 1] - places >= GRAM
    return owner[inside], places[inside]


def _lines(block: Block, number: int) -> NDArray[np.uint64]:
    """The shingles of a text of the block."""
    first = int(block.firsts[number])
    return block.windows[first : first + int(block.counts[number])].copy()


def _slots(hashes: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """A table of 64 to 128 bits a hash, of which one is set: it spares 98 of 100 strangers the search, which is the dear part."""
    import numpy as np

    bits = min(30, max(12, (64 * len(hashes)).bit_length()))
    slots = np.zeros(1 << bits - 3, np.uint8)
    place = _bits(hashes, slots)
    np.bitwise_or.at(slots, place >> 3, np.uint8(1) << (place & 7).astype(np.uint8))
    return slots


def _known(hashes: NDArray[np.uint64], slots: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Places of the hashes whose bit is set."""
    import numpy as np

    place = _bits(hashes, slots)
    return np.flatnonzero(slots.take(place >> 3) >> (place & 7).astype(np.uint8) & np.uint8(1))


def _bits(hashes: NDArray[np.uint64], slots: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The bit of each hash in a table: its leading bits."""
    import numpy as np

    return (hashes >> np.uint64(64 - (8 * len(slots)).bit_length() + 1)).view(np.int64)


def _covered(token: NDArray[Any], firsts: NDArray[Any], columns: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(item, columns that it adds to those before) of each of some n-grams, sorted by their first token."""
    import numpy as np

    item = np.searchsorted(firsts, token, "right") - 1
    fresh = token.copy()
    fresh[1:] = np.where(item[1:] != item[:-1], token[1:], np.maximum(token[1:], token[:-1] + GRAM))
    return item, columns[token + GRAM] - columns[fresh]
