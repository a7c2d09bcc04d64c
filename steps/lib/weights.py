"""Digests of a model's weights by name, which tell what a save or a disk changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from steps.lib import adapters


def changed(found: Mapping[str, str], wanted: Mapping[str, str], what: str) -> list[str]:
    """What is wrong where two models' digests differ; ``what`` says what was saved."""
    names = sorted({name for name, _ in found.items() ^ wanted.items()})
    if not names:
        return []
    return [
        f"saved {what} is not what was trained: got other bytes in {len(names)} of {len(wanted)} tensors ({names[0]}), because the "
        "disk changed them or the save lost them; run the step again, it goes on from its last checkpoint"
    ]


def digests(model: Any) -> dict[str, str]:
    """Name of each weight that is saved -> digest of its values: those of the adapter, or all.

    16 bits are widened first, which keeps every value: TRL trains the adapters of a quantised base in bfloat16, and PEFT loads them
    in float32.
    """
    import torch

    state = adapters.state(model) if hasattr(model, "peft_config") else model.state_dict()

    def digest(value: Any) -> str:
        flat = value.detach().cpu().flatten()
        wide = flat.float() if flat.is_floating_point() else flat
        return hashlib.sha256(memoryview(wide.contiguous().view(torch.uint8).numpy())).hexdigest()

    return {name: digest(value) for name, value in state.items()}
