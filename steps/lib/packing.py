"""Sequences side by side in a row, without padding: what attends to what, and which place predicts which token.

A *sequence* is a stem of tokens and, for a pair, two branches that both go on from the stem: the prompt stands once for the chosen
and the rejected answer (Wang and Hegde 2024, 2410.20305). A branch's positions follow the stem's, and no branch sees another one.
Sequences in a row do not see each other: packed losses equal unpacked ones.

Letters in shapes: R rows of a pass, W places of a row, M predicted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steps.lib.chat import IGNORE
from steps.lib.spans import Span


@dataclass(frozen=True)
class Packable:
    """One sequence: its tokens, and for each its position, its branch (0: the stem), and the place that predicts it."""

    ids: list[int]
    positions: list[int]
    branches: list[int]
    predictors: list[int]
    """Place in this sequence whose output predicts the token; -1: the token carries no loss."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def span(self) -> Span:
        """Its tokens, and those of each branch."""
        branched = sum(branch > 0 for branch in self.branches)
        sizes = [self.branches.count(number) for number in range(1, max(self.branches, default=0) + 1)]
        return len(self) - branched, tuple(sizes)

    @property
    def predicted(self) -> int:
        """Tokens that carry loss."""
        return sum(place >= 0 for place in self.predictors)


def stem(ids: Sequence[int], labels: Sequence[int]) -> Packable:
    """A sequence without branches. A label is the token itself, or -100 where it carries no loss; the first never does."""
    places = range(-1, len(ids) - 1)
    predictors = [place if label != IGNORE else -1 for place, label in zip(places, labels, strict=True)]
    return Packable(list(ids), list(range(len(ids))), [0] * len(ids), predictors)


def fork(prompt: Sequence[int], *answers: Sequence[int]) -> Packable:
    """A prompt, and answers that go on from it and are blind to each other; every token of an answer carries loss."""
    ids, start = list(prompt), len(prompt)
    positions, branches, predictors = list(range(start)), [0] * start, [-1] * start
    for number, answer in enumerate(answers, start=1):
        at = len(ids)
        ids += answer
        positions += range(start, start + len(answer))
        branches += [number] * len(answer)
        predictors += [start - 1, *range(at, at + len(answer) - 1)][: len(answer)]
    return Packable(ids, positions, branches, predictors)


Pass = dict[str, Any]
"""What one forward pass gets. input_ids, position_ids, segments (which sequence, -1: unused) and branches (R, W); predictors (M,),
places in the flattened rows; targets (M,); owners (M,), the sequence of each predicted token; spans, where the model takes them.
``pad_rows`` has an attention_mask (R, W) in place of segments and branches, and no positions."""


def rows_of(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Which sequences share a row: best fit, longest first. The result depends on the lengths only.

    Args:
        lengths: in tokens.
        width: places of a row; a longer sequence has a row of its own.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = [row for row, left in enumerate(room) if left >= lengths[index]]
        if fits:
            best = min(fits, key=lambda row: (room[row], row))
            rows[best].append(index)
            room[best] -= lengths[index]
        else:
            rows.append([index])
            room.append(width - lengths[index])
    return rows


def best_width(lengths: Sequence[int], most: int) -> int:
    """The width at which packed rows have the fewest places, the padding included: from the longest sequence to four of them.

    Args:
        lengths: in tokens.
        most: places of a pass; wider rows are not tried.
    """
    longest = max(lengths)
    total = sum(lengths)
    found = (len(lengths) * longest, longest)
    for count in range(max(1, total // (4 * longest)), -(-total // longest) + 1):
        width = max(longest, -(-total // count))
        if width > max(most, longest):
            continue
        found = min(found, (len(rows_of(lengths, width)) * width, width))
    return found[1]


def split(lengths: Sequence[int], most: int, processes: int = 1) -> list[list[int]]:
    """Sequences of an update in passes of at most ``most`` tokens (one that is longer goes alone), near in number of tokens.

    There are as many for each process, as far as the sequences go.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    passes = processes * -(-sum(lengths) // (most * processes))
    while True:
        loads = [0] * passes
        held: list[list[int]] = [[] for _ in range(passes)]
        for index in order:
            lightest = loads.index(min(loads))
            held[lightest].append(index)
            loads[lightest] += lengths[index]
        if all(load <= most or len(one) == 1 for load, one in zip(loads, held, strict=True)):
            return [sorted(one) for one in held if one]
        passes += processes


def pack(sequences: Sequence[Packable], chosen: Sequence[int], *, width: int, pad: int, spans: bool = False) -> Pass:
    """The rows of one pass.

    Args:
        sequences: all of the batch.
        chosen: which of them this pass holds.
        width: places of a row at least; the longest sequence's length is the least.
        pad: token of unused places, which nothing sees.
        spans: the model attends by them (``attention``); all sequences must be in one row.
    """
    import torch

    lengths = [len(sequences[i]) for i in chosen]
    width = max(width, *lengths)
    rows = rows_of(lengths, width)
    width = max(sum(lengths[i] for i in row) for row in rows)
    shape = (len(rows), width)
    ids, positions = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long)
    segments, branches = torch.full(shape, -1), torch.zeros(shape, dtype=torch.long)
    predictors: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for number, row in enumerate(rows):
        at = 0
        for index in row:
            one = sequences[chosen[index]]
            place = slice(at, at + len(one))
            ids[number, place] = torch.tensor(one.ids)
            positions[number, place] = torch.tensor(one.positions)
            branches[number, place] = torch.tensor(one.branches)
            segments[number, place] = index
            first = number * width + at
            for token, predictor in zip(one.ids, one.predictors, strict=True):
                if predictor >= 0:
                    predictors.append(first + predictor)
                    targets.append(token)
                    owners.append(index)
            at += len(one)
        positions[number, at:] = torch.arange(width - at)
    made: Pass = {
        "input_ids": ids,
        "position_ids": positions,
        "segments": segments,
        "branches": branches,
        "predictors": torch.tensor(predictors, dtype=torch.long),
        "targets": torch.tensor(targets, dtype=torch.long),
        "owners": torch.tensor(owners, dtype=torch.long),
    }
    order = torch.argsort(made["owners"], stable=True)  # a sequence's tokens in its own order, sequences in theirs
    made |= {name: made[name][order] for name in ("predictors", "targets", "owners")}
    if spans:
        [row] = rows
        made["spans"] = [sequences[chosen[index]].span for index in row]
    return made


def groups(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Sequences of near lengths for passes in which each has its own row, shortest first: rows x longest <= most."""
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if found and (len(found[-1]) + 1) * lengths[index] <= most:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def pad_rows(sequences: Sequence[Packable], chosen: Sequence[int], *, pad: int) -> Pass:
    """A pass in which each sequence has its own row, padded on the right; positions are left to the model.

    For models that put virtual tokens before each row.
    """
    import torch

    chosen = sorted(chosen)
    lengths = [len(sequences[i]) for i in chosen]
    width = max(lengths)
    ids = torch.tensor([sequences[i].ids + [pad] * (width - len(sequences[i])) for i in chosen])
    places = [
        (row * width + predictor, token, index)
        for row, index in enumerate(chosen)
        for token, predictor in zip(sequences[index].ids, sequences[index].predictors, strict=True)
        if predictor >= 0
    ]
    found = torch.tensor(places, dtype=torch.long).reshape(-1, 3)  # (M, 3)
    return {
        "input_ids": ids,
        "position_ids": None,
        "attention_mask": (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long(),  # (R, W)
        "predictors": found[:, 0],
        "targets": found[:, 1],
        "owners": found[:, 2],
    }


def visible(segments: Any, branches: Any) -> Any:
    """Who sees whom, bool (R, 1, W, W): itself, and earlier places of the same sequence in the stem or in the same branch."""
    import torch

    width = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    branch = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    earlier = torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    return (same & branch & earlier)[:, None]  # (R, 1, W, W)


def visible_blocks(segments: Any, branches: Any) -> Any:
    """The same as a ``BlockMask`` of flex attention, which skips blocks of which nothing is visible."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows, width = segments.shape
    return create_block_mask(sees(segments, branches), rows, None, width, width, device=segments.device)


def sees(segments: Any, branches: Any) -> Any:
    """``visible`` as a function of row, head, place and place seen, as flex attention asks."""

    def seen(row: Any, head: Any, place: Any, other: Any) -> Any:
        same = segments[row, place] == segments[row, other]
        branch = (branches[row, other] == 0) | (branches[row, other] == branches[row, place])
        return same & branch & (other <= place)

    return seen
