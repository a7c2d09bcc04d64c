"""What a checkpoint holds of a model with an adapter: every weight that is trained, by name, and nothing else.

PEFT's own save is made for serving: it drops the encoder behind a prompt or prefix and the ranks that AdaLoRA masked, so a run that
was resumed from it would not go on as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steps.lib import adalora
from steps.lib.errors import TrainingError

FILE = "trained.safetensors"


class Whole:
    """Goes before a Trainer's class: checkpoints of an adapter hold ``trained.safetensors`` in place of PEFT's files."""

    model: Any
    args: Any

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not hasattr(self.model, "peft_config"):
            super()._save(output_dir, state_dict)  # type: ignore[misc]
        elif self.args.should_save:
            from safetensors.torch import save_file

            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            memory, words = adalora.remembered(self.model)
            weights = {name: p.detach() for name, p in trained(self.model).items()}
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
