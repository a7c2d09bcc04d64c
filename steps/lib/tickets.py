"""Who a process is, over machines, boots and containers: written down by one who holds or uses something, read by all others."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

MARK = re.compile(r"([0-9a-f]{12})-(\d+)-(\d+)-[0-9a-f]{8}")
"""Machine, process, its start; and a random part."""


@dataclass(frozen=True)
class Ticket:
    """What a ticket's file says."""

    host: str
    boot: str
    """The boot of the holder's kernel."""
    space: str
    """The holder's space of process numbers: containers of one machine differ in it."""
    pid: int
    started: str
    """Start of the process in clock ticks since the boot ("" where the system does not tell): numbers are used again."""
    token: str
    """Random: two tickets of one process are two."""
    since: str
    beat: int = 0
    released: bool = False

    @classmethod
    def new(cls) -> Ticket:
        """A ticket of this process."""
        pid = os.getpid()
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return cls(*_here(), pid, _start_of(pid) or "", os.urandom(8).hex(), since)

    @classmethod
    def parse(cls, data: bytes | None) -> Ticket | None:
        """Read a ticket; None when the bytes are none, of a writer who was cut off, or of another version."""
        try:
            ticket = cls(**json.loads(data or b""))
            return ticket if 0 < ticket.pid < 2**31 else None
        except (ValueError, TypeError):
            return None

    def dump(self) -> bytes:
        """The bytes of the ticket's file."""
        return json.dumps(asdict(self)).encode()

    def alive(self) -> bool | None:
        """Whether the holder's process runs; None when it cannot be seen from here."""
        if (self.host, self.boot, self.space) != _here():
            return None
        start = _start_of(self.pid)
        return start is not None and (not start or not self.started or start == self.started)


def mark() -> str:
    """A part of a file's name that says which process is writing it."""
    pid = os.getpid()
    return f"{_machine()}-{pid}-{_start_of(pid) or '0'}-{os.urandom(4).hex()}"


def abandoned(folder: Path, pattern: str) -> list[Path]:
    """What fits a pattern and has in its name the mark of a process of this machine that is gone."""
    found = []
    for path in folder.glob(pattern):
        match = MARK.search(path.name)
        if match and match[1] == _machine():
            start = _start_of(int(match[2]))
            if start is None or (start and match[3] != "0" and start != match[3]):
                found.append(path)
    return found


def _machine() -> str:
    return hashlib.sha256(repr(_here()).encode()).hexdigest()[:12]


def _here() -> tuple[str, str, str]:
    """Host, boot and space of process numbers of this process."""
    host = platform.node()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return host, boot, os.readlink("/proc/self/ns/pid")
    except OSError:
        return host, host, ""


def _start_of(pid: int) -> str | None:
    """When a process started, in clock ticks since the boot ("" where the system does not tell); None: it has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:  # fields from the third on; the second is a name in brackets, with anything in it
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except OSError:
        return ""
    return None if fields[0] in "ZX" else fields[19]
