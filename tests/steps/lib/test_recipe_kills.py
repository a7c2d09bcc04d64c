"""A recipe that is killed or stopped anywhere: the same rows, and nothing is asked for twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai_server import Act, Server, serve
from recipe_runs import (
    ROOT,
    faithful,
    go,
)

from steps.lib.errors import Resumable
from steps.lib.stopping import Stop


@pytest.mark.fault
@pytest.mark.parametrize(("kind", "share"), [("self_instruct", 0.5), ("evolve", 0.3), ("documents", 0.8)])
def test_kill_9_anywhere_then_the_same_rows_and_nothing_asked_twice(kind: str, share: float, tmp_path: Path) -> None:
    def slow(number: int, body: dict[str, Any]) -> Act:
        return replace(faithful(number, body), delay=0.03)

    with serve(slow) as server:
        whole = go(kind, server.url, tmp_path / "whole")
        total = len(server.bodies)
        del server.bodies[:]
        folder = tmp_path / "killed"
        code = f"from pathlib import Path; import recipe_runs; recipe_runs.go({kind!r}, {server.url!r}, Path({str(folder)!r}))"
        process = subprocess.Popen([sys.executable, "-c", code], env=paths(), cwd=ROOT)
        wait(server, int(share * total))
        process.kill()
        process.communicate(timeout=10)
        begun = len(server.bodies)
        assert begun < total, "it was killed in the middle"
        done = go(kind, server.url, folder)
        assert done.plain() == whole.plain()
        # What was in flight when it died is lost; all else is asked for once.
        assert total <= len(server.bodies) <= total + 4
        assert len({json.dumps(body["messages"]) + str(body["seed"]) for body in server.bodies}) == total


@pytest.mark.parametrize("kind", ["self_instruct", "evolve", "documents", "personas", "revise"])
def test_a_stop_anywhere_then_nothing_is_asked_twice(kind: str, tmp_path: Path) -> None:
    with serve(faithful) as server:
        whole = go(kind, server.url, tmp_path / "whole")
        total = len(server.bodies)
        for share in (0.1, 0.8):
            del server.bodies[:]
            stop = Stop()

            def decide(number: int, body: dict[str, Any], stop: Stop = stop, at: int = int(share * total)) -> Act:
                if number == at:
                    stop.signal = "SIGTERM"
                return replace(faithful(number, body), delay=0.15 if number >= at else 0.0)

            server.decide = decide
            with pytest.raises(Resumable):
                go(kind, server.url, tmp_path / f"stopped-{share}", stop=stop)
            assert len(server.bodies) < total
            server.decide = faithful
            assert go(kind, server.url, tmp_path / f"stopped-{share}").plain() == whole.plain()
            assert len(server.bodies) == total


def paths() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{Path(__file__).parent}"}


def wait(server: Server, asked: int) -> None:
    deadline = time.monotonic() + 60
    while len(server.bodies) < asked and time.monotonic() < deadline:
        time.sleep(0.002)
