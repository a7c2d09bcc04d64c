"""What no gain outweighs: a critical bad case that is back, and a chat template that nobody said would change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from steps.lib.errors import DataError
from steps.lib.figures import Item

CASES, PASSED, CRITICAL = "cases", "passed", "critical"
"""Suite of the bad cases, its score, and the slice of those that must never come back."""


def regressions(items: Sequence[Item], model: str, against: str) -> list[str]:
    """A sentence for each critical bad case that the other model handles and the candidate does not.

    A case that is asked several times is handled when it passes every time, and has come back when it never passes; in
    between it is flaky, and counts only in the paired rate.

    Args:
        items: of the report.
        model: the candidate.
        against: the champion, or the baseline of the report.

    Raises:
        DataError: a critical case was not scored for one of the two.
    """
    scores: dict[str, dict[str, list[float]]] = {model: defaultdict(list), against: defaultdict(list)}
    for item in items:
        if item.suite != CASES or CRITICAL not in item.slices or item.model not in scores:
            continue
        value = item.scores.get(PASSED)
        if item.error or value is None:
            raise DataError(
                f"critical bad case {item.item_id!r} was not scored for {item.model!r}: got "
                f"{item.error or f'no {PASSED!r}'!r}, because scoring raised; evaluate again"
            )
        scores[item.model][item.item_id].append(value)
    new, old = scores[model], scores[against]
    if odd := sorted(new.keys() ^ old.keys()):
        raise DataError(
            f"critical bad cases of {model!r} and {against!r} are not the same: got {odd[0]!r} and {len(odd) - 1} more of "
            "one of them only, because they were scored on different cases; evaluate both again"
        )
    return [
        f"critical bad case {name} is back: {against} passes it, {model} does not"
        for name in sorted(new)
        if min(old[name]) >= 1 and max(new[name]) < 1
    ]


def template_change(new: str, old: str, *, allowed: bool) -> list[str]:
    """A sentence if the chat template is another one and nobody said that it would be.

    Args:
        new: digest of the candidate's template.
        old: of the champion's; what is served with it must fit both.
        allowed: promote.allow_template_change.
    """
    if allowed or new == old:
        return []
    return [
        f"the chat template is another one than the champion's: got {new[:12] or 'none'} where the champion has "
        f"{old[:12] or 'none'}; set promote.allow_template_change if it should be"
    ]
