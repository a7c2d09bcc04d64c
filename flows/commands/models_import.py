"""``prefline models import``: a version of another registry becomes one of this, with its base, evaluation and verdict."""

from __future__ import annotations

from pathlib import Path

from flows.commands.models import By, Folder, Name, opened
from flows.commands.words import Overrides, Profile, Recipe, terminal


def import_(
    source: Path,
    *overrides: Overrides,
    name: Name = None,
    folder: Folder = None,
    by: By = None,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
) -> None:
    """Take a version over from another registry. It is checked there and again here, and no alias moves.

    Parameters
    ----------
    source
        Folder of the version: REGISTRY/NAME/versions/vNNNN-1a2b...
    """
    import shutil
    import tempfile

    from steps.lib import models
    from steps.lib.errors import ArtifactError
    from steps.lib.registry import Registry
    from steps.lib.registry_files import MANIFEST, SIGNATURE

    source = source.resolve()
    root = source.parent.parent.parent
    if source.parent.name != "versions" or not (source / MANIFEST).is_file():
        raise ArtifactError(
            f"folder {source} cannot be imported: got no version of a registry, because only those have a manifest that tells what "
            "is in them; give REGISTRY/NAME/versions/VERSION, or make the model the base of a line (base.path)"
        )
    registry, model = opened(name, folder, overrides, profile, recipe, by)
    theirs = Registry(root).verify(source.parent.parent.name, source.name)
    with tempfile.TemporaryDirectory(prefix="prefline-import-") as scratch:
        staged = Path(scratch) / "version"
        shutil.copytree(source, staged, symlinks=True, ignore=shutil.ignore_patterns(MANIFEST, SIGNATURE))
        ours = registry.register(model, staged, facts=theirs.facts, base=models.base_of(source))
    terminal(1000).print(f"{source} -> {ours.name} of {model} in {registry.root}", markup=False)
