"""Request ledgers of other runs of a step: what they hold need not be asked, or paid for, again. They are never written."""

from __future__ import annotations

import functools
import sqlite3
from pathlib import Path


def ledgers_beside(resume: Path, name: str = "requests.sqlite") -> list[Path]:
    """Request ledgers of other runs of a step: of its finished artifacts, and of runs that were stopped.

    Args:
        resume: the folder ``.resume`` of this run's partial folder.
        name: of the ledger's file.
    """
    step = resume.parent.parent
    found = [*step.glob(f"[!.]*/record/{name}"), *step.glob(f".*.partial/.resume/{name}")]
    return sorted(path for path in found if path.parent != resume)


def opened(path: Path, table: str) -> sqlite3.Connection | None:
    """Another run's ledger, to be read only; None where there is none with this table that can be read."""
    log = path.with_name(path.name + "-wal")
    mode = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"  # only the first looks at the log
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=1, isolation_level=None)
    except sqlite3.Error:
        return None
    try:
        if db.execute("SELECT sql FROM sqlite_master WHERE type='table'").fetchall() == [
            (table.replace("IF NOT EXISTS ", ""),)
        ]:
            db.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
            return db
    except sqlite3.Error:
        pass
    db.close()
    return None
