"""Tasks in processes of their own: their order, what is kept, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.lib.errors import ArtifactError, DataError, Resumable
from steps.lib.stopping import Stop
from steps.lib.work_ledger import WorkLedger
from steps.lib.workers import ENOUGH, Known, Task, Workers

ROOT = Path(__file__).parents[3]


def work(number: int, folder: str, seconds: float = 0.0) -> list[int]:
    """Leaves a file that says in which process it ran."""
    time.sleep(seconds)
    (Path(folder) / f"{number}").write_text(str(os.getpid()))
    return [number, os.getpid()]


def die(number: int, folder: str) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    return number


def fail(number: int) -> int:
    raise DataError(f"row {number} is wrong")


def tasks(count: int, folder: Path, seconds: float = 0.0, rows: int = 0) -> Iterator[Task]:
    for number in range(count):
        yield Task(f"part {number}", {"n": number}, work, lambda number=number: (number, str(folder), seconds), rows)  # type: ignore[misc]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_results_come_in_order_and_are_computed_once(tmp_path: Path) -> None:
    stop = Stop()
    with WorkLedger(tmp_path / "w.sqlite", stop) as ledger:
        with Workers(2, ledger, stop, tmp_path) as workers:
            found = list(workers.each([Known([7, 0]), *tasks(5, tmp_path, 0.05)]))
            processes = {pid for _, pid in found[1:]}
            assert [number for number, _ in found] == [7, 0, 1, 2, 3, 4] and os.getpid() not in processes
            (tmp_path / "3").unlink()
            assert list(workers.each(tasks(5, tmp_path))) == found[1:] and not (tmp_path / "3").exists()
        assert (ledger.computed, ledger.kept) == (5, 5)
        assert not any(alive(pid) for pid in processes)


def test_little_work_stays_in_this_process(tmp_path: Path) -> None:
    stop = Stop()
    for number, rows, here in ((None, 10, True), (1, ENOUGH, True)):
        with (
            WorkLedger(tmp_path / f"{number}.sqlite", stop) as ledger,
            Workers(number, ledger, stop, tmp_path) as workers,
        ):
            assert all((pid == os.getpid()) is here for _, pid in workers.each(tasks(3, tmp_path, rows=rows)))


def test_a_worker_that_dies_is_named(tmp_path: Path) -> None:
    stop = Stop()
    named = [Task(f"part {n}", {"n": n}, die, lambda n=n: (n, "")) for n in range(5)]  # type: ignore[misc]
    with (
        WorkLedger(tmp_path / "w.sqlite", stop) as ledger,
        pytest.raises(
            ArtifactError, match=r"worker process died over part 3: got SIGKILL, because .*fewer `clean.workers`"
        ),
        Workers(2, ledger, stop, tmp_path) as workers,
    ):
        list(workers.each(named))


def test_an_error_in_a_worker_is_the_error(tmp_path: Path) -> None:
    stop = Stop()
    with (
        WorkLedger(tmp_path / "w.sqlite", stop) as ledger,
        pytest.raises(DataError, match="row 8 is wrong"),
        Workers(2, ledger, stop, tmp_path) as workers,
    ):
        list(workers.each([Task("part", {}, fail, lambda: (8,))]))


def test_a_stop_ends_workers_at_once_and_keeps_what_is_finished(tmp_path: Path) -> None:
    stop = Stop()
    with WorkLedger(tmp_path / "w.sqlite", stop) as ledger:
        with pytest.raises(Resumable, match="stopped by SIGTERM"), Workers(2, ledger, stop, tmp_path) as workers:
            list(workers.each(tasks(2, tmp_path)))
            pids = {process.pid for process in workers._processes}
            threading.Timer(0.5, stop.came, ["SIGTERM"]).start()
            started = time.monotonic()
            list(
                workers.each([Task("slow", {"slow": n}, work, lambda n=n: (n, str(tmp_path), 60.0)) for n in range(2)])
            )  # type: ignore[misc]
        assert time.monotonic() - started < 10 and len(pids) == 2 and not any(alive(pid) for pid in pids)
        assert ledger.computed == 2


def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; sys.path[:0] = ['tests/steps/lib', '.']; import test_workers as t\n"
        "if __name__ == '__main__':\n"
        "    folder, stop = pathlib.Path(sys.argv[1]), t.Stop()\n"
        "    with t.WorkLedger(folder / 'w.sqlite', stop) as ledger, t.Workers(2, ledger, stop, folder) as workers:\n"
        "        list(workers.each(t.tasks(2, folder)))\n"
        "        print(*[p.pid for p in workers._processes], flush=True)\n"
        "        list(workers.each([t.Task('slow', {'slow': n}, t.work, lambda n=n: (n, sys.argv[1], 60.0)) for n in range(2)]))\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(map(alive, pids))
        parent.kill()
    until = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, pids))
