"""Every check before the first update fires on its fault, and on nothing else; the failure gallery is what they say."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import failures
import minimal
import pytest
from minimal import DPO, ROOT, SFT, TinyChain, chats, data_artifact, made, pair, pairs_artifact, turn, with_train

from steps import dpo, pretrain, sft
from steps.lib import adapters, chat, checkpoints, footprint, packed, pair_rows
from steps.lib.errors import ArtifactError, DataError, TrainingError
from steps.lib.intake import ids_of
from steps.lib.preflight import Findings
from steps.lib.rows import Chat, Dropped, Pair, read_parquet

pytestmark = pytest.mark.tiny
PAGE = ROOT / "docs" / "failures.md"


def test_the_failure_gallery_is_what_the_checks_say(chain: TinyChain, tmp_path: Path) -> None:
    found = failures.page(tmp_path, chain)
    if os.environ.get("PREFLINE_FAILURES") == "write":
        PAGE.write_text(found, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == found, "PREFLINE_FAILURES=write writes it"


@pytest.mark.parametrize("case", failures.CASES, ids=lambda case: case.title)
def test_each_fault_has_one_kind_of_message_in_the_houses_form(
    case: failures.Case, request: Any, tmp_path: Path
) -> None:
    lines = failures.said(case, tmp_path, request.getfixturevalue("chain") if case.chain else None)
    assert lines
    for line in "\n".join(lines).splitlines():
        if "problems before the first update:" in line or "problems with what was saved:" in line:
            continue
        for part in (": got ", "because "):
            assert part in line, line
        assert ";" in line, f"no way out: {line}"


def test_sound_rows_give_no_word(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for found in (
        failures.sft_rows(failures.chats(), tmp_path / "a"),
        failures.dpo_rows(failures.pairs(), tmp_path / "b"),
    ):
        found.stop()
        assert found.warnings == []
    found.loading(failures.ROOT, "float32")  # no weights: nothing to hold
    found._disk(failures.model(), minimal.context(tmp_path / "c").resume)
    found._memory(failures.model(), SFT.train, 4096, None)
    found.stop()


# --- one error ----------------------------------------------------------------------------------------------------------


def test_a_step_stops_with_one_error_of_everything_and_publishes_nothing(chain: TinyChain, tmp_path: Path) -> None:
    """Rows of two kinds, the policy for long rows, and what the template does not mind; the ids are there."""
    rows = chats(12)
    rows[2] = rows[2].model_copy(update={"messages": rows[2].messages[:-1]})
    rows[5] = rows[5].model_copy(update={"messages": rows[5].messages[:-1]})
    rows[7] = rows[7].model_copy(update={"messages": rows[7].messages[-1:]})
    rows[9] = rows[9].model_copy(update={"messages": [turn("user", "why " * 60), rows[9].messages[-1]]})
    data = data_artifact(tmp_path, chats=rows)
    with pytest.raises(DataError) as caught:
        made(tmp_path, "sft", with_train(SFT, too_long="error"), base=chain.pretrain, chats=data)
    head, *lines = str(caught.value).splitlines()
    assert head == "3 problems before the first update:"
    assert lines[0].startswith("chats chat-2, chat-5: conversation without an assistant turn: got roles")
    assert lines[1].startswith("chats chat-7: conversation starts with the assistant: got no turn before")
    assert lines[2].startswith("1 of 12 chats are longer than max_length: got up to 254 tokens (chat-9), because")
    assert not [path for path in (tmp_path / "sft").iterdir() if not path.name.startswith(".")]
    [work] = (tmp_path / "sft").glob(".*.partial")
    kept = {row.id: row.reason for row in read_parquet(work / "dropped.parquet", Dropped)}
    assert kept == {"chat-2": "unusable", "chat-5": "unusable", "chat-7": "unusable", "chat-9": "too_long"}
    assert not (work / "record" / "history.jsonl").exists(), "before the first update"


def test_rows_alone_are_a_data_error_and_a_machine_makes_it_a_training_error() -> None:
    found = Findings()
    found.stop()
    found.row("chats", "a", "empty: got nothing; do it")
    with pytest.raises(DataError, match="^chats a: empty: got nothing; do it$"):
        found.stop()
    found.error("disk is full: got 0; free some")
    with pytest.raises(
        TrainingError, match=r"^2 problems before the first update:\nchats a: empty: .*\ndisk is full: "
    ):
        found.stop()


def test_warnings_are_logged_and_on_record(chain: TinyChain, tmp_path: Path) -> None:
    rows = [pair(n, '{"ok": "yes"}', '{"ok":"YES"}') for n in range(3)] + [pair(n) for n in range(3, 9)]
    result = made(
        tmp_path, "dpo", with_train(DPO, max_updates=2), policy=chain.sft, pairs=pairs_artifact(tmp_path, rows)
    )
    record = json.loads((result.path / "record" / "preflight.json").read_text())
    [warned] = record["warnings"]
    assert warned.startswith("pairs differ by format only: got 3 of 9 (pair-0, pair-1, pair-2), because")
    logged = [json.loads(line) for line in (result.path / "record" / "log.jsonl").read_text().splitlines()]
    assert [line["message"] for line in logged if line["message"] == warned]
    metrics = result.manifest["metrics"]
    assert metrics["warnings"] == 1 and metrics["format_only_pairs"] == 3
    assert record["here"]["disk_free_bytes"] > record["here"]["checkpoint_bytes"] > 0


# --- rows that are too long ---------------------------------------------------------------------------------------------


def test_a_cut_chat_ends_behind_the_last_answer_that_fits(tmp_path: Path) -> None:
    """Against cutting by hand: at every length, what is left of three turns."""
    tokenizer = failures.tokenizer()
    turns = [*failures.chats()[0].messages, *failures.chats()[1].messages[1:], *failures.chats()[2].messages[1:]]
    whole = chat.encode(tokenizer, turns)
    ends = [len(chat.encode(tokenizer, turns[:n]).input_ids) for n in (3, 5, 7)]
    first = whole.labels.index(next(label for label in whole.labels if label != chat.IGNORE))
    for length in range(1, len(whole.input_ids) + 1):
        left = whole.cut(length)
        fitting = [end for end in ends if end <= length]
        if fitting:
            assert left == chat.encode(tokenizer, turns[: 1 + 2 * len(fitting)])
        elif length <= first:
            assert left is None
        else:
            assert left and left.input_ids == whole.input_ids[:length] and left.labels == whole.labels[:length]
            assert tokenizer.eos_token_id not in left.labels, "nothing teaches it to stop there"


def test_cut_chats_are_trained_on_and_kept_whole(chain: TinyChain, tmp_path: Path) -> None:
    rows = chats(6)
    rows[1] = rows[1].model_copy(
        update={"messages": [*rows[1].messages, turn("user", "why " * 60), turn("assistant", "so")]}
    )
    rows[2] = rows[2].model_copy(update={"messages": [*rows[2].messages[:-1], turn("assistant", "yes " * 90)]})
    rows[3] = rows[3].model_copy(update={"messages": [turn("user", "why " * 60), rows[3].messages[-1]]})
    config = with_train(SFT, max_updates=1, warmup=0.0, too_long="truncate")
    result = made(tmp_path, "sft", config, base=chain.pretrain, chats=data_artifact(tmp_path, chats=rows))
    assert result.manifest["rows"] == {
        "in": {"chats": 6},
        "out": {"trained": 3, "truncated": 2},
        "dropped": {"chats": {"too_long": 1}},
    }
    cut = {row.id: row for row in read_parquet(result.path / "truncated.parquet", Dropped)}
    assert set(cut) == {"chat-1", "chat-2"} and cut["chat-2"].detail.endswith("limit 96, trained on 96")
    assert Chat.model_validate_json(cut["chat-1"].row) == rows[1], "whole"
    [dropped] = read_parquet(result.path / "dropped.parquet", Dropped)
    assert (dropped.id, dropped.reason) == ("chat-3", "too_long") and "nothing to learn before it" in dropped.detail
    from steps.lib import models

    tokenizer = models.load_tokenizer(chain.pretrain.path / "model")
    short = sum(len(chat.encode(tokenizer, chats(6)[n].messages).input_ids) for n in (0, 1, 4, 5))
    assert result.manifest["tokens"] == short + 96


def test_cut_pairs_lose_their_ends_and_equal_ones_go(tmp_path: Path) -> None:
    tokenizer, rows = failures.tokenizer(), list(failures.pairs()[:4])
    text = rows[0].chosen[0].content
    rows[1] = failures.with_answer(rows[1], chosen=text * 20 + "!", rejected=text * 20 + "?")  # equal once cut
    rows[2] = failures.with_answer(rows[2], chosen=text * 20, rejected="no")
    rows[3] = rows[3].model_copy(update={"prompt": [turn("user", "why " * 300)]})
    found = Findings()
    config = dpo.DpoConfig.model_validate({"train": {"max_length": 256, "too_long": "truncate"}})
    kept, metrics = pair_rows.encode("dpo", config.train, tokenizer, rows, tmp_path, found)
    made_rows = kept.rows
    assert metrics.rows.dump()["dropped"] == {"pairs": {"equal_pair": 1, "too_long": 1}}
    assert metrics.rows.dump()["out"] == {"trained": 1, "truncated": 1}
    prompt, chosen = chat.encode_pair(tokenizer, rows[2].prompt, rows[2].chosen)
    assert made_rows[1]["chosen_ids"] == chosen[: 256 - len(prompt)] and len(made_rows[1]["chosen_ids"]) < len(chosen)
    assert made_rows[1]["rejected_ids"] == chat.encode_pair(tokenizer, rows[2].prompt, rows[2].rejected)[1], (
        "it fits whole"
    )
    assert [row.id for row in read_parquet(tmp_path / "truncated.parquet", Dropped)] == [rows[2].id]


@pytest.mark.parametrize("policy", ["drop", "truncate", "error"])
def test_rows_that_fit_are_the_same_under_every_policy(policy: str, tmp_path: Path) -> None:
    config = sft.SftConfig.model_validate({"train": {"max_length": 512, "too_long": policy}})
    rows, _ = sft._encode(config, failures.tokenizer(), failures.chats(), tmp_path, Findings())
    assert rows == [
        packed.row([(one.input_ids, one.labels)])
        for one in (chat.encode(failures.tokenizer(), row.messages) for row in failures.chats())
    ]


# --- pairs and tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "longer", "warned"), [(1.0, 6, False), (1.0, 12, True), (1.6, 7, True), (0.6, 5, True)]
)
def test_length_bias_is_the_share_and_the_geometric_mean(ratio: float, longer: int, warned: bool) -> None:
    """Twelve pairs around the ratio, so many of which have the longer chosen side."""
    lengths = [(round(1000 * ratio * (1.02 if n < longer else 0.98)), 1000) for n in range(12)]
    found = Findings()
    found.pairs([pair(n) for n in range(12)], lengths)
    assert found.values["length_ratio"] == pytest.approx(math.prod(a / b for a, b in lengths) ** (1 / 12), abs=1e-3)
    assert found.values["chosen_longer_share"] == pytest.approx(sum(a > b for a, b in lengths) / 12, abs=1e-4)
    assert bool(found.warnings) == warned


def test_equal_lengths_and_few_pairs_are_no_bias() -> None:
    found = Findings()
    found.pairs([pair(n) for n in range(20)], [(7, 7)] * 20)
    found.pairs([pair(n) for n in range(9)], [(30, 7)] * 9)
    found.pairs([], [])
    assert found.warnings == []


def test_no_supervised_token_is_an_error() -> None:
    found = Findings()
    found.supervised(0, 100)
    with pytest.raises(DataError, match="no token carries loss: got 0 of 100, because"):
        found.stop()


@pytest.mark.parametrize("other", ["**Yes**, it is.", "yes it is", " Yes,\nit is!", "- Yes, it is"])
def test_what_is_format_alone(other: str) -> None:
    found = Findings()
    found.pairs([pair(0, "Yes, it is.", other), pair(1, "Yes, it is.", "Yes, it was.")], [(5, 6), (5, 6)])
    assert found.values["format_only_pairs"] == 1


def test_ids_are_cut_short() -> None:
    assert ids_of(["a", "b"]) == "a, b" and ids_of(list("abcdefg")) == "a, b, c, d, e and 2 more"


# --- disk and memory ----------------------------------------------------------------------------------------------------


def _loaded(chain: TinyChain) -> Any:
    from steps.lib import models

    return models.load_model(chain.pretrain.path / "model")


@pytest.mark.parametrize("name", ["sft", "dpo", "pretrain"])
def test_a_checkpoint_is_as_large_as_was_said(chain: TinyChain, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    context = minimal.context(out)
    if name == "sft":
        sft.run(
            with_train(SFT, max_updates=4, save_every=2),
            base=chain.pretrain.path,
            chats=chain.data.path,
            out=out,
            context=context,
        )
    elif name == "dpo":
        inputs = {"policy": chain.sft.path, "pairs": chain.pairs.path, "reference": chain.reference.path}
        dpo.run(with_train(DPO, max_updates=4), **inputs, out=out, context=context)
    else:
        config = with_train(minimal.PRETRAIN, max_updates=4)
        pretrain.run(config, base=chain.base.path, corpus=chain.data.path, out=out, context=context)
    said = json.loads((out / "record" / "preflight.json").read_text())["here"]["checkpoint_bytes"]
    folders = checkpoints.marked(out / ".resume")
    assert len(folders) == checkpoints.KEEP
    for folder in folders:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert said - footprint.CHECKPOINT_REST < size < said, (
            size,
            said,
            sorted(path.name for path in folder.iterdir()),
        )


def test_what_is_kept_already_needs_no_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = minimal.context(tmp_path)
    model = failures.model()
    one = footprint.of_checkpoint(model)
    real = failures.shutil.disk_usage
    monkeypatch.setattr(failures.shutil, "disk_usage", lambda path: real(path)._replace(free=2 * one))
    found = Findings()
    found._disk(model, context.resume)
    assert len(found.errors) == 1
    (checkpoints.kept(context.resume) / "checkpoint-2").mkdir(parents=True)
    (checkpoints.kept(context.resume) / "checkpoint-2" / "optimizer.pt").write_bytes(bytes(one))
    again = Findings()
    again._disk(model, context.resume)
    assert again.errors == []


@pytest.mark.fault
def test_a_small_disk_stops_the_step_before_its_first_update(chain: TinyChain, tmp_path: Path) -> None:
    """A real file system of 200 kB, on which the first save would have failed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: it takes root")
    try:
        with pytest.raises(ArtifactError, match=r"the store has no room for checkpoints: got \d.* KiB free at "):
            made(disk, "sft", SFT, base=chain.pretrain, chats=chain.data)
        assert not [path for path in disk.glob("sft/*") if not path.name.startswith(".")]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)  # the step's log is still open


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("shape", "kind", "method"),
    [*itertools.product([(64, 128, 3), (192, 512, 4)], ["float32", "bfloat16"], ["full", "lora"])],
)
def test_activations_are_what_autograd_keeps(shape: tuple[int, int, int], kind: str, method: str) -> None:
    """The oracle: bytes of all tensors that are saved for the backward pass, but for the weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, inner, layers = shape
    config = LlamaConfig(
        vocab_size=400, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(getattr(torch, kind))
    if method == "lora":
        model = adapters.with_lora(model, adapters.LoraSettings(rank=8))
    packed.prepared(model).train()
    inner_model = model.get_base_model() if method == "lora" else model
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def kept(tokens: int) -> int:
        held: dict[int, Any] = {}

        def note(tensor: Any) -> Any:
            if tensor.untyped_storage().data_ptr() not in weights:
                held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            inner_model.base_model(input_ids=torch.randint(0, 400, (1, tokens)), use_cache=False)
            return sum(tensor.untyped_storage().nbytes() for tensor in held.values())

    real = 2 * (kept(256) - kept(128))  # what does not grow with tokens aside
    assert 0.9 * real < footprint.activations(model, 256, checkpointing=False) < 1.4 * real
    assert footprint.activations(model, 256, checkpointing=True) < footprint.activations(
        model, 256, checkpointing=False
    )


def test_the_weights_of_a_file_are_those_of_the_model(chain: TinyChain) -> None:
    model = _loaded(chain)
    real = sum(p.numel() * 4 for p in model.parameters())
    folder = chain.pretrain.path / "model"
    assert footprint.of_weights(folder, "float32") == real
    assert footprint.of_weights(folder, "bfloat16") == real // 2
    assert real / 8 < footprint.of_weights(folder, "float32", bits=4) < real / 2


def test_the_largest_pass() -> None:
    settings = with_train(SFT, batch_size=4, accumulation=2, tokens_per_pass=100).train
    assert footprint.packed_pass(settings, [10] * 3) == 30, "all there is"
    assert footprint.packed_pass(settings, [10] * 8 + [30] * 8) == 100, "as many as a pass takes"
    assert footprint.packed_pass(settings, [10, 10, 250]) == 250, "a longer sequence goes alone"
    assert footprint.batch_pass(settings, [10, 20, 30, 40, 50]) == 140
    assert footprint.packed_pass(settings, []) == footprint.batch_pass(settings, []) == 0


def test_the_memory_of_a_container_counts(tmp_path: Path) -> None:
    assert footprint._allowance(tmp_path) == []
    for name, text in (
        ("memory.max", "1000\n"),
        ("memory.current", "700\n"),
        ("memory.stat", "inactive_file 50\nactive_file 20\n"),
    ):
        (tmp_path / name).write_text(text)
    assert footprint._allowance(tmp_path) == [370]
    (tmp_path / "memory.max").write_text("max\n")
    assert footprint._allowance(tmp_path) == []
    assert footprint.free_memory() > 1 << 20


def test_a_step_says_what_does_not_fit(chain: TinyChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that do fit, and a run that does not: on the machine's own word, made smaller."""
    monkeypatch.setattr(footprint, "free_memory", lambda: 300_000)
    with pytest.raises(
        TrainingError, match="training does not fit into memory: got 293.0 KiB free beside the weights, because"
    ):
        made(tmp_path, "sft", SFT, base=chain.pretrain, chats=chain.data)
    monkeypatch.setattr(footprint, "free_memory", lambda: 1000)
    with pytest.raises(TrainingError, match="weights do not fit into memory: got 1.0 KiB free, because model takes"):
        made(tmp_path, "dpo", DPO, policy=chain.sft, pairs=chain.pairs)


def test_pairs_rows_are_whole_in_the_record(tmp_path: Path) -> None:
    rows = [*failures.pairs()[:2], failures.with_answer(failures.pairs()[2], chosen="", rejected="x")]
    pair_rows.encode("dpo", DPO.train, failures.tokenizer(), rows, tmp_path, Findings())
    kept = {row.id: row for row in read_parquet(tmp_path / "dropped.parquet", Dropped)}
    assert kept[rows[2].id].reason == "empty_answer" and Pair.model_validate_json(kept[rows[2].id].row) == rows[2]
