"""AdaLoRA's part in a training loop: ranks are shifted after each update, and directions are kept apart (2303.10512).

PEFT adds the pull towards orthogonal directions to ``.loss`` of a model's output. Here losses are made of log-probabilities, so it
is added by ``penalty``, once an update. What the allocator remembers goes into checkpoints, so that a resumed run prunes alike.
"""

from __future__ import annotations

import json
from typing import Any

MEMORY = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What the allocator keeps for each weight: importance, its running mean, and that of its uncertainty."""


def tuner(model: Any) -> Any:
    """The AdaLoRA part of a model with such an adapter in training, or None."""
    found = getattr(model, "base_model", None)
    return found if hasattr(found, "rankallocator") else None


def penalty(model: Any) -> Any:
    """Weight x mean over the adapter's matrices P of |P'P - I| (Frobenius), as PEFT has it; None without AdaLoRA.

    Matrices whose ranks were all taken away count with 0.
    """
    import torch

    found = tuner(model)
    weight = found.peft_config["default"].orth_reg_weight if found is not None else 0.0
    if not weight:
        return None
    total: Any = 0.0
    count = 0
    for name, p in found.model.named_parameters():
        if ("lora_A" in name or "lora_B" in name) and "default" in name:
            product = p @ p.T if "lora_A" in name else p.T @ p
            total = total + torch.linalg.matrix_norm(product - torch.eye(len(product), device=p.device))
            count += 1
    return weight * total / count


def follow(trainer: Any) -> None:
    """Let a trainer shift the ranks of a fresh AdaLoRA adapter. One that a policy holds keeps the ranks it has."""
    from transformers import TrainerCallback

    found = tuner(trainer.model)
    if found is None or found.peft_config["default"].rank_pattern is not None:
        return

    class Allocation(TrainerCallback):  # type: ignore[misc]
        """After the optimizer's step, while the gradients are still there."""

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found.update_and_allocate(state.global_step + 1)

    trainer.add_callback(Allocation())


def remembered(model: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """What a checkpoint needs besides the weights: tensors, and words."""
    found = tuner(model)
    if found is None:
        return {}, {}
    memory = {f"{kind}/{name}": t for kind in MEMORY for name, t in getattr(found.rankallocator, kind).items()}
    return memory, {"rank_pattern": json.dumps(found.peft_config["default"].rank_pattern)}


def recall(model: Any, tensors: dict[str, Any], words: dict[str, str]) -> None:
    """Put back what ``remembered`` gave."""
    found = tuner(model)
    if found is None:
        return
    device = next(found.parameters()).device
    for kind in MEMORY:
        kept = {name[len(kind) + 1 :]: t.to(device) for name, t in tensors.items() if name.startswith(f"{kind}/")}
        setattr(found.rankallocator, kind, kept)
    found.peft_config["default"].rank_pattern = json.loads(words["rank_pattern"])
