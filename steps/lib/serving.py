"""Desks at work: clients over a network side by side, each by ``concurrency`` workers that take from one queue, never a task a
row; clients in this process in turns, a window of consecutive requests at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from steps.lib.asking import Outcome, Request, Single
from steps.lib.desk import Desk, Job, Recorder, Settle
from steps.lib.errors import Resumable, TeacherError
from steps.lib.ledger import RequestLedger


class Serving:
    """Asks what lies on a desk.

    Args:
        ledger: what it holds is not asked for.
        recorder: commits outcomes before jobs are settled.
        stopped: nothing new is sent once it is set.
    """

    def __init__(self, ledger: RequestLedger, recorder: Recorder, stopped: asyncio.Event) -> None:
        self._ledger, self._recorder, self._stopped = ledger, recorder, stopped
        self._turn = asyncio.Lock()
        """Clients in this process compute one after the other."""

    async def single(self, desk: Desk) -> None:
        """Serve a client over a network, until its queue ends."""
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
            while job.settle(settle, reply, reason):
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

    async def windows(self, desk: Desk) -> None:
        """Serve a client that is asked window by window, until its queue ends."""
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
                    job.leave()
                continue
            job.asked = job.asked or job.request.key in missing
            if job.settle(settle, outcome.reply, outcome.reason):
                again.append(job)
        return again
