"""Reading a registry: which versions and aliases there are, and whether all of it is as it was registered."""

from __future__ import annotations

import re
from pathlib import Path

from steps.lib import registry_versions, signing
from steps.lib.errors import ArtifactError, ConfigError
from steps.lib.events import CHAMPION, EventLog, History
from steps.lib.registry_versions import VERSIONS, Version
from steps.lib.signing import SigningConfig


class RegistryReader:
    """A folder of models.

    Args:
        root: the folder, on a local disk; made when something is registered.
        actor: who is recorded in events.
        signing: keys that sign new versions, and that all must be signed with.

    Raises:
        ConfigError: the root is an URL.
    """

    def __init__(self, root: Path, actor: str = "prefline", signing: SigningConfig | None = None) -> None:
        if re.match(r"[a-z0-9]{2,}:/", str(root)):
            raise ConfigError(
                f"registry {root} is wrong: got an URL, because an alias is claimed by a hard link, which "
                "object stores do not have; give a folder on a local disk (a mirror may be anywhere)"
            )
        self.root, self.actor, self.signing = root, actor, signing or SigningConfig()

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
        folder = self.home(name) / VERSIONS / version
        return registry_versions.read(folder, known[version], retired=version in history.retired())

    def champion(self, name: str) -> Version | None:
        """The champion, or None before the first promotion."""
        return self.resolve(name, CHAMPION) if CHAMPION in self.history(name).aliases() else None

    def versions(self, name: str) -> list[Version]:
        """Every registered version, oldest first; retired ones, too."""
        return [self.resolve(name, version) for version in self.history(name).registered()]

    def withdrawn(self, name: str) -> set[str]:
        """Digests of policies whose last move was a rollback away from them, whichever versions of them that were.

        The same policy with another report is another version: a person's rollback counts for it, too.
        """
        gone: set[str] = set()
        policies = {version.name: str(version.facts.get("policy", "")) for version in self.versions(name)}
        for event in self.history(name).events:
            if event.alias == CHAMPION:
                gone.discard(policies.get(event.after, ""))
                if event.action == "rollback" and event.before:
                    gone.add(policies[event.before])
        return gone

    def models(self) -> list[str]:
        """Names of the models that have events."""
        return sorted(path.parent.name for path in self.root.glob("*/events"))

    def verify(self, name: str, version: str) -> Version:
        """Read every byte of a version and of the base kept for it, compare them with their manifests, and check the signature.

        Raises:
            ArtifactError: unknown or retired, not signed as it must be, or a file differs, is missing, or should not be there.
        """
        found = self.resolve(name, version)
        live(name, found.name, self.history(name))
        if wrong := registry_versions.damage(found):
            raise ArtifactError(
                f"version {version} of {name} is damaged: got other content in {', '.join(wrong)}, "
                f"because somebody changed {found.folder}; restore the folder from a copy"
            )
        if self.signing.trusted:
            signing.check(found, self.signing.trusted)
        return found

    def problems(self, name: str) -> list[str]:
        """All that is wrong with a model's part of the registry: chain, versions, bases, signatures. Every byte is read."""
        try:
            history = self.history(name)
        except ArtifactError as error:
            return [str(error)]
        found: list[str] = []
        for version in history.registered():
            try:
                if version in history.retired():
                    wrong = registry_versions.damage(self.resolve(name, version))
                    found += [f"retired version {version}: other content in {', '.join(wrong)}"] if wrong else []
                else:
                    self.verify(name, version)
            except ArtifactError as error:
                found.append(str(error))
        gone = history.retired()
        found += [
            f"alias {alias} is at {one}, which is retired" for alias, one in history.aliases().items() if one in gone
        ]
        return found

    def history(self, name: str) -> History:
        """The events of a model, checked.

        Raises:
            ArtifactError: a number is missing, an event does not parse, or a hash does not fit.
        """
        return self._log(name).read()

    def home(self, name: str) -> Path:
        """Folder of a model.

        Raises:
            ArtifactError: the name is none.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
            raise ArtifactError(
                f"model name {name!r} is wrong: got other characters than a-z 0-9 . _ -, because it "
                "becomes a folder; choose such a name"
            )
        return self.root / name

    def _log(self, name: str) -> EventLog:
        return EventLog(self.home(name) / "events", self.actor)


def live(name: str, version: str, history: History) -> None:
    """Check that a version has its weights.

    Raises:
        ArtifactError: it is retired.
    """
    if version in history.retired():
        raise ArtifactError(
            f"version {version} of {name} is retired: got no weights, because nothing needed it when the registry was pruned; name "
            "another version, or run the line again, which registers it anew"
        )
