"""Preference optimisation: the reference is the SFT policy, the loss is the paper's, and resuming is exact."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from minimal import BASE, DPO, NO, SFT, YES, TinyChain, made, made_reference, pair, pairs_artifact, with_train
from training_runs import losses, spec, survives, whole

from steps import dpo
from steps.dpo import DpoConfig, check_first_loss
from steps.lib import chat, inference, model_files, models, training
from steps.lib.errors import DataError, TrainingError
from steps.lib.rows import Dropped, Pair, read_parquet

pytestmark = pytest.mark.tiny
ALL: dict[str, Any] = {"batch_size": 16, "warmup": 0.0, "scheduler": "constant_with_warmup", "lr": 5e-3}
"""Every pair in every update, at one learning rate: update 2 of a run starts where a run of one update ends."""


def answer_logps(artifact: Path, rows: list[Pair]) -> list[tuple[float, float]]:
    """(chosen, rejected) sums of log p of each pair."""
    tokenizer = models.load_tokenizer(models.model_folder(artifact))
    sides = [chat.encode_pair(tokenizer, row.prompt, side) for row in rows for side in (row.chosen, row.rejected)]
    flat = inference.sequence_logps(models.load_policy(artifact), sides, batch_size=1)
    return list(zip(flat[::2], flat[1::2], strict=True))


def closed_form(policy: list[tuple[float, float]], reference: list[tuple[float, float]], beta: float) -> float:
    """Rafailov et al. 2023, equation 7."""
    margins = [beta * ((c - rc) - (r - rr)) for (c, r), (rc, rr) in zip(policy, reference, strict=True)]
    return sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins)


def test_the_first_loss_is_ln_2_and_the_adapter_moved(chain: TinyChain) -> None:
    from safetensors.torch import load_file

    metrics = chain.dpo.manifest["metrics"]
    assert metrics["first_loss"] == pytest.approx(math.log(2), abs=1e-3) and losses(chain.dpo)[-1] < 0.69
    before, after = (
        load_file(path / "adapter" / "adapter_model.safetensors") for path in (chain.sft.path, chain.dpo.path)
    )
    assert set(before) == set(after) and all((before[name] != after[name]).any() for name in before), (
        "every trained weight"
    )
    assert not (chain.dpo.path / "adapter" / "ref").exists()
    stages = models.Chain.read(chain.dpo.path).stages
    assert [stage.step for stage in stages] == ["sft", "dpo"]


def test_the_policy_prefers_chosen_more_than_its_reference(chain: TinyChain) -> None:
    rows = read_parquet(chain.pairs.path / "pairs.parquet", Pair)
    new, old = answer_logps(chain.dpo.path, rows), answer_logps(chain.sft.path, rows)
    assert sum(c - r for c, r in new) > sum(c - r for c, r in old)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_loss_is_the_closed_form(chain: TinyChain, tmp_path: Path, beta: float) -> None:
    rows = [pair(0), pair(1, NO, YES), pair(2), pair(3, YES, "no"), pair(4)]
    pairs = pairs_artifact(tmp_path, rows)
    config = DpoConfig.model_validate({"beta": beta, "train": {**DPO.train.model_dump(), **ALL}})
    one, two = (made(tmp_path, "dpo", with_train(config, max_updates=n), policy=chain.sft, pairs=pairs) for n in (1, 2))
    reference = answer_logps(chain.sft.path, rows)
    assert (
        losses(two)[0] == pytest.approx(closed_form(reference, reference, beta), abs=1e-4) == pytest.approx(math.log(2))
    )
    expected = closed_form(answer_logps(one.path, rows), reference, beta)
    assert losses(two)[1] == pytest.approx(expected, abs=2e-3) and abs(expected - math.log(2)) > 0.01


def test_the_sft_weight_adds_the_chosen_answers_log_likelihood(chain: TinyChain, tmp_path: Path) -> None:
    rows = [pair(n) for n in range(4)]
    config = DpoConfig.model_validate(
        {
            "loss": {"type": ["sigmoid", "sft"], "weights": [1.0, 0.5]},
            "train": {**DPO.train.model_dump(), **ALL, "max_updates": 1},
        }
    )
    first = losses(made(tmp_path, "dpo", config, policy=chain.sft, pairs=pairs_artifact(tmp_path, rows)))[0]
    tokenizer = models.load_tokenizer(models.model_folder(chain.sft.path))
    tokens = sum(len(chat.encode_pair(tokenizer, row.prompt, row.chosen)[1]) for row in rows)
    nll = -sum(c for c, _ in answer_logps(chain.sft.path, rows)) / tokens
    assert first == pytest.approx(math.log(2) + 0.5 * nll, rel=0.02)


@pytest.mark.parametrize("loss", [0.0, 0.6919, 0.6945, 5.1, math.nan])
def test_a_first_loss_off_ln_2_is_refused(loss: float) -> None:
    with pytest.raises(
        TrainingError, match=r"first dpo loss is .*: got a value off ln 2 = 0\.6931.* because .*; train from the sft"
    ):
        check_first_loss(loss)


def test_a_first_loss_of_ln_2_is_taken() -> None:
    check_first_loss(math.log(2) + 9e-4)
    with pytest.raises(TrainingError, match="drift"):
        check_first_loss(math.log(2), drift=0.5)  # both answers moved alike


def test_a_wrong_reference_stops_the_run(chain: TinyChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy is disturbed after the trainer took its copy as the reference."""
    import torch

    real = training.fit

    def disturbed(trainer: Any, *rest: Any) -> Any:
        with torch.no_grad():
            for name, p in trainer.model.named_parameters():
                if "lora_B.default" in name:
                    p.add_(torch.randn_like(p))
        return real(trainer, *rest)

    monkeypatch.setattr(dpo.training, "fit", disturbed)
    with pytest.raises(TrainingError, match="first dpo loss is"):
        made(tmp_path, "dpo", DPO, policy=chain.sft, pairs=chain.pairs)
    assert not [path for path in (tmp_path / "dpo").iterdir() if not path.name.startswith(".")]


def test_pairs_that_do_not_fit_or_are_equal_are_dropped_whole_and_counted(chain: TinyChain, tmp_path: Path) -> None:
    rows = [pair(0), pair(1, YES, "no " * 90), pair(2, "yes " * 90, NO), pair(3, YES, YES), pair(4)]
    result = made(
        tmp_path, "dpo", with_train(DPO, max_updates=2), policy=chain.sft, pairs=pairs_artifact(tmp_path, rows)
    )
    assert result.manifest["rows"] == {
        "in": {"pairs": 5},
        "out": {"trained": 2},
        "dropped": {"pairs": {"equal_pair": 1, "too_long": 2}},
    }
    dropped = {row.id: row for row in read_parquet(result.path / "dropped.parquet", Dropped)}
    assert {name: row.reason for name, row in dropped.items()} == {
        "pair-1": "too_long",
        "pair-2": "too_long",
        "pair-3": "equal_pair",
    }
    assert Pair.model_validate_json(dropped["pair-1"].row) == rows[1], "whole, not cut"
    tokenizer = models.load_tokenizer(models.model_folder(chain.sft.path))
    sides = [
        chat.encode_pair(tokenizer, row.prompt, side)
        for row in (rows[0], rows[4])
        for side in (row.chosen, row.rejected)
    ]
    assert result.manifest["tokens"] == sum(len(prompt) + len(answer) for prompt, answer in sides)


def test_all_pairs_too_long_is_an_error_that_says_so(chain: TinyChain, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no pairs left to train on: got 0 rows, because all were dropped \(\{'too_long': \d+\}\)"
    ):
        made(tmp_path, "dpo", with_train(DPO, max_length=8), policy=chain.sft, pairs=chain.pairs)


def test_batch_one_accumulated_is_batch_four(chain: TinyChain, tmp_path: Path) -> None:
    pairs = pairs_artifact(tmp_path, [pair(n) for n in range(8)])
    one, four = (
        made(
            tmp_path,
            "dpo",
            with_train(DPO, max_updates=4, batch_size=batch, accumulation=4 // batch),
            policy=chain.sft,
            pairs=pairs,
        )
        for batch in (4, 1)
    )
    assert losses(four) == pytest.approx(losses(one), rel=5e-3)
    assert losses(one)[-1] < 0.68


UNEVEN = with_train(DPO, max_updates=7, save_every=3, log_every=4)


@pytest.mark.fault
def test_killed_in_every_phase_equals_undisturbed(chain: TinyChain, tmp_path: Path) -> None:
    """The reference of the resumed run is the SFT policy still, not the checkpoint."""
    pairs = pairs_artifact(tmp_path, [pair(n) for n in range(10)])
    reference = made_reference(tmp_path, UNEVEN, policy=chain.sft, pairs=pairs)
    what = spec("dpo", UNEVEN, policy=chain.sft, pairs=pairs, reference=reference)
    resumed = survives(tmp_path, what, "steps.lib.models.write_location")
    assert resumed.manifest["metrics"]["first_loss"] == pytest.approx(math.log(2), abs=1e-3)


def test_two_runs_give_one_result(chain: TinyChain, tmp_path: Path) -> None:
    what = spec("dpo", DPO, policy=chain.sft, pairs=chain.pairs, reference=chain.reference)
    assert whole(tmp_path, what).digest == chain.dpo.digest


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("before", ["qlora", "full"])
def test_qlora_goes_on_training_on_a_four_bit_base(chain: TinyChain, tmp_path: Path, before: str) -> None:
    """64 channels: the blocks of bitsandbytes' CPU backend are 64 weights long, and it packs whole rows of them."""
    pytest.importorskip("bitsandbytes", reason="the extra prefline[qlora] is not installed")
    wide = BASE.model_copy(update={"tiny": BASE.tiny.model_copy(update={"hidden_size": 64})})
    base = made(tmp_path, "base", with_train(wide, max_updates=2, log_every=1), corpus=chain.data)
    policy = made(
        tmp_path,
        "sft",
        with_train(SFT.model_copy(update={"method": before}), max_updates=2),
        base=base,
        chats=chain.data,
    )
    config = with_train(DPO.model_copy(update={"method": "qlora"}), max_updates=2)
    result = made(tmp_path, "dpo", config, policy=policy, pairs=pairs_artifact(tmp_path, [pair(n) for n in range(4)]))
    assert result.manifest["metrics"]["first_loss"] == pytest.approx(math.log(2), abs=1e-3)
    unquantised = (policy if before == "full" else base).path / "model"
    assert models.Chain.read(result.path).base == model_files.model_digest(unquantised)
