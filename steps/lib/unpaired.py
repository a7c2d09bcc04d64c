"""Answers with a verdict each, as KTO trains on them: from thumbs and pairs, how much each side counts, and in which order.

KTO measures how far the policy has moved from its reference on answers that do not belong to their prompts. These are made by
rotation: each example of a batch gets the answer of the one before it. So the batches are fixed here, once, from the seed: both
verdicts in each, and neighbours with different prompts.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Literal

from steps.lib.rows import Pair, Thumb

LOWEST, HIGHEST = 1.0, 4 / 3
"""Range of desirable weight x desirable examples over undesirable weight x undesirable examples (KTO, equation 8)."""
SEARCHED = 2000
"""Places that are tried for an example that stands beside one with its own prompt."""

Weight = float | Literal["auto"]


def examples(pairs: Iterable[Pair], thumbs: Iterable[Thumb]) -> Iterator[Thumb]:
    """The thumbs, and two of each pair: its chosen answer is desirable, its rejected one is not."""
    yield from thumbs
    for pair in pairs:
        for name, side, label in (("chosen", pair.chosen, True), ("rejected", pair.rejected, False)):
            yield Thumb(
                id=f"{pair.id}:{name}",
                lang=pair.lang,
                source=pair.source,
                prompt=pair.prompt,
                completion=side,
                label=label,
            )


def unusable(rows: Sequence[Thumb]) -> dict[int, tuple[str, str]]:
    """Number of a row -> reason and detail, of answers that have both verdicts, or that an earlier row has with the same one."""
    first: dict[tuple[str, ...], dict[bool, str]] = defaultdict(dict)
    contents = [tuple(f"{turn.role}\x00{turn.content}" for turn in (*row.prompt, *row.completion)) for row in rows]
    for row, content in zip(rows, contents, strict=True):
        first[content].setdefault(row.label, row.id)
    found: dict[int, tuple[str, str]] = {}
    seen: set[tuple[str, ...]] = set()
    for number, (row, content) in enumerate(zip(rows, contents, strict=True)):
        if len(first[content]) == 2:
            found[number] = "contradiction", f"the other verdict on the same answer in {first[content][not row.label]}"
        elif content in seen:
            found[number] = "duplicate", f"the same answer and verdict as {first[content][row.label]}"
        seen.add(content)
    return found


def weights(up: int, down: int, desirable: Weight = "auto", undesirable: Weight = "auto") -> tuple[float, float]:
    """Weights of desirable and undesirable losses; those that are ``auto`` bring the ratio into range, as near to 1 as they can.

    Where both are, the rarer side's is raised and the other one stays 1 (Ethayarajh et al. 2024, section 4.2: "set one, leave the
    other at 1").

    Args:
        up: desirable examples, at least one.
        down: undesirable examples, at least one.
        desirable: weight that was set.
        undesirable: weight that was set.
    """
    if desirable == "auto" and undesirable == "auto":
        return (_near_one(down / up), 1.0) if up <= HIGHEST * down else (1.0, up / (HIGHEST * down))
    if desirable == "auto":
        assert undesirable != "auto"
        return _near_one(undesirable * down / up), undesirable
    if undesirable == "auto":
        return desirable, _near_one(desirable * up / (HIGHEST * down))
    return desirable, undesirable


def ratio(up: int, down: int, desirable: float, undesirable: float) -> float:
    """What equation 8 bounds."""
    return desirable * up / (undesirable * down)


def _near_one(least: float) -> float:
    """The weight nearest to 1 that the range allows, from its least one."""
    return min(max(1.0, least), least * HIGHEST / LOWEST)


def before(place: int, count: int, batch: int) -> int:
    """The place whose answer an example gets: the one before it in its batch, the last one for the first.

    The last batch may have one example; it gets the answer of the batch before.
    """
    start = place - place % batch
    size = min(batch, count - start)
    return place - 1 if size == 1 else start + (place - start - 1) % size


def arranged(labels: Sequence[bool], prompts: Sequence[Hashable], *, batch: int, seed: int) -> tuple[list[int], int]:
    """An order of the examples: each side shuffled, spread evenly over the other, and no answer rotated onto its own prompt.

    Returns:
        Numbers of the examples in order, and how many still get an answer to their own prompt.
    """
    rng = random.Random(f"kto/{seed}")
    placed: list[tuple[float, int]] = []
    for side in (True, False):
        own = [number for number, label in enumerate(labels) if label == side]
        rng.shuffle(own)
        placed += [((place + 0.5) / len(own), number) for place, number in enumerate(own)]
    order = [number for _, number in sorted(placed, key=lambda one: one[0])]
    count = len(order)
    if count < 2:
        return order, count

    behind: dict[int, list[int]] = defaultdict(list)
    for place in range(count):
        behind[before(place, count, batch)].append(place)

    def clash(place: int) -> bool:
        return prompts[order[place]] == prompts[order[before(place, count, batch)]]

    def clashes(place: int) -> bool:
        return clash(place) or any(map(clash, behind[place]))

    for place in range(count):
        if not clash(place):
            continue
        for step in range(1, min(count, SEARCHED)):
            other = (place + step) % count
            if labels[order[other]] != labels[order[place]]:
                continue
            order[place], order[other] = order[other], order[place]
            if not clashes(place) and not clashes(other):
                break
            order[place], order[other] = order[other], order[place]
    return order, sum(map(clash, range(count)))


def length_ratio(up: Sequence[int], down: Sequence[int]) -> float:
    """Mean length of desirable answers over that of undesirable ones, in tokens (geometric means)."""
    means = [math.exp(sum(map(math.log, side)) / len(side)) for side in (up, down)]
    return means[0] / means[1]
