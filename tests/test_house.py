"""The rules of the house, as CONTRIBUTING.md states them."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclopts import CycloptsError
from packaging.requirements import Requirement
from packaging.version import Version

from flows.cli import app
from flows.line import STEPS, AlignConfig
from steps.lib.config import Section, layers_of, load, profiles
from steps.lib.step import config_class, input_names

ROOT = Path(__file__).parents[1]
CODE = sorted(path for room in ("flows", "steps", "tests", "benchmarks") for path in (ROOT / room).rglob("*.py"))
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "pyarrow",
    "aiohttp",
    "openai",
    "matplotlib",
    "wandb",
    "prefect",
)
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "data" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
HELP_SECONDS = 0.7
"""Seconds of wall time that ``prefline --help`` may take."""


def imported(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def loaded_by(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of the modules are there after a fresh interpreter ran the code."""
    ending = f"\nimport sys; print('\\nloaded:', *[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + ending], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.rpartition("loaded:")[2].split()


# Files and imports


def test_no_file_is_an_attic() -> None:
    attics = [path.name for path in CODE if re.search(r"(utils?|common|helpers?|misc)$", path.stem)]
    assert not attics, f"a file is named after what it holds, not: {attics}"


def test_only_flows_imports_prefect() -> None:
    strangers = [path.name for path in CODE if path.is_relative_to(ROOT / "steps") and "prefect" in imported(path)]
    assert not strangers
    assert "prefect" in imported(ROOT / "flows" / "align.py")


def test_nothing_in_flows_shadows_a_library() -> None:
    """flows/ comes first on sys.path when a flow is loaded by its path."""
    names = {path.stem for path in (ROOT / "flows").iterdir() if path.suffix == ".py" or path.is_dir()} - {
        "__init__",
        "__pycache__",
    }
    libraries = set(importlib.metadata.packages_distributions()) | {
        "datasets",
        "evaluate",
        "trl",
        *sys.stdlib_module_names,
    }
    assert names and not names & libraries


def test_imports_run_one_way() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_the_line_and_every_step_import_nothing_heavy() -> None:
    assert loaded_by("import flows.line, flows.engine", HEAVY) == []


# Steps


@pytest.mark.parametrize("name", STEPS)
def test_a_step_has_the_shape(name: str) -> None:
    path = ROOT / "steps" / f"{name}.py"
    step = importlib.import_module(f"steps.{name}")
    doc = inspect.getdoc(step) or ""
    assert re.search(r"^Reads: ", doc, re.M) and re.search(r"^Writes: ", doc, re.M)
    assert re.match(rf"Run: +python -m steps\.{name} ", doc.splitlines()[-1])
    assert isinstance(step.VERSION, str) and step.VERSION
    config = config_class(step)
    assert config.__name__ == f"{name.capitalize()}Config" and issubclass(config, Section)
    first, *others = inspect.signature(step.run).parameters.values()
    assert first.name == "config" and all(one.kind is one.KEYWORD_ONLY for one in others)
    assert [one.name for one in others][-2:] == ["out", "context"]
    assert path.read_text(encoding="utf-8").endswith(f'\n\nif __name__ == "__main__":\n    main("{name}")\n')


@pytest.mark.parametrize("name", STEPS)
def test_the_run_line_of_a_step_has_its_options(name: str) -> None:
    step = importlib.import_module(f"steps.{name}")
    run = (inspect.getdoc(step) or "").splitlines()[-1]
    given = set(re.findall(r"--(\w+)", run))
    inputs = input_names(step)
    required = {one for one, needed in inputs.items() if needed} | {"config", "out"}
    assert required <= given <= set(inputs) | {"config", "out"}


def test_the_steps_are_the_files() -> None:
    assert set(STEPS) == {path.stem for path in (ROOT / "steps").glob("*.py")} - {"__init__"}


def test_the_contracts_of_imports_know_every_step() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    every = {f"steps.{name}" for name in STEPS}
    lists = [
        set(contract[field])
        for contract in contracts
        for field in ("modules", "forbidden_modules")
        if any(one.startswith("steps.") and one != "steps.lib" for one in contract.get(field, ()))
    ]
    assert lists == [every, every]


def test_the_choices_of_the_flow_are_the_profiles_and_the_steps() -> None:
    """They stand in flows/align.py as literals, because Prefect makes drop-downs of them; importing it would load prefect."""
    literals = {
        node.targets[0].id: ast.literal_eval(node.value.slice)
        for node in ast.parse((ROOT / "flows" / "align.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Subscript)
    }
    assert sorted(literals["Profile"]) == profiles(ROOT / "configs")
    assert literals["Step"] == STEPS


# The command


def test_help_is_fast_and_light() -> None:
    command = [str(Path(sys.executable).with_name("prefline")), "--help"]
    taken: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        taken.append(time.perf_counter() - started)
    assert "run" in shown and "step" in shown
    assert loaded_by("from flows.cli import app; app(['--help'], result_action='return_value')", HEAVY) == []
    assert min(taken) < HELP_SECONDS, f"prefline --help took {[round(one, 2) for one in taken]} s"


def fenced(page: Path) -> Iterator[str]:
    """Lines of the shell blocks of a page, without prompts; a line that ends in a backslash goes on."""
    for block in re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip().removeprefix("$ ")


COMMANDS = sorted({(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in fenced(page)})
PREFLINE = [pair for pair in COMMANDS if re.match(r"(\.venv/bin/)?prefline ", pair[1])]
MODULES = [pair for pair in COMMANDS if re.search(r"python -m steps\.", pair[1])]


def parsed(words: list[str]) -> dict[str, Any]:
    """The arguments that the command would run with."""
    problem = ""
    try:
        _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        return bound.arguments
    except CycloptsError as error:
        problem = str(error)
    pytest.fail(f"prefline {shlex.join(words)} does not parse: {problem}", pytrace=False)


def test_the_readme_has_commands() -> None:
    assert len([page for page, _ in PREFLINE if page == "README.md"]) >= 5
    assert any(page == "README.md" for page, _ in MODULES)


@pytest.mark.parametrize(("page", "line"), PREFLINE)
def test_commands_of_the_docs_parse_and_load(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    given = parsed(words)
    words_of_config = [word for word in (given.get("section"), *given.get("overrides", ())) if word and "=" in word]
    if words[0] in ("run", "step", "config", "report") and not any("..." in word for word in words):
        load(AlignConfig, layers_of(given.get("profile", "cpu-tiny"), given.get("recipe") or []), words_of_config)


@pytest.mark.parametrize(("page", "line"), MODULES)
def test_step_commands_of_the_docs_have_real_options(page: str, line: str) -> None:
    name = re.search(r"steps\.(\w+)", line)
    assert name and name[1] in STEPS
    allowed = {
        *input_names(importlib.import_module(f"steps.{name[1]}")),
        "config",
        "out",
        "seed",
        "key",
        "force",
        "help",
    }
    assert set(re.findall(r"--([a-z][\w-]*)", line)) <= allowed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_inside_the_text_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"`prefline (\w+)", text)) <= {name for name in app if not name.startswith("-")}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.M)) <= targets


# The README


def tree() -> dict[str, str]:
    """Paths of the README's tree with their comments; two spaces of indent a level, folders end in a slash."""
    block = re.search(r"<!-- tree -->\n```\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert block, "README.md has no block between <!-- tree --> and ```"
    found: dict[str, str] = {}
    above: list[str] = []
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, comment = line.strip().partition(" ")
        above = [*above[:depth], name]
        found["".join(above)] = comment.strip()
    return found


def test_the_readme_tree_is_current() -> None:
    listed = tree()
    rooms = ("flows", "steps", "configs")
    there = {
        path.relative_to(ROOT).as_posix()
        for room in rooms
        for path in (ROOT / room).rglob("*.*")
        if path.is_file() and path.stat().st_size and path.suffix in (".py", ".jinja", ".yaml", ".md")
    }
    told = {path for path in listed if path.startswith(rooms) and not path.endswith("/")}
    assert told == there
    assert all((ROOT / path).exists() for path in listed if path not in there)
    assert not [path for path, comment in listed.items() if not comment]


def test_the_first_command_stands_early() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert next(number for number, line in enumerate(lines, 1) if line.startswith("make run")) < 35


# Versions


def test_every_requirement_has_a_pin_that_fits() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {name.lower(): version for name, version in pins.items()}
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(Version(pins[requirement.name.lower()])), str(requirement)


# Tests


@pytest.mark.parametrize("host", ["192.0.2.1", "example.org"])
def test_the_network_is_out_of_reach(host: str) -> None:
    with pytest.raises(RuntimeError, match="tests run offline"):
        socket.create_connection((host, 80), timeout=1)
