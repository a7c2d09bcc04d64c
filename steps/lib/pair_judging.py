"""A judge at work on pairs: every comparison in both orders, its own ledger, and what its verdicts say of itself.

Source: both orders, and only verdicts that agree: Zheng et al. 2023, arXiv 2306.05685, section 3.4. Best of n by comparisons with
all others: the Copeland score (share of the others beaten, a tie is half), as in the tournaments of Chatbot Arena's predecessors.
Deviations:
  1. A verdict that changes with the order, a reply that is none, and a request that failed are no verdicts: they count for nobody,
     and are no ties.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from steps.lib import models
from steps.lib.earlier import ledgers_beside
from steps.lib.families import kinship
from steps.lib.judge import Judge, JudgeConfig, Verdict
from steps.lib.ledger import RequestLedger
from steps.lib.rows import Message, Pair
from steps.lib.step import Context, Metrics

LEDGER = "judge.sqlite"
LOW_CONSISTENCY = 0.55
"""Share of comparisons with one verdict in both orders under which a judge says little: a coin gives .5."""

Comparison = tuple[str, str, str, str]
"""Key, prompt, first answer, second answer."""


class Bench:
    """One judge for all comparisons of a step."""

    def __init__(self, config: JudgeConfig, context: Context) -> None:
        """Begin.

        Args:
            config: model and prompt.
            context: of the step; the ledger lies in its resume folder.
        """
        self._config = config
        self._context = context
        self._judge = Judge(
            config,
            context.resume / LEDGER,
            seed=context.seed,
            log=context.log,
            earlier=ledgers_beside(context.resume, LEDGER),
        )
        self._statuses: Counter[str] = Counter()
        self._said: Counter[str] = Counter()

    def compare(self, items: Sequence[Comparison]) -> dict[str, Verdict]:
        """Judge pairs of answers; the verdict of each key."""
        verdicts = self._judge.compare(items, self._context.progress)
        for verdict in verdicts.values():
            if verdict.requests:  # equal answers are a tie, unasked
                self._statuses[verdict.status] += 1
                self._said.update(verdict.said)
        return verdicts

    def evidence(self, verdict: Verdict) -> dict[str, Any]:
        """What a row says of a verdict."""
        return {
            "name": self._config.teacher.name,
            "status": verdict.status,
            "said": list(verdict.said),
            "requests": list(verdict.requests),
        }

    def report(self, metrics: Metrics, relatives: Mapping[str, str], out: Path) -> list[str]:
        """Write figures, tokens and cost down; the warnings.

        Args:
            metrics: of the step.
            relatives: who wrote the answers -> the model's name, id or folder.
            out: folder of the step, which gets the ledger as ``record/judge.sqlite``.
        """
        (out / "record").mkdir(exist_ok=True)
        with RequestLedger(self._context.resume / LEDGER, self._context.log) as ledger:
            ledger.save(out / "record" / LEDGER)
        asked = self._statuses.total()
        settled = sum(self._statuses[status] for status in ("first", "second", "tie"))
        heard = settled + self._statuses["inconsistent"]
        letters = self._said["A"] + self._said["B"]
        tally = self._judge.tally
        metrics.tokens += tally.tokens_in + tally.tokens_out
        metrics.cost += tally.cost
        metrics.values |= {
            "judged": asked,
            "judge_consistent_share": round(settled / heard, 4) if heard else 0.0,
            "judge_first_share": round(self._said["A"] / letters, 4) if letters else 0.0,
            "judge_unparsed": self._statuses["unparsed"],
            "judge_failed": self._statuses["failed"],
        }
        warned = kinship(self._config.teacher, relatives)
        if heard and settled / heard < LOW_CONSISTENCY:
            warned.append(
                f"judge {self._config.teacher.name} contradicts itself: got one verdict in both orders in {settled} of {heard} "
                f"comparisons ({self._said['A']} of {letters} verdicts for the answer shown first), because it goes by the "
                "place and not by the answer; take a stronger judge"
            )
        missing = self._statuses["unparsed"] + self._statuses["failed"]
        if missing > 0.05 * asked:
            warned.append(
                f"judge {self._config.teacher.name} gave no verdict: got {missing} of {asked} comparisons without one, because a "
                "reply was not in the asked form or none came; look at record/judge.sqlite, and mend the judge's prompt or model"
            )
        return warned


def authors(policy: Path, teachers: Iterable[str] = ()) -> dict[str, str]:
    """Who wrote the answers, by what tells a family: the policy's base (hub id or folder), names of rows' sources."""
    found = models.location(policy)
    base = str(found.get("id") or found.get("path") or "") or str(models.model_folder(policy))
    return {"the policy": base, **{f"source {name}": name for name in sorted(set(teachers)) if name}}


def tournament(key: str, prompt: str, answers: Sequence[str]) -> tuple[list[int], list[Comparison]]:
    """The first of each of the different answers, and all comparisons among these; keys are ``key-I-J``."""
    distinct = list({text.strip(): number for number, text in reversed(list(enumerate(answers)))}.values())
    distinct.sort()
    return distinct, [(f"{key}-{i}-{j}", prompt, answers[i], answers[j]) for i, j in combinations(distinct, 2)]


def standings(
    key: str, distinct: Sequence[int], verdicts: Mapping[str, Verdict]
) -> tuple[list[tuple[int, float]], dict[tuple[int, int], Verdict]]:
    """Answers with the share of the others that each beat, best first; and the verdicts by (first, second), either way round.

    An answer without any verdict stands nowhere.
    """
    said: dict[tuple[int, int], Verdict] = {}
    for i, j in combinations(distinct, 2):
        verdict = verdicts[f"{key}-{i}-{j}"]
        said |= {(i, j): verdict, (j, i): turned(verdict)}
    found: list[tuple[int, float]] = []
    for i in distinct:
        scores = [score for j in distinct if i != j and (score := said[i, j].score) is not None]
        if scores:
            found.append((i, sum(scores) / len(scores)))
    return sorted(found, key=lambda one: (-one[1], one[0])), said


def turned(verdict: Verdict) -> Verdict:
    """The verdict with the answers in the other order."""
    status = {"first": "second", "second": "first"}.get(verdict.status, verdict.status)
    return Verdict(
        status=status,  # type: ignore[arg-type]
        said=(verdict.said[1], verdict.said[0]),
        requests=verdict.requests[::-1],
    )


def reason(verdict: Verdict) -> str:
    """Why a verdict does not carry its first answer."""
    return {"second": "judge_disagrees", "tie": "judge_tie"}.get(verdict.status, f"judge_{verdict.status}")


def comparison(pair: Pair) -> Comparison:
    """A pair as a judge is asked about it: what the user asked (of several turns all, with their roles), and both answers."""
    turns = [turn for turn in pair.prompt if turn.role != "system"]
    whole = [f"[{turn.role}]\n{turn.content}" for turn in turns]
    return (
        pair.id,
        "\n\n".join(whole) if len(turns) > 1 else turns[-1].content,
        _answer(pair.chosen),
        _answer(pair.rejected),
    )


def _answer(turns: Sequence[Message]) -> str:
    """What a side says: its one turn, or several with what the user said between them."""
    whole = [f"[{turn.role}]\n{turn.content}" for turn in turns]
    return "\n\n".join(whole) if len(turns) > 1 else turns[-1].content
