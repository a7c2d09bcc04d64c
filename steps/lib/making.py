"""From what teachers said to the rows of candidates.parquet and dropped.parquet, with all counts of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from steps.lib.agreement import Agreement, all_same, groups
from steps.lib.finished import Finished
from steps.lib.items import Answer, Lost
from steps.lib.programs import Asker
from steps.lib.provenance import evidence, provenance
from steps.lib.rows import Candidate, Dropped, ParquetRows, to_table
from steps.lib.teacher_config import Teacher


@dataclass
class Summary:
    """What results have in common. Summaries of parts add up to that of a run."""

    lost: Counter[str] = field(default_factory=Counter)
    """Reason -> dropped rows."""
    flags: Counter[str] = field(default_factory=Counter)
    """Flag -> candidates."""
    teachers: Counter[str] = field(default_factory=Counter)
    """Teacher -> candidates."""
    fewer: int = 0
    """Prompts that were shown with fewer examples."""
    agreement: Agreement = field(default_factory=Agreement)
    _last: str = ""

    def count(self, one: Answer | Lost) -> None:
        """Count one result."""
        if isinstance(one, Lost):
            self.lost[one.reason] += 1
            return
        self.flags.update(one.flags)
        self.teachers[one.teacher] += 1
        if one.rendered.fewer and one.item.id != self._last:
            self.fewer += 1
            self._last = one.item.id

    def add(self, other: Summary) -> None:
        """Add the summary of a part."""
        self.lost.update(other.lost)
        self.flags.update(other.flags)
        self.teachers.update(other.teachers)
        self.fewer += other.fewer
        self.agreement.add(other.agreement)

    def plain(self) -> dict[str, Any]:
        """As plain JSON."""
        counts = {name: dict(getattr(self, name)) for name in ("lost", "flags", "teachers")}
        return {**counts, "fewer": self.fewer, "agreement": vars(self.agreement)}

    @classmethod
    def load(cls, value: Mapping[str, Any]) -> Summary:
        """The summary that ``plain`` gave."""
        lost, flags, teachers = (Counter(value[name]) for name in ("lost", "flags", "teachers"))
        return cls(lost, flags, teachers, value["fewer"], Agreement(**value["agreement"]))

    def metrics(self, teachers: Iterable[str]) -> dict[str, float | int | str]:
        """Candidates of each teacher, flags, agreement."""
        return {
            **{f"{name}/candidates": self.teachers[name] for name in teachers},
            **{f"flags/{flag}": count for flag, count in sorted(self.flags.items())},
            "prompts_with_fewer_examples": self.fewer,
            **self.agreement.metrics(),
        }


@dataclass
class Made:
    """What became of one part."""

    summary: Summary = field(default_factory=Summary)
    candidates: list[Candidate] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    """Rows, where they are kept."""

    def tables(self) -> list[Any]:
        """The rows as tables."""
        return [to_table(self.candidates, Candidate), to_table(self.dropped, Dropped)]


class Making:
    """Writes both files.

    Args:
        asker: says what teachers are.
        teachers: with their licence notes.
        drop_flags: flags that keep an answer back.
        candidates: the one file.
        dropped: the other.
    """

    def __init__(
        self,
        asker: Asker,
        teachers: Sequence[Teacher],
        drop_flags: Collection[str],
        candidates: ParquetRows[Candidate],
        dropped: ParquetRows[Dropped],
    ) -> None:
        self._asker, self._drop = asker, drop_flags
        self._licenses = {teacher.name: teacher.license for teacher in teachers}
        self._identities = {name: client.identity() for name, client in asker.clients.items()}
        self._origins: dict[tuple[str, str, str, str], str] = {}
        self.summary = Summary()
        """Of all parts."""
        self.candidates, self.dropped = candidates, dropped

    def write(self, results: Iterable[Answer | Lost], *, keep: bool) -> Made:
        """Write the results of a part; ``keep``: hold its rows, too."""
        made = Made()
        for group in groups(results, lambda one: one.item.row.prompt):
            for one, value in self._compared(group, made.summary.agreement):
                made.summary.count(one)
                if isinstance(one, Lost):
                    lost = dropped_row(one)
                    self.dropped.add(lost)
                    if keep:
                        made.dropped.append(lost)
                else:
                    row = candidate(one, value, self._origin(one))
                    self.candidates.add(row)
                    if keep:
                        made.candidates.append(row)
        self.summary.add(made.summary)
        return made

    def take_over(self, part: Finished) -> None:
        """Write a part that an earlier run finished."""
        self.summary.add(Summary.load(part.facts["summary"]))
        candidates, dropped = part.tables()
        self.candidates.extend(candidates)
        self.dropped.extend(dropped)

    def _compared(
        self, group: Sequence[Answer | Lost], agreement: Agreement
    ) -> Iterator[tuple[Answer | Lost, float | None]]:
        """All results of one prompt, each with its agreement with the others; answers that are all equal are flagged so."""
        said = [one for one in group if isinstance(one, Answer)]
        values = agreement.compare([one.parsed.answer for one in said], [one.teacher for one in said])
        same, of = all_same(values), iter(values)
        for one in group:
            if isinstance(one, Lost):
                yield one, None
            elif same and "same_answer" in self._drop:
                yield self._asker.keep_back(one, "same_answer"), next(of)
            else:
                yield (replace(one, flags=(*one.flags, "same_answer")) if same else one), next(of)

    def _origin(self, answer: Answer) -> str:
        """The provenance of an answer; few are different."""
        about = (answer.teacher, answer.reply.model, answer.stage, answer.prompt_file)
        if about not in self._origins:
            self._origins[about] = provenance(
                teacher=answer.teacher,
                identity=self._identities[answer.teacher],
                answered=answer.reply.model,
                license=self._licenses[answer.teacher],
                stage=answer.stage,
                prompt_file=answer.prompt_file,
            )
        return self._origins[about]


def candidate(answer: Answer, agreement: float | None, origin: str) -> Candidate:
    """The row of an answer, with its agreement with the others and its provenance."""
    row = answer.item.row
    return Candidate.model_construct(
        id=f"{answer.item.id}/{answer.item.sample}",
        lang=row.lang,
        source=row.source,
        prompt=row.prompt,
        answer=answer.parsed.answer,
        thought=answer.parsed.thought,
        teacher=answer.teacher,
        sample=answer.item.sample,
        flags=list(answer.flags),
        request=answer.request,
        agreement=agreement,
        provenance=origin,
        evidence=evidence(source=row.source, row=row.id, facts=row.facts, trail=answer.item.trail),
    )


def dropped_row(lost: Lost) -> Dropped:
    """The row of a prompt that has no candidate, with the reason."""
    row, sample = lost.item.row, lost.item.sample
    kept = {**row.__dict__, "sample": sample, "teacher": lost.teacher}
    if lost.item.trail:
        kept["trail"] = [dict(entry) for entry in lost.item.trail]
    return Dropped.model_construct(
        id=f"{lost.item.id}/{sample}",
        lang=row.lang,
        source=row.source,
        step="generate",
        reason=lost.reason,
        detail=lost.detail,
        row=json.dumps(kept, ensure_ascii=False),
    )
