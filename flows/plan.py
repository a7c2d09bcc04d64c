"""The line in look-only mode: what a run would find, and why. Nothing is launched, locked or written; no prefect here.

The walk is that of ``flows.line``, with another ``make``. The output of a step that is not there is not known, so neither are the
keys behind it: those steps wait.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from flows.line import STEPS, AlignConfig, line
from steps.lib.artifact import Artifact
from steps.lib.code import changed
from steps.lib.config import Section, layers_of, load
from steps.lib.errors import ArtifactError, ConfigError, PreflineError
from steps.lib.locks import Holder, holder
from steps.lib.objects import Trouble
from steps.lib.partials import Progress, progress, written
from steps.lib.parts import Change, Part, flat, nearest, parts_of
from steps.lib.step import Spec
from steps.lib.store import Store, lock_of
from steps.lib.stores import open_store

if TYPE_CHECKING:
    from flows.engine import Plan

State = Literal["done", "changed code", "partial", "running", "stale", "missing", "damaged", "blocked", "waits"]
"""done: reused by a run. changed code: reused, too, but built by other code. partial: a run goes on from what lies there. running:
some process builds it. stale: the store has results of this step, but of other parts, or one that no longer holds. missing: the
store has none. damaged: a run sets it aside and builds it again. blocked: something from outside the store is missing. waits: a
step before it is not there."""
THERE = ("done", "changed code")


@dataclass(frozen=True)
class Look:
    """What there is of one step."""

    step: str
    state: State
    key: str | None = None
    """None while it is not known."""
    spec: Spec | None = None
    """None where only the artifact is known, or the key is not."""
    artifact: Artifact | None = None
    reason: str = ""
    """Why it is damaged, blocked, or no longer holds."""
    code: tuple[str, ...] = ()
    """Files of its code that changed since."""
    waits_for: tuple[str, ...] = ()
    """Steps that have to be built first, of those whose key is known."""
    holder: Holder | None = None
    progress: tuple[Progress, ...] = ()
    age: float | None = None
    """Seconds since the partial folder was last written."""
    config: Section | None = None
    """Of a step that waits; others have it in ``spec``."""

    @property
    def there(self) -> bool:
        """Whether a run would reuse it."""
        return self.state in THERE

    @property
    def parts(self) -> list[Part]:
        """The parts of its key; none while they are not known."""
        if self.spec is not None:
            inputs = {name: artifact.key for name, artifact in self.spec.inputs.items()}
            return list(flat(self.spec.parts, inputs, self.spec.config.model_dump(mode="json")))
        return parts_of(self.artifact) if self.artifact else []


@dataclass(frozen=True)
class Absent(Artifact):
    """Stands for the output of a step that is not there."""

    look: Look

    @classmethod
    def of(cls, look: Look) -> Absent:
        """The output that a look did not find."""
        return cls(Path(), {}, look)

    @property
    def roots(self) -> tuple[str, ...]:
        """Steps that have to be built before anything behind this one."""
        return self.look.waits_for or (self.look.step,)


@dataclass
class Looker:
    """The ``make`` of ``flows.line`` that only looks."""

    config: AlignConfig
    store: Store
    looks: list[Look] = field(default_factory=list)

    def __call__(self, step: ModuleType, config: Section | None, **inputs: Artifact | None) -> Artifact | None:
        """Look for one step; its artifact, or what stands for it."""
        if config is None:
            return None
        look = self._look(step, config, {name: one for name, one in inputs.items() if one is not None})
        self.looks.append(look)
        return look.artifact if look.there else Absent.of(look)

    def _look(self, module: ModuleType, config: Section, given: dict[str, Artifact]) -> Look:
        name = module.__name__.rpartition(".")[2]
        roots = {root for one in given.values() if isinstance(one, Absent) for root in one.roots}
        if roots:
            return Look(name, "waits", config=config, waits_for=tuple(step for step in STEPS if step in roots))
        spec = Spec(module, config, given, self.config.seed)
        try:
            key = spec.key()
        except PreflineError as error:
            return Look(name, "blocked", reason=str(error))
        artifact = self.store.look(key)
        if not isinstance(artifact, Artifact):
            return _not_there(self.store, key, spec, artifact)
        try:
            holds = getattr(module, "holds", None)
            reason = holds(config, artifact.path) if holds and artifact.path.exists() else None
        except PreflineError as error:
            return Look(name, "blocked", key, reason=str(error))
        return Look(name, "stale", key, spec, artifact, reason) if reason else _found(artifact, spec)


def walk(config: AlignConfig, store: Store) -> list[Look]:
    """Every step of a configuration, in order."""
    looker = Looker(config, store)
    line(looker, config)
    return looker.looks


def planned(config: AlignConfig, plan: Plan, store: Store) -> list[Look]:
    """The steps of a configuration that a run with the plan reaches, in order."""
    first, last = (STEPS.index(name) if name else None for name in (plan.start, plan.until))
    return [
        look
        for look in walk(config, store)
        if (first is None or STEPS.index(look.step) >= first) and (last is None or STEPS.index(look.step) <= last)
    ]


def opened(
    profile: str, recipe: list[Path] | None, overrides: tuple[str, ...] | list[str]
) -> tuple[AlignConfig, Store]:
    """The configuration that a command's words name, and its store.

    Raises:
        ConfigError: with every problem found.
    """
    config = load(AlignConfig, layers_of(profile, recipe or []), overrides).value
    return config, open_store(config.store, config.cache)


def split(words: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """A command's words: targets, and overrides, which have a ``=``."""
    return [word for word in words if "=" not in word], [word for word in words if "=" in word]


def differing(look: Look, store: Store) -> tuple[Artifact, list[Change]] | None:
    """The nearest earlier artifact of the step (a later one where there is none), and the parts that differ.

    None when the store has no other one, or the key is not known.
    """
    if not look.parts:
        return None
    others = [artifact for artifact in store.manifests(look.step) if artifact.key != look.key]
    built = look.artifact.manifest.get("finished") if look.artifact else None
    earlier = [artifact for artifact in others if not built or artifact.manifest.get("finished", "") <= built]
    return nearest(look.parts, earlier) or nearest(look.parts, others)


def resolve(word: str, config: AlignConfig, store: Store) -> Look:
    """What a step's name (the one of the configuration), a key, or the unique start of a key names.

    Raises:
        ConfigError: no such step or key, or several.
        ArtifactError: the store has no such artifact.
    """
    if word in STEPS:
        if getattr(config, word) is None:
            raise ConfigError(
                f"step {word} is left out: got {word}: null, because the profile or a recipe clears the section; set a field "
                "of it, or name another step"
            )
        return next(look for look in walk(config, store) if look.step == word)
    found = matching(word, store)
    if len(found) > 1:
        raise ConfigError(
            f"key {word} is not one artifact: got {len(found)} that begin so ({', '.join(found[:5])}), because it is too "
            "short; give more of it"
        )
    if not found:
        coming = [look for look in walk(config, store) if look.key and _begins(look.key, word)]
        if len(coming) == 1:
            return coming[0]
        raise ArtifactError(
            f"artifact {word} is not in the store {store.name}: got no key that begins so, because it was never built here, or "
            f"was collected; give a step ({', '.join(STEPS)}) or a key that `prefline status` shows"
        )
    return look_at(found[0], store)


def matching(word: str, store: Store) -> list[str]:
    """Keys of the store that begin so: ``sft/1a2b`` or ``1a2b``; a step's name gives all of its artifacts."""
    step, slash, _ = word.partition("/")
    if word in STEPS:
        return list(store.keys(word))
    return [key for key in store.keys(step if slash else None) if _begins(key, word)]


def look_at(key: str, store: Store) -> Look:
    """An artifact that the store seems to have."""
    found = store.look(key)
    if isinstance(found, Artifact):
        return _found(found, None)
    return Look(key.partition("/")[0], "damaged", key, reason=found or "nothing any more")


@contextmanager
def reaching(store: Store) -> Iterator[None]:
    """What keeps a store from being read or written is an error with a message, not a traceback."""
    try:
        yield
    except Trouble as error:
        raise ArtifactError(str(error)) from error
    except OSError as error:
        raise ArtifactError(
            f"store {store.name} cannot be read or written: got {error}, because of its permissions or its disk; mend that, or "
            "name another store (store=FOLDER)"
        ) from error


def ago(seconds: float) -> str:
    """A time in words: ``40 s``, ``12 min``, ``3 h``, ``5 d``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def short(key: str) -> str:
    """A key with the first 12 digits of its hash."""
    step, _, digest = key.partition("/")
    return f"{step}/{digest[:12]}"


def _begins(key: str, word: str) -> bool:
    return key.startswith(word) if "/" in word else key.partition("/")[2].startswith(word)


def _found(artifact: Artifact, spec: Spec | None) -> Look:
    step = artifact.key.partition("/")[0]
    known = artifact.manifest.get("code")
    code = tuple(changed(f"steps.{step}", known)) if known and step in STEPS else ()
    return Look(step, "changed code" if code else "done", artifact.key, spec, artifact, code=code)


def _not_there(store: Store, key: str, spec: Spec, problem: str | None) -> Look:
    partial = store.partial(key)
    with reaching(store):
        held = holder(store.place, lock_of(key))
    begun = partial.is_dir() and any(partial.iterdir())
    far = tuple(progress(partial, spec)) if begun else ()
    age = time.time() - written(partial) if begun else None
    if held:
        return Look(spec.name, "running", key, spec, holder=held, progress=far, age=age)
    if problem:
        return Look(spec.name, "damaged", key, spec, reason=problem)
    if begun:
        return Look(spec.name, "partial", key, spec, progress=far, age=age)
    others = next(iter(store.keys(spec.name)), None)
    return Look(spec.name, "stale" if others else "missing", key, spec)
