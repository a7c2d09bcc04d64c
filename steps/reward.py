"""A reward model: what tells chosen from rejected answers, as one number an answer.

Reads:  policy (sft): an adapter on its base, or whole weights; pairs: ``pairs.parquet``.
Writes: ``adapter/`` with the head (``model/`` with method full), ``chain.json``, ``heldback.json`` (rewards of the pairs that were
        not trained on), ``dropped.parquet``, ``truncated.parquet`` when rows are cut, ``record/preflight.json``,
        ``record/history.jsonl``.
Source: Ouyang et al. 2022, 2203.02155, equation 1: -log sigmoid(r(chosen) - r(rejected)); TRL's RewardTrainer.
Run:    python -m steps.reward --config FILE --policy DIR --pairs DIR --out DIR
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from steps.lib import (
    adapters,
    attention,
    chat,
    footprint,
    inference,
    kernels,
    models,
    pair_rows,
    parity,
    runtime,
    scoring,
    stats,
    training,
)
from steps.lib.digests import digest_file
from steps.lib.door import main
from steps.lib.errors import DataError, TrainingError
from steps.lib.preflight import Findings
from steps.lib.rows import Pair, read_parquet
from steps.lib.step import Context, Metrics
from steps.lib.trained import Whole

VERSION = "1"
CHANCE = 0.5
LONG_LIKES_LONG = 0.5
"""Correlation of reward and length from which a warning is given."""
SAME = 1e-3
"""Difference of rewards, in units of their size, that loading a saved model may make in float32; 100 times as much in bfloat16."""


class RewardConfig(scoring.ScorerMethod):
    """Reward model."""

    train: training.TrainSettings = training.TrainSettings()
    """Optimisation; too_long says what becomes of a pair of which one side is longer than max_length tokens."""
    heldback: float = Field(0.1, gt=0, lt=1)
    """Share of the prompts whose pairs are not trained on: accuracy is measured on them. All pairs of a prompt stay together."""
    centering: float | None = Field(None, ge=0)
    """Weight of the pull of r(chosen) + r(rejected) towards 0 (2312.09244, equation 2; 0.01 is usual); null: none. A pair's loss
    sees differences alone, so without it rewards of different prompts have different zeros."""
    min_accuracy: float | None = Field(None, ge=0, le=1)
    """Share of the held-back pairs that must be ranked right; below it the step stops. null: no limit."""


@dataclass(frozen=True)
class Sides:
    """A pair as tokens: prompt and answer in one row."""

    pair: Pair
    chosen: list[int]
    rejected: list[int]
    prompt: int
    """Tokens of the prompt, which both rows begin with."""


def run(config: RewardConfig, *, policy: Path, pairs: Path, out: Path, context: Context) -> Metrics:
    """Train on most pairs, and measure on the others."""
    runtime.seed_torch(context.seed)
    scoring.check(config, policy)
    folder = models.model_folder(policy)
    tokenizer = models.load_tokenizer(folder)
    found = Findings()
    train = config.train
    kept, metrics = pair_rows.encode(
        "reward", train, tokenizer, read_parquet(pairs / "pairs.parquet", Pair), out, found
    )
    metrics.tokens = pair_rows.look(kept, tokenizer, found)
    trained, heldback = held_back(_sides(kept), config.heldback, context.seed, found)
    metrics.values |= {"trained_pairs": len(trained), "heldback_pairs": len(heldback)}
    found.loading(folder, train.precision)
    kind = attention.chosen(train.attention, folder, method=config.method, precision=train.precision, plain=True)
    model = scoring.start(config, policy, train.precision, attention=kind)
    lengths = [len(row.chosen) + len(row.rejected) for row in trained]
    found.check(model, config.train, footprint.batch_pass(config.train, lengths), context, metrics)
    trainer = _trainer(config, model, trained, tokenizer, context)
    metrics.values.update(training.fit(trainer, config.train, context, out))
    if trainer.is_world_process_zero():
        trainer.model.eval()
        rewards = _rewards(trainer.model, heldback, config.train.batch_size)
        stage = models.Stage(step="reward", digest=digest_file(pairs / "pairs.parquet"))
        adapters.save(trainer.model, config.method, out, policy, stage, tokenizer)
        parity.release(trainer)
        metrics.values |= _as_saved(config, out, heldback, rewards)
        metrics.values |= _measured(config, heldback, rewards, context)
        _write(out / "heldback.json", heldback, rewards)
    return metrics


def _sides(kept: pair_rows.Encoded) -> list[Sides]:
    return [
        Sides(
            pair=pair,
            chosen=[*row["prompt_ids"], *row["chosen_ids"]],
            rejected=[*row["prompt_ids"], *row["rejected_ids"]],
            prompt=len(row["prompt_ids"]),
        )
        for pair, row in zip(kept.pairs, kept.rows, strict=True)
    ]


def held_back(rows: Sequence[Sides], share: float, seed: int, found: Findings) -> tuple[list[Sides], list[Sides]]:
    """The rows that are trained on, and those that are not: a share of the prompts, drawn by the prompt's own text and the seed.

    So a prompt stays on its side when others come or go, as far as the share allows.
    """
    prompts = {_prompt(row.pair): inference.seed_of(seed, "held back", _prompt(row.pair)) for row in rows}
    if rows and len(prompts) < 2:
        found.error(
            f"no pair can be held back: got pairs of {len(prompts)} prompt, because accuracy is measured on prompts that are not "
            "trained on; give pairs of more prompts",
            DataError,
        )
        return list(rows), []
    count = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    apart = set(sorted(prompts, key=lambda prompt: (prompts[prompt], prompt))[:count])
    return (
        [row for row in rows if _prompt(row.pair) not in apart],
        [row for row in rows if _prompt(row.pair) in apart],
    )


def _prompt(pair: Pair) -> str:
    return json.dumps(chat.plain(pair.prompt), ensure_ascii=False)


def _trainer(config: RewardConfig, model: Any, rows: Sequence[Sides], tokenizer: Any, context: Context) -> Any:
    from datasets import Dataset
    from trl import RewardConfig as Arguments
    from trl import RewardTrainer

    class ScoreTrainer(Whole, RewardTrainer):  # type: ignore[misc]
        """RewardTrainer whose checkpoints hold every weight that is trained."""

    kernels.speed_up(model)
    return ScoreTrainer(
        model=model,
        args=training.arguments(
            Arguments, config.train, context, max_length=None, center_rewards_coefficient=config.centering
        ),
        train_dataset=Dataset.from_list([{"chosen_ids": row.chosen, "rejected_ids": row.rejected} for row in rows]),
        processing_class=tokenizer,
    )


def _rewards(model: Any, rows: Sequence[Sides], batch_size: int) -> list[tuple[float, float]]:
    """Reward of the chosen and of the rejected answer of each pair."""
    flat = scoring.scores(model, [side for row in rows for side in (row.chosen, row.rejected)], batch_size=batch_size)
    return list(zip(flat[::2], flat[1::2], strict=True))


def _as_saved(
    config: RewardConfig, out: Path, rows: Sequence[Sides], rewards: Sequence[tuple[float, float]]
) -> dict[str, float]:
    """Compare the saved model's rewards with those of the trained one.

    Raises:
        TrainingError: they differ by more than rounding.
    """
    loaded = scoring.load(out, config.train.precision)
    again = _rewards(loaded, rows, config.train.batch_size)
    flat = [value for two in rewards for value in two]
    size = max(abs(value) for value in flat)
    off = max(abs(a - b) for one, other in zip(rewards, again, strict=True) for a, b in zip(one, other, strict=True))
    limit = SAME * (1 if str(loaded.dtype) == "torch.float32" else 100)
    if not off <= limit * max(size, 1e-3):  # a NaN is off, too
        raise TrainingError(
            f"saved reward model gives other rewards: got a difference of {off:.2g} on held-back pairs, because the save lost the "
            "head or a part of the adapter; report this as a defect of prefline"
        )
    return {"parity_saved": float(f"{off / max(size, 1e-3):.1e}")}


def _measured(
    config: RewardConfig, rows: Sequence[Sides], rewards: Sequence[tuple[float, float]], context: Context
) -> dict[str, float]:
    """Accuracy with its interval, and how far rewards go with length. What a user must know is said in the log.

    Raises:
        TrainingError: accuracy is below ``min_accuracy``.
    """
    right = stats.wilson(sum(chosen > rejected for chosen, rejected in rewards), len(rewards))
    lengths = [(len(row.chosen) - row.prompt, len(row.rejected) - row.prompt) for row in rows]
    by_length = correlation([n for two in lengths for n in two], [value for two in rewards for value in two])
    if right.low <= CHANCE:
        context.log.warning(
            "reward model does not beat chance: got %.1f %% right on %d held-back pairs (%.1f to %.1f), because it learnt nothing "
            "that holds for other prompts, or the pairs are too few to tell; give more pairs, train longer, or raise heldback",
            *(100 * right.value, len(rows), 100 * right.low, 100 * right.high),
        )
    if abs(by_length) >= LONG_LIKES_LONG:
        context.log.warning(
            "reward goes with length: got a correlation of %.2f with the tokens of an answer, because chosen answers are %s in "
            "these pairs; balance the pairs, or expect %s answers from rl",
            *(by_length, *(2 * ("longer",) if by_length > 0 else 2 * ("shorter",))),
        )
    if config.min_accuracy is not None and right.value < config.min_accuracy:
        raise TrainingError(
            f"reward model is not good enough: got an accuracy of {right.value:.3f} on {len(rows)} held-back pairs "
            f"({right.low:.3f} to {right.high:.3f}), because min_accuracy is {config.min_accuracy}; give more or cleaner pairs, "
            "train longer, or lower min_accuracy"
        )
    figures = {
        "accuracy": right.value,
        "accuracy_low": right.low,
        "accuracy_high": right.high,
        "length_correlation": by_length,
        "reward_mean": sum(map(sum, rewards)) / (2 * len(rewards)),
        "margin_mean": sum(chosen - rejected for chosen, rejected in rewards) / len(rewards),
    }
    return {name: round(value, 4) for name, value in figures.items()} | {"beats_chance": int(right.low > CHANCE)}


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Pearson's correlation; 0 where one of the two does not vary."""
    means = [math.fsum(values) / len(values) for values in (one, other)]
    first, second = ([value - mean for value in values] for values, mean in zip((one, other), means, strict=True))
    size = math.sqrt(math.fsum(a * a for a in first) * math.fsum(b * b for b in second))
    return math.fsum(a * b for a, b in zip(first, second, strict=True)) / size if size else 0.0


def _write(path: Path, rows: Sequence[Sides], rewards: Sequence[tuple[float, float]]) -> None:
    content = [
        {"id": row.pair.id, "chosen": round(chosen, 4), "rejected": round(rejected, 4)}
        for row, (chosen, rejected) in zip(rows, rewards, strict=True)
    ]
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main("reward")
