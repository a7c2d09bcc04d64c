"""The parts of a key, one by one, and which of them differ between two artifacts of a step.

The names are those that a person writes: ``dpo.beta`` for a value of the configuration, ``seed``, ``VERSION``, ``input policy`` for
the output of an earlier step, ``external NAME`` for a file that the step reads from outside the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from steps.lib.artifact import Artifact

PLACES = ("path", "hub", "model")
"""Fields of a section that say where something lies."""


@dataclass(frozen=True)
class Part:
    """One part of a key."""

    name: str
    value: Any
    note: str = ""
    """What the value is a digest of: the key of an earlier step, or a file."""


@dataclass(frozen=True)
class Change:
    """A part that differs. None on one side: the part is not there."""

    name: str
    old: Part | None
    new: Part | None


def parts_of(artifact: Artifact) -> list[Part]:
    """The parts of an artifact's key, as its manifest has them; none for an artifact that was not made by a step."""
    manifest = artifact.manifest
    inputs = {name: entry["key"] for name, entry in manifest.get("inputs", {}).items()}
    return list(flat(manifest.get("parts", {}), inputs, manifest.get("config", {})))


def flat(parts: Mapping[str, Any], inputs: Mapping[str, str], config: Mapping[str, Any]) -> Iterator[Part]:
    """The parts of a key one by one.

    Args:
        parts: ``Spec.parts``, or the same from a manifest.
        inputs: name of an input -> key of its artifact.
        config: the whole resolved section, with the fields that are in no key: it says where files lie.
    """
    if not parts:
        return
    yield Part("VERSION", parts["version"])
    yield Part("seed", parts["seed"])
    for name, digest in parts["inputs"].items():
        yield Part(f"input {name}", digest, inputs.get(name, ""))
    for name, identity in parts["externals"].items():
        yield Part(f"external {name}", identity, _place(name, config))
    for name, section in parts["config"].items():
        for path, value in _leaves(f"{parts['step']}.{name}", section):
            yield Part(path, value)


def differences(old: Iterable[Part], new: Iterable[Part]) -> list[Change]:
    """What differs, in the order of the new parts; then what is only in the old ones."""
    before, now = {part.name: part for part in old}, {part.name: part for part in new}
    names = [*now, *(name for name in before if name not in now)]
    found = (Change(name, before.get(name), now.get(name)) for name in names)
    return [change for change in found if not _same(change.old, change.new)]


def nearest(new: Iterable[Part], others: Iterable[Artifact]) -> tuple[Artifact, list[Change]] | None:
    """The artifact with the fewest differing parts, of those the newest, and what differs; None when there is none."""
    now = list(new)
    best: tuple[int, str] | None = None
    found: tuple[Artifact, list[Change]] | None = None
    for artifact in others:
        old = parts_of(artifact)
        changes = differences(old, now)
        if not old or not changes:
            continue
        finished = str(artifact.manifest.get("finished", ""))
        if best is None or len(changes) < best[0] or (len(changes) == best[0] and finished > best[1]):
            best, found = (len(changes), finished), (artifact, changes)
    return found


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted path and value of every leaf; an empty list or mapping is a leaf."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)) and value:
        for index, item in enumerate(value):
            yield from _leaves(f"{name}[{index}]", item)
    else:
        yield name, value


def _same(old: Part | None, new: Part | None) -> bool:
    """Whether a part counts as the same in a key: 1, 1.0 and true are three values there."""
    return old is not None and new is not None and type(old.value) is type(new.value) and old.value == new.value


def _place(external: str, config: Mapping[str, Any]) -> str:
    """Where a thing from outside lies, as far as the configuration tells; "" where it does not."""
    own = external.replace("/", " ").split()[-1]
    for section in _sections(config):
        if "prompt" in external.split() and "prompt_file" in section:
            return str(section["prompt_file"])
        if "prompt" not in external.split() and section.get("name") == own:
            return next((str(section[field]) for field in PLACES if section.get(field)), "")
    plain = config.get(external, config.get("path") if external == "checkpoint" else "")
    return plain if isinstance(plain, str) else ""


def _sections(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        for item in value.values():
            yield from _sections(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _sections(item)
