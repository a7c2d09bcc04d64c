"""LoRA adapters: made fresh for training, and saved with a record of the base that they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from steps.lib import models
from steps.lib.config import Section


class LoraSettings(Section):
    """Low-rank adapters (Hu et al. 2021, 2106.09685)."""

    rank: int = Field(16, ge=1)
    """Rank of the update of each matrix."""
    alpha: float = Field(32.0, gt=0)
    """Scale of the update: it is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs dropped while training."""
    targets: str | list[str] = "all-linear"
    """Matrices that get an adapter: ``all-linear`` (all but the head), or names such as q_proj."""


def with_lora(model: Any, settings: LoraSettings) -> Any:
    """Wrap a model with fresh LoRA adapters (named "default"); a quantised one is prepared for training."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(
        model,
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=settings.targets,
            task_type="CAUSAL_LM",
        ),
    )


def save_adapter(model: Any, out: Path, base: Path, base_artifact: Path) -> None:
    """Write ``adapter/`` (safetensors) with the name of its base, and a record of where the base lies."""
    import shutil

    config = model.peft_config["default"]
    config.base_model_name_or_path = str(base.resolve())
    if isinstance(
        config.target_modules, set
    ):  # PEFT's set would be written in an order that changes from process to process
        config.target_modules = sorted(config.target_modules)
    model.save_pretrained(out / "adapter", selected_adapters=["default"])
    (out / "adapter" / "README.md").unlink(missing_ok=True)
    shutil.rmtree(out / "adapter" / "ref", ignore_errors=True)
    facts = models.location(base_artifact)
    key = facts.get("key") if (base_artifact / "adapter").exists() else models.artifact_key(base_artifact)
    models.write_location(
        out, path=str(base.resolve()), key=key or "", id=facts.get("id", ""), revision=facts.get("revision")
    )
