"""What the training steps share: their settings, the Trainer's arguments, exact resuming, and checks against silent failure."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from steps.lib import checkpoints, history, kernels, runtime, sharded, stopping
from steps.lib.attention import Attention
from steps.lib.config import Neutral, Section
from steps.lib.errors import ConfigError, DataError, TrainingError
from steps.lib.models import Precision

if TYPE_CHECKING:
    from steps.lib.step import Context


TooLong = Literal["drop", "truncate", "error"]


class TrainSettings(Section):
    """Optimisation. Batches count sequences (pairs for dpo); batch_size x accumulation of them make an update."""

    lr: float = Field(2e-4, gt=0)
    """Peak learning rate of AdamW."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the rows."""
    max_updates: int | None = Field(None, ge=1)
    """Updates after which training stops, whatever the epochs say; null: no limit."""
    batch_size: int = Field(8, ge=1)
    """Sequences a batch."""
    accumulation: int = Field(1, ge=1)
    """Batches an update, those of all processes together."""
    tokens_per_pass: Annotated[int, Neutral] = Field(4096, ge=64)
    """Tokens that one forward pass holds at most (one longer sequence goes alone): what memory allows. The passes of an update are
    summed, so this changes no result but by rounding."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the updates over which the learning rate rises."""
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """Course of the learning rate after the warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """Decay of weights an update, times the learning rate (AdamW)."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Norm to which the gradient is clipped."""
    max_length: int = Field(1024, ge=8)
    """Tokens of the longest sequence; what becomes of a longer chat or pair says too_long."""
    too_long: TooLong = "drop"
    """What becomes of a chat or pair of more than max_length tokens (text for base and pretrain goes on in the next row).
    drop: it is kept out, whole, in dropped.parquet. truncate: a chat ends behind its last answer that fits whole, or else where
    max_length is reached (then nothing teaches it to stop there); a pair's answers lose their ends; the whole row stays in
    truncated.parquet, and one of which nothing is left to learn is dropped. error: the step stops. All are counted."""
    precision: Precision = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU."""
    attention: Annotated[Attention, Neutral] = "auto"
    """What attends. auto: on a GPU, flash_attention_2 for text and chats where the package flash-attn is installed and the weights
    have 16 bits, and flex_attention for pairs that share a prompt; sdpa elsewhere. Results differ by rounding."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compiled: Annotated[bool, Neutral] = False
    """Let torch.compile join the layers' small operations: a minute or so at the start for faster updates. For runs of hours on a
    GPU; on a CPU it gains next to nothing (docs/training.md). Results differ by rounding."""
    save_every: Annotated[int, Neutral] = Field(200, ge=1)
    """Updates between checkpoints (they allow resuming, and change no result)."""
    log_every: Annotated[int, Neutral] = Field(10, ge=1)
    """Updates between two lines of the log and points of the tracker; record/history.jsonl has every update."""
    processes: Annotated[int, Neutral] = Field(1, ge=1)
    """Processes started by torchrun, one a GPU; 1 starts none. They share the forward passes of an update, so they must divide
    accumulation, and the batch stays the same (results differ by rounding, and by what dropout draws)."""
    parallel: Annotated[Literal["ddp", "fsdp"], Neutral] = "ddp"
    """What each of several processes holds. ddp: everything. fsdp: its part of weights, gradients and moments (FSDP2), for models
    that do not fit otherwise, with more traffic between the GPUs; not with qlora and adalora. Results differ by rounding."""

    @model_validator(mode="after")
    def _processes_share_the_passes(self) -> Self:
        if problem := _uneven(self.accumulation, self.processes):
            raise ValueError(problem)
        return self


def _uneven(accumulation: int, processes: int) -> str | None:
    """Why so many processes cannot share the forward passes of an update."""
    if accumulation % processes == 0:
        return None
    more = math.ceil(accumulation / processes) * processes
    return (
        f"accumulation is {accumulation} with {processes} processes: got a remainder of {accumulation % processes} forward "
        f"passes an update, because each process does accumulation / processes of them; set accumulation to {more}, or "
        "processes to one of its divisors (and batch_size so that batch_size x accumulation is the batch you want)"
    )


def mixes(precision: Precision) -> bool:
    """Whether forward passes run under autocast to bfloat16."""
    import torch

    return torch.cuda.is_available() and precision != "float32"


def trainer_arguments(settings: TrainSettings, context: Context, *, whole: bool = False) -> dict[str, Any]:
    """Keyword arguments for ``TrainingArguments`` and TRL's configs.

    The batches of an update are shared by the processes that there really are, however they were started.

    Args:
        whole: the trainer takes all sequences of an update at once (``packed``), in every process, and accumulates nothing.

    Raises:
        ConfigError: these processes cannot share them evenly.
    """
    import torch

    cuda = torch.cuda.is_available()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if problem := _uneven(settings.accumulation, processes):
        raise ConfigError(problem)
    return {
        "output_dir": str(checkpoints.written(context.resume)),
        "learning_rate": settings.lr,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_updates or -1,
        "per_device_train_batch_size": settings.batch_size * (settings.accumulation if whole else 1),
        "gradient_accumulation_steps": 1 if whole else settings.accumulation // processes,
        "warmup_steps": settings.warmup,
        "lr_scheduler_type": settings.scheduler,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": mixes(settings.precision),
        "gradient_checkpointing": settings.gradient_checkpointing,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "save_total_limit": None,
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


def arguments(kind: Any, settings: TrainSettings, context: Context, *, whole: bool = False, **more: Any) -> Any:
    """The Trainer's arguments, in the class that it wants.

    A process has one device: with several GPUs in sight and no torchrun, the Trainer would multiply the batch by their number.
    """
    made = kind(**trainer_arguments(settings, context, whole=whole), **more)
    made._n_gpu = min(made.n_gpu, 1)
    made.sharded = sharded.wanted(settings)
    return made


def fit(trainer: Any, settings: TrainSettings, context: Context, out: Path) -> dict[str, float | int | str]:
    """Train from the newest whole checkpoint to the end, and write ``record/history.jsonl`` with every update.

    A run that was killed and continued has the same weights and the same history as one that was not.

    Returns:
        ``updates``; ``loss_first`` of the first update and ``loss_last``, the mean of the last tenth of them;
        ``train_seconds`` of this process; ``trained_share`` of the weights.

    Raises:
        Resumable: SIGTERM or SIGINT; a checkpoint was saved.
        TrainingError: the loss is not a number, or no weight changed.
    """
    from accelerate.utils import broadcast_object_list
    from transformers import PrinterCallback

    runtime.seed_torch(context.seed)
    before = _norms(trainer.model)  # of the weights as every run of this step starts with them, resumed or not
    if not before:
        raise TrainingError(
            "nothing to train: got a model without trainable weights, because the adapter was loaded frozen; "
            "report this as a defect of prefline"
        )
    _warn_of_an_uneven_end(trainer, settings, context)
    trainer.remove_callback(PrinterCallback)
    first = trainer.is_world_process_zero()
    with stopping.stop_signals() as stop:
        start = broadcast_object_list([checkpoints.newest(context.resume, context.log) if first else None])[0]
        watch = _watch(trainer, settings, context, stop)
        trainer.add_callback(watch)
        timer = runtime.Timer()
        try:
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        except NothingLeft:
            pass
        finally:
            if first:
                checkpoints.clear(context.resume)
    if watch.stopped or stop:  # after the last update, too: it is kept, and a large model's last save takes minutes
        stop.signal = stop.signal or "a signal to another process"
        stop.check()

    entries = losses(trainer)
    if first:
        history.write(out / "record" / "history.jsonl", entries)
    if settings.compiled:
        kernels.back_to_plain(trainer.model)
    after = _norms(trainer.model)
    if trainer.args.sharded:
        sharded.gather(trainer)
    if after == before:
        raise TrainingError(
            f"no weight changed in training: got the same norms after {trainer.state.global_step} updates, because the "
            "run is so short that its warm-up never left learning rate 0, or no gradient reached the trained "
            "weights; train for more updates, or set warmup to 0"
        )
    parameters = list(trainer.model.parameters())
    return {
        "updates": trainer.state.global_step,
        "loss_first": round(entries[0]["loss"], 5),
        "loss_last": round(history.last_loss(entries), 5),
        "train_seconds": round(timer.seconds, 2),
        "trained_share": round(
            sum(p.numel() for p in parameters if p.requires_grad) / sum(p.numel() for p in parameters), 5
        ),
    }


def _warn_of_an_uneven_end(trainer: Any, settings: TrainSettings, context: Context) -> None:
    rows, update, processes = (
        len(trainer.train_dataset),
        settings.batch_size * settings.accumulation,
        runtime.share()[1],
    )
    if processes == 1 or trainer.undivided or not rows % update or not trainer.is_world_process_zero():
        return
    context.log.warning(
        "the last update of an epoch is another one than in one process: got %d rows in updates of %d, because with %d processes "
        "accelerate fills it up with rows of the epoch's start; take a number of rows that %d divides for equal results",
        *(rows, update, processes, update),
    )


def updates(rows: int, settings: TrainSettings) -> int:
    """Updates of a run over so many rows (pairs for dpo), as the Trainer counts them."""
    if settings.max_updates:
        return settings.max_updates
    return math.ceil(settings.epochs * max(1, math.ceil(rows / (settings.batch_size * settings.accumulation))))


def losses(trainer: Any) -> list[dict[str, Any]]:
    """The history of a trainer: an entry for each update, those before the checkpoint it was resumed from included."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


class NothingLeft(Exception):
    """The checkpoint is that of the last update; callbacks may raise it when training begins, too."""


def _norms(model: Any) -> dict[str, float]:
    """Name of each trainable weight -> its norm."""
    return {
        name: sharded.whole(p.detach().float().norm()).item() for name, p in model.named_parameters() if p.requires_grad
    }


def _watch(trainer: Any, settings: TrainSettings, context: Context, stop: stopping.Stop) -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Takes up a checkpoint's counters, saves on a signal, keeps whole checkpoints, checks and shows the loss."""

        stopped = False

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            state.compute_steps(args, state.max_steps)  # save_every as it is now, not as the checkpoint had it
            if not state.global_step:
                return
            if state.is_world_process_zero:
                context.log.info("resuming after update %d of %d", state.global_step, state.max_steps)
            if hasattr(trainer, "_total_train_tokens"):  # counts start at 0 in every process
                trainer._total_train_tokens = int(losses(trainer)[-1]["num_tokens"])
            if state.global_step >= state.max_steps:  # the Trainer would do one more
                raise NothingLeft

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.stopped = _any_process(trainer, bool(stop))
            if self.stopped:
                control.should_save = True
                control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.accelerator.wait_for_everyone()  # each process writes its own random state
            if state.is_world_process_zero:
                checkpoints.keep(context.resume, state.global_step)
            trainer.accelerator.wait_for_everyone()

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            entry = state.log_history[-1]
            if not math.isfinite(entry.get("loss", 0.0)):
                raise TrainingError(
                    f"loss is {entry['loss']} at update {state.global_step}: got a value that is no number, "
                    "because the learning rate is too high or a row is broken; lower lr, and look at the "
                    "rows around that update"
                )
            if "loss" not in entry or not state.is_world_process_zero:
                return
            if shown := history.due(state.log_history, settings.log_every, state.max_steps):
                context.track({k: float(v) for k, v in shown.items() if k != "step"}, state.global_step)
                runtime.come_far(state.global_step, state.max_steps, "updates")
                what = (
                    "reward" if "reward" in shown else "loss"
                )  # on own answers the loss is near 0 whatever they are worth
                context.log.info("update %d/%d %s %.4f", state.global_step, state.max_steps, what, shown[what])

    return Watch()


def _any_process(trainer: Any, flag: bool) -> bool:
    """Whether the flag is set in any process: signals do not reach all of them before the same update."""
    if trainer.args.world_size == 1:
        return flag
    import torch

    return bool(trainer.accelerator.reduce(torch.tensor(int(flag), device=trainer.args.device)).item())


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
