"""TRL's KTOTrainer on our tokens, order and rotation, with the reference on record; and the check of its first loss."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from steps.lib import adalora
from steps.lib.checkpoints import Journal
from steps.lib.errors import TrainingError
from steps.lib.sharing import Apart
from steps.lib.step import Context
from steps.lib.trained import Whole

FIRST_LOSS_TOLERANCE = 1e-3


def collator(pad: int) -> Any:
    """Puts examples side by side; ``pad`` fills them up."""
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


def trainer(context: Context) -> Any:
    """The class of the trainer, whose reference goes on from the journal in the resume folder."""
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


def check_first_loss(loss: float, expected: float, drift: float = 0.0) -> None:
    """Check that policy and reference are the same model before the first update.

    Args:
        loss: of the first batch.
        expected: half of the mean weight of its examples, which both losses give where nothing has moved.
        drift: largest beta |log p - log p_ref|, of liked, of disliked and of rotated answers.

    Raises:
        TrainingError: the loss is off by more than 1e-3 of ``expected``, or the drift is above 2e-3.
    """
    if not (
        abs(loss - expected) <= FIRST_LOSS_TOLERANCE * expected and drift <= 2 * FIRST_LOSS_TOLERANCE
    ):  # a NaN is off, too
        raise TrainingError(
            f"first kto loss is {loss:.4f} (drift {drift:.4f}): got a value off half of the mean weight {expected:.4f} (or off 0), "
            "because policy and reference are not the same model (a wrong base, a merged or missing adapter, or dropout in one of "
            "them); train from the sft artifact"
        )


def _digest(rows: Iterable[Mapping[str, Any]]) -> str:
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(row, sort_keys=True).encode())
    return found.hexdigest()
