"""``prefline models export``: a version as plain transformers or PEFT loads it."""

from __future__ import annotations

from pathlib import Path

from flows.commands.models import Folder, Name, Which, found, opened
from flows.commands.words import Json, Overrides, Profile, Recipe, print_json, terminal
from steps.lib.export import Dtype


def export(
    which: Which = "champion",
    *overrides: Overrides,
    out: Path,
    merged: bool = False,
    dtype: Dtype = "base",
    base: str = "",
    name: Name = None,
    folder: Folder = None,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    json: Json = False,
) -> None:
    """Write a version to a new folder, with its tokenizer, chat template, generation settings and papers.

    It is checked before and after: every byte of the version, and, merged, the answers of what was written.

    Parameters
    ----------
    out
        The new folder.
    merged
        Put the adapter into its base: one folder that transformers, vLLM and others load without PEFT.
    dtype
        Type of merged weights; base: that of the base's own files.
    base
        What an adapter that is not merged names as its base: a hub id (org/name@revision) or a folder. Without it, where the base
        lies on this machine, or its id on the hub.
    """
    from steps.lib import runtime
    from steps.lib.export import export as write

    runtime.hush(bars=False)
    registry, model = opened(name, folder, overrides, profile, recipe)
    version = registry.verify(model, found(registry, model, which).name)
    facts = {"name": model, "version": version.name, "manifest_sha256": version.digest}
    done = write(version.folder, out, merged=merged, dtype=dtype, base=base, facts=facts)
    if json:
        print_json({**vars(done), "folder": str(done.folder), **facts})
        return
    kind = f"whole weights in {done.dtype}" if done.merged else f"adapter on {done.base}"
    terminal(1000).print(f"{version.name} of {model} -> {done.folder}: {kind}, digest {done.digest[:12]}", markup=False)
