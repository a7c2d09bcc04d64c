"""Steps on the GPU: 16 bits, activations made again, stopping and going on, quantised weights."""

from __future__ import annotations

import math
import os
import signal
from typing import Any

import pytest
from small import Small, losses, weights

from steps.lib import attention
from steps.lib.attention import Machine
from steps.lib.errors import Resumable

pytestmark = [pytest.mark.tiny, pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")]
LORA = {"lora": {"rank": 8, "alpha": 16}}


def near(device: str) -> float:
    """How near two runs of the same are: on a GPU sums are made in an order that changes."""
    return 1e-6 if device == "cpu" else 2e-3


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("step", ["sft", "dpo"])
def test_16_bits_train_and_what_is_saved_is_what_was_trained(small: Small, device: str, step: str, method: str) -> None:
    """dpo begins at ln 2: the reference and the policy agree, also in 16 bits. The step itself compares what it saved."""
    if step == "dpo" and method == "full":
        pytest.skip("a policy with an adapter goes on with it")
    fields = LORA if step == "sft" and method == "lora" else {}
    config = small.config(step, method=method, **fields, train={"precision": "bfloat16", "lr": 1e-3})
    out, values = small.run(step, config)
    found = losses(out)
    assert len(found) == 6 and all(map(math.isfinite, found)) and found[-1] < found[0]
    if step == "dpo":
        assert found[0] == pytest.approx(math.log(2), abs=0.01)
    assert values["parity_saved"] < 0.1
    kinds = {str(value.dtype) for value in weights(out).values()}
    assert kinds == ({"torch.float32"} if method == "lora" else {"torch.bfloat16"})


@pytest.mark.parametrize("step", ["sft", "dpo"])
def test_activations_made_again_change_nothing(small: Small, device: str, step: str) -> None:
    runs = [
        losses(small.run(step, small.config(step, train={"gradient_checkpointing": again, "precision": "float32"}))[0])
        for again in (False, True)
    ]
    assert runs[1] == pytest.approx(runs[0], rel=near(device))


@pytest.mark.long  # 20 s of compiling each
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("step", ["sft", "dpo"])
def test_compiled_layers_train_alike(small: Small, device: str, step: str) -> None:
    """Rows of any width share one function: more would be made than are allowed if a width or a layer had its own."""
    import torch

    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    runs = [
        losses(small.run(step, small.config(step, train={"compiled": compiled, "precision": "float32"}))[0])
        for compiled in (False, True)
    ]
    assert runs[1] == pytest.approx(runs[0], rel=max(1e-5, near(device)))
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 8


@pytest.mark.parametrize("step", ["sft", "dpo"])
def test_stopped_and_continued_is_uninterrupted(small: Small, device: str, step: str) -> None:
    """With dropout, so that a lost state of the GPU's generator shows."""
    fields = {"lora": {"rank": 8, "alpha": 16, "dropout": 0.2}} if step == "sft" else {}
    config = small.config(step, **fields, train={"precision": "float32", "log_every": 1})
    whole, _ = small.run(step, config)
    out = small.root / f"cut-{step}-{device}"

    def stop(values: Any, step: int | None = None) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Resumable):
        small.run(step, config, out=out, track=stop)
    assert not list(out.glob("*/*.safetensors"))
    small.run(step, config, out=out)
    assert losses(out) == pytest.approx(losses(whole), rel=near(device))
    before, after = weights(whole), weights(out)
    for name, value in before.items():
        assert float((after[name] - value).abs().max()) <= near(device) * float(value.abs().max()), name


def test_quantised_weights_train(small: Small, device: str) -> None:
    pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed")
    out, values = small.run("sft", small.config("sft", method="qlora", **LORA))
    assert losses(out)[-1] < losses(out)[0] and values["parity_saved"] < 0.7


@pytest.mark.gpu
def test_what_the_step_attends_with_is_what_the_gpu_has(small: Small) -> None:
    """The choice, and a training with it, for text and for pairs."""
    machine, folder = Machine.here(), small.base / "model"
    flash = machine.flash and (machine.capability or (0, 0)) >= attention.FLASH
    chosen = attention.chosen("auto", folder, method="lora", precision="auto")
    assert chosen == ("flash_attention_2" if flash else None)
    assert attention.chosen("auto", folder, method="lora", precision="auto", branches=True) == "flex_attention"
    for kind in ("sdpa", "flex_attention"):
        out, values = small.run("sft", small.config("sft", **LORA, train={"attention": kind, "precision": "float32"}))
        assert losses(out)[-1] < losses(out)[0] and values["parity_saved"] < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["lora", "full"])
def test_weights_shared_out_over_gpus(small: Small, method: str) -> None:
    """Two processes, a GPU each (FSDP2 over NCCL), against one. tests/steps/test_shared_out.py is the same on a CPU."""
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs: torch sees {torch.cuda.device_count()}")
    from shared_out import launch

    train = {"accumulation": 2, "batch_size": 2, "parallel": "fsdp", "precision": "float32", "lr": 1e-3}
    config = small.config("sft", method=method, train=train, **(LORA if method == "lora" else {}))
    one, _ = small.run("sft", config)
    two = small.root / f"two-{method}"
    launch(small.root / f"plan-{method}", [("sft", config, small.inputs("sft"), two)])
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
