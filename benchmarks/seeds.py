"""The line on cpu-tiny with three seeds: does each stage do what it is there for, and is that luck?

Prints the figures that must hold, with their 95 % intervals, and writes them to docs/seeds.md. What was run already is
Cached. The exit code is 1 when a bound is missed.

Run:  make seeds
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.engine import Engine, Plan
from flows.line import STEPS, AlignConfig
from steps.lib import report, wording
from steps.lib.config import layers_of, load
from steps.lib.figures import Comparison, Figure
from steps.lib.report import Report

PAGE = Path("docs/seeds.md")


@dataclass(frozen=True)
class Demand:
    """One thing that a run must show."""

    words: str
    bound: str
    """The bound as the reader sees it."""
    shown: Callable[[Report], Figure | Comparison]
    holds: Callable[[Figure | Comparison], bool]

    def cell(self, found: Report) -> str:
        """The figure with its interval; a missed bound says so."""
        one = self.shown(found)
        is_change = isinstance(one, Comparison)
        text = wording.change(one) if is_change else wording.value(one)
        span = wording.change_span(one) if is_change else wording.span(one)
        return f"{text} ({span})" + ("" if self.holds(one) else " **missed**")


def figure(name: str, model: str) -> Callable[[Report], Figure | Comparison]:
    """Picks the figure of one model."""
    return lambda found: next(f for f in found.figures if (f.name, f.model) == (name, model))


def change(name: str, model: str, against: str) -> Callable[[Report], Figure | Comparison]:
    """Picks the paired difference of two models."""
    return lambda found: next(c for c in found.comparisons if (c.name, c.model, c.against) == (name, model, against))


DEMANDS = (
    Demand("domain bits per byte, base to pretrained", "-20 % or lower",
           change("domain_bits_per_byte", "pretrained", "base"), lambda one: one.interval.value <= -20),
    Demand("general bits per byte, base to pretrained", "+5 % or lower",
           change("general_bits_per_byte", "pretrained", "base"), lambda one: one.interval.value <= 5),
    Demand("strict format before sft (pretrained)", "under 5 %",
           figure("format_rate", "pretrained"), lambda one: one.interval.value < 0.05),
    Demand("strict format after sft", "90 % or higher",
           figure("format_rate", "sft"), lambda one: one.interval.value >= 0.9),
    Demand("preference accuracy of dpo over sft (implicit reward)", "80 % or higher",
           figure("implicit_reward_accuracy", "dpo"), lambda one: one.interval.value >= 0.8),
    Demand("rule score, sft to dpo", "interval above 0",
           change("rule_score", "dpo", "sft"), lambda one: one.interval.low > 0),
)  # fmt: skip


def run(profile: str, seed: int) -> tuple[Report, float]:
    """Run the line, or find it in the store; its report and the seconds that this took.

    Raises:
        CalledProcessError: the run failed; its own message stands above.
    """
    overrides = [f"seed={seed}"]
    started = time.perf_counter()
    prefline = Path(sys.executable).with_name("prefline")
    subprocess.run([str(prefline), "run", "--profile", profile, *overrides], check=True)
    engine = Engine(load(AlignConfig, layers_of(profile), overrides).value, Plan(start=STEPS[-1], until="evaluate"))
    engine.run()
    return report.read(engine.outcomes[-1].artifact.path), time.perf_counter() - started


def table(seeds: Sequence[int], reports: Sequence[Report]) -> str:
    """Markdown: a line a demand, a column a seed."""
    lines = ["| held-out figure (95 % interval) | must be | " + " | ".join(f"seed {seed}" for seed in seeds) + " |"]
    lines.append("|---|---|" + "---|" * len(seeds))
    for demand in DEMANDS:
        lines.append(f"| {demand.words} | {demand.bound} | " + " | ".join(demand.cell(one) for one in reports) + " |")
    return "\n".join(lines)


def page(profile: str, seeds: Sequence[int], reports: Sequence[Report], seconds: Sequence[float]) -> str:
    """docs/seeds.md: the table, and what it was measured with."""
    first = reports[0]
    took = ", ".join(f"{one:.0f} s" for one in seconds)
    versions = ", ".join(f"{name} {first.fingerprint[name]}" for name in ("torch", "transformers"))
    machine = (
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    return f"""# Three seeds

Written by `make seeds`. Every figure is computed on held-out items; the report of each run has all of them.

{table(seeds, reports)}

* Profile {profile}, {machine}, {versions}.
* Held-out items: {first.facts.get("held-out items", "")}. Answers: {first.facts.get("answers", "")}.
* The runs took {took}; what was in the store already was not run again.
* The interval is over items of one run (clusters drawn with replacement). The columns show what the seed changes.
"""


def main() -> int:
    """Run the seeds, print the table, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="cpu-tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    found = [run(arguments.profile, seed) for seed in arguments.seeds]
    reports, seconds = [one for one, _ in found], [took for _, took in found]
    print(table(arguments.seeds, reports))
    PAGE.write_text(page(arguments.profile, arguments.seeds, reports, seconds), encoding="utf-8")
    print(f"\n{PAGE} written")
    return int(any(not demand.holds(demand.shown(one)) for demand in DEMANDS for one in reports))


if __name__ == "__main__":
    sys.exit(main())
