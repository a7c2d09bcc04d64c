"""Preference optimisation: the SFT policy goes on training; what it was at the start is the reference.

Reads:  policy (sft): an adapter on its base, or whole weights; pairs: ``pairs.parquet``; reference: its log-probabilities of these
        pairs.
Writes: ``adapter/`` (``model/`` with method full), ``chain.json``, ``dropped.parquet``, ``truncated.parquet`` when rows are cut,
        ``record/preflight.json``, ``record/history.jsonl``.
Source: Rafailov et al. 2023, 2305.18290, equation 7; TRL's DPOTrainer. The reference is the SFT policy, so at the first update
        policy and reference agree and the sigmoid loss is ln 2: anything else is a wrong chain, and stops the run.
Run:    python -m steps.dpo --config FILE --policy DIR --pairs DIR --reference DIR --out DIR
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from steps.lib import (
    adalora,
    adapters,
    footprint,
    logps,
    losses,
    methods,
    models,
    packed,
    pair_rows,
    parity,
    refusals,
    runtime,
    starts,
    training,
)
from steps.lib.digests import digest_file
from steps.lib.door import main
from steps.lib.errors import TrainingError
from steps.lib.preflight import Findings
from steps.lib.rows import Pair, read_parquet
from steps.lib.sharing import Shared
from steps.lib.step import Context, Metrics
from steps.lib.trained import Whole

VERSION = "3"
FIRST_LOSS_TOLERANCE = 1e-3


class DpoConfig(methods.AnyMethod):
    """Preference optimisation."""

    method: methods.Name = "lora"
    """A policy with an adapter: the adapter goes on training, and the method must be of its kind (its settings are the adapter's).
    A policy of whole weights: full trains them all, any other method puts a fresh adapter on them."""
    beta: float = Field(0.1, gt=0)
    """Weight of the pull towards the reference, in 1 / nat."""
    loss: losses.PreferenceLoss = losses.PreferenceLoss()
    """Loss, or losses."""
    train: training.TrainSettings = training.TrainSettings()
    """Optimisation; too_long says what becomes of a pair of which one side is longer than max_length tokens."""


def run(config: DpoConfig, *, policy: Path, pairs: Path, reference: Path, out: Path, context: Context) -> Metrics:
    """Train the policy on, and check that the chain is right."""
    from datasets import Dataset
    from trl import DPOConfig

    runtime.seed_torch(context.seed)
    refusals.check(config, "dpo", models.model_folder(policy), adapter=policy / "adapter")
    tokenizer = models.load_tokenizer(models.model_folder(policy))
    found = Findings()
    kept, metrics = pair_rows.encode(
        "dpo", config.train, tokenizer, read_parquet(pairs / "pairs.parquet", Pair), out, found
    )
    metrics.tokens = pair_rows.look(kept, tokenizer, found)
    scored = logps.scored(config, policy, config.train.precision, context.seed)
    rows = logps.joined(kept, reference, scored, config.loss.ld_alpha, found)
    found.stop()
    found.loading(models.model_folder(policy), config.train.precision, bits=config.bits)
    updates = training.updates(len(rows), config.train)
    again = partial(starts.trained, config, policy, config.train, updates=updates, seed=context.seed, branches=True)
    model = again()
    most = footprint.batch_pass(config.train, [sum(map(len, row.values())) for row in kept.rows])
    found.check(model, config.train, most, context, metrics)
    arguments = training.arguments(
        DPOConfig,
        config.train,
        context,
        beta=config.beta,
        max_length=None,
        **config.loss.arguments(),
    )
    trainer = _trainer()(
        model=packed.prepared(model, compiled=config.train.compiled),
        ref_model=starts.no_model(model),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.again = again
    trainer.precompute_ref_logps = (
        True  # they are in the rows; told to compute them, TRL would digest every weight first
    )
    adalora.follow(trainer)
    metrics.values.update(training.fit(trainer, config.train, context, out))
    metrics.values["first_loss"] = round(_sigmoid_loss(training.losses(trainer)[0]["rewards/margins"]), 6)
    if trainer.is_world_process_zero():
        probe = parity.Probe(trainer.model, tokenizer)
        stage = models.Stage(step="dpo", digest=digest_file(pairs / "pairs.parquet"))
        adapters.save(trainer.model, config.method, out, policy, stage, tokenizer)
        metrics.values.update(probe.check(trainer, tokenizer, out, config.train.precision))
    return metrics


def _trainer() -> Any:
    from trl import DPOTrainer

    class PairTrainer(Whole, DPOTrainer):  # type: ignore[misc]
        """DPOTrainer that takes our tokens (one way to tokenise in the whole house) and checks the first loss."""

        checked = False

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _shared(self, model: Any) -> Shared:
            return Shared(model, whole=self.model, pad=self.data_collator.pad_token_id)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            result = super().compute_loss(self._shared(model), inputs, return_outputs, num_items_in_batch)
            if not self.checked and self.state.global_step == 0 and model.training:
                self.checked = True
                rewards = [self._metrics["train"][f"rewards/{side}"][-1] for side in ("chosen", "rejected")]
                loss = _sigmoid_loss(rewards[0] - rewards[1])
                if self.loss_types == ["sigmoid"]:
                    loss = float((result[0] if return_outputs else result).detach())
                check_first_loss(loss, drift=max(map(abs, rewards)))
            extra = adalora.penalty(self.model)
            if extra is None:
                return result
            return (result[0] + extra, result[1]) if return_outputs else result + extra

    return PairTrainer


def _sigmoid_loss(margin: float) -> float:
    """-log sigmoid of a mean reward margin, without overflow: the sigmoid term by itself, whatever else the loss is made of."""
    return max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))


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
            "same model (a wrong base, a merged or missing adapter, dropout in one of them, or another machine's numbers); train "
            "from the sft artifact, with the reference made of it"
        )


if __name__ == "__main__":
    main("dpo")
