"""Reward models: the loss is Bradley-Terry's, what is measured was not trained on, and what is saved gives the same rewards."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minimal import FEW, NO, SFT, YES, TinyChain, context, made, pair, pairs_artifact, with_train
from training_runs import losses, spec, survives

from steps import reward
from steps.lib import chat, model_files, models, runtime, scoring
from steps.lib.errors import ConfigError, DataError, TrainingError
from steps.lib.preflight import Findings
from steps.lib.rows import Pair
from steps.reward import RewardConfig, Sides, correlation, held_back

pytestmark = pytest.mark.tiny
REWARD = RewardConfig.model_validate({"heldback": 0.3, "train": {**FEW, "lr": 5e-3, "max_updates": 12}})


def tokens(policy: Path, rows: list[Pair]) -> list[list[int]]:
    """Prompt and answer of each side, chosen and rejected by turns."""
    tokenizer = models.load_tokenizer(models.model_folder(policy))
    sides = [(row.prompt, side) for row in rows for side in (row.chosen, row.rejected)]
    return [sum(chat.encode_pair(tokenizer, prompt, side), []) for prompt, side in sides]


def test_the_first_loss_is_bradley_terry_s(chain: TinyChain, tmp_path: Path) -> None:
    """Of a batch of two pairs each time; the head is drawn from the seed, so it can be drawn again."""
    rows = [pair(n, YES, NO) for n in range(2)] + [pair(9)]
    config = with_train(REWARD.model_copy(update={"centering": 0.05}), max_updates=1, batch_size=2, warmup=0.0)
    result = made(tmp_path, "reward", config, policy=chain.sft, pairs=pairs_artifact(tmp_path, rows))
    assert result.manifest["metrics"]["trained_pairs"] == 2
    [apart] = [one["id"] for one in json.loads((result.path / "heldback.json").read_text())]
    runtime.seed_torch(0)
    model = scoring.start(config, chain.sft.path, "auto").eval()
    flat = scoring.scores(model, tokens(chain.sft.path, [row for row in rows if row.id != apart]), batch_size=1)
    two = list(zip(flat[::2], flat[1::2], strict=True))
    expected = sum(math.log1p(math.exp(-(c - r))) + 0.05 * (c + r) ** 2 for c, r in two) / len(two)
    assert losses(result)[0] == pytest.approx(expected, rel=1e-4)
    assert abs(two[0][0] - two[0][1]) > 1e-4


def test_a_planted_preference_is_learnt_and_holds_for_other_prompts(chain: TinyChain, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    rows = [pair(n) for n in range(40)]
    result = made(tmp_path, "reward", REWARD, policy=chain.sft, pairs=pairs_artifact(tmp_path, rows))
    metrics = result.manifest["metrics"]
    assert metrics["heldback_pairs"] == 12 and metrics["accuracy"] > 0.9 and metrics["beats_chance"] == 1
    assert metrics["accuracy_low"] > 0.5 and losses(result)[-1] < 0.3
    chained = models.Chain.read(result.path)
    assert [stage.step for stage in chained.stages] == ["sft", "reward"]
    assert chained.base == model_files.model_digest(models.model_folder(chain.sft.path))

    written = json.loads((result.path / "heldback.json").read_text())
    apart = [next(row for row in rows if row.id == one["id"]) for one in written]
    flat = [one[side] for one in written for side in ("chosen", "rejected")]
    asked = tokens(chain.sft.path, apart)
    assert scoring.scores(scoring.load(result.path, "auto"), asked, batch_size=3) == pytest.approx(flat, abs=2e-4)

    # the libraries alone, without any of our code
    import torch

    plain = AutoModelForSequenceClassification.from_pretrained(models.model_folder(chain.sft.path), num_labels=1)
    plain = PeftModel.from_pretrained(plain, result.path / "adapter").eval()
    with torch.no_grad():
        served = [float(plain(input_ids=torch.tensor([ids])).logits[0, 0]) for ids in asked]
    assert served == pytest.approx(flat, abs=2e-4)


def test_rewards_do_not_depend_on_padding(chain: TinyChain) -> None:
    runtime.seed_torch(1)
    model = scoring.start(REWARD, chain.sft.path, "auto").eval()
    rows = tokens(chain.sft.path, [pair(0, YES, NO), pair(1, "yes " * 9, "no")])
    alone = [scoring.scores(model, [row], batch_size=1)[0] for row in rows]
    assert scoring.scores(model, rows, batch_size=4) == pytest.approx(alone, abs=1e-5) and len(set(alone)) == 4


def test_labels_at_random_do_not_beat_chance_and_may_stop(
    chain: TinyChain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of the pairs of every kind say the opposite: nothing can be learnt that holds for other prompts."""
    rows = [pair(n, *((YES, NO) if n * 7 % 12 < 6 else (NO, YES))) for n in range(24)]
    pairs = pairs_artifact(tmp_path, rows)
    config = with_train(REWARD, max_updates=2)
    with caplog.at_level(logging.WARNING):
        metrics = made(tmp_path, "reward", config, policy=chain.sft, pairs=pairs).manifest["metrics"]
    assert metrics["beats_chance"] == 0 and metrics["accuracy_low"] <= 0.5 <= metrics["accuracy_high"]
    with pytest.raises(TrainingError, match=r"reward model is not good enough: got an accuracy of .* because min_acc"):
        made(tmp_path, "reward", config.model_copy(update={"min_accuracy": 0.95}), policy=chain.sft, pairs=pairs)
    assert len(list((tmp_path / "reward").glob("[!.]*"))) == 1, "the second one is not published"


def test_what_a_user_must_know_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [Sides(pair(n), [1] * (9 + n), [1] * 4, 2) for n in range(3)]
    told = context(tmp_path)
    with caplog.at_level(logging.WARNING):
        found = reward._measured(REWARD, rows, [(5.0, 1.0), (6.0, 1.0), (4.0, 4.5)], told)
    assert found["beats_chance"] == 0 and found["length_correlation"] > 0.5
    assert "reward model does not beat chance: got 66.7 % right on 3 held-back pairs" in caplog.text
    assert "reward goes with length: got a correlation of 0." in caplog.text and "expect longer answers" in caplog.text


def test_correlation_is_pearson_s() -> None:
    one, other = [3.0, 1.0, 4.0, 1.0, 5.0], [2.0, 7.0, 1.0, 8.0, 2.0]
    assert correlation(one, other) == pytest.approx(float(np.corrcoef(one, other)[0, 1]))
    assert correlation(one, [2.0] * 5) == 0.0


def test_all_pairs_of_a_prompt_stay_on_one_side() -> None:
    rows = [Sides(pair(n // 3), [n], [0], 1) for n in range(60)]
    trained, apart = held_back(rows, 0.25, 0, Findings())
    names = [{row.pair.id for row in part} for part in (trained, apart)]
    assert len(apart) == 15 and not names[0] & names[1] and names[0] | names[1] == {f"pair-{n}" for n in range(20)}
    again = held_back(list(reversed(rows)), 0.25, 0, Findings())[1]
    assert {row.pair.id for row in again} == names[1], "whatever the order of the rows"
    assert {row.pair.id for row in held_back(rows, 0.25, 1, Findings())[1]} != names[1], "another seed"
    found = Findings()
    held_back(rows[:3], 0.25, 0, found)
    with pytest.raises(DataError, match="no pair can be held back: got pairs of 1 prompt"):
        found.stop()


def test_whole_weights_are_trained_whole_or_get_a_fresh_adapter(chain: TinyChain, tmp_path: Path) -> None:
    pairs = pairs_artifact(tmp_path, [pair(n) for n in range(10)])
    for method, folder in (("full", "model"), ("lora", "adapter")):
        config = with_train(REWARD.model_copy(update={"method": method}), max_updates=2)
        result = made(tmp_path, "reward", config, policy=chain.pretrain, pairs=pairs)
        assert (result.path / folder).is_dir() and result.manifest["metrics"]["parity_saved"] < 1e-5
    whole = models.Chain.read(
        result.path.parent / next(p.name for p in result.path.parent.iterdir() if (p / "model").exists())
    )
    assert [stage.method for stage in whole.stages][-1] == "full"


@pytest.mark.parametrize(
    ("method", "sft", "said"),
    [
        ("full", "lora", r"reward\.method is wrong: got full, because the policy holds an adapter of kind LORA"),
        ("lora", "ia3", r"adapter of kind IA3, and a reward model starts from whole weights or a LoRA adapter"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(
    chain: TinyChain, tmp_path: Path, method: str, sft: str, said: str
) -> None:
    policy = chain.sft
    if sft != "lora":
        config = with_train(SFT.model_copy(update={"method": sft, "lora": type(SFT.lora)()}), max_updates=2)
        policy = made(tmp_path, "sft", config, base=chain.pretrain, chats=chain.data)
    with pytest.raises(ConfigError, match=said):
        made(tmp_path, "reward", REWARD.model_copy(update={"method": method}), policy=policy, pairs=chain.pairs)


def test_settings_that_nothing_would_read_are_refused(chain: TinyChain, tmp_path: Path) -> None:
    config = RewardConfig.model_validate({"lora": {"rank": 3}})
    with pytest.raises(ConfigError, match=r"reward\.lora is wrong: got settings of its own"):
        made(tmp_path, "reward", config, policy=chain.sft, pairs=chain.pairs)
    with pytest.raises(ValueError, match="lora.init is pissa for a reward model"):
        RewardConfig.model_validate({"lora": {"init": "pissa"}})


def test_pairs_that_do_not_fit_are_dropped_whole_or_cut_and_counted(chain: TinyChain, tmp_path: Path) -> None:
    rows = [pair(0), pair(1, YES, "no " * 90), pair(2, "yes " * 90, NO), pair(3, YES, YES), pair(4), pair(5)]
    few = with_train(REWARD, max_updates=2)
    pairs = pairs_artifact(tmp_path, rows)
    result = made(tmp_path, "reward", few, policy=chain.sft, pairs=pairs)
    assert result.manifest["rows"] == {
        "in": {"pairs": 6},
        "out": {"trained": 3},
        "dropped": {"pairs": {"equal_pair": 1, "too_long": 2}},
    }
    cut = made(tmp_path, "reward", with_train(few, too_long="truncate"), policy=chain.sft, pairs=pairs)
    assert cut.manifest["rows"]["out"] == {"trained": 3, "truncated": 2}


def test_a_save_that_loses_the_head_stops_the_step(
    chain: TinyChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = reward.adapters.save

    def without_head(model: Any, method: str, out: Path, *rest: Any) -> None:
        from safetensors.torch import load_file, save_file

        real(model, method, out, *rest)
        file = out / "adapter" / "adapter_model.safetensors"
        save_file({name: t * 0 if "score" in name else t for name, t in load_file(file).items()}, file)

    monkeypatch.setattr(reward.adapters, "save", without_head)
    with pytest.raises(TrainingError, match="saved reward model gives other rewards"):
        made(tmp_path, "reward", with_train(REWARD, max_updates=2), policy=chain.sft, pairs=chain.pairs)


UNEVEN = with_train(REWARD, max_updates=7, save_every=3, log_every=4)


@pytest.mark.fault
@pytest.mark.long
def test_killed_in_every_phase_equals_undisturbed(chain: TinyChain, tmp_path: Path) -> None:
    pairs = pairs_artifact(tmp_path, [pair(n) for n in range(20)])
    survives(tmp_path, spec("reward", UNEVEN, policy=chain.sft, pairs=pairs), "steps.lib.models.write_location")
