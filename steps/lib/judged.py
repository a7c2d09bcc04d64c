"""All comparisons that an evaluation asks a judge for: rows, figures, and how the judge behaved."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from steps.lib.asking import Tally
from steps.lib.figures import Comparison, Figure, Item
from steps.lib.hearing import Progress
from steps.lib.pairwise import PairwiseConfig, compared, judge_items
from steps.lib.pairwise_facts import SUITE, PairwiseFacts, comparison, figures_of


@dataclass
class Judged:
    """What a judge gave an evaluation."""

    items: list[Item] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    """Win rates; also those of a judge that is not to be believed (``facts`` say so)."""
    comparisons: list[Comparison] = field(default_factory=list)
    """The same less a half, as a gate reads them."""
    facts: list[PairwiseFacts] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    """Requests, tokens, seconds and cost: what they are depends on what a ledger held."""

    @property
    def problems(self) -> list[str]:
        """Why a gate must not read a figure of suite ``pairwise``; empty when it may."""
        return list(dict.fromkeys(problem for facts in self.facts for problem in facts.problems))


def judge_models(
    config: PairwiseConfig,
    items: Sequence[Item],
    models: Sequence[str],
    prompts: Mapping[str, str],
    folder: Path,
    *,
    seed: int,
    log: logging.Logger,
    progress: Progress | None = None,
    earlier: Sequence[Path] = (),
    kin: Mapping[str, str] | None = None,
    tally: Tally | None = None,
) -> Judged:
    """Make every comparison of ``pairwise.compared``.

    The first one makes items of suite ``pairwise``; each further one has a suite of its own, ``pairwise NEW OLD``.

    Args:
        config: judge, models and limits.
        items: rows of the evaluation.
        models: names of the models in the report.
        prompts: item id -> what was asked.
        folder: for the judge's ledger.
        seed: of the run.
        log: for the outcome and for warnings.
        progress: the context's progress bar.
        earlier: the judge's ledgers of other runs.
        kin: who wrote the answers -> the name of its model.
        tally: filled with requests, tokens and cost.

    Raises:
        ConfigError: a model is named that was not scored.
        DataError: two models were not scored on the same items.
        TeacherError: the judge cannot answer at all.
        Resumable: a signal came, or its budget is spent.
    """
    found = Judged(tally=Tally() if tally is None else tally)
    for number, (new, old) in enumerate(compared(config, models)):
        suite = SUITE if number == 0 else f"{SUITE} {new} {old}"
        rows, facts = judge_items(
            config,
            items,
            new,
            old,
            prompts,
            folder,
            seed=seed,
            log=log,
            progress=progress,
            earlier=earlier,
            kin=kin,
            tally=found.tally,
            suite=suite,
        )
        figures = figures_of(rows, new, old, suite=suite)
        found.items += rows
        found.figures += figures
        found.comparisons += [comparison(figure) for figure in figures]
        found.facts.append(facts)
        shown = ", ".join(
            f"{f.name} {f.interval.value:.3f} ({f.interval.low:.3f} to {f.interval.high:.3f})" for f in figures
        )
        log.info("%s against %s before judge %s: %s", new, old, facts.judge, shown or "no verdict")
    return found
