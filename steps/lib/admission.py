"""Which candidates of ``generate`` become chats: by their flags, and by the rules of the task."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib.characters import normalise
from steps.lib.errors import ConfigError
from steps.lib.quality import Finding
from steps.lib.row_files import number_of_rows, read_part
from steps.lib.rows import Candidate, Chat, Message
from steps.lib.rules import Task
from steps.lib.shards import Shard, set_aside, whole_files
from steps.lib.standards import Standards
from steps.lib.work_ledger import WorkLedger
from steps.lib.workers import Known
from steps.lib.workers import Task as Work


@dataclass(frozen=True)
class Admission:
    """What a candidate must keep to become a chat."""

    task: Task | None
    """Its short system line goes before every candidate."""
    rules: Sequence[str]
    """Rules of the task that must be kept; one that does not apply is."""
    allowed_flags: Sequence[str]
    """Flags that a chat may have; any other keeps a candidate back."""
    standards: Standards

    def check(self, path: Path | None) -> None:
        """Check that the task has the rules.

        Args:
            path: of the task file, for the message.

        Raises:
            ConfigError: it lacks some.
        """
        if self.task is None:
            return
        known = set(self.task.check("", ""))
        if unknown := sorted(set(self.rules) - known):
            raise ConfigError(
                f"clean.check_rules names {', '.join(unknown)}: got no such rule in {path}; "
                f"it has {', '.join(sorted(known))}"
            )

    def chats(self, rows: Iterable[Candidate], step: str) -> Shard[Chat]:
        """The candidates as chats: system line, prompt, answer; the others dropped, with every flag and rule named."""
        shard = Shard[Chat]()
        taken: list[Chat] = []
        for row in rows:
            prompt, answer = normalise(row.prompt), normalise(row.answer)
            if finding := self._finding(row, prompt, answer):  # by the rules of the task, as the teacher wrote it
                shard.dropped.append((self.standards.kept_back(set_aside(step, row, *finding)), 1))
                continue
            system = self._system(row)
            turns = [Message(role="system", content=system)] if system else []
            turns += [Message(role="user", content=row.prompt), Message(role="assistant", content=row.answer)]
            taken.append(Chat(id=row.id, lang=row.lang, source=row.source or row.teacher, messages=turns))
        seen = self.standards.look(taken)
        for chat, finding in zip(seen.rows, seen.findings, strict=True):
            shard.keep(chat, finding)
        shard.repaired, shard.redacted = seen.repaired, seen.redacted
        return shard

    def _finding(self, row: Candidate, prompt: str, answer: str) -> Finding | None:
        """Why a candidate does not become a chat, or None."""
        if flags := [flag for flag in row.flags if flag not in self.allowed_flags]:
            return flags[0], f"flags of generate: {', '.join(row.flags)}"
        if not prompt or not answer:
            return "empty", "no prompt" if not prompt else "no answer"
        kept = self.task.check(prompt, answer) if self.task else {}
        if broken := [name for name in self.rules if kept.get(name) is False]:
            return f"rule:{broken[0]}", f"rules of the task broken: {', '.join(broken)}"
        if self._system(row) is None:
            return "wrong_language", f"the task has no system line for {row.lang}"
        return None

    def _system(self, row: Candidate) -> str | None:
        """The system line; empty where there is no task, None where it has none in the row's language."""
        if self.task is None:
            return ""
        return {str(lang): line for lang, line in self.task.student_system.items()}.get(row.lang)


@dataclass(frozen=True)
class Terms:
    """What ``Admission`` is made of, in a form that another process can be given."""

    task: Path | None
    task_digest: str
    """Of the task file; empty without one."""
    rules: tuple[str, ...]
    allowed_flags: tuple[str, ...]
    standards: Standards

    def admission(self) -> Admission:
        """The terms as they work."""
        task = _task(self.task, self.task_digest) if self.task else None
        return Admission(task, self.rules, self.allowed_flags, self.standards)


@functools.lru_cache(1)
def _task(path: Path, digest: str) -> Task:
    """The task of a file; ``digest`` tells a file that changed."""
    return Task.read(path)


def candidate_shards(
    path: Path, terms: Terms, facts: dict[str, Any], size: int, step: str, folder: Path, ledger: WorkLedger
) -> Iterator[Work | Known]:
    """Candidates that may become chats, in shards; see ``shards.shards``."""
    number = number_of_rows(path)
    for place, start in enumerate(range(0, max(number, 1), size)):
        name, stop = f"candidates-{place:05}", min(start + size, number)
        content = {**facts, "name": name, "from": start, "to": start + size}
        if found := ledger.known(content, functools.partial(whole_files, folder)):
            yield Known(found[0])
        else:
            yield Work(
                name,
                content,
                look,
                functools.partial(tuple, (path, start, stop, folder, name, step, terms)),
                stop - start,
            )


def look(path: Path, start: int, stop: int, folder: Path, name: str, step: str, terms: Terms) -> dict[str, Any]:
    """Candidates ``start`` to ``stop`` as a shard of chats."""
    rows = read_part(path, Candidate, start, stop)
    return terms.admission().chats(rows, step).write(folder, name, Chat)
