"""How far a step has come that is not there yet, by what lies in its partial folder. It is read only, also while it is written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib import checkpoints
from steps.lib.step import Spec

COUNTS = {
    "answers": "SELECT count(*) FROM requests WHERE status<>'failed'",
    "units": "SELECT count(*) FROM units",
}
"""What the ledgers of ``steps.lib.ledger`` hold."""


@dataclass(frozen=True)
class Progress:
    """How far."""

    done: int
    total: int | None
    """None: not known before the end."""
    unit: str

    def __str__(self) -> str:
        return f"{self.done:,}{f' of {self.total:,}' if self.total else ''} {self.unit}"


def progress(partial: Path, spec: Spec) -> Iterator[Progress]:
    """Updates of the newest whole checkpoint, answers and units in the ledgers. What cannot be read says nothing."""
    resume = partial / ".resume"
    if newest := next(iter(checkpoints.marked(resume)), None):
        total = None
        with suppress(OSError, ValueError):
            total = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8")).get("max_steps")
        yield Progress(checkpoints.update_of(newest), total, "updates")
    ledgers = [path for path in sorted(resume.rglob("*.sqlite")) if not path.name.startswith("damaged-")]
    for unit, statement in COUNTS.items():
        counts = [count for path in ledgers if (count := _count(path, statement)) is not None]
        if counts:
            yield Progress(sum(counts), _asked(spec) if unit == "answers" else None, unit)


def written(folder: Path) -> float:
    """When the newest thing in a folder (or the file itself) was written, in seconds since the epoch; 0 when it is not there."""
    newest = 0.0
    for one in (folder, *folder.rglob("*")):
        with suppress(OSError):
            newest = max(newest, one.lstat().st_mtime)
    return newest


def _count(path: Path, statement: str) -> int | None:
    log = path.with_name(path.name + "-wal")
    mode = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"  # only the first looks at the log
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=1)) as ledger:
            return int(ledger.execute(statement).fetchone()[0])
    except (sqlite3.Error, OSError):
        return None


def _asked(spec: Spec) -> int | None:
    """Answers that a step asks for at most, where that can be told without parsing rows."""
    config: Any = spec.config
    if spec.name == "pairs" and config.judge is None:
        return int(config.sampled)
    if spec.name == "generate" and all(source.path and source.path.suffix == ".jsonl" for source in config.prompts):
        return sum(_rows(source.path, source.limit) for source in config.prompts) * int(config.samples)
    return None


def _rows(path: Path, limit: int | None) -> int:
    with path.open("rb") as file:
        count = sum(bool(row.strip()) for row in file)
    return min(count, limit or count)
