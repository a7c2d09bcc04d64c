"""Continued pretraining: the mix, exact resuming, adapters merged."""

from __future__ import annotations

from pathlib import Path

import pytest
from minimal import PRETRAIN, TinyChain, data_artifact, made, texts, with_train
from training_runs import cut, losses, said, same, spec, survives, whole

from steps.lib import checkpoints, models
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


UNEVEN = with_train(PRETRAIN, max_updates=7, save_every=3, log_every=4)
TOKENIZER = "transformers.PreTrainedTokenizerBase.save_pretrained"


@pytest.mark.fault
def test_killed_in_every_phase_equals_undisturbed(chain: TinyChain, tmp_path: Path) -> None:
    survives(tmp_path, spec("pretrain", UNEVEN, base=chain.base, corpus=chain.data), TOKENIZER)


@pytest.mark.fault
@pytest.mark.long
def test_killed_in_every_phase_equals_undisturbed_with_adapters(chain: TinyChain, tmp_path: Path) -> None:
    config = PretrainConfig.model_validate({**FIELDS, "train": UNEVEN.train.model_dump()})
    survives(tmp_path, spec("pretrain", config, base=chain.base, corpus=chain.data), TOKENIZER)


@pytest.mark.fault
def test_a_checkpoint_that_changed_on_the_disk_is_not_used(chain: TinyChain, tmp_path: Path) -> None:
    what = spec("pretrain", UNEVEN, base=chain.base, corpus=chain.data)
    out = tmp_path / "cut" / what.key()
    assert cut(tmp_path, what, out, "steps.lib.history.due", 7) == (-9, [6, 3])
    newest = checkpoints.kept(work_folder(out) / ".resume") / "checkpoint-6"
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-7] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    resumed = build(what, out)
    same(resumed, whole(tmp_path, what))
    assert len(losses(resumed)) == 7 and "resuming after update 3 of 7" in said(resumed)
    [warned] = [line for line in said(resumed) if "damaged" in line]
    assert warned.startswith(
        "checkpoint-6 is damaged: got model.safetensors with other bytes than were written, because"
    )


@pytest.mark.fault
def test_changed_intervals_take_effect_when_resuming(chain: TinyChain, tmp_path: Path) -> None:
    """They are no part of the key; the checkpoint holds those of the run that wrote it."""
    what = spec("pretrain", UNEVEN, base=chain.base, corpus=chain.data)
    out = tmp_path / "cut" / what.key()
    assert cut(tmp_path, what, out, "steps.lib.history.due", 4) == (-9, [3])
    other = spec("pretrain", with_train(UNEVEN, save_every=1, log_every=3), base=chain.base, corpus=chain.data)
    assert other.key() == what.key()
    assert cut(tmp_path, other, out, "steps.lib.history.due", 3) == (-9, [5, 4])
    resumed = build(other, out)
    same(resumed, whole(tmp_path, what))
    assert [line.split()[1] for line in said(resumed) if line.startswith("update ")] == ["1/7", "6/7", "7/7"]
