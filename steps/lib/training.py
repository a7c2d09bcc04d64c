"""What the training steps share: their settings, the Trainer's arguments, exact resuming, and checks against silent failure."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from steps.lib import checkpoints, runtime
from steps.lib.config import Neutral, Section
from steps.lib.errors import DataError, TrainingError
from steps.lib.models import Precision

if TYPE_CHECKING:
    from steps.lib.step import Context


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


class TrainSettings(Section):
    """Optimisation. Batches count sequences (pairs for dpo)."""

    lr: float = Field(2e-4, gt=0)
    """Peak learning rate of AdamW."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the rows."""
    max_updates: int | None = Field(None, ge=1)
    """Updates after which training stops, whatever the epochs say; null: no limit."""
    batch_size: int = Field(8, ge=1)
    """Sequences a device and forward pass."""
    accumulation: int = Field(1, ge=1)
    """Forward passes an update."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the updates over which the learning rate rises."""
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """Course of the learning rate after the warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """Decay of weights an update, times the learning rate (AdamW)."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Norm to which the gradient is clipped."""
    max_length: int = Field(1024, ge=8)
    """Tokens of the longest sequence; a longer row is dropped with the reason too_long, never cut."""
    precision: Precision = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    save_every: Annotated[int, Neutral] = Field(200, ge=1)
    """Updates between checkpoints (they allow resuming, and change no result)."""
    log_every: Annotated[int, Neutral] = Field(10, ge=1)
    """Updates between two points of the loss curve."""
    processes: Annotated[int, Neutral] = Field(1, ge=1)
    """Processes started by torchrun, one a GPU; 1 starts none. batch_size x accumulation x processes sequences make an update."""


def trainer_arguments(settings: TrainSettings, context: Context) -> dict[str, Any]:
    """Keyword arguments for ``TrainingArguments`` and TRL's configs."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(context.resume / "checkpoints"),
        "learning_rate": settings.lr,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_updates or -1,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulation,
        "warmup_steps": settings.warmup,
        "lr_scheduler_type": settings.scheduler,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": cuda and settings.precision != "float32",
        "gradient_checkpointing": settings.gradient_checkpointing,
        "logging_steps": settings.log_every,
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "save_total_limit": 2,
        "seed": context.seed,
        "data_seed": context.seed,
        "report_to": [],
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "disable_tqdm": not sys.stderr.isatty(),
        "log_level": "error",
        "include_num_input_tokens_seen": "no",
        "logging_nan_inf_filter": False,
    }


def fit(trainer: Any, context: Context, out: Path) -> dict[str, float | int | str]:
    """Train from the newest whole checkpoint to the end, and write ``record/history.jsonl``.

    Returns:
        First and last loss, updates, seconds and supervised rows a second.

    Raises:
        Resumable: SIGTERM or SIGINT; a checkpoint was saved.
        TrainingError: the loss is not a number, or no weight changed.
    """
    from transformers import PrinterCallback, TrainerCallback

    runtime.seed_torch(context.seed)
    trained = [(name, p) for name, p in trainer.model.named_parameters() if p.requires_grad]
    if not trained:
        raise TrainingError(
            "nothing to train: got a model without trainable weights, because the adapter was loaded frozen; "
            "report this as a defect of prefline"
        )
    before = {name: p.detach().float().norm().item() for name, p in trained}

    with runtime.stop_signals() as stop:

        class Watch(TrainerCallback):  # type: ignore[misc]
            """Saves on a signal, marks whole checkpoints, stops on a loss that is no number, passes metrics on."""

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if stop:
                    control.should_save = True
                    control.should_training_stop = True

            def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.is_world_process_zero:
                    checkpoints.mark(Path(args.output_dir) / f"checkpoint-{state.global_step}")

            def on_log(
                self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
            ) -> None:
                values = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, (int, float))}
                if not math.isfinite(values.get("loss", 0.0)):
                    raise TrainingError(
                        f"loss is {values['loss']} at update {state.global_step}: got a value that is no number, "
                        "because the learning rate is too high or a row is broken; lower lr, and look at the "
                        "rows around that update"
                    )
                if "loss" in values:
                    context.track(values, state.global_step)
                    context.log.info("update %d/%d loss %.4f", state.global_step, state.max_steps, values["loss"])

        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Watch())
        start = checkpoints.newest_valid(Path(trainer.args.output_dir))
        if start:
            context.log.info("resuming from %s", start.name)
        timer = runtime.Timer()
        trainer.train(resume_from_checkpoint=str(start) if start else None)
        stop.check()

    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    if trainer.is_world_process_zero():
        (out / "record").mkdir(exist_ok=True)
        with (out / "record" / "history.jsonl").open("w") as file:
            for entry in history:
                file.write(json.dumps(entry) + "\n")
    if not history:
        raise TrainingError(
            f"no loss was logged in {trainer.state.global_step} updates: got an empty history, because log_every is "
            "larger than the run; lower log_every"
        )
    if (
        trainer.state.global_step
        and all(p.detach().float().norm().item() == before[name] for name, p in trained)
        and not start
    ):
        raise TrainingError(
            f"no weight changed in training: got the same norms after {trainer.state.global_step} updates, because the "
            "run is so short that its warm-up never left learning rate 0, or no gradient reached the trained "
            "weights; train for more updates, or set warmup to 0"
        )
    return {
        "updates": trainer.state.global_step,
        "loss_first": round(history[0]["loss"], 5),
        "loss_last": round(history[-1]["loss"], 5),
        "train_seconds": round(timer.seconds, 2),
        "trained_share": round(
            sum(p.numel() for _, p in trained) / sum(p.numel() for p in trainer.model.parameters()), 5
        ),
    }


def blocks(documents: Sequence[Sequence[int]], length: int, separator: int) -> list[list[int]]:
    """Pack documents, a separator after each, into rows of ``length`` tokens; the last row may be shorter.

    Nothing is lost: a document goes on in the next row.
    """
    stream = [token for document in documents for token in (*document, separator)]
    return [stream[i : i + length] for i in range(0, len(stream), length) if len(stream[i : i + length]) > 1]


def need_rows(rows: Sequence[object], what: str, dropped: Mapping[str, int]) -> None:
    """Refuse to train on nothing.

    Raises:
        DataError: no row is left.
    """
    if not rows:
        raise DataError(
            f"no {what} left to train on: got 0 rows, because all were dropped ({dict(dropped) or 'none came in'}); raise "
            "max_length or look at dropped.parquet of clean"
        )


def pad_batch(pad_token: int) -> Any:
    """A collator that pads ``input_ids`` and ``labels`` on the right to the longest row of the batch."""

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
        import torch

        width = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, value: int) -> Any:  # (B, T)
            return torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])

        mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in rows])
        return {"input_ids": padded("input_ids", pad_token), "labels": padded("labels", -100), "attention_mask": mask}

    return collate


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

    from steps.lib import models

    config = model.peft_config["default"]
    config.base_model_name_or_path = str(base.resolve())
    if isinstance(
        config.target_modules, set
    ):  # PEFT's set would be written in an order that changes from process to process
        config.target_modules = sorted(config.target_modules)
    model.save_pretrained(out / "adapter", selected_adapters=["default"])
    (out / "adapter" / "README.md").unlink(missing_ok=True)
    shutil.rmtree(out / "adapter" / "ref", ignore_errors=True)
    key = models.artifact_key(base_artifact)
    models.write_location(out, path=str(base.resolve()), key=key if (base_artifact / "model").exists() else "")
