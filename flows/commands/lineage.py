"""``prefline lineage``: what a model, or any artifact, was made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.commands.words import Overrides, Profile, Recipe, print_json, terminal

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from steps.lib.store import Store


def lineage(
    target: str,
    *overrides: Overrides,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    alias: str = "champion",
    json: bool = False,
) -> None:
    """Show the chain behind an artifact as a tree: each once, with the rows that came out and the digest.

    Parameters
    ----------
    target
        A step (the one of this configuration), a key, the start of a key such as sft/1a2b, or the name of a model in the registry.
    alias
        Alias or version, where the target is a model of the registry.
    json
        The nodes as JSON, the target first.
    """
    from flows.line import STEPS
    from flows.plan import opened, resolve
    from steps.lib.errors import ArtifactError
    from steps.promote import PromoteConfig

    config, store = opened(profile, recipe, overrides)
    head = ""
    registry = (config.promote or PromoteConfig()).registry
    named = (registry / target / "events").is_dir() or target.strip("0123456789abcdef")  # else the start of a key
    if target not in STEPS and "/" not in target and named:
        key, head = _registered(target, alias, registry, store)
    else:
        look = resolve(target, config, store)
        if look.artifact is None:
            raise ArtifactError(
                f"{look.key or look.step} has no lineage yet: got state {look.state}, because it was not built; build it "
                f"(prefline step {look.step} --upstream), or see `prefline why {look.step}`"
            )
        key = look.artifact.key
    manifests = behind(key, store)
    if json:
        print_json([_node(one, manifest) for one, manifest in manifests.items()])
        return

    console = terminal(1000)
    if head:
        console.print(head)
    console.print(_tree(key, manifests))


def behind(key: str, store: Store) -> dict[str, dict[str, Any] | None]:
    """Manifests of an artifact and of all that it was made from, itself first; None for one that the store has no more."""
    from steps.lib.artifact import Artifact

    found: dict[str, dict[str, Any] | None] = {}
    waiting = [key]
    while waiting:
        one = waiting.pop(0)
        if one in found:
            continue
        artifact = store.look(one)
        manifest = artifact.manifest if isinstance(artifact, Artifact) else None
        found[one] = manifest
        waiting += [entry["key"] for entry in manifest["inputs"].values()] if manifest else []
    return found


def _registered(name: str, alias: str, folder: Path, store: Store) -> tuple[str, str]:
    """Key of the artifact behind a registered version, and a line on that version."""
    from flows.line import STEPS
    from steps.lib.errors import ArtifactError
    from steps.lib.registry import Registry

    models = sorted(path.parent.name for path in folder.glob("*/events"))
    if name not in models:
        raise ArtifactError(
            f"model {name} is not in the registry {folder}: got {', '.join(models) or 'no model there'}, because it was never "
            f"registered, or the configuration names another registry; give one of these, a step ({', '.join(STEPS)}), or a key"
        )
    version = Registry(folder).resolve(name, alias)
    policy = version.facts["policy"]
    same = [artifact for artifact in store.artifacts() if artifact.digest == policy]
    if not same:
        raise ArtifactError(
            f"version {version.name} of {name} has no artifact in the store {store.name}: got none with digest {policy[:12]}, "
            "because it was built in another store, or was collected; its files are in the registry all the same: "
            f"{version.folder}"
        )
    newest = max(same, key=lambda artifact: str(artifact.manifest.get("finished", "")))
    called = f"{alias} of {name} is version {version.name}" if alias != version.name else f"version {alias} of {name}"
    return newest.key, called


def _tree(key: str, manifests: dict[str, dict[str, Any] | None]) -> Tree:
    from rich.tree import Tree

    root = Tree(_label(key, manifests[key], ""))
    seen = {key}

    def grow(branch: Tree, one: str) -> None:
        manifest = manifests[one]
        inputs = (manifest["inputs"] if manifest else {}).items()
        for name, entry in sorted(
            inputs, key=lambda pair: (pair[0] not in ("policy", "base"), pair[0])
        ):  # the model first
            above, again = entry["key"], entry["key"] in seen
            seen.add(above)
            leaf = branch.add(_label(above, manifests[above], name, again=again))
            if not again:
                grow(leaf, above)

    grow(root, key)
    return root


def _label(key: str, manifest: dict[str, Any] | None, name: str, *, again: bool = False) -> Text:
    from rich.text import Text

    from flows.plan import short

    label = Text.assemble((f"{name}: " if name else "", "dim"), (short(key), "bold"))
    if again:
        return label.append("  (above)", style="dim")
    if manifest is None:
        return label.append("  (not in the store any more)", style="red")
    rows = ", ".join(f"{count:,} {kind}" for kind, count in manifest.get("rows", {}).get("out", {}).items())
    return label.append(f"  {manifest['digest'][:12]}", style="dim").append(f"  {rows}" if rows else "")


def _node(key: str, manifest: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "key": key,
        "step": key.partition("/")[0],
        "digest": manifest["digest"] if manifest else None,
        "rows": manifest.get("rows", {}).get("out", {}) if manifest else None,
        "inputs": {name: entry["key"] for name, entry in manifest["inputs"].items()} if manifest else None,
    }
