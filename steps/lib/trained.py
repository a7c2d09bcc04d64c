"""What a checkpoint holds of a model with an adapter: every weight that is trained, by name, and nothing else.

PEFT's own save is made for serving: it drops the encoder behind a prompt or prefix and the ranks that AdaLoRA masked, so a run that
was resumed from it would not go on as it was.

Where the weights are shared out over processes (``sharded``), a checkpoint has the same files as one process writes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from steps.lib import adalora, sharded
from steps.lib.errors import TrainingError

FILE = "trained.safetensors"
OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
"""As the Trainer calls them."""


class Whole:
    """Goes before a Trainer's class: checkpoints of an adapter hold ``trained.safetensors`` in place of PEFT's files."""

    model: Any
    args: Any
    optimizer: Any
    lr_scheduler: Any
    is_distributed_loading_by_transformers: bool
    again: Callable[[], Any]
    """Makes the model once more, as it was before the training; asked where it was shared out."""
    undivided = False
    """Whether each process gets all rows of an update, and takes its share itself."""

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        if self.args.sharded:  # by now the model has the weights of the checkpoint that training goes on from
            sharded.shard(self.model)
            self.is_distributed_loading_by_transformers = True  # the Trainer wraps it no more
        return super()._prepare_for_training(*args, **kwargs)  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights of a checkpoint."""
        if not self.args.sharded:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
            return
        chosen = trained(self.model) if hasattr(self.model, "peft_config") else dict(self.model.named_parameters())
        weights = sharded.gathered(chosen, keep=self.args.should_save)
        if self.args.should_save:
            self._save(output_dir, weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.args.sharded:
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
            return
        import torch

        state = sharded.optimizer_state(self.optimizer, keep=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.args.sharded:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        import torch

        state = torch.load(Path(checkpoint) / OPTIMIZER, map_location="cpu", weights_only=True)
        sharded.load_optimizer(self.optimizer, state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not hasattr(self.model, "peft_config"):
            super()._save(output_dir, state_dict)  # type: ignore[misc]
        elif self.args.should_save:
            from safetensors.torch import save_file

            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            memory, words = adalora.remembered(self.model)
            weights = state_dict or {name: p.detach() for name, p in trained(self.model).items()}
            save_file({k: t.contiguous() for k, t in (weights | memory).items()}, folder / FILE, metadata=words or None)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not hasattr(self.model, "peft_config"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        import torch
        from safetensors import safe_open

        with safe_open(str(Path(resume_from_checkpoint) / FILE), "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            words = dict(file.metadata() or {})
        weights = trained(self.model)
        if missing := sorted(weights.keys() - found.keys()):
            raise TrainingError(
                f"checkpoint {resume_from_checkpoint} does not fit the model: got no weight {missing[0]}, because it was "
                "written for another adapter; delete the step's partial folder, and run it again"
            )
        with torch.no_grad():
            for name, p in weights.items():
                p.copy_(found[name])
        adalora.recall(self.model, found, words)


def trained(model: Any) -> dict[str, Any]:
    """Name -> weight of all that training changes, and of what belongs to it (a frozen half of a LoRA adapter)."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad or ".lora_" in name}
