"""Preference optimisation: the SFT policy goes on training; what it was at the start is the reference.

Reads:  policy (sft): an adapter on its base, or whole weights; pairs: ``pairs.parquet``.
Writes: ``adapter/`` (``model/`` with method full), ``chain.json``, ``dropped.parquet``, ``truncated.parquet`` when rows are cut,
        ``record/preflight.json``, ``record/history.jsonl``.
Source: Rafailov et al. 2023, 2305.18290, equation 7; TRL's DPOTrainer. The reference is the SFT policy, so at the first update
        policy and reference agree and the sigmoid loss is ln 2: anything else is a wrong chain, and stops the run.
Run:    python -m steps.dpo --config FILE --policy DIR --pairs DIR --out DIR
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from steps.lib import (
    adalora,
    adapters,
    attention,
    chat,
    footprint,
    losses,
    methods,
    models,
    packed,
    parity,
    refusals,
    runtime,
    training,
)
from steps.lib.checkpoints import Journal
from steps.lib.digests import digest_file
from steps.lib.door import main
from steps.lib.errors import TrainingError
from steps.lib.intake import Intake
from steps.lib.preflight import Findings
from steps.lib.rows import Pair, read_parquet
from steps.lib.sharing import Shared
from steps.lib.step import Context, Metrics
from steps.lib.trained import Whole

VERSION = "2"
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


def run(config: DpoConfig, *, policy: Path, pairs: Path, out: Path, context: Context) -> Metrics:
    """Train the policy on, and check that the chain is right."""
    from datasets import Dataset
    from trl import DPOConfig

    runtime.seed_torch(context.seed)
    refusals.check(config, "dpo", models.model_folder(policy), adapter=policy / "adapter")
    tokenizer = models.load_tokenizer(models.model_folder(policy))
    found = Findings()
    rows, metrics = _encode(config, tokenizer, read_parquet(pairs / "pairs.parquet", Pair), out, found)
    found.loading(models.model_folder(policy), config.train.precision, bits=config.bits)
    again = partial(_policy, config, policy, updates=training.updates(len(rows), config.train))
    model = again()
    found.check(
        model,
        config.train,
        footprint.batch_pass(config.train, [sum(map(len, row.values())) for row in rows]),
        context,
        metrics,
    )
    arguments = training.arguments(
        DPOConfig,
        config.train,
        context,
        beta=config.beta,
        max_length=None,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=config.train.batch_size,
        **config.loss.arguments(),
    )
    trainer = _trainer(context)(
        model=packed.prepared(model),
        ref_model=_no_copy(model),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.again = again
    adalora.follow(trainer)
    metrics.values.update(training.fit(trainer, config.train, context, out))
    metrics.values["first_loss"] = round(_sigmoid_loss(training.losses(trainer)[0]["rewards/margins"]), 6)
    if trainer.is_world_process_zero():
        probe = parity.Probe(trainer.model, tokenizer)
        stage = models.Stage(step="dpo", digest=digest_file(pairs / "pairs.parquet"))
        adapters.save(trainer.model, config.method, out, policy, stage, tokenizer)
        metrics.values.update(probe.check(trainer, tokenizer, out, config.train.precision))
    return metrics


def _policy(config: DpoConfig, policy: Path, *, updates: int) -> Any:
    """The policy, ready to be trained: its own adapter, or what the method makes of whole weights."""
    folder, precision = models.model_folder(policy), config.train.precision
    kind = attention.chosen(config.train.attention, folder, method=config.method, precision=precision, branches=True)
    if (policy / "adapter").exists():
        return models.load_policy(policy, precision, quantize=config.quantize, trainable=True, attention=kind)
    return adapters.start(config, folder, precision, updates=updates, attention=kind)


def _no_copy(model: Any) -> Any:
    """What TRL gets for a reference model beside an adapter, so that it makes no second adapter.

    A copy costs memory, AdaLoRA allows none, and a copy of a pissa adapter would change the base once more. The reference's
    log-probabilities are computed before the first update, with the policy itself.
    """
    if not hasattr(model, "peft_config"):
        return None
    import torch

    class NoCopy(torch.nn.Module):  # type: ignore[misc]
        """Never called."""

        config = model.config

    return NoCopy()


def _trainer(context: Context) -> Any:
    from accelerate.utils import broadcast_object_list
    from torch.utils.data import DataLoader
    from trl import DPOTrainer

    class PairTrainer(Whole, DPOTrainer):  # type: ignore[misc]
        """DPOTrainer that takes our tokens (one way to tokenise in the whole house) and checks the first loss.

        The reference's log-probabilities are kept in the resume folder batch by batch, so that a resumed run does not ask for
        them again; TRL keeps them in a folder that goes with the process.
        """

        checked = False

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            at_once = batch_size * self.accelerator.num_processes
            head = {"rows": _digest(dataset), "rows_at_once": at_once}
            first = self.accelerator.is_main_process
            journal = Journal(context.resume / "reference.journal", head) if first else None
            done: list[Any] = broadcast_object_list([list(journal.values) if journal else None])[0]
            known = min(at_once * len(done), len(dataset))
            if done and first:
                context.log.info("reference of %d of %d pairs is on record", known, len(dataset))
            if known < len(dataset):
                rest = dataset.select(range(known, len(dataset)))
                loader = self.accelerator.prepare(DataLoader(rest, batch_size, collate_fn=self.data_collator))
                for batch in context.progress(loader, "reference", len(loader)):
                    sides = self.accelerator.gather_for_metrics(
                        self.compute_ref_log_probs(self._shared(self.model), batch)
                    )
                    done.append([side.tolist() for side in sides])
                    if journal:
                        journal.append(done[-1])
            for place, side in enumerate(("chosen", "rejected")):
                dataset = dataset.add_column(f"ref_{side}_logps", [value for batch in done for value in batch[place]])
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


def _digest(rows: Iterable[Mapping[str, Any]]) -> str:
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(row, sort_keys=True).encode())
    return found.hexdigest()


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
            "same model (a wrong base, a merged or missing adapter, or dropout in one of them); train from the "
            "sft artifact"
        )


def _encode(
    config: DpoConfig, tokenizer: Any, pairs: list[Pair], out: Path, found: Findings
) -> tuple[list[dict[str, list[int]]], Metrics]:
    """Tokens of the pairs that fit and differ; the others are dropped or cut, as the settings say."""
    intake = Intake[Pair]("dpo", "pairs", config.train, found)
    rows: list[dict[str, list[int]]] = []
    trained: list[Pair] = []
    for pair in pairs:
        sides = intake.encoded(pair, partial(_sides, tokenizer, pair))
        if not sides:
            continue
        prompt, chosen, rejected = sides
        room = config.train.max_length - len(prompt)
        longest = len(prompt) + max(len(chosen), len(rejected))
        fits = intake.fits(pair, longest)
        if not fits and not intake.cuts:
            continue
        if room < 1:
            intake.drop_long(pair, longest)
            continue
        left = chosen[:room], rejected[:room]
        if left[0] == left[1]:
            intake.drop(pair, "equal_pair", f"equal answers of {len(left[0])} tokens" + ("" if fits else " once cut"))
        elif [tokenizer.eos_token_id] in left:
            intake.drop(pair, "empty_answer", f"{len(chosen)} tokens chosen, {len(rejected)} rejected, end included")
        else:
            if not fits:
                intake.cut(pair, longest, len(prompt) + max(map(len, left)))
            rows.append({"prompt_ids": prompt, "chosen_ids": left[0], "rejected_ids": left[1]})
            trained.append(pair)
    metrics = intake.close(out, len(rows))
    metrics.tokens = sum(2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows)
    found.supervised(sum(len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows), metrics.tokens)
    found.pairs(trained, [(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in rows])
    found.as_served(tokenizer, [pair.prompt for pair in trained])
    return rows, metrics


def _sides(tokenizer: Any, pair: Pair) -> tuple[list[int], list[int], list[int]]:
    """Tokens of a pair's prompt, chosen and rejected answer."""
    prompt, chosen = chat.encode_pair(tokenizer, pair.prompt, pair.chosen)
    return prompt, chosen, chat.encode_pair(tokenizer, pair.prompt, pair.rejected)[1]


if __name__ == "__main__":
    main("dpo")
