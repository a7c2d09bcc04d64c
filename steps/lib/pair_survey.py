"""What is wrong with preference pairs as a whole: length, format, or a phrase alone tells their sides apart.

A policy learns the cheapest thing that separates the sides. Where a few rules on the surface do, its accuracy rises to 1 and its
text gets worse (EVALUATION.md section 10, item 11: LLaMA-Factory #5116, SimPO #12, alignment-handbook #68).

Method of ``separable``: a list of at most three rules (Rivest 1987, "Learning decision lists") on surface marks of an answer, each
of the form "the side with the mark is chosen" or "is rejected", found greedily on one half of the pairs and counted on the other,
both ways. Marks: JSON, code fence, lines, lists, final sign, refusal, script, first and last words. What an answer says is none.
Length has limits of its own. Shares fail by the lower bound of Wilson's interval: few pairs prove nothing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from steps.lib.inference import seed_of
from steps.lib.pair_lint import PairLimits, format_only, said
from steps.lib.phrases import refusal
from steps.lib.rows import Pair
from steps.lib.rules import parse_strict, script_of
from steps.lib.stats import wilson

RULES = 3
"""Rules of a list."""
LEAST = 0.05
"""Share of the pairs that a rule must tell more often right than wrong to join a list."""
EDGE = 12
"""Characters of an answer's first and last words."""
_LIST = re.compile(r"(?m)^\s*(?:[-*•]|\d+[.)、])\s")
_FINAL = re.compile(r"[.!?。！？…][\"'”’）)]*$")

Rule = tuple[str, bool]
"""A mark, and whether the side with it is the chosen one."""


@dataclass(frozen=True)
class Survey:
    """What the pairs are like."""

    figures: dict[str, float | int | str]
    problems: list[str]
    """Limits that are passed."""


def survey(pairs: Sequence[Pair], lengths: Mapping[str, tuple[int, int]], limits: PairLimits) -> Survey:
    """Look at pairs as a whole.

    Args:
        pairs: that are written.
        lengths: id -> tokens of chosen and rejected.
        limits: what is too much.
    """
    found = Survey({}, [])
    if pairs:
        _format(pairs, limits, found)
        _length([lengths[pair.id] for pair in pairs], limits, found)
        _surface(pairs, limits, found)
    return found


def _format(pairs: Sequence[Pair], limits: PairLimits, found: Survey) -> None:
    same = [pair.id for pair in pairs if format_only(pair)]
    found.figures["lint/format_only"] = len(same)
    most = limits.max_format_only
    if most is not None and len(same) > most * len(pairs):
        found.problems.append(
            f"pairs differ by format only: got {len(same)} of {len(pairs)} ({len(same) / len(pairs):.1%}, where "
            f"pairs.lint.max_format_only allows {most:.1%}; the first: {', '.join(same[:3])}), because their sides say the same "
            "but for spaces, case, signs, a code fence or the layout of JSON; render both sides alike, or raise the limit if the "
            "format is what is to be learnt"
        )


def _length(lengths: Sequence[tuple[int, int]], limits: PairLimits, found: Survey) -> None:
    uneven = [(one, other) for one, other in lengths if one != other]
    longer = sum(one > other for one, other in uneven)
    logs = [math.log(one / other) for one, other in lengths]
    ratio = math.exp(fmean(logs))
    found.figures["lint/longer_share"] = round(longer / max(1, len(uneven)), 4)
    found.figures["lint/length_ratio"] = round(ratio, 4)
    if not uneven:
        return
    more = max(longer, len(uneven) - longer)
    sure = wilson(more, len(uneven)).low
    margin = 1.96 * stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    least = math.exp(max(0.0, abs(fmean(logs)) - margin))
    told: list[str] = []
    if limits.max_longer_share is not None and sure > limits.max_longer_share:
        told.append(
            f"{more} of {len(uneven)} pairs with the same side longer (surely over {sure:.1%}, where pairs.lint.max_longer_share "
            f"allows {limits.max_longer_share:.1%})"
        )
    if limits.max_length_ratio is not None and least > limits.max_length_ratio:
        told.append(
            f"a mean ratio of {max(ratio, 1 / ratio):.2f} (surely over {least:.2f}, where pairs.lint.max_length_ratio allows "
            f"{limits.max_length_ratio:g})"
        )
    if told:
        word = "longer" if longer * 2 > len(uneven) or ratio > 1 else "shorter"
        found.problems.append(
            f"length tells the sides of pairs apart: got {' and '.join(told)}, because chosen answers are {word} throughout, and "
            "training would learn just that; balance the sources, or raise the limit"
        )


def _surface(pairs: Sequence[Pair], limits: PairLimits, found: Survey) -> None:
    right, rules = separable(pairs)
    words = [f"{mark} {'chosen' if chosen else 'rejected'}" for mark, chosen in rules]
    found.figures["lint/separable_share"] = round(right / len(pairs), 4)
    found.figures["lint/separable_by"] = "; ".join(words)
    sure = wilson(right, len(pairs)).low
    if limits.max_separable is not None and sure > limits.max_separable:
        found.problems.append(
            f"pairs are trivially separable: got {right} of {len(pairs)} told right by rules on the surface ({', '.join(words)}; "
            f"surely over {sure:.1%}, where pairs.lint.max_separable allows {limits.max_separable:.1%}), because the sides come "
            "from sources that look different; make both sides with the same format, or add pairs whose sides look alike"
        )


def separable(pairs: Sequence[Pair]) -> tuple[int, list[Rule]]:
    """How many pairs a list of surface rules tells right that was found on the other half, and the list of all pairs."""
    seen = [(surface(said(pair.chosen)), surface(said(pair.rejected))) for pair in pairs]
    half = [seed_of("half", pair.id) % 2 for pair in pairs]
    right = 0
    for side in (0, 1):
        rules = decision_list([one for one, own in zip(seen, half, strict=True) if own == side])
        right += sum(_told(one, rules) for one, own in zip(seen, half, strict=True) if own != side)
    return right, decision_list(seen)


def surface(text: str) -> frozenset[str]:
    """The marks of an answer's surface."""
    whole = text.strip()
    marks = {f"opening {whole[:EDGE]!r}", f"ending {whole[-EDGE:]!r}", f"script {script_of(whole)}"}
    if words := whole.split():
        marks |= {f"first word {words[0][:EDGE]!r}", f"last word {words[-1][-EDGE:]!r}"}
    try:
        parse_strict(whole)
        marks.add("JSON")
    except ValueError:
        pass
    tests = {
        "code fence": "```" in whole,
        "several lines": "\n" in whole,
        "list": bool(_LIST.search(whole)),
        "final sign": bool(_FINAL.search(whole)),
        "refusal": bool(refusal(whole)),
    }
    return frozenset(marks | {name for name, holds in tests.items() if holds})


def decision_list(seen: Sequence[tuple[frozenset[str], frozenset[str]]]) -> list[Rule]:
    """The rules that tell most pairs right, one after the other: of those that the earlier ones leave undecided."""
    left, rules = list(seen), list[Rule]()
    while left and len(rules) < RULES:
        gains: Counter[Rule] = Counter()
        for chosen, rejected in left:
            for mark in chosen - rejected:
                gains.update({(mark, True): 1, (mark, False): -1})
            for mark in rejected - chosen:
                gains.update({(mark, False): 1, (mark, True): -1})
        best = min(gains, key=lambda rule: (-gains[rule], rule), default=None)
        if best is None or gains[best] < max(2, LEAST * len(seen)):
            break
        rules.append(best)
        left = [one for one in left if (best[0] in one[0]) == (best[0] in one[1])]
    return rules


def _told(one: tuple[frozenset[str], frozenset[str]], rules: Iterable[Rule]) -> bool:
    """Whether the first rule that decides a pair tells it right; a pair that none decides is not told."""
    chosen, rejected = one
    for mark, wins in rules:
        if (mark in chosen) != (mark in rejected):
            return (mark in chosen) == wins
    return False
