"""The model that the line starts from."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from minimal import BASE, TinyChain, context, data_artifact, made, with_train
from training_runs import losses, spec, survives

from steps import base
from steps.base import BaseConfig
from steps.lib import model_files, models
from steps.lib.errors import ConfigError, DataError, ModelError

pytestmark = pytest.mark.tiny


def test_the_tiny_model_is_an_ordinary_checkpoint_that_learned(chain: TinyChain) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = chain.base.path / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.eos_token_id == tokenizer.eos_token_id and tokenizer.eos_token == "<|im_end|>"
    assert len(tokenizer) <= BASE.tiny.vocab_size == 400 and model.config.vocab_size == len(tokenizer)
    assert model.config.num_hidden_layers == 2 and model.config.hidden_size == 32 and model.config.tie_word_embeddings
    metrics = chain.base.manifest["metrics"]
    assert metrics["loss_last"] < 1.0 < metrics["loss_first"] < math.log(400) + 1
    curve = losses(chain.base)
    assert len(curve) == metrics["updates"] == 80 and metrics["loss_first"] == round(curve[0], 5)
    assert metrics["loss_last"] == pytest.approx(sum(curve[-8:]) / 8, abs=1e-5), "a tenth of the updates"
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters()) and chain.base.manifest["tokens"] > 0
    for text in ("订单A12345。", "naïve ☃ 12", " \n\t"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text, "every byte can be written"


def test_the_tiny_model_needs_general_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without text to train it on: got no --corpus"):
        base.run(BASE, out=tmp_path, context=context(tmp_path))
    empty = data_artifact(tmp_path, general=[])
    with pytest.raises(DataError, match="no general text left to train on"):
        made(tmp_path, "base", BASE, corpus=empty)
    assert not list((tmp_path / "base").glob("[!.]*"))


def test_the_seed_and_the_shape_give_another_model(chain: TinyChain, tmp_path: Path) -> None:
    short = with_train(BASE, max_updates=2, log_every=1)
    one, two = (made(tmp_path / name, "base", short, corpus=chain.data) for name in ("one", "two"))
    assert one.digest == two.digest, "two runs, one result"
    assert made(tmp_path, "base", short, seed=1, corpus=chain.data).digest != one.digest


@pytest.mark.fault
@pytest.mark.long
def test_killed_in_every_phase_equals_undisturbed(chain: TinyChain, tmp_path: Path) -> None:
    config = with_train(BASE, max_updates=7, save_every=3, log_every=4)
    survives(tmp_path, spec("base", config, corpus=chain.data), "transformers.PreTrainedTokenizerBase.save_pretrained")


def test_a_checkpoint_stays_where_it_is(chain: TinyChain, tmp_path: Path) -> None:
    config = BaseConfig(kind="checkpoint", path=str(chain.base.path / "model"))
    start = made(tmp_path, "base", config)
    assert json.loads((start.path / "base.json").read_text())["digest"] == model_files.model_digest(
        chain.base.path / "model"
    )
    assert models.model_folder(start.path) == (chain.base.path / "model").resolve()
    assert models.location(start.path)["id"] == config.path
    shutil.copytree(chain.base.path / "model", tmp_path / "copy")
    copied = made(tmp_path, "base", BaseConfig(kind="checkpoint", path=str(tmp_path / "copy")))
    assert (copied.key, copied.digest) == (start.key, start.digest), "the content is the identity, not the path"
    with (tmp_path / "copy" / "chat_template.jinja").open("a") as file:
        file.write(" ")
    changed = made(tmp_path, "base", BaseConfig(kind="checkpoint", path=str(tmp_path / "copy")))
    assert changed.key != start.key and changed.digest != start.digest


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: (f / "model.safetensors").unlink(), r"no \*\.safetensors weights"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "only pickled weights"),
        (lambda f: shutil.rmtree(f), "is not there: got no such folder"),
    ],
    ids=["no weights", "pickle", "no folder"],
)
def test_a_checkpoint_that_cannot_be_used_leaves_no_artifact(
    chain: TinyChain, tmp_path: Path, harm: object, said: str
) -> None:
    shutil.copytree(chain.base.path / "model", tmp_path / "m")
    harm(tmp_path / "m")  # type: ignore[operator]
    with pytest.raises(ModelError, match=said):
        made(tmp_path, "base", BaseConfig(kind="checkpoint", path=str(tmp_path / "m")))
    assert not (tmp_path / "base").exists(), "refused when the key is made"
