"""Which rows are held out: whole clusters of near-copies, the same rows for ever, a share of every source and language.

A group is what is linked: near-copies, rows with the same prompt, rows from the same document. A group goes out when the hash of
the smallest content digest in it is below ``share``. Nothing is counted and nothing drawn, so the order and number of other rows
decide nothing, and each stratum (source and language) has the share up to chance.

What holds when rows are added:
  1. A group that no new row joins stays where it is.
  2. No rule that looks at the present rows alone can promise more. It would have to give a group and the group with any new row the
     same side; since one new row can join any two groups, it would give all groups one side.
  3. So the sides that were given are written down (``Record``), and an earlier record is an input. With it no old row ever changes
     sides: a group takes the side of its old rows. Where new rows join groups of both sides, the old rows stay, and those new ones
     are ``BETWEEN``: near to held-out rows, and dropped.
  4. Without it, a new row with the smallest digest can turn the group that it joins.
  5. A stratum in which chance would hold out nothing gives its first group, if it should give one at all (groups * share >= 1).
     This pick can change when rows are added, unless it is on record.

Source: DATA.md 3.7 (J). Smallest digest in place of a random draw: no seed, no order.

Letters in shape comments: N rows, L links, S strata.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.lib.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Links = tuple[Any, Any]
"""(L,) and (L,) int64 arrays: rows that stand together."""
TRAIN, HELD, BETWEEN = 0, 1, 2
"""Sides of a row. BETWEEN: it joins old rows of both sides, and is dropped as ``near_heldout``."""
UNEVEN = 2.0
"""Times the asked share, or one part in so many of it, from which a stratum's share is told."""
ENOUGH = 10
"""Held-out groups that a stratum should have before its share is judged: with fewer, chance alone is off by half."""


@dataclass(frozen=True)
class Record:
    """Sides that rows have had."""

    digests: NDArray[np.uint64]
    """Content digests, sorted, each once."""
    held: NDArray[np.bool_]

    @classmethod
    def of(cls, digests: NDArray[np.uint64], sides: NDArray[np.int8], earlier: Record | None = None) -> Record:
        """The sides of rows, and those of an earlier record, which count where both know a row. BETWEEN is no side."""
        import numpy as np

        decided = sides != BETWEEN
        old = earlier or cls(np.zeros(0, np.uint64), np.zeros(0, bool))
        every = np.concatenate((old.digests, digests[decided]))
        held = np.concatenate((old.held, sides[decided] == HELD))
        unique, first = np.unique(every, return_index=True)
        return cls(unique, held[first])

    def digest(self) -> str:
        """Of what it holds."""
        return hashlib.sha256(self.digests.tobytes() + self.held.tobytes()).hexdigest()

    def sides(self, digests: NDArray[np.uint64]) -> NDArray[np.int8]:
        """(N,) the side that each row had; -1 for one that is new."""
        import numpy as np

        found = np.full(len(digests), -1, np.int8)
        if len(self.digests):
            place = np.minimum(np.searchsorted(self.digests, digests), len(self.digests) - 1)
            known = self.digests[place] == digests
            found[known] = np.where(self.held[place[known]], HELD, TRAIN)
        return found


@dataclass(frozen=True)
class Stratum:
    """What was held out of one source and language."""

    name: str
    groups: int
    held_groups: int
    rows: int
    held_rows: int

    @property
    def share(self) -> float:
        """Held-out rows among all."""
        return self.held_rows / self.rows if self.rows else 0.0


def marks(asked: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """(N,) content digests: the first 64 bits of (N, 32) bytes of sha256."""
    import numpy as np

    return np.ascontiguousarray(asked[:, :8]).view(">u8").astype(np.uint64).ravel()


def linked(keys: NDArray[np.uint64]) -> Links:
    """Links between rows with the same key (``marks`` of prompts); 0 is no key."""
    import numpy as np

    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    same = np.flatnonzero((ranked[1:] == ranked[:-1]) & (ranked[1:] != 0))
    return order[same], order[same + 1]


def joined(*links: Links) -> Links:
    """Links of several kinds together."""
    import numpy as np

    return np.concatenate([one for one, _ in links]), np.concatenate([other for _, other in links])


def sides(
    digests: NDArray[np.uint64],
    groups: NDArray[np.int64],
    share: float,
    strata: NDArray[np.int64] | None = None,
    earlier: Record | None = None,
) -> NDArray[np.int8]:
    """(N,) TRAIN, HELD or BETWEEN for each row.

    Args:
        digests: (N,) content digest of each row (``marks``).
        groups: (N,) the same number for rows of one group (``clusters.labels_of`` of the links).
        share: fraction of the groups to hold out.
        strata: (N,) the same number for rows of one source and language; a group belongs to that of its smallest
            digest.
        earlier: sides that must not change.
    """
    import numpy as np

    if not len(digests):
        return np.zeros(0, np.int8)
    order = np.lexsort((digests, groups))
    first = np.ones(len(order), bool)
    first[1:] = groups[order[1:]] != groups[order[:-1]]
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(first) - 1  # (N,) groups from 0
    heads = order[first]  # the row with the smallest digest of each group
    value = scattered(digests[heads])
    out = value < np.uint64(min(int(share * 2**64), 2**64 - 1))

    known = earlier.sides(digests) if earlier else np.full(len(digests), -1, np.int8)
    any_held, any_train = (np.bincount(group, known == side, len(heads)) > 0 for side in (HELD, TRAIN))
    fresh = ~(any_held | any_train)
    out = np.where(fresh, out, any_held & ~any_train)

    strata = np.zeros(len(digests), np.int64) if strata is None else strata
    whole = np.zeros(len(heads), np.int64)
    for stratum, least in ((strata[heads], 1.0), (whole, 0.0)):
        _one_each(out, any_held, fresh, value, stratum, share, least)

    side = np.where(out[group], HELD, TRAIN).astype(np.int8)
    side[(any_held & any_train)[group]] = BETWEEN
    old = known >= 0
    side[old] = known[old]
    return side


def _one_each(
    out: NDArray[Any],
    held: NDArray[Any],
    fresh: NDArray[Any],
    value: NDArray[Any],
    stratum: NDArray[Any],
    share: float,
    least: float,
) -> None:
    """Let the first new group of each stratum go out where none does, though two are there and ``least`` should."""
    import numpy as np

    if not share:
        return
    names, of = np.unique(stratum, return_inverse=True)
    count, gone = np.bincount(of), np.bincount(of, out | held, len(names))
    poor = (gone == 0) & (count > 1) & (count * share >= least)
    choice = np.flatnonzero(fresh & poor[of])
    choice = choice[np.lexsort((value[choice], of[choice]))]
    taken = np.ones(len(choice), bool)
    taken[1:] = of[choice[1:]] != of[choice[:-1]]
    out[choice[taken]] = True


def table(
    side: NDArray[np.int8], groups: NDArray[np.int64], strata: NDArray[np.int64], names: Sequence[str]
) -> list[Stratum]:
    """What was held out of each stratum; for the report. A group of two strata counts in both."""
    import numpy as np

    rows, held_rows = np.bincount(strata, minlength=len(names)), np.bincount(strata, side == HELD, len(names))
    wide = int(groups.max(initial=0)) + 1
    count, held = (
        np.bincount(np.unique(strata[some] * wide + groups[some]) // wide, minlength=len(names))
        for some in (slice(None), side == HELD)
    )
    columns = [part.astype(int).tolist() for part in (count, held, rows, held_rows)]
    return [Stratum(*row) for row in zip(names, *columns, strict=True)]


def uneven(strata: Iterable[Stratum], share: float) -> list[str]:
    """Warnings: strata that should have held-out rows and have none, and those with far more or fewer than asked for."""
    told = []
    for one in strata:
        asked = f"asked for are {share:.1%}, and groups go out whole"
        if share and not one.held_rows and one.groups * share >= 1:
            told.append(f"{one.name}: none of {one.rows} rows is held out; {asked}")
        elif share and one.groups * share >= ENOUGH and not share / UNEVEN <= one.share <= share * UNEVEN:
            told.append(f"{one.name}: {one.held_rows} of {one.rows} rows are held out, {one.share:.1%}; {asked}")
    return told


def write_records(path: Path, records: Mapping[str, Record]) -> None:
    """Write the record of each kind of rows, as Parquet: kind, digest, held."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = sorted(records)
    parts = [records[name] for name in names]
    number = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.digests) for part in parts])
    columns = {
        "kind": pa.DictionaryArray.from_arrays(pa.array(number), pa.array(names, pa.string())),
        "digest": pa.array(np.concatenate([np.zeros(0, np.uint64), *(part.digests for part in parts)])),
        "held": pa.array(np.concatenate([np.zeros(0, bool), *(part.held for part in parts)])),
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def read_records(path: Path) -> dict[str, Record]:
    """Read the records that an earlier run wrote.

    Raises:
        DataError: there is no such file, or it is no record.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        read = pq.read_table(path, columns=["kind", "digest", "held"])
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise DataError(
            f"record of splits {path} is not readable: got {error!s:.160}, because it must be the splits.parquet of an earlier "
            "run; correct the path, or take `clean.heldout.record` out to decide every side anew"
        ) from None
    kind = read["kind"].combine_chunks().dictionary_encode()
    number, digest, held = kind.indices.to_numpy(), read["digest"].to_numpy(), read["held"].to_numpy()
    found = {}
    for one, name in enumerate(kind.dictionary.to_pylist()):
        own = np.flatnonzero(number == one)
        own = own[np.argsort(digest[own])]
        if len(own):
            found[str(name)] = Record(digest[own].astype(np.uint64), held[own].astype(bool))
    return found


def scattered(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): the smallest of many digests is small, its hash is not."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
