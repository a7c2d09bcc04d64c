"""Log-probabilities of the reference: TRL's numbers, kept pass by pass, and refused where they are of something else."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from minimal import (
    DPO,
    NO,
    ROOT,
    SFT,
    YES,
    TinyChain,
    made,
    made_reference,
    pair,
    pairs_artifact,
    with_train,
)
from training_runs import argv, cut, said, spec, whole

from steps import dpo
from steps.dpo import DpoConfig
from steps.lib import chat, logps, models, packed, pair_rows, starts
from steps.lib.artifact import Artifact
from steps.lib.errors import ArtifactError, DataError, PreflineError, TrainingError
from steps.lib.losses import PreferenceLoss
from steps.lib.methods import AnyMethod
from steps.lib.preflight import Findings
from steps.lib.publishing import publish
from steps.lib.rows import Dropped, Pair, PairLogps, read_parquet
from steps.lib.step import build
from steps.lib.store import work_folder
from steps.reference import ReferenceConfig

pytestmark = pytest.mark.tiny
ROWS = [
    pair(0),
    pair(1, NO, YES),
    pair(2, YES, "no no no no no no"),
    pair(3, "yes " * 12, NO),
    pair(4, "y", "n" * 9),
    pair(5, YES, "no " * 90),
]
"""Sides of many lengths; of the last pair one is too long."""
CONFIG = ReferenceConfig.of(DPO, DPO.train)


def encoded(policy: Path, pairs: Path, folder: Path, **train: Any) -> pair_rows.Encoded:
    """The pairs as dpo has them."""
    folder.mkdir(exist_ok=True)
    tokenizer = models.load_tokenizer(models.model_folder(policy))
    settings = with_train(DPO, **train).train
    rows = read_parquet(pairs / "pairs.parquet", Pair)
    return pair_rows.encode("dpo", settings, tokenizer, rows, folder, Findings())[0]


def trl_sums(policy: Path, rows: list[dict[str, Any]], folder: Path, **options: Any) -> list[tuple[float, float]]:
    """What TRL computes and keeps for a reference, by its own forward on padded batches."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Plain(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    arguments = DPOConfig(
        str(folder),
        max_length=None,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=2,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        **options,
    )
    made = Plain(
        model=models.load_policy(policy, trainable=True),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=models.load_tokenizer(models.model_folder(policy)),
    )
    return [(row["ref_chosen_logps"], row["ref_rejected_logps"]) for row in made.train_dataset]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "ld_alpha", "too_long"),
    [
        ("sigmoid", None, "drop"),
        ("sigmoid", 0.3, "truncate"),
        ("hinge", 0.0, "drop"),
        ("ipo", None, "truncate"),
        ("sigmoid_norm", 0.5, "drop"),
    ],
)
def test_the_sums_are_trl_s(chain: TinyChain, tmp_path: Path, kind: str, ld_alpha: float | None, too_long: str) -> None:
    pairs = pairs_artifact(chain.root, ROWS, "oracle") if not (chain.root / "pairs" / "oracle").exists() else None
    pairs = pairs or Artifact.read(chain.root / "pairs" / "oracle")
    config = with_train(DPO, too_long=too_long)
    artifact = made_reference(chain.root, config, policy=chain.sft, pairs=pairs)
    kept, found = encoded(chain.sft.path, pairs.path, tmp_path / "rows", too_long=too_long), Findings()
    assert len(kept.rows) == (5 if too_long == "drop" else 6)
    loss = PreferenceLoss.model_validate({"type": [kind], "ld_alpha": ld_alpha})
    expected = logps.scored(DPO, chain.sft.path, "auto", 0)
    ours = logps.joined(kept, artifact.path, expected, loss.ld_alpha, found)
    found.stop()
    wanted = trl_sums(chain.sft.path, kept.rows, tmp_path / "trl", **loss.arguments())
    for row, sums in zip(ours, wanted, strict=True):
        assert (row["ref_chosen_logps"], row["ref_rejected_logps"]) == pytest.approx(sums, rel=1e-5)


def test_what_is_written_names_each_pair_and_its_tokens(chain: TinyChain, tmp_path: Path) -> None:
    artifact = made_reference(
        tmp_path, DPO, policy=chain.sft, pairs=pairs_artifact(tmp_path, [*ROWS, pair(6, YES, YES)])
    )
    assert artifact.manifest["rows"] == {
        "in": {"pairs": 7},
        "out": {"scored": 5},
        "dropped": {"pairs": {"equal_pair": 1, "too_long": 1}},
    }
    assert {row.id for row in read_parquet(artifact.path / "dropped.parquet", Dropped)} == {"pair-5", "pair-6"}
    tokenizer = models.load_tokenizer(models.model_folder(chain.sft.path))
    rows = read_parquet(artifact.path / "logps.parquet", PairLogps)
    assert [row.id for row in rows] == [f"pair-{n}" for n in range(5)] and len({row.digest for row in rows}) == 5
    tokens = 0
    for row, source in zip(rows, ROWS, strict=False):
        prompt, chosen = chat.encode_pair(tokenizer, source.prompt, source.chosen)
        rejected = chat.encode_pair(tokenizer, source.prompt, source.rejected)[1]
        assert (row.chosen_tokens, row.rejected_tokens) == (len(chosen), len(rejected))
        assert (row.chosen_tail < 0) is (len(chosen) > len(rejected)) and row.chosen <= row.chosen_tail <= 0
        assert (row.rejected_tail < 0) is (len(rejected) > len(chosen)) and row.rejected <= row.rejected_tail <= 0
        tokens += len(prompt) + len(chosen) + len(rejected)
    assert artifact.manifest["tokens"] == tokens, "each prompt once"
    assert artifact.manifest["metrics"]["pairs_per_second"] > 0


def test_a_pass_is_full_and_within_its_bound(chain: TinyChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pairs_artifact(tmp_path, [pair(n, YES, "no " * (n % 9)) for n in range(40)])
    real, places, used = packed.scores_of, list[int](), list[int]()

    def counted(model: Any, one: Any, mask: Any = None) -> Any:
        places.append(one["input_ids"].numel())
        used.append(int((one["segments"] >= 0).sum()))
        return real(model, one, mask)

    monkeypatch.setattr(packed, "scores_of", counted)
    few, many = (
        made(
            tmp_path, "reference", CONFIG.model_copy(update={"tokens_per_pass": n}), policy=chain.sft, pairs=pairs
        ).path
        if n == 200
        else build(
            spec("reference", CONFIG.model_copy(update={"tokens_per_pass": n}), policy=chain.sft, pairs=pairs),
            tmp_path / "other",
        ).path
        for n in (200, 2000)
    )
    assert max(used[:-1]) <= 200 or len(used) < 4
    assert sum(places) < 1.1 * sum(used), "next to no padding"
    one, two = (read_parquet(path / "logps.parquet", PairLogps) for path in (few, many))
    assert [row.chosen for row in one] == pytest.approx([row.chosen for row in two], rel=1e-5)
    assert [row.rejected for row in one] == pytest.approx([row.rejected for row in two], rel=1e-5)


# --- stopping and going on -------------------------------------------------------------------------------------------

SMALL = CONFIG.model_copy(update={"tokens_per_pass": 64})  # two pairs
PASS = "steps.lib.logps._sums"
"""Called once a pass that is still to be computed."""


@pytest.mark.fault
def test_killed_and_stopped_in_the_middle_goes_on_to_the_same_bytes(chain: TinyChain, tmp_path: Path) -> None:
    pairs = pairs_artifact(tmp_path, [pair(n) for n in range(20)])
    what = spec("reference", SMALL, policy=chain.sft, pairs=pairs)
    out = tmp_path / "cut" / what.key()
    assert cut(tmp_path, what, out, PASS, 4) == (-9, [])
    assert cut(tmp_path, what, out, PASS, 3, signal.SIGTERM) == (75, [])
    assert cut(tmp_path, what, out, "steps.lib.logps.rows_of") == (-9, []), "all is done but the file"
    resumed, alone = build(what, out), whole(tmp_path, what)
    assert resumed.digest == alone.digest and resumed.manifest["rows"] == alone.manifest["rows"]
    passes = alone.manifest["metrics"]["passes"]
    assert passes == resumed.manifest["metrics"]["passes"] == resumed.manifest["metrics"]["passes_from_ledger"] > 8
    told = [line for line in said(resumed) if "were done before" in line]
    assert told[-1] == f"20 pairs scored; {passes} of {passes} passes were done before"


@pytest.mark.fault
def test_a_damaged_pass_is_computed_again(chain: TinyChain, tmp_path: Path) -> None:
    import sqlite3

    pairs = pairs_artifact(tmp_path, [pair(n) for n in range(20)])
    what = spec("reference", SMALL, policy=chain.sft, pairs=pairs)
    out = tmp_path / "cut" / what.key()
    assert cut(tmp_path, what, out, "steps.lib.logps.rows_of") == (-9, [])
    with sqlite3.connect(work_folder(out) / ".resume" / "passes-0.sqlite") as ledger:
        ledger.execute("UPDATE units SET value = replace(value, '-', '') WHERE rowid = 2")
    ledger.close()
    resumed = build(what, out)
    alone = whole(tmp_path, what)
    assert resumed.digest == alone.digest
    assert resumed.manifest["metrics"]["passes_from_ledger"] == alone.manifest["metrics"]["passes"] - 1


@pytest.mark.long
def test_two_processes_share_the_passes(chain: TinyChain, tmp_path: Path) -> None:
    pairs = pairs_artifact(tmp_path, [pair(n, YES, "no " * (n % 5)) for n in range(9)])
    alone = whole(tmp_path, spec("reference", SMALL, policy=chain.sft, pairs=pairs))
    what = spec("reference", SMALL.model_copy(update={"processes": 2}), policy=chain.sft, pairs=pairs)
    assert what.key() == alone.key
    words = [sys.executable, "-m", "steps.reference", *argv(tmp_path, what, tmp_path / "shared")]
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        stdin=subprocess.PIPE,
    )
    assert done.returncode == 0, done.stderr
    assert Artifact.read(tmp_path / "shared", deep=True).digest == alone.digest


# --- whose it is -----------------------------------------------------------------------------------------------------


def test_a_reference_of_other_pairs_is_refused_by_the_names_of_the_rows(chain: TinyChain, tmp_path: Path) -> None:
    mine = pairs_artifact(tmp_path, [pair(n) for n in range(9)])
    changed = [pair(n, "yes", NO) if n in (1, 3) else pair(n) for n in range(7)]
    foreign = made_reference(tmp_path, DPO, policy=chain.sft, pairs=pairs_artifact(tmp_path, changed, "other"))
    with pytest.raises(DataError) as error:
        made(tmp_path, "dpo", DPO, policy=chain.sft, pairs=mine, reference=foreign)
    text = str(error.value)
    assert "pairs pair-1, pair-3: the reference scored other tokens of them: got another digest" in text
    assert "pairs pair-7, pair-8: the reference did not score them: got no row of this name" in text
    assert "make the reference of these pairs" in text


def test_a_reference_with_other_limits_is_refused(chain: TinyChain, tmp_path: Path) -> None:
    pairs = pairs_artifact(tmp_path, [pair(0), pair(1, YES, "no " * 90)])
    short = made_reference(tmp_path, DPO, policy=chain.sft, pairs=pairs)
    with pytest.raises(DataError, match="pairs pair-1: the reference did not score them"):
        made(tmp_path, "dpo", with_train(DPO, too_long="truncate"), policy=chain.sft, pairs=pairs, reference=short)


def test_more_rows_than_are_trained_on_do_no_harm(chain: TinyChain, tmp_path: Path) -> None:
    many = pairs_artifact(tmp_path, [pair(n) for n in range(9)], "many")
    scored = made_reference(tmp_path, DPO, policy=chain.sft, pairs=many)
    few = pairs_artifact(tmp_path, [pair(n) for n in range(4, 8)], "few")
    result = made(tmp_path, "dpo", with_train(DPO, max_updates=2), policy=chain.sft, pairs=few, reference=scored)
    assert result.manifest["metrics"]["first_loss"] == pytest.approx(math.log(2), abs=1e-3)


def other_policy(chain: TinyChain, root: Path) -> Artifact:
    return made(root, "sft", with_train(SFT, max_updates=6), base=chain.pretrain, chats=chain.data, seed=3)


def test_a_reference_of_another_policy_or_precision_is_refused_before_a_model_is_loaded(
    chain: TinyChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = pairs_artifact(tmp_path, [pair(n) for n in range(4)])
    bfloat = with_train(DPO, precision="bfloat16")
    foreign = made_reference(tmp_path, bfloat, policy=other_policy(chain, tmp_path), pairs=pairs)
    monkeypatch.setattr(dpo.starts, "load", None)
    with pytest.raises(
        ArtifactError, match=r"the reference is another model .*: got policy \w{12} for \w{12}, precision b"
    ) as error:
        made(tmp_path, "dpo", DPO, policy=chain.sft, pairs=pairs, reference=foreign)
    assert "precision bfloat16 for auto" in str(error.value)
    with pytest.raises(PreflineError, match=r"is no reference: got FileNotFoundError for policy\.json"):
        made(tmp_path, "dpo", DPO, policy=chain.sft, pairs=pairs, reference=chain.sft)


def test_numbers_of_another_policy_stop_at_the_first_loss(chain: TinyChain, tmp_path: Path) -> None:
    """All names are right, the numbers are another model's: a machine that computes wrongly, or somebody's hand."""
    pairs = pairs_artifact(tmp_path, [pair(n) for n in range(4)])
    right = made_reference(tmp_path, DPO, policy=chain.sft, pairs=pairs)
    foreign = made_reference(tmp_path, DPO, policy=other_policy(chain, tmp_path), pairs=pairs)
    work = work_folder(tmp_path / "reference" / "forged")
    work.mkdir(parents=True)
    shutil.copy(right.path / "policy.json", work)
    shutil.copy(foreign.path / "logps.parquet", work)
    rows = {"in": {}, "out": {}, "dropped": {}}
    facts = {"step": "reference", "key": "reference/forged", "inputs": {}, "config": {}, "rows": rows}
    forged = publish(work, tmp_path / "reference" / "forged", facts)
    with pytest.raises(TrainingError, match="first dpo loss is .* with the reference made of it"):
        made(tmp_path, "dpo", DPO, policy=chain.sft, pairs=pairs, reference=forged)


# --- what it depends on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        {"beta": 0.5},
        {"loss": {"type": ["ipo"]}},
        {"loss": {"ld_alpha": 0.3}},
        {"lora": {"rank": 4, "dropout": 0.1, "dora": True}},
        {"lora": {"init": "mica"}},
        {"method": "full"},
        {"method": "adalora"},
        {"method": "ia3"},
        {"method": "llama_adapter"},
        {"train": {"lr": 1.0, "epochs": 9, "batch_size": 1, "tokens_per_pass": 64, "processes": 1}},
    ],
    ids=lambda words: next(iter(words)) + str(next(iter(words.values())))[:12],
)
def test_sweeps_have_one_reference(words: dict[str, Any]) -> None:
    from steps.lib.config import key_view

    plain, other = DpoConfig(), DpoConfig.model_validate(words)
    one, two = (key_view(ReferenceConfig.of(config, config.train)) for config in (plain, other))
    assert one == two


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ({"method": "qlora", "lora": {"rank": 4}}, {"method": "qlora"}),
        ({"method": "qlora", "qlora": {"bits": 8}}, {"method": "qlora", "qlora": {"bits": 8}}),
        ({"lora": {"init": "pissa", "rank": 4}}, {"lora": {"init": "pissa", "rank": 4}}),
        (
            {"method": "prompt", "prompt": {"tokens": 3}, "lora": {"rank": 2}},
            {"method": "prompt", "prompt": {"tokens": 3}},
        ),
        ({"method": "p_tuning_v2", "prefix": {"tokens": 3}}, {"method": "p_tuning_v2", "prefix": {"tokens": 3}}),
    ],
)
def test_what_changes_the_start_is_kept(words: dict[str, Any], kept: dict[str, Any]) -> None:
    assert starts.of(AnyMethod.model_validate(words)) == AnyMethod.model_validate(kept)
    assert starts.of(starts.of(AnyMethod.model_validate(words))) == AnyMethod.model_validate(kept)


@pytest.mark.parametrize("name", ["max_length", "too_long", "precision"])
def test_what_decides_the_rows_is_dpo_s(name: str) -> None:
    value = {"max_length": 17, "too_long": "truncate", "precision": "bfloat16"}[name]
    config = with_train(DPO, **{name: value})
    assert getattr(ReferenceConfig.of(config, config.train), name) == value
