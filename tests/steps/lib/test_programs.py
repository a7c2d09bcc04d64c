"""Stages: items in, answers out, in order, with what they rest on."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai_server import Act, Server, serve

from steps.lib.errors import BudgetSpent, TeacherError
from steps.lib.items import Answer, Item, Lost
from steps.lib.programs import Asker
from steps.lib.prompts import PromptFile
from steps.lib.row_ledger import RowLedger
from steps.lib.rows import Prompt
from steps.lib.teacher_config import HttpTeacher

LOG = logging.getLogger("test")
ITEMS = [
    Item(f"i{n}", Prompt(id=f"i{n}", lang="zh" if n % 2 else "en", source="s", prompt=f"question {n}"))
    for n in range(12)
]


def teacher(server: Server, **more: Any) -> HttpTeacher:
    base = {"kind": "http", "name": "t", "endpoint": "test", "base_url": server.url, "model": "m", "attempts": 1, "concurrency": 4,
            "backoff_seconds": 0.01}  # fmt: skip
    return HttpTeacher.model_validate({**base, **more})


@contextmanager
def asking(tmp_path: Path, *teachers: HttpTeacher, **more: Any) -> Iterator[Asker]:
    with Asker(teachers, seed=0, folder=tmp_path, log=LOG, **more) as asker:
        yield asker


def prompt_file(tmp_path: Path, text: str = "") -> PromptFile:
    (tmp_path / "prompt.yaml").write_text(text or "user: '{{ prompt }}'", encoding="utf-8")
    return PromptFile.read(tmp_path / "prompt.yaml")


def echo(number: int, body: dict[str, Any]) -> Act:
    return Act(text="re: " + body["messages"][-1]["content"], delay=0.02 * (number % 3))


def test_two_stages_and_the_trail_between_them(tmp_path: Path) -> None:
    second = prompt_file(tmp_path, "variables: [draft]\nuser: 'improve {{ draft }} for {{ prompt }}'")
    first = prompt_file(tmp_path)
    rows = RowLedger()
    with serve(echo) as server, asking(tmp_path, teacher(server), rows=rows) as asker:
        drafts = (one for one in asker.ask("draft", first, ITEMS) if isinstance(one, Answer))
        spool = asker.spool("drafts", (one.item_with(note={"why": "试"}, draft=one.parsed.answer) for one in drafts))
        assert len(list(spool)) == 12 and list(spool) == list(spool)
        answers = list(asker.ask("better", second, spool))
        measures = asker.measures()
    for item, answer in zip(ITEMS, answers, strict=True):
        assert isinstance(answer, Answer) and answer.item.id == item.id and answer.item.row == item.row
        said = f"re: {item.row.prompt}"
        assert answer.parsed.answer == f"re: improve {said} for {item.row.prompt}" and answer.stage == "better"
        [entry] = answer.item.trail
        assert (entry["stage"], entry["answer"], entry["why"], entry["teacher"]) == ("draft", said, "试", "t")
        assert entry["prompt_file"] == first.digest() != answer.prompt_file and entry["request"] != answer.request
    assert measures["draft/kept"] == measures["better/asked"] == 12 and measures["t/answered"] == 24
    assert rows.dump()["out"] == {"better kept": 12, "draft kept": 12}


def test_samples_are_numbered_and_shared_between_teachers(tmp_path: Path) -> None:
    with serve(echo) as server:
        others = [teacher(server, name=name, model=name) for name in "ab"]
        with asking(tmp_path, *others) as asker:
            found = [
                one for one in asker.ask("answer", prompt_file(tmp_path), ITEMS, samples=4) if isinstance(one, Answer)
            ]
            again = [one.item_with() for one in found]
            more = [one for one in asker.ask("more", prompt_file(tmp_path), again) if isinstance(one, Answer)]
    assert [(one.item.id, one.item.sample) for one in found] == [(item.id, n) for item in ITEMS for n in range(4)]
    for item in ITEMS:
        assert Counter(one.teacher for one in found if one.item.id == item.id) == {"a": 2, "b": 2}
    assert [one.item.sample for one in more] == [0, 1, 2, 3] * 12, "one sample keeps the item's own number"


def test_losses_keep_their_place_with_their_reason(tmp_path: Path) -> None:
    def decide(number: int, body: dict[str, Any]) -> Act:
        said = body["messages"][-1]["content"]
        return (
            Act(status=400)
            if said.endswith(" 2")
            else Act(text="I cannot help with this.")
            if said.endswith(" 3")
            else Act()
        )

    file = prompt_file(tmp_path, "user: '{{ prompt }}'\nmax_context_tokens: 200\nover_budget: drop_examples")
    items = [*ITEMS[:5], Item("long", Prompt(id="long", lang="en", prompt="x" * 500))]
    with serve(decide) as server:
        with asking(tmp_path, teacher(server)) as asker:
            found = list(asker.ask("answer", file, items, drop_flags=["refusal"]))
            funnel = asker.funnels["answer"]
        assert [one.reason if isinstance(one, Lost) else "" for one in found] == [
            "",
            "",
            "http_400",
            "refusal",
            "",
            "over_budget",
        ]
        assert (funnel.asked, funnel.answered, funnel.kept) == (6, 4, 3)
        assert (
            funnel.asked == funnel.answered + funnel.failed.total()
            and funnel.answered == funnel.kept + funnel.dropped.total()
        )
        says = "stage answer lacks 1 of 5 answers: got t http_400 1"
        with asking(tmp_path, teacher(server), max_failed_share=0.1) as asker, pytest.raises(TeacherError, match=says):
            list(asker.ask("answer", file, items))


def test_a_spent_budget_stops_its_teacher_and_lets_the_others_finish(tmp_path: Path) -> None:
    with serve(echo) as server:
        poor = teacher(server, name="poor", model="poor", budget_tokens=220, max_tokens=20, concurrency=1)
        rich = teacher(server, name="rich", model="rich")
        file = prompt_file(tmp_path)
        with asking(tmp_path, poor, rich) as asker, pytest.raises(BudgetSpent, match="poor"):
            list(asker.ask("answer", file, ITEMS, samples=2))
        spent = Counter(body["model"] for body in server.bodies)
        assert spent["rich"] == 12 and 0 < spent["poor"] < 12
        with asking(tmp_path, poor, rich) as asker, pytest.raises(BudgetSpent):
            list(asker.ask("answer", file, ITEMS, samples=2))
        assert Counter(body["model"] for body in server.bodies)["rich"] == 12
        more = poor.model_copy(update={"budget_tokens": 10_000})
        with asking(tmp_path, more, rich) as asker:
            found = list(asker.ask("answer", file, ITEMS, samples=2))
            assert asker.ledger.spent("poor").tokens == 12 * 10
        assert len(found) == 24 and all(isinstance(one, Answer) for one in found) and len(server.bodies) == 24


def test_the_ledger_says_what_asked_and_why(tmp_path: Path) -> None:
    file = prompt_file(tmp_path)
    with serve(echo) as server, asking(tmp_path, teacher(server)) as asker:
        [one] = asker.ask("answer", file, ITEMS[:1])
        assert isinstance(one, Answer)
        found = asker.ledger.execute("SELECT key, teacher, stage, prompt_file, source FROM requests")
    assert found == [(one.request, "t", "answer", file.digest(), "i0")]
    assert json.loads(json.dumps(one.item_with().trail))[0]["request"] == one.request
