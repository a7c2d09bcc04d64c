"""Weights, gradients and moments shared out over processes (FSDP2, torch's ``fully_shard``).

Each process holds a part of every matrix. A decoder layer is gathered when it runs, forward and backward, and given back; what
stands around the layers (embeddings, last norm, output layer, a prompt's encoder) stays gathered through an update's pass. The
sums are those of one process, up to rounding.

Checkpoints and results are written by the first process in the form that one process writes, so a run may go on under another
number of processes, shared out or not. Each process loads the whole weights before it gives its parts away, and the first one
loads them once more at the end, to save and to compare: they must fit on one device once, without gradients and moments.

Torch's own function, not accelerate's plugin: accelerate 1.15 drops the plugin without a word where the processes are on a CPU,
and turns 16-bit weights that are trained into 32-bit ones, so that a result would depend on how it was computed.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from steps.lib.errors import TrainingError

if TYPE_CHECKING:
    from steps.lib.training import TrainSettings


def wanted(settings: TrainSettings) -> bool:
    """Whether the weights are shared out: where it is asked for, and there are processes to share them."""
    return settings.parallel == "fsdp" and int(os.environ.get("WORLD_SIZE", "1")) > 1


def shard(model: Any) -> int:
    """Share a model out, in place: each decoder layer by itself, the rest together. Returns the number of layers.

    Trained and frozen weights of a layer go together; trained ones must be of one type. Gradients are summed in 32 bits.

    Raises:
        TrainingError: it has no decoder layers that it names.
    """
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    names = set(inner._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise TrainingError(
            f"model cannot be shared out: got no decoder layers in {type(inner).__name__}, because it does not name them "
            "(_no_split_modules); set train.parallel to ddp"
        )
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, mp_policy=policy, reshard_after_forward=True)
    fully_shard(model, mp_policy=policy, reshard_after_forward=False)
    return len(layers)


def whole(tensor: Any) -> Any:
    """A tensor with all of its parts. Every process must ask, in the same order."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gathered(tensors: Mapping[str, Any], *, keep: bool) -> dict[str, Any]:
    """Whole tensors in the machine's memory, one by one; empty where they are not kept. Every process must ask."""
    found = {}
    for name, tensor in tensors.items():
        value = whole(tensor.detach())
        if keep:
            found[name] = value.cpu()
    return found


def optimizer_state(optimizer: Any, *, keep: bool) -> dict[str, Any]:
    """An optimizer's ``state_dict`` as one process has it; empty where it is not kept. Every process must ask."""
    state = optimizer.state_dict()
    moments = {index: gathered(values, keep=keep) for index, values in state["state"].items()}
    return {"state": moments, "param_groups": state["param_groups"]} if keep else {}


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Take up a ``state_dict`` that one process has written, or ``optimizer_state``: this process's parts of it."""
    from torch.distributed.tensor import distribute_tensor

    numbers = [index for group in state["param_groups"] for index in group["params"]]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def part(weight: Any, value: Any) -> Any:
        if value.shape != weight.shape:  # the count of steps
            return value
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)

    parts = {
        index: {name: part(weight, value) for name, value in state["state"][index].items()}
        for index, weight in zip(numbers, weights, strict=True)
        if index in state["state"]
    }
    optimizer.load_state_dict({"state": parts, "param_groups": state["param_groups"]})


def gather(trainer: Any) -> None:
    """End of a training that was shared out: the first process's ``trainer.model`` becomes a whole one with what was trained.

    It is made as it was before the training (``trainer.again``), and gets the weights that were trained; the parts are given up.
    Every process must ask.
    """
    import torch

    first, old = trainer.is_world_process_zero(), trainer.model
    start = getattr(old, "first_weights", None)  # then the base was changed, too
    chosen = {name: p for name, p in old.named_parameters() if start or p.requires_grad or ".lora_" in name}
    weights = gathered(chosen, keep=first)
    if not first:
        return
    inner = old.get_base_model() if hasattr(old, "peft_config") else old
    configs = inner.config, inner.generation_config  # the Trainer put the tokenizer's special tokens there
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.accelerator.free_memory()
    trainer.callback_handler.model = trainer.callback_handler.optimizer = trainer.callback_handler.lr_scheduler = None
    trainer.model = trainer.model_wrapped = None
    del old, chosen
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    model = trainer.again()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in weights:
                p.copy_(weights.pop(name))
    assert not weights, f"weights without a place: {sorted(weights)[:3]}"
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    inner.config, inner.generation_config = configs
    if start:
        model.first_weights = start
    trainer.model = trainer.model_wrapped = model
