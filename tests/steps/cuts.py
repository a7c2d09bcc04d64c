"""A step that is cut off before some change that it makes to the disk, for many of them, and goes on.

Every cut is a real signal to a real process: a fork of one process that has imported the step and done nothing else, so a cut costs
a tenth of a second and not an import of torch. ``run`` starts that process (this file, as a script).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CHANGES = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir")
"""Audit events of what changes a disk (files opened to be read are left out)."""


QLORA = ("peft.tuners.lora.bnb",) if find_spec("bitsandbytes") else ()  # peft imports it where the package is there
MODEL = ("torch", "transformers.models.llama.modeling_llama", "peft", *QLORA, "jinja2", "pandas")
"""Modules of a step that loads a model, imported before the first run."""


@dataclass
class Job:
    """One run of a step in a folder of its own."""

    folder: str
    """Only changes below it count, but for those of locks."""
    argv: list[str]
    """Of ``python -m steps.NAME``."""
    out: str
    cut: float | None = None
    """When the signal comes: before the first change (0), the last one (1), or between; None: never. The first job of a run is not
    cut off, so it says how many changes there are."""
    signal: str = "SIGKILL"
    without: tuple[str, ...] = ()
    """Functions that give an empty list in place of what they do, such as ``steps.lib.report.drawings``."""


@dataclass
class Outcome:
    """What came of it."""

    ended: int = 0
    """Exit code of the run that was cut off; -9 for SIGKILL. Then it was run again, without a cut."""
    code: int = 0
    """Exit code of the last run."""
    said: str = ""
    """What the last run wrote to standard error."""
    changes: int = 0
    """Changes that the last run made."""
    held: dict[str, int] = field(default_factory=dict)
    """Ledger -> rows in it when the run was cut off; nothing where only publishing was left to do."""


def run(step: str, jobs: Sequence[Job], *modules: str) -> list[Outcome]:
    """Run jobs one by one. ``modules`` are imported beforehand, as far as the step would import them later."""
    words = [sys.executable, __file__, step, ",".join(modules)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    asked = json.dumps([asdict(job) for job in jobs])
    done = subprocess.run(words, input=asked, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    return [Outcome(**found) for found in json.loads(done.stdout)]


def spread(kills: int, terms: int) -> list[tuple[float, str]]:
    """Cuts from the first change to the last: so many by SIGKILL, and so many by SIGTERM between them."""
    found = [(number / (kills - 1), "SIGKILL") for number in range(kills)]
    return found + [((number + 0.5) / terms, "SIGTERM") for number in range(terms)]


def _arm(job: Job, cut: int, count: list[int]) -> None:
    """Count changes below the folder of the job, and send the signal before the one that is due."""
    import pyarrow.parquet as pq

    from steps.lib.database import Database

    def change() -> None:
        count[0] += 1
        if count[0] == cut:
            os.kill(os.getpid(), getattr(signal, job.signal))

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or not (path := str(arguments[0])).startswith(job.folder) or "/.locks/" in path:
            return  # a lock is rewritten by the clock
        if event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            change()

    def around(call: Callable[..., Any], counts: Callable[..., bool]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            counted = counts(*arguments)
            if counted:
                change()
            result = call(*arguments, **named)
            if counted:
                change()
            return result

        return wrapped

    sys.addaudithook(audit)
    # What C code writes passes no audit hook.
    pq.write_table = around(pq.write_table, lambda *_: True)
    Database.execute = around(  # type: ignore[method-assign]
        Database.execute, lambda self, statement, *_: statement.startswith(("INSERT", "VACUUM"))
    )


def _fork(step: str, job: Job, cut: int, errors: Path) -> tuple[int, int]:
    """Run a step in a fork: its exit code (minus the signal), and the changes it made."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            handle = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            count = [0]
            from steps.lib.door import main

            for name in job.without:
                place, _, function = name.rpartition(".")
                setattr(sys.modules[place], function, lambda *_: [])
            _arm(job, cut, count)
            try:
                main(step, job.argv)
                code = 0
            except SystemExit as error:
                code = int(error.code or 0)
            os.write(writer, str(count[0]).encode())
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    with open(reader) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(said or 0)


def _held(job: Job) -> dict[str, int]:
    """Rows in the ledgers of a partial folder. They are looked at in a copy: a reader tidies up after a crash, too."""
    out = Path(job.out)
    partial = out.parent / f".{out.name}.partial"
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as copy:
        for path in (partial / ".resume").glob("*.sqlite*") if not (partial / "manifest.json").exists() else ():
            shutil.copy(path, copy)
        for path in Path(copy).glob("*.sqlite"):
            with closing(sqlite3.connect(path)) as db:
                tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")]
                found[path.stem] = sum(db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables)
    return found


def _main(step: str, modules: str) -> None:
    import importlib

    for name in (f"steps.{step}", "pyarrow.parquet", *filter(None, modules.split(","))):
        importlib.import_module(name)
    outcomes: list[Outcome] = []
    errors = Path(tempfile.mkdtemp()) / "said.txt"
    for job in [Job(**one) for one in json.load(sys.stdin)]:
        outcome = Outcome()
        if job.cut is not None:
            before = 1 + round(job.cut * (outcomes[0].changes - 1))
            outcome.ended, _ = _fork(step, job, before, errors)
            outcome.said = errors.read_text()
            outcome.held = _held(job)
        if outcome.ended in (0, 75, -signal.SIGKILL, -signal.SIGTERM):
            outcome.code, outcome.changes = _fork(step, job, 0, errors)
            outcome.said = errors.read_text()
        else:
            outcome.code = outcome.ended
        outcomes.append(outcome)
    shutil.rmtree(errors.parent)
    json.dump([asdict(outcome) for outcome in outcomes], sys.stdout)


if __name__ == "__main__":
    _main(*sys.argv[1:])
