"""What can go wrong, as one tree. The exit code of a step's process is the class's ``exit_code``.

The tree, with exit codes:

  PreflineError            1   anything we raise on purpose
  +-- ConfigError          2   a value somebody wrote is wrong; nothing was run
  +-- DataError            3   a file or row that came in is wrong
  +-- ModelError           4   a checkpoint, adapter or tokenizer is wrong
  +-- ArtifactError        5   something in the store is missing, damaged or foreign
  |   +-- Damaged          5   it was set aside just now
  +-- TeacherError         6   a teacher or judge cannot answer
  +-- TrainingError        7   a training run would give a wrong result
  +-- Resumable           75   stopped on request; running again goes on where it stopped
      +-- BudgetSpent     75   a teacher would pass its budget

A message says: what (path, row or field) is wrong: got VALUE, because CAUSE; do THIS.
"""

from __future__ import annotations

from collections.abc import Sequence


class PreflineError(Exception):
    """Base of every error that prefline raises on purpose."""

    exit_code = 1


class ConfigError(PreflineError):
    """One or more configuration problems; all of them are reported at once.

    Args:
        problems: one message, or every message found.
    """

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        head = "" if len(self.problems) == 1 else f"{len(self.problems)} problems in the configuration:\n"
        super().__init__(head + "\n".join(self.problems))


class DataError(PreflineError):
    """An input file or row is wrong."""

    exit_code = 3


class ModelError(PreflineError):
    """A checkpoint, adapter, tokenizer or chat template is wrong."""

    exit_code = 4


class ArtifactError(PreflineError):
    """An artifact of the store is missing, damaged or not what it says."""

    exit_code = 5


class Damaged(ArtifactError):
    """An artifact was found damaged when its bytes were read, and was set aside: the next look-up misses it."""


class TeacherError(PreflineError):
    """A teacher or judge cannot answer."""

    exit_code = 6


class TrainingError(PreflineError):
    """Training would give a wrong result, and was stopped."""

    exit_code = 7


class Resumable(PreflineError):
    """Stopped on request (SIGTERM, SIGINT or a budget); the partial work is kept, running again continues."""

    exit_code = 75


class BudgetSpent(Resumable):
    """A teacher's next request could pass its budget. What was received is kept; it goes on when the budget is raised."""


BY_EXIT_CODE: dict[int, type[PreflineError]] = {
    kind.exit_code: kind
    for kind in (ConfigError, DataError, ModelError, ArtifactError, TeacherError, TrainingError, Resumable)
}


def told(exit_code: int, kind: str, message: str) -> PreflineError:
    """The error that another process had, by its exit code; ``kind``, its name, tells a spent budget from a stop."""
    if kind == BudgetSpent.__name__:
        return BudgetSpent(message)
    return BY_EXIT_CODE.get(exit_code, PreflineError)(message)
