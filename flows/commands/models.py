"""``prefline models``: versions of a model in the registry, what is known of each, and whether all is as it was registered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from flows.commands.words import Json, Overrides, Profile, Recipe, print_json, table, terminal

if TYPE_CHECKING:
    from rich.console import Console

    from steps.lib.registry import Registry, Version

DAMAGED = 5
"""Exit code when something of the registry is damaged: that of ArtifactError."""

Name = Annotated[str | None, Parameter(help="Name of the model; promote.name of the configuration without it.")]
Folder = Annotated[
    Path | None, Parameter(help="Folder of the registry; promote.registry of the configuration without it.")
]
By = Annotated[str | None, Parameter(help="Who is recorded in the log; your login name without it.")]
Which = Annotated[str, Parameter(help="A version (v0003-1a2b...), the start of one (v0003), or an alias (champion).")]


def list_(
    *overrides: Overrides,
    name: Name = None,
    folder: Folder = None,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    json: Json = False,
) -> None:
    """List the versions of a model, oldest first: aliases, when and by whom it was registered, verdict, policy and size."""
    from rich.filesize import decimal
    from rich.text import Text

    registry, model = opened(name, folder, overrides, profile, recipe)
    pages = [_summary(registry, model, version) for version in known(registry, model)]
    if json:
        print_json(pages)
        return
    grid = table("version", "alias", "registered", "by", "model", "verdict", "policy", "size", right=("size",))
    for page in pages:
        size = "retired" if page["retired"] else decimal(page["size"])
        names = ", ".join(page["aliases"])
        facts = (page["registered"], page["by"], page["model"], page["verdict"] or "-", page["policy"][:12])
        grid.add_row(Text(page["version"], style="bold" if names else ""), Text(names), *map(Text, facts), Text(size))
    terminal().print(grid)


def show(
    which: Which = "champion",
    *overrides: Overrides,
    name: Name = None,
    folder: Folder = None,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    json: Json = False,
) -> None:
    """Show a version: verdict with reasons, figures with intervals, digests, files, and every event that names it."""
    registry, model = opened(name, folder, overrides, profile, recipe)
    version = found(registry, model, which)
    events = [
        event.model_dump(by_alias=True)
        for event in registry.history(model).events
        if version.name in (event.before, event.after)
    ]
    page = {
        **_summary(registry, model, version),
        "folder": str(version.folder),
        "digest": version.digest,
        "facts": version.facts,
        "base": version.manifest.get("base"),
        "reasons": _verdict(version).get("reasons", []),
        "figures": figures(version),
        "files": version.manifest["files"],
        "events": events,
    }
    if json:
        print_json(page)
        return
    console = terminal()
    _facts(console, page)
    _figures(console, page["figures"])
    _events(console, events)


def verify(
    *which: str,
    name: Name = None,
    folder: Folder = None,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    json: Json = False,
) -> int:
    """Read every byte of versions and their bases, check the chain of events and the signatures.

    Exit code: 0 when all is as it was registered, 5 when something is not, others for errors.

    Parameters
    ----------
    which
        Versions, starts of versions or aliases; without any: every model of the registry, or that of --name. A word with "=" is
        an override.
    """
    from flows.plan import split
    from steps.lib.errors import ArtifactError

    words, overrides = split(which)
    registry, model = opened(name, folder, overrides, profile, recipe)
    problems: list[str] = []
    checked = 0
    if words:
        for word in words:
            try:
                registry.verify(model, found(registry, model, word).name)
            except ArtifactError as error:
                problems.append(str(error))
            checked += 1
    else:
        for one in [model] if name else registry.models():
            problems += (wrong := registry.problems(one))
            checked += len(registry.history(one).registered()) if not wrong else 0
    if json:
        print_json({"registry": str(registry.root), "whole": not problems, "problems": problems})
    else:
        console = terminal()
        for problem in problems:
            console.print(problem, style="red", markup=False)
        state = f"{len(problems)} problems" if problems else f"{checked} versions are whole"
        console.print(f"{registry.root}: {state}", markup=False)
    return DAMAGED if problems else 0


def opened(
    name: str | None,
    folder: Path | None,
    overrides: tuple[str, ...] | list[str],
    profile: str,
    recipe: list[Path] | None,
    by: str | None = None,
) -> tuple[Registry, str]:
    """The registry and the model that words of the command line name, or the configuration does.

    Raises:
        ConfigError: a word is wrong.
    """
    from steps.lib.registry import Registry

    if name is None or folder is None or overrides:
        from flows.line import AlignConfig
        from steps.lib.config import layers_of, load
        from steps.promote import PromoteConfig

        gate = load(AlignConfig, layers_of(profile, recipe or []), overrides).value.promote or PromoteConfig()
        name, folder = name or gate.name, folder or gate.registry
    return Registry(folder, actor=by or _login()), name


def found(registry: Registry, model: str, word: str) -> Version:
    """The version that a word names: an alias, a version, or the start of one.

    Raises:
        ArtifactError: none, or several.
    """
    from steps.lib.errors import ArtifactError

    history = registry.history(model)
    if not history.events:
        raise ArtifactError(
            f"model {model} is not in the registry {registry.root}: got {', '.join(registry.models()) or 'no model there'}, "
            "because nothing was registered under this name; run the line (prefline run), or give --name or --folder"
        )
    same = [] if word in history.aliases() else [one for one in history.registered() if one.startswith(word)]
    if word[:1] != "v" or len(same) < 2:
        return registry.resolve(model, same[0] if len(same) == 1 and word else word)
    raise ArtifactError(
        f"version {word} of {model} is not one: got {len(same)} that begin so ({', '.join(same[:5])}), because it is too short; "
        "give more of it"
    )


def known(registry: Registry, model: str) -> list[Version]:
    """Every version of a model, oldest first.

    Raises:
        ArtifactError: the registry has no such model.
    """
    if not registry.history(model).events:
        found(registry, model, "")  # tells which there are
    return registry.versions(model)


def figures(version: Version) -> list[dict[str, Any]]:
    """Figures of its own model in the evaluation that the version was registered with."""
    import json

    path = version.folder / "eval" / "report.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"figures": []}
    own = [one for one in report["figures"] if one["model"] == version.facts.get("model")]
    return [{**{key: one[key] for key in ("name", "unit", "better")}, **one["interval"]} for one in own]


def _summary(registry: Registry, model: str, version: Version) -> dict[str, Any]:
    history = registry.history(model)
    event = next(one for one in history.events if one.action == "register" and one.after == version.name)
    return {
        "name": model,
        "version": version.name,
        "aliases": sorted(alias for alias, at in history.aliases().items() if at == version.name),
        "registered": event.ts,
        "by": event.actor,
        "model": str(version.facts.get("model", "")),
        "policy": str(version.facts.get("policy", "")),
        "verdict": str(_verdict(version).get("verdict", "")),
        "rolled_back": version.name in history.rolled_back(),
        "retired": version.retired,
        "size": version.size,
    }


def _verdict(version: Version) -> dict[str, Any]:
    import json

    path = version.folder / "eval" / "verdict.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _facts(console: Console, page: dict[str, Any]) -> None:
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    base = page["base"] or {}
    where = (
        f"{base['id']}@{base['revision']}" if base.get("id") else f"bases/{base['stored']}" if "stored" in base else ""
    )
    told = {
        "version": page["version"],
        "alias": ", ".join(page["aliases"]) or ("rolled back" if page["rolled_back"] else "none"),
        "folder": page["folder"],
        "size": f"{decimal(page['size'])} in {len(page['files'])} files{', retired' if page['retired'] else ''}",
        "digest": page["digest"],
        **{key: str(value) for key, value in page["facts"].items()},
        "base lies": where,
        "verdict": page["verdict"],
        **{f"reason {place}": reason for place, reason in enumerate(page["reasons"], 1)},
    }
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in told.items():
        if value:
            grid.add_row(key, Text(value))
    console.print(grid)


def _figures(console: Console, found: list[dict[str, Any]]) -> None:
    from rich.text import Text

    if not found:
        return
    grid = table("figure", "value", "interval", "n", "unit", "better", right=("value", "n"))
    for one in found:
        ends = f"{one['low']:.4g} to {one['high']:.4g}"
        texts = (one["name"], f"{one['value']:.4g}", ends, f"{one['n']:,}", one["unit"], one["better"])
        grid.add_row(*map(Text, texts))
    console.print(grid)


def _events(console: Console, events: list[dict[str, Any]]) -> None:
    from rich.text import Text

    grid = table("event", "when", "who", "what", "alias", "from", "to", "reason", right=("event",))
    for one in events:
        ends = (one["from"] or "", one["to"])
        words = (str(one["seq"]), one["ts"], one["actor"], one["action"], one["alias"], *ends, one["reason"])
        grid.add_row(*map(Text, words))
    console.print(grid)


def _login() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user, as in some containers
        return "somebody"
