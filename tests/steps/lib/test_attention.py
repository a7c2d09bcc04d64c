"""What attends in training: chosen by what there is, refused in words before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from minimal import SFT, TinyChain, made, with_train

from steps.lib import adapters, attention, models, parity
from steps.lib.attention import Machine
from steps.lib.errors import ModelError

pytestmark = pytest.mark.tiny
CPU, A100, V100, BARE = Machine(None, True), Machine((8, 0), True), Machine((7, 0), True), Machine((9, 0), False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's configuration is all that is read."""
    made = tmp_path_factory.mktemp("model")
    (made / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return made


def ask(wanted: Any, folder: Path, machine: Machine, **more: Any) -> str | None:
    return attention.chosen(wanted, folder, **{"method": "lora", "precision": "auto", "machine": machine, **more})


def test_auto_takes_what_there_is(folder: Path) -> None:
    assert ask("auto", folder, A100) == "flash_attention_2"
    assert ask("auto", folder, A100, branches=True) == "flex_attention", "flash attention takes no mask with branches"
    assert ask("auto", folder, BARE) is None and ask("auto", folder, BARE, branches=True) == "flex_attention"
    assert ask("auto", folder, V100) is None and ask("auto", folder, V100, branches=True) == "flex_attention"
    assert ask("auto", folder, A100, precision="float32") is None, "flash attention takes 16 bits only"
    assert ask("auto", folder, CPU) is None and ask("auto", folder, CPU, branches=True) is None
    assert ask("auto", folder, A100, method="prefix") is None
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    assert ask("auto", folder / "other", A100) is None, "its class does not say that it can"


@pytest.mark.parametrize(
    ("wanted", "machine", "more", "because"),
    [
        ("flash_attention_2", CPU, {}, "it runs on GPUs only"),
        ("flash_attention_2", V100, {}, "the GPU has compute capability 7.0 and it needs 8.0"),
        ("flash_attention_2", BARE, {}, "the package flash-attn is not installed"),
        ("flash_attention_2", A100, {"precision": "float32"}, "precision is float32 and it takes 16 bits only"),
        ("flex_attention", CPU, {}, "it has no backward pass on a CPU"),
        ("flex_attention", A100, {"method": "p_tuning"}, "method p_tuning puts virtual tokens before each row"),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, wanted: Any, machine: Machine, more: Any, because: str) -> None:
    with pytest.raises(ModelError, match=f"train.attention is wrong: got {wanted}, because {because}"):
        ask(wanted, folder, machine, **more)


def test_an_architecture_without_it_is_refused(folder: Path) -> None:
    (folder / "bloom").mkdir()
    (folder / "bloom" / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    with pytest.raises(ModelError, match="transformers has none for the architecture of bloom"):
        ask("flex_attention", folder / "bloom", A100)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has what is refused here")
def test_a_step_refuses_before_it_loads(chain: TinyChain, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="got flash_attention_2, because it runs on GPUs only"):
        made(tmp_path, "sft", with_train(SFT, attention="flash_attention_2"), base=chain.pretrain, chats=chain.data)


def test_the_kind_reaches_the_model_and_changes_no_result_but_by_rounding(chain: TinyChain, tmp_path: Path) -> None:
    folder = chain.pretrain.path / "model"
    kinds = ("sdpa", "eager", "flex_attention")
    loaded = [adapters.start(SFT, folder, "float32", updates=2, attention=kind) for kind in kinds]
    assert [model.config._attn_implementation for model in loaded] == list(kinds)
    results = [
        made(
            tmp_path / kind,
            "sft",
            with_train(SFT, attention=kind, max_updates=3),
            base=chain.pretrain,
            chats=chain.data,
        )
        for kind in ("sdpa", "eager")
    ]
    one, two = (result.manifest["metrics"]["loss_last"] for result in results)
    assert one == pytest.approx(two, rel=1e-4) and results[0].key == results[1].key


def test_a_probe_asks_as_it_will_be_served(chain: TinyChain) -> None:
    """Kinds for packed rows do not sample: the probe of a model that was trained with one asks it with what serves."""
    folder = chain.pretrain.path / "model"
    tokenizer = models.load_tokenizer(folder)
    model = models.load_model(folder, attention="flex_attention")
    asked = parity.Probe(model, tokenizer)
    plain = parity.Probe(models.load_model(folder), tokenizer)
    assert model.config._attn_implementation == "sdpa" and asked._answers == plain._answers
    assert all(torch.equal(a, b) for a, b in zip(asked._logits, plain._logits, strict=True))
