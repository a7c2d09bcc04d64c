"""The loop that asks: wanted answers go in as a stream, and come out in the same order.

Clients over a network are served side by side, each by ``concurrency`` workers that take from one queue, never a task a row;
clients in this process take turns, a window of consecutive requests at a time. What the ledger holds is never asked for. Every
outcome is committed to the ledger before anybody reads it. At most ``_room`` jobs are between the source and the reader, so
memory does not grow with the rows; a slow answer makes those behind it wait.

Several streams may share an exchange, one reading the other: there is one event loop, and whoever waits runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from steps.lib.asking import Client, Outcome, Request, Single, Tally
from steps.lib.desk import Desk, Job, P, Recorder, Settle, Window
from steps.lib.errors import PreflineError, Resumable, TeacherError
from steps.lib.ledger import Reply, RequestLedger
from steps.lib.runtime import Stop

WATCH_SECONDS = 0.1
CHUNK = 250
"""Jobs that are taken from a source at a time; their keys are looked up in one statement."""
ROOM = 1000
"""Jobs between source and reader, at least."""
NOT_ASKED = "not_asked"


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
        self._recorder = Recorder(self._ledger, self._loop, self._broken)
        self._stopped = asyncio.Event()
        self._turn = asyncio.Lock()
        """Clients in this process compute one after the other."""
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
                if self._settle(job, settle, reply, ""):
                    again.append(job)
            single = again

    def _send(self, desk: Desk, job: Job[P], settle: Settle[P]) -> None:
        assert job.request is not None
        if desk.error:
            self._leave(job)
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
                self._leave(job)
            return
        self._open(desk)
        desk.queue.put_nowait(Window(jobs, settle))

    def _open(self, desk: Desk) -> None:
        if desk.task is None:
            serve = self._serve_single if desk.single else self._serve_windows
            desk.task = self._loop.create_task(self._guard(desk, serve))

    def _starved(self, head: Job[P], windows: Mapping[str, list[Job[P]]]) -> bool:
        """Whether the reader waits for a job whose window is not full."""
        return not head.done and any(job is head for held in windows.values() for job in held[:1])

    # --- answers out --------------------------------------------------------------------------------------------------

    def _settle(self, job: Job[P], settle: Settle[P], reply: Reply | None, reason: str) -> bool:
        """Give a job what became of its request. True: it has a new one."""
        job.reply, job.reason = reply, reason
        follow = settle(job)
        if follow is None:
            job.finish()
            return False
        job.request = follow
        return True

    def _leave(self, job: Job[Any]) -> None:
        """Its teacher is gone: it was not asked, and stays pending in the ledger."""
        job.reply, job.reason = None, NOT_ASKED
        job.finish()

    # --- clients over a network ---------------------------------------------------------------------------------------

    async def _serve_single(self, desk: Desk) -> None:
        client = desk.client
        assert isinstance(client, Single)
        async with client:
            workers = [asyncio.create_task(self._work(desk, client)) for _ in range(client.concurrency)]
            ends = asyncio.create_task(self._stopped.wait())
            try:
                open_: set[asyncio.Task[Any]] = {*workers}
                while open_ and not ends.done() and not desk.error:
                    done, _ = await asyncio.wait({*open_, ends}, return_when=asyncio.FIRST_COMPLETED)
                    open_ -= done
                    for task in done - {ends}:
                        task.result()
                for _ in open_:
                    desk.queue.put_nowait(None)
                if open_:
                    await asyncio.wait(open_, timeout=client.grace_seconds if ends.done() else None)
                for worker in workers:
                    if worker.done():
                        worker.result()
            finally:
                for task in (ends, *workers):
                    task.cancel()
                await asyncio.gather(ends, *workers, return_exceptions=True)

    async def _work(self, desk: Desk, client: Single) -> None:
        """One worker: it takes requests until there are no more, and sees a request's repairs through."""
        while (request := await desk.queue.get()) is not None:
            todo = [request]
            while todo and not (self._stopped.is_set() or desk.error):
                request = todo.pop()
                try:
                    outcome = await client.ask(request, self._stopped)
                except (TeacherError, Resumable) as error:
                    desk.error = desk.error or error
                    return
                if outcome is None:
                    return
                await self._recorder.written(desk, request, outcome)
                todo += self._answered(desk, request, outcome)
            if self._stopped.is_set() or desk.error:
                return

    def _answered(self, desk: Desk, request: Request, outcome: Outcome) -> list[Request]:
        """Settle all jobs that waited for a request; gives the follow-ups that are to be sent."""
        todo: list[Request] = []
        for place, (job, settle) in enumerate(desk.flying.pop(request.key)):
            job.asked = job.asked or place == 0
            reply, reason = outcome.reply, outcome.reason
            while self._settle(job, settle, reply, reason):
                assert job.request is not None
                desk.tally.requests += 1
                if (waiting := desk.flying.get(job.request.key)) is not None:
                    desk.tally.from_ledger += 1
                    waiting.append((job, settle))
                    break
                known = self._ledger.get(job.request.key)
                if known is None:
                    desk.flying[job.request.key] = [(job, settle)]
                    todo.append(job.request)
                    break
                desk.tally.from_ledger += 1
                reply, reason = known, ""
        return todo

    # --- clients that are asked window by window ----------------------------------------------------------------------

    async def _serve_windows(self, desk: Desk) -> None:
        while (window := await desk.queue.get()) is not None and not self._stopped.is_set():
            jobs = window.jobs
            while jobs and not self._stopped.is_set():
                jobs = await self._window(desk, jobs, window.settle)
            if desk.error:
                return

    async def _window(self, desk: Desk, jobs: list[Job[Any]], settle: Settle[Any]) -> list[Job[Any]]:
        """Ask for one window; gives the jobs that have a follow-up, which are a window of their own."""
        client: Any = desk.client  # a Batching
        unique = {job.request.key: job.request for job in jobs if job.request}
        known = self._ledger.get_many(list(unique), earlier=not client.alone)
        outcomes = {key: Outcome(reply) for key, reply in known.items()}
        missing = frozenset(unique.keys() - outcomes.keys())
        desk.tally.requests += len(jobs)
        desk.tally.from_ledger += len(jobs) - len(missing)

        def report(request: Request, outcome: Outcome) -> None:
            self._recorder.write(desk, request, outcome)
            desk.tally.count(outcome)
            outcomes[request.key] = outcome

        try:
            if missing and not desk.error:
                async with self._turn if client.alone else contextlib.nullcontext():
                    await client.answer(list(unique.values()), missing, report, self._stopped)
        except (TeacherError, Resumable) as error:
            desk.error = error
        again: list[Job[Any]] = []
        for job in jobs:
            assert job.request is not None
            outcome = outcomes.get(job.request.key)
            if outcome is None:
                if not self._stopped.is_set():
                    self._leave(job)
                continue
            job.asked = job.asked or job.request.key in missing
            if self._settle(job, settle, outcome.reply, outcome.reason):
                again.append(job)
        return again

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
                self._leave(job)
        desk.flying.clear()
        while not desk.queue.empty():
            held = desk.queue.get_nowait()
            for job in held.jobs if isinstance(held, Window) else ():
                self._leave(job)

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


def _joined(errors: Sequence[PreflineError]) -> PreflineError:
    """One error for several teachers: one that cannot answer weighs more than one that may go on later."""
    broken = [error for error in errors if isinstance(error, TeacherError)]
    kind = TeacherError if broken else type(errors[0])
    return kind("\n".join(str(error) for error in errors))
