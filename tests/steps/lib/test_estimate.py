"""What asking will take: exact where prompts are known, rough where they are not, and less by what is on record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from steps.lib.asking import Requests
from steps.lib.demand import LOOKED_AT
from steps.lib.estimate import estimate
from steps.lib.ledger import Reply, RequestLedger
from steps.lib.on_record import OnRecord
from steps.lib.prompts import OverBudget, PromptFile
from steps.lib.recipe_parts import StagePlan
from steps.lib.rows import Prompt, Text
from steps.lib.teacher import assign, open_client
from steps.lib.teacher_config import HttpTeacher, ScriptedTeacherConfig
from steps.lib.tokens import BOUND

ROWS = [Prompt(id=f"p{n}", lang="en", prompt=f"{n:03} " + "word " * (n % 7 + 1)) for n in range(200)]


def prompt_file(folder: Path, name: str = "prompt.yaml", **values: Any) -> Path:
    path = folder / name
    with path.open("w") as file:
        YAML(typ="safe").dump({"system": {"zh": "中", "en": "Be brief."}, **values}, file)
    return path


def http(name: str = "big", **more: Any) -> HttpTeacher:
    values = {"kind": "http", "name": name, "endpoint": "e", "base_url": "http://nowhere.invalid/v1", "model": "m", "max_tokens": 100,
              "api_key_env": "NOT_SET_ANYWHERE", "price": {"input": 3.0, "output": 15.0}, **more}  # fmt: skip
    return HttpTeacher.model_validate(values)


def plan(path: Path, samples: float = 1, name: str = "answer") -> StagePlan:
    return StagePlan(name, path, samples)


def answered(
    path: Path,
    number: int,
    *,
    teacher: str = "big",
    seconds: float = 2.0,
    cost: float = 0.5,
    samples: int = 1,
    prompts: Path | None = None,
    **more: Any,
) -> Path:
    """A ledger with the answers to the first rows, as a run writes it: all samples of a row by one teacher."""
    file = PromptFile.read(prompts or prompt_file(path.parent))
    client = open_client(http(teacher, api_key_env=None, **more), 0)
    with RequestLedger(path) as ledger:
        for row in ROWS[:number]:
            for sample in range(samples):
                request = Requests(client, 0).make(file.messages(row, 0), prompt=row.prompt, sample=sample)
                reply = Reply("x", tokens_in=50, tokens_out=20, seconds=seconds, cost=cost)
                ledger.put(request.key, reply, teacher=teacher, stage="answer", prompt_file="d", source="s")
    return path


def test_prompts_are_counted_as_they_will_be_sent(tmp_path: Path) -> None:
    """No key is set and nobody listens: an estimate needs neither."""
    path = prompt_file(tmp_path)
    found = estimate([plan(path, 2)], [http()], ROWS, seed=0)
    file = PromptFile.read(path)
    most = sum(BOUND.turns(file.render(row, 0).messages) for row in ROWS)
    [line] = found.lines
    assert (line.requests, line.held, line.most_in, line.most_out) == (400, 0, 2 * most, 400 * 100)
    assert line.tokens_in == pytest.approx(2 * most / 3, abs=1) and line.tokens_out == 400 * 25
    assert line.cost == pytest.approx(line.tokens_in * 3e-6 + line.tokens_out * 15e-6)
    assert line.most_cost == pytest.approx(line.most_in * 3e-6 + line.most_out * 15e-6)
    assert line.seconds is None and found.seconds is None
    assert "price" not in found.words()[0] and "time unknown" in found.words()[0]


def test_teachers_get_what_they_will_get(tmp_path: Path) -> None:
    teachers = [http("big", share=3), http("small", price=None, price_file="none.yaml", model="nobody")]
    found = estimate([plan(prompt_file(tmp_path), 4)], teachers, ROWS, seed=0)
    big, small = found.lines
    assert (big.requests, small.requests) == (600, 200)
    assert small.cost is None and found.cost is None and "price unknown" in " ".join(found.words())


def test_what_is_on_record_is_subtracted_and_teaches(tmp_path: Path) -> None:
    path, ledger = prompt_file(tmp_path), answered(tmp_path / "requests.sqlite", 50)
    [line] = estimate([plan(path)], [http(concurrency=5)], ROWS, seed=0, ledger=ledger).lines
    assert (line.requests, line.held, line.missing) == (200, 50, 150)
    assert (line.tokens_in, line.tokens_out) == (150 * 50, 150 * 20) and "50 answers on record" in line.basis
    assert line.seconds == pytest.approx(150 * 2.0 / 5)
    few = answered(tmp_path / "few.sqlite", 3)
    [line] = estimate([plan(path)], [http()], ROWS, seed=0, ledger=few).lines
    assert line.held == 3 and line.tokens_out == 197 * 25 and line.seconds is None, "three answers say little"
    all_ = answered(tmp_path / "all.sqlite", 200)
    with RequestLedger(all_) as open_:
        open_.put("a repair", Reply("x"), teacher="big", stage="answer")
    [line] = estimate([plan(path)], [http()], ROWS, seed=0, ledger=all_).lines
    assert (line.held, line.missing, line.cost, line.seconds) == (200, 0, 0.0, 0.0), (
        "a repair is no row's first request"
    )
    assert estimate([plan(path)], [http()], ROWS, seed=0, ledger=tmp_path / "none.sqlite").lines[0].held == 0
    assert not (tmp_path / "none.sqlite").exists(), "looking makes no file"


def test_a_ledger_that_is_open_for_writing_can_be_read(tmp_path: Path) -> None:
    with RequestLedger(tmp_path / "requests.sqlite") as ledger:
        ledger.put("k", Reply("x"), teacher="big", stage="answer", prompt_file="d", source="s")
        assert OnRecord.read(tmp_path / "requests.sqlite").of("answer", "big").number == 1


def test_answers_of_other_runs_are_found_by_their_keys(tmp_path: Path) -> None:
    """More samples, another key for the endpoint and batch files ask for what is missing; another temperature asks for all."""
    path, earlier = prompt_file(tmp_path), [answered(tmp_path / "other.sqlite", 50)]

    def held(*plans: StagePlan, ledger: Path | None = None, **more: Any) -> list[int]:
        found = estimate(plans or [plan(path)], [http(**more)], ROWS, seed=0, earlier=earlier, ledger=ledger)
        return [line.held for line in found.lines]

    assert held() == held(plan(path, 3)) == held(api_key_env=None) == held(mode="batch") == [50]
    assert held(temperature=0.1) == held(plan(prompt_file(tmp_path, "b.yaml", user="Q: {{ prompt }}"))) == [0]
    own = answered(tmp_path / "requests.sqlite", 60)
    with RequestLedger(own) as ledger:
        for (key,) in ledger.execute("SELECT key FROM requests LIMIT 5"):
            ledger.execute("UPDATE requests SET status='failed' WHERE key=?", (key,))
    assert held(ledger=own) == [60], "what failed here lies there"
    earlier.clear()
    assert held(ledger=own) == [55]
    (tmp_path / "junk.sqlite").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)
    earlier.append(tmp_path / "junk.sqlite")
    assert held() == [0]


def test_of_later_stages_the_number_is_subtracted_and_said(tmp_path: Path) -> None:
    path, ledger = prompt_file(tmp_path), answered(tmp_path / "requests.sqlite", 50)
    review = prompt_file(tmp_path, "review.yaml", user="Review: {{ answer }}", variables=["answer"])
    with RequestLedger(ledger) as file:
        for n in range(30):
            file.put(f"review {n}", Reply("fine"), teacher="big", stage="review")
    found = estimate(
        [plan(path), plan(review, 1, "review")], [http()], ROWS, seed=0, ledger=ledger, earlier=[tmp_path / "x"]
    )
    assert [(line.requests, line.held) for line in found.lines] == [(200, 50), (200, 30)]
    said = "\n".join(found.notes)
    assert "which answers of review are on record shows only when they are asked for" in said
    assert "what ledgers of other runs hold for review is not subtracted" in said


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ({"requests_per_minute": 10}, 150 / 10 * 60),
        ({"tokens_per_minute": 1000}, 150 * 70 / 1000 * 60),
        ({"concurrency": 1}, 300.0),
    ],
)
def test_rates_bound_the_time(tmp_path: Path, limits: dict[str, Any], seconds: float) -> None:
    ledger = answered(tmp_path / "requests.sqlite", 50)
    [line] = estimate([plan(prompt_file(tmp_path))], [http(**limits)], ROWS, seed=0, ledger=ledger).lines
    assert line.seconds == pytest.approx(seconds)


def test_the_whole_takes_as_long_as_its_slowest_teacher(tmp_path: Path) -> None:
    ledger = answered(tmp_path / "requests.sqlite", 20, teacher="a", seconds=1.0, samples=2, model="a")
    answered(ledger, 20, teacher="b", seconds=4.0, samples=2, model="b")
    teachers = [http("a", concurrency=1, model="a"), http("b", concurrency=1, model="b")]
    found = estimate([plan(prompt_file(tmp_path), 2)], teachers, ROWS, seed=0, ledger=ledger)
    turns = [assign([1, 1], 2, row.prompt, 0) for row in ROWS]
    assert all(sorted(one) == [0, 1] for one in turns) and [line.held for line in found.lines] == [20, 20]
    assert found.seconds == pytest.approx(180 * 4.0) and {line.seconds for line in found.lines} == {180.0, 720.0}


@pytest.mark.parametrize(
    ("usd", "says"),
    [
        (100.0, "is enough: at most"),
        (25.3, "is enough if answers are as expected"),
        (25.05, "is not enough"),
    ],
)
def test_budgets_are_judged_with_what_was_spent(tmp_path: Path, usd: float, says: str) -> None:
    """50 answers have cost 25 USD; 150 are missing."""
    ledger = answered(tmp_path / "requests.sqlite", 50)
    cheap = {"input": 1.0, "output": 40.0}
    found = estimate([plan(prompt_file(tmp_path))], [http(budget_usd=usd, price=cheap)], ROWS, seed=0, ledger=ledger)
    [line] = found.lines
    assert line.cost == pytest.approx(150 * (50 + 20 * 40) / 1e6)
    assert len(found.budgets) == 1 and says in found.budgets[0] and "25.00 USD of it used before" in found.budgets[0]


def test_a_budget_without_a_price_is_said_before_the_run_refuses_it(tmp_path: Path) -> None:
    teacher = http(budget_usd=1, price=None, price_file="none.yaml", model="nobody")
    [said] = estimate([plan(prompt_file(tmp_path))], [teacher], ROWS, seed=0).budgets
    assert "nobody knows the price of nobody: the run will not start" in said


def test_budgets_of_tokens(tmp_path: Path) -> None:
    ledger = answered(tmp_path / "requests.sqlite", 50)
    path = prompt_file(tmp_path)
    said = {
        cap: estimate([plan(path)], [http(budget_tokens=cap)], ROWS, seed=0, ledger=ledger).budgets[0]
        for cap in (10_000, 15_000, 10_000_000)
    }
    assert (
        "is not enough" in said[10_000]
        and "3.5k tokens of it used before" in said[10_000]
        and "about 62%" in said[10_000]
    )
    assert "as expected (14k tokens)" in said[15_000] and "is enough: at most" in said[10_000_000]


def test_examples_say_how_long_answers_are(tmp_path: Path) -> None:
    pool = [{"lang": "en", "prompt": f"q{n}", "answer": "y" * 30} for n in range(4)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pool))
    path = prompt_file(tmp_path, shots=2, examples=str(tmp_path / "pool.jsonl"), pick="fixed", repairs=2)
    [line] = estimate([plan(path)], [http()], ROWS, seed=0).lines
    assert line.tokens_out == 200 * 10 and "examples" in line.basis
    assert line.most_out == 200 * 3 * 100, "every repair is another answer"


def test_more_rows_than_are_looked_at_are_drawn_by_the_seed(tmp_path: Path) -> None:
    rows = [Prompt(id=f"p{n}", lang="en", prompt="a" * (10 if n < 3000 else 40)) for n in range(6000)]
    path = prompt_file(tmp_path, system={"zh": "", "en": ""})
    found = estimate([plan(path)], [http()], iter(rows), seed=0)
    file = PromptFile.read(path)
    exact = sum(BOUND.turns(file.render(row, 0).messages) for row in rows)
    [line] = found.lines
    assert line.requests == 6000 and LOOKED_AT == 2000
    assert line.most_in == pytest.approx(exact, rel=0.03) and line.most_in != exact
    assert any("2,000 of 6,000 rows were rendered" in note for note in found.notes)
    again = [estimate([plan(path)], [http()], iter(rows), seed=seed).lines[0].most_in for seed in (0, 1)]
    assert again[0] == line.most_in != again[1]


def test_later_stages_are_counted_roughly(tmp_path: Path) -> None:
    """Documents are cut, so a request holds a piece; the second stage also holds what the first one says."""
    ask = prompt_file(tmp_path, "ask.yaml", user="Ask about: {{ document }}", variables=["document"])
    answer = prompt_file(tmp_path, user="{{ document }} {{ prompt }}", variables=["document"])
    rows = [Text(id=f"d{n}", lang="en", text="x" * 3000) for n in range(10)]
    found = estimate([plan(ask, 4, "questions"), plan(answer, 12)], [http()], rows, seed=0, longest=200)
    first, second = found.lines
    assert (first.requests, second.requests) == (40, 120)
    assert 200 < first.tokens_in / 40 < 300 and first.tokens_in / 40 + 20 < second.tokens_in / 120 < 400
    assert first.most_in > first.tokens_in and "roughly: questions, answer" in found.notes[0]


def test_a_prompt_that_cannot_fit_is_found_before_the_first_request(tmp_path: Path) -> None:
    rows = [*ROWS, Prompt(id="long", lang="en", prompt="x" * 5000)]
    path = prompt_file(tmp_path, max_context_tokens=500)
    with pytest.raises(OverBudget, match="row long"):
        estimate([plan(path)], [http()], rows, seed=0)
    path = prompt_file(tmp_path, max_context_tokens=500, over_budget="drop_examples")
    found = estimate([plan(path, 2)], [http()], rows, seed=0)
    assert found.lines[0].requests == 400 and found.notes[0].startswith("2 answers of answer are not counted")


def test_whether_a_prompt_fits_is_counted_by_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the run counts it: one that fits by the tokenizer is no error, though it has more bytes than tokens may be."""

    class Words:
        name = "words"

        def __call__(self, text: str) -> int:
            return len(text.split())

        def turns(self, messages: Sequence[dict[str, str]]) -> int:
            return sum(self(turn["content"]) for turn in messages)

    monkeypatch.setattr("steps.lib.estimate.counter", lambda teacher: Words())
    rows = [Prompt(id="long", lang="en", prompt="word " * 300)]
    path = prompt_file(tmp_path, max_context_tokens=500)
    [line] = estimate([plan(path)], [http()], rows, seed=0).lines
    assert (line.requests, line.tokens_in) == (1, 302)


def test_a_rule_program_is_free(tmp_path: Path) -> None:
    teacher = ScriptedTeacherConfig(kind="scripted", path=Path("data/seed/task/teacher.yaml"))
    found = estimate([plan(prompt_file(tmp_path))], [teacher], ROWS, seed=0)
    [line] = found.lines
    assert (line.requests, line.tokens_in, line.tokens_out, line.cost, line.seconds) == (200, 0, 0, 0.0, 0.0)
    assert "free" in found.words()[0]


def test_nothing_to_read_is_nothing_to_ask(tmp_path: Path) -> None:
    [line] = estimate([plan(prompt_file(tmp_path))], [http()], [], seed=0).lines
    assert (line.requests, line.tokens_in, line.cost) == (0, 0, 0.0)
