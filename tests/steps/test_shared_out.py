"""Two processes that share weights, gradients and moments out (FSDP2 over gloo) train as one process does."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from minimal import DPO, FEW, SFT, TinyChain, with_train
from shared_out import ROOT, TORCHRUN, Planned, alone, launch
from training_runs import argv, environment, kept, losses, spec, whole

from steps.dpo import DpoConfig
from steps.lib import history
from steps.lib.artifact import Artifact
from steps.lib.errors import ConfigError
from steps.lib.step import build
from steps.sft import SftConfig

pytestmark = pytest.mark.tiny
SHARED = {"max_updates": 4, "batch_size": 2, "accumulation": 4, "parallel": "fsdp", "save_every": 100}
METHODS: dict[str, dict[str, Any]] = {
    "rslora": {"lora": {"rank": 4, "alpha": 8, "rslora": True}},
    "dora": {"lora": {"rank": 4, "alpha": 8, "dora": True}},
    "pissa": {"lora": {"rank": 4, "alpha": 8, "init": "pissa"}},
    "olora": {"lora": {"rank": 4, "alpha": 8, "init": "olora"}},
    "mica": {"lora": {"rank": 4, "alpha": 8, "init": "mica"}},
    "ia3": {"method": "ia3"},
    "llama_adapter": {"method": "llama_adapter", "llama_adapter": {"tokens": 4}},
    "prompt": {"method": "prompt", "prompt": {"tokens": 6}},
    "prefix": {"method": "prefix", "prefix": {"tokens": 6, "hidden": 16}},
    "p_tuning": {"method": "p_tuning", "p_tuning": {"tokens": 6, "hidden": 16}},
    "p_tuning_v2": {"method": "p_tuning_v2", "prefix": {"tokens": 6}},
}


def sft_of(**fields: Any) -> SftConfig:
    more = fields.pop("train", {})
    return SftConfig.model_validate({**fields, "train": {**FEW, **SHARED, "lr": 1e-3, **more}})


def assert_same(one: Path, other: Path) -> None:
    """The same files with the same names of weights; losses and weights differ by rounding."""
    from safetensors.torch import load_file

    found, wanted = (
        [entry["loss"] for entry in history.read(path / "record" / "history.jsonl")] for path in (other, one)
    )
    assert len(wanted) == SHARED["max_updates"] and found == pytest.approx(wanted, rel=1e-5)
    files = [
        sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file() and ".resume" not in path.parts)
        for root in (one, other)
    ]
    assert files[0] == files[1]
    for name in files[0]:
        if name.suffix != ".safetensors":
            continue
        before, after = (load_file(root / name) for root in (one, other))
        assert list(before) == list(after) and before
        for key, value in before.items():
            assert value.dtype == after[key].dtype and float((value - after[key]).abs().max()) < 5e-5, key
    facts = [json.loads((root / "metrics.json").read_text()) for root in (one, other)]
    assert facts[0].keys() == facts[1].keys() and facts[1]["parity_saved"] < 1e-4
    assert facts[0]["trained_share"] == facts[1]["trained_share"] > 0


def compared(root: Path, planned: Sequence[Planned]) -> None:
    ones = [(step, config, inputs, root / "one" / out.name) for step, config, inputs, out in planned]
    alone(ones)
    launch(root, planned)
    for (*_, one), (*_, other) in zip(ones, planned, strict=True):
        assert_same(one, other)


def test_shared_out_is_one_process_up_to_rounding(chain: TinyChain, tmp_path: Path) -> None:
    """sft and dpo; an adapter, with activations made again in the backward pass, and whole weights, which are tied."""
    inputs = {"base": chain.pretrain.path, "chats": chain.data.path}
    lora = sft_of(lora={"rank": 8, "alpha": 16}, train={"gradient_checkpointing": True, "tokens_per_pass": 128})
    dpo = DpoConfig.model_validate({"train": {**FEW, **SHARED, "accumulation": 2, "lr": 1e-3}})
    compared(
        tmp_path,
        [
            ("sft", lora, inputs, tmp_path / "two" / "lora"),
            ("sft", sft_of(method="full"), inputs, tmp_path / "two" / "full"),
            ("dpo", dpo, {"policy": chain.sft.path, "pairs": chain.pairs.path}, tmp_path / "two" / "dpo"),
        ],
    )


@pytest.mark.long
def test_every_method_is_shared_out_or_refused(chain: TinyChain, tmp_path: Path) -> None:
    inputs = {"base": chain.pretrain.path, "chats": chain.data.path}
    compared(
        tmp_path, [("sft", sft_of(**METHODS[name]), inputs, tmp_path / "two" / name) for name in METHODS]
    )
