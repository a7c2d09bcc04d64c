"""The registry: immutable versions of a model, an append-only chain of events, and aliases that follow from it.

::

  <root>/<name>/versions/vNNNN-<12 hex>/   files and manifest.json; the hex is the start of the manifest's sha256
  <root>/<name>/events/NNNNNN.json         one event each, chained by the sha256 of the one before
  <root>/<name>/aliases.json               a cache for people; the events win

The claim of an event carries the hash of the one before (``events``), so an alias moves only from the state that its
mover saw. A version exists when its register event does.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib.durable import fsync, write
from steps.lib.errors import ArtifactError
from steps.lib.events import DRAFT, Event, EventLog, History
from steps.lib.tickets import abandoned, mark

ALLOWED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.md", "*.jsonl.zst")
"""Files that a version may hold. None of them can run code when it is loaded."""
MANIFEST = "manifest.json"
PARTIAL = ".partial"


@dataclass(frozen=True)
class Version:
    """A registered version."""

    name: str
    folder: Path
    digest: str
    """sha256 of its manifest, which holds the sha256 of every file."""
    facts: dict[str, Any]
    """What the registrar said: policy digest, base digest, name of the model in its report."""


class Registry:
    """A folder of models.

    Args:
        root: the folder; made when something is registered.
        actor: who is recorded in events.
    """

    def __init__(self, root: Path, actor: str = "prefline") -> None:
        self.root, self.actor = root, actor

    def register(self, name: str, folder: Path, *, facts: Mapping[str, Any], verdict_digest: str = "") -> Version:
        """Copy the files of ``folder`` into a new version. The same files and facts are the same version.

        Raises:
            ArtifactError: a file is not on the allow-list, is a link, or is not what its name says.
        """
        home = self._home(name)
        files = _inspect(folder)
        (home / "versions").mkdir(parents=True, exist_ok=True)
        for left in abandoned(home / "versions", f".*{PARTIAL}"):
            shutil.rmtree(left, ignore_errors=True)
        staged = home / "versions" / f".{mark()}{PARTIAL}"
        listing = []
        for path in files:
            relative = path.relative_to(folder).as_posix()
            (staged / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, staged / relative)
            fsync(staged / relative)
            listing.append({"path": relative, "size": path.stat().st_size, "sha256": _sha256(staged / relative)})
        text = json.dumps({"schema": 1, "facts": dict(facts), "files": listing}, indent=1, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        write(staged / MANIFEST, text)
        place = staged
        for left_behind in (home / "versions").glob(f"v*-{digest[:12]}"):  # by a crash before its event
            shutil.rmtree(staged, ignore_errors=True)
            place = left_behind

        def claim(history: History) -> dict[str, Any] | None:
            nonlocal place
            known = history.registered()
            found = next((version for version, sha256 in known.items() if sha256 == digest), None)
            if found:
                place = _move(place, home / "versions" / found)
                return None
            place = _move(place, home / "versions" / f"v{len(known) + 1:04d}-{digest[:12]}")
            fsync(place.parent)
            return {"action": "register", "to": place.name, "manifest_sha256": digest, "verdict_digest": verdict_digest}

        self._append(name, claim)
        return self.verify(name, place.name)

    def promote(
        self,
        name: str,
        version: str,
        *,
        expected: str | None,
        verdict_digest: str,
        reason: str,
        alias: str = "champion",
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
            ArtifactError: the alias has moved meanwhile, or the version is damaged or unknown.
        """
        self.verify(name, version)

        def claim(history: History) -> dict[str, Any]:
            _expect(name, alias, expected, history)
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
        self, name: str, *, expected: str | None, reason: str, to: str | None = None, alias: str = "champion"
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
            return {"action": "rollback", "alias": alias, "from": expected, "to": target, "reason": reason}

        return self._append(name, claim)

    def resolve(self, name: str, alias: str) -> Version:
        """The version behind an alias (or a version's own name).

        Raises:
            ArtifactError: no such alias or version; the message lists what exists.
        """
        history = self.history(name)
        known, aliases = history.registered(), history.aliases()
        version = aliases.get(alias, alias)
        if version not in known:
            raise ArtifactError(
                f"model {name} has no alias or version {alias!r}: got aliases {sorted(aliases)} and "
                f"versions {list(known)}; promote a version, or name one of these"
            )
        folder = self._home(name) / "versions" / version
        try:
            text = (folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            raise ArtifactError(
                f"{folder} is damaged: got no {MANIFEST}, because somebody changed the registry; "
                "restore the folder from a copy"
            ) from None
        if hashlib.sha256(text).hexdigest() != known[version]:
            raise ArtifactError(
                f"{folder / MANIFEST} is not the one registered: got another sha256 than its event "
                "has, because somebody changed it; restore the folder"
            )
        return Version(version, folder, known[version], json.loads(text)["facts"])

    def champion(self, name: str) -> Version | None:
        """The champion, or None before the first promotion."""
        return self.resolve(name, "champion") if "champion" in self.history(name).aliases() else None

    def versions(self, name: str) -> list[Version]:
        """Every registered version, oldest first."""
        return [self.resolve(name, version) for version in self.history(name).registered()]

    def verify(self, name: str, version: str) -> Version:
        """Read every byte of a version and compare it with its manifest.

        Raises:
            ArtifactError: unknown, or a file differs, is missing, or should not be there.
        """
        found = self.resolve(name, version)
        listing = json.loads((found.folder / MANIFEST).read_text())["files"]
        there = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if not path.is_dir()}
        wrong = sorted(there ^ {MANIFEST, *(entry["path"] for entry in listing)})
        wrong += [
            entry["path"]
            for entry in listing
            if entry["path"] in there and _sha256(found.folder / entry["path"]) != entry["sha256"]
        ]
        if wrong:
            raise ArtifactError(
                f"version {version} of {name} is damaged: got other content in {', '.join(wrong)}, "
                f"because somebody changed {found.folder}; restore the folder from a copy"
            )
        return found

    def history(self, name: str) -> History:
        """The events of a model, checked.

        Raises:
            ArtifactError: a number is missing, an event does not parse, or a hash does not fit.
        """
        return self._log(name).read()

    def _log(self, name: str) -> EventLog:
        return EventLog(self._home(name) / "events", self.actor)

    def _append(self, name: str, claim: Callable[[History], dict[str, Any] | None]) -> Event:
        event = self._log(name).append(claim)
        self._cache(name)
        return event

    def _cache(self, name: str) -> None:
        history = self.history(name)
        for left in abandoned(self._home(name), f".*{DRAFT}"):
            left.unlink(missing_ok=True)
        draft = self._home(name) / f".{mark()}{DRAFT}"
        write(draft, json.dumps({"seq": len(history.events), "aliases": history.aliases()}, indent=1) + "\n")
        os.replace(draft, self._home(name) / "aliases.json")

    def _home(self, name: str) -> Path:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
            raise ArtifactError(
                f"model name {name!r} is wrong: got other characters than a-z 0-9 . _ -, because it "
                "becomes a folder; choose such a name"
            )
        return self.root / name


def _expect(name: str, alias: str, expected: str | None, history: History) -> None:
    current = history.aliases().get(alias)
    if current != expected:
        raise ArtifactError(
            f"alias {alias} of {name} has moved: got {current!r} where {expected!r} was expected, "
            "because another run moved it meanwhile; compare with the new one and decide again"
        )


def _inspect(folder: Path) -> list[Path]:
    """The files to copy, all checked.

    Raises:
        ArtifactError: any of them is not allowed; all are named.
    """
    files, refused = [], []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            refused.append(f"{path.relative_to(folder)} (a link)")
        elif path.is_file():
            allowed = any(fnmatch.fnmatch(path.name, pattern) for pattern in ALLOWED)
            if not allowed or path == folder / MANIFEST:
                refused.append(f"{path.relative_to(folder)} (kind of file)")
            elif path.suffix == ".safetensors" and not _is_safetensors(path):
                refused.append(f"{path.relative_to(folder)} (no safetensors header)")
            files.append(path)
    if refused or not files:
        raise ArtifactError(
            f"{folder} cannot be registered: got {', '.join(refused) or 'no file'}, because a version "
            f"holds only {' '.join(ALLOWED)}, and a pickle runs code when it is loaded; "
            "leave the others out"
        )
    return files


def _is_safetensors(path: Path) -> bool:
    """Eight bytes of header length, then a JSON object. Source: the safetensors format, README of the project."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def _move(place: Path, target: Path) -> Path:
    """Rename a version folder; the target may be there already with the same content."""
    if place != target:
        try:
            os.rename(place, target)
        except OSError:
            if not (target / MANIFEST).exists():
                raise
            shutil.rmtree(place, ignore_errors=True)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
