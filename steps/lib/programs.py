"""Items in, answers out: a stage of a recipe asks teachers about items, and reads what they say.

A reply that breaks its schema is mended here where that is certain (flag ``repaired``), then asked for again, as often as the
prompt file says, with its own words and the reason.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from steps.lib.asking import Request, Requests, Single, Tally
from steps.lib.desk import Job
from steps.lib.errors import DataError, TeacherError
from steps.lib.exchange import Exchange
from steps.lib.funnel import Funnel
from steps.lib.gauge import Gauge
from steps.lib.items import Answer, Item, Lost, Spool
from steps.lib.ledger import RequestLedger, Used
from steps.lib.marks import Marks
from steps.lib.prompts import OverBudget, Parsed, PromptFile, Rendered
from steps.lib.row_ledger import RowLedger
from steps.lib.runtime import Stop
from steps.lib.teacher import ScriptedClient, assign, open_client
from steps.lib.teacher_config import Teacher
from steps.lib.tokens import Counter as Counting
from steps.lib.tokens import counter

__all__ = ["Answer", "Asker", "Item", "Lost", "Spool"]

EARLY = 500
"""Answers between two looks at the share that is kept."""
UNREAD = frozenset({"empty", "unparsed", "schema", "truncated"})
"""Flags of answers that have not the asked form."""


@dataclass(slots=True)
class _Wanted:
    """One answer on its way."""

    item: Item
    rendered: Rendered | None = None
    parsed: Parsed | None = None
    round: int = 0
    lost: Lost | None = None


class Asker:
    """Asks teachers about items: one ledger, one event loop, one place for the counts.

    Args:
        teachers: who answers, by shares.
        seed: seed of the run.
        folder: for the request ledger (``requests.sqlite``), spools, and what clients remember.
        log: for warnings.
        stop: set by a signal.
        rows: counts every stage: taken, kept, dropped by reason.
        max_failed_share: share of a stage's answers that may fail to come.
        min_kept_share: share of a stage's answers that flags must leave.
        earlier: request ledgers of other runs, read only.
        gauge: looks at the teachers while they work; says how far they are in the log.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        *,
        seed: int,
        folder: Path,
        log: logging.Logger,
        stop: Stop | None = None,
        rows: RowLedger | None = None,
        max_failed_share: float = 1.0,
        min_kept_share: float = 0.0,
        earlier: Iterable[Path] = (),
        gauge: Gauge | None = None,
    ) -> None:
        self.gauge = gauge or Gauge()
        self.seed, self.rows = seed, RowLedger() if rows is None else rows
        self.tallies: dict[str, Tally] = {}
        """Teacher -> what it did in this run."""
        self.funnels: dict[str, Funnel] = {}
        """Stage -> what became of its answers."""
        self._teachers, self._folder, self._log = list(teachers), folder, log
        self._stop = Stop() if stop is None else stop  # a stop that is not set is false
        self._max_failed, self._min_kept = max_failed_share, min_kept_share
        self.ledger = RequestLedger(folder / "requests.sqlite", log, earlier)
        with ExitStack() as stack:
            stack.enter_context(self.ledger)
            self.clients = {
                one.name: open_client(one, seed, self.ledger.spent(one.name), folder=folder, log=log)
                for one in self._teachers
            }
            self._exchange = stack.enter_context(
                Exchange(self.clients, self.ledger, self._stop, log, self.tallies, self._tick)
            )
            self._stack = stack.pop_all()
        self._counters: dict[str, Counting] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def count(self, text: str) -> int:
        """Tokens of a text: the most that any of the teachers counts."""
        return max(self.counter(one.name)(text) for one in self._teachers)

    def counter(self, teacher: str) -> Counting:
        """How the tokens of a teacher are counted; its tokenizer is loaded when first needed."""
        if teacher not in self._counters:
            self._counters[teacher] = counter(next(one for one in self._teachers if one.name == teacher))
        return self._counters[teacher]

    def spool(self, name: str, items: Iterable[Item]) -> Spool:
        """The items on disk; can be gone through again and again. They are taken at once."""
        path = self._folder / f"spool-{name}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for item in items:
                line = [item.row.__dict__, item.id, item.sample, dict(item.seen), [dict(one) for one in item.trail]]
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return Spool(path)

    def ask(
        self,
        stage: str,
        prompt_file: PromptFile,
        items: Iterable[Item],
        *,
        samples: int = 1,
        drop_flags: Collection[str] = (),
    ) -> Iterator[Answer | Lost]:
        """Answers in the order of the items.

        Args:
            stage: name in rows, metrics and the request ledger.
            prompt_file: what teachers are told.
            items: pulled as requests are made.
            samples: answers to each item, numbered by ``Item.sample``; 1 keeps the item's own number.
            drop_flags: flags that turn an answer into a ``Lost``.

        Raises:
            TeacherError: a teacher could not go on (the others finished first), or more answers failed than may.
            DataError: flags kept back more answers than may.
            Resumable: a signal came, or a budget is spent.
        """
        return _Stage(self, stage, prompt_file, samples, frozenset(drop_flags)).run(items)

    @property
    def apart(self) -> bool:
        """Whether each answer hangs on its own request alone; a model in this process computes a window of them together."""
        return all(isinstance(client, Single | ScriptedClient) for client in self.clients.values())

    def funnel(self, stage: str) -> Funnel:
        """What became of the answers of a stage so far."""
        return self.funnels.setdefault(stage, Funnel())

    def absorb(self, stage: str, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Count answers of a stage that an earlier run asked for, read and wrote down (``Funnel.since``)."""
        self.funnel(stage).add(counts)
        for teacher, own in counts.items():
            self.rows.took(stage, own.get("asked", 0))
            self.rows.gave(f"{stage} kept", own.get("kept", 0))
            for what, count in own.items():
                if what.startswith(("failed:", "dropped:")):
                    self.rows.drop(stage, what.partition(":")[2], count)
            if teacher:
                requests = own.get("asked", 0) + own.get("repairs", 0)
                self.tallies[teacher].requests += requests
                self.tallies[teacher].from_ledger += requests

    def keep_back(self, answer: Answer, flag: str) -> Lost:
        """Take back an answer that its stage counted as kept, for what only all answers to a prompt together show."""
        funnel = self.funnels[answer.stage]
        funnel.count(answer.teacher, "kept", by=-1)
        funnel.count(answer.teacher, f"dropped:{flag}")
        self.rows.gave(f"{answer.stage} kept", -1)
        self.rows.drop(answer.stage, flag)
        return Lost(answer.item, answer.stage, flag, answer.reply.text, answer.teacher)

    def _tick(self) -> None:
        self.gauge.look(self.tallies.values())
        if self.gauge.due():
            self._log.info("asking: %s", self.gauge.reading())

    def measures(self) -> dict[str, float | int]:
        """Metrics of all stages and teachers. Requests are counted for this run alone; tokens, seconds and cost for all
        answers in the ledger, whichever run asked for them."""
        values: dict[str, float | int] = {}
        for stage, funnel in self.funnels.items():
            values |= funnel.measures(stage)
        used = self.ledger.used()
        for name, tally in self.tallies.items():
            all_runs = used.get(name, Used())
            values |= {
                f"{name}/requests": tally.requests,
                f"{name}/from_ledger": tally.from_ledger,
                f"{name}/answered": tally.answered,
                f"{name}/failed": tally.failed.total(),
                f"{name}/attempts": tally.attempts,
                f"{name}/tokens_in": all_runs.tokens_in,
                f"{name}/tokens_out": all_runs.tokens_out,
                f"{name}/seconds": round(all_runs.seconds, 3),
                f"{name}/cost": round(all_runs.cost, 6),
            }
            counts: dict[str, int] = getattr(
                self.clients[name], "counts", {}
            )  # other_model, cost_estimated: of this run
            values |= {f"{name}/{what}": count for what, count in sorted(counts.items())}
        return values


class _Stage:
    """One call of ``Asker.ask``."""

    def __init__(
        self, asker: Asker, name: str, prompt_file: PromptFile, samples: int, drop_flags: frozenset[str]
    ) -> None:
        self._asker, self._name, self._file, self._samples, self._drop = asker, name, prompt_file, samples, drop_flags
        self._digest, self._marks = prompt_file.digest(), Marks(prompt_file)
        self._funnel = asker.funnel(name)
        self._requests = {
            teacher: Requests(client, asker.seed, prompt_file.sent_schema, name, self._digest)
            for teacher, client in asker.clients.items()
        }
        self._names = [one.name for one in asker._teachers]
        self._shares = [one.share for one in asker._teachers]
        self._counted = prompt_file.max_context_tokens is not None

    def run(self, items: Iterable[Item]) -> Iterator[Answer | Lost]:
        """All answers; then the checks of the whole stage."""
        funnel, early = self._funnel, EARLY
        for job in self._asker._exchange.stream(self._jobs(items), self._settle):
            yield self._result(job)
            if funnel.answered >= early:
                early += EARLY
                self._check_kept(self._asker._min_kept / 2)
        self._check_failed()
        self._check_kept(self._asker._min_kept)
        self._asker.rows.balance({self._name: [f"{self._name} kept"]})

    def _jobs(self, items: Iterable[Item]) -> Iterator[Job[_Wanted]]:
        for item in items:
            chosen = (
                assign(self._shares, self._samples, item.row.prompt, self._asker.seed) if len(self._names) > 1 else None
            )
            known: dict[str, Rendered | OverBudget] = {}
            for sample in range(self._samples):
                teacher = self._names[chosen[sample] if chosen else 0]
                one = item if self._samples == 1 else replace(item, sample=sample)
                wanted = _Wanted(one)
                rendered = known.get(teacher if self._counted else "")
                if rendered is None:
                    rendered = known[teacher if self._counted else ""] = self._render(item, teacher)
                if isinstance(rendered, OverBudget):
                    wanted.lost = Lost(one, self._name, "over_budget", str(rendered))
                    yield Job(wanted, "", None, done=True)
                    continue
                wanted.rendered = rendered
                request = self._requests[teacher].make(
                    rendered.messages, prompt=item.row.prompt, sample=one.sample, source=item.id
                )
                yield Job(wanted, teacher, request)

    def _render(self, item: Item, teacher: str) -> Rendered | OverBudget:
        count = self._asker.counter(teacher) if self._counted else None
        try:
            return self._file.render(item.row, self._asker.seed, count, item.seen or None)
        except OverBudget as error:
            if self._file.over_budget == "error":
                raise
            return error

    def _settle(self, job: Job[_Wanted]) -> Request | None:
        """Read a reply; the request that asks again where it has not the asked form."""
        wanted, reply = job.payload, job.reply
        if reply is None:
            wanted.parsed = None
            return None
        parsed = self._file.parse(reply.text)
        if (
            reply.thought and self._file.chain_of_thought.mode == "apart"
        ):  # what came beside the answer was thought first
            parsed = replace(parsed, thought="\n".join(part for part in (reply.thought, parsed.thought) if part))
        wanted.parsed = parsed
        if parsed.problem is None or reply.finish_reason == "length" or wanted.round >= self._file.repairs:
            return None
        wanted.round += 1
        assert job.request is not None
        item, rendered = wanted.item, wanted.rendered
        assert rendered is not None
        turns = self._file.retry(job.request.messages, reply.text, parsed, rendered.lang)
        return self._requests[job.teacher].make(turns, prompt=item.row.prompt, sample=item.sample, source=item.id)

    def _result(self, job: Job[_Wanted]) -> Answer | Lost:
        funnel, rows, wanted, name = self._funnel, self._asker.rows, job.payload, self._name
        item, reply, parsed = wanted.item, job.reply, wanted.parsed
        rows.took(name)
        funnel.count(job.teacher, "asked")
        if wanted.round:
            funnel.count(job.teacher, "repairs", by=wanted.round)
        if wanted.lost or reply is None or parsed is None or wanted.rendered is None:
            code, _, detail = job.reason.partition(": ")
            lost = wanted.lost or Lost(item, name, code, detail, job.teacher)
            rows.drop(name, lost.reason)
            funnel.count(job.teacher, f"failed:{lost.reason}")
            funnel.last = job.reason or funnel.last
            return lost
        flags = self._marks.of(
            parsed.answer,
            prompt=item.row.prompt,
            lang=item.row.lang,
            shown=[example.answer for example in wanted.rendered.examples],
            parsed=parsed.flags,
            finish_reason=reply.finish_reason,
            material=item.seen.values(),
        )
        bad = next((flag for flag in flags if flag in self._drop), None)
        parsed_too = () if UNREAD.intersection(flags) else ("parsed",)
        funnel.count(job.teacher, "answered", *parsed_too, *(f"flag:{flag}" for flag in flags))
        if bad:
            rows.drop(name, bad)
            funnel.count(job.teacher, f"dropped:{bad}")
            return Lost(item, name, bad, reply.text, job.teacher)
        funnel.count(job.teacher, "kept")
        rows.gave(f"{name} kept")
        assert job.request is not None
        return Answer(item, parsed, reply, job.teacher, job.request.key, name, self._digest, wanted.rendered, flags)

    def _check_failed(self) -> None:
        funnel, share = self._funnel, self._asker._max_failed
        failed = {pair: count for pair, count in funnel.failed.items() if pair[0]}
        wanted = funnel.answered + sum(failed.values())
        if sum(failed.values()) <= share * wanted:
            return
        what = ", ".join(f"{teacher} {reason} {count}" for (teacher, reason), count in sorted(failed.items()))
        raise TeacherError(
            f"stage {self._name} lacks {sum(failed.values())} of {wanted} answers: got {what} (such as {funnel.last!r}), "
            f"because max_failed_share is {share}; repair the teacher and run again: only these are asked for, or raise "
            "max_failed_share"
        )

    def _check_kept(self, floor: float) -> None:
        funnel = self._funnel
        if funnel.kept >= floor * funnel.answered:
            return
        reasons = ", ".join(f"{flag} {count}" for flag, count in funnel.dropped.most_common())
        raise DataError(
            f"stage {self._name} keeps too little: got {funnel.kept} of {funnel.answered} answers (dropped: {reasons}), "
            f"because min_kept_share is {self._asker._min_kept}; look at the answers in requests.sqlite of the partial "
            "folder, then mend the prompt file, drop_flags or the teacher, or lower min_kept_share: no answer is asked for "
            "twice"
        )
