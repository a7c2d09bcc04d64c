"""Preference optimisation: the SFT adapter goes on training, against a frozen copy of itself as the reference.

Reads:  policy (sft): an adapter on its base; pairs: ``pairs.parquet``.
Writes: ``adapter/``, ``chain.json``, ``dropped.parquet``, ``record/history.jsonl``.
Source: Rafailov et al. 2023, 2305.18290, equation 7; TRL's DPOTrainer. The reference is the SFT policy, so at the first update
        policy and reference agree and the sigmoid loss is ln 2: anything else is a wrong chain, and stops the run.
Run:    python -m steps.dpo --config FILE --policy DIR --pairs DIR --out DIR
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from steps.lib import chat, models, runtime, training
from steps.lib.config import Section
from steps.lib.errors import TrainingError
from steps.lib.rows import Dropped, Pair, read_parquet, write_parquet
from steps.lib.step import Context, Metrics, main
from steps.lib.store import digest_file

VERSION = "1"
FIRST_LOSS_TOLERANCE = 1e-3


class DpoConfig(Section):
    """Preference optimisation."""

    method: Literal["lora", "qlora"] = "lora"
    """lora: the SFT adapter on its base; qlora: the same with the base loaded in 4-bit (as sft had it)."""
    beta: float = Field(0.1, gt=0)
    """Weight of the pull towards the reference, in 1 / nat."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the extra negative log-likelihood of chosen answers (RPO, Pang et al. 2024, 2404.19733); 0: none."""
    train: training.TrainSettings = training.TrainSettings()
    """Optimisation; a pair of which one side is longer than max_length tokens is dropped and counted."""


def run(config: DpoConfig, *, policy: Path, pairs: Path, out: Path, context: Context) -> Metrics:
    """Train the adapter on, and check that the chain is right."""
    from datasets import Dataset
    from trl import DPOConfig

    runtime.seed_torch(context.seed)
    tokenizer = models.load_tokenizer(models.model_folder(policy))
    rows, metrics = _encode(config, tokenizer, read_parquet(pairs / "pairs.parquet", Pair), out)
    model = models.load_policy(
        policy, config.train.precision, quantize="4bit" if config.method == "qlora" else None, trainable=True
    )
    losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, config.sft_weight]} if config.sft_weight else {}
    arguments = DPOConfig(
        **training.trainer_arguments(config.train, context),
        beta=config.beta,
        max_length=None,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=config.train.batch_size,
        **losses,
    )
    trainer = _trainer()(model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    metrics.values.update(training.fit(trainer, context, out))
    if trainer.first_loss is not None:
        metrics.values["first_loss"] = round(trainer.first_loss, 6)
    if trainer.is_world_process_zero():
        training.save_adapter(trainer.model, out, models.model_folder(policy), policy)
        before = models.Chain.read(policy)
        stage = models.Stage(step="dpo", digest=digest_file(pairs / "pairs.parquet"))
        before.model_copy(update={"stages": (*before.stages, stage)}).write(out)
    return metrics


def _trainer() -> Any:
    from trl import DPOTrainer

    class PairTrainer(DPOTrainer):  # type: ignore[misc]
        """DPOTrainer that takes our tokens (one way to tokenise in the whole house) and checks the first loss."""

        first_loss: float | None = None

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if self.first_loss is None and self.state.global_step == 0 and model.training:
                # The sigmoid term by itself, from the batch's mean rewards: with sft_weight the whole loss has another term.
                rewards = [self._metrics["train"][f"rewards/{side}"][-1] for side in ("chosen", "rejected")]
                margin = rewards[0] - rewards[1]
                self.first_loss = max(-margin, 0.0) + math.log1p(
                    math.exp(-abs(margin))
                )  # -log sigmoid, without overflow
                if self.loss_types == ["sigmoid"]:
                    self.first_loss = float((result[0] if return_outputs else result).detach())
                check_first_loss(self.first_loss, drift=max(map(abs, rewards)))
            return result

    return PairTrainer


def check_first_loss(loss: float, drift: float = 0.0) -> None:
    """Check that policy and reference are the same model before the first update.

    Args:
        loss: the sigmoid loss of the first batch.
        drift: largest beta |log p - log p_ref| of chosen and rejected; both may drift alike and leave the loss at ln 2.

    Raises:
        TrainingError: the loss is not ln 2 within 1e-3, or the drift is above 2e-3.
    """
    if not (abs(loss - math.log(2)) <= FIRST_LOSS_TOLERANCE and drift <= 2 * FIRST_LOSS_TOLERANCE):  # a NaN is off, too
        raise TrainingError(
            f"first dpo loss is {loss:.4f} (drift {drift:.4f}): got a value off ln 2 = 0.6931 (or off 0), "
            "because policy and reference are not the "
            "same model (a wrong base, a merged or missing adapter, or dropout in one of them); train from the "
            "sft artifact"
        )


def _encode(
    config: DpoConfig, tokenizer: Any, pairs: list[Pair], out: Path
) -> tuple[list[dict[str, list[int]]], Metrics]:
    """Tokens of the pairs that fit and differ, the others dropped with the reason."""
    metrics = Metrics()
    rows: list[dict[str, list[int]]] = []
    dropped: list[Dropped] = []
    for pair in pairs:
        prompt, chosen = chat.encode_pair(tokenizer, pair.prompt, pair.chosen)
        _, rejected = chat.encode_pair(tokenizer, pair.prompt, pair.rejected)
        longest = len(prompt) + max(len(chosen), len(rejected))
        reason = "too_long" if longest > config.train.max_length else "equal_pair" if chosen == rejected else ""
        if reason:
            dropped.append(
                Dropped(
                    id=pair.id,
                    lang=pair.lang,
                    source=pair.source,
                    step="dpo",
                    reason=reason,
                    detail=f"{longest} tokens, limit {config.train.max_length}",
                    row=pair.model_dump_json(),
                )
            )
            continue
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    reasons = Counter(row.reason for row in dropped)
    training.need_rows(rows, "pairs", reasons)
    write_parquet(out / "dropped.parquet", dropped, Dropped)
    metrics.rows.took("pairs", len(pairs))
    metrics.rows.gave("trained", len(rows))
    for reason, count in reasons.items():
        metrics.rows.drop("pairs", reason, count)
    metrics.rows.balance({"pairs": ["trained"]})
    metrics.tokens = sum(2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows)
    return rows, metrics


if __name__ == "__main__":
    main("dpo")
