"""Near-copy signatures: what is kept of a text so that its near-copies are found among ten million, 260 bytes each.

Source: one-permutation hashing (Li, Owen, Zhang, NeurIPS 2012) with optimal densification (Shrivastava, ICML 2017, section 3):
the hashes of a text's shingles fall into 128 bins, of each bin the smallest counts, and an empty bin borrows from a full one.
Each hash is read once, where 128 independent MinHashes read it 128 times; one sort of small integers does it for 62 texts.
Deviations:
  1. A bin borrows from the first full one in an order of its own, a fixed permutation, so borrowing ends.
  2. Of a smallest hash 16 bits are kept (b-bit MinHash, Li and König, WWW 2010): 2**-16 of the equal ones are chance. Who is a
     near-copy is decided by the exact sets; the signature only proposes.

Letters in shape comments: N texts, n texts of a block, T windows of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from steps.lib.shingles import Block, blocks, mix

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from steps.lib.shingles import Ints

BINS = 128
"""Hashes of a signature."""

_BIN_BITS = 7
_VALUE_BITS = 19
"""Bits of a hash behind the bin's that are sorted by; with the bin's and six for the text these are 32."""
_MOST = 48
"""Full bins above which the empty ones ask by themselves; measured, the result is the same."""
_BATCH = 4096
"""Texts whose empty bins are filled at a time."""


@dataclass(frozen=True)
class Sketch:
    """Near-copy signatures of N texts: arrays alone, to be saved by shard and put together again."""

    signature: NDArray[np.uint16]
    """(N, 128); zeros where a text has no shingle."""
    counts: NDArray[np.int32]
    """(N,) shingles of each text, equal ones counted each; 0: it is compared by exact content only."""

    def __len__(self) -> int:
        return len(self.counts)

    def take(self, rows: Sequence[int] | Ints) -> Sketch:
        """The sketch of some of the rows, in the order given."""
        import numpy as np

        places = np.asarray(rows, np.int64)
        return Sketch(self.signature[places], self.counts[places])

    @classmethod
    def joined(cls, parts: Iterable[Sketch]) -> Sketch:
        """The sketches of shards as one, in their order."""
        import numpy as np

        some = [part for part in parts if len(part)]
        if not some:
            return sketch([])
        return cls(np.concatenate([one.signature for one in some]), np.concatenate([one.counts for one in some]))


def sketch(texts: Sequence[str]) -> Sketch:
    """Signatures of texts. Each hangs on its own text only, so a shard or a batch changes nothing."""
    import numpy as np

    signature = np.zeros((len(texts), BINS), np.uint16)
    counts = np.zeros(len(texts), np.int32)
    for low in range(0, len(texts), _BATCH):
        batch = texts[low : low + _BATCH]
        part, full = signature[low : low + _BATCH], np.zeros((len(batch), BINS), np.bool_)
        for block in blocks(batch):
            counts[np.add(block.texts, low)] = block.counts
            _fill(block, part, full)
        _borrow(part, full, np.flatnonzero(counts[low : low + _BATCH]))
    return Sketch(signature, counts)


def _fill(block: Block, signature: NDArray[Any], full: NDArray[Any]) -> None:
    """The smallest hash of each bin: sort by text, bin and hash, and take the first of each text and bin."""
    import numpy as np

    number = len(block.texts)
    keys = (block.windows >> np.uint64(64 - _BIN_BITS - _VALUE_BITS)).astype(np.uint32)  # (T,)
    keys |= np.repeat(np.arange(number, dtype=np.uint32) << np.uint32(_BIN_BITS + _VALUE_BITS), np.diff(block.firsts))
    keys[block.beyond] = 0xFFFFFFFF  # behind all texts
    keys.sort()
    keys = keys[: len(keys) - len(block.beyond)]
    if not len(keys):
        return
    cells = keys >> np.uint32(_VALUE_BITS)
    first = np.flatnonzero(cells[1:] != cells[:-1])
    first += 1
    first = np.append(0, first)
    places = cells[first].astype(np.int64)
    values, there = np.zeros(number * BINS, np.uint16), np.zeros(number * BINS, np.bool_)
    values[places] = keys[first].astype(np.uint16)  # the low 16 bits
    there[places] = True
    signature[block.texts] = values.reshape(number, BINS)
    full[block.texts] = there.reshape(number, BINS)


def _borrow(signature: NDArray[Any], full: NDArray[Any], texts: Ints) -> None:
    """Fill the empty bins of ``texts``, all of which have a full one: each empty bin asks the others in its own order."""
    import numpy as np

    sizes = np.count_nonzero(full[texts], axis=1)
    lenders = _lenders()
    # Where most are full, few ask, and few times.
    most = texts[sizes > _MOST]
    which, bins = np.nonzero(~full[most])
    rows = most[which]
    for place in range(1, BINS):
        if not len(rows):
            break
        lender = lenders[place][bins]
        found = full[rows, lender]
        signature[rows[found], bins[found]] = signature[rows[found], lender[found]]
        rows, bins = rows[~found], bins[~found]
    # Where few are full, those name themselves to all bins, and the first in a bin's order wins.
    few, sizes = texts[sizes <= _MOST], sizes[sizes <= _MOST]
    for part in _runs(sizes):
        some = few[part]
        _, bins = np.nonzero(full[some])
        first = np.minimum.reduceat(
            _places().take(bins, axis=0), np.cumsum(sizes[part]) - sizes[part], axis=0
        )  # (n, 128)
        signature[some] = np.take_along_axis(signature[some], (first & np.uint16(BINS - 1)).astype(np.int64), axis=1)


def _runs(sizes: Ints) -> Iterator[slice]:
    """Runs of texts with some thousand full bins, which stay in a core's cache."""
    import numpy as np

    run = np.cumsum(sizes) // 4096
    edges = [0, *(np.flatnonzero(run[1:] != run[:-1]) + 1).tolist(), len(sizes)]
    return (slice(low, high) for low, high in pairwise(edges) if low < high)


@functools.cache
def _lenders() -> Any:
    """(128, 128) the bins (rows) that each bin (column) asks, in its own order; itself first."""
    import numpy as np

    draws = mix(np.arange(1, BINS * BINS + 1, dtype=np.uint64)).reshape(BINS, BINS)
    np.fill_diagonal(draws, 0)
    return np.argsort(draws, axis=0, kind="stable")


@functools.cache
def _places() -> Any:
    """(128, 128) place of a bin (row) in the order of each bin (column), times 128, plus the bin: the least one wins."""
    import numpy as np

    return (np.argsort(_lenders(), axis=0) * BINS + np.arange(BINS)[:, None]).astype(np.uint16)
