"""Finished units of work, by content: a killed step computes again only what it had not finished."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from steps.lib.database import Database, seal_of
from steps.lib.ledger import content_key
from steps.lib.stopping import Stop

Recall = Callable[[Mapping[str, Any], Callable[[], Any]], Any]
"""``recall(content, compute)``: what ``compute`` gave for this content, now or in a run that was stopped; as JSON has it."""


class WorkLedger(Database):
    """Finished units of work (a batch of a model, a shard of rows, a pass over all) by the digest of what decides them.

    Args:
        path: the file.
        stop: looked at before each unit that is not there yet.
        log: for warnings.
    """

    def __init__(self, path: Path, stop: Stop, log: logging.Logger | None = None) -> None:
        super().__init__(
            path,
            "CREATE TABLE IF NOT EXISTS units (key TEXT PRIMARY KEY, value BLOB NOT NULL, seal TEXT NOT NULL)",
            log,
        )
        self._stop = stop
        self.computed = 0
        """Units that this run computed."""
        self.kept = 0
        """Units that an earlier run had finished."""

    def recall(self, content: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """The unit of this content: from the ledger, or computed and written down at once.

        Both ways it has been through JSON, so a continued run sees what an uninterrupted one does, bit by bit (a float's
        repr gives the same float back).

        Args:
            content: everything that decides the unit, as JSON types.
            compute: makes it, as JSON types.

        Raises:
            Resumable: a signal came, and the unit is still to be computed.
        """
        if found := self._found(key := content_key(content)):
            self.kept += 1
            return found[0]
        self._stop.check()
        value = json.dumps(compute(), ensure_ascii=False).encode("utf-8", "surrogatepass")
        self.execute("INSERT OR REPLACE INTO units VALUES (?,?,?)", (key, value, seal_of(key, [value])))
        self.computed += 1
        return json.loads(value)

    def known(self, content: Mapping[str, Any], holds: Callable[[Any], bool]) -> list[Any]:
        """The unit of this content where an earlier run finished it, as a list of one; else an empty list.

        Args:
            holds: whether what the unit stands for (files beside the ledger) is there; where it is not, the unit is forgotten.
        """
        key = content_key(content)
        found = self._found(key)
        if found and not holds(found[0]):
            self.execute("DELETE FROM units WHERE key=?", (key,))
            found = []
        self.kept += len(found)
        return found

    def _found(self, key: str) -> list[Any]:
        rows = self.execute("SELECT value, seal FROM units WHERE key=?", (key,))
        return [json.loads(value) for value, seal in rows if self.sound(key, seal, [value])]

    def about(self, **facts: Any) -> Recall:
        """``recall`` with facts that belong to the content of every unit."""
        return lambda content, compute: self.recall({**facts, **content}, compute)
