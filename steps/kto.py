"""Alignment on single verdicts: the SFT policy goes on training on answers that were liked and answers that were not.

Reads:  policy (sft): an adapter on its base, or whole weights; pairs: ``pairs.parquet``, each a liked and a disliked answer;
        thumbs (clean): ``thumbs.parquet``, when there is one. One of the two must have rows.
Writes: ``adapter/`` (``model/`` with method full), ``chain.json``, ``dropped.parquet``, ``truncated.parquet`` when rows are cut,
        ``record/preflight.json``, ``record/history.jsonl``.
Source: Ethayarajh et al. 2024, 2402.01306, equations 7 and 8; D'Oosterlinck et al. 2024, 2408.06266 (apo_zero_unpaired); TRL's
        KTOTrainer. The reference is the SFT policy, so at the first update the KL term is 0 and each loss is half of its weight:
        anything else is a wrong chain, and stops the run.
Run:    python -m steps.kto --config FILE --policy DIR --pairs DIR --thumbs DIR --out DIR
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from steps.lib import (
    adalora,
    adapters,
    chat,
    footprint,
    methods,
    models,
    packed,
    parity,
    refusals,
    runtime,
    starts,
    training,
    unpaired,
)
from steps.lib.checkpoints import Journal
from steps.lib.digests import digest_file, digest_text
from steps.lib.door import main
from steps.lib.errors import DataError, TrainingError
from steps.lib.intake import Intake
from steps.lib.preflight import FEWEST, LENGTH_RATIO, Findings
from steps.lib.rows import Pair, Thumb, read_parquet
from steps.lib.sharing import Apart
from steps.lib.step import Context, Metrics
from steps.lib.trained import Whole

VERSION = "1"
FIRST_LOSS_TOLERANCE = 1e-3
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
    examples, digest = _read(pairs, thumbs)
    rows, metrics = _encode(config, tokenizer, examples, out, found, seed=context.seed)
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
    trainer = _trainer(context)(
        model=packed.prepared(model, compiled=config.train.compiled),
        ref_model=starts.no_model(model),
        args=arguments,
        data_collator=_collator(tokenizer.pad_token_id),
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


def _read(pairs: Path | None, thumbs: Path | None) -> tuple[list[Thumb], str]:
    """Every example, and the digest of what they come from.

    Raises:
        DataError: there is none.
    """
    given = (("pairs", pairs, Pair), ("thumbs", thumbs, Thumb))
    files = {name: (folder / f"{name}.parquet", kind) for name, folder, kind in given if folder is not None}
    there = {name: (path, kind) for name, (path, kind) in files.items() if name == "pairs" or path.exists()}
    rows: dict[str, list[Any]] = {name: read_parquet(path, kind) for name, (path, kind) in there.items()}
    if not any(rows.values()):
        raise DataError(
            "kto has nothing to train on: got no thumb and no pair, because "
            f"{'clean has no source of thumbs' if 'thumbs' not in there else 'thumbs.parquet is empty'} and "
            f"{'no pairs were given' if 'pairs' not in there else 'pairs.parquet is empty'}; "
            "name sources in clean.thumbs, or set pairs"
        )
    found = list(unpaired.examples(rows.get("pairs", ()), rows.get("thumbs", ())))
    return found, digest_text("\n".join(f"{name} {digest_file(path)}" for name, (path, _) in there.items()))


def _encode(
    config: KtoConfig, tokenizer: Any, examples: Sequence[Thumb], out: Path, found: Findings, *, seed: int
) -> tuple[list[dict[str, Any]], Metrics]:
    """Tokens of the examples that fit and contradict no other, in the order of training, each with an answer to another prompt."""
    intake = Intake[Thumb]("kto", "examples", config.train, found)
    rows: list[dict[str, Any]] = []
    trained: list[Thumb] = []
    twice = unpaired.unusable(examples)
    for number, example in enumerate(examples):
        encoded = intake.encoded(example, partial(chat.encode_answer, tokenizer, example.prompt, example.completion))
        if not encoded:
            continue
        if number in twice:
            intake.drop(example, *twice[number])
            continue
        prompt, answer, spoken = encoded
        length, room = len(prompt) + len(answer), config.train.max_length - len(prompt)
        fits = intake.fits(example, length)
        if not fits and not intake.cuts:
            continue
        if room < 1:
            intake.drop_long(example, length)
            continue
        if answer[:room] == [tokenizer.eos_token_id]:
            intake.drop(example, "empty_answer", f"{len(answer)} tokens, end included")
            continue
        if not fits:
            intake.cut(example, length, len(prompt) + room)
        row = {"prompt_ids": prompt, "completion_ids": answer[:room], "spoken": spoken[:room], "label": example.label}
        rows.append(row)
        trained.append(example)
    metrics = intake.close(out, len(rows))
    metrics.tokens = sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)
    found.supervised(sum(sum(row["spoken"]) for row in rows), metrics.tokens)
    _weigh(config, rows, metrics, found)
    found.as_served(tokenizer, [example.prompt for example in trained])
    return _rotated(config, rows, metrics, found, seed=seed), metrics


def _weigh(config: KtoConfig, rows: Sequence[dict[str, Any]], metrics: Metrics, found: Findings) -> None:
    """The weights of both sides, and what is odd about the sides."""
    sides = [[sum(row["spoken"]) for row in rows if row["label"] is label] for label in (True, False)]
    up, down = map(len, sides)
    metrics.values |= {"desirable": up, "undesirable": down}
    if not rows:
        return
    if not up or not down:
        there, other = ("liked", "sft learns from good answers alone") if up else ("disliked", "it would only unlearn")
        found.error(
            f"kto needs both verdicts: got {up} liked and {down} disliked answers, because all that is left are {there} ones, and "
            f"{other}; give thumbs of both kinds, or pairs",
            DataError,
        )
        return
    wanted = unpaired.weights(up, down, config.desirable_weight, config.undesirable_weight)
    value = unpaired.ratio(up, down, *wanted)
    metrics.values |= {"desirable_weight": round(wanted[0], 6), "undesirable_weight": round(wanted[1], 6)}
    if not unpaired.LOWEST - 1e-9 <= value <= unpaired.HIGHEST + 1e-9:
        found.warn(
            f"weights of liked and disliked answers are out of balance: got {value:.2f} for {up} x {wanted[0]:g} against {down} x "
            f"{wanted[1]:g}, because KTO recommends 1 to 4/3; set one of desirable_weight and undesirable_weight to auto"
        )
    lengths = unpaired.length_ratio(*sides)
    found.values["length_ratio"] = round(lengths, 4)
    if min(up, down) >= FEWEST and max(lengths, 1 / lengths) >= LENGTH_RATIO:
        word = "longer" if lengths > 1 else "shorter"
        found.warn(
            f"length tells liked from disliked answers: got a mean ratio of {lengths:.2f}, because liked answers are {word} "
            f"throughout; expect {word} answers, or balance the thumbs"
        )


def _rotated(
    config: KtoConfig, rows: Sequence[dict[str, Any]], metrics: Metrics, found: Findings, *, seed: int
) -> list[dict[str, Any]]:
    """The rows in the order of training; for loss kto each with the answer of the row before, cut where max_length is reached."""
    batch = config.train.batch_size
    labels, prompts = [row["label"] for row in rows], [tuple(row["prompt_ids"]) for row in rows]
    order, own = unpaired.arranged(labels, prompts, batch=batch, seed=seed)
    ordered = [rows[number] for number in order]
    if config.loss != "kto" or len(rows) < 2:
        return ordered
    result, cut = [], 0
    for place, row in enumerate(ordered):
        other = ordered[unpaired.before(place, len(ordered), batch)]
        room = config.train.max_length - len(row["prompt_ids"])
        cut += len(other["completion_ids"]) > room
        result.append({**row, "KL_completion_ids": other["completion_ids"][:room], "KL_spoken": other["spoken"][:room]})
    metrics.values |= {"kl_own_prompt": own, "kl_cut": cut}
    if own:
        found.warn(
            f"the KL term is measured on answers to their own prompts: got {own} of {len(rows)}, because too few prompts differ "
            "for batches in which neighbours do; give more prompts, or expect the term to be too high"
        )
    return result


def _collator(pad: int) -> Any:
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    class Spoken(DataCollatorForUnpairedPreference):  # type: ignore[misc]
        """TRL's; what the user says between two turns of an answer is no part of it."""

        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            import torch

            made: dict[str, Any] = super().torch_call(examples)
            for prefix in ("", "KL_"):
                for number, example in enumerate(examples if f"{prefix}spoken" in examples[0] else ()):
                    start, spoken = len(example["prompt_ids"]), torch.tensor(example[f"{prefix}spoken"])
                    made[f"{prefix}completion_mask"][number, start : start + len(spoken)] = spoken
            return made

    return Spoken(pad_token_id=pad)


def _trainer(context: Context) -> Any:
    from accelerate.utils import broadcast_object_list
    from torch.utils.data import DataLoader
    from trl import KTOTrainer

    class VerdictTrainer(Whole, KTOTrainer):  # type: ignore[misc]
        """KTOTrainer that takes our tokens, order and rotation, and checks the first loss.

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
                context.log.info("reference of %d of %d examples is on record", known, len(dataset))
            if known < len(dataset):
                rest = dataset.select(range(known, len(dataset)))
                loader = self.accelerator.prepare(DataLoader(rest, batch_size, collate_fn=self.data_collator))
                for batch in context.progress(loader, "reference", len(loader)):
                    sums = self.compute_ref_log_probs(self._apart(self.model), batch)
                    gathered = self.accelerator.gather_for_metrics(tuple(one for one in sums if one is not None))
                    done.append([one.tolist() for one in gathered])
                    if journal:
                        journal.append(done[-1])
            for place, column in enumerate(("ref_logps", "ref_KL_logps")[: len(done[0])]):
                dataset = dataset.add_column(column, [value for batch in done for value in batch[place]])
            return dataset

        def _apart(self, model: Any) -> Apart:
            return Apart(model, whole=self.model, pad=self.data_collator.pad_token_id)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            result = super().compute_loss(self._apart(model), inputs, return_outputs, num_items_in_batch)
            if not self.checked and self.state.global_step == 0 and model.training:
                self.checked = True
                seen = self._metrics["train"]
                drifts = [seen[name][-1] for name in ("rewards/chosen", "rewards/rejected") if seen[name]]
                up = float(inputs["label"].float().mean())
                check_first_loss(
                    float((result[0] if return_outputs else result).detach()),
                    0.5 * (up * self.desirable_weight + (1 - up) * self.undesirable_weight),
                    drift=max(map(abs, (*drifts, self.beta * seen["kl"][-1]))),
                )
            extra = adalora.penalty(self.model)
            if extra is None:
                return result
            return (result[0] + extra, result[1]) if return_outputs else result + extra

    return VerdictTrainer


def _digest(rows: Iterable[Mapping[str, Any]]) -> str:
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(row, sort_keys=True).encode())
    return found.hexdigest()


def _moved(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How far the policy was from its reference at the first update (0, or nearly), and its KL term at the last."""
    rewards = [entries[0].get(f"rewards/{side}", 0.0) for side in ("chosen", "rejected")]
    return {"first_drift": round(max(map(abs, rewards)), 6), "kl_last": round(float(entries[-1]["kl"]), 5)}


def check_first_loss(loss: float, expected: float, drift: float = 0.0) -> None:
    """Check that policy and reference are the same model before the first update.

    Args:
        loss: of the first batch.
        expected: half of the mean weight of its examples, which both losses give where nothing has moved.
        drift: largest beta |log p - log p_ref|, of liked, of disliked and of rotated answers.

    Raises:
        TrainingError: the loss is off by more than 1e-3 of itself, or the drift is above 2e-3.
    """
    if not (
        abs(loss - expected) <= FIRST_LOSS_TOLERANCE * expected and drift <= 2 * FIRST_LOSS_TOLERANCE
    ):  # a NaN is off, too
        raise TrainingError(
            f"first kto loss is {loss:.4f} (drift {drift:.4f}): got a value off half of the mean weight {expected:.4f} (or off 0), "
            "because policy and reference are not the same model (a wrong base, a merged or missing adapter, or dropout in one of "
            "them); train from the sft artifact"
        )


if __name__ == "__main__":
    main("kto")
