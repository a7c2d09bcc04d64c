"""Reinforcement learning: advantages are the papers', the reference is the SFT policy, draws repeat, and rewards rise."""

from __future__ import annotations

import math
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from minimal import (
    FEW,
    SFT,
    Chat,
    TinyChain,
    chats,
    context,
    data_artifact,
    made,
    pair,
    pairs_artifact,
    turn,
    with_train,
)
from training_runs import cut, losses, same, spec, survives, whole

from steps.lib import adapters, chat, inference, models, online, runtime, training
from steps.lib.artifact import Artifact
from steps.lib.errors import ConfigError, TrainingError
from steps.lib.history import read
from steps.lib.step import build
from steps.reward import RewardConfig
from steps.rl import RlConfig

pytestmark = pytest.mark.tiny
RL = RlConfig.model_validate(
    {
        "rewards": [{"kind": "rules"}],
        "max_tokens": 10,
        "generations": 4,
        "beta": 0.02,
        "train": {**FEW, "batch_size": 8, "accumulation": 2, "lr": 5e-3, "max_updates": 4},
    }
)
PROMPTS = [[{"role": "system", "content": "JSON."}, {"role": "user", "content": f"Is {n} fine?"}] for n in range(2)]


def by_length(completion_ids: Any, **kwargs: Any) -> list[float]:
    """A reward that differs from answer to answer."""
    return [0.3 * len(ids) + 0.01 * (sum(ids) % 17) for ids in completion_ids]


def trainer_of(model: Any, policy: Path, folder: Path, algorithm: Any = "rloo", beta: float = 0.5) -> Any:
    """A trainer for two prompts with four answers each."""
    runtime.seed_torch(0)
    settings = RL.train.model_copy(update={"max_updates": 1, "accumulation": 1})

    def arguments(kind: Any, **more: Any) -> Any:
        return training.arguments(kind, settings, context(folder), **more)

    tokenizer = models.load_tokenizer(models.model_folder(policy))
    given: dict[str, Any] = {
        "beta": beta,
        "max_kl": None,
        "seed": 0,
        "generations": 4,
        "temperature": 1.0,
        "max_tokens": 8,
    }
    return online.trainer(algorithm, model, PROMPTS, [(by_length, 2.0)], tokenizer, arguments, **given)


def scored(trainer: Any) -> dict[str, Any]:
    """What TRL makes of one generation of both prompts."""
    trainer.model.train()
    return dict(trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS for _ in range(4)]))


def answers(found: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    rows = []
    for side in range(len(found["prompt_ids"])):
        rows.append(
            tuple(
                found[f"{part}_ids"][side][found[f"{part}_mask"][side].bool()].tolist()
                for part in ("prompt", "completion")
            )
        )
    return rows  # type: ignore[return-value]


def groups(values: list[float]) -> list[list[float]]:
    return [values[:4], values[4:]]


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_advantages_are_the_papers(chain: TinyChain, tmp_path: Path, algorithm: str) -> None:
    trainer = trainer_of(models.load_policy(chain.sft.path, trainable=True), chain.sft.path, tmp_path, algorithm)
    found = scored(trainer)
    said = answers(found)
    tokenizer = models.load_tokenizer(models.model_folder(chain.sft.path))
    assert [prompt for prompt, _ in said] == [chat.encode_prompt(tokenizer, p) for p in PROMPTS for _ in range(4)]
    rewards = groups([2.0 * value for value in by_length([ids for _, ids in said])])
    expected: list[float] = []
    for group in rewards:
        mean = sum(group) / 4
        spread = math.sqrt(sum((one - mean) ** 2 for one in group) / 3)
        assert spread > 0.01
        for one in group:
            others = (sum(group) - one) / 3
            expected.append(one - others if algorithm == "rloo" else (one - mean) / (spread + 1e-4))
    assert found["advantages"].tolist() == pytest.approx(expected, abs=1e-4), "KL is 0 at the start"
    assert trainer.drift == 0.0


def policies(chain: TinyChain, root: Path, method: str) -> Artifact:
    if method == "lora":
        return chain.sft
    config = with_train(SFT.model_copy(update={"method": method, "lora": type(SFT.lora)()}), max_updates=8, lr=3e-2)
    return made(root, "sft", config, base=chain.pretrain, chats=chain.data)


@pytest.mark.parametrize("method", ["lora", "ia3", "adalora", "full", "pissa"])
def test_the_reference_is_the_sft_policy(chain: TinyChain, tmp_path: Path, method: str) -> None:
    """The policy is moved away; KL and advantages are those against the SFT artifact, loaded apart from the trainer."""
    import torch

    if method == "pissa":  # a fresh adapter whose start changes the base, on a policy of whole weights
        policy = policies(chain, tmp_path, "full")
        config = RlConfig.model_validate({"lora": {"rank": 4, "init": "pissa"}, "rewards": [{"kind": "rules"}]})
        model = adapters.start(config, models.model_folder(policy.path), "auto", updates=9)
    else:
        policy = policies(chain, tmp_path, method)
        model = models.load_policy(policy.path, trainable=True)
    trainer = trainer_of(model, policy.path, tmp_path)
    trainer.state.global_step = 1  # behind the first update
    runtime.seed_torch(3)
    with torch.no_grad():
        for p in trainer.model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    found = scored(trainer)
    said = answers(found)
    trainer.model.eval()
    now = inference.sequence_logps(trainer.model, said, batch_size=1)
    start = inference.sequence_logps(models.load_policy(policy.path), said, batch_size=1)
    kl = [a - b for a, b in zip(now, start, strict=True)]
    assert max(map(abs, kl)) > 0.05, "it was moved"
    mean = sum(kl) / sum(len(answer) for _, answer in said)
    assert trainer._metrics["train"]["kl"][-1] == pytest.approx(mean, abs=1e-4)
    worth = [2.0 * r - 0.5 * k for r, k in zip(by_length([ids for _, ids in said]), kl, strict=True)]
    expected = [one - (sum(group) - one) / 3 for group in groups(worth) for one in group]
    assert found["advantages"].tolist() == pytest.approx(expected, abs=2e-3)
    after = inference.sequence_logps(trainer.model, said, batch_size=1)
    assert after == now, "the policy's weights are back in their place"


def test_trl_s_own_reference_of_an_ia3_adapter_is_the_base(chain: TinyChain, tmp_path: Path) -> None:
    """The trap: TRL copies weights by a name that IA3's do not have. When this fails, TRL has mended it."""
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    policy = policies(chain, tmp_path, "ia3")
    runtime.seed_torch(0)
    arguments = training.arguments(
        RLOOConfig,
        RL.train,
        context(tmp_path),
        beta=0.5,
        num_generations=4,
        max_completion_length=8,
        disable_dropout=True,
    )
    trainer = RLOOTrainer(
        model=models.load_policy(policy.path, trainable=True),
        reward_funcs=[by_length],
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=models.load_tokenizer(models.model_folder(policy.path)),
    )
    scored(trainer)
    assert abs(trainer._metrics["train"]["kl"][-1]) > 1e-3


def test_a_wrong_reference_stops_the_run(chain: TinyChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base without the adapter, as ``disable_adapter`` gives it."""
    held: list[Any] = []
    real = online.Start.__init__

    def begun(self: Any, model: Any) -> None:
        real(self, model)
        held.append(model)

    @contextmanager
    def base(self: Any) -> Any:
        with held[-1].disable_adapter():
            yield

    monkeypatch.setattr(online.Start, "__init__", begun)
    monkeypatch.setattr(online.Start, "in_place", base)
    for algorithm in ("rloo", "grpo"):
        with pytest.raises(
            TrainingError, match=r"KL of the first rl update is not 0: got a policy \d.* away from its ref"
        ):
            made(tmp_path, "rl", RL.model_copy(update={"algorithm": algorithm}), policy=chain.sft, prompts=chain.data)
    assert not [path for path in (tmp_path / "rl").iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize("drift", [2e-4, math.nan, math.inf])
def test_a_first_drift_off_0_is_refused(drift: float) -> None:
    with pytest.raises(TrainingError, match="KL of the first rl update is not 0"):
        online.check_first_drift(drift)
    online.check_first_drift(9e-5)


@pytest.mark.parametrize("algorithm", ["rloo", pytest.param("grpo", marks=pytest.mark.long)])
def test_an_easy_reward_rises(chain: TinyChain, tmp_path: Path, algorithm: str) -> None:
    config = RL.model_copy(update={"algorithm": algorithm, "beta": 0.001, "generations": 8})
    config = with_train(config, max_updates=10, batch_size=64, accumulation=1, lr=1e-2, warmup=0.0)
    result = made(tmp_path, "rl", config, policy=chain.sft, prompts=chain.data)
    metrics, entries = result.manifest["metrics"], read(result.path / "record" / "history.jsonl")
    rewards = [entry["reward"] for entry in entries]
    assert sum(rewards[-4:]) / 4 > rewards[0] + 0.1, rewards
    assert (
        metrics["reward_first"] == pytest.approx(rewards[0], abs=1e-4)
        and metrics["kl_first"] == 0.0 < metrics["kl_last"]
    )
    assert metrics["ended_early"] == 0 and len(entries) == 10
    assert entries[-1]["epoch"] == 1.0, "one pass over prompts that were laid out beforehand"
    stages = models.Chain.read(result.path).stages
    assert [stage.step for stage in stages] == ["sft", "rl"]
    assert metrics["parity_saved"] < 1e-5 and not (result.path / "adapter" / "ref").exists()


def test_a_reward_model_rewards_the_tokens_that_were_said(chain: TinyChain, tmp_path: Path) -> None:
    pairs = pairs_artifact(tmp_path, [pair(n) for n in range(30)])
    settings = RewardConfig.model_validate({"train": {**FEW, "lr": 5e-3, "max_updates": 12}})
    scorer = made(tmp_path, "reward", settings, policy=chain.sft, pairs=pairs)
    assert scorer.manifest["metrics"]["accuracy"] == 1.0
    both = [{"kind": "model", "weight": 0.5}, {"kind": "rules", "weight": 2.0}]
    config = RlConfig.model_validate(
        {**RL.model_dump(), "rewards": both, "cut_penalty": 0.25, "train": {**RL.train.model_dump(), "max_updates": 12}}
    )
    result = made(tmp_path, "rl", config, policy=chain.sft, prompts=chain.data, reward=scorer)
    for entry in read(result.path / "record" / "history.jsonl"):
        parts = [entry[f"rewards/{name}/mean"] for name in ("model", "rules", "cut")]
        assert entry["reward"] == pytest.approx(0.5 * parts[0] + 2.0 * parts[1] + 0.25 * parts[2], abs=1e-4)
        assert parts[2] == pytest.approx(-entry["completions/clipped_ratio"])
    metrics = result.manifest["metrics"]
    assert metrics["reward_last"] > metrics["reward_first"] + 0.5
    with pytest.raises(ConfigError, match="a reward model is given and read by nothing"):
        made(tmp_path, "rl", RL, policy=chain.sft, prompts=chain.data, reward=scorer)


def test_prompts_that_cannot_be_rewarded_or_answered_are_dropped_and_counted(chain: TinyChain, tmp_path: Path) -> None:
    talk = [turn("user", "Is 1 fine?"), turn("assistant", "Yes."), turn("user", "And 2?"), turn("assistant", "No.")]
    long = [turn("user", "Is it fine? " * 60), turn("assistant", "Yes.")]
    rows = [
        Chat(id=name, lang="en", source="made", messages=messages)
        for name, messages in (("talk", talk), ("long", long))
    ]
    again = chats(1)[0].model_copy(update={"id": "again"})
    data = data_artifact(tmp_path, chats=[*chats(6), again, *rows])
    result = made(tmp_path, "rl", with_train(RL, max_updates=2), policy=chain.sft, prompts=data)
    assert result.manifest["rows"] == {
        "in": {"prompts": 8},
        "out": {"trained": 6},
        "dropped": {"prompts": {"several_turns": 1, "too_long": 1}},
    }
    assert result.manifest["metrics"]["chats"] == 9, "two chats have one prompt"


def test_every_prompt_comes_before_any_comes_again() -> None:
    found = online.order(5, 13, 0)
    assert sorted(found[:5]) == sorted(found[5:10]) == list(range(5)) and found[:5] != found[5:10]
    assert found == online.order(5, 13, 0) != online.order(5, 13, 1) and len(found) == 13


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generations": 3}, "generations is 3 with 8 answers an update: got a remainder of 2"),
        ({"max_kl": 0.1, "beta": 0.0}, "max_kl is set with beta 0"),
        ({"train": {"too_long": "truncate"}}, "train.too_long is truncate"),
        ({"max_tokens": 1024}, "max_tokens is 1024 with train.max_length 1024"),
        ({"rewards": [{"kind": "rules"}, {"kind": "rules"}]}, "rewards have kind rules twice"),
        ({"method": "prefix"}, "the learnt tokens of prefix would stand before their padding"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RlConfig.model_validate(changes)


def test_rewards_that_are_not_there_are_named_together(chain: TinyChain, tmp_path: Path) -> None:
    config = RlConfig.model_validate({"rewards": [{"kind": "rules"}, {"kind": "model"}]})
    with pytest.raises(
        ConfigError, match=r"(?s)asks for a reward model: got none.*asks for rules: got data without task"
    ):
        made(tmp_path, "rl", config, policy=chain.sft, prompts=data_artifact(tmp_path, task=None))


def test_equal_rewards_everywhere_are_an_error_that_says_so(chain: TinyChain, tmp_path: Path) -> None:
    """At next to no temperature the policy says the same each time."""
    config = with_train(RL.model_copy(update={"temperature": 1e-4}), max_updates=2)
    with pytest.raises(
        TrainingError, match="nothing to learn from the rewards: got equal rewards in every group of 2 updates"
    ):
        made(tmp_path, "rl", config, policy=chain.sft, prompts=chain.data)


UNEVEN = with_train(RL, max_updates=7, save_every=3, log_every=4)


@pytest.mark.long  # those of sft, dpo and pretrain are in every run
@pytest.mark.fault
def test_killed_in_every_phase_equals_undisturbed(chain: TinyChain, tmp_path: Path) -> None:
    """Answers are drawn by seed and update, over more than one pass over the prompts."""
    what = spec("rl", UNEVEN, policy=chain.sft, prompts=data_artifact(tmp_path, chats=chats(11)))
    survives(tmp_path, what, "steps.lib.models.write_location")


@pytest.mark.fault
def test_a_run_of_grpo_that_ends_early_is_the_same_when_it_is_resumed(chain: TinyChain, tmp_path: Path) -> None:
    config = with_train(RL.model_copy(update={"algorithm": "grpo", "max_kl": 0.01}), max_updates=30, save_every=1)
    what = spec("rl", config, policy=chain.sft, prompts=chain.data)
    alone = whole(tmp_path, what)
    ended = alone.manifest["metrics"]["updates"]
    entries = read(alone.path / "record" / "history.jsonl")
    assert 2 < ended < 30 and entries[-1]["kl"] > 0.01 >= max(entry["kl"] for entry in entries[:-1])
    assert alone.manifest["metrics"]["ended_early"] == 1
    out = tmp_path / "cut" / what.key()
    assert cut(tmp_path, what, out, "steps.lib.history.due", 2) == (-9, [1])
    assert cut(tmp_path, what, out, "steps.lib.history.write") == (-9, [ended, ended - 1])
    same(build(what, out), alone)


def test_another_seed_draws_other_answers(chain: TinyChain, tmp_path: Path) -> None:
    one, two = (
        losses(
            made(
                tmp_path,
                "rl",
                with_train(RL.model_copy(update={"algorithm": "grpo"}), max_updates=3),
                policy=chain.sft,
                prompts=chain.data,
                seed=seed,
            )
        )
        for seed in (0, 1)
    )
    assert one != two
