"""Signals: a step that is stopped saves first, and goes when the process that started it is gone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from steps.lib.errors import Resumable

ENGINE = "PREFLINE_ENGINE"
"""Variable that is set where the process that started this one holds its standard input open as long as it lives."""
GRACE = 60.0
"""Seconds that a stopped step has to save a checkpoint before it is killed."""


class Stop:
    """Set by SIGTERM or SIGINT. Loops look at it between units of work, save, and raise ``Resumable``."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def came(self, name: str) -> None:
        """A signal came; called in its handler."""
        self.signal = name

    def check(self) -> None:
        """Raise when a signal came.

        Raises:
            Resumable: SIGTERM or SIGINT came; what was done is kept.
        """
        if self.signal:
            raise Resumable(stopped_by(self.signal))


@contextmanager
def stop_signals(stop: Stop | None = None) -> Iterator[Stop]:
    """Turn SIGTERM and SIGINT into a flag for the length of the block. A signal that comes twice is one stop.

    ``stop.check()`` belongs behind the block: one that comes while the block closes its files would be lost before.

    Args:
        stop: gets the signals; a new one without it.
    """
    stop = Stop() if stop is None else stop  # one without a signal is false
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        stop.came(signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def leaving(say: Callable[[str], None]) -> Iterator[None]:
    """Where nothing is to be saved first: SIGTERM and SIGINT end the process at once, with the exit code of ``Resumable``.

    Everything is prepared for a kill at any moment, so this is one. An exception out of a signal handler is not: it comes up in the
    middle of any line of any library, which swallows it, or closes a file twice.

    ``stop_signals`` inside the block takes over for its length.

    Args:
        say: gets the message; called in the handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        message = stopped_by(signal.Signals(number).name)
        try:
            say(message)
        except RuntimeError:  # it came in the middle of a write to the same stream, which takes no second one
            os.write(2, f"{message}\n".encode())
        finally:
            os._exit(Resumable.exit_code)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped_by(name: str) -> str:
    """The message of one that was stopped by a signal."""
    return f"stopped by {name}: the partial work is kept; run the same command again to go on"


def end_with_parent() -> None:
    """Watch standard input, a pipe that the engine holds open: at its end the engine is gone, and this process must go, too.

    Without an engine (``ENGINE`` is not set) nothing is watched.

    It gets SIGTERM, so that it saves, and SIGKILL after ``GRACE`` seconds. (A pipe works from any thread of the engine and through
    torchrun; Linux's PR_SET_PDEATHSIG fires when the engine's *thread* ends.)
    """

    if ENGINE not in os.environ:
        return

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
