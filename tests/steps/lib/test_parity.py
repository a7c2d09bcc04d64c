"""What was saved is compared with what was trained: planted faults in files, merges and tokenizers are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import failures
import pytest
from minimal import DPO, PRETRAIN, SFT, TinyChain, made, with_train

from steps.lib import adapters, models, parity, tiny
from steps.lib.errors import TrainingError
from steps.pretrain import PretrainConfig

pytestmark = pytest.mark.tiny
SHORT = with_train(SFT, max_updates=3, warmup=0.0)


def published(root: Path, step: str) -> list[Path]:
    return [path for path in (root / step).iterdir() if not path.name.startswith(".")]


def test_parity_of_a_sound_chain_is_on_record(chain: TinyChain) -> None:
    for artifact in (chain.sft, chain.dpo):
        metrics = artifact.manifest["metrics"]
        assert 0 < metrics["parity_merged"] < parity.TOLERANCE["float32"] / 10
        assert metrics["parity_saved"] < parity.TOLERANCE["float32"] / 10
    assert chain.pretrain.manifest["metrics"]["parity_saved"] < 1e-5


def test_an_adapter_moves_the_logits_more_than_the_tolerance(chain: TinyChain) -> None:
    """Otherwise a merge that loses it would pass."""
    tokenizer = models.load_tokenizer(models.model_folder(chain.sft.path))
    probe = parity.Probe(models.load_policy(chain.sft.path), tokenizer)
    bare = probe._ask(models.load_model(models.model_folder(chain.sft.path)))
    problems: list[str] = []
    value = parity._difference(bare, probe._logits, "bare base", "float32", problems)
    assert value > 100 * parity.TOLERANCE["float32"]
    assert (
        problems[0].startswith("bare base answers differently: got logits ") and "other greedy answers" in problems[1]
    )


@pytest.mark.parametrize("place", [-4, -1, -1000])
def test_a_byte_that_changes_behind_the_save_stops_the_step(
    chain: TinyChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """-4 is the least bit of a weight, which no logit shows; -1 its sign."""
    real = adapters.save_adapter

    def save(model: Any, out: Path, *rest: Any) -> None:
        real(model, out, *rest)
        path = out / "adapter" / "adapter_model.safetensors"
        content = bytearray(path.read_bytes())
        content[place] ^= 0x80 if place == -1 else 1
        path.write_bytes(content)

    monkeypatch.setattr(adapters, "save_adapter", save)
    with pytest.raises(
        TrainingError, match=r"saved adapter is not what was trained: got other bytes in 1 of 28 tensors \("
    ):
        made(tmp_path, "sft", SHORT, base=chain.pretrain, chats=chain.data)
    assert not published(tmp_path, "sft")


def _without(module: Any) -> None:
    """A merge that forgets the adapters of one kind of matrix."""
    for name, value in module.named_parameters():
        if "v_proj.lora_B" in name:
            value.data.zero_()


def _twice(module: Any) -> None:
    """A merge that adds them twice."""
    for name, value in module.named_parameters():
        if "lora_B" in name:
            value.data.mul_(2)


@pytest.mark.parametrize("fault", [_without, _twice])
@pytest.mark.parametrize("step", ["sft", "dpo"])
def test_a_wrong_merge_stops_the_step(
    chain: TinyChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Any], None], step: str
) -> None:
    from peft.tuners.tuners_utils import BaseTuner

    real = BaseTuner.merge_and_unload

    def merge(self: Any, *args: Any, **kwargs: Any) -> Any:
        fault(self)
        return real(self, *args, **kwargs)

    inputs = (
        {"base": chain.pretrain, "chats": chain.data} if step == "sft" else {"policy": chain.sft, "pairs": chain.pairs}
    )
    monkeypatch.setattr(BaseTuner, "merge_and_unload", merge)
    with pytest.raises(
        TrainingError, match="merged adapter answers differently: got logits .* because it lost or doubled"
    ):
        made(tmp_path, step, SHORT if step == "sft" else with_train(DPO, max_updates=2), **inputs)
    assert not published(tmp_path, step)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_that_changes_behind_the_save_stops_pretrain(
    chain: TinyChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from transformers import PreTrainedTokenizerBase

    real = PreTrainedTokenizerBase.save_pretrained

    def save(self: Any, folder: Path, *args: Any, **kwargs: Any) -> Any:
        if Path(folder).name == "model":
            path = Path(folder) / "model.safetensors"
            content = bytearray(path.read_bytes())
            content[-4] ^= 1
            path.write_bytes(content)
        return real(self, folder, *args, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", save)
    config = PretrainConfig.model_validate(
        {"method": method, "train": {**PRETRAIN.train.model_dump(), "max_updates": 2}}
    )
    with pytest.raises(TrainingError, match="saved model is not what was trained: got other bytes in 1 of"):
        made(tmp_path, "pretrain", config, base=chain.base, corpus=chain.data)
    assert not published(tmp_path, "pretrain")


def test_a_lost_adapter_of_pretrain_is_told(chain: TinyChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The merge gives back the bare base: its bytes are saved right, and are not what was trained."""
    real = adapters.merged

    def lost(model: Any, *rest: Any) -> Any:
        _all_gone(model)
        return real(model, *rest)

    def _all_gone(model: Any) -> None:
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.data.zero_()

    monkeypatch.setattr(adapters, "merged", lost)
    config = PretrainConfig.model_validate(
        {"method": "lora", "train": {**PRETRAIN.train.model_dump(), "max_updates": 4, "lr": 1e-2}}
    )
    with pytest.raises(TrainingError, match="saved model answers differently: got logits"):
        made(tmp_path, "pretrain", config, base=chain.base, corpus=chain.data)


# --- tokenizers -------------------------------------------------------------------------------------------------------


def saved(folder: Path, tokenizer: Any) -> Path:
    failures.model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_faithful_copy_passes(tmp_path: Path) -> None:
    parity.check_tokenizer(failures.tokenizer(), saved(tmp_path / "model", failures.tokenizer()))


def test_lost_merges_lost_tokens_and_another_end_are_told_together(tmp_path: Path) -> None:
    other = tiny.build_tokenizer(["another text"], tiny.TinyConfig(vocab_size=300))
    other.eos_token = "<|endoftext|>"
    with pytest.raises(TrainingError) as caught:
        parity.check_tokenizer(failures.tokenizer(), saved(tmp_path / "model", other))
    head, *lines = str(caught.value).splitlines()
    assert head == f"{len(lines)} problems with what was saved:"
    said = [line.partition(":")[0] for line in lines]
    for part in ("special tokens", "end of sequence", "number of tokens", "tokens of fixed texts"):
        assert f"saved tokenizer differs from the base's in its {part}" in said
    assert not any("chat template" in line for line in said)


def test_tokens_that_were_added_and_lost_are_told(tmp_path: Path) -> None:
    trained = failures.tokenizer()
    trained.add_tokens(["<order>"])
    with pytest.raises(TrainingError, match="in its number of tokens: got 800 where training had 801, because"):
        parity.check_tokenizer(trained, saved(tmp_path / "model", failures.tokenizer()))


# --- the comparison ---------------------------------------------------------------------------------------------------


def test_a_tie_is_no_other_answer_and_a_nan_is_off() -> None:
    import torch

    torch.manual_seed(0)
    wanted = [torch.randn(5, 50)]
    wanted[0][2, 7] = wanted[0][2].max() + 1
    wanted[0][2, 8] = wanted[0][2, 7] - 1e-6
    found = [wanted[0].clone()]
    found[0][2, 8] += 2e-6  # now token 8 leads, by rounding
    problems: list[str] = []
    assert parity._difference(found, wanted, "x", "float32", problems) < 1e-6 and not problems
    found[0][2, 9] = found[0][2, 7] + 5.0  # a token that was far behind leads
    parity._difference(found, wanted, "x", "bfloat16", problems)
    assert [line.partition(":")[0] for line in problems] == ["x answers differently", "x gives other greedy answers"]
    found[0][0, 0] = float("nan")
    problems = []
    parity._difference(found, wanted, "x", "float32", problems)
    assert problems[0].startswith("x answers differently: got logits nan")


def test_bfloat16_rounds_less_than_its_tolerance(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    tokenizer = failures.tokenizer()
    model = adapters.with_lora(failures.model().to(torch.bfloat16), adapters.LoraSettings(rank=4))
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data.normal_(0, 0.02)
    probe = parity.Probe(model, tokenizer)
    merged = model.merge_and_unload()
    problems: list[str] = []
    value = parity._difference(probe._ask(merged), probe._logits, "merged", "bfloat16", problems)
    assert 1e-4 < value < parity.TOLERANCE["bfloat16"] and not problems


def test_what_was_trained_is_given_back(chain: TinyChain) -> None:
    from types import SimpleNamespace

    import torch

    model = models.load_policy(chain.sft.path, trainable=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    optimizer.step()
    parity.release(SimpleNamespace(model=model, optimizer=optimizer))
    assert all(p.numel() == 0 and p.grad is None for p in model.parameters()) and not optimizer.state
