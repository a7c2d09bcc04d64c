"""``prefline show``: an artifact's manifest for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.commands.words import Overrides, Profile, Recipe, Target, print_json, table, terminal

if TYPE_CHECKING:
    from rich.console import Console

    from steps.lib.artifact import Artifact
    from steps.lib.excerpts import Excerpt


SAMPLES = 5
"""Prompts that are shown where --flag or --dropped asks for some and --samples does not say how many."""


def show(
    target: Target,
    *overrides: Overrides,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    samples: int | None = None,
    flag: str | None = None,
    dropped: bool = False,
    reason: str | None = None,
    kind: str | None = None,
    limit: int | None = None,
    json: bool = False,
) -> None:
    """Show an artifact: folder, state, metrics, rows, inputs, files, and where and how it was made; of generate also samples.

    With --dropped, of clean: only the rows that it dropped.

    Parameters
    ----------
    samples
        Of generate: so many prompts, spread over all, with their answers side by side.
    flag
        Only prompts with an answer that has this flag (steps/lib/marks.py), or, with --dropped, this reason.
    dropped
        Of generate: samples of what was dropped, as it came. Of other steps: the dropped rows, and why each was dropped.
    reason
        With --dropped: only rows with this reason.
    kind
        With --dropped, not of generate: only rows of this kind: documents, prompts, chats, pairs, thumbs, candidates.
    limit
        With --dropped, not of generate: so many rows, from the first on.
    json
        The whole manifest as JSON, with folder, state and size, and the samples asked for. With --dropped, not of generate: a line
        of JSON for each row, with its whole text.
    """
    from flows.commands.samples import print_samples
    from flows.commands.status import note
    from flows.plan import opened, resolve
    from steps.lib.errors import ArtifactError, ConfigError

    config, store = opened(profile, recipe, overrides)
    look = resolve(target, config, store)
    artifact = look.artifact
    if artifact is None:
        raise ArtifactError(
            f"artifact of {look.key or look.step} cannot be shown: got state {look.state}, because "
            f"{note(look, store) or 'it was not built yet'}; build it (prefline step {look.step} --upstream), or see "
            f"`prefline why {look.step}`"
        )
    if (reason, kind, limit) != (None, None, None) and (not dropped or look.step == "generate"):
        raise ConfigError(
            "--reason, --kind and --limit cannot be used here: got no --dropped, or generate, because they choose among dropped "
            "rows; ask with `prefline show clean --dropped --reason R`, of generate with `--dropped --flag R`"
        )
    if dropped and look.step != "generate" and samples is None and flag is None:
        _dropped(store.fetch(artifact, alone=True), reason, kind, limit, json)
        return
    number = samples if samples is not None else SAMPLES if flag or dropped else 0
    found, matching = (
        _samples(look.step, store.fetch(artifact, alone=True), number, flag, dropped) if number else ([], 0)
    )
    if json:
        facts = {
            "folder": str(artifact.path),
            "state": look.state,
            "code_changed": list(look.code),
            "size": artifact.size,
        }
        shown = {"samples": [one.page() for one in found], "samples_of": matching} if number else {}
        print_json({**facts, **artifact.manifest, **shown})
        return

    state = f"{look.state}: {', '.join(look.code)}" if look.code else f"{look.state} {look.reason}".strip()
    console = terminal()
    _facts(console, artifact, state)
    _inputs(console, artifact.manifest)
    _figures(console, artifact.manifest)
    _rows(console, artifact.manifest.get("rows", {}))
    _files(console, artifact)
    if number:
        kind = "prompts with dropped answers" if dropped else "prompts"
        print_samples(console, found, matching, f"{kind} ({flag})" if flag else kind)


def _dropped(artifact: Artifact, reason: str | None, kind: str | None, limit: int | None, lines: bool) -> None:
    from json import dumps

    from flows.commands.dropped import LIMIT, dropped, print_dropped

    rows, counts = dropped(artifact, reason, kind, LIMIT if limit is None else limit, whole=lines)
    if not lines:
        print_dropped(terminal(), rows, counts, reason)
    for row in rows if lines else ():
        print(dumps(row.page(), ensure_ascii=False))


def _samples(step: str, artifact: Artifact, number: int, flag: str | None, dropped: bool) -> tuple[list[Excerpt], int]:
    from steps.lib.errors import ConfigError
    from steps.lib.excerpts import excerpts

    if step != "generate" or number < 0:
        what = f"--samples {number}" if number < 0 else f"an artifact of {step}"
        raise ConfigError(
            f"samples cannot be shown: got {what}, because they are prompts with the answers of teachers, counted from 1; ask for "
            "them with `prefline show generate --samples 5`"
        )
    return excerpts(artifact.path, number, flag=flag, dropped=dropped)


def _facts(console: Console, artifact: Artifact, state: str) -> None:
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    manifest = artifact.manifest
    versions = manifest.get("versions", {})
    facts = {
        "key": artifact.key,
        "state": state,
        "folder": str(artifact.path),
        "digest": artifact.digest,
        "size": f"{decimal(artifact.size)} in {len(manifest['files'])} files",
        "built": " ".join(str(manifest[name]) for name in ("finished", "host") if manifest.get(name)),
        "took": f"{manifest.get('seconds', 0):,.1f} s",
        "tokens": f"{manifest.get('tokens', 0):,}",
        "cost": f"{manifest.get('cost', 0):,.4f} USD",
        "code": manifest.get("git", ""),
        "versions": "  ".join(f"{name} {version}" for name, version in versions.items()),
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        if fact:
            table.add_row(name, Text(fact))
    console.print(table)


def _inputs(console: Console, manifest: dict[str, Any]) -> None:
    from rich.text import Text

    if not manifest["inputs"]:
        return
    grid = table("input", "artifact", "digest")
    for name, entry in manifest["inputs"].items():
        grid.add_row(Text(name), Text(entry["key"]), Text(entry["digest"][:12]))
    console.print(grid)


def _figures(console: Console, manifest: dict[str, Any]) -> None:
    from rich.text import Text

    if not manifest.get("metrics"):
        return
    grid = table("metric", "value", right=("value",))
    for name, value in manifest["metrics"].items():
        grid.add_row(Text(str(name)), Text(str(value)))
    console.print(grid)


def _rows(console: Console, rows: dict[str, Any]) -> None:
    """In, out and dropped by reason."""
    from rich.text import Text

    if not any(rows.values()):
        return
    grid = table("rows", "kind", "count", right=("count",))
    for word, name in (("in", "in"), ("out", "out")):
        for kind, count in rows[name].items():
            grid.add_row(word, Text(kind), f"{count:,}")
    for kind, reasons in rows["dropped"].items():
        for reason, count in reasons.items():
            grid.add_row("dropped", Text(f"{kind}: {reason}"), f"{count:,}")
    console.print(grid)


def _files(console: Console, artifact: Artifact) -> None:
    from rich.filesize import decimal
    from rich.text import Text

    grid = table("file", "size", "sha256", right=("size",))
    for name, facts in artifact.manifest["files"].items():
        grid.add_row(Text(name), decimal(facts["size"]), facts["sha256"][:12])
    console.print(grid)
