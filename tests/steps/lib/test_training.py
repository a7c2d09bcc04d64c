"""Exact resuming, equivalent settings, and the checks against silent failure, on a bare trainer."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minimal import FEW, TinyChain, context

from steps.lib import models
from steps.lib.errors import DataError, Resumable, TrainingError
from steps.lib.training import (
    LoraSettings,
    TrainSettings,
    blocks,
    fit,
    need_rows,
    pad_batch,
    trainer_arguments,
    with_lora,
)


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings.model_validate({**FEW, "lr": 5e-3, **changes})


def trainer(
    chain: TinyChain, out: Path, config: TrainSettings, *, lora: LoraSettings | None = None, track: Any = None
) -> tuple[Any, Any]:
    """A Trainer on the tiny base and twelve short rows, and its context."""
    from transformers import Trainer, TrainingArguments

    from steps.lib import runtime

    folder = chain.base.path / "model"  # built here at the first use, which draws
    runtime.seed_torch(0)
    model = with_lora(models.load_model(folder), lora or LoraSettings(rank=4, alpha=8, dropout=0.1))
    rows = [{"input_ids": list(range(5, 12 + n)), "labels": list(range(5, 12 + n))} for n in range(12)]
    run = context(out, track=track)
    made = Trainer(
        model=model,
        args=TrainingArguments(**trainer_arguments(config, run)),
        train_dataset=rows,
        data_collator=pad_batch(0),
    )
    return made, run


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "record" / "history.jsonl").read_text().splitlines()]


def weights(model: Any) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.tiny
def test_stopped_and_resumed_equals_uninterrupted(chain: TinyChain, tmp_path: Path) -> None:
    """SIGTERM at update 3 of 6, with dropout, so that a lost generator state shows."""
    whole, run = trainer(chain, tmp_path / "whole", settings())
    fit(whole, run, tmp_path / "whole")

    def stop(values: Any, step: int | None = None) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    cut, run = trainer(chain, tmp_path / "cut", settings(save_every=100), track=stop)
    with pytest.raises(Resumable, match="stopped by SIGTERM: the partial work is kept"):
        fit(cut, run, tmp_path / "cut")
    assert signal.getsignal(signal.SIGTERM) is before and cut.state.global_step < 6
    [kept] = (tmp_path / "cut" / ".resume" / "checkpoints").glob("checkpoint-*")
    assert kept.name == f"checkpoint-{cut.state.global_step}"
    again, run = trainer(chain, tmp_path / "cut", settings(save_every=100))
    values = fit(again, run, tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole") and values["updates"] == 6
    assert all((value == weights(whole.model)[name]).all() for name, value in weights(again.model).items())


@pytest.mark.tiny
def test_accumulation_is_a_larger_batch(chain: TinyChain, tmp_path: Path) -> None:
    for name, config in (("4x1", settings(batch_size=4)), ("1x4", settings(batch_size=1, accumulation=4))):
        made, run = trainer(chain, tmp_path / name, config, lora=LoraSettings(rank=4))
        fit(made, run, tmp_path / name)
    assert losses(tmp_path / "1x4") == pytest.approx(losses(tmp_path / "4x1"), rel=1e-3)


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
        fit(made, run, tmp_path)


@pytest.mark.tiny
def test_a_run_that_changes_no_weight_is_an_error(chain: TinyChain, tmp_path: Path) -> None:
    made, run = trainer(chain, tmp_path, settings(lr=1e-3, warmup=0.0))
    made.optimizer = made.create_optimizer()
    for group in made.optimizer.param_groups:
        group["params"] = [p.detach().clone().requires_grad_() for p in group["params"]]  # it updates copies
    with pytest.raises(TrainingError, match="no weight changed in training"):
        fit(made, run, tmp_path)


@pytest.mark.tiny
def test_a_frozen_model_is_an_error(chain: TinyChain, tmp_path: Path) -> None:
    made, run = trainer(chain, tmp_path, settings())
    for p in made.model.parameters():
        p.requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing to train: got a model without trainable weights"):
        fit(made, run, tmp_path)


@pytest.mark.tiny
def test_a_run_too_short_for_the_curve_is_an_error(chain: TinyChain, tmp_path: Path) -> None:
    made, run = trainer(chain, tmp_path, settings(max_updates=2, log_every=50))
    values = None
    try:
        values = fit(made, run, tmp_path)
    except TrainingError as error:
        assert "lower log_every" in str(error)
    assert values is None or values["updates"] == 2


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
        "log_every": 13,
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
        "logging_steps",
        "seed",
        "data_seed",
    }


@given(st.lists(st.lists(st.integers(10, 99), max_size=9), max_size=6), st.integers(2, 8))
def test_packing_loses_no_token(documents: list[list[int]], length: int) -> None:
    rows = blocks(documents, length, 0)
    stream = [token for document in documents for token in (*document, 0)]
    packed = [token for row in rows for token in row]
    assert packed == stream[: len(packed)] and len(stream) - len(packed) <= 1, (
        "a last token alone has nothing to predict"
    )
    assert all(len(row) == length for row in rows[:-1])


def test_padding_carries_neither_attention_nor_loss() -> None:
    batch = pad_batch(9)([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_nothing_to_train_on_is_said_with_the_reasons() -> None:
    with pytest.raises(
        DataError, match=r"no chats left to train on: got 0 rows, because all were dropped \(\{'too_long': 3\}\); raise"
    ):
        need_rows([], "chats", {"too_long": 3})
    need_rows([1], "chats", {})
