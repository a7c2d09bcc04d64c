"""Verdicts on made-up items: what is promoted, what is not, and what cannot be judged; 500 gates on equal models."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steps.lib.artifact import Artifact
from steps.lib.errors import DataError
from steps.lib.figures import Figure, Item, Measure
from steps.lib.gate import EXIT, Guard, Primary, Verdict, decide
from steps.lib.gate_vetoes import template_change
from steps.lib.incumbents import Incumbents
from steps.lib.registry import Version
from steps.lib.report import ModelCard, Report
from steps.lib.stats import wilson
from steps.promote import PromoteConfig

GOOD = Measure(name="good", label_en="Good", label_zh="好", unit="share", suite="prompts", score="good")
KIND = GOOD.model_copy(update={"name": "kind", "score": "kind"})
BITS = Measure(
    name="bits",
    label_en="Bits",
    label_zh="位",
    unit="bits/byte",
    better="lower",
    suite="text",
    score="bits",
    weight="bytes",
)
CASES = GOOD.model_copy(update={"name": "cases_passed", "suite": "cases", "score": "passed"})
REFUSALS = GOOD.model_copy(update={"name": "refusals", "score": "refused", "better": "lower"})
CHAMPION = Version("v0001", Path("nowhere"), "d" * 64, {"policy": "old", "template": "same"})
ALONE = PromoteConfig(primary=Primary(figure="good"), guards=())


@functools.cache
def blanks(model: str, suite: str, count: int, per_cluster: int) -> list[Item]:
    return [
        Item(model=model, suite=suite, item_id=f"{suite}-{place}", cluster_id=f"{suite}-{place // per_cluster}")
        for place in range(count)
    ]


def rows(model: str, suite: str = "prompts", per_cluster: int = 1, **scores: Any) -> list[Item]:
    """One item a place, in clusters of consecutive ones."""
    columns = [dict(zip(scores, values, strict=True)) for values in zip(*scores.values(), strict=True)]
    empty = blanks(model, suite, len(columns), per_cluster)
    return [item.model_copy(update={"scores": column}) for item, column in zip(empty, columns, strict=True)]


def gate(config: PromoteConfig, items: list[Item], **more: Any) -> Verdict:
    """The verdict on ``dpo`` against ``champion``."""
    cards = [ModelCard(name=name, digest="w", policy=policy) for name, policy in (("dpo", "new"), ("champion", "old"))]
    figures = [
        Figure(**what.model_dump(), model="dpo", interval=wilson(1, 2)) for what in (GOOD, KIND, BITS, CASES, REFUSALS)
    ]  # the gate takes them again from the items
    shown = Report(title="t", seed=0, models=cards, figures=figures)
    evidence = Artifact(Path("nowhere"), {"key": "evaluate/0", "digest": "r", "inputs": {}})
    return decide(config, "new", evidence, shown, items, Incumbents(CHAMPION), **{"template": "same", **more})


def luck(random: Any, shape: tuple[int, int], gain: float = 0.0, apart: float = 0.5) -> tuple[list[float], list[float]]:
    """0/1 scores of two models on clusters that are hard or easy for both, and a little for each alone; gain is of the first."""
    clusters, size = shape
    both, own, other = (by * random.normal(size=clusters) for by in (1, apart, apart))
    chance = [1 / (1 + np.exp(-np.repeat(both + part, size))) for part in (own, other)]
    draws = random.random((2, clusters * size))
    return tuple(
        (d < np.minimum(1, c + g)).astype(float).tolist() for d, c, g in zip(draws, chance, (gain, 0), strict=True)
    )


def test_equal_models_are_promoted_no_more_often_than_said() -> None:
    """500 gates, 200 items in clusters of five, true difference 0: at most 5 % are promoted; the mean alone would promote 46 %.

    benchmarks/gate.py has the rate over more of them: 3.9 %.
    """
    random = np.random.default_rng(1)
    promoted = higher = 0
    for _ in range(500):
        new, old = luck(random, (40, 5))
        verdict = gate(ALONE, rows("dpo", per_cluster=5, good=new) + rows("champion", per_cluster=5, good=old))
        promoted += verdict.verdict == "promote"
        higher += sum(new) > sum(old)
    assert promoted <= 25
    assert higher > 200


@pytest.mark.long
@pytest.mark.parametrize("apart", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(40, 5), (100, 1), (12, 10)])
def test_equal_models_in_the_long_run(shape: tuple[int, int], apart: float) -> None:
    """2,000 gates: at most 5 %, give or take twice the simulation's error, however the clusters are."""
    random, promoted = np.random.default_rng(20), 0
    for _ in range(2000):
        new, old = luck(random, shape, apart=apart)
        items = rows("dpo", per_cluster=shape[1], good=new) + rows("champion", per_cluster=shape[1], good=old)
        promoted += gate(ALONE, items).verdict == "promote"
    assert promoted / 2000 <= 0.05 + 2 * (0.05 * 0.95 / 2000) ** 0.5


def test_a_planted_gain_is_promoted_and_a_planted_loss_is_not() -> None:
    """Ten points of gain on 1,000 items in clusters of five are found each time; the same with the models exchanged never."""
    random = np.random.default_rng(1)
    for _ in range(10):
        new, old = luck(random, (200, 5), gain=0.1)
        better = gate(ALONE, rows("dpo", per_cluster=5, good=new) + rows("champion", per_cluster=5, good=old))
        worse = gate(ALONE, rows("dpo", per_cluster=5, good=old) + rows("champion", per_cluster=5, good=new))
        assert (better.verdict, worse.verdict) == ("promote", "reject")
    check = better.checks[0]
    assert check.improvement.value == pytest.approx(0.1, abs=0.06) and check.unit == "points"
    assert check.p is not None and check.p < 0.01 and check.test == "exchange of clusters"
    assert (check.n, check.clusters) == (1000, 200) and "bootstrap" in check.method
    assert "improves by +" in check.reason and "points" in check.reason and "against champion" in check.reason


def test_shuffled_labels_take_the_gain_away() -> None:
    random = np.random.default_rng(2)
    new, old = (np.array(side) for side in luck(random, (60, 5), gain=0.2))
    assert gate(ALONE, rows("dpo", good=new.tolist()) + rows("champion", good=old.tolist())).verdict == "promote"
    promoted = 0
    for _ in range(60):
        swap = np.repeat(random.random(60) < 0.5, 5)
        a, b = np.where(swap, old, new), np.where(swap, new, old)
        items = rows("dpo", per_cluster=5, good=a.tolist()) + rows("champion", per_cluster=5, good=b.tolist())
        promoted += gate(ALONE, items).verdict == "promote"
    assert promoted <= 7  # 3 are expected


def test_too_few_items_are_inconclusive_and_say_how_many_it_takes() -> None:
    """Four of 20 better and one worse."""
    new, old = [1.0] * 15 + [0.0] * 5, [1.0] * 11 + [0.0] * 4 + [0.0] * 4 + [1.0]
    verdict = gate(ALONE, rows("dpo", good=new) + rows("champion", good=old))
    check = verdict.checks[0]
    assert (verdict.verdict, check.outcome, check.discordant) == ("inconclusive", "open", 5)
    assert check.needed_n is not None and check.needed_n > 20 and f"about {check.needed_n} items" in check.reason
    assert check.mde > check.improvement.value
    assert check.test == "McNemar, midp"


def test_no_discordant_item_and_one_cluster_are_inconclusive() -> None:
    same = [1.0, 0.0] * 200
    verdict = gate(
        ALONE.model_copy(update={"primary": Primary(figure="good", min_effect=0.2)}),
        rows("dpo", good=same) + rows("champion", good=same),
    )
    assert verdict.verdict == "inconclusive" and "differ on no item" in verdict.reasons[0]
    items = rows("dpo", per_cluster=400, good=[1.0] * 400) + rows("champion", per_cluster=400, good=same)
    verdict = gate(ALONE, items)
    assert verdict.verdict == "inconclusive" and "one cluster" in verdict.reasons[0]


def test_one_item_that_raised_is_invalid() -> None:
    """Of 400, in a suite that a guard reads: never a smaller n."""
    random = np.random.default_rng(3)
    new, old = luck(random, (400, 1), gain=0.2)
    sides = rows("dpo", good=new, kind=new), rows("champion", good=old, kind=old)
    config = ALONE.model_copy(update={"guards": (Guard(figure="kind", margin=0.05),)})
    assert gate(config, [*sides[0], *sides[1]]).verdict == "promote"
    for place in (7, 400 + 7):
        items = [*sides[0], *sides[1]]
        items[place] = items[place].model_copy(update={"error": "TimeoutError"})
        verdict = gate(config, items)
        assert (verdict.verdict, verdict.checks, len(verdict.reasons)) == ("invalid", [], 1)
        assert "'prompts-7' of suite 'prompts' failed" in verdict.reasons[0]
    for place in (7, 400 + 7):
        items = [*sides[0], *sides[1]]
        del items[place]
        assert gate(config, items).verdict == "invalid"


def test_exact_mcnemar_asks_for_more() -> None:
    """Five for, none against, of 60: exact one-sided 0.031, of seven for and one against 0.035; six and one 0.0625 exact."""
    new, old = [1.0] * 6 + [0.0] * 54, [0.0] * 6 + [1.0] + [0.0] * 53
    items = rows("dpo", good=new) + rows("champion", good=old)
    found = {test: gate(ALONE.model_copy(update={"mcnemar": test}), items).checks[0] for test in ("midp", "exact")}
    assert found["midp"].p == pytest.approx(0.0352, abs=1e-4) and found["exact"].p == pytest.approx(0.0625, abs=1e-4)
    assert found["exact"].outcome == "open"
    assert found["midp"].improvement == found["exact"].improvement


def test_a_noise_floor_widens_what_counts_as_equal() -> None:
    random = np.random.default_rng(4)
    new, old = luck(random, (400, 1), gain=0.15)
    items = rows("dpo", good=new) + rows("champion", good=old)
    change = gate(ALONE, items).checks[0].improvement
    floor = Primary(figure="good", min_effect=change.low / 2, noise_floor=change.low)
    check = gate(ALONE.model_copy(update={"primary": floor}), items).checks[0]
    assert check.threshold == pytest.approx(1.5 * change.low) and check.outcome == "open"
    worse = rows("dpo", good=old, kind=old) + rows("champion", good=new, kind=new)
    guards = tuple(Guard(figure="kind", margin=0.1, noise_floor=noise) for noise in (0.0, 0.2))
    checks = gate(ALONE.model_copy(update={"guards": guards}), worse).checks
    assert [check.outcome for check in checks[1:]] == ["fail" if change.low > 0.1 else "open", "pass"]
    assert checks[2].threshold == pytest.approx(-0.3)


def test_of_several_primaries_one_must_pass_at_holms_level() -> None:
    random = np.random.default_rng(5)
    strong, old = luck(random, (300, 1), gain=0.2)
    level = luck(random, (300, 1))
    two = ALONE.model_copy(update={"primary": (Primary(figure="good"), Primary(figure="kind"))})
    items = rows("dpo", good=strong, kind=level[0]) + rows("champion", good=old, kind=level[1])
    verdict = gate(two, items)
    assert verdict.verdict == "promote" and [check.outcome for check in verdict.checks] == ["pass", "open"]
    # The strong one meets half of the level; then the other one has all of it.
    assert [check.improvement.confidence for check in verdict.checks] == pytest.approx([0.95, 0.9])
    neither = gate(two, rows("dpo", good=level[0], kind=level[0]) + rows("champion", good=level[1], kind=level[1]))
    assert neither.verdict == "inconclusive"
    assert [check.improvement.confidence for check in neither.checks] == pytest.approx([0.95, 0.95])
    lost = gate(two, rows("dpo", good=strong, kind=old) + rows("champion", good=old, kind=strong))
    assert lost.verdict == "reject" and [check.outcome for check in lost.checks] == ["pass", "fail"]


def test_two_equal_primaries_are_promoted_no_more_often_than_one() -> None:
    """300 gates on two independent primaries without a difference; without Holm's procedure it would be nearly 10 %."""
    random = np.random.default_rng(6)
    two = ALONE.model_copy(update={"primary": (Primary(figure="good"), Primary(figure="kind"))})
    promoted = uncorrected = 0
    for _ in range(300):
        (good, old_good), (kind, old_kind) = luck(random, (100, 1)), luck(random, (100, 1))
        verdict = gate(two, rows("dpo", good=good, kind=kind) + rows("champion", good=old_good, kind=old_kind))
        promoted += verdict.verdict == "promote"
        uncorrected += any(check.p is not None and check.p <= 0.05 for check in verdict.checks)
    assert promoted <= 15 < uncorrected


def test_a_ratio_changes_in_percent() -> None:
    random = np.random.default_rng(7)
    size = random.uniform(100, 900, 80)
    old = size * random.normal(3, 0.1, 80)
    items = [
        *rows("dpo", "text", bits=(0.98 * old).tolist(), bytes=size.tolist()),
        *rows("champion", "text", bits=old.tolist(), bytes=size.tolist()),
    ]
    verdict = gate(PromoteConfig(primary=Primary(figure="bits"), guards=()), items)
    check = verdict.checks[0]
    assert verdict.verdict == "promote" and (check.unit, check.p, check.discordant) == ("%", None, 80)
    assert check.improvement.value == pytest.approx(2.0)


def test_a_share_that_should_fall_improves_by_falling() -> None:
    random = np.random.default_rng(12)
    high, low = luck(random, (300, 1), gain=0.2)
    own = ALONE.model_copy(update={"primary": Primary(figure="refusals")})
    fewer = gate(own, rows("dpo", refused=low) + rows("champion", refused=high))
    more = gate(own, rows("dpo", refused=high) + rows("champion", refused=low))
    assert (fewer.verdict, more.verdict) == ("promote", "reject")
    assert fewer.checks[0].improvement.value > 0 > more.checks[0].improvement.value
    assert fewer.checks[0].p is not None and fewer.checks[0].p < 0.001


def cases(model: str, passed: list[float | None], slices: list[str], repeats: int = 1) -> list[Item]:
    found = rows(model, "cases", passed=passed)
    return [item.model_copy(update={"slices": slices, "item_id": f"c{i // repeats}"}) for i, item in enumerate(found)]


@pytest.mark.parametrize(
    ("new", "old", "slices", "back"),
    [
        ([1.0, 0.0], [1.0, 1.0], ["critical"], ["c1"]),
        ([1.0, 0.0], [1.0, 0.0], ["critical"], []),
        ([1.0, 0.0], [1.0, 1.0], ["major"], []),
        ([0.0, 1.0], [0.0, 0.0], ["critical", "factual"], []),
    ],
)
def test_a_critical_case_that_is_back_is_a_veto(
    new: list[float | None], old: list[float | None], slices: list[str], back: list[str]
) -> None:
    random = np.random.default_rng(8)
    a, b = luck(random, (300, 1), gain=0.2)
    items = rows("dpo", good=a) + rows("champion", good=b) + cases("dpo", new, slices) + cases("champion", old, slices)
    verdict = gate(ALONE, items)
    assert verdict.verdict == ("reject" if back else "promote")
    assert [veto.split()[3] for veto in verdict.vetoes] == back


def test_a_case_that_passes_sometimes_is_flaky_and_no_veto() -> None:
    random = np.random.default_rng(9)
    a, b = luck(random, (300, 1), gain=0.2)
    items = rows("dpo", good=a) + rows("champion", good=b)
    items += cases("champion", [1.0] * 4, ["critical"], repeats=2)
    sometimes = items + cases("dpo", [1.0, 0.0, 1.0, 1.0], ["critical"], repeats=2)
    never = items + cases("dpo", [0.0, 0.0, 1.0, 1.0], ["critical"], repeats=2)
    assert gate(ALONE, sometimes).verdict == "promote"
    assert gate(ALONE, never).vetoes == ["critical bad case c0 is back: champion passes it, dpo does not"]


@pytest.mark.parametrize("harm", ["error", "missing"])
def test_a_critical_case_that_was_not_scored_is_invalid(harm: str) -> None:
    random = np.random.default_rng(10)
    a, b = luck(random, (300, 1), gain=0.2)
    found = cases("dpo", [1.0, 1.0], ["critical"])
    found = [found[0].model_copy(update={"error": "ReDoS"}), found[1]] if harm == "error" else found[:1]
    verdict = gate(
        ALONE, rows("dpo", good=a) + rows("champion", good=b) + found + cases("champion", [1.0, 1.0], ["critical"])
    )
    assert verdict.verdict == "invalid"
    assert ("ReDoS" if harm == "error" else "are not the same") in verdict.reasons[0]


def test_a_problem_found_elsewhere_is_a_veto() -> None:
    random = np.random.default_rng(11)
    a, b = luck(random, (300, 1), gain=0.2)
    items = rows("dpo", good=a) + rows("champion", good=b)
    verdict = gate(ALONE, items, problems=["merged weights answer otherwise"])
    assert verdict.verdict == "reject" and verdict.reasons[0] == "merged weights answer otherwise"
    unknown = gate(ALONE, items, template="")
    assert unknown.verdict == "promote" and "templates" in unknown.warnings[0]


def test_templates() -> None:
    assert template_change("a", "a", allowed=False) == template_change("a", "b", allowed=True) == []
    assert "allow_template_change" in template_change("a" * 64, "b" * 64, allowed=False)[0]


def test_exit_codes_are_distinct() -> None:
    assert sorted(EXIT) == ["inconclusive", "invalid", "promote", "reject"]
    assert len({*EXIT.values()}) == 4 and not {*EXIT.values()} & {1, DataError.exit_code, 4, 5, 6, 7, 75}
