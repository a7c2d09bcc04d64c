"""Alignment on single verdicts: the loss is the paper's, the policy moves the right way, resuming is exact, and the line takes it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault.micro import in_this_process, walk
from minimal import FEW, NO, YES, Line, TinyChain, close, made, pair, pairs_artifact, turn, with_train
from pydantic import ValidationError
from training_runs import cut, losses, said, same, spec, survives, whole

from steps import kto
from steps.kto import KtoConfig
from steps.lib import chat, history, inference, models, training, unpaired, verdict_rows
from steps.lib.artifact import Artifact
from steps.lib.errors import ConfigError, DataError, TrainingError
from steps.lib.preflight import Findings
from steps.lib.rows import Dropped, Message, Thumb, read_parquet
from steps.lib.step import build
from steps.lib.store import work_folder

pytestmark = pytest.mark.tiny
KTO = KtoConfig.model_validate({"train": {**FEW, "lr": 5e-3}})
ALL: dict[str, Any] = {"batch_size": 16, "warmup": 0.0, "scheduler": "constant_with_warmup", "lr": 5e-3}
"""Every example in every update, at one learning rate: update 2 of a run starts where a run of one update ends."""


def thumb(n: int, label: bool, said: str | None = None) -> Thumb:
    return Thumb(
        id=f"thumb-{n}",
        lang="en",
        source="made",
        prompt=[turn("system", "JSON."), turn("user", f"Is {n} fine?")],
        completion=[turn("assistant", said or (YES if label else NO))],
        label=label,
    )


def thumbs(up: int, down: int) -> list[Thumb]:
    """Yes is liked, no is not; one answer a prompt."""
    return [thumb(n, n < up) for n in range(up + down)]


def thumbs_artifact(root: Path, rows: list[Thumb], name: str = "thumbs") -> Artifact:
    return close(root / "clean" / name, {"thumbs": (rows, Thumb)}, "clean")


def answer_logps(artifact: Path, rows: list[tuple[list[Message], list[Message]]]) -> np.ndarray:
    """Sums of log p of answers."""
    tokenizer = models.load_tokenizer(models.model_folder(artifact))
    sides = [chat.encode_pair(tokenizer, prompt, answer) for prompt, answer in rows]
    return np.array(inference.sequence_logps(models.load_policy(artifact), sides, batch_size=1))


# --- training --------------------------------------------------------------------------------------------------------


def test_thumbs_and_pairs_move_the_policy_from_disliked_to_liked_answers(chain: TinyChain, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    given, prefs = thumbs(8, 4), [pair(n) for n in range(20, 24)]
    result = made(
        tmp_path, "kto", KTO, policy=chain.sft, pairs=pairs_artifact(tmp_path, prefs), thumbs=thumbs_artifact(tmp_path, given)
    )  # fmt: skip
    metrics = result.manifest["metrics"]
    assert (metrics["desirable"], metrics["undesirable"]) == (12, 8) and metrics["kl_own_prompt"] == 0
    assert (metrics["desirable_weight"], metrics["undesirable_weight"]) == (1.0, 1.125), "12 x 1 over 8 x 9/8 is 4/3"
    assert metrics["first_drift"] <= 2e-3 and losses(result)[-1] < losses(result)[0]
    assert result.manifest["rows"] == {"in": {"examples": 20}, "out": {"trained": 20}, "dropped": {}}
    rows = list(unpaired.examples(prefs, given))
    asked = [(row.prompt, row.completion) for row in rows]
    moved = answer_logps(result.path, asked) - answer_logps(chain.sft.path, asked)
    liked = np.array([row.label for row in rows])
    assert moved[liked].mean() > 0 > moved[~liked].mean() and moved[liked].min() > moved[~liked].max()
    before, after = (
        load_file(path / "adapter" / "adapter_model.safetensors") for path in (chain.sft.path, result.path)
    )
    assert set(before) == set(after) and all((before[name] != after[name]).any() for name in before)
    assert [stage.step for stage in models.Chain.read(result.path).stages] == ["sft", "kto"]


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_the_loss_is_the_closed_form(chain: TinyChain, tmp_path: Path, loss: str) -> None:
    """Eight liked and two disliked answers: the policy says yes more, to other prompts too, so the KL term is above 0."""
    rows = thumbs(8, 2)
    config = KtoConfig.model_validate({"loss": loss, "beta": 0.5, "train": {**KTO.train.model_dump(), **ALL}})
    data = thumbs_artifact(tmp_path, rows)
    one, two = (made(tmp_path, "kto", with_train(config, max_updates=n), policy=chain.sft, thumbs=data) for n in (1, 2))
    up = np.array([row.label for row in rows])
    weight = np.where(up, 1.0, 3.0)  # 8 / (2 x 3) = 4/3
    assert one.manifest["metrics"]["undesirable_weight"] == 3.0
    assert losses(two)[0] == pytest.approx(0.5 * weight.mean(), abs=1e-5)

    order, own = unpaired.arranged(list(up), [row.prompt[-1].content for row in rows], batch=16, seed=0)
    assert own == 0
    rotated = [(rows[order[k]].prompt, rows[order[unpaired.before(k, 10, 16)]].completion) for k in range(10)]
    answers = [(row.prompt, row.completion) for row in rows]
    moved, far = (answer_logps(one.path, some) - answer_logps(chain.sft.path, some) for some in (answers, rotated))
    kl = max(0.0, float(far.mean())) if loss == "kto" else 0.0
    expected = np.mean(weight * (1 - 1 / (1 + np.exp(-0.5 * np.where(up, 1, -1) * (moved - kl)))))
    logged = history.read(two.path / "record" / "history.jsonl")[1]
    assert logged["kl"] == pytest.approx(kl, abs=1e-4) and (kl > 0.01) is (loss == "kto")
    assert logged["loss"] == pytest.approx(expected, abs=1e-4) and abs(expected - losses(two)[0]) > 0.01


def test_a_wrong_reference_stops_the_run(chain: TinyChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy is disturbed after the reference was asked."""
    import torch

    real = training.fit

    def disturbed(trainer: Any, *rest: Any) -> Any:
        with torch.no_grad():
            for name, p in trainer.model.named_parameters():
                if "lora_B.default" in name:
                    p.add_(torch.randn_like(p))
        return real(trainer, *rest)

    monkeypatch.setattr(kto.training, "fit", disturbed)
    with pytest.raises(TrainingError, match="first kto loss is"):
        made(tmp_path, "kto", KTO, policy=chain.sft, thumbs=thumbs_artifact(tmp_path, thumbs(4, 4)))
    assert not [path for path in (tmp_path / "kto").iterdir() if not path.name.startswith(".")]


def test_a_whole_model_is_its_own_reference(chain: TinyChain, tmp_path: Path) -> None:
    from minimal import SFT

    policy = made(tmp_path, "sft", SFT.model_copy(update={"method": "full"}), base=chain.pretrain, chats=chain.data)
    config = with_train(KTO.model_copy(update={"method": "full"}), max_updates=3, lr=1e-3)
    result = made(tmp_path, "kto", config, policy=policy, thumbs=thumbs_artifact(tmp_path, thumbs(4, 4)))
    assert (result.path / "model" / "config.json").exists() and losses(result)[-1] < losses(result)[0]


def test_virtual_tokens_before_each_row_are_trained_on(chain: TinyChain, tmp_path: Path) -> None:
    from minimal import SFT

    policy = made(tmp_path, "sft", SFT.model_copy(update={"method": "prompt"}), base=chain.pretrain, chats=chain.data)
    config = with_train(KTO.model_copy(update={"method": "prompt"}), max_updates=3)
    result = made(tmp_path, "kto", config, policy=policy, thumbs=thumbs_artifact(tmp_path, thumbs(4, 4)))
    assert result.manifest["metrics"]["first_drift"] <= 2e-3 and losses(result)[-1] < losses(result)[0]


# --- rows ------------------------------------------------------------------------------------------------------------


def test_what_contradicts_is_too_long_or_stands_twice_is_dropped_whole_and_counted(
    chain: TinyChain, tmp_path: Path
) -> None:
    rows = [
        *thumbs(2, 2),
        thumb(5, True, YES), thumb(6, False, "no " * 90), thumb(7, True, "same"),
    ]  # fmt: skip
    rows.append(rows[-1].model_copy(update={"id": "again"}))
    prefs = [pair(5, chosen="other", rejected=YES)]  # its rejected answer is the one that thumb 5 likes
    result = made(
        tmp_path, "kto", with_train(KTO, max_updates=2), policy=chain.sft, pairs=pairs_artifact(tmp_path, prefs),
        thumbs=thumbs_artifact(tmp_path, rows),
    )  # fmt: skip
    assert result.manifest["rows"] == {
        "in": {"examples": 10},
        "out": {"trained": 6},
        "dropped": {"examples": {"contradiction": 2, "duplicate": 1, "too_long": 1}},
    }
    dropped = {row.id: row for row in read_parquet(result.path / "dropped.parquet", Dropped)}
    assert {name: row.reason for name, row in dropped.items()} == {
        "thumb-5": "contradiction",
        "pair-5:rejected": "contradiction",
        "again": "duplicate",
        "thumb-6": "too_long",
    }
    assert Thumb.model_validate_json(dropped["thumb-6"].row) == rows[5], "whole, not cut"


def test_answers_are_cut_where_that_is_wanted_and_rotated_ones_too(chain: TinyChain, tmp_path: Path) -> None:
    tokenizer = models.load_tokenizer(models.model_folder(chain.sft.path))
    rows = [thumb(0, True, "yes " * 90), thumb(1, False), thumb(2, True), thumb(3, False)]
    config = with_train(KTO, too_long="truncate", max_length=64)
    found = Findings()
    made_rows, metrics = verdict_rows.encode(config, tokenizer, rows, tmp_path, found, seed=0)
    assert metrics.rows.dump()["out"] == {"trained": 3, "truncated": 1}
    assert max(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in made_rows) == 64
    assert all(len(row["prompt_ids"]) + len(row["KL_completion_ids"]) <= 64 for row in made_rows)
    assert [row["KL_completion_ids"][:3] for row in made_rows[1:]] == [
        row["completion_ids"][:3] for row in made_rows[:-1]
    ]


def test_several_turns_may_be_judged_and_the_user_s_carry_no_loss(chain: TinyChain, tmp_path: Path) -> None:
    tokenizer = models.load_tokenizer(models.model_folder(chain.sft.path))
    turns = [turn("assistant", YES), turn("user", "Sure?"), turn("assistant", NO)]
    row = thumb(0, True).model_copy(update={"completion": turns})
    made_rows, _ = verdict_rows.encode(KTO, tokenizer, [row, thumb(1, False)], tmp_path, Findings(), seed=0)
    [judged] = [one for one in made_rows if one["label"]]
    spoken = [token for token, own in zip(judged["completion_ids"], judged["spoken"], strict=True) if own]
    end = tokenizer.eos_token
    assert tokenizer.decode(spoken) == f"{YES}{end}{NO}{end}" and "Sure?" in tokenizer.decode(judged["completion_ids"])


@pytest.mark.parametrize(("up", "down", "word"), [(6, 0, "6 liked and 0 disliked"), (0, 6, "0 liked and 6 disliked")])
def test_one_verdict_alone_is_refused(chain: TinyChain, tmp_path: Path, up: int, down: int, word: str) -> None:
    with pytest.raises(
        DataError, match=f"kto needs both verdicts: got {word} answers, because .*; give thumbs of both"
    ):
        made(tmp_path, "kto", KTO, policy=chain.sft, thumbs=thumbs_artifact(tmp_path, thumbs(up, down)))


def test_no_example_at_all_is_refused(chain: TinyChain, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="kto has nothing to train on: .*no source of thumbs and no pairs were given; name"
    ):
        made(tmp_path, "kto", KTO, policy=chain.sft, thumbs=chain.data)
    empty = pairs_artifact(tmp_path, [])
    with pytest.raises(DataError, match=r"thumbs\.parquet is empty and pairs\.parquet is empty"):
        made(tmp_path, "kto", KTO, policy=chain.sft, pairs=empty, thumbs=thumbs_artifact(tmp_path, []))


def test_weights_that_were_set_out_of_balance_and_lengths_that_tell_the_sides_apart_are_said(
    chain: TinyChain, tmp_path: Path
) -> None:
    tokenizer = models.load_tokenizer(models.model_folder(chain.sft.path))
    found = Findings()
    rows = [thumb(n, n < 12, "yes " * 20 if n < 12 else None) for n in range(24)]
    config = KtoConfig.model_validate({**KTO.model_dump(), "desirable_weight": 3.0, "undesirable_weight": 1.0})
    verdict_rows.encode(config, tokenizer, rows, tmp_path, found, seed=0)
    assert any("out of balance: got 3.00 for 12 x 3 against 12 x 1" in message for message in found.warnings)
    assert any("length tells liked from disliked answers" in message for message in found.warnings)
    own = Findings()
    same_prompt = [thumb(1, n % 2 == 0, f"answer {n}") for n in range(6)]
    verdict_rows.encode(KTO, tokenizer, same_prompt, tmp_path, own, seed=0)
    assert any("answers to their own prompts: got 6 of 6" in message for message in own.warnings)


def test_a_batch_of_one_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(
        ValidationError,
        match="train.batch_size is 1 with loss kto: got batches of one example, because .*; set train.batch_size to 2",
    ):
        KtoConfig.model_validate({"train": {"batch_size": 1}})
    KtoConfig.model_validate({"train": {"batch_size": 1}, "loss": "apo_zero_unpaired"})


# --- stopping --------------------------------------------------------------------------------------------------------

UNEVEN = with_train(KTO, max_updates=7, save_every=3, log_every=4)
RECORD = "steps.lib.checkpoints.Journal.append"
"""Called for the head of the reference's journal, and then for each batch of examples."""


@pytest.mark.fault
@pytest.mark.long
def test_killed_in_every_phase_equals_undisturbed(chain: TinyChain, tmp_path: Path) -> None:
    """Nine examples in batches of four: the last batch has one. The rotation and the reference are the same after each stop."""
    what = spec("kto", UNEVEN, policy=chain.sft, thumbs=thumbs_artifact(tmp_path, thumbs(6, 3)))
    resumed = survives(tmp_path, what, "steps.lib.models.write_location", (RECORD, 1, []), (RECORD, 3, []))
    assert resumed.manifest["metrics"]["first_drift"] <= 2e-3
    asked = [line for line in said(resumed) if line.startswith("reference of ")]
    assert asked == ["reference of 4 of 9 examples is on record"] + 7 * ["reference of 9 of 9 examples is on record"]


@pytest.mark.long
@pytest.mark.fault
def test_a_damaged_record_of_the_reference_is_not_used(chain: TinyChain, tmp_path: Path) -> None:
    what = spec("kto", UNEVEN, policy=chain.sft, thumbs=thumbs_artifact(tmp_path, thumbs(5, 5)))
    out = tmp_path / "cut" / what.key()
    assert cut(tmp_path, what, out, "steps.lib.history.due") == (-9, [])
    journal = work_folder(out) / ".resume" / "reference.journal"
    head, one, two, three = journal.read_bytes().splitlines(keepends=True)
    changed = bytearray(two)
    changed[20] ^= 1
    journal.write_bytes(head + one + changed + three)
    resumed = build(what, out)
    same(resumed, whole(tmp_path, what))
    assert "reference of 4 of 10 examples is on record" in said(resumed)


def test_two_runs_give_one_result_and_another_seed_another_order(chain: TinyChain, tmp_path: Path) -> None:
    data = thumbs_artifact(tmp_path, thumbs(5, 5))
    first, second = (made(tmp_path / name, "kto", KTO, policy=chain.sft, thumbs=data) for name in ("one", "two"))
    assert first.digest == second.digest
    assert made(tmp_path, "kto", KTO, seed=1, policy=chain.sft, thumbs=data).digest != first.digest


# --- the line --------------------------------------------------------------------------------------------------------


def with_kto(line: Line, *, pairs: bool = True) -> list[str]:
    """Overrides that put kto in dpo's place, with thumbs of the seed set."""
    lines = (Path("data/seed/thumbs/train.jsonl")).read_text(encoding="utf-8").splitlines()[:18]
    path = line.folder / "thumbs.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    train = {"batch_size": 4, "max_updates": 3, "epochs": 20, "lr": 1e-3, "max_length": 512, "log_every": 1}
    words = ["dpo=null", f"kto={json.dumps({'train': train})}", f"clean.thumbs=[{{name: thumbs, path: {path}}}]"]
    return words if pairs else [*words, "pairs=null"]


@pytest.fixture
def line(minimal_line: Line, tmp_path: Path) -> Line:
    return minimal_line.copy(tmp_path / "line")


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.long  # the way round dpo is in every run with rl (tests/flows/test_rlhf.py), kto itself above
def test_the_line_takes_kto_in_place_of_dpo(line: Line, pairs: bool) -> None:
    with in_this_process() as built:
        outcomes = walk(line, *with_kto(line, pairs=pairs), "evaluate.window=512")  # room for the held-out pairs
    assert built == ["clean", "base", "pretrain", "sft", *(["pairs"] if pairs else []), "kto", "evaluate", "promote"]
    aligned, report = outcomes["kto"].artifact, outcomes["evaluate"].artifact
    assert aligned.manifest["inputs"].keys() == ({"policy", "thumbs", "pairs"} if pairs else {"policy", "thumbs"})
    assert report.manifest["inputs"].keys() == {"base", "pretrained", "sft", "kto", "heldout"}
    found = json.loads((report.path / "report.json").read_text(encoding="utf-8"))
    assert [model["name"] for model in found["models"]] == ["base", "pretrained", "sft", "champion", "kto"]
    compared = {(one["model"], one["against"]) for one in found["comparisons"]}
    assert {("kto", "sft"), ("kto", "base")} <= compared
    implicit = [one for one in found["figures"] if one["name"] == "implicit_reward_accuracy"]
    assert [(one["model"], one["against"]) for one in implicit] == [("champion", "sft"), ("kto", "sft")]
    verdict = json.loads((outcomes["promote"].artifact.path / "verdict.json").read_text(encoding="utf-8"))
    assert verdict["policy"] == aligned.digest and verdict["candidate"] == "kto"
    assert "kto: loss" in (report.path / "report.html").read_text(encoding="utf-8")


def test_a_line_that_could_not_work_is_refused(line: Line) -> None:
    words = with_kto(line)
    with pytest.raises(ConfigError, match="dpo and kto exclude each other: got 2 sections, .*; set dpo or kto to null"):
        line.config(*words[1:])
    with pytest.raises(ConfigError, match="kto has nothing to train on: got pairs: null and no clean.thumbs"):
        line.config(*words[:2], "pairs=null")
    with pytest.raises(ConfigError, match="kto.method is wrong: got ia3"):
        line.config(*words, "kto.method=ia3")


@pytest.mark.parametrize(
    "change", ["beta=0.2", "loss=apo_zero_unpaired", "desirable_weight=1.2", "undesirable_weight=2", "train.lr=0.5"]
)
def test_every_setting_is_in_the_key(chain: TinyChain, line: Line, change: str) -> None:
    first, second = (line.config(*words) for words in (with_kto(line), [*with_kto(line), f"kto.{change}"]))
    one, two = (spec("kto", config.kto, policy=chain.sft) for config in (first, second))
    assert one.key() != two.key() and math.isfinite(second.kto.beta)


def test_bare_verdicts_of_bad_cases_are_examples_too(chain: TinyChain, tmp_path: Path) -> None:
    bare = close(tmp_path / "badcases" / "b", {"thumbs": ([thumb(60, False), thumb(61, False)], Thumb)}, "badcases")
    examples, digest = verdict_rows.read(chain.pairs.path, None, bare.path)
    without, other = verdict_rows.read(chain.pairs.path, None)
    assert [one.id for one in examples[:2]] == ["thumb-60", "thumb-61"] and examples[2:] == without and digest != other
    found = made(tmp_path, "kto", with_train(KTO, max_updates=2), policy=chain.sft, pairs=chain.pairs, badcases=bare)
    assert sum(found.manifest["rows"]["in"].values()) == len(examples)
