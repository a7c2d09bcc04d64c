"""A judge behind `transformers serve`: a real server's replies, and what a model that cannot judge is worth."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from minimal import TinyChain
from served import Served, serving

from steps.lib import models
from steps.lib.asking import Tally
from steps.lib.figures import Item
from steps.lib.pairwise import PairwiseConfig, judge_items
from steps.lib.pairwise_facts import PairwiseFacts, figures_of, verdict_of
from steps.lib.rubric import Answered, RubricConfig, rubric
from steps.lib.tiny import TinyConfig, build_model, build_tokenizer

LOG = logging.getLogger("prefline.test")
PROMPTS = {
    "fr": "What is the capital of France?",
    "sum": "What is 2 + 2?",
    "rain": "Write one sentence about rain.",
    "zh": "北京是哪个国家的首都？",
}
GOOD = {
    "fr": "The capital of France is Paris.",
    "sum": "2 + 2 is 4.",
    "rain": "Rain fell softly on the roof all night.",
    "zh": "北京是中国的首都。",
}
BAD = {"fr": "asdf qwer zxcv", "sum": "I do not know, and I will not say.", "rain": "No.", "zh": "香蕉香蕉香蕉。"}  # fmt: skip


def items() -> list[Item]:
    return [
        Item(model=model, suite="prompts", item_id=key, cluster_id=key, lang="zh" if key == "zh" else "en", output=text)
        for model, texts in (("dpo", GOOD), ("sft", BAD))
        for key, text in texts.items()
    ]


def config(served: Served) -> PairwiseConfig:
    teacher = {"kind": "http", "name": "judge", "endpoint": "transformers", "base_url": served.url, "model": served.model,
               "temperature": 0, "max_tokens": 48, "concurrency": 1, "send_seed": False}  # fmt: skip
    return PairwiseConfig.model_validate({"judge": {"teacher": teacher}, "planted": 2})


def judged(served: Served, folder: Path) -> tuple[list[Item], PairwiseFacts, Tally]:
    tally = Tally()
    made, facts = judge_items(config(served), items(), "dpo", "sft", PROMPTS, folder, seed=0, log=LOG, tally=tally)
    return made, facts, tally


def check(served: Served, tmp_path: Path) -> tuple[list[Item], PairwiseFacts]:
    """What holds for any model behind a real server."""
    before = served.asked()
    made, facts, tally = judged(served, tmp_path)
    assert served.asked() - before == tally.answered in range(8, 13, 2) and not facts.failed
    assert judged(served, tmp_path)[:2] == (made, facts) and served.asked() - before == tally.answered
    assert [len(verdict_of(row)["orders"]) for row in made] == [2] * 4  # type: ignore[arg-type]
    assert all(order["reply"] for row in made for order in verdict_of(row)["orders"])  # type: ignore[attr-defined]
    assert len(figures_of(made, "dpo", "sft")) in (0, 1, 2) and facts.judge_model == Path(served.model).name
    return made, facts


@pytest.mark.server
@pytest.mark.long
def test_a_tiny_untrained_judge_is_invalid(chain: TinyChain, tmp_path: Path) -> None:
    with serving(str(models.model_folder(chain.base.path)), tmp_path / "log") as served:
        made, facts = check(served, tmp_path)
    assert facts.unparsed == 4 and not facts.valid and "got none for 4 of 4 pairs" in facts.problems[0]
    assert figures_of(made, "dpo", "sft") == []


@pytest.mark.tiny
@pytest.mark.parametrize(("room", "missing"), [(128, "failed"), (4096, "unparsed")])
def test_a_judge_in_this_process(tmp_path: Path, room: int, missing: str) -> None:
    """The other door: the same questions to a checkpoint without a server. What does not fit is told, and not cut."""
    shape = TinyConfig(max_length=room, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, vocab_size=400)
    tokenizer = build_tokenizer([*PROMPTS.values(), *GOOD.values()], shape)
    build_model(tokenizer, shape).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    teacher = {"kind": "local", "name": "here", "model": str(tmp_path / "model"), "temperature": 0, "max_tokens": 8}
    here = PairwiseConfig.model_validate({"judge": {"teacher": teacher}, "planted": 0})
    made, facts = judge_items(here, items(), "dpo", "sft", PROMPTS, tmp_path, seed=0, log=LOG)
    assert [row.scores.get(missing) for row in made] == [1.0] * 4 and facts.asked == 4 and not facts.valid
    said = [order["verdict"] for row in made for order in verdict_of(row)["orders"]]  # type: ignore[attr-defined]
    assert all(one.startswith("context_overflow") if missing == "failed" else one == "unparsed" for one in said)


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = os.environ.get("PREFLINE_SMOLLM2")
    if not folder:
        pytest.skip("needs the small real model: set PREFLINE_SMOLLM2 to its folder")
    with serving(folder, tmp_path_factory.mktemp("served") / "log") as found:
        yield found


@pytest.mark.smol
@pytest.mark.server
@pytest.mark.long
def test_a_judge_of_135_million_parameters_is_no_judge(smol: Served, tmp_path: Path) -> None:
    """It answers; whatever it says, its limits keep it from deciding anything."""
    made, facts = check(smol, tmp_path)
    print([[(o["verdict"], o["reply"]) for o in verdict_of(row)["orders"]] for row in made], facts)  # type: ignore[attr-defined]
    assert not facts.valid and facts.family == "smollm"


@pytest.mark.smol
@pytest.mark.server
@pytest.mark.long
def test_a_rubric_asks_the_same_server(smol: Served, tmp_path: Path) -> None:
    grades = rubric(
        RubricConfig.model_validate({"teacher": config(smol).judge.teacher.model_dump()}),
        [Answered(key, PROMPTS[key], GOOD[key], GOOD[key]) for key in PROMPTS],
        tmp_path / "judge.sqlite",
        seed=0,
        log=LOG,
    )
    print(grades)
    assert {grade.status for grade in grades.values()} <= {"graded", "unparsed"}
    assert all(grade.reply and grade.request for grade in grades.values())
