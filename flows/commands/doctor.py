"""``prefline doctor``: whether this machine and this configuration can run, a line a check, each with what mends it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flows.commands.words import Json, Overrides, Profile, Recipe, print_json, table, terminal
from steps.lib.errors import PreflineError

if TYPE_CHECKING:
    from flows.line import AlignConfig

FAILED = 1
"""Exit code when a check failed."""
LITTLE_DISK, NO_DISK = 10 << 30, 1 << 30
"""Bytes free below which there is a warning, and below which nothing can be built."""
COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Check:
    """One line."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""
    """What to do; empty where all is well."""


def doctor(*overrides: Overrides, profile: Profile = "cpu-tiny", recipe: Recipe = None, json: Json = False) -> int:
    """Look at Python, packages, device, threads, memory, disk, Prefect's server, keys, tracking and the store.

    Nothing is started. A Prefect server that is configured is asked for its health; the store gets a file of 2 bytes, which is
    deleted again. Keys are never printed.
    """
    checks = list(examine(profile, recipe or [], overrides))
    if json:
        print_json([vars(check) for check in checks])
    else:
        _show(checks)
    return FAILED if any(check.state == "fail" for check in checks) else 0


def examine(profile: str, recipes: list[Path], overrides: tuple[str, ...]) -> Iterator[Check]:
    """Every check, the machine's first: they hold whatever the configuration is."""
    yield of_python()
    yield of_packages(Path())
    yield of_device()
    yield of_threads()
    yield of_memory()
    try:
        from flows.line import AlignConfig
        from steps.lib.config import layers_of, load

        config = load(AlignConfig, layers_of(profile, recipes), overrides).value
    except PreflineError as error:
        yield Check("configuration", "fail", str(error), "mend it; what depends on it is not looked at")
        return
    yield Check("configuration", "ok", f"{profile}{''.join(f' + {path}' for path in recipes)}")
    yield of_store(config)
    yield of_disk(config)
    yield from of_keys(config)
    yield of_tracking(config)
    yield of_prefect()


def of_python() -> Check:
    """The version that the pinned packages are for."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == (3, 11):
        return Check("Python", "ok", found)
    return Check(
        "Python", "fail", f"{found}; the pinned packages are for 3.11", "install Python 3.11, and run make run again"
    )


def of_packages(root: Path) -> Check:
    """Installed packages against the pinned ones: what prefline needs must be there; another version is a warning.

    Args:
        root: with pyproject.toml, which says what is needed, and constraints.txt, which pins it.
    """
    import tomllib
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        text = (root / "constraints.txt").read_text(encoding="utf-8")
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except OSError as error:
        return Check("packages", "warn", f"no {error.filename} here", "run prefline in the folder of the project")
    needed = {canonicalize_name(one.name): one for one in map(Requirement, project["dependencies"])}
    pins = {canonicalize_name(name): pin for name, pin in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)}
    missing, wrong, other = [], [], []
    for name in sorted(needed | pins):
        try:
            found = version(name)
        except PackageNotFoundError:
            if name in needed:
                missing.append(name)
            continue
        if name in needed and not needed[name].specifier.contains(found, prereleases=True):
            wrong.append(f"{name} {found} (needs {needed[name].specifier})")
        elif name in pins and found.partition("+")[0] != pins[name].partition("+")[0]:
            other.append(f"{name} {found} (pinned {pins[name]})")
    fix = "pip install -c constraints.txt -e ."
    if missing or wrong:
        return Check("packages", "fail", "; ".join([*(f"{name} is missing" for name in missing), *wrong]), fix)
    if other:
        return Check("packages", "warn", f"not as tested: {', '.join(other)}", fix)
    return Check("packages", "ok", f"all {len(needed)} that are needed, every one as pinned")


def of_device() -> Check:
    """What torch computes on. A GPU that the driver shows and torch does not see is a failure: training would go on the CPU."""
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        one = torch.cuda.get_device_properties(0)
        name = f"torch {torch.__version__}, {count} x {one.name}, {one.total_memory / 2**30:.0f} GiB"
        if not torch.cuda.is_bf16_supported():
            return Check("device", "warn", f"{name}, no bfloat16", "set train.precision=float32, or use a newer GPU")
        return Check("device", "ok", name)
    if Path("/proc/driver/nvidia/version").exists():
        return Check(
            "device",
            "fail",
            f"torch {torch.__version__} sees no GPU, and the machine has an NVIDIA driver",
            "install a CUDA build of torch, or look at CUDA_VISIBLE_DEVICES",
        )
    return Check("device", "ok", f"torch {torch.__version__}, CPU")


def of_threads() -> Check:
    """OpenMP threads a step gets: more than the cores that this process may use make a step up to ten times slower."""
    from steps.lib.runtime import environment

    cores, said = len(os.sched_getaffinity(0)), environment()
    threads, policy = said["OMP_NUM_THREADS"], said["OMP_WAIT_POLICY"]
    found = f"{threads} on {cores} cores, OMP_WAIT_POLICY={policy}"
    if not threads.isdigit() or int(threads) > cores:
        return Check("threads", "warn", found, f"set OMP_NUM_THREADS={cores}")
    if policy.lower() != "passive" and int(threads) > 1:
        return Check("threads", "warn", found, "set OMP_WAIT_POLICY=passive, or unset it")
    return Check("threads", "ok", found)


def of_memory() -> Check:
    """Memory that is free, on the GPU where there is one."""
    from steps.lib.footprint import free_memory

    free = free_memory()
    if free < 2 << 30:
        return Check("memory", "warn", f"{_size(free)} free", "end what holds it: cpu-tiny needs 1.6 GB")
    return Check("memory", "ok", f"{_size(free)} free")


def of_store(config: AlignConfig) -> Check:
    """Whether the store can be reached, written and read."""
    from steps.lib.stores import open_store

    name = f"doctor-{os.urandom(8).hex()}"
    try:
        store = open_store(config.store, config.cache)
        store.place.write(name, b"ok")
        same = store.place.read(name) == b"ok"
        store.place.delete(name)
    except (OSError, PreflineError) as error:
        return Check(
            "store", "fail", f"{config.store}: {error}", "mend its permissions or address, or set store=FOLDER"
        )
    if not same:
        return Check("store", "fail", f"{config.store}: what was written is not read", "look at its file system")
    return Check("store", "ok", f"{store.name}: written and read")


def of_disk(config: AlignConfig) -> Check:
    """Room where artifacts are built: the store's folder, or that of its copies."""
    import shutil

    folder = (config.cache if "://" in config.store else Path(config.store)).resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < NO_DISK:
        return Check("disk", "fail", f"{_size(free)} free at {folder}", "prefline gc --delete, or set store=FOLDER")
    if free < LITTLE_DISK:
        return Check("disk", "warn", f"{_size(free)} free at {folder}", "prefline gc shows what can go")
    return Check("disk", "ok", f"{_size(free)} free at {folder}")


def of_keys(config: AlignConfig) -> Iterator[Check]:
    """Whether each endpoint that this configuration asks, teacher or judge, has its key; the key itself is not shown."""
    from flows.blocks import sections_in
    from steps.lib.api_keys import key_of, place_of
    from steps.lib.teacher_config import HttpTeacher

    asked = [one for one in sections_in(config) if isinstance(one, HttpTeacher)]
    if not asked:
        yield Check("keys", "ok", "no endpoint is asked")
    for teacher in asked:
        _, problem = key_of(teacher)
        if not problem:
            where = place_of(teacher) if teacher.api_key_env else "none is asked for"
            yield Check("keys", "ok", f"{teacher.name}: {where}")
        elif teacher.api_key_block:
            yield Check("keys", "warn", f"{teacher.name}: {place_of(teacher)}", "a run reads it; see that it is there")
        else:
            yield Check("keys", "fail", f"{teacher.name}: {place_of(teacher)} is not set", "set it")


def of_tracking(config: AlignConfig) -> Check:
    """Where metrics go."""
    from steps.lib.tracking import resolve_mode

    mode = resolve_mode(config.tracking.mode)
    if mode == "online" and config.tracking.mode == "online" and resolve_mode("auto") != "online":
        return Check("tracking", "warn", "online, and no key is there", "wandb login, or tracking.mode=auto")
    return Check("tracking", "ok", f"{mode}{' (auto)' if config.tracking.mode == 'auto' else ''}")


def of_prefect() -> Check:
    """Whether the configured server answers; without one, a run starts its own."""
    import httpx
    import prefect.settings

    settings = prefect.settings.get_current_settings()
    url = settings.api.url
    if not url:
        if settings.server.ephemeral.enabled:
            return Check("Prefect", "ok", "no server is configured: each run starts its own")
        return Check(
            "Prefect",
            "fail",
            "no server is configured, and PREFECT_SERVER_ALLOW_EPHEMERAL_MODE=false forbids one for a run alone",
            "set PREFECT_API_URL, or unset it",
        )
    try:
        answer = httpx.get(f"{url}/health", timeout=5)
        said = "" if answer.is_success else f"says {answer.status_code}"
    except httpx.HTTPError as error:
        said = f"does not answer ({error})"
    if said:
        return Check(
            "Prefect", "fail", f"{url} {said}", "prefline up, or prefect server start; or unset PREFECT_API_URL"
        )
    return Check("Prefect", "ok", f"{url} answers")


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"


def _show(checks: list[Check]) -> None:
    from rich.text import Text

    grid = table("", "check", "found", "do this", whole=("", "check"))
    for check in checks:
        grid.add_row(
            Text(check.state, style=COLOURS[check.state]), Text(check.name), Text(check.found), Text(check.fix)
        )
    console = terminal(132)
    console.print(grid)
    count = {state: sum(check.state == state for check in checks) for state in COLOURS}
    console.print(f"{count['ok']} ok, {count['warn']} to look at, {count['fail']} to mend")
