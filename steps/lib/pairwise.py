"""Pairwise judging: which of two models' answers to the same prompts a judge prefers, asked in both orders.

The judge is judged, too: how often its two verdicts agree, how often it names the first place, how often it says nothing that can
be read, and whether it sees which of two answers was garbled.

Source: Zheng et al. 2023, arXiv 2306.05685, sections 3.3 and 3.4; Shi et al. 2024, arXiv 2406.07791 (position bias is systematic).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, model_validator

from steps.lib.asking import Tally, draw
from steps.lib.config import Section
from steps.lib.errors import ConfigError, DataError
from steps.lib.families import family_of, kinship
from steps.lib.figures import Item
from steps.lib.hearing import Progress
from steps.lib.incumbents import ANCHOR, CHAMPION
from steps.lib.judge import Judge, JudgeConfig, Verdict, judge_externals
from steps.lib.ledger import RequestLedger
from steps.lib.pairwise_facts import SUITE, PairwiseFacts, PairwiseLimits, length_fit, problems_of
from steps.lib.planted import GARBLED, planted_among
from steps.lib.teacher_config import AnyTeacher, ScriptedTeacherConfig

LEDGER = "judge.sqlite"
CANDIDATES = ("rl", "kto", "dpo", "sft")
"""Models that may be the candidate of a run, the last stage first."""
MISSING = ("unparsed", "failed")


class Versus(Section):
    """Two models whose answers are compared."""

    new: str
    """Model whose wins are counted, by its name in the report."""
    old: str
    """Model that it is compared with."""

    @model_validator(mode="after")
    def _two(self) -> Versus:
        if self.new == self.old:
            raise ValueError(f"compares {self.new} with itself; name two models")
        return self


class PairwiseConfig(Section):
    """How answers are compared by a judge."""

    judge: JudgeConfig
    """Who compares; temperature 0 keeps its verdicts the same."""
    suite: str = "prompts"
    """Suite whose answers are compared."""
    compare: list[Versus] = []
    """Models that are compared. None: the candidate with the champion, or with sft where there is no champion."""
    max_items: int | None = Field(None, ge=1)
    """Prompts that are judged, drawn by their ids; null: all. Each one takes two questions."""
    planted: int = Field(8, ge=0)
    """Answers that are also judged against a garbled copy of themselves, to see what the judge can see; 0: none."""
    limits: PairwiseLimits = PairwiseLimits()
    """When the judge's verdicts count for nothing."""


def externals(config: PairwiseConfig) -> dict[str, str]:
    """Content digests of what the judge reads from outside the store, for a step's key."""
    return judge_externals(config.judge)


def compared(config: PairwiseConfig, models: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of models to compare: (new, old).

    A pair with the champion or the anchor is left out while there is none.

    Raises:
        ConfigError: a model is named that is not there.
    """
    if not config.compare:
        new = next((name for name in CANDIDATES if name in models), None)
        old = next((name for name in (CHAMPION, "sft", "base") if name in models and name != new), None)
        return [(new, old)] if new and old else []
    named = {name for one in config.compare for name in (one.new, one.old)}
    if strange := sorted(named - {*models, CHAMPION, ANCHOR}):
        raise ConfigError(
            f"pairwise.compare names {', '.join(strange)}: got models {', '.join(models)} only, because only these were scored; "
            "name some of these"
        )
    return [(one.new, one.old) for one in config.compare if {one.new, one.old} <= set(models)]


def judge_items(
    config: PairwiseConfig,
    items: Sequence[Item],
    new: str,
    old: str,
    prompts: Mapping[str, str],
    folder: Path,
    *,
    seed: int,
    log: logging.Logger,
    progress: Progress | None = None,
    earlier: Sequence[Path] = (),
    kin: Mapping[str, str] | None = None,
    tally: Tally | None = None,
    suite: str = SUITE,
) -> tuple[list[Item], PairwiseFacts]:
    """Compare two models on all items that both answered.

    Args:
        config: judge and limits.
        items: rows of an evaluation; those of ``config.suite`` count, the first answer of each model to each.
        new: the model whose wins are counted.
        old: the model that it is compared with.
        prompts: item id -> what was asked.
        folder: for the ledger of the judge (``judge.sqlite``), which all comparisons share.
        seed: of the run.
        log: for the outcome and for warnings.
        progress: the context's progress bar.
        earlier: ledgers of other runs (``earlier.ledgers_beside(resume, pairwise.LEDGER)``): what they hold is not asked again.
        kin: who wrote the answers, such as ``policy`` or ``teacher t1`` -> the name of its model.
        tally: filled with requests, tokens and cost, which depend on what a ledger held.
        suite: of the rows that are made; of its own for each comparison of one model.

    Returns:
        A row an item with the scores win, dlen (characters), consistent, said_first and said (verdicts); and how the judge behaved.

    Raises:
        DataError: a prompt is missing, or the two have no item in common.
        TeacherError: the judge cannot answer at all.
        Resumable: a signal came, or its budget is spent; verdicts so far are in the ledger.
    """
    both = _both(config, items, new, old, prompts)
    whole = [(one, two) for one, two in both if not (one.error or two.error)]
    planted = planted_among([row for pair in whole for row in pair[1:]], config.planted)
    judge = Judge(config.judge, folder / LEDGER, seed=seed, log=log, earlier=earlier)
    if tally is not None:
        judge.tally = tally
    asked = [(f"item {one.item_id}", prompts[one.item_id], one.output, two.output) for one, two in whole]
    asked += [(f"planted {row.item_id}", prompts[row.item_id], row.output, broken) for row, broken in planted]
    verdicts = judge.compare(asked, progress)
    rows = [_row(config, judge, one, two, verdicts.get(f"item {one.item_id}"), suite) for one, two in both]
    tried = [verdict for row, _ in planted if (verdict := verdicts[f"planted {row.item_id}"]).status not in MISSING]
    facts = _facts(config, judge, rows, new, old, [verdicts[f"item {one.item_id}"] for one, _ in whole], tried, suite)
    warnings = [*facts.warnings, *kinship(config.judge.teacher, kin or {})]
    if config.planted and not planted:
        warnings.append(
            f"the judge was not tried on garbled answers: got no answer of {GARBLED} characters, because nothing shorter can be "
            "garbled; read its verdicts with care"
        )
    facts = facts.model_copy(update={"problems": problems_of(facts, config.limits), "warnings": warnings})
    for message in (*facts.problems, *facts.warnings):
        log.warning("%s", message)
    return rows, facts


def keep(folder: Path, target: Path, log: logging.Logger) -> None:
    """Put the judge's ledger among an artifact's records, where later runs find it; nothing where nobody was asked."""
    if (folder / LEDGER).is_file():
        with RequestLedger(folder / LEDGER, log) as ledger:
            ledger.save(target / LEDGER)


def _both(
    config: PairwiseConfig, items: Sequence[Item], new: str, old: str, prompts: Mapping[str, str]
) -> list[tuple[Item, Item]]:
    """Rows of both models, item by item."""
    found: dict[str, dict[str, Item]] = {new: {}, old: {}}
    for item in items:
        if item.suite == config.suite and item.model in found and item.repeat == 0:
            found[item.model][item.item_id] = item
    ids = [name for name in found[new] if name in found[old]]
    if new == old or not ids or len(ids) < max(map(len, found.values())):
        raise DataError(
            f"{new} and {old} cannot be compared on suite {config.suite!r}: got {len(found[new])} and {len(found[old])} items, "
            f"{len(ids)} of both, because a comparison is of the same items; score both models on this suite"
        )
    if lost := [name for name in ids if name not in prompts]:
        raise DataError(
            f"item {lost[0]!r} of suite {config.suite!r} has no prompt: got {len(prompts)} prompts, because the judge is shown "
            "what was asked; give the prompt of each item"
        )
    if config.max_items is not None:
        ids = sorted(ids, key=lambda name: (draw("pairwise", name), name))[: config.max_items]
        ids = [name for name in found[new] if name in set(ids)]
    return [(found[new][name], found[old][name]) for name in ids]


def _row(config: PairwiseConfig, judge: Judge, one: Item, two: Item, verdict: Verdict | None, suite: str) -> Item:
    """The row of one pair; ``one`` is of the new model."""
    row = Item(
        model=one.model,
        suite=suite,
        item_id=one.item_id,
        cluster_id=one.cluster_id,
        lang=one.lang,
        slices=one.slices,
        n_out=one.n_out,
    )
    if verdict is None:
        raised = one if one.error else two
        return row.model_copy(update={"error": f"{raised.model} has no answer: {raised.error}"})
    scores: dict[str, float | None] = {"dlen": float(len(one.output.strip()) - len(two.output.strip()))}
    if verdict.status in MISSING:
        scores[verdict.status] = 1.0
    else:
        scores["win"] = 0.5 if verdict.score is None else verdict.score
        if verdict.requests:
            named = [said for said in verdict.said if said in ("A", "B")]
            scores |= {"consistent": float(verdict.status != "inconsistent"), "said": float(len(named))}
            scores["said_first"] = float(named.count("A"))
    evidence = {
        "judge_id": config.judge.teacher.name,
        "judge_prompt_digest": judge.prompt_digest,
        "against": two.model,
        "status": verdict.status,
        "orders": [
            {"order": order, "verdict": said, "request": request, "reply": reply}
            for order, said, request, reply in zip(
                ([one.model, two.model], [two.model, one.model]),
                verdict.said,
                verdict.requests,
                verdict.replies,
                strict=False,
            )
        ],
    }
    return row.model_copy(update={"scores": scores, "judge": json.dumps(evidence, ensure_ascii=False, sort_keys=True)})


def _facts(
    config: PairwiseConfig,
    judge: Judge,
    rows: Sequence[Item],
    new: str,
    old: str,
    verdicts: Sequence[Verdict],
    planted: Sequence[Verdict],
    suite: str,
) -> PairwiseFacts:
    spoken = [row.scores for row in rows if row.scores.get("consistent") is not None]
    said, first = (sum(scores[name] or 0.0 for scores in spoken) for name in ("said", "said_first"))
    teacher = config.judge.teacher
    dlen = [row.scores["dlen"] or 0.0 for row in rows if "dlen" in row.scores]
    fit = length_fit(rows, new, suite)
    warnings = []
    if fit and fit[2]:
        warnings.append(
            f"no length-controlled win rate of {new} against {old}: got answers of which those of one model are always the longer "
            "ones, because at equal length nothing was seen; read the win rate beside the lengths"
        )
    return PairwiseFacts(
        suite=suite,
        new=new,
        old=old,
        judge=teacher.name,
        judge_model=_model(teacher),
        family=family_of(teacher),
        prompt_digest=judge.prompt_digest,
        n=len(verdicts),
        asked=sum(bool(verdict.requests) for verdict in verdicts),
        unparsed=sum(verdict.status == "unparsed" for verdict in verdicts),
        failed=sum(verdict.status == "failed" for verdict in verdicts),
        unanswered=len(rows) - len(verdicts),
        ties=sum(verdict.status == "tie" and bool(verdict.requests) for verdict in verdicts),
        consistency=round(sum(scores["consistent"] or 0.0 for scores in spoken) / len(spoken), 6) if spoken else None,
        first_position=round(first / said, 6) if said else None,
        planted=len(planted),
        planted_score=round(sum(0.5 if one.score is None else one.score for one in planted) / len(planted), 6)
        if planted
        else None,
        mean_dlen=round(sum(dlen) / len(dlen), 3) if dlen else 0.0,
        theta=round(fit[0], 6) if fit else None,
        phi=round(fit[1], 6) if fit else None,
        warnings=warnings,
    )


def _model(teacher: AnyTeacher) -> str:
    """The judge's model as a report names it: of a folder its last part, since the rest differs from machine to machine."""
    name = "rules" if isinstance(teacher, ScriptedTeacherConfig) else teacher.model
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".")) else name
