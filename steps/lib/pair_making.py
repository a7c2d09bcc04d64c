"""Pairs from samples: scored by the task's rules or by a judge, the best against the worst.

Source: best-of-n pairs as in Llama 2 (Touvron et al. 2023, arXiv 2307.09288, section 3.2.3).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from steps.lib import inference, pair_judging
from steps.lib.pair_judging import Bench
from steps.lib.pair_samples import Drawn, asked
from steps.lib.pair_sources import Book, PolicySource, TeacherSource
from steps.lib.rows import Chat, Message, Pair
from steps.lib.rules import Task


@dataclass(frozen=True)
class Scored:
    """One answer with its score."""

    text: str
    score: float
    by: str
    rules: Mapping[str, bool | None] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """What a pair says of it."""
        rules = {"rules": dict(self.rules)} if self.rules else {}
        return {"by": self.by, "score": self.score, **rules}


Proof = Callable[[Scored, Scored], tuple[str, dict[str, Any]]]
"""Of (best, worst): why they make no pair ("" if they do), and the evidence."""


def by_rules(task: Task, prompt: str, text: str, by: str) -> Scored:
    """An answer by the share of the rules that it keeps."""
    return Scored(text, task.score(prompt, text), by, task.check(prompt, text))


def ruled(source: PolicySource, task: Task, drawn: Drawn, book: Book) -> list[Pair]:
    """Best sample against worst by the rules, where the margin is wide enough."""
    pairs: list[Pair] = []
    for row, replies in drawn:
        ranked = sorted((by_rules(task, asked(row), r.text, "policy") for r in replies), key=lambda s: -s.score)
        pairs += _coupled(source, row, ranked, lambda best, worst: ("", {}), book)
    return pairs


def judged(source: PolicySource, bench: Bench, drawn: Drawn, book: Book) -> list[Pair]:
    """Best sample against worst by a judge's comparisons of each with each; the best must beat the worst itself."""
    cups = {
        row.id: pair_judging.tournament(row.id, asked(row), [reply.text for reply in replies]) for row, replies in drawn
    }
    verdicts = bench.compare([item for _, items in cups.values() for item in items])
    pairs: list[Pair] = []
    for row, replies in drawn:
        distinct, items = cups[row.id]
        order, said = pair_judging.standings(row.id, distinct, verdicts)
        ranked = [Scored(replies[i].text, score, "policy") for i, score in order]
        numbers = {id(scored): i for scored, (i, _) in zip(ranked, order, strict=True)}
        if len(ranked) < 2:
            statuses = sorted({verdicts[key].status for key, *_ in items})
            why = f"judge_{statuses[0]}" if statuses else "equal_samples"
            book.drop(
                "prompts", row, why, f"{len(distinct)} different samples, verdicts: {', '.join(statuses) or 'none'}"
            )
            continue

        def proof(
            best: Scored, worst: Scored, said: Any = said, numbers: dict[int, int] = numbers
        ) -> tuple[str, dict[str, Any]]:
            verdict = said[numbers[id(best)], numbers[id(worst)]]
            return "" if verdict.status == "first" else pair_judging.reason(verdict), {"judge": bench.evidence(verdict)}

        pairs += _coupled(source, row, ranked, proof, book)
    return pairs


def taught(source: TeacherSource, task: Task | None, drawn: Drawn, seed: int, book: Book) -> list[Pair]:
    """The teacher's answer against a sample, for a share of the prompts.

    Args:
        task: whose rules choose the worst sample, and must find the teacher better; None: the first sample that
            differs, and a judge decides.
    """
    pairs: list[Pair] = []
    for row, replies in drawn:
        if random.Random(inference.seed_of(seed, "teacher", row.id)).random() >= source.share:
            continue
        book.rows.took("teacher answers")
        said = row.messages[-1].content
        if task is None:
            other = next((reply.text for reply in replies if reply.text.strip() != said.strip()), None)
            if other is None:
                book.drop("teacher answers", row, "equal_samples", "every sample says what the teacher says")
                continue
            best, worst = Scored(said, 1.0, "teacher"), Scored(other, 0.0, "policy")
        else:
            best = by_rules(task, asked(row), said, "teacher")
            worst = min((by_rules(task, asked(row), r.text, "policy") for r in replies), key=lambda s: s.score)
            if best.score - worst.score < source.min_margin or best.score < source.min_chosen:
                detail = f"teacher {best.score:.2f}, policy {worst.score:.2f}"
                book.drop("teacher answers", row, "teacher_not_better", detail)
                continue
        book.rows.gave("teacher pairs")
        pairs.append(_pair(row, best, worst, "teacher", {}))
    return pairs


def confirmed(pairs: list[Pair], bench: Bench, book: Book) -> list[Pair]:
    """The pairs whose chosen answer a judge prefers in both orders."""
    verdicts = bench.compare([pair_judging.comparison(pair) for pair in pairs])
    kept: list[Pair] = []
    book.rows.took("to judge", len(pairs))
    for pair in pairs:
        verdict = verdicts[pair.id]
        if verdict.status == "first":
            evidence = {**json.loads(pair.evidence), "judge": bench.evidence(verdict)}
            kept.append(pair.model_copy(update={"evidence": json.dumps(evidence, ensure_ascii=False)}))
        else:
            book.drop("to judge", pair, pair_judging.reason(verdict), f"said {verdict.said}")
    book.rows.gave("judged pairs", len(kept))
    return kept


def _coupled(source: PolicySource, row: Chat, ranked: list[Scored], proof: Proof, book: Book) -> list[Pair]:
    """Pairs of one prompt's answers, best first; where there is none, why the outermost two are none."""
    found: list[Pair] = []
    reasons: list[str] = []
    for k in range(min(source.per_prompt, len(ranked) // 2)):
        best, worst = ranked[k], ranked[-1 - k]
        why, evidence = proof(best, worst)
        if best.score - worst.score < source.min_margin:
            why = "low_margin"
        elif best.score < source.min_chosen:
            why = "chosen_too_low"
        if why:
            reasons.append(why)
        else:
            found.append(_pair(row, best, worst, f"policy{k}", evidence))
    if found:
        book.rows.gave("prompts paired")
    else:
        detail = f"best {ranked[0].score:.2f}, worst {ranked[-1].score:.2f}"
        book.drop("prompts", row, reasons[0], detail)
    return found


def _pair(row: Chat, best: Scored, worst: Scored, kind: str, evidence: Mapping[str, Any]) -> Pair:
    told = {"chosen": best.plain(), "rejected": worst.plain(), **evidence}
    return Pair(
        id=f"{row.id}-{kind}",
        lang=row.lang,
        source=f"{best.by} against {worst.by}",
        prompt=row.messages[:-1],
        chosen=[Message(role="assistant", content=best.text)],
        rejected=[Message(role="assistant", content=worst.text)],
        margin=best.score - worst.score,
        evidence=json.dumps(told, ensure_ascii=False),
    )
