"""The teachers of a recipe: one ledger, one event loop, one place for the counts of all its stages."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from steps.lib.asking import Requests, Single, Tally
from steps.lib.exchange import Exchange
from steps.lib.funnel import Funnel
from steps.lib.gauge import Gauge
from steps.lib.inquiry import Inquiry
from steps.lib.items import Answer, Item, Lost, Spool
from steps.lib.ledger import RequestLedger, Used
from steps.lib.prompts import PromptFile
from steps.lib.row_ledger import RowLedger
from steps.lib.stopping import Stop
from steps.lib.teacher import ScriptedClient, open_client
from steps.lib.teacher_config import Teacher
from steps.lib.tokens import Counter as Counting
from steps.lib.tokens import counter


class Asker:
    """Asks teachers about items.

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
        digest = prompt_file.digest()
        inquiry = Inquiry(
            stage, prompt_file, samples, frozenset(drop_flags), digest=digest,
            teachers={one.name: one.share for one in self._teachers},
            requests={
                name: Requests(client, self.seed, prompt_file.sent_schema, stage, digest)
                for name, client in self.clients.items()
            },
            counter=self.counter, seed=self.seed, rows=self.rows, funnel=self.funnel(stage),
            max_failed_share=self._max_failed, min_kept_share=self._min_kept,
        )  # fmt: skip
        return inquiry.run(items, self._exchange)

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
