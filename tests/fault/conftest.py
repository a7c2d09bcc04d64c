"""A line that was built once in this process, and one whose teacher is asked over HTTP, as the oracle of the kills."""

from __future__ import annotations

import shutil
import subprocess
import time

import pytest
from fault.kills import PATIENCE, Trial, command
from fault.micro import forget, in_this_process, teacher_answers, walk, with_http_teacher
from fault.oracle import Micro
from minimal import ROOT, Line
from openai_server import serve

from flows.engine import Plan


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder kills or corrupts."""
    for item in items:
        if "/tests/fault/" in item.path.as_posix():
            item.add_marker(pytest.mark.fault)


@pytest.fixture(scope="session")
def micro(minimal_line: Line, tmp_path_factory: pytest.TempPathFactory) -> Micro:
    """The minimal line with a teacher over HTTP, built in this process, and what an undisturbed build is like."""
    line = minimal_line.copy(tmp_path_factory.mktemp("micro"))
    for step in ("generate", "clean", "evaluate", "promote"):  # all that another teacher makes another
        shutil.rmtree(line.folder / "store" / step)
    shutil.rmtree(line.folder / "registry")
    with serve(teacher_answers(line.folder)) as server, in_this_process():
        with_http_teacher(line, server.url)
        outcomes = walk(line)
        seconds = {}
        for step in ("clean", "sft"):  # one without torch, one with it
            forget(line, outcomes[step])
            started = time.monotonic()
            argv = command(line, Trial(0, step, False, ()))
            subprocess.run(argv, cwd=ROOT, check=True, timeout=PATIENCE, capture_output=True)
            seconds[step] = time.monotonic() - started
        light = ("generate", "clean", "promote")
        return Micro.measure(
            line,
            lambda step: walk(line, plan=Plan.of(until=step)) and None,
            lambda step: seconds["clean" if step in light else "sft"] - 0.5,
        )
