"""``prefline step NAME``: one step through the store, without Prefect."""

from __future__ import annotations

from flows.commands.words import Overrides, Profile, Recipe


def step(
    name: str,
    *overrides: Overrides,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    upstream: bool = False,
    force: bool = False,
    strict_code: bool = False,
    dry_run: bool = False,
) -> None:
    """Run one step, or say where its artifact lies when the store has it.

    Parameters
    ----------
    name
        generate, clean, base, pretrain, sft, pairs, reference, dpo, kto, reward, rl, evaluate or promote.
    upstream
        Run the steps before it too, where the store does not have them.
    force
        Build it again although the store has it.
    strict_code
        Build it again where its code changed since it was built.
    dry_run
        Only say what would be built, and (generate) what asking would take: requests, tokens, money, time. Nothing is sent.
    """
    from dataclasses import replace

    from flows.engine import Engine, Plan
    from flows.line import AlignConfig
    from steps.lib.config import layers_of, load
    from steps.lib.errors import ConfigError

    config = load(AlignConfig, layers_of(profile, recipe or []), overrides).value
    plan = Plan.of(None if upstream else name, None, name if upstream else None, [name] if force else [], strict_code)
    if getattr(config, name) is None:
        raise ConfigError(
            f"step {name} is left out: got {name}: null, because profile {profile!r} (or a recipe) clears the section; "
            f"set a field of it, or choose another profile"
        )
    if dry_run:
        from flows.commands import dry

        return dry.dry_run(config, plan if upstream else replace(plan, start=name))
    engine = Engine(config, plan)
    engine.run()
    last = engine.outcomes[-1]
    state = "Cached" if last.cached else f"built in {last.seconds:.1f} s"
    print(f"{last.artifact.key}  {state}  {last.artifact.path}")
