"""Two processes that share weights, gradients and moments out (FSDP2 over gloo) train as one process does."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from minimal import FEW, TinyChain, made, made_reference, pair, pairs_artifact
from shared_out import ROOT, TORCHRUN, Planned, alone, launch
from training_runs import argv, environment, kept, losses, same, spec

from steps.dpo import DpoConfig
from steps.lib import history, sharded
from steps.lib.artifact import Artifact
from steps.lib.errors import ConfigError
from steps.lib.step import Spec, build
from steps.lib.store import work_folder
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
    against = {"policy": chain.sft.path, "pairs": chain.pairs.path}
    logps = made_reference(tmp_path, dpo, policy=chain.sft, pairs=chain.pairs).path
    compared(
        tmp_path,
        [
            ("sft", lora, inputs, tmp_path / "two" / "lora"),
            ("sft", sft_of(method="full"), inputs, tmp_path / "two" / "full"),
            ("dpo", dpo, {**against, "reference": logps}, tmp_path / "two" / "dpo"),
        ],
    )


@pytest.mark.long
def test_every_method_is_shared_out_or_refused(chain: TinyChain, tmp_path: Path) -> None:
    inputs = {"base": chain.pretrain.path, "chats": chain.data.path}
    compared(tmp_path, [("sft", sft_of(**METHODS[name]), inputs, tmp_path / "two" / name) for name in METHODS])


@pytest.mark.long
def test_16_bit_weights_and_32_bit_adapters_go_together(chain: TinyChain, tmp_path: Path) -> None:
    """Types are as in one process: nothing is widened by being shared out."""
    from safetensors.torch import load_file

    inputs = {"base": chain.pretrain.path, "chats": chain.data.path}
    two = tmp_path / "two"
    configs = {name: sft_of(method=name, train={"precision": "bfloat16"}) for name in ("lora", "full")}
    alone([("sft", config, inputs, tmp_path / "one" / name) for name, config in configs.items()])
    launch(tmp_path, [("sft", config, inputs, two / name) for name, config in configs.items()])
    for name in configs:
        found, wanted = (
            [entry["loss"] for entry in history.read(root / name / "record" / "history.jsonl")]
            for root in (two, tmp_path / "one")
        )
        assert found == pytest.approx(wanted, rel=2e-2)
        [file] = (two / name).glob("*/*.safetensors")
        kinds = {str(value.dtype) for value in load_file(file).values()}
        assert kinds == {"torch.float32" if name == "lora" else "torch.bfloat16"}


@pytest.mark.parametrize("method", ["qlora", "adalora"])
def test_a_method_whose_weights_cannot_be_shared_out_is_refused(chain: TinyChain, tmp_path: Path, method: str) -> None:
    from minimal import context

    from steps import sft

    with pytest.raises(ConfigError, match=f"sft.train.parallel is wrong: got fsdp with method {method}, because"):
        sft.run(
            sft_of(method=method),
            base=chain.pretrain.path,
            chats=chain.data.path,
            out=tmp_path,
            context=context(tmp_path),
        )


def test_one_process_has_nothing_to_share(chain: TinyChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = sft_of().train
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not sharded.wanted(settings)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sharded.wanted(settings) and not sharded.wanted(settings.model_copy(update={"parallel": "ddp"}))


def stopped(root: Path, what: Spec, out: Path, at: str) -> None:
    """Run a step in two processes until the log says ``at``, then end it by a signal: it leaves one checkpoint."""
    module = ["-m", f"steps.{what.name}"]
    child = subprocess.Popen(
        [*TORCHRUN, *module, *argv(root, what, out)], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    said = ""
    for line in child.stderr:
        said += line
        if at in line:
            child.send_signal(signal.SIGTERM)
            break
    said += child.communicate(timeout=120)[1] or ""
    assert "Resumable: stopped by SIGTERM: the partial work is kept" in said and not out.exists(), said
    assert len(kept(out)) == 1 and 3 <= kept(out)[0] < 7, said


def under_torchrun(root: Path, what: Spec, out: Path) -> Artifact:
    done = subprocess.run(
        [*TORCHRUN, "-m", f"steps.{what.name}", *argv(root, what, out)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return Artifact.read(out)


@pytest.mark.fault
@pytest.mark.long
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("step", ["sft", "dpo"])
def test_stopped_by_a_signal_and_continued_is_uninterrupted(
    chain: TinyChain, tmp_path: Path, step: str, method: str
) -> None:
    """Continued by two processes: every byte. Continued by one, which holds the weights whole: up to rounding."""
    train = {**FEW, **SHARED, "max_updates": 7, "lr": 1e-3}
    if step == "sft":
        config: Any = sft_of(method=method, train=train)
        what = spec("sft", config, base=chain.pretrain, chats=chain.data)
    else:
        policy = chain.sft
        if method == "full":
            policy = made(
                tmp_path, "sft", sft_of(method="full", train={"lr": 1e-3}), base=chain.pretrain, chats=chain.data
            )
        config = DpoConfig.model_validate({"method": method, "train": {**train, "accumulation": 2}})
        rows = [pair(n) for n in range(8)]  # two updates of four: one that is not full would be filled up with pairs
        pairs = pairs_artifact(tmp_path, rows)
        logps = made_reference(tmp_path, config, policy=policy, pairs=pairs)
        what = spec("dpo", config, policy=policy, pairs=pairs, reference=logps)
    uninterrupted = under_torchrun(tmp_path, what, tmp_path / "whole" / what.key())
    out = tmp_path / "cut" / what.key()
    stopped(tmp_path, what, out, "update 3/7")
    shutil.copytree(work_folder(out), work_folder(tmp_path / "alone" / what.key()))
    same(under_torchrun(tmp_path, what, out), uninterrupted)
    by_one = build(what, tmp_path / "alone" / what.key())
    assert losses(by_one) == pytest.approx(losses(uninterrupted), rel=1e-5)
