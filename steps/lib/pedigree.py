"""What a model's card and bill of materials say of where it comes from: base, teachers, data, code. From manifests.

No path, host or time is among it, so the same model has the same papers on any machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib.report_behind import nodes

LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "tokenizers", "numpy", "accelerate", "safetensors")
"""Of the versions in a manifest: those that are installed from PyPI."""
DATA = ("generate", "clean", "pairs", "badcases", "reference")
"""Steps that make data; the others make models."""


@dataclass(frozen=True)
class TeacherNote:
    """A teacher whose answers the model was trained on."""

    name: str
    model: str
    """Its model's id; empty where it is no model."""
    licence: str
    """What its answers may be used for, in the words of the configuration; empty: nobody wrote it down."""


@dataclass(frozen=True)
class Origin:
    """One artifact behind the model."""

    step: str
    key: str
    """``<step>/<12 digits>``."""
    digest: str
    """Of its content."""
    rows: Mapping[str, int]
    """Kind -> rows that came out."""
    inputs: tuple[str, ...]
    """Keys of what it was made from."""

    @property
    def is_data(self) -> bool:
        """Whether it is data, and not a model."""
        return self.step in DATA


@dataclass(frozen=True)
class Pedigree:
    """All of it."""

    base: str = ""
    """Hub id of the checkpoint that the line started from; empty where it started from random weights or a folder."""
    base_revision: str = ""
    base_digest: str = ""
    """Output digest of the artifact of base."""
    teachers: tuple[TeacherNote, ...] = ()
    origins: tuple[Origin, ...] = ()
    """Each after those that it was made from."""
    versions: tuple[tuple[str, str], ...] = ()
    """Library -> version that made the last artifact."""
    code: str = ""
    """Commit of the code that made the last artifact, with ``+dirty`` where files were changed."""
    seed: int | None = None

    @classmethod
    def of(cls, manifests: Iterable[Mapping[str, Any]]) -> Pedigree:
        """From the manifests of a policy and of all that it was made from (``artifact.lineage``), in any order."""
        known = {str(manifest["key"]): manifest for manifest in manifests}
        order = nodes(known.values())
        full = {f"{key.partition('/')[0]}/{key.partition('/')[2][:12]}": manifest for key, manifest in known.items()}
        origins = tuple(
            Origin(node.step, node.key, str(full[node.key].get("digest", "")), node.rows, tuple(node.inputs))
            for node in order
        )
        by_step = {node.step: full[node.key] for node in order}
        last = full[order[-1].key] if order else {}
        base = by_step.get("base", {}).get("config", {})
        path = str(base.get("path", "")) if base.get("kind", "checkpoint") == "checkpoint" else ""
        on_hub = bool(path) and hub_id(path) == path
        return cls(
            base=path if on_hub else "",
            base_revision=str(base.get("revision") or "") if on_hub else "",
            base_digest=str(by_step.get("base", {}).get("digest", "")),
            teachers=tuple(
                TeacherNote(str(one["name"]), hub_id(str(one.get("model") or "")), str(one.get("license") or ""))
                for one in by_step.get("generate", {}).get("config", {}).get("teachers", ())
            ),
            origins=origins,
            versions=tuple((name, str(version)) for name, version in sorted(last.get("versions", {}).items())),
            code=str(last.get("git", "")),
            seed=last.get("parts", {}).get("seed"),
        )


def hub_id(name: str) -> str:
    """A model's name without the place where it lies: a hub id stays, of a path the last part is left."""
    if not name or (re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.startswith(".") and not Path(name).exists()):
        return name
    return Path(name).name
