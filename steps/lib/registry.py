"""The registry: immutable versions of a model, an append-only chain of events, and aliases that follow from it.

::

  <root>/<name>/versions/vNNNN-<12 hex>/   files and manifest.json; the hex is the start of the manifest's sha256
  <root>/<name>/bases/<12 hex>/            the base models that adapters stand on, each once (``bases``)
  <root>/<name>/events/NNNNNN.json         one event each, chained by the sha256 of the one before
  <root>/<name>/aliases.json               a cache for people; the events win

The claim of an event carries the hash of the one before (``events``), so an alias moves only from the state that its
mover saw. A version exists when its register event does.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from steps.lib import registry_retention as retention
from steps.lib import registry_versions, signing
from steps.lib.bases import Base
from steps.lib.durable import write
from steps.lib.errors import ArtifactError
from steps.lib.events import CHALLENGER, CHAMPION, DRAFT, Event, History
from steps.lib.registry_files import ALLOWED, MANIFEST, SIGNATURE
from steps.lib.registry_reading import RegistryReader, live
from steps.lib.registry_retention import Kept
from steps.lib.registry_versions import VERSIONS, Version
from steps.lib.tickets import abandoned, mark

__all__ = ["ALLOWED", "CHALLENGER", "CHAMPION", "MANIFEST", "Registry", "Version"]
ANY = "*"
"""An alias may be anywhere."""


class Registry(RegistryReader):
    """A folder of models, read and written; ``RegistryReader`` says how it is made."""

    def register(
        self,
        name: str,
        folder: Path,
        *,
        facts: Mapping[str, Any],
        base: Base | None = None,
        verdict_digest: str = "",
    ) -> Version:
        """Copy the files of ``folder`` into a new version. The same files and facts are the same version.

        Files that only tell of it (``registry_files.RECORDS``: lineage.json, README.md ...) may differ from the ones it has.

        Args:
            name: the model.
            folder: what becomes a version.
            facts: what the registrar says of it; digests of adapter, tokenizer and chat template are added.
            base: what the adapter stands on (``models.base_of``); kept beside the versions unless it is a commit on the hub.
            verdict_digest: sha256 of the gate's verdict on it.

        Raises:
            ArtifactError: a file is not on the allow-list, is a link, or is not what its name says; the base is another one.
        """
        home = self.home(name)
        draft = registry_versions.stage(home, folder, facts, base)
        draft = registry_versions.left_behind(home, draft, self.history(name).registered())

        def claim(history: History) -> dict[str, Any] | None:
            nonlocal draft
            if found := history.identities().get(draft.identity):
                draft = draft.move(home / VERSIONS / found)
                return None
            number = len(history.registered()) + 1
            draft = draft.move(home / VERSIONS / f"v{number:04d}-{draft.digest[:12]}")
            return {
                "action": "register",
                "to": draft.place.name,
                "manifest_sha256": draft.digest,
                "identity": draft.identity,
                "verdict_digest": verdict_digest,
            }

        self._append(name, claim)
        version = self.resolve(name, draft.place.name)
        if self.signing.key and not (version.folder / SIGNATURE).exists():
            signing.sign(version, self.signing.key)
        return self.verify(name, version.name)

    def promote(
        self,
        name: str,
        version: str,
        *,
        expected: str | None,
        verdict_digest: str,
        reason: str,
        alias: str = CHAMPION,
    ) -> Event:
        """Move an alias to ``version``, if it is still where the caller saw it.

        Args:
            name: the model.
            version: where the alias goes.
            expected: version that the alias had when the decision was made; None for no version.
            verdict_digest: sha256 of the verdict that allows it.
            reason: one sentence.
            alias: which alias.

        Raises:
            ArtifactError: the alias has moved meanwhile, or the version is damaged, retired or unknown.
        """
        self.verify(name, version)

        def claim(history: History) -> dict[str, Any]:
            _expect(name, alias, expected, history)
            live(name, version, history)
            return {
                "action": "promote",
                "alias": alias,
                "from": expected,
                "to": version,
                "reason": reason,
                "verdict_digest": verdict_digest,
            }

        return self._append(name, claim)

    def rollback(
        self, name: str, *, expected: str | None, reason: str, to: str | None = None, alias: str = CHAMPION
    ) -> Event:
        """Move an alias back. No gate, but a reason; nothing is deleted.

        Args:
            name: the model.
            expected: version that the alias has.
            reason: why; must not be empty.
            to: where to; None for the version that ``expected`` replaced.
            alias: which alias.

        Raises:
            ArtifactError: no reason, nothing to go back to, the alias has moved meanwhile, or the target is damaged.
        """
        if not reason.strip():
            raise ArtifactError(
                f"rollback of {name} has no reason: got {reason!r}, because the log must say why; give one"
            )
        target = to or self.history(name).replaced(expected, alias)
        if target is None:
            raise ArtifactError(
                f"alias {alias} of {name} has nothing to go back to: got {expected!r}, because it "
                "replaced no version; name one"
            )
        self.verify(name, target)

        def claim(history: History) -> dict[str, Any]:
            _expect(name, alias, expected, history)
            live(name, target, history)
            return {"action": "rollback", "alias": alias, "from": expected, "to": target, "reason": reason}

        return self._append(name, claim)

    def point(self, name: str, version: str | None, *, alias: str, reason: str, expected: str | None = ANY) -> Event:
        """Set an alias that decides nothing by itself: challenger, anchor, or one of your own. The champion's is not moved so.

        Args:
            name: the model.
            version: where it goes; None takes the alias away. Where it is there already, nothing is recorded.
            alias: which alias.
            reason: one sentence; must not be empty.
            expected: version that the alias must have now (None: no version); by default any.

        Raises:
            ArtifactError: a wrong alias, no reason, the alias has moved meanwhile, or the version is damaged.
        """
        if alias == CHAMPION or not re.fullmatch(r"[a-z][a-z0-9_-]*", alias) or not reason.strip():
            raise ArtifactError(
                f"alias {alias} of {name} is not set: got reason {reason!r}, because only promote and rollback move {CHAMPION}, a "
                "name has a-z 0-9 _ -, and the log must say why; give another alias, or a reason"
            )
        if version:
            self.verify(name, version)
        elif not self.history(name).events:
            raise ArtifactError(
                f"model {name} has no versions: got no events, because nothing was registered; register one"
            )

        def claim(history: History) -> dict[str, Any] | None:
            current = history.aliases().get(alias)
            if expected != ANY:
                _expect(name, alias, expected, history)
            if current == version:
                return None
            if version:
                live(name, version, history)
            return {"action": "point", "alias": alias, "from": current, "to": version or "", "reason": reason}

        return self._append(name, claim)

    def prune(self, name: str, *, keep: int = 3, dry: bool = True) -> list[Kept]:
        """Retire the versions that nobody needs, delete their weights, and the bases that no version stands on.

        Needed is what an alias names or a rollback would go back to, the last ``keep`` champions, and what is younger than an hour.

        Args:
            name: the model.
            keep: champions that stay.
            dry: say what would go, and change nothing.

        Raises:
            ArtifactError: the log is damaged, so that nobody can tell what is needed.
        """
        home, now, found = self.home(name), time.time(), []
        for version in self.history(name).registered():

            def claim(history: History, version: str = version) -> dict[str, Any] | None:
                if version in history.retired() or version in retention.needed(history, keep, now):
                    return None
                return {
                    "action": "retire",
                    "to": version,
                    "reason": f"not among what is needed with {keep} champions kept",
                }

            history = self.history(name)
            if not dry and claim(history):
                self._append(name, claim)
                history = self.history(name)
            gone = version in history.retired()
            reason = "retired" if gone else retention.needed(history, keep, now).get(version, "nothing needs it")
            one = self.resolve(name, version)
            goes = gone or reason == "nothing needs it"
            found.append(Kept("version", version, one.size, goes, reason))
            if gone and not dry:
                retention.strip(one.folder)
        left = {one.name for one in found if one.kind == "version" and not one.goes}
        used = [
            str((version.manifest.get("base") or {}).get("digest", ""))
            for version in self.versions(name)
            if version.name in left
        ]
        rest = [*retention.unused_bases(home, used, now), *retention.rests(home, self.history(name).registered(), now)]
        if not dry:
            retention.delete(home, [one for one in rest if one.goes])
        return [*found, *rest]

    def _append(self, name: str, claim: Callable[[History], dict[str, Any] | None]) -> Event:
        event = self._log(name).append(claim)
        self._cache(name)
        return event

    def _cache(self, name: str) -> None:
        for left in abandoned(self.home(name), f".*{DRAFT}"):
            left.unlink(missing_ok=True)
        written = -1
        while written < len((history := self.history(name)).events):  # else a slower process leaves an older state
            written = len(history.events)
            draft = self.home(name) / f".{mark()}{DRAFT}"
            write(draft, json.dumps({"seq": written, "aliases": history.aliases()}, indent=1) + "\n")
            os.replace(draft, self.home(name) / "aliases.json")


def _expect(name: str, alias: str, expected: str | None, history: History) -> None:
    current = history.aliases().get(alias)
    if current != expected:
        raise ArtifactError(
            f"alias {alias} of {name} has moved: got {current!r} where {expected!r} was expected, "
            "because another run moved it meanwhile; compare with the new one and decide again"
        )
