"""What a training run takes of memory and disk, estimated before it begins.

Weights, gradients and moments are counted. Activations follow from the shape of the layers: what autograd keeps of a decoder
layer a token. On Llamas, with and without adapters, in float32 and bfloat16, it is 0.98 to 1.28 times what saved_tensors_hooks
counts; tests/steps/lib/test_preflight.py counts again.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steps.lib import head
from steps.lib.training import TrainSettings

CHECKPOINT_REST = 1 << 20
"""Bytes of a checkpoint beside its tensors: states, random states, settings, the tokenizer of a small model."""


def free_memory() -> int:
    """Bytes that are free on this process's GPU, or on the machine (its share of them, where several processes train on it)."""
    import torch

    if torch.cuda.is_available():
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0] + cached)
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(facts["MemAvailable"].split()[0]) * 1024
    return min([free, *_allowance()]) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _allowance(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes that a container may still take; none where it has no limit. What only caches files is given back when it is needed."""
    try:
        limit = (root / "memory.max").read_text().strip()
        if limit == "max":
            return []
        facts = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
        used = int((root / "memory.current").read_text())
        return [int(limit) - used + int(facts["inactive_file"]) + int(facts["active_file"])]
    except (OSError, ValueError, KeyError):
        return []


def of_weights(folder: Path, precision: str, bits: int | None = None) -> int:
    """Bytes that a checkpoint takes once it is loaded; from the heads of its files."""
    import torch

    wide = precision == "float32" or (precision == "auto" and not torch.cuda.is_available())
    total = 0.0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            entries = json.loads(file.read(size))
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            count = 1
            for side in entry["shape"]:
                count *= side
            packed = bits and len(entry["shape"]) == 2 and "embed" not in name and "head" not in name
            total += count * ((bits or 0) / 8 if packed else 4 if wide else 2)
    return int(total)


def trained(model: Any) -> int:
    """Bytes of the weights that are trained."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def of_checkpoint(model: Any) -> int:
    """Bytes of a checkpoint: what is trained, and two moments of each weight."""
    return 3 * trained(model) + CHECKPOINT_REST


def of_training(model: Any, tokens: int, *, checkpointing: bool, shares: int = 1) -> dict[str, int]:
    """Bytes beside the weights, by what they are for.

    Args:
        model: loaded, wrapped, with the weights marked that are trained.
        tokens: of the largest forward pass.
        checkpointing: whether activations are made again in the backward pass.
        shares: processes that share gradients and moments out.
    """
    size = trained(model) // shares
    return {
        "gradients": size,
        "optimizer": 2 * size,
        "activations": activations(model, tokens, checkpointing=checkpointing),
        "logits": 3 * 4 * min(head.LOGITS, tokens * model.config.get_text_config().vocab_size),
    }


def packed_pass(settings: TrainSettings, lengths: Sequence[int]) -> int:
    """Tokens of the largest forward pass where the rows of an update are packed (``packed.Collator``)."""
    longest = sorted(lengths, reverse=True)[: settings.batch_size * settings.accumulation]
    return max(longest[:1] + [min(settings.tokens_per_pass, sum(longest))])


def batch_pass(settings: TrainSettings, lengths: Sequence[int]) -> int:
    """Tokens of the largest forward pass where each batch is one."""
    return sum(sorted(lengths, reverse=True)[: settings.batch_size])


def activations(model: Any, tokens: int, *, checkpointing: bool) -> int:
    """Bytes that autograd keeps of a forward pass of so many tokens."""
    config = model.config.get_text_config()
    width = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * width)
    heads = int(config.num_attention_heads)
    queries = heads * int(getattr(config, "head_dim", None) or width // heads)
    keys = queries * int(getattr(config, "num_key_value_heads", None) or heads) // heads
    layer = 6 * width + 4 * queries + 4 * keys + 4 * inner  # numbers a token
    wide = 4 if str(model.dtype) == "torch.float32" else 2
    if any(p.requires_grad and p.element_size() > wide for p in model.parameters()):
        wide = 3  # float32 adapters on 16-bit weights: each keeps its input once more, in float32
    layers = int(config.num_hidden_layers)
    numbers = layers * width + layer if checkpointing else layers * layer
    return tokens * wide * numbers
