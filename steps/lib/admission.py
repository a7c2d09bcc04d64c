"""Which candidates of ``generate`` become chats: by their flags, and by the rules of the task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from steps.lib.errors import ConfigError
from steps.lib.quality import Filters, Finding, normalise
from steps.lib.rows import Candidate, Chat, Message
from steps.lib.rules import Task
from steps.lib.shards import Shard, judge, set_aside


@dataclass(frozen=True)
class Admission:
    """What a candidate must keep to become a chat."""

    task: Task | None
    """Its short system line goes before every candidate."""
    rules: Sequence[str]
    """Rules of the task that must be kept; one that does not apply is."""
    allowed_flags: Sequence[str]
    """Flags that a chat may have; any other keeps a candidate back."""
    filters: Filters

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
        for row in rows:
            prompt, answer = normalise(row.prompt), normalise(row.answer)
            if finding := self._finding(row, prompt, answer):
                shard.dropped.append((set_aside(step, row, *finding), 1))
                continue
            system = self._system(row)
            turns = [Message(role="system", content=system)] if system else []
            turns += [Message(role="user", content=prompt), Message(role="assistant", content=answer)]
            chat = Chat(id=row.id, lang=row.lang, source=row.source or row.teacher, messages=turns)
            shard.keep(chat, judge(chat, self.filters))
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
