"""Continued pretraining: the mix, exact resuming, adapters merged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from minimal import PRETRAIN, TinyChain, data_artifact, made, texts, with_train
from training_runs import killed_at, losses, same, spec, whole

from steps.lib import models
from steps.lib.errors import DataError
from steps.lib.step import build
from steps.lib.store import work_folder
from steps.pretrain import PretrainConfig

pytestmark = pytest.mark.tiny
FIELDS = {"method": "lora", "lora": {"rank": 4, "alpha": 8}}


@pytest.mark.parametrize("replay", [0.0, 0.25, 0.6])
def test_the_replay_share_is_what_was_asked(chain: TinyChain, tmp_path: Path, replay: float) -> None:
    config = with_train(PRETRAIN.model_copy(update={"replay": replay}), max_updates=1, warmup=0.0)
    general = texts("general", 200)
    data = data_artifact(tmp_path, general=general)
    result = made(tmp_path, "pretrain", config, base=chain.base, corpus=data)
    tokenizer = models.load_tokenizer(chain.base.path / "model")
    longest = max(len(tokenizer(row.text)["input_ids"]) for row in general)
    assert result.manifest["metrics"]["replay_share"] == pytest.approx(
        replay, abs=(longest + 30) / result.manifest["tokens"]
    )
    rows = result.manifest["rows"]
    assert rows["in"] == {"domain": 12, "general": 200} and rows["out"]["trained domain"] == 12
    assert rows["out"]["trained general"] + rows["dropped"]["general"]["not_needed_for_replay"] == 200
    assert (rows["out"]["trained general"] == 0) == (replay == 0)


def test_replay_beyond_the_general_text_says_its_share(chain: TinyChain, tmp_path: Path) -> None:
    config = with_train(PRETRAIN.model_copy(update={"replay": 0.9}), max_updates=1, warmup=0.0)
    result = made(
        tmp_path, "pretrain", config, base=chain.base, corpus=data_artifact(tmp_path, general=texts("general", 2))
    )
    assert result.manifest["metrics"]["replay_share"] < 0.5, "the real share, not the one that was asked for"


def test_no_domain_text_is_an_error(chain: TinyChain, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no domain documents left to train on"):
        made(tmp_path, "pretrain", PRETRAIN, base=chain.base, corpus=data_artifact(tmp_path, corpus=[]))


def test_lora_is_merged_into_a_whole_model(chain: TinyChain, tmp_path: Path) -> None:
    config = PretrainConfig.model_validate({**FIELDS, "train": {**PRETRAIN.train.model_dump(), "lr": 1e-2}})
    result = made(tmp_path, "pretrain", config, base=chain.base, corpus=chain.data)
    from safetensors.torch import load_file

    old, new = (load_file(path / "model" / "model.safetensors") for path in (chain.base.path, result.path))
    assert set(old) == set(new), "no adapter is left over"
    moved = {name for name in old if not (old[name] == new[name]).all()}
    assert moved == {name for name in old if name.endswith("_proj.weight")}, "each matrix that has an adapter"
    assert not (result.path / "adapter").exists()


def test_every_weight_of_a_full_run_moves(chain: TinyChain) -> None:
    from safetensors.torch import load_file

    old, new = (load_file(path / "model" / "model.safetensors") for path in (chain.base.path, chain.pretrain.path))
    assert set(old) == set(new) and all((old[name] != new[name]).any() for name in old)
    assert chain.pretrain.manifest["metrics"]["trained_share"] == 1.0


@pytest.mark.fault
def test_killed_and_resumed_equals_uninterrupted_also_from_an_older_checkpoint(
    chain: TinyChain, tmp_path: Path
) -> None:
    """kill -9 between checkpoints; and in mid-save: then the newest one has no mark and a cut file."""
    what = spec("pretrain", PRETRAIN, base=chain.base, corpus=chain.data)
    clean, damaged = (tmp_path / name / what.key() for name in ("killed", "damaged"))
    killed_at(tmp_path, what, clean, update=5)
    shutil.copytree(work_folder(clean), work_folder(damaged))
    newest = work_folder(damaged) / ".resume" / "checkpoints" / "checkpoint-4"
    (newest / "complete.json").unlink()
    (newest / "model.safetensors").write_bytes((newest / "model.safetensors").read_bytes()[:100])
    reference = whole(tmp_path, what)
    assert len(losses(reference)) == 6
    for target in (clean, damaged):
        same(build(what, target), reference)
