"""Every method on the tiny model: what it trains, that it learns, what it saves, what merges, what resumes, what is refused."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from minimal import BASE, FEW, ROOT, TinyChain, chats, context, data_artifact, made, with_train
from training_runs import losses

from steps.dpo import DpoConfig
from steps.lib import (
    adalora,
    adapters,
    chat,
    inference,
    methods,
    model_files,
    models,
    packed,
    packing,
    refusals,
    runtime,
)
from steps.lib.config import layers_of, load
from steps.lib.errors import ConfigError, Resumable
from steps.lib.layers import Layer
from steps.lib.step import config_class, module_of
from steps.lib.training import fit
from steps.pretrain import PretrainConfig
from steps.sft import SftConfig

pytestmark = [
    pytest.mark.tiny,
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]
UPDATES = 10
LORA = {"rank": 4, "alpha": 8}
CASES: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "lr": 3e-3},
    "lora": {"lora": {**LORA, "dropout": 0.1}},
    "rslora": {"lora": {**LORA, "rslora": True}},
    "dora": {"lora": {**LORA, "dora": True}},
    "gaussian": {"lora": {**LORA, "init": "gaussian"}},
    "orthogonal": {"lora": {**LORA, "init": "orthogonal"}},
    "pissa": {"lora": {**LORA, "init": "pissa"}, "lr": 3e-3},
    "pissa fast": {"lora": {**LORA, "init": "pissa", "iterations": 4, "rslora": True}, "lr": 3e-3},
    "olora": {"lora": {**LORA, "init": "olora"}, "lr": 1e-3},
    "mica": {"lora": {**LORA, "init": "mica"}, "lr": 3e-2},
    "qlora": {"method": "qlora", "lora": LORA},
    "qlora 8 bits": {"method": "qlora", "lora": LORA, "qlora": {"bits": 8}},
    "adalora": {"method": "adalora", "adalora": {"rank": 2, "initial_rank": 4, "alpha": 16}, "lr": 2e-2},
    "ia3": {"method": "ia3", "lr": 5e-2},
    "ia3 named": {"method": "ia3", "ia3": {"targets": ["q_proj", "up_proj"], "feedforward": ["up_proj"]}, "lr": 5e-2},
    "llama_adapter": {"method": "llama_adapter", "llama_adapter": {"tokens": 4}, "lr": 5e-2},
    "prompt": {"method": "prompt", "prompt": {"tokens": 6}, "lr": 5e-2},
    "prompt text": {"method": "prompt", "prompt": {"tokens": 6, "init": "text", "text": "JSON, yes!"}, "lr": 5e-2},
    "prefix": {"method": "prefix", "prefix": {"tokens": 6, "hidden": 16}, "lr": 2e-2},
    "p_tuning": {"method": "p_tuning", "p_tuning": {"tokens": 6, "hidden": 16}, "lr": 1e-2},
    "p_tuning lstm": {"method": "p_tuning", "p_tuning": {"tokens": 6, "hidden": 16, "encoder": "lstm"}, "lr": 1e-2},
    "p_tuning_v2": {"method": "p_tuning_v2", "prefix": {"tokens": 6}, "lr": 5e-2},
}
TRAINED = {
    "full": "model.",
    "lora": "lora_",
    "qlora": "lora_",
    "adalora": "lora_",
    "ia3": "ia3_l",
    "llama_adapter": "adaption_",
    "prompt": "prompt_encoder",
    "prefix": "prompt_encoder",
    "p_tuning": "prompt_encoder",
    "p_tuning_v2": "prompt_encoder",
}
"""Method -> what stands in the name of every weight that it trains."""


def config_of(case: str) -> SftConfig:
    fields = {name: value for name, value in CASES[case].items() if name != "lr"}
    train = {**FEW, "lr": CASES[case].get("lr", 1e-2), "max_updates": UPDATES, "batch_size": 8, "save_every": 100}
    return SftConfig.model_validate({**fields, "train": train})


def wide(chain: TinyChain) -> Any:
    """The blocks of bitsandbytes' CPU backend are 64 weights long, and it packs whole rows of them."""
    shape = BASE.model_copy(update={"tiny": BASE.tiny.model_copy(update={"hidden_size": 64})})
    return made(chain.root, "base", with_train(shape, max_updates=60), corpus=chain.data)


def base_of(chain: TinyChain, case: str) -> Any:
    if "qlora" in case:
        pytest.importorskip("bitsandbytes", reason="the extra prefline[qlora] is not installed")
        return wide(chain)
    return chain.pretrain


def trainer_of(chain: TinyChain, case: str, out: Path, track: Any = None) -> tuple[Any, SftConfig, Any]:
    """A trainer on sixteen chats, as sft makes one."""
    config, artifact = config_of(case), base_of(chain, case)
    folder = artifact.path / "model"
    run = context(out, track=track)
    runtime.seed_torch(0)
    tokenizer = models.load_tokenizer(folder)
    encoded = [chat.encode(tokenizer, row.messages) for row in chats()]
    rows = [packed.row([(one.input_ids, one.labels)]) for one in encoded]
    model = adapters.start(config, folder, "auto", updates=UPDATES)
    return packed.trainer(model, rows, tokenizer, config.train, run), config, run


@dataclass
class Run:
    """One training run of a case."""

    model: Any
    """As it was trained."""
    out: Path
    """The artifact."""
    values: dict[str, Any]
    """What fit said."""
    first: dict[str, Any]
    """Name -> weight before the first update."""
    names: set[str]
    """Of the weights that were to be trained."""


@pytest.fixture(scope="module")
def trained(chain: TinyChain, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """case -> its run, each trained once."""

    @cache
    def build(case: str) -> Run:
        out = tmp_path_factory.mktemp("store") / "sft" / case.replace(" ", "-")
        trainer, config, run = trainer_of(chain, case, out)
        weights = dict(trainer.model.named_parameters())
        names = {name for name, p in weights.items() if p.requires_grad}
        first = {name: p.detach().clone() for name, p in weights.items()}
        values = fit(trainer, config.train, run, out)
        artifact = base_of(chain, case)
        tokenizer = models.load_tokenizer(artifact.path / "model")
        stage = models.Stage(step="sft", digest="d")
        adapters.save(trainer.model, config.method, out, artifact.path, stage, tokenizer)
        return Run(trainer.model, out, values, first, names)

    return build


IDS = torch.tensor([[5, 9, 200, 31, 77, 6, 11], [8, 3, 150, 12, 90, 14, 7]])


def logits(model: Any) -> Any:
    """Of the real tokens, (2, 7, V)."""
    model.eval()
    with torch.no_grad():
        found = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return found[:, -IDS.shape[1] :].float()


@pytest.mark.parametrize("case", CASES)
def test_it_learns_and_only_what_should_train_does(trained: Any, case: str) -> None:
    run, method = trained(case), config_of(case).method
    assert run.names and all(TRAINED[method] in name for name in run.names)
    assert ("lora_B" in "".join(run.names)) == (method in ("lora", "qlora", "adalora") and case != "mica")
    assert run.values["loss_last"] < 0.97 * run.values["loss_first"], run.values
    after = dict(run.model.named_parameters())
    still = {name for name, p in run.first.items() if torch.equal(p, after[name])}
    frozen = run.first.keys() - run.names
    assert frozen <= still and all(after[name].grad is None for name in frozen)
    if case == "adalora":  # a matrix may have lost all its ranks
        assert all("lora_E" in name and not after[name].any() for name in still - frozen)
    else:
        assert still == frozen


@pytest.mark.parametrize("case", [case for case in CASES if "qlora" not in case])
def test_a_fresh_adapter_leaves_the_model_as_it_was(chain: TinyChain, case: str) -> None:
    """But for what stands before the sequence, which is seen from the start."""
    folder = chain.pretrain.path / "model"
    runtime.seed_torch(0)
    model = adapters.start(config_of(case), folder, "auto", updates=UPDATES)
    expected = logits(models.load_model(folder))
    same = torch.allclose(logits(model), expected, atol=2e-4)
    assert same == (TRAINED[config_of(case).method] != "prompt_encoder")


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_loads_as_the_trained_model(trained: Any, case: str) -> None:
    model, out = trained(case).model, trained(case).out
    config = config_of(case)
    again = models.load_policy(out, quantize=config.quantize)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-3, atol=1e-3)
    [stage] = models.Chain.read(out).stages
    assert (stage.step, stage.method) == ("sft", config.method)
    models.check_base(out)
    files = [path for path in out.rglob("*") if path.is_file() and ".resume" not in path.parts]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jsonl", ".jinja"}, "no pickle"
    assert (out / "model").exists() == (config.method == "full") != (out / "adapter").exists()


@pytest.mark.parametrize("case", [case for case in CASES if case != "full"])
def test_the_published_settings_name_the_base_and_nothing_of_the_training(trained: Any, case: str) -> None:
    out = trained(case).out
    found = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert Path(found["base_model_name_or_path"]) == models.model_folder(out)
    assert found["peft_type"] == methods.METHODS[config_of(case).method].kind and found["inference_mode"]
    for name in ("target_modules", "feedforward_modules"):
        assert found.get(name) is None or found[name] == sorted(found[name]) or isinstance(found[name], str)
    assert not found.get("tokenizer_name_or_path") and not found.get("encoder_hidden_size")
    assert case not in ("pissa", "olora") or (found["r"], found["lora_alpha"]) == (8, 16)
    assert case == "mica" or found.get("init_lora_weights", True) is True


@pytest.mark.parametrize("case", CASES)
def test_merged_equals_the_adapter_where_it_merges(trained: Any, case: str) -> None:
    model, out = trained(case).model, trained(case).out
    whole = models.load_merged(out)
    method, quantize = methods.METHODS[config_of(case).method], config_of(case).quantize
    assert hasattr(whole, "peft_config") != method.merges
    torch.testing.assert_close(logits(whole), logits(models.load_policy(out)), rtol=1e-3, atol=1e-3)
    if "qlora" in case:  # trained on quantised weights, put into those that were not: near, not equal
        folder = models.model_folder(out)
        error = (logits(whole) - logits(model)).abs().mean()
        rounding = logits(models.load_model(folder)) - logits(models.load_model(folder, quantize=quantize))
        assert 0 < error < 1.5 * rounding.abs().mean()


@pytest.mark.parametrize(
    "case", ["adalora", "mica", "pissa", "ia3", "llama_adapter", "prompt", "prefix", "p_tuning lstm"]
)
def test_stopped_and_resumed_equals_uninterrupted(trained: Any, chain: TinyChain, case: str, tmp_path: Path) -> None:
    """A checkpoint holds the encoder of a prompt, AdaLoRA's masked ranks and what its allocator remembers."""
    whole, values = trained(case).model, trained(case).values

    def stop(shown: Any, step: int | None = None) -> None:
        if step == UPDATES // 2:
            os.kill(os.getpid(), signal.SIGTERM)

    cut, config, run = trainer_of(chain, case, tmp_path, track=stop)
    with pytest.raises(Resumable):
        fit(cut, config.train, run, tmp_path)
    again, config, run = trainer_of(chain, case, tmp_path)
    resumed = fit(again, config.train, run, tmp_path)
    assert resumed["loss_last"] == values["loss_last"] and again.state.global_step == UPDATES
    expected = dict(whole.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in again.model.named_parameters())
    for attribute in adalora.MEMORY if case == "adalora" else ():
        one, two = (getattr(m.base_model.rankallocator, attribute) for m in (again.model, whole))
        assert one.keys() == two.keys()


def test_a_pass_without_gradients_does_not_take_them_from_qlora(chain: TinyChain) -> None:
    """dpo asks for the reference first. bitsandbytes then packs the weights of a CPU, and no gradient goes through them."""
    folder = base_of(chain, "qlora").path / "model"
    runtime.seed_torch(0)
    model = adapters.start(config_of("qlora"), folder, "auto", updates=UPDATES)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_()

    def gradients() -> list[Any]:
        model.zero_grad()
        model.train()
        model(input_ids=IDS, labels=IDS).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    before = gradients()
    logits(model)
    for old, new in zip(before, gradients(), strict=True):
        torch.testing.assert_close(new, old)


def test_adalora_takes_ranks_away_and_saves_the_rest(trained: Any) -> None:
    from safetensors.torch import load_file

    model, out = trained("adalora").model, trained("adalora").out
    ranks = [len(p) for name, p in load_file(out / "adapter" / "adapter_model.safetensors").items() if "lora_E" in name]
    assert len(ranks) == 14 and sum(ranks) == 2 * 14 and min(ranks) < max(ranks) <= 4
    kept = [int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name]
    assert sorted(kept) == sorted(ranks)


def test_the_penalty_of_adalora_is_what_peft_adds_to_a_loss(chain: TinyChain) -> None:
    """And its gradient reaches the adapter with the loss of the update."""
    runtime.seed_torch(0)
    folder = chain.pretrain.path / "model"
    model = adapters.start(config_of("adalora"), folder, "auto", updates=UPDATES)
    plain = models.load_model(folder)
    expected = model(input_ids=IDS, labels=IDS).loss - plain(input_ids=IDS, labels=IDS).loss
    penalty = adalora.penalty(model)
    assert (
        float(penalty.detach()) == pytest.approx(float(expected.detach()), rel=1e-4) and float(penalty.detach()) > 0.1
    )
    assert adalora.penalty(plain) is None


@pytest.mark.parametrize("case", ["prompt", "prefix", "p_tuning", "p_tuning_v2", "llama_adapter", "ia3", "adalora"])
def test_scores_of_the_passes_are_those_of_each_row_alone(trained: Any, case: str) -> None:
    """Rows of their own where virtual tokens stand before each row, else packed; predictors count real tokens."""
    model, out = trained(case).model, trained(case).out
    rows = [list(range(7, 7 + n)) for n in (9, 4, 12, 2, 7)]
    collate = packed.Collator(packed.prepared(model), pad=0, tokens=24)
    passes = collate([packed.row([(ids, [-100, -100, *ids[2:]])]) for ids in rows])["passes"]
    own = packed.takes_rows(model)
    assert own == (case in ("llama_adapter", "ia3", "adalora")) and len(passes) > 1
    assert all((one["position_ids"] is not None) == own for one in passes)
    assert own or all(one["input_ids"].numel() <= 24 or len(one["input_ids"]) == 1 for one in passes)
    model.eval()
    found: dict[int, float] = {}
    with torch.no_grad():
        for one in passes:
            for token, logp in zip(one["targets"], packed.scores_of(model, one)["logps"], strict=True):
                found[int(token)] = found.get(int(token), 0.0) + float(logp)
    expected: dict[int, float] = {}
    alone = models.load_policy(out)
    for ids in rows:
        single = torch.tensor([ids])
        with torch.no_grad():
            every = torch.log_softmax(alone(input_ids=single).logits[0, -len(ids) :], -1)
        for place in range(2, len(ids)):
            expected[ids[place]] = expected.get(ids[place], 0.0) + float(every[place - 1, ids[place]])
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("case", ["lora", "adalora", "ia3", "llama_adapter", "prompt", "prefix", "p_tuning_v2", "full"])
def test_answers_and_scores_do_not_depend_on_neighbours(trained: Any, chain: TinyChain, case: str) -> None:
    model = models.load_merged(trained(case).out)
    tokenizer = models.load_tokenizer(chain.pretrain.path / "model")
    prompts = [chat.encode_prompt(tokenizer, row.messages[:-1]) for row in chats(3)] + [[5, 6], [9] * 30]
    greedy = inference.Sampling(0.0, 1.0, 8)
    together, alone = (
        inference.generate(model, tokenizer, prompts, greedy, seed=0, batch_size=size) for size in (len(prompts), 1)
    )
    assert together == alone and any(answer.tokens > 1 for answer in alone)
    rows = [(prompt, [7, 8, 9]) for prompt in prompts]
    many, one = (inference.sequence_logps(model, rows, batch_size=size) for size in (len(rows), 1))
    assert many == pytest.approx(one, abs=1e-3)
    for prompt, answer in zip(prompts, alone, strict=True):  # token by token, without a cache
        said = list(prompt)
        for _ in range(answer.tokens):
            ids = torch.tensor([said])
            with torch.no_grad():
                said.append(int(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].argmax()))
        assert tokenizer.decode(said[len(prompt) :], skip_special_tokens=True) == answer.text


def test_groups_hold_near_lengths_within_the_limit() -> None:
    lengths = [9, 4, 12, 2, 7, 40]
    found = packing.groups(lengths, 24)
    assert sorted(i for one in found for i in one) == list(range(6)) and found[-1] == [5]
    assert all(len(one) * max(lengths[i] for i in one) <= 24 or len(one) == 1 for one in found)


# --- dpo and pretrain -------------------------------------------------------------------------------------------------

POLICIES = ["full", "lora", "pissa", "mica", "adalora", "ia3", "llama_adapter", "prompt", "prefix", "p_tuning", "qlora"]


@pytest.mark.parametrize("case", POLICIES)
def test_dpo_goes_on_from_every_policy(trained: Any, chain: TinyChain, case: str, tmp_path: Path) -> None:
    """The reference is the policy as it was; the first loss is ln 2, the later ones fall, and the result loads."""
    from minimal import pair, pairs_artifact

    from steps.lib.artifact import Artifact

    out = trained(case).out
    config = config_of(case)
    train = {**FEW, "lr": config.train.lr / 2, "max_updates": 6, "warmup": 0.0, "accumulation": 2, "batch_size": 2}
    policy = Artifact(out, {"key": f"sft/{out.name}", "digest": f"d{out.name}"})
    again = DpoConfig.model_validate({"method": config.method, "qlora": config.qlora.model_dump(), "train": train})
    result = made(tmp_path, "dpo", again, policy=policy, pairs=pairs_artifact(tmp_path, [pair(n) for n in range(8)]))
    found = losses(result)
    extra = 0.5 * 2 if case == "adalora" else 0.0
    assert result.manifest["metrics"]["first_loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert math.log(2) - 1e-3 < found[0] < math.log(2) + 1e-3 + extra * 10 and found[-1] < found[0]
    before, after = (models.load_policy(path) for path in (out, result.path))
    assert (logits(before) - logits(after)).abs().max() > 1e-3
    stages = models.Chain.read(result.path).stages
    assert [stage.method for stage in stages] == [config.method] * 2
    assert not [path for path in result.path.rglob("*") if path.name in ("ref", "README.md")]


FRESH = [
    "lora",
    "dora",
    "orthogonal",
    "pissa",
    "mica",
    "adalora",
    "ia3",
    "llama_adapter",
    "prompt",
    "prefix",
    "p_tuning",
]


@pytest.mark.parametrize("case", FRESH)
def test_dpo_puts_a_fresh_adapter_on_a_policy_of_whole_weights(
    trained: Any, chain: TinyChain, case: str, tmp_path: Path
) -> None:
    from minimal import pair, pairs_artifact

    from steps.lib.artifact import Artifact

    out = trained("full").out
    fields = {name: value for name, value in CASES[case].items() if name != "lr"}
    train = {**FEW, "lr": 5e-3, "max_updates": 6, "warmup": 0.0}
    policy = Artifact(out, {"key": f"sft/{out.name}", "digest": "full"})
    config = DpoConfig.model_validate({**fields, "train": train})
    result = made(tmp_path, "dpo", config, policy=policy, pairs=pairs_artifact(tmp_path, [pair(n) for n in range(8)]))
    assert result.manifest["metrics"]["first_loss"] == pytest.approx(math.log(2), abs=1e-3)
    chained = models.Chain.read(result.path)
    assert chained.base == model_files.model_digest(out / "model") == models.Chain.read(out).base
    assert [stage.method for stage in chained.stages] == ["full", config.method]
    models.check_base(result.path)


@pytest.mark.parametrize("case", ["qlora", "qlora 8 bits", "adalora", "ia3", "dora", "olora"])
def test_pretrain_puts_what_merges_into_the_base(chain: TinyChain, case: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    fields = {name: value for name, value in CASES[case].items() if name != "lr"}
    config = PretrainConfig.model_validate(
        {**fields, "train": {**config_of(case).train.model_dump(), "max_updates": 4}}
    )
    base = base_of(chain, case)
    result = made(tmp_path, "pretrain", config, base=base, corpus=chain.data)
    old, new = (load_file(path / "model" / "model.safetensors") for path in (base.path, result.path))
    assert set(old) == set(new) and not (result.path / "adapter").exists()
    moved = {name.rpartition(".weight")[0].rpartition(".")[2] for name in old if (old[name] != new[name]).any()}
    assert moved == ({"k_proj", "v_proj", "down_proj"} if case == "ia3" else {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    })  # fmt: skip
    assert max(float((old[name] - new[name]).abs().max()) for name in old) < 1.0


# --- what cannot work ------------------------------------------------------------------------------------------------


def said(kind: Any, **fields: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load(kind, [Layer(fields, "made.yaml")])
    return str(error.value)


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        *(
            (PretrainConfig, {"method": name}, f"what {name} learns cannot be put into them; take one of full, lora, qlora, adalora, ia3")
            for name in ("prompt", "prefix", "p_tuning", "p_tuning_v2", "llama_adapter")
        ),
        (SftConfig, {"method": "qlora", "lora": {"init": "pissa"}}, "those of qlora are quantised; set lora.init to default"),
        (SftConfig, {"method": "prefix", "train": {"gradient_checkpointing": True}}, "the prefix stands in the cache"),
        (SftConfig, {"lora": {"init": "orthogonal", "rank": 5}}, "got an odd rank, because .*; set rank to 6"),
        (SftConfig, {"lora": {"init": "pissa", "dora": True}}, "dora is true with init pissa: got both"),
        (SftConfig, {"lora": {"iterations": 4}}, "only pissa has a fast SVD"),
        (SftConfig, {"adalora": {"rank": 8, "initial_rank": 8}}, "got no rank to take away, .*; set initial_rank to 13"),
        (SftConfig, {"adalora": {"start": 0.6, "end": 0.4}}, "got no update between them"),
        (SftConfig, {"ia3": {"targets": ["k_proj"], "feedforward": ["up_proj"]}}, "only a target can be one"),
        (SftConfig, {"prompt": {"init": "text"}}, "got one without the other"),
        (SftConfig, {"method": "bottleneck"}, "got 'bottleneck'"),
    ],
)  # fmt: skip
def test_what_the_configuration_shows_is_refused_when_it_is_loaded(kind: Any, fields: Any, words: str) -> None:
    assert re.search(words, said(kind, **fields)), said(kind, **fields)


def model_folder(root: Path, **fields: Any) -> Path:
    """A folder with the config of a checkpoint, and nothing else: a refusal loads no weights."""
    shape = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1}
    rest = {"intermediate_size": 64, "vocab_size": 50, "model_type": "llama"}
    (root / "config.json").write_text(json.dumps({**shape, **rest, **fields}))
    return root


@pytest.mark.parametrize(
    ("fields", "model", "words"),
    [
        ({"method": "llama_adapter"}, {"model_type": "qwen2"}, "sft.method is wrong: got llama_adapter for a model of type qwen2, "
         "because PEFT wraps the attention of llama and mistral only; set sft.method to lora"),
        ({"method": "llama_adapter"}, {"head_dim": 32}, "got llama_adapter for heads of 32 channels"),
        ({"method": "llama_adapter", "llama_adapter": {"layers": 3}}, {}, "llama_adapter.layers is wrong: got 3, because the model has 2"),
        ({"method": "ia3"}, {"model_type": "olmo2"}, "sft.ia3.targets is missing: got null, because PEFT does not know"),
        ({"lora": {"targets": ["q_proj", "query"]}}, {}, "sft.lora.targets is wrong: got query, because no matrix of the model ends "
         "with that name; take some of down_proj, gate_proj, k_proj"),
        ({"lora": {"init": "pissa", "rank": 17}}, {}, "sft.lora.rank is wrong: got 17 with init pissa, because the smallest matrix of "
         "the model has only 16"),
    ],
)  # fmt: skip
def test_what_the_model_shows_is_refused_before_a_weight_is_loaded(
    tmp_path: Path, fields: Any, model: Any, words: str
) -> None:
    folder = model_folder(tmp_path, **model)
    with pytest.raises(ConfigError) as error:
        refusals.check(SftConfig.model_validate(fields), "sft", folder)
    assert words in str(error.value)
    refusals.check(
        SftConfig.model_validate({"lora": {"targets": ["q_proj"], "init": "olora", "rank": 16}}), "sft", folder
    )


def test_adalora_needs_two_updates(tmp_path: Path) -> None:
    config = SftConfig.model_validate({"method": "adalora"})
    with pytest.raises(ConfigError, match="got adalora for 1 update, because .*; train for more updates"):
        adapters.start(config, tmp_path / "nothing-is-loaded", "auto", updates=1)


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("LORA", {"method": "full"}, "got full, because the policy holds an adapter of kind LORA, .*; set dpo.method to lora or qlora"),
        ("LORA", {"method": "prompt"}, "set dpo.method to lora or qlora"),
        ("PROMPT_TUNING", {"method": "lora"}, "set dpo.method to prompt or p_tuning"),
        ("PREFIX_TUNING", {"method": "prompt"}, "set dpo.method to prefix or p_tuning_v2"),
        ("IA3", {"method": "adalora"}, "set dpo.method to ia3"),
        ("LORA", {"lora": {"rank": 4}}, "dpo.lora is wrong: got settings of its own, because the policy's adapter goes on"),
        ("LORA mica", {"method": "qlora"}, "made by init mica, which reads unquantised weights; set dpo.method to lora"),
    ],
)  # fmt: skip
def test_dpo_refuses_a_method_that_is_not_of_the_policys_kind(
    tmp_path: Path, kind: str, fields: Any, words: str
) -> None:
    peft_type, _, init = kind.partition(" ")
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": peft_type, "init_lora_weights": init or True})
    )
    with pytest.raises(ConfigError, match=words):
        refusals.check(DpoConfig.model_validate(fields), "dpo", tmp_path, adapter=tmp_path)
    [fitting, *_] = [name for name, one in methods.METHODS.items() if one.kind == peft_type]
    refusals.check(DpoConfig.model_validate({"method": fitting}), "dpo", tmp_path, adapter=tmp_path)


def test_the_line_refuses_it_before_anything_runs() -> None:
    from flows.line import AlignConfig

    with pytest.raises(
        ValueError, match="dpo.method is wrong: got lora, because .* kind PREFIX_TUNING, .* to prefix or p_tuning_v2"
    ):
        AlignConfig.model_validate({"sft": {"method": "prefix"}, "dpo": {}, "pairs": {}})
    AlignConfig.model_validate({"sft": {"method": "full"}, "dpo": {"method": "prefix"}, "pairs": {}})


def test_a_step_refuses_before_it_reads_a_row(chain: TinyChain, tmp_path: Path) -> None:
    """The chats are not even there."""
    config = SftConfig.model_validate({"lora": {"targets": ["nowhere"]}})
    with pytest.raises(ConfigError, match="no matrix of the model ends with that name"):
        made(tmp_path, "sft", config, base=chain.pretrain, chats=data_artifact(tmp_path, chats=[]))


def test_the_configurations_of_the_page_load() -> None:
    """Each is laid over cpu-tiny; together they name every method."""
    from flows.line import AlignConfig

    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    names = set()
    for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL):
        layers = [*layers_of("cpu-tiny", root=ROOT / "configs"), Layer(yaml.safe_load(text), "docs/methods.md")]
        names.add(load(AlignConfig, layers).value.sft.method)
    assert names == set(methods.METHODS)


@pytest.mark.parametrize(
    "step, fields, words",
    [
        (
            "kto",
            {"parallel": "fsdp"},
            "kto.train.parallel is wrong: got fsdp, because only base, pretrain, sft, dpo share",
        ),
        ("reward", {"tokens_per_pass": 128}, "reward.train.tokens_per_pass is read by nothing: got 128"),
        ("rl", {"tokens_per_pass": 128}, "rl.train.tokens_per_pass is read by nothing: got 128"),
        (
            "rl",
            {"compiled": True},
            "rl.train.compiled is read by nothing: got true, because rl trains by TRL's own trainer",
        ),
        ("sft", {"tokens_per_pass": 128, "parallel": "fsdp"}, None),
        ("kto", {}, None),
    ],
)
def test_settings_that_a_step_does_not_follow_are_refused(step: str, fields: dict[str, Any], words: str | None) -> None:
    found = refusals.unread(config_class(module_of(step)).model_validate({"train": fields}), step)
    assert [one[: len(words or "")] for one in found] == ([words] if words else [])
