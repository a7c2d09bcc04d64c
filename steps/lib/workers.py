"""Work on many cores: tasks of a step in processes of their own, whose results are kept as they come.

One process runs everything until there is work enough for more. A stop signal kills the workers and keeps what is finished; a
worker that dies is an error that names its task; workers never outlive the process that started them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from steps.lib.errors import ArtifactError
from steps.lib.stopping import Stop
from steps.lib.work_ledger import WorkLedger

ENOUGH = 10_000
"""Rows from which other processes are worth their start of about a second."""
LOOK_EVERY = 0.2
"""Seconds between two looks for a stop signal while workers work."""


@dataclass(frozen=True)
class Task:
    """A unit of work that can be kept."""

    name: str
    """What messages call it."""
    content: Mapping[str, Any]
    """All that decides the result, as JSON types."""
    function: Callable[..., Any]
    """Of a module, so that another process can call it; gives JSON types."""
    arguments: Callable[[], tuple[Any, ...]]
    """Called in this process, in the order of the tasks, and only for what is still to be done."""
    rows: int = 0
    """How much work it is."""


@dataclass(frozen=True)
class Known:
    """A unit of work that an earlier run finished."""

    value: Any


class Workers:
    """Runs tasks; a ``with`` block around all of them.

    Args:
        number: processes; None: as many as there are cores, once there is work for them. 1: this process alone.
        ledger: keeps results.
        stop: looked at between tasks, and while workers work.
        folder: for notes of which worker does what.
    """

    def __init__(self, number: int | None, ledger: WorkLedger, stop: Stop, folder: Path) -> None:
        self._number, self._enough = number or len(os.sched_getaffinity(0)), number is not None
        self._ledger, self._stop, self._notes = ledger, stop, folder / "doing"
        self._pool: ProcessPoolExecutor | None = None
        self._others: list[Any] = []
        """Child processes that are not ours."""
        self._processes: list[Any] = []
        self._rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool:
            if error is not None:
                for process in self._processes:
                    process.kill()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def each(self, tasks: Iterable[Task | Known]) -> Iterator[Any]:
        """Results of tasks in their order.

        Raises:
            Resumable: a signal came; what is finished is kept.
            ArtifactError: a worker died.
        """
        waiting: list[_Place] = []
        for task in tasks:
            waiting.append(self._started(task))
            while waiting and (waiting[0].value or sum(not place.value for place in waiting) > self._number):
                self._collect(waiting)
                while waiting and waiting[0].value:
                    yield waiting.pop(0).value[0]
        while waiting:
            self._collect(waiting)
            while waiting and waiting[0].value:
                yield waiting.pop(0).value[0]

    def _started(self, task: Task | Known) -> _Place:
        """The place of a task that is done, or that a worker does."""
        if isinstance(task, Known):
            return _Place(value=[task.value])
        self._rows += task.rows
        if self._number == 1 or not (self._enough or self._rows >= ENOUGH):
            return _Place(value=[self._ledger.recall(task.content, partial(_called, task))])
        self._stop.check()
        known = self._ledger.known(task.content, lambda _: True)
        return _Place(value=known) if known else _Place(task, self._submit(task))

    def _submit(self, task: Task) -> Future[Any]:
        if self._pool is None:
            self._notes.mkdir(parents=True, exist_ok=True)
            for note in self._notes.iterdir():
                note.unlink()
            self._others = multiprocessing.active_children()
            self._pool = ProcessPoolExecutor(self._number, multiprocessing.get_context("spawn"), initializer=_begin)
        try:
            return self._pool.submit(_work, str(self._notes), task.name, task.function, task.arguments())
        except BrokenProcessPool:
            raise self._broken() from None
        finally:  # the pool starts a process when it needs one more
            known = [*self._others, *self._processes]
            self._processes += [process for process in multiprocessing.active_children() if process not in known]

    def _collect(self, waiting: list[_Place]) -> None:
        """Keep the results that are there; waits for one where the first place has none."""
        open_ = {place.future: place for place in waiting if place.future and not place.value}
        while open_ and not waiting[0].value:
            done, _ = wait(open_, timeout=LOOK_EVERY, return_when=FIRST_COMPLETED)
            for future in done:
                place = open_.pop(future)
                assert place.task
                try:
                    place.value = [self._ledger.recall(place.task.content, future.result)]
                    place.task = place.future = None  # its rows; many may wait for a slow one before them
                except BrokenProcessPool:
                    raise self._broken() from None
            self._stop.check()
            if done and sum(not place.value for place in waiting) <= self._number:
                return

    def _broken(self) -> ArtifactError:
        """What to say of a worker that died: by its exit code the first one, since the pool ends the others with SIGTERM."""
        time.sleep(LOOK_EVERY)
        dead = {one.pid: one.exitcode for one in self._processes if one.exitcode not in (None, 0, -signal.SIGTERM)}
        notes = {
            int(note.name): note.read_text(encoding="utf-8") for note in self._notes.iterdir() if note.name.isdigit()
        }
        names = sorted({notes[pid] for pid in dead if pid in notes}) or sorted(set(notes.values()))
        codes = ", ".join(signal.Signals(-code).name if code and code < 0 else str(code) for code in dead.values())
        return ArtifactError(
            f"worker process died over {', '.join(names) or 'its first task'}: got {codes or 'no exit code'}, because it was "
            "killed from outside, most often for want of memory; run the same command again with fewer `clean.workers` or smaller "
            "`clean.shard_rows`: it goes on where it stopped"
        )


@dataclass
class _Place:
    """A task's place in the order; ``value`` has one item when it is done."""

    task: Task | None = None
    future: Future[Any] | None = None
    value: list[Any] = field(default_factory=list)


def _called(task: Task) -> Any:
    return task.function(*task.arguments())


def _begin() -> None:
    """In a new worker: Ctrl-C is the parent's business, and without the parent there is none here."""
    import pyarrow as pa

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    pa.set_cpu_count(1)
    os.environ.update(OMP_NUM_THREADS="1", RAYON_NUM_THREADS="1")  # the cores are shared out already
    parent = multiprocessing.parent_process()
    assert parent

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def _work(notes: str, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    note = Path(notes) / str(os.getpid())
    note.write_text(name, encoding="utf-8")
    try:
        return function(*arguments)
    finally:
        note.unlink(missing_ok=True)
