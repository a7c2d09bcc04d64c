"""What a killed line is compared with: the same line, undisturbed; and what must not be left over."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fault.changes import recorded
from fault.micro import TASK_PROMPTS, UPDATES, digests, forget, walk
from minimal import Line

from flows.line import steps_of
from steps.lib.locks import holder
from steps.lib.place import FolderPlace

TRAINING = ("base", "pretrain", "sft", "dpo")


@dataclass
class Findings:
    """What a comparison found."""

    asked_again: int = 0
    """Answers asked of the teacher more often than once."""
    updated_again: int = 0
    """Training updates done more often than once."""
    problems: list[str] = field(default_factory=list)


@dataclass
class Micro:
    """A built line, and what building each step of it undisturbed was like."""

    line: Line
    digests: dict[str, str]
    histories: dict[str, bytes]
    registry: list[str]
    seconds: dict[str, float] = field(default_factory=dict)
    """Of ``prefline step NAME``, undisturbed."""
    changes: dict[str, list[str]] = field(default_factory=dict)
    """Paths that changed in the store (for promote, in the registry, too)."""

    @classmethod
    def measure(
        cls, line: Line, build: Callable[[str], None], extra: Callable[[str], float] = lambda step: 0.0
    ) -> Micro:
        """Build each step of a built line once more, alone.

        Args:
            line: the line; its teacher must answer.
            build: builds a step.
            extra: seconds that ``prefline step`` takes longer than ``build``.
        """
        outcomes = walk(line)
        histories = {
            step: path.read_bytes()
            for step, outcome in outcomes.items()
            if (path := outcome.artifact.path / "record" / "history.jsonl").exists()
        }
        found = cls(line, digests(outcomes), histories, [])
        for step in steps_of(line.config()):
            forget(line, outcomes[step])
            with recorded(watched(line, step)) as changes:
                started = time.monotonic()
                build(step)
                found.seconds[step] = time.monotonic() - started + extra(step)
            found.changes[step] = [path.relative_to(line.folder).as_posix() for path in changes]
        again = digests(walk(line))
        assert again == found.digests, (
            f"undisturbed rebuilding gives other digests: {again} in place of {found.digests}"
        )
        found.registry = registry_state(line)
        return found


def compare(micro: Micro, line: Line, missing: dict[str, str], asked: int, allowed: dict[str, int]) -> Findings:
    """Compare a line that went on with the undisturbed one.

    Args:
        micro: the undisturbed line.
        line: the one that was killed.
        missing: step -> key of what had to be built.
        asked: requests that came to the teacher.
        allowed: how many answers ("asked") and updates ("updated") may have been done twice.
    """
    found, store = Findings(), line.folder / "store"
    problems = found.problems
    after = walk(line)
    if built := [step for step, outcome in after.items() if not outcome.cached]:
        problems.append(f"a walk afterwards builds {built}")
    if differing := [step for step, digest in digests(after).items() if digest != micro.digests[step]]:
        problems.append(f"other digests of {differing}")
    if broken := sorted(path.name for path in (store / "broken").glob("*")):
        reasons = [path.read_text() for path in (store / "broken").glob("*.reason.txt")]
        problems.append(f"set aside without damage: {broken}, {reasons}")
    if left := sorted(
        path.relative_to(store).as_posix() for path in store.glob("*/.*") if not path.parent.name.startswith(".")
    ):
        problems.append(f"left behind: {left}")
    for step in missing:
        if held := holder(FolderPlace(store), f".locks/{missing[step].replace('/', '-')}"):
            problems.append(f"the lock of {step} is still held: {held}")
        if step == "generate":
            found.asked_again = asked - TASK_PROMPTS
            if not 0 <= found.asked_again <= allowed["asked"]:
                problems.append(
                    f"{asked} answers were asked for where {TASK_PROMPTS} are needed (allowed: {allowed['asked']} more)"
                )
        if step in TRAINING:
            record = after[step].artifact.path / "record"
            lines = [json.loads(text)["message"] for text in (record / "log.jsonl").read_text().splitlines()]
            updates = [int(shown[1]) for text in lines if (shown := re.match(r"update (\d+)/", text))]
            again = len(updates) - UPDATES
            found.updated_again += again
            if not 0 <= again <= allowed["updated"]:
                problems.append(
                    f"updates {updates} of {step} where {UPDATES} are needed (allowed: {allowed['updated']} more)"
                )
            if (record / "history.jsonl").read_bytes() != micro.histories[step]:
                problems.append(f"another history of {step}: {(record / 'history.jsonl').read_text()}")
    if "generate" not in missing and asked:
        problems.append(f"the teacher was asked {asked} times for what was there")
    if (state := registry_state(line)) != micro.registry:
        problems.append(f"another registry: {sorted({*state} ^ {*micro.registry})}")
    return found


def watched(line: Line, step: str) -> list[Path]:
    """Folders in which a step's process writes."""
    folders = [line.folder / "store" / step, line.folder / "store" / ".locks"]
    return folders + ([line.folder / "registry"] if step == "promote" else [])


def registry_state(line: Line) -> list[str]:
    """What the registry holds: versions, events (action and target), aliases. Leftovers show, too."""
    [home] = (line.folder / "registry").iterdir()
    events = [json.loads(path.read_text()) for path in sorted((home / "events").glob("*"))]
    told = [" ".join(str(event.get(name, "")) for name in ("action", "alias", "to")) for event in events]
    files = sorted(path.relative_to(home).as_posix() for path in home.rglob("*"))
    return [*files, *told, json.dumps(json.loads((home / "aliases.json").read_text())["aliases"])]


def members(session: int) -> dict[int, str]:
    """Living processes of a session and their command lines."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            if int(fields[3]) == session and fields[0] not in (b"Z", b"X"):
                found[int(folder.name)] = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
