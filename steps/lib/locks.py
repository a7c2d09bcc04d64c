"""One builder a key, over processes and machines that share a store.

A lock is a folder of numbered tickets, ``<name>/<n>`` below a place; the highest n is the truth. It is free when there is none or
the highest says released. Taking it is creating n + 1, which one of many can do; holding it is rewriting n (a heartbeat);
releasing it is rewriting n once more. The highest is never deleted; the new holder deletes the ones below its own.

A holder that died on this machine is followed at once: its process is gone. Any other is followed after a time without a
heartbeat, on the clock of the one who waits: no two clocks are compared, and clocks may be set back. A holder that was stopped,
or cut off from the store, and comes back finds the higher ticket at its next heartbeat, and ends.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import NoReturn

from steps.lib.errors import ArtifactError, Resumable
from steps.lib.place import Place
from steps.lib.stopping import Stop
from steps.lib.tickets import Ticket

BEAT = 5.0
"""Seconds between two heartbeats of a holder."""
SILENCE = 60.0
"""Seconds without a heartbeat after which others take a lock over, and its holder gives it up."""
REMINDER = 60.0
"""Seconds between two log lines of one who waits."""
SILENT = "the store is not at hand, and others may take the lock by now"
AGAIN = "the partial work is kept: run the same command again to go on"
AWAY = ("the store is not at hand", "run the same command again when it is")
READ_ONLY = ("the store cannot be written here", "make it writable for this user, or give another store")
FULL = ("the store has no room", "free some space and run the same command again")
REFUSALS = {
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), READ_ONLY),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), FULL),
}
"""Errors that waiting does not mend: cause, and what to do."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    host: str
    pid: int
    since: str
    """UTC, as the holder's clock said; for people only."""
    alive: bool | None
    """True: its process runs here. None: it cannot be seen from here."""


@dataclass(frozen=True)
class _Terms:
    """What one who wants a lock has to say: see ``hold``."""

    place: Place
    name: str
    log: logging.Logger
    beat: float
    silence: float


class Held:
    """A lock that this process holds; a thread beats until it is released or lost."""

    waited: bool
    """Whether another held the lock while we wanted it. It need not have ended well: look at what the lock guards."""

    def __init__(self, terms: _Terms, number: int, ticket: Ticket, last: float, waited: bool) -> None:
        self.waited = waited
        self._terms, self._number, self._ticket = terms, number, ticket
        self._place, self._name, self._log = terms.place, terms.name, terms.log
        self._file = f"{terms.name}/{number}"
        self._last = last  # start of the last heartbeat that was written, on this process's monotonic clock
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._loss = ""

    def check(self) -> None:
        """Beat, and look at the place afresh. Called right before the result is published.

        Raises:
            ArtifactError: the lock is another's by now, or the place cannot be reached.
        """
        while True:
            try:
                return self._renew()
            except OSError as error:
                if self._left() <= 0:
                    message = self._lose(f"no heartbeat written for {self._terms.silence:g} s ({error})", SILENT)
                    raise ArtifactError(message) from error
            time.sleep(min(self._terms.beat, self._left()))

    def _left(self) -> float:
        """Seconds until others may take the lock over, if no heartbeat is written any more."""
        return max(0.0, self._last + self._terms.silence - time.monotonic())

    def _start(self, lost: Callable[[str], None]) -> None:
        thread = threading.Thread(target=self._run, args=(lost,), name=f"lock {self._name}", daemon=True)
        thread.start()
        self._thread = thread
        with suppress(OSError):  # the next holder tidies what stays
            for number in _numbers(self._place, self._name):
                if number < self._number:
                    self._place.delete(f"{self._name}/{number}")

    def _run(self, lost: Callable[[str], None]) -> None:
        trouble = False
        while not self._ended.wait(min(self._terms.beat, self._left())):
            try:
                self._renew()
                trouble = False
            except ArtifactError as error:
                return None if self._ended.is_set() else lost(str(error))
            except Exception as error:  # whatever the place raises: the next heartbeat may pass
                if self._left() <= 0:
                    return lost(self._lose(f"no heartbeat written for {self._terms.silence:g} s ({error})", SILENT))
                if not trouble:
                    self._log.warning("lock %s: a heartbeat was not written (%s); trying again", self._name, error)
                trouble = True

    def _renew(self) -> None:
        """Beat. First whose ticket it is (someone may have deleted the folder), last whether a higher one is there."""
        with self._turn:
            if self._loss:
                raise ArtifactError(self._loss)
            start = time.monotonic()
            found = Ticket.parse(self._place.read(self._file))
            if found is not None and found.token != self._ticket.token:
                raise ArtifactError(self._lose(f"a ticket of {_name_of(found)}", "the lock's folder was deleted"))
            self._ticket = replace(self._ticket, beat=self._ticket.beat + 1)
            self._place.write(self._file, self._ticket.dump())
            number, data = _newest(self._place, self._name)
            if number > self._number:
                with suppress(OSError):
                    self._place.delete(self._file)
                got = f"a later ticket, of {_name_of(Ticket.parse(data))}"
                raise ArtifactError(self._lose(got, "this process was stopped, or away from the store, for too long"))
            self._last = start

    def _lose(self, got: str, cause: str) -> str:
        self._loss = f"lock {self._name} is lost: got {got}, because {cause}; {AGAIN}"
        return self._loss

    def _release(self) -> None:
        """Say released, unless the lock was lost. Never raises: others follow a silent holder, too."""
        self._ended.set()
        try:
            if self._thread is not None:
                self._thread.join(self._terms.silence)
                if self._thread.is_alive():
                    raise TimeoutError("its last heartbeat is still being written")
            found = Ticket.parse(self._place.read(self._file))
            if not self._loss and found is not None and found.token == self._ticket.token:
                self._place.write(self._file, replace(self._ticket, released=True).dump())
        except Exception as error:  # whatever the place raises: an exception of the block may be in flight
            self._log.warning("lock %s was not released (%s); others follow without it", self._name, error)


def _exit(message: str) -> NoReturn:
    try:
        sys.stderr.write(f"ArtifactError: {message}\n")
        sys.stderr.flush()
    finally:
        os._exit(Resumable.exit_code)


@contextmanager
def hold(
    place: Place,
    name: str,
    *,
    log: logging.Logger,
    stop: Stop | None = None,
    beat: float = BEAT,
    silence: float = SILENCE,
    lost: Callable[[str], None] = _exit,
) -> Iterator[Held]:
    """Hold a lock for the length of the block; wait for it as long as someone else does.

    Args:
        place: where the tickets lie; everyone who shares it and uses the name is kept out.
        name: the lock's folder in the place.
        log: says whom we wait for, at once and each minute, and troubles with the place.
        stop: looked at while waiting.
        beat: seconds between two heartbeats; the same for all who use the lock.
        silence: seconds without a heartbeat after which a holder is followed; the same for all who use the lock.
        lost: called by the heartbeat's thread with a message when the lock is lost. By default the process ends with code 75.

    Raises:
        ArtifactError: the place cannot be written, or was out of reach for the length of the silence.
        Resumable: ``stop`` was set while waiting.
    """
    held = _take(_Terms(place, name, log, beat, silence), stop)
    try:
        held._start(lost)
        yield held
    finally:
        held._release()


def holder(place: Place, name: str) -> Holder | None:
    """Who holds a lock now; None when it is free or its holder's process is gone."""
    number, data = _newest(place, name)
    ticket = Ticket.parse(data)
    if ticket is None:
        return Holder("unknown", 0, "unknown", None) if number else None
    alive = ticket.alive()
    return None if ticket.released or alive is False else Holder(ticket.host, ticket.pid, ticket.since, alive)


def _take(terms: _Terms, stop: Stop | None) -> Held:
    """Wait until the lock is ours. A create that was answered wrongly, or not at all, is seen by the token on top."""
    place, name, log = terms.place, terms.name, terms.log
    ticket = Ticket.new()
    seen: tuple[int, bytes] | None = None
    quiet = 0.0  # seconds that we saw no change; time in which we did not look (stopped, store away) does not count
    looked = reached = tried = time.monotonic()
    told = -REMINDER
    trouble = waited = False
    created, why, pause = 0, "", terms.beat / 100
    while True:
        try:
            found = _newest(place, name)
            number, top = found[0], Ticket.parse(found[1])
            now = time.monotonic()
            quiet = quiet + min(now - looked, terms.beat) if found == seen else 0.0
            seen, looked = found, now
            if top is not None and top.token == ticket.token:
                if why:
                    log.warning("lock %s is taken over from %s", name, why)
                return Held(terms, number, ticket, tried, waited)
            if created and created < number:  # we were slow: this number had been used and tidied away before
                place.delete(f"{name}/{created}")
                created = 0
            free = number == 0 or (top is not None and top.released)
            dead = top is not None and top.alive() is False
            if free or dead or quiet >= terms.silence:
                reason = "its process is gone" if dead else f"no heartbeat for {terms.silence:g} s"
                why = "" if free else f"{_name_of(top)}: {reason}"
                tried = time.monotonic()
                if place.create(f"{name}/{number + 1}", ticket.dump()):
                    created = number + 1
                    continue  # without a look at stop: we may hold it
            elif now - told >= REMINDER:
                told = now
                log.info("waiting for lock %s: it is held by %s", name, _name_of(top))
            waited, reached, trouble = True, time.monotonic(), False
        except OSError as error:
            looked = time.monotonic()
            code = errno.EACCES if isinstance(error, PermissionError) else error.errno or 0
            if code in REFUSALS or looked - reached >= terms.silence:
                cause, remedy = REFUSALS.get(code, AWAY)
                message = f"lock {name} cannot be taken: got {error}, because {cause}; {remedy}"
                raise ArtifactError(message) from error
            if not trouble:
                log.warning("lock %s: the store is not at hand (%s); trying again", name, error)
            trouble = True
        if stop is not None:
            stop.check()
        time.sleep(pause)
        pause = min(pause * 1.5, terms.beat / 5)


def _name_of(ticket: Ticket | None) -> str:
    return f"process {ticket.pid} on {ticket.host} since {ticket.since}" if ticket else "one who left no legible ticket"


def _numbers(place: Place, name: str) -> list[int]:
    return sorted(int(one) for one in place.names(name) if one.isascii() and one.isdigit())


def _newest(place: Place, name: str) -> tuple[int, bytes]:
    """Number and bytes of the highest ticket; 0 when there is none."""
    for _ in range(3):  # what was listed may be tidied away before it is read; then there is a higher one
        number = max(_numbers(place, name), default=0)
        data = place.read(f"{name}/{number}") if number else b""
        if data is not None:
            return number, data
    return number, b""
