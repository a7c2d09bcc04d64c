"""One stage of a recipe: items in, answers out.

A reply that breaks its schema is mended where that is certain (flag ``repaired``), then asked for again, as often as the prompt
file says, with its own words and the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from steps.lib.asking import Request, Requests
from steps.lib.desk import Job
from steps.lib.errors import DataError, TeacherError
from steps.lib.exchange import Exchange
from steps.lib.funnel import Funnel
from steps.lib.items import Answer, Item, Lost
from steps.lib.marks import Marks
from steps.lib.prompts import OverBudget, Parsed, PromptFile, Rendered
from steps.lib.row_ledger import RowLedger
from steps.lib.teacher import assign
from steps.lib.tokens import Counter

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


class Inquiry:
    """What one stage asks, and what it is given.

    Args:
        name: of the stage, in rows, metrics and the request ledger.
        prompt_file: what teachers are told.
        samples: answers to each item.
        drop_flags: flags that turn an answer into a ``Lost``.
        digest: of the prompt file.
        teachers: name -> share of the answers.
        requests: name -> makes requests to this teacher.
        counter: counts tokens as a teacher does.
        seed: of the run.
        rows: counts what is taken, kept, dropped by reason.
        funnel: the same, by teacher.
        max_failed_share: share of the answers that may fail to come.
        min_kept_share: share of the answers that flags must leave.
    """

    def __init__(
        self,
        name: str,
        prompt_file: PromptFile,
        samples: int,
        drop_flags: frozenset[str],
        *,
        digest: str,
        teachers: Mapping[str, float],
        requests: Mapping[str, Requests],
        counter: Callable[[str], Counter],
        seed: int,
        rows: RowLedger,
        funnel: Funnel,
        max_failed_share: float,
        min_kept_share: float,
    ) -> None:
        self._name, self._file, self._samples, self._drop = name, prompt_file, samples, drop_flags
        self._digest, self._marks = digest, Marks(prompt_file)
        self._names, self._shares = list(teachers), list(teachers.values())
        self._requests, self._counter, self._seed = requests, counter, seed
        self._rows, self._funnel = rows, funnel
        self._max_failed, self._min_kept = max_failed_share, min_kept_share
        self._counted = prompt_file.max_context_tokens is not None

    def run(self, items: Iterable[Item], exchange: Exchange) -> Iterator[Answer | Lost]:
        """All answers; then the checks of the whole stage."""
        funnel, early = self._funnel, EARLY
        for job in exchange.stream(self._jobs(items), self._settle):
            yield self._result(job)
            if funnel.answered >= early:
                early += EARLY
                self._check_kept(self._min_kept / 2)
        self._check_failed()
        self._check_kept(self._min_kept)
        self._rows.balance({self._name: [f"{self._name} kept"]})

    def _jobs(self, items: Iterable[Item]) -> Iterator[Job[_Wanted]]:
        for item in items:
            chosen = assign(self._shares, self._samples, item.row.prompt, self._seed) if len(self._names) > 1 else None
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
        count = self._counter(teacher) if self._counted else None
        try:
            return self._file.render(item.row, self._seed, count, item.seen or None)
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
        funnel, rows, wanted, name = self._funnel, self._rows, job.payload, self._name
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
        funnel, share = self._funnel, self._max_failed
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
            f"because min_kept_share is {self._min_kept}; look at the answers in requests.sqlite of the partial "
            "folder, then mend the prompt file, drop_flags or the teacher, or lower min_kept_share: no answer is asked for "
            "twice"
        )
