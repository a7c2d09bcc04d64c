"""What was submitted as batch files and not read to its end, in one small file: it outlives every kill.

A note is on the disk before the endpoint can know of its batch. So a run that was killed at any moment finds the batch again: by
its id, or, where there is none yet, by the mark that the note and the batch's metadata share.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from steps.lib import durable


@dataclass
class Note:
    """One batch."""

    mark: str
    """In the batch's metadata, too."""
    url: str
    """Address of the endpoint that has it."""
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Request that is still to be read -> tokens of prompt and of answer that it can use at most."""
    id: str = ""
    """The endpoint's name of it; "": it was being submitted."""


class Notes:
    """The notes of one teacher.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Note]:
        """The notes, in the order of submitting."""
        if not self._path.is_file():
            return []
        return [Note(**one) for one in json.loads(self._path.read_text(encoding="utf-8"))]

    def keep(self, note: Note) -> None:
        """Write a note, in the place of an older one of the same mark; one without keys is forgotten."""
        notes = {one.mark: one for one in self.read()}
        notes[note.mark] = note
        draft = self._path.with_name(f"{self._path.name}.new")
        durable.write(draft, json.dumps([asdict(one) for one in notes.values() if one.keys]))
        os.replace(draft, self._path)
        durable.fsync(self._path.parent)
