"""Exact resuming, equivalent settings, and the checks against silent failure, on a bare trainer."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from minimal import FEW, TinyChain, context
from pydantic import ValidationError

from steps.lib import checkpoints, history, models, packed
from steps.lib.adapters import LoraSettings, with_lora
from steps.lib.errors import ConfigError, DataError, Resumable, TrainingError
from steps.lib.training import (
    TrainSettings,
    arguments,
    fit,
    need_rows,
    trainer_arguments,
)


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings.model_validate({**FEW, "lr": 5e-3, **changes})


def trainer(
    chain: TinyChain, out: Path, config: TrainSettings, *, lora: LoraSettings | None = None, track: Any = None
) -> tuple[Any, Any]:
    """A Trainer on the tiny base and twelve short rows, and its context."""
    from steps.lib import runtime

    folder = chain.base.path / "model"  # built here at the first use, which draws
    runtime.seed_torch(0)
    model = with_lora(models.load_model(folder), lora or LoraSettings(rank=4, alpha=8, dropout=0.1))
    rows = [packed.row([(list(range(5, 12 + n)),) * 2]) for n in range(12)]
    run = context(out, track=track)
    return packed.trainer(model, rows, SimpleNamespace(pad_token_id=0), config, run), run


def losses(out: Path) -> list[float]:
    return [entry["loss"] for entry in history.read(out / "record" / "history.jsonl")]


def weights(model: Any) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.tiny
def test_stopped_and_resumed_equals_uninterrupted(chain: TinyChain, tmp_path: Path) -> None:
    """SIGTERM at update 3 of 6, with dropout, so that a lost generator state shows."""
    whole, run = trainer(chain, tmp_path / "whole", settings())
    fit(whole, settings(), run, tmp_path / "whole")

    def stop(values: Any, step: int | None = None) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    far = settings(save_every=100)
    before = signal.getsignal(signal.SIGTERM)
    cut, run = trainer(chain, tmp_path / "cut", far, track=stop)
    with pytest.raises(Resumable, match="stopped by SIGTERM: the partial work is kept"):
        fit(cut, far, run, tmp_path / "cut")
    assert signal.getsignal(signal.SIGTERM) is before and cut.state.global_step < 6
    [kept] = checkpoints.kept(run.resume).glob("*")
    assert kept.name == f"checkpoint-{cut.state.global_step}"
    again, run = trainer(chain, tmp_path / "cut", far)
    values = fit(again, far, run, tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole") and values["updates"] == 6
    assert all((value == weights(whole.model)[name]).all() for name, value in weights(again.model).items())


@pytest.mark.tiny
def test_a_signal_in_the_last_update_stops_the_run_before_its_last_save(chain: TinyChain, tmp_path: Path) -> None:
    """Saving a large model takes minutes that a cancelled run may not have. Nothing is trained again."""

    def stop(values: Any, step: int | None = None) -> None:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    made, run = trainer(chain, tmp_path, settings(), track=stop)
    with pytest.raises(Resumable, match="stopped by SIGTERM"):
        fit(made, settings(), run, tmp_path)
    made, run = trainer(chain, tmp_path, settings(), track=lambda values, step=None: pytest.fail("trained again"))
    assert fit(made, settings(), run, tmp_path)["updates"] == 6


@pytest.mark.tiny
def test_what_is_tracked_is_the_mean_since_the_last_time(chain: TinyChain, tmp_path: Path) -> None:
    shown: dict[int | None, dict[str, float]] = {}
    config = settings(log_every=4)
    made, run = trainer(chain, tmp_path, config, track=lambda values, step=None: shown.update({step: dict(values)}))
    values = fit(made, config, run, tmp_path)
    each = history.read(tmp_path / "record" / "history.jsonl")
    assert [entry["step"] for entry in each] == [1, 2, 3, 4, 5, 6] and list(shown) == [1, 4, 6]
    for step, part in ((1, each[:1]), (4, each[1:4]), (6, each[4:])):
        assert shown[step]["loss"] == pytest.approx(sum(entry["loss"] for entry in part) / len(part), rel=1e-12)
        assert shown[step]["learning_rate"] == part[-1]["learning_rate"]
    assert (values["loss_first"], values["loss_last"]) == (round(each[0]["loss"], 5), round(each[-1]["loss"], 5))


@pytest.mark.tiny
def test_batches_and_passes_of_an_update_do_not_matter(chain: TinyChain, tmp_path: Path) -> None:
    """Twelve sequences of 150 tokens: as one batch or twelve, in one forward pass or in three."""
    ways = {"12x1": settings(batch_size=12), "1x12": settings(batch_size=1, accumulation=12)}
    ways["passes"] = settings(batch_size=12, tokens_per_pass=64)
    found = {}
    for name, config in ways.items():
        made, run = trainer(chain, tmp_path / name, config, lora=LoraSettings(rank=4))
        batch = next(iter(made.get_train_dataloader()))
        assert len(batch["passes"]) == (3 if name == "passes" else 1)
        fit(made, config, run, tmp_path / name)
        found[name] = weights(made.model)
    for name in ("1x12", "passes"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "12x1"), rel=1e-5)
        for weight, value in found["12x1"].items():
            assert (found[name][weight] - value).norm() <= 1e-3 * value.norm()


@pytest.mark.tiny
def test_a_loss_that_is_no_number_stops(chain: TinyChain, tmp_path: Path) -> None:
    import torch

    made, run = trainer(chain, tmp_path, settings())
    with torch.no_grad():
        for name, p in made.model.named_parameters():
            if "lora_A" in name:
                p.fill_(math.inf)
    with pytest.raises(
        TrainingError, match="loss is nan at update 1: got a value that is no number, because .*; lower lr"
    ):
        fit(made, settings(), run, tmp_path)


def frozen_optimizer(made: Any) -> Any:
    """A trainer whose optimizer updates copies of the weights."""
    made.optimizer = made.create_optimizer()
    for group in made.optimizer.param_groups:
        group["params"] = [p.detach().clone().requires_grad_() for p in group["params"]]
    return made


@pytest.mark.tiny
def test_a_run_that_changes_no_weight_is_an_error_resumed_or_not(chain: TinyChain, tmp_path: Path) -> None:
    config = settings(lr=1e-3, warmup=0.0)
    made, run = trainer(chain, tmp_path, config)
    with pytest.raises(TrainingError, match="no weight changed in training: got the same norms after 6 updates"):
        fit(frozen_optimizer(made), config, run, tmp_path)
    assert checkpoints.newest(run.resume, run.log) is not None
    again, run = trainer(chain, tmp_path, config)
    with pytest.raises(TrainingError, match="no weight changed in training"):
        fit(frozen_optimizer(again), config, run, tmp_path)


@pytest.mark.tiny
def test_a_frozen_model_is_an_error(chain: TinyChain, tmp_path: Path) -> None:
    made, run = trainer(chain, tmp_path, settings())
    for p in made.model.parameters():
        p.requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing to train: got a model without trainable weights"):
        fit(made, settings(), run, tmp_path)


@pytest.mark.tiny
def test_a_failed_save_leaves_nothing_that_fills_the_disk(
    chain: TinyChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    made, run = trainer(chain, tmp_path, settings())
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        fit(made, settings(), run, tmp_path)
    assert not list(checkpoints.written(run.resume).rglob("*.safetensors"))


# --- processes share the forward passes of an update -----------------------------------------------------------------


@pytest.mark.parametrize(("accumulation", "processes"), [(8, 1), (8, 2), (8, 4), (8, 8), (1, 1), (6, 3)])
def test_the_batch_does_not_depend_on_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int, processes: int
) -> None:
    config = TrainSettings(batch_size=3, accumulation=accumulation, processes=processes)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    given = trainer_arguments(config, context(tmp_path))
    passes = given["per_device_train_batch_size"] * given["gradient_accumulation_steps"] * processes
    assert passes == 3 * accumulation


def test_processes_that_there_are_count_not_those_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``python -m steps.sft`` starts one, whatever the file says; a person's torchrun may start others."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    eight = TrainSettings(accumulation=8, processes=8)
    assert trainer_arguments(eight, context(tmp_path))["gradient_accumulation_steps"] == 8
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="accumulation is 8 with 3 processes: got a remainder of 2 forward passes"):
        trainer_arguments(eight, context(tmp_path))


def test_processes_that_do_not_divide_the_passes_are_refused() -> None:
    with pytest.raises(ValidationError) as error:
        TrainSettings(accumulation=1, processes=8)
    said = str(error.value)
    assert (
        "accumulation is 1 with 8 processes: got a remainder of 1" in said
        and "set accumulation to 8, or processes" in said
    )
    with pytest.raises(ValidationError, match="set accumulation to 12"):
        TrainSettings(accumulation=10, processes=4)


def test_several_gpus_in_sight_do_not_multiply_the_batch(tmp_path: Path) -> None:
    class Arguments:
        """As TrainingArguments on a machine with four GPUs and no torchrun."""

        def __init__(self, **given: Any) -> None:
            self.given, self._n_gpu = given, 4

        @property
        def n_gpu(self) -> int:
            return self._n_gpu

    made = arguments(Arguments, TrainSettings(), context(tmp_path), more=1)
    assert made.n_gpu == 1 and made.given["more"] == 1


def test_settings_reach_the_trainer(tmp_path: Path) -> None:
    """A field that is validated and read by nothing is a bug."""
    changed = {
        "lr": 0.5,
        "epochs": 3.5,
        "max_updates": 7,
        "batch_size": 3,
        "accumulation": 5,
        "warmup": 0.25,
        "scheduler": "linear",
        "weight_decay": 0.3,
        "max_grad_norm": 0.7,
        "gradient_checkpointing": True,
        "save_every": 11,
    }
    one = trainer_arguments(TrainSettings(), context(tmp_path))
    two = trainer_arguments(TrainSettings.model_validate(changed), context(tmp_path, seed=4))
    assert {name for name in two if two[name] != one[name]} == {
        "learning_rate",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "warmup_steps",
        "lr_scheduler_type",
        "weight_decay",
        "max_grad_norm",
        "gradient_checkpointing",
        "save_steps",
        "seed",
        "data_seed",
    }


def test_nothing_to_train_on_is_said_with_the_reasons() -> None:
    with pytest.raises(
        DataError, match=r"no chats left to train on: got 0 rows, because all were dropped \(\{'too_long': 3\}\); raise"
    ):
        need_rows([], "chats", {"too_long": 3})
    need_rows([1], "chats", {})
