"""The suite ``cases``: bad cases of production that are held out, each with what it expects of an answer.

A case passes when every answer that was drawn for it keeps all that a program checks, and a judge, where the case asks for one and
there is one, finds it good. From the items of two models follows what became of each case.

Source: EVALUATION.md 3.8.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from steps.lib import chat, inference
from steps.lib.case_choice import expected_of, last_turn, prompt_of
from steps.lib.case_expected import Expected
from steps.lib.digests import digest_text
from steps.lib.errors import DataError, ModelError
from steps.lib.figures import Item, Measure, Plain
from steps.lib.rows import BadCase, read_parquet
from steps.lib.rules import Task
from steps.lib.suites import Scored

NAME = "cases"
FILE = "holdout.parquet"
SCORER_VERSION = "1"
State = Literal["known_fail", "fixed", "regressed", "flaky", "still_pass", "error"]


@dataclass(frozen=True)
class Grader:
    """A judge of single answers."""

    digest: str
    """Of the judge: its model and its prompt."""
    ask: Callable[[Sequence[BadCase], Sequence[str]], Sequence[float | None]]
    """Cases and an answer to each -> 0 to 1 each; None: there is no verdict."""


@dataclass(frozen=True)
class SuiteCases:
    """Bad cases as a suite.

    Args:
        cases: of the held-out side.
        task: its system line goes before a case that has none, and a case may expect its rules.
        grader: without it, cases that only a judge could tell are left out, and counted in ``unjudged``.
        repeats: answers drawn for a case; more than one shows which cases are flaky.
        temperature: of the draws; 0 is greedy, which one answer says all of.
    """

    cases: tuple[BadCase, ...]
    task: Task | None = None
    grader: Grader | None = None
    repeats: int = 1
    temperature: float = 0.0
    unjudged: int = field(init=False, default=0)
    """Cases that were left out."""

    def __post_init__(self) -> None:
        if self.repeats > 1 and not self.temperature:
            raise DataError(
                f"suite cases draws {self.repeats} answers at temperature 0: got equal ones, because greedy decoding draws "
                "nothing; set a temperature, or one repeat"
            )
        told = tuple(case for case in self.cases if self.grader or expected_of(case).by_program)
        object.__setattr__(self, "unjudged", len(self.cases) - len(told))
        object.__setattr__(self, "cases", told)

    @classmethod
    def read(cls, folder: Path, limit: int | None = None, **settings: Any) -> SuiteCases:
        """The held-out cases of an artifact of the step badcases, the first ``limit``; ``settings`` are the arguments of the class.

        Raises:
            DataError: its file is missing or damaged.
        """
        return cls(tuple(read_parquet(folder / FILE, BadCase)[:limit]), **settings)

    @property
    def name(self) -> str:
        """Its name in items and measures."""
        return NAME

    @property
    def measures(self) -> Sequence[Measure]:
        """Share of the cases that pass, of all and of the critical ones; none where there are none."""
        method = "rules, patterns and schema of each case" + (", and a judge" if self.grader else "")
        every = [("passed", "Bad cases solved", "坏例通过率")]
        critical = [("passed_critical", "Critical bad cases solved", "严重坏例通过率")]
        has = [*(every if self.cases else []), *(critical if any(c.severity == "critical" for c in self.cases) else [])]
        return [
            Measure(
                name=f"{NAME}_{score}",
                label_en=english,
                label_zh=chinese,
                unit="share",
                suite=NAME,
                score=score,
                method=method,
            )
            for score, english, chinese in has
        ]

    @property
    def prompts(self) -> Mapping[str, str]:
        """Id of a case -> its last user turn."""
        return {case.id: last_turn(case) for case in self.cases}

    def __len__(self) -> int:
        return len(self.cases)

    def digest(self) -> str:
        """Of the cases, what they expect, and how they are scored."""
        facts = [SCORER_VERSION, self.repeats, self.temperature, self.grader.digest if self.grader else ""]
        task = self.task.model_dump_json(by_alias=True) if self.task else ""
        return digest_text(json.dumps([*facts, task, [_decides(case) for case in self.cases]], ensure_ascii=False))

    def score(self, who: Scored) -> list[Item]:
        """An item a case; one that cannot be asked or checked has an error."""
        prompts: dict[int, list[int]] = {}
        errors: dict[int, str] = {}
        for number, case in enumerate(self.cases):
            try:
                prompts[number] = chat.encode_prompt(who.tokenizer, prompt_of(case, self.task))
            except (DataError, ModelError) as error:
                errors[number] = str(error)
        answers: dict[int, list[inference.Answer]] = {number: [] for number in prompts}
        for repeat in range(self.repeats):
            drawn = inference.generate(
                who.model,
                who.tokenizer,
                list(prompts.values()),
                inference.Sampling(self.temperature, 1.0, who.limits.max_tokens),
                seed=inference.seed_of(who.seed, NAME, repeat) if repeat else who.seed,
                batch_size=who.limits.batch_size,
                recall=who.recall,
            )
            for number, answer in zip(prompts, drawn, strict=True):
                answers[number].append(answer)
        grades = self._graded(answers)
        return [
            self._item(
                who.name, number, prompts.get(number, []), answers.get(number, []), grades, errors.get(number, "")
            )
            for number in range(len(self.cases))
        ]

    def expected(self) -> dict[str, str]:
        """Id of a case -> what it expects, in a few words."""
        return {case.id: _in_words(expected_of(case)) for case in self.cases}

    def _graded(self, answers: dict[int, list[inference.Answer]]) -> dict[tuple[int, int], float | None]:
        """Case and repeat -> what the judge says, of the cases that ask for one."""
        if self.grader is None:
            return {}
        wanted = [
            (number, repeat)
            for number, own in answers.items()
            for repeat in range(len(own))
            if _asks_judge(self.cases[number], expected_of(self.cases[number]))
        ]
        texts = [answers[number][repeat].text for number, repeat in wanted]
        given = self.grader.ask([self.cases[number] for number, _ in wanted], texts) if wanted else []
        return dict(zip(wanted, given, strict=True))

    def _item(
        self,
        model: str,
        number: int,
        prompt: list[int],
        answers: list[inference.Answer],
        grades: dict[tuple[int, int], float | None],
        error: str,
    ) -> Item:
        case = self.cases[number]
        facts: dict[str, Any] = {
            "model": model,
            "suite": NAME,
            "item_id": case.id,
            "cluster_id": case.cluster,
            "lang": case.lang,
            "slices": [case.severity, *case.tags],
            "n_in": len(prompt),
            "n_out": sum(answer.tokens for answer in answers),
        }
        rounds: list[dict[str, bool]] = []
        try:
            if not error:
                rounds = [
                    self._checked(case, answer.text, grades.get((number, n), 1.0)) for n, answer in enumerate(answers)
                ]
        except DataError as problem:
            error = str(problem)
        if error:
            return Item(**facts, error=error, output=answers[0].text if answers else "")
        passed = [all(checks.values()) for checks in rounds]
        share = sum(passed) / len(passed)
        scores: dict[str, float | None] = {"passed": float(all(passed)), "pass_rate": share}
        if case.severity == "critical":
            scores["passed_critical"] = scores["passed"]
        for name in rounds[0]:
            scores[f"check:{name}"] = sum(checks[name] for checks in rounds) / len(rounds)
        return Item(**facts, scores=scores, output=answers[passed.index(False) if False in passed else 0].text)

    def _checked(self, case: BadCase, answer: str, grade: float | None) -> dict[str, bool]:
        """Every check of one answer.

        Raises:
            DataError: a check could not be made.
        """
        expected = expected_of(case)
        found = expected.check(last_turn(case), answer, self.task)
        if self.grader is not None and _asks_judge(case, expected):
            if grade is None:
                raise DataError(
                    f"case {case.id} has no verdict: got none from the judge, because its answer could not be read or did not "
                    "come; ask again"
                )
            found["judge"] = grade >= 0.5
        return found


class CaseState(Plain):
    """What became of a case."""

    item_id: str
    state: State
    """flaky: the answers of one of the two models disagree; error: one of them could not be scored."""
    severity: str = "minor"
    slices: list[str] = []
    lang: str = "other"

    @property
    def vetoes(self) -> bool:
        """Whether it alone speaks against the candidate."""
        return self.state == "regressed" and self.severity == "critical"


def case_states(items: Iterable[Item], candidate: str, champion: str) -> list[CaseState]:
    """What became of each case from one model to the other, in the order of the cases.

    Args:
        items: of a report.
        candidate: name of the new model.
        champion: name of the one it is compared with.

    Raises:
        DataError: the two were not scored on the same cases.
    """
    own = [item for item in items if item.suite == NAME]
    new, old = ({item.item_id: item for item in own if item.model == name} for name in (candidate, champion))
    if new.keys() != old.keys():
        odd = sorted(new.keys() ^ old.keys())
        raise DataError(
            f"cases of {candidate} and {champion} are not paired: got {len(odd)} of one model only (first: {odd[0]!r}), because "
            "they were scored on different cases; score both in one run"
        )
    return [_state(item, old[name]) for name, item in new.items()]


def _state(new: Item, old: Item) -> CaseState:
    rates = [item.scores.get("pass_rate") for item in (new, old)]
    state: State
    if new.error or old.error or None in rates:
        state = "error"
    elif any(rate not in (0.0, 1.0) for rate in rates):
        state = "flaky"
    else:
        table: dict[tuple[float | None, ...], State] = {
            (0.0, 0.0): "known_fail",
            (1.0, 0.0): "fixed",
            (0.0, 1.0): "regressed",
            (1.0, 1.0): "still_pass",
        }
        state = table[tuple(rates)]
    severity = new.slices[0] if new.slices else "minor"
    return CaseState(item_id=new.item_id, state=state, severity=severity, slices=new.slices, lang=new.lang)


def _in_words(expected: Expected) -> str:
    parts = [
        *(f"rule {rule.kind}" for rule in expected.rules),
        *(["its JSON Schema"] if expected.json_schema is not None else []),
        *(f"/{pattern}/" for pattern in expected.must),
        *(f"not /{pattern}/" for pattern in expected.must_not),
        *(["a judge agrees"] if expected.by_judge or not expected.by_program else []),
    ]
    return ", ".join(parts)


def _asks_judge(case: BadCase, expected: Expected) -> bool:
    """Whether a judge is asked: the case names what it looks at, or nothing else could tell."""
    return expected.by_judge or not expected.by_program


def _decides(case: BadCase) -> list[Any]:
    """All of a case that decides its scores."""
    turns = [turn.model_dump() for turn in case.prompt]
    return [case.id, case.cluster, case.lang, case.severity, case.tags, turns, case.expected, case.correction]
