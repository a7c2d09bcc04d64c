"""How often a gate has looked at the same items: each verdict before this one that was reached on them wears them out.

A candidate that is chosen on a held-out suite fits that suite better than the world, the more so the more candidates were tried.
Looks are counted from the registry: every version, promoted or not, says on which items its verdict was reached. A suite counts as
the same while it has the same items, whatever scored them.

Source: The Ladder, Blum and Hardt, arXiv 1502.04585; the reusable holdout, Dwork et al. 2015, arXiv 1506.02629.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steps.lib.digests import digest_text
from steps.lib.events import Event
from steps.lib.figures import Item
from steps.lib.gate_terms import Terms
from steps.lib.registry import MANIFEST, Registry

FACT = "looks"
"""Fact of a version that holds its suites' digests."""


@dataclass(frozen=True)
class Look:
    """One verdict."""

    quarter: str
    """``2026Q4``: of its register event, UTC."""
    suites: Mapping[str, str] | None
    """Suite -> digest of its items; None where the version is gone: it counts for every suite."""

    def at(self, suites: Mapping[str, str]) -> bool:
        """Whether it was a look at one of these suites."""
        return self.suites is None or any(self.suites.get(name) == digest for name, digest in suites.items())


@dataclass(frozen=True)
class LookLog:
    """The verdicts before one candidate's."""

    earlier: tuple[Look, ...] = ()
    quarter: str = ""
    """In which the candidate was registered, or comes now."""

    @classmethod
    def of(cls, registry: Registry, name: str, policy: str, report: str, *, now: float | None = None) -> LookLog:
        """The looks of other candidates that came before this one: a second run of the same one finds the same.

        Args:
            registry: where the model's versions are.
            name: the model.
            policy: output digest of the candidate's artifact.
            report: output digest of its report.
            now: seconds since 1970, for a candidate that is not registered yet; None: the clock.
        """
        earlier: list[Look] = []
        for event in registry.history(name).events:
            if event.action != "register":
                continue
            facts = _facts(registry, name, event)
            if facts and (facts.get("policy"), facts.get("report")) == (policy, report):
                return cls(tuple(earlier), _quarter(event.ts))
            earlier.append(Look(_quarter(event.ts), facts.get(FACT, {}) if facts else None))
        return cls(tuple(earlier), _quarter(time.strftime("%Y-%m-%dT", time.gmtime(now))))

    def count(self, suites: Mapping[str, str], *, this_quarter: bool = False) -> int:
        """Earlier looks at any of some suites.

        Args:
            suites: name -> digest of its items (``suite_digests``).
            this_quarter: only those in the candidate's quarter.
        """
        looks = [look for look in self.earlier if look.at(suites)]
        return sum(look.quarter == self.quarter for look in looks) if this_quarter else len(looks)

    def digest(self, spending: str) -> str:
        """What the log adds to a key; ``none`` while nobody has looked.

        Args:
            spending: promote.spending; quarters count only where the level is spent by quarter.
        """
        if not self.earlier:
            return "none"
        by_quarter = spending == "quarter"
        parts = [
            (look.quarter == self.quarter if by_quarter else None, sorted(look.suites.items()) if look.suites else None)
            for look in self.earlier
        ]
        return digest_text(json.dumps(parts))[:16]


def suite_digests(items: Sequence[Item], model: str, suites: Collection[str] | None = None) -> dict[str, str]:
    """Suite -> digest of the ids of its items.

    Args:
        items: of a report.
        model: whose rows to take; every model has the same items.
        suites: only these.
    """
    ids: dict[str, set[str]] = {}
    for item in items:
        if item.model == model and (suites is None or item.suite in suites):
            ids.setdefault(item.suite, set()).add(item.item_id)
    return {suite: digest_text(json.dumps(sorted(found)))[:16] for suite, found in sorted(ids.items())}


def spent(terms: Terms, looks: int) -> float | None:
    """Level (share) that this look may spend on the primaries; None when nothing is left.

    ``none`` spends the whole level at every look. ``quarter`` shares it equally among ``max_looks`` looks of a calendar quarter
    (Bonferroni), so that a quarter of looks promotes an equal model with at most that level.

    Args:
        terms: the gate.
        looks: at these items in this quarter, before this one.
    """
    level = 1 - terms.confidence
    if terms.spending == "none":
        return level
    return level / terms.max_looks if looks < terms.max_looks else None


def _facts(registry: Registry, name: str, event: Event) -> dict[str, Any] | None:
    """A version's facts, or None where its folder was pruned. The events are at hand, so they are not read again a version."""
    try:
        text = (registry.root / name / "versions" / event.after / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(text).hexdigest() != event.manifest_sha256:
        registry.resolve(name, event.after)  # says what is wrong
    facts: dict[str, Any] = json.loads(text)["facts"]
    return facts


def _quarter(stamp: str) -> str:
    return f"{stamp[:4]}Q{(int(stamp[5:7]) + 2) // 3}"
