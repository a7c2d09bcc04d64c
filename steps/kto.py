"""Alignment on single verdicts: the SFT policy goes on training on answers that were liked and answers that were not.

Reads:  policy (sft): an adapter on its base, or whole weights; pairs: ``pairs.parquet``, each a liked and a disliked answer;
        thumbs (clean), badcases: ``thumbs.parquet``, when there is one. One of the three must have rows.
Writes: ``adapter/`` (``model/`` with method full), ``chain.json``, ``dropped.parquet``, ``truncated.parquet`` when rows are cut,
        ``record/preflight.json``, ``record/history.jsonl``.
Source: Ethayarajh et al. 2024, 2402.01306, equations 7 and 8; D'Oosterlinck et al. 2024, 2408.06266 (apo_zero_unpaired); TRL's
        KTOTrainer. The reference is the SFT policy, so at the first update the KL term is 0 and each loss is half of its weight:
        anything else is a wrong chain, and stops the run.
Run:    python -m steps.kto --config FILE --policy DIR --pairs DIR --thumbs DIR --out DIR
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from steps.lib import (
    adalora,
    adapters,
    footprint,
    methods,
    models,
    packed,
    parity,
    refusals,
    runtime,
    starts,
    training,
    verdict_rows,
    verdict_trainer,
)
from steps.lib.door import main
from steps.lib.preflight import Findings
from steps.lib.step import Context, Metrics

VERSION = "2"
Weight = Literal["auto"] | Annotated[float, Field(gt=0)]


class KtoConfig(methods.AnyMethod):
    """Alignment on single verdicts (thumbs up or down)."""

    method: methods.Name = "lora"
    """A policy with an adapter: the adapter goes on training, and the method must be of its kind (its settings are the adapter's).
    A policy of whole weights: full trains them all, any other method puts a fresh adapter on them."""
    beta: float = Field(0.1, gt=0)
    """Weight of the pull towards the reference, in 1 / nat."""
    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """kto: against how far the policy has moved on answers that do not belong to their prompts (it needs batches of 2 or more).
    apo_zero_unpaired: against 0, for answers that are better than the policy's own."""
    desirable_weight: Weight = "auto"
    """Factor of the loss of liked answers. auto: as near to 1 as keeps liked against disliked answers, counts times weights, in the
    range from 1 to 4/3 that the paper recommends."""
    undesirable_weight: Weight = "auto"
    """Factor of the loss of disliked answers; auto as for liked ones."""
    train: training.TrainSettings = training.TrainSettings()
    """Optimisation; a batch counts examples, of which a pair gives two; too_long says what becomes of one above max_length."""

    @model_validator(mode="after")
    def _batches_rotate(self) -> Self:
        if self.loss == "kto" and self.train.batch_size < 2:
            raise ValueError(
                f"train.batch_size is {self.train.batch_size} with loss kto: got batches of one example, because the KL term is "
                "measured on answers that the examples of a batch pass on to each other; set train.batch_size to 2 or more (and "
                "train.accumulation lower), or loss to apo_zero_unpaired"
            )
        return self


def run(
    config: KtoConfig,
    *,
    policy: Path,
    pairs: Path | None = None,
    thumbs: Path | None = None,
    badcases: Path | None = None,
    out: Path,
    context: Context,
) -> Metrics:
    """Train the policy on, and check that the chain is right.

    Raises:
        DataError: there is no example, or only one verdict.
    """
    from datasets import Dataset
    from trl import KTOConfig

    runtime.seed_torch(context.seed)
    refusals.check(config, "kto", models.model_folder(policy), adapter=policy / "adapter")
    tokenizer = models.load_tokenizer(models.model_folder(policy))
    found = Findings()
    examples, digest = verdict_rows.read(pairs, thumbs, badcases)
    rows, metrics = verdict_rows.encode(config, tokenizer, examples, out, found, seed=context.seed)
    found.loading(models.model_folder(policy), config.train.precision, bits=config.bits)
    updates = training.updates(len(rows), config.train)
    model = starts.trained(config, policy, config.train, updates=updates, seed=context.seed)
    most = footprint.batch_pass(config.train, [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows])
    found.check(model, config.train, most, context, metrics)
    arguments = training.arguments(
        KTOConfig,
        config.train,
        context,
        beta=config.beta,
        loss_type=config.loss,
        desirable_weight=metrics.values["desirable_weight"],
        undesirable_weight=metrics.values["undesirable_weight"],
        max_length=None,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=config.train.batch_size,
        remove_unused_columns=False,
        router_aux_loss_coef=0.0,
    )
    trainer = verdict_trainer.trainer(context)(
        model=packed.prepared(model, compiled=config.train.compiled),
        ref_model=starts.no_model(model),
        args=arguments,
        data_collator=verdict_trainer.collator(tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    adalora.follow(trainer)
    metrics.values.update(training.fit(trainer, config.train, context, out))
    metrics.values.update(_moved(training.losses(trainer)))
    if trainer.is_world_process_zero():
        probe = parity.Probe(trainer.model, tokenizer)
        stage = models.Stage(step="kto", digest=digest)
        adapters.save(trainer.model, config.method, out, policy, stage, tokenizer)
        metrics.values.update(probe.check(trainer, tokenizer, out, config.train.precision))
    return metrics


def _moved(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How far the policy was from its reference at the first update (0, or nearly), and its KL term at the last."""
    rewards = [entries[0].get(f"rewards/{side}", 0.0) for side in ("chosen", "rejected")]
    return {"first_drift": round(max(map(abs, rewards)), 6), "kl_last": round(float(entries[-1]["kl"]), 5)}


if __name__ == "__main__":
    main("kto")
