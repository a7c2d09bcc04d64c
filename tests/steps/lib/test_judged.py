"""All comparisons of an evaluation before one judge."""

import logging
from pathlib import Path

import pytest
from judges import configured, says
from openai_server import serve

from steps.lib.figures import Item, measure
from steps.lib.judged import Judged, judge_models
from steps.lib.pairwise import PairwiseConfig
from steps.lib.pairwise_facts import WIN_RATE, PairwiseFacts

PROMPTS = {f"p{n}": f"Question {n}?" for n in range(12)}
TEXTS = {"champion": "good answer to question", "sft": "poor answer to question", "dpo": "best answer to the question"}


def items() -> list[Item]:
    return [
        Item(model=model, suite="prompts", item_id=key, cluster_id=key, lang="en", output=f"{text} {key}")
        for model, text in TEXTS.items()
        for key in PROMPTS
    ]


def better(first: str, second: str) -> str:
    worth = [
        ["poor", "good", "best"].index(text[:4]) if text[:4] in ("poor", "good", "best") else -1
        for text in (first, second)
    ]
    return "tie" if worth[0] == worth[1] else "A" if worth[0] > worth[1] else "B"


def test_two_comparisons_share_a_ledger_and_have_suites_of_their_own(tmp_path: Path) -> None:
    pairs = [{"new": "dpo", "old": "champion"}, {"new": "dpo", "old": "sft"}, {"new": "dpo", "old": "anchor"}]
    with serve(says(better)) as server:
        config = PairwiseConfig.model_validate({"judge": configured(server), "compare": pairs, "planted": 2})
        found = judge_models(
            config, items(), list(TEXTS), PROMPTS, tmp_path, seed=0, log=logging.getLogger("prefline.test")
        )
        asked = len(server.bodies)
        assert found.tally.attempts == asked == 2 * (12 + 12 + 2 + 2), "the champion's and sft's own garbled answers"
    assert {item.suite for item in found.items} == {"pairwise", "pairwise dpo sft"} and len(found.items) == 24
    assert [(f.name, f.against, f.interval.value) for f in found.figures] == [
        ("win_rate", "champion", 1.0),
        ("win_rate", "sft", 1.0),
    ]
    assert [c.interval.value for c in found.comparisons] == [0.5, 0.5] and found.comparisons[0].outcome == "better"
    assert not found.problems and [facts.old for facts in found.facts] == ["champion", "sft"]
    assert PairwiseFacts.model_validate_json(found.facts[0].model_dump_json()) == found.facts[0]
    assert measure(found.items, WIN_RATE, "dpo").interval == found.figures[0].interval, "as any other measure takes it"


def test_nobody_to_compare_with_asks_nothing(tmp_path: Path) -> None:
    with serve(says(better)) as server:
        config = PairwiseConfig(judge=configured(server))
        found = judge_models(
            config, items()[:12], ["base"], PROMPTS, tmp_path, seed=0, log=logging.getLogger("prefline.test")
        )
    assert found == Judged() and not server.bodies


def test_problems_of_a_judge_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs = [{"new": "dpo", "old": "champion"}, {"new": "dpo", "old": "sft"}]
    with serve(says(lambda first, second: "B")) as server:
        config = PairwiseConfig.model_validate({"judge": configured(server), "compare": pairs, "planted": 0})
        found = judge_models(
            config, items(), list(TEXTS), PROMPTS, tmp_path, seed=0, log=logging.getLogger("prefline.test")
        )
    assert len(found.problems) == 2 and "got 0% of its verdicts for the first answer" in found.problems[1]
    assert "contradicts itself" in caplog.text and [f.interval.value for f in found.figures] == [0.5, 0.5]
