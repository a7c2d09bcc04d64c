"""The gate on simulated models: how often equal ones are promoted, which gains are found, and a year of weekly retrains.

An item is right with a chance that its cluster decides for all models (normal, 1.0) and for each model alone (normal, ``own``),
on the logit scale; own 0 is independent items, 1.0 strong clusters. The gate is ``gate_checks.primaries`` as promote has it, with
one primary and no guard; beside it are the two that it is not: the higher mean, and the gate that takes items for independent.

Run:  OMP_NUM_THREADS=1 python benchmarks/gate.py [--runs 2000] [--years 40]
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time

import numpy as np

from steps.lib.figures import Figure, Item, Measure
from steps.lib.gate_checks import Check, primaries
from steps.lib.gate_terms import Primary
from steps.lib.look_log import spent
from steps.lib.report import ModelCard, Report
from steps.lib.stats import clustered_error, paired_difference, unpaired_difference, wilson
from steps.lib.stats_power import minimal_detectable_effect
from steps.promote import PromoteConfig

SIZE = 5
GOOD = Measure(name="good", label_en="Good", label_zh="好", unit="share", suite="prompts", score="good")
TERMS = PromoteConfig(primary=Primary(figure="good"), guards=())
SHOWN = Report(
    title="simulated",
    seed=0,
    models=[ModelCard(name=name, digest=name) for name in ("new", "old")],
    figures=[Figure(**GOOD.model_dump(), model="new", interval=wilson(1, 2))],
)


@functools.cache
def blanks(model: str, count: int, size: int) -> list[Item]:
    """Items without scores."""
    return [
        Item(model=model, suite="prompts", item_id=str(place), cluster_id=str(place // size)) for place in range(count)
    ]


def look(new: list[float], old: list[float], size: int = SIZE, level: float = 0.05) -> Check:
    """The gate's check of two models."""
    items = [
        item.model_copy(update={"scores": {"good": score}})
        for model, scores in (("new", new), ("old", old))
        for item, score in zip(blanks(model, len(scores), size), scores, strict=True)
    ]
    return primaries(TERMS, 1 - level, SHOWN, items, ("new", "old"))[0]


def answers(random: np.random.Generator, both: np.ndarray, skill: float, own: float) -> list[float]:
    """0/1 scores of a model on clusters of five."""
    logit = np.repeat(both + skill + own * random.normal(size=len(both)), SIZE)
    return (random.random(len(logit)) < 1 / (1 + np.exp(-logit))).astype(float).tolist()


def skill_of(gain: float, own: float) -> float:
    """Logit that raises the rate over all clusters by ``gain`` (a share) above one half."""
    grid = np.random.default_rng(0).normal(size=200_000) * math.sqrt(1 + own**2)
    low, high = 0.0, 5.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 / (1 + np.exp(-grid - middle))).mean() < 0.5 + gain else (low, middle)
    return low


def rates(runs: int) -> None:
    """Share of gates that promote, by true gain and strength of clusters."""
    print(f"promoted of {runs}, 200 items in clusters of {SIZE}, percent")
    print("own  gain  higher-mean  unclustered  gate")
    for own in (0.0, 0.5, 1.0):
        for gain in (0.0, 0.03, 0.06, 0.10):
            random, skill, counts = np.random.default_rng(1), skill_of(gain, own), [0, 0, 0]
            for _ in range(runs):
                both = random.normal(size=40)
                new, old = answers(random, both, skill, own), answers(random, both, 0, own)
                counts[0] += sum(new) > sum(old)
                counts[1] += paired_difference(new, old, confidence=0.9).low > 0
                counts[2] += look(new, old).outcome == "pass"
            print(f"{own:3.1f}  {100 * gain:4.0f}  {'  '.join(f'{100 * count / runs:11.1f}' for count in counts)}")


def pairing(runs: int) -> None:
    """Minimal detectable effects of paired and unpaired items, in points."""
    random, paired, apart = np.random.default_rng(2), [], []
    for _ in range(runs):
        both = random.normal(size=40)
        new, old, fresh = answers(random, both, 0, 0.5), answers(random, both, 0, 0.5), random.normal(size=40)
        clusters = [place // SIZE for place in range(200)]
        error = clustered_error([a - b for a, b in zip(new, old, strict=True)], clusters)
        paired.append(100 * minimal_detectable_effect(200, error * math.sqrt(200)))
        change = unpaired_difference(new, answers(random, fresh, 0, 0.5), (clusters, clusters))
        apart.append(100 * minimal_detectable_effect(200, (change.high - change.low) / 3.92 * math.sqrt(200)))
    print(
        f"detectable with 200 items: paired {statistics.mean(paired):.1f} points, unpaired {statistics.mean(apart):.1f}"
    )


def year(years: int) -> None:
    """52 candidates a year on one set of 300 items, a little worse than the champion on average."""
    print(
        f"a year of weekly retrains, mean of {years}: candidates differ by -0.5 +- 2 points; 300 items in clusters of {SIZE}"
    )
    print("gate         promotions  not better  optimism of the champion, points")
    for name in ("higher mean", "gate", "by quarter"):
        terms = TERMS.model_copy(update={"spending": "quarter", "max_looks": 13} if name == "by quarter" else {})
        random, moved, bad, optimism = np.random.default_rng(3), 0, 0, []
        for _ in range(years):
            both = random.normal(size=60)
            champion, scores = 0.0, answers(random, both, 0, 0.5)
            for week in range(52):
                skill = champion + float(random.normal(-0.023, 0.093))  # 0.5 and 2 points at the middle of the scale
                new = answers(random, both, skill, 0.5)
                level = spent(terms, week % 13)
                wins = (
                    sum(new) > sum(scores)
                    if name == "higher mean"
                    else level is not None and look(new, scores, level=level).outcome == "pass"
                )
                if wins:
                    moved, bad = moved + 1, bad + (skill <= champion)
                    champion, scores = skill, new
            true = statistics.mean(
                statistics.mean(answers(random, random.normal(size=60), champion, 0.5)) for _ in range(200)
            )
            optimism.append(100 * (statistics.mean(scores) - true) - 100 * (_level(both) - 0.5))
        print(f"{name:11}  {moved / years:10.2f}  {bad / years:10.2f}  {statistics.mean(optimism):+10.1f}")


def _level(both: np.ndarray) -> float:
    """How easy these clusters are: the rate that a model of skill 0 has on them without luck."""
    noise = np.random.default_rng(4).normal(size=(2000, len(both))) * 0.5
    return float((1 / (1 + np.exp(-both - noise))).mean())


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--years", type=int, default=40)
    arguments = parser.parse_args()
    started = time.process_time()
    rates(arguments.runs)
    pairing(min(200, arguments.runs))
    year(arguments.years)
    print(f"{time.process_time() - started:.0f} CPU seconds")


if __name__ == "__main__":
    main()
