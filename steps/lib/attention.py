"""How a model attends in training: chosen, and refused, before anything is loaded.

Packed rows ask for more than a causal mask: sequences in a row do not see each other, nor do a pair's two answers. Each kind is
told in its own way (``packing.visible``, ``visible_blocks``, positions that restart); all give the same sums, up to rounding.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from steps.lib.errors import ModelError
from steps.lib.methods import METHODS

Attention = Literal["auto", "sdpa", "eager", "flex_attention", "flash_attention_2"]
FLASH = (8, 0)
"""Compute capability that flash attention needs (Ampere)."""
FLEX = (7, 0)
"""The same for flex attention's kernels (Triton)."""


@dataclass(frozen=True)
class Machine:
    """What there is to attend with."""

    capability: tuple[int, int] | None
    """Compute capability of this process's GPU; None: there is none."""
    flash: bool
    """Whether the package flash-attn is installed."""

    @classmethod
    def here(cls) -> Machine:
        """This machine."""
        import torch

        cuda = torch.cuda.is_available()
        return cls(torch.cuda.get_device_capability() if cuda else None, find_spec("flash_attn") is not None)


def chosen(
    wanted: Attention,
    folder: Path,
    *,
    method: str,
    precision: str,
    branches: bool = False,
    plain: bool = False,
    machine: Machine | None = None,
) -> str | None:
    """What transformers is told; None leaves the choice to it (sdpa, where the model has it).

    Args:
        wanted: of the settings.
        folder: of the checkpoint.
        method: of the training.
        precision: of the settings.
        branches: whether pairs share a prompt; flash attention takes no mask that has branches.
        plain: whether rows are padded and nothing is packed, as for sampling and rewards: sdpa or eager alone.
        machine: None for this one.

    Raises:
        ModelError: what is asked for cannot be.
    """
    machine = machine or Machine.here()
    if wanted in ("sdpa", "eager"):
        return wanted
    if plain:
        if wanted != "auto":
            raise ModelError(
                f"train.attention is wrong: got {wanted}, because this step reads padded rows, and flash and flex attention "
                "are wired for packed ones; set it to auto, or to sdpa"
            )
        return None
    if wanted == "auto":
        kind = "flex_attention" if branches else "flash_attention_2"
        return None if _problem(kind, folder, method, precision, machine) else kind
    if problem := _problem(wanted, folder, method, precision, machine):
        raise ModelError(f"train.attention is wrong: got {wanted}, because {problem}; set it to auto, or to sdpa")
    return wanted


def _problem(kind: str, folder: Path, method: str, precision: str, machine: Machine) -> str | None:
    """Why a kind cannot be had here."""
    flash = kind == "flash_attention_2"
    needed = FLASH if flash else FLEX
    if machine.capability is None:
        return "it has no backward pass on a CPU" if not flash else "it runs on GPUs only"
    if machine.capability < needed:
        there = ".".join(map(str, machine.capability))
        return f"the GPU has compute capability {there} and it needs {'.'.join(map(str, needed))}"
    if flash and not machine.flash:
        return "the package flash-attn is not installed (pip install flash-attn --no-build-isolation)"
    if flash and precision == "float32":
        return "precision is float32 and it takes 16 bits only"
    if not METHODS[method].merges:
        return f"method {method} puts virtual tokens before each row or into its layers"
    if not _has(folder, "_supports_flash_attn" if flash else "_supports_flex_attn"):
        return f"transformers has none for the architecture of {folder.name}"
    return None


def _has(folder: Path, name: str) -> bool:
    """Whether the model class of a checkpoint says that it can."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as CLASSES

    if "auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        return False
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return type(config) in CLASSES and bool(getattr(CLASSES[type(config)], name, False))
