"""How a step's process ends: signals, and an engine that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from minimal import ROOT

from steps.lib import stopping
from steps.lib.errors import Resumable


def script(code: str, *, engine: bool = False) -> subprocess.Popen[str]:
    environment = {**os.environ, **({stopping.ENGINE: "1"} if engine else {})}
    return subprocess.Popen(
        [sys.executable, "-c", f"import os, signal, sys, time\nfrom steps.lib import stopping\n{code}"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_where_nothing_is_to_be_saved_ends_at_once_as_resumable(number: signal.Signals) -> None:
    """Whatever the line that runs swallows: an exception from a handler would be lost in it."""
    child = script(
        "import contextlib\n"
        "with stopping.leaving(lambda message: os.write(1, (message + chr(10)).encode())):\n"
        "    print('on', flush=True)\n"
        "    while True:\n"
        "        with contextlib.suppress(BaseException): time.sleep(1)\n"
    )
    assert child.stdout and child.stdout.readline() == "on\n"
    child.send_signal(number)
    said, _ = child.communicate(timeout=20)
    assert child.returncode == Resumable.exit_code
    assert said == f"stopped by {number.name}: the partial work is kept; run the same command again to go on\n"


@pytest.mark.fault
def test_a_signal_in_the_middle_of_a_write_ends_at_once_as_well() -> None:
    """Python refuses a second write to a stream in the middle of one: a handler that says so must not turn into an error."""
    child = script(
        "import io\n"
        "class Slow(io.RawIOBase):\n"
        "    def writable(self): return True\n"
        "    def write(self, data): os.write(1, data); time.sleep(60); return len(data)\n"
        "stream = io.BufferedWriter(Slow())\n"
        "def say(text): stream.write(text.encode()); stream.flush()\n"
        "with stopping.leaving(say): say('on\\n')\n"
    )
    assert child.stdout and child.stdout.readline() == "on\n"
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=20)
    assert child.returncode == Resumable.exit_code and "stopped by SIGTERM" in said


def test_a_loop_that_saves_first_is_left_alone() -> None:
    with stopping.leaving(pytest.fail), stopping.stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == "SIGINT"
        with pytest.raises(Resumable):
            stop.check()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.fault
def test_a_process_whose_engine_is_gone_saves_and_goes() -> None:
    child = script(
        "stopping.end_with_parent()\n"
        "with stopping.stop_signals() as stop:\n"
        "    print('working', flush=True)\n"
        "    while not stop: time.sleep(0.01)\n"
        "    print('saved', flush=True)\n",
        engine=True,
    )
    assert child.stdout and child.stdin
    assert child.stdout.readline() == "working\n" and child.poll() is None
    child.stdin.close()
    assert child.wait(20) == 0 and child.stdout.read() == "saved\n"
    child.stdout.close()
    assert child.stderr
    child.stderr.close()


@pytest.mark.fault
def test_a_process_that_does_not_listen_is_killed_after_the_grace() -> None:
    child = script(
        "stopping.GRACE = 0.3\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nstopping.end_with_parent()\nprint('on', flush=True)\ntime.sleep(60)",
        engine=True,
    )
    assert child.stdout and child.stdout.readline() == "on\n"
    child.communicate(timeout=20)
    assert child.returncode == -signal.SIGKILL


def test_a_step_of_the_shell_does_not_watch_its_input() -> None:
    child = script("stopping.end_with_parent()\ntime.sleep(0.5)\nprint('done')")
    said, _ = child.communicate(timeout=20)
    assert (child.returncode, said) == (0, "done\n")
