"""``prefline step NAME``: one step through the store, without Prefect."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from flows.commands.words import Json, Overrides, Profile, Recipe, print_json, table, terminal
from steps.lib.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from flows.engine import Engine
    from steps.lib.artifact import Artifact
    from steps.lib.step import Spec

WOULD_BUILD = 10
"""Exit code of ``--print-inputs`` when a run would build the step; that of ``prefline status``."""


def step(
    name: str,
    *overrides: Overrides,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    upstream: bool = False,
    force: bool = False,
    strict_code: bool = False,
    dry_run: bool = False,
    print_inputs: bool = False,
    json: Json = False,
    **inputs: Annotated[Path, Parameter(help="Folder of an artifact for the input INPUT, in place of the store's.")],
) -> int:
    """Run one step, or say where its artifact lies when the store has it. prefline step NAME --help shows its inputs and fields.

    Parameters
    ----------
    name
        generate, badcases, correct, clean, base, pretrain, sft, pairs, reference, dpo, kto, reward, rl, evaluate or promote.
    upstream
        Run the steps before it too, where the store does not have them.
    force
        Build it again although the store has it.
    strict_code
        Build it again where its code changed since it was built.
    dry_run
        Only say what would be built, and (generate) what asking would take: requests, tokens, money, time. Nothing is sent.
    print_inputs
        Only say the step's key, whether it is there, and where each input comes from. Exit code 0 when it is there, 10 when not.
    """
    from dataclasses import replace

    from flows.engine import Engine, Plan
    from flows.line import AlignConfig
    from steps.lib.config import layers_of, load

    config = load(AlignConfig, layers_of(profile, recipe or []), overrides).value
    plan = Plan.of(None if upstream else name, None, name if upstream else None, [name] if force else [], strict_code)
    if getattr(config, name) is None:
        raise ConfigError(
            f"step {name} is left out: got {name}: null, because profile {profile!r} (or a recipe) clears the section; "
            f"set a field of it, or choose another profile"
        )
    if inputs and (upstream or dry_run):
        raise ConfigError(
            f"--{next(iter(inputs))} cannot stand beside --upstream or --dry-run: got both, because what is before a step that is "
            "given its inputs is not asked; leave one out"
        )
    if dry_run:
        from flows.commands.plan import look_ahead

        look_ahead(config, plan if upstream else replace(plan, start=name))
        return 0
    engine = Engine(config, plan)
    if print_inputs:
        return _print_inputs(engine, name, inputs, json)
    if inputs:
        spec = _spec(engine, name, inputs)
        artifact, cached = engine.materialize(spec)
        seconds = artifact.manifest["seconds"]
    else:
        engine.run()
        last = engine.outcomes[-1]
        artifact, cached, seconds = last.artifact, last.cached, last.seconds
    state = "Cached" if cached else f"built in {seconds:.1f} s"
    if json:
        print_json({"key": artifact.key, "state": "cached" if cached else "built", "folder": str(artifact.path)})
    else:
        print(f"{artifact.key}  {state}  {artifact.path}")
    return 0


def _spec(engine: Engine, name: str, folders: Mapping[str, Path]) -> Spec:
    """The step with the inputs that were given, and the store's for all others.

    Raises:
        ConfigError: the step has no such input.
        ArtifactError: a folder is no artifact, or another input is not in the store.
    """
    from flows.line import line
    from flows.plan import Absent, Looker
    from steps.lib.artifact import Artifact
    from steps.lib.step import Spec, module_of

    known = inputs_of(module_of(name))
    for word in folders:
        if word.replace("-", "_") not in known:
            near = difflib.get_close_matches(word, known, n=1)
            hint = (
                f"did you mean --{near[0]}?" if near else f"it has {', '.join(f'--{one}' for one in known) or 'none'}"
            )
            raise ConfigError(
                f"step {name} has no input {word}: got --{word}, because its inputs have other names; {hint}"
            )
    given = {word.replace("-", "_"): Artifact.read(path) for word, path in folders.items()}
    found: dict[str, Artifact] = {}

    class Reached(Exception):
        """The walk came to the step."""

    class Given(Looker):
        """Looks for what is before the step, and stops there."""

        def __call__(self, step: ModuleType, config: object, **inputs: Artifact | None) -> Artifact | None:
            if step.__name__ == f"steps.{name}":
                found.update({word: one for word, one in inputs.items() if one is not None})
                raise Reached
            return super().__call__(step, config, **inputs)  # type: ignore[arg-type]

    with suppress(Reached):
        line(Given(engine.config, engine.store), engine.config)
    found |= given
    absent = [word for word, one in found.items() if isinstance(one, Absent)]
    if absent:
        roots = [one.look.step for one in found.values() if isinstance(one, Absent)]
        raise ArtifactError(
            f"step {name} lacks {', '.join(f'--{word}' for word in absent)}: got nothing of {', '.join(roots)} in the store "
            f"{engine.store.name}, because it was not built with this configuration; give its folder, or build it first "
            f"(prefline step {roots[0]} --upstream)"
        )
    return Spec(module_of(name), getattr(engine.config, name), found, engine.config.seed)


def inputs_of(module: ModuleType) -> dict[str, bool]:
    """Name of an input -> whether the step cannot be without it."""
    words = inspect.signature(module.run).parameters
    return {
        name: one.default is one.empty
        for name, one in words.items()
        if one.kind is one.KEYWORD_ONLY and name not in ("out", "context")
    }


def _print_inputs(engine: Engine, name: str, folders: Mapping[str, Path], json: bool) -> int:
    """Say the key, and where the inputs come from."""
    from flows.plan import walk

    if folders:
        spec: Spec | None = _spec(engine, name, folders)
        waits: tuple[str, ...] = ()
    else:
        look = next(one for one in walk(engine.config, engine.store) if one.step == name)
        spec, waits = look.spec, look.waits_for
    key = spec.key() if spec else None
    there = bool(key and spec and engine.store.find(key))
    rows = [
        {
            "input": word,
            "step": one.key.partition("/")[0],
            "key": one.key,
            "folder": str(one.path),
            "digest": one.digest,
        }
        for word, one in (spec.inputs.items() if spec else ())
    ]
    if json:
        print_json({"step": name, "key": key, "there": there, "inputs": rows, "waits_for": list(waits)})
        return 0 if there else WOULD_BUILD
    console = terminal()
    folder = f"  {engine.store.folder(key)}" if key and there else ""
    console.print(f"{key or name}: {'there' if there else 'to be built'}{folder}", soft_wrap=True)
    if waits:
        console.print(f"its key is not known: {', '.join(waits)} must be built first (--upstream builds them)")
    if rows:
        grid = table("input", "key", "folder", whole=("input", "key"))
        for row in rows:
            grid.add_row(row["input"], row["key"], row["folder"])
        console.print(grid)
    return 0 if there else WOULD_BUILD


def page(name: str, words: list[str]) -> None:
    """Print what a step reads and writes, its inputs, and the fields of its section with types, values and docs.

    Raises:
        ConfigError: there is no such step.
    """
    from flows.commands import config as settings
    from flows.line import STEPS, AlignConfig
    from steps.lib.step import module_of

    if name not in STEPS:
        near = difflib.get_close_matches(name, STEPS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"take one of: {', '.join(STEPS)}"
        raise ConfigError(f"step is wrong: got {name!r}, because the line has no such step; {hint}")
    module = module_of(name)
    print(f"Usage: prefline step {name} [OPTIONS] [FIELD=VALUE...]\n\n{inspect.getdoc(module)}\n")
    known = inputs_of(module)
    print("Inputs (--INPUT DIR gives an artifact's folder; without it the store's is taken):")
    for word, needed in known.items():
        print(f"  --{word:<12} {'needed' if needed else 'optional'}")
    if not known:
        print("  none")
    print(
        "\nOptions: --profile NAME, --recipe FILE, --upstream, --force, --strict-code, --dry-run, --print-inputs, --json"
    )
    profile = words[words.index("--profile") + 1] if "--profile" in words[:-1] else "cpu-tiny"
    section = settings.SECTION_OF.get(name, name)
    field = AlignConfig.model_fields[section]
    print(f"\nFields of {section} in profile {profile} ({field.description}):", flush=True)
    settings.show(
        section, profile=profile, overrides=[word for word in words if "=" in word and not word.startswith("-")]
    )
    sys.stdout.flush()
