"""Whom a candidate meets: the champion and the anchor of a registry, as a candidate saw them when it came.

evaluate scores them in the same run as the candidate, and promote compares with them; both must name the same versions, and a
second run of the same line must name them again, although its candidate is champion by then.
"""

from __future__ import annotations

from dataclasses import dataclass

from steps.lib.registry import Registry, Version

CHAMPION, ANCHOR = "champion", "anchor"
"""Aliases, and names of the two among the models of a report."""


@dataclass(frozen=True)
class Incumbents:
    """Versions that a candidate is compared with."""

    champion: Version | None = None
    """None before the first promotion of another policy."""
    anchor: Version | None = None
    """The pinned release against slow drift; None where none is pinned, or where it is the candidate itself."""

    @classmethod
    def of(cls, registry: Registry, name: str, policy: str) -> Incumbents:
        """The incumbents of one candidate.

        Args:
            registry: where the model's versions are.
            name: the model.
            policy: output digest of the candidate's artifact. While it is itself champion, the champion is the version
                of another policy that it replaced.
        """
        return cls(_champion(registry, name, policy), _anchor(registry, name, policy))

    def named(self) -> dict[str, Version]:
        """Name in the report -> version, without an anchor that is the champion."""
        found = {CHAMPION: self.champion, ANCHOR: self.anchor}
        if self.champion and self.anchor and self.champion.digest == self.anchor.digest:
            del found[ANCHOR]
        return {name: version for name, version in found.items() if version}

    def digests(self) -> dict[str, str]:
        """What the two add to a key: manifest digests, ``none`` where there is none."""
        return {
            CHAMPION: self.champion.digest if self.champion else "none",
            ANCHOR: self.anchor.digest if self.anchor else "none",
        }


def _champion(registry: Registry, name: str, policy: str) -> Version | None:
    history = registry.history(name)

    def is_other(version: str | None) -> bool:
        return version is None or registry.resolve(name, version).facts["policy"] != policy

    version = history.aliases().get(CHAMPION)
    if not is_other(version):
        entered = [
            event
            for event in history.events
            if event.action == "promote"
            and event.alias == CHAMPION
            and not is_other(event.after)
            and is_other(event.before)
        ]
        version = entered[-1].before
    return registry.resolve(name, version) if version else None


def _anchor(registry: Registry, name: str, policy: str) -> Version | None:
    version = registry.history(name).aliases().get(ANCHOR)
    found = registry.resolve(name, version) if version else None
    return found if found and found.facts["policy"] != policy else None
