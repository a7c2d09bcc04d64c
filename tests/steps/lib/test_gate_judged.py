"""A gate whose primary is a judge's win rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steps.lib.artifact import Artifact
from steps.lib.figures import Item
from steps.lib.gate import Primary, Verdict, decide
from steps.lib.incumbents import Incumbents
from steps.lib.pairwise_facts import figures_of
from steps.lib.registry import Version
from steps.lib.report import Judging, ModelCard, Report
from steps.promote import PromoteConfig


def verdict(wins: list[float], figure: str = "win_rate", old: str = "champion", **judging: Any) -> Verdict:
    """On dpo against the champion, by a judge that compared dpo with ``old``."""
    items = [
        Item(
            model="dpo", suite="pairwise", item_id=f"p{n}", cluster_id=f"p{n}", scores={"win": win, "dlen": n % 7 - 3.0}
        )
        for n, win in enumerate(wins)
    ]
    cards = [ModelCard(name=name, digest="w", policy=policy) for name, policy in (("dpo", "new"), ("champion", "old"))]
    judge = Judging(judge="m", model="dpo", against=old, **judging)
    shown = Report(title="t", seed=0, models=cards, figures=figures_of(items, "dpo", old), judging=[judge])
    evidence = Artifact(Path("nowhere"), {"key": "evaluate/0", "digest": "r", "inputs": {}})
    config = PromoteConfig(primary=Primary(figure=figure), guards=())
    champion = Incumbents(Version("v0001", Path("nowhere"), "d" * 64, {"policy": "old", "template": "same"}))
    return decide(config, "new", evidence, shown, items, champion, template="same")


@pytest.mark.parametrize("figure", ["win_rate", "lc_win_rate"])
def test_the_change_is_the_rate_less_a_half(figure: str) -> None:
    found = verdict([1.0, 1.0, 0.0, 0.5, 1.0] * 40, figure)
    [check] = found.checks
    assert found.verdict == "promote" and check.improvement.value == pytest.approx(0.2, abs=0.01)
    assert (check.unit, check.n) == ("points", 200) and (check.p is None) == (figure == "lc_win_rate")


@pytest.mark.parametrize(("wins", "word"), [([1.0, 0.0] * 60, "inconclusive"), ([0.0, 0.0, 0.0, 1.0] * 40, "reject")])
def test_no_preference_and_the_other_one(wins: list[float], word: str) -> None:
    assert verdict(wins).verdict == word


def test_a_judge_that_is_not_believed_decides_nothing() -> None:
    found = verdict([1.0] * 100, problems=["judge m looks at the place"])
    assert found.verdict == "invalid" and "looks at the place" in found.reasons[0]


def test_a_win_rate_over_another_model_is_not_read() -> None:
    found = verdict([1.0] * 100, old="sft")
    assert found.verdict == "invalid" and "name the two in evaluate.pairwise.compare" in found.reasons[0]
