"""Supervised fine-tuning: what is trained on, exact resuming, rows that do not fit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from minimal import BASE, FEW, ROOT, SFT, YES, TinyChain, chats, close, data_artifact, made, pair, turn, with_train
from shared_out import TORCHRUN, in_two
from training_runs import argv, environment, kept, losses, same, spec, survives, whole

from steps.lib import chat, history, inference, model_files, models
from steps.lib.door import main
from steps.lib.errors import DataError, TrainingError
from steps.lib.rows import Chat, Dropped, Pair, read_parquet
from steps.lib.step import build
from steps.sft import SftConfig

pytestmark = pytest.mark.tiny
DROPOUT = SftConfig.model_validate({"lora": {"rank": 4, "alpha": 8, "dropout": 0.2}, "train": {**FEW, "lr": 1e-2}})


def test_every_adapter_weight_moved_and_the_base_did_not(chain: TinyChain) -> None:
    from safetensors.torch import load_file

    saved = load_file(chain.sft.path / "adapter" / "adapter_model.safetensors")
    ups = {name: value for name, value in saved.items() if "lora_B" in name}
    assert len(ups) == 2 * 7 and all(value.abs().max() > 0 for value in ups.values()), (
        "B starts at zero; seven matrices a layer"
    )
    assert models.Chain.read(chain.sft.path).base == model_files.model_digest(chain.pretrain.path / "model")
    metrics = chain.sft.manifest["metrics"]
    assert metrics["loss_last"] < metrics["loss_first"] and 0.05 < metrics["trained_share"] < 0.5


def test_the_first_loss_is_of_the_assistants_tokens_alone(chain: TinyChain, tmp_path: Path) -> None:
    """The closed form: mean of -log p over the answers' tokens of the first batch (here: all rows)."""
    rows = chats(4)
    config = with_train(SFT, max_updates=1, warmup=0.0, batch_size=4)
    first = losses(made(tmp_path, "sft", config, base=chain.pretrain, chats=data_artifact(tmp_path, chats=rows)))[0]
    tokenizer = models.load_tokenizer(chain.pretrain.path / "model")
    pairs = [chat.encode_pair(tokenizer, row.messages[:-1], row.messages[-1:]) for row in rows]
    nats = -sum(inference.sequence_logps(models.load_model(chain.pretrain.path / "model"), pairs, batch_size=1))
    assert first == pytest.approx(nats / sum(len(answer) for _, answer in pairs), abs=1e-3)


def test_too_long_rows_are_dropped_whole_and_counted(chain: TinyChain, tmp_path: Path) -> None:
    long = Chat(id="long", lang="en", source="made", messages=[turn("user", "why " * 60), turn("assistant", YES)])
    data = data_artifact(tmp_path, chats=[*chats(4), long])
    result = made(tmp_path, "sft", with_train(SFT, max_updates=1, warmup=0.0), base=chain.pretrain, chats=data)
    assert result.manifest["rows"] == {"in": {"chats": 5}, "out": {"trained": 4}, "dropped": {"chats": {"too_long": 1}}}
    [dropped] = read_parquet(result.path / "dropped.parquet", Dropped)
    assert (dropped.id, dropped.reason, dropped.step) == ("long", "too_long", "sft") and dropped.detail.endswith(
        "limit 96"
    )
    assert Chat.model_validate_json(dropped.row) == long, "whole, not cut"
    tokenizer = models.load_tokenizer(chain.pretrain.path / "model")
    assert result.manifest["tokens"] == sum(len(chat.encode(tokenizer, row.messages).input_ids) for row in chats(4))


def test_a_row_at_the_limit_stays(chain: TinyChain, tmp_path: Path) -> None:
    tokenizer = models.load_tokenizer(chain.pretrain.path / "model")
    longest = max(len(chat.encode(tokenizer, row.messages).input_ids) for row in chats(4))
    data = data_artifact(tmp_path, chats=chats(4))
    at, below = (
        made(tmp_path, "sft", with_train(SFT, max_updates=1, warmup=0.0, max_length=n), base=chain.pretrain, chats=data)
        for n in (longest, longest - 1)
    )
    assert at.manifest["rows"]["out"]["trained"] == 4 and below.manifest["rows"]["out"]["trained"] < 4


def test_all_rows_too_long_is_an_error_that_says_so(chain: TinyChain, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no chats left to train on: got 0 rows, because all were dropped \(\{'too_long': 16\}\)"
    ):
        made(tmp_path, "sft", with_train(SFT, max_length=8), base=chain.pretrain, chats=chain.data)
    assert not [path for path in (tmp_path / "sft").iterdir() if not path.name.startswith(".")]


def test_a_learning_rate_that_explodes_stops_the_run(chain: TinyChain, tmp_path: Path) -> None:
    config = with_train(SFT, lr=1e30, warmup=0.0, max_grad_norm=1e30)
    with pytest.raises(TrainingError, match="lower lr"):
        made(tmp_path, "sft", config, base=chain.pretrain, chats=chain.data)
    assert not [path for path in (tmp_path / "sft").iterdir() if not path.name.startswith(".")]


def test_batch_one_accumulated_is_batch_four(chain: TinyChain, tmp_path: Path) -> None:
    data = data_artifact(tmp_path, chats=[row for row in chats() if row.lang == "en"])
    one = made(tmp_path, "sft", with_train(SFT, max_updates=4, batch_size=4), base=chain.pretrain, chats=data)
    four = made(
        tmp_path, "sft", with_train(SFT, max_updates=4, batch_size=1, accumulation=4), base=chain.pretrain, chats=data
    )
    assert losses(four) == pytest.approx(losses(one), rel=2e-3)


@pytest.mark.fault
@pytest.mark.long
def test_sigterm_saves_and_says_resumable_and_resuming_equals_uninterrupted(chain: TinyChain, tmp_path: Path) -> None:
    """The real step from the shell, with dropout; save_every is far away, so the checkpoint is the signal's."""
    what = spec("sft", with_train(DROPOUT, max_updates=40, save_every=1000), base=chain.pretrain, chats=chain.data)
    out = tmp_path / "cut" / what.key()
    child = subprocess.Popen(
        [sys.executable, "-m", "steps.sft", *argv(tmp_path, what, out)],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    said = ""
    for line in child.stderr:
        said += line
        if "update 3/40" in line:
            child.send_signal(signal.SIGTERM)
            child.send_signal(signal.SIGTERM)  # the group and the engine both send one
            break
    said += child.communicate(timeout=60)[1] or ""
    assert child.returncode == 75, said
    assert (
        "Resumable: stopped by SIGTERM: the partial work is kept; run the same command again" in said
        and not out.exists()
    )
    assert len(kept(out)) == 1
    same(build(what, out), whole(tmp_path, what))


@pytest.mark.fault
def test_killed_in_every_phase_equals_undisturbed(chain: TinyChain, tmp_path: Path) -> None:
    config = with_train(DROPOUT, max_updates=7, save_every=3, log_every=4)
    what = spec("sft", config, base=chain.pretrain, chats=chain.data)
    survives(tmp_path, what, "steps.lib.models.write_location")


@pytest.mark.fault
@pytest.mark.long
@pytest.mark.parametrize("method", ["adalora", "p_tuning"])
def test_killed_in_every_phase_equals_undisturbed_with_more_than_weights(
    chain: TinyChain, tmp_path: Path, method: str
) -> None:
    """The ranks that AdaLoRA took away and what its allocator remembers; the encoder of a prompt."""
    train = {**FEW, "lr": 1e-2, "max_updates": 7, "save_every": 3, "log_every": 4}
    fields = {"method": method, "adalora": {"rank": 2, "initial_rank": 4}, "p_tuning": {"tokens": 4, "hidden": 8}}
    what = spec("sft", SftConfig.model_validate({**fields, "train": train}), base=chain.pretrain, chats=chain.data)
    survives(tmp_path, what, "steps.lib.models.write_location")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_qlora_trains_on_a_four_bit_base(chain: TinyChain, tmp_path: Path) -> None:
    """64 channels: the blocks of bitsandbytes' CPU backend are 64 weights long, and it packs whole rows of them."""
    pytest.importorskip("bitsandbytes", reason="the extra prefline[qlora] is not installed")
    config = SFT.model_copy(
        update={"method": "qlora", "train": SFT.train.model_copy(update={"max_updates": 1, "warmup": 0.0})}
    )
    wide = BASE.model_copy(update={"tiny": BASE.tiny.model_copy(update={"hidden_size": 64})})
    base = made(tmp_path, "base", with_train(wide, max_updates=2, log_every=1), corpus=chain.data)
    result = made(tmp_path, "sft", config, base=base, chats=chain.data)
    print({k: v for k, v in result.manifest["metrics"].items() if k.startswith("parity")})
    assert (
        result.manifest["metrics"]["updates"] == 1 and (result.path / "adapter" / "adapter_model.safetensors").exists()
    )
    assert models.Chain.read(result.path).base == model_files.model_digest(base.path / "model"), "the unquantised base"


def test_what_is_published_does_not_depend_on_the_process(chain: TinyChain, tmp_path: Path) -> None:
    """PEFT keeps target modules in a set, whose order changes with the hash seed of the process."""
    names = json.loads((chain.sft.path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert names == sorted(names) and len({name.rpartition(".")[2] for name in names}) == 7


@pytest.mark.fault
@pytest.mark.long
def test_two_processes_stopped_and_continued_by_one_train_as_one_does(chain: TinyChain, tmp_path: Path) -> None:
    """processes is no part of the key: the batch, its order and the checkpoints do not depend on it; only rounding does."""
    config = with_train(SFT, max_updates=7, batch_size=2, accumulation=4, save_every=100, log_every=1)
    what = spec("sft", config, base=chain.pretrain, chats=chain.data)
    out = tmp_path / "cut" / what.key()
    child = subprocess.Popen(
        [*TORCHRUN, "-m", "steps.sft", *argv(tmp_path, what, out)],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    said = ""
    for line in child.stderr:
        said += line
        if "update 3/7" in line:
            child.send_signal(signal.SIGTERM)
            break
    said += child.communicate(timeout=120)[1] or ""
    assert len(kept(out)) == 1 and 3 <= kept(out)[0] < 7, said
    assert losses(build(what, out)) == pytest.approx(losses(whole(tmp_path, what)), rel=1e-4)


@pytest.mark.fault
def test_an_epochs_last_update_is_the_same_in_two_processes(chain: TinyChain, tmp_path: Path) -> None:
    """Rows that do not fill it: accelerate would fill it up with rows that were there, and count them."""
    config = with_train(SFT, max_updates=5, epochs=2, batch_size=5, accumulation=2, save_every=100, log_every=1)
    what = spec("sft", config, base=chain.pretrain, chats=chain.data)
    rows = len(read_parquet(chain.data.path / "chats.parquet", Chat))
    assert rows % 10, "the last update is not full"
    out = tmp_path / "two" / what.key()
    in_two(tmp_path, main, "sft", argv(tmp_path, what, out))
    two, one = (history.read(path / "record" / "history.jsonl") for path in (out, whole(tmp_path, what).path))
    assert [entry["num_tokens"] for entry in two] == [entry["num_tokens"] for entry in one]
    assert [entry["loss"] for entry in two] == pytest.approx([entry["loss"] for entry in one], rel=1e-5)


def test_corrections_of_bad_cases_stand_among_the_chats_as_often_as_asked_for(chain: TinyChain, tmp_path: Path) -> None:
    people = close(tmp_path / "badcases" / "p", {"pairs": ([pair(70), pair(71)], Pair)}, "badcases")
    teachers = close(tmp_path / "correct" / "t", {"pairs": ([pair(72)], Pair)}, "correct")
    config = with_train(SFT, max_updates=2, save_every=100)
    inputs = {"base": chain.pretrain, "chats": chain.data, "badcases": people, "corrections": teachers}
    found = made(tmp_path, "sft", config.model_copy(update={"corrections": 4}), **inputs)
    chats = len(read_parquet(chain.data.path / "chats.parquet", Chat))
    assert found.manifest["rows"]["in"]["chats"] == chats + 3 * 4 and found.manifest["metrics"]["corrections"] == 12
    plain = made(tmp_path, "sft", config, **inputs)
    assert plain.manifest["rows"]["in"]["chats"] == chats and "corrections" not in plain.manifest["metrics"]
