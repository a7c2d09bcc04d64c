"""The loop that asks: wanted answers go in as a stream, and come out in the same order.

What the ledger holds is never asked for; the rest goes to the desk of its teacher, which ``serving`` works through. Every outcome
is committed to the ledger before anybody reads it. At most ``_room`` jobs are between the source and the reader, so
memory does not grow with the rows; a slow answer makes those behind it wait.

Several streams may share an exchange, one reading the other: there is one event loop, and whoever waits runs it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from steps.lib.asking import Client, Request, Single, Tally
from steps.lib.desk import Desk, Job, P, Recorder, Settle, Window
from steps.lib.errors import PreflineError, Resumable, TeacherError
from steps.lib.ledger import RequestLedger
from steps.lib.serving import Serving
from steps.lib.stopping import Stop

WATCH_SECONDS = 0.1
CHUNK = 250
"""Jobs that are taken from a source at a time; their keys are looked up in one statement."""
ROOM = 1000
"""Jobs between source and reader, at least."""


class Exchange:
    """Clients, a ledger, and a loop between them.

    Args:
        clients: by name.
        ledger: answers are written here before they are read.
        stop: a signal ends the asking; what is in flight gets a short grace.
        log: for warnings; never sees an answer or a key.
        tallies: filled, by name.
        tick: called often while answers are waited for.
    """

    def __init__(
        self,
        clients: Mapping[str, Client],
        ledger: RequestLedger,
        stop: Stop,
        log: logging.Logger,
        tallies: dict[str, Tally],
        tick: Callable[[], None] | None = None,
    ) -> None:
        self._ledger, self._stop, self._log, self._tick = ledger, stop, log, tick
        self._desks = {name: Desk(name, client, tallies.setdefault(name, Tally())) for name, client in clients.items()}
        self._room = ROOM + 4 * sum(client.concurrency for client in clients.values() if isinstance(client, Single))
        self._crash: BaseException | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._serving = Serving(self._ledger, Recorder(self._ledger, self._loop, self._broken), self._stopped)
        self._watcher = self._loop.create_task(self._follow())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is in flight gets its grace, so that nothing received is lost, whatever ends the block."""
        try:
            self._loop.run_until_complete(self._close())
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
        for desk in self._desks.values():
            if len(desk.tally.models) > 1:
                self._log.warning(
                    "teacher %s answered as %d models: %s; one endpoint should serve one model",
                    desk.name,
                    len(desk.tally.models),
                    ", ".join(sorted(desk.tally.models)),
                )
        if error is None and self._crash is not None:
            raise self._crash

    def stream(self, jobs: Iterable[Job[P]], settle: Settle[P]) -> Iterator[Job[P]]:
        """Jobs in the order they came, each done.

        Args:
            jobs: pulled as there is room. Those that are done already keep their place.
            settle: called once for each reply or failure, in any order of jobs.

        Raises:
            TeacherError: a teacher could not go on; the others finished first.
            BudgetSpent: the same, for want of budget alone.
            Resumable: ``stop`` was set.
        """
        source, ended = iter(jobs), False
        line: deque[Job[P]] = deque()
        windows: dict[str, list[Job[P]]] = {}
        used: set[str] = set()
        while True:
            while not ended and (len(line) <= self._room - CHUNK or self._starved(line[0], windows)):
                self._check()
                chunk = list(itertools.islice(source, CHUNK))
                ended = len(chunk) < CHUNK
                line += chunk
                used |= {job.teacher for job in chunk if not job.done}
                self._take(chunk, settle, windows)
                ended = ended or bool(used) and all(self._desks[name].error for name in used)
            if ended:
                for name, held in windows.items():
                    self._hand_window(self._desks[name], held, settle)
                windows.clear()
            if not line:
                break
            if not line[0].done:
                self._wait(line[0])
            while line and line[0].done:
                yield line.popleft()
        self._check()
        errors = [desk.error for name in sorted(used) if (desk := self._desks[name]).error]
        if errors:
            raise _joined(errors)

    # --- jobs in ------------------------------------------------------------------------------------------------------

    def _take(self, jobs: Sequence[Job[P]], settle: Settle[P], windows: dict[str, list[Job[P]]]) -> None:
        """Look up what is on record; hand out the rest."""
        single: list[Job[P]] = []
        for job in jobs:
            if job.done:
                continue
            desk = self._desks[job.teacher]
            if desk.single:
                single.append(job)
                continue
            held = windows.setdefault(job.teacher, [])
            held.append(job)
            if len(held) >= desk.window:
                self._hand_window(desk, windows.pop(job.teacher), settle)
        while single:
            found = self._ledger.get_many([job.request.key for job in single if job.request])
            again: list[Job[P]] = []
            for job in single:
                assert job.request is not None
                desk = self._desks[job.teacher]
                reply = found.get(job.request.key)
                if reply is None:
                    self._send(desk, job, settle)
                    continue
                desk.tally.requests += 1
                desk.tally.from_ledger += 1
                if job.settle(settle, reply):
                    again.append(job)
            single = again

    def _send(self, desk: Desk, job: Job[P], settle: Settle[P]) -> None:
        assert job.request is not None
        if desk.error:
            job.leave()
            return
        desk.tally.requests += 1
        if job.request.key in desk.flying:
            desk.tally.from_ledger += 1
            desk.flying[job.request.key].append((job, settle))
            return
        desk.flying[job.request.key] = [(job, settle)]
        self._open(desk)
        desk.queue.put_nowait(job.request)

    def _hand_window(self, desk: Desk, jobs: list[Job[P]], settle: Settle[P]) -> None:
        if desk.error:
            for job in jobs:
                job.leave()
            return
        self._open(desk)
        desk.queue.put_nowait(Window(jobs, settle))

    def _open(self, desk: Desk) -> None:
        if desk.task is None:
            serve = self._serving.single if desk.single else self._serving.windows
            desk.task = self._loop.create_task(self._guard(desk, serve))

    def _starved(self, head: Job[P], windows: Mapping[str, list[Job[P]]]) -> bool:
        """Whether the reader waits for a job whose window is not full."""
        return not head.done and any(job is head for held in windows.values() for job in held[:1])

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def _guard(self, desk: Desk, serve: Callable[[Desk], Any]) -> None:
        """Serve a desk to its end. What is left then was not asked; an error that is not the teacher's ends all."""
        try:
            await serve(desk)
        except (TeacherError, Resumable) as error:
            desk.error = desk.error or error
        except Exception as error:
            self._broken(error)
        finally:
            self._drain(desk)
            self._wake()

    def _drain(self, desk: Desk) -> None:
        """Give up what nobody will ask any more, so that the other teachers go on. (After a stop nobody reads on.)"""
        if not desk.error:
            return
        for waiting in desk.flying.values():
            for job, _ in waiting:
                job.leave()
        desk.flying.clear()
        while not desk.queue.empty():
            held = desk.queue.get_nowait()
            for job in held.jobs if isinstance(held, Window) else ():
                job.leave()

    def _wait(self, job: Job[Any]) -> None:
        """Run the loop until a job is done, or a signal came, or something broke."""
        self._check()
        waiter = job.waiter = self._loop.create_future()
        self._waiters.add(waiter)
        try:
            self._loop.run_until_complete(waiter)
        finally:
            self._waiters.discard(waiter)
            job.waiter = None
        if not job.done:
            self._check()

    def _broken(self, error: Exception) -> None:
        """Something that is no teacher's fault: all ends."""
        self._crash = self._crash or error
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _check(self) -> None:
        if self._crash is not None:
            raise self._crash
        if self._stop:
            self._loop.run_until_complete(self._close())
            self._stop.check()

    async def _follow(self) -> None:
        """The event follows the flag: a signal handler may set a flag, but cannot wake a sleeping task."""
        while not self._stop:
            await asyncio.sleep(WATCH_SECONDS)
            if self._tick:
                self._tick()
        self._stopped.set()
        self._wake()

    async def _close(self) -> None:
        """Nothing new is sent; what is in flight gets its grace."""
        self._stopped.set()
        self._watcher.cancel()
        tasks = [desk.task for desk in self._desks.values() if desk.task]
        for desk in self._desks.values():
            desk.queue.put_nowait(None)
        await asyncio.gather(self._watcher, *tasks, return_exceptions=True)


def ask(
    work: Mapping[str, tuple[Client, Iterable[Request]]],
    ledger: RequestLedger,
    stop: Stop,
    log: logging.Logger,
    tallies: dict[str, Tally],
) -> Iterator[Request]:
    """Ask for all that the ledger does not hold; yields each request that was asked after its outcome was recorded.

    Args:
        work: name -> client and its requests, which are pulled as they are needed. Clients over a network work side by
        side, those in this process one by one.
        ledger: answers are written here before they are yielded.
        stop: a signal ends the asking; what is in flight gets a short grace.
        log: for warnings; never sees an answer or a key.
        tallies: filled, by name.

    Raises:
        TeacherError: a teacher could not go on; the others finished first.
        Resumable: ``stop`` was set.
    """

    def jobs() -> Iterator[Job[None]]:
        taken = [zip(itertools.repeat(name), requests, strict=False) for name, (_, requests) in work.items()]
        for turn in itertools.zip_longest(*taken):
            yield from (Job(None, *pair) for pair in turn if pair is not None)

    clients = {name: client for name, (client, _) in work.items()}
    with Exchange(clients, ledger, stop, log, tallies) as exchange:
        for job in exchange.stream(jobs(), lambda job: None):
            if job.asked and job.request is not None:
                yield job.request


def _joined(errors: Sequence[PreflineError]) -> PreflineError:
    """One error for several teachers: one that cannot answer weighs more than one that may go on later."""
    broken = [error for error in errors if isinstance(error, TeacherError)]
    kind = TeacherError if broken else type(errors[0])
    return kind("\n".join(str(error) for error in errors))
