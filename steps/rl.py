"""Reinforcement learning: the SFT policy answers prompts, is rewarded, and learns from its own answers.

Reads:  policy (sft): an adapter on its base, or whole weights; prompts (clean): ``chats.parquet``, ``task.yaml`` when rules reward;
        reward (reward): when a model rewards.
Writes: ``adapter/`` (``model/`` with method full), ``chain.json``, ``dropped.parquet``, ``record/preflight.json``,
        ``record/history.jsonl`` (reward, KL, lengths of every update).
Source: RLOO: Ahmadian et al. 2024, 2402.14740; GRPO: Shao et al. 2024, 2402.03300; TRL's trainers of these names. The reference is
        the SFT policy, so the KL of the first update is 0: anything else is a wrong chain, and stops the run.
Run:    python -m steps.rl --config FILE --policy DIR --prompts DIR --reward DIR --out DIR
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from steps.lib import (
    adapters,
    chat,
    inference,
    kernels,
    methods,
    models,
    online,
    parity,
    refusals,
    runtime,
    scoring,
    starts,
    training,
)
from steps.lib.config import Section
from steps.lib.digests import digest_file
from steps.lib.door import main
from steps.lib.errors import ConfigError, TrainingError
from steps.lib.intake import Intake
from steps.lib.preflight import Findings
from steps.lib.rows import Chat, read_parquet
from steps.lib.rules import Task
from steps.lib.step import Context, Metrics

VERSION = "1"
LONGER = 1.5
"""Ratio of the answers' lengths at the end and at the start from which a warning is given, where the reward rose."""


class RewardTerm(Section):
    """One part of the reward."""

    kind: Literal["model", "rules"]
    """model: the reward model's number; rules: share of the task's rules that the answer keeps, from 0 to 1."""
    weight: float = 1.0
    """Factor in the sum of the parts."""


class RlConfig(methods.MergingMethods):
    """Reinforcement learning."""

    method: methods.Name = "lora"
    """A policy with an adapter: the adapter goes on training, and the method must be of its kind. A policy of whole weights: full
    trains them all, lora, qlora, adalora and ia3 put a fresh adapter on them."""
    algorithm: online.Algorithm = "rloo"
    """rloo: an answer's advantage is its reward less the mean of its group's others, and the KL is part of the reward. grpo: less
    the group's mean, divided by its deviation; the KL is part of the loss, which is a mean over tokens."""
    rewards: list[RewardTerm] = Field([RewardTerm(kind="model")], min_length=1)
    """Parts of the reward, which are summed; each kind once."""
    beta: float = Field(0.05, ge=0)
    """Weight of the KL from the SFT policy, in reward / nat; 0: none, and none is measured."""
    max_kl: float | None = Field(None, gt=0)
    """KL from the SFT policy, in nats a token, behind which training ends early; null: no limit."""
    generations: int = Field(4, ge=2)
    """Answers to each prompt of an update: a group."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of the answers."""
    max_tokens: int = Field(256, ge=1)
    """Tokens of the longest answer; a longer one is cut, and rewarded as it is."""
    cut_penalty: float = Field(0.0, ge=0)
    """Reward taken off an answer that was cut at max_tokens."""
    train: training.TrainSettings = training.TrainSettings(lr=1e-5)
    """Optimisation. Batches count answers: batch_size x accumulation of them make an update, and groups must fit evenly; epochs are
    passes over the prompts. A prompt that leaves no room for max_tokens below max_length is dropped (too_long: drop or error)."""

    @field_validator("method")
    @classmethod
    def _has_no_learnt_tokens(cls, method: methods.Name) -> methods.Name:
        if not methods.METHODS[method].merges:
            fitting = ", ".join(name for name, one in methods.METHODS.items() if one.merges)
            raise ValueError(
                f"rl samples prompts side by side, and the learnt tokens of {method} would stand before their padding; take one of "
                f"{fitting}, or dpo in place of rl"
            )
        return method

    @model_validator(mode="after")
    def _sound(self) -> Self:
        problems: list[str] = []
        kinds = [term.kind for term in self.rewards]
        if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            problems.append(f"rewards have kind {twice[0]} twice, because one of them is enough; add their weights")
        answers = self.train.batch_size * self.train.accumulation
        if answers % self.generations:
            problems.append(
                f"generations is {self.generations} with {answers} answers an update: got a remainder of "
                f"{answers % self.generations}, because groups are whole; set train.batch_size x train.accumulation to a "
                f"multiple of {self.generations}"
            )
        if self.max_kl is not None and not self.beta:
            problems.append(
                "max_kl is set with beta 0: got no KL to watch, because it is not measured; set beta, or max_kl to null"
            )
        if self.train.too_long == "truncate":
            problems.append(
                "train.too_long is truncate: got a setting for answers that are there already, because a prompt that is cut asks "
                "something else; set train.too_long to drop or error"
            )
        if self.max_tokens >= self.train.max_length:
            problems.append(
                f"max_tokens is {self.max_tokens} with train.max_length {self.train.max_length}: got no room for a prompt, because "
                "both share max_length; raise train.max_length or lower max_tokens"
            )
        if problems:
            raise ValueError("; and ".join(problems))
        return self

    @property
    def needs_a_model(self) -> bool:
        """Whether a reward model is among the rewards."""
        return any(term.kind == "model" for term in self.rewards)


def run(
    config: RlConfig, *, policy: Path, prompts: Path, reward: Path | None = None, out: Path, context: Context
) -> Metrics:
    """Train the policy on its own answers."""
    runtime.seed_torch(context.seed)
    folder = models.model_folder(policy)
    _check_rewards(config, prompts, reward)
    refusals.check(config, "rl", folder, adapter=policy / "adapter")
    tokenizer = models.load_tokenizer(folder)
    if reward:
        _same_tokens(tokenizer, reward)
    found = Findings()
    rows, longest, metrics = _prompts(config, tokenizer, read_parquet(prompts / "chats.parquet", Chat), out, found)
    updates = training.updates(len(rows) * config.generations, config.train)
    found.loading(folder, config.train.precision, bits=config.bits)
    model = starts.trained(config, policy, config.train, updates=updates, seed=context.seed, plain=True)
    if reward:
        found.loading(models.model_folder(reward), config.train.precision)
    scorer = scoring.load(reward, config.train.precision) if reward else None
    found.check(model, config.train, config.train.batch_size * (longest + config.max_tokens), context, metrics)
    kernels.speed_up(model)
    settings = config.train.model_copy(update={"max_updates": updates})
    groups = updates * config.train.batch_size * config.train.accumulation // config.generations
    trainer = online.trainer(
        config.algorithm,
        model,
        [chat.plain(rows[i].messages[:-1]) for i in online.order(len(rows), groups, context.seed)],
        _rewards(config, tokenizer, scorer, inference.end_tokens(model, tokenizer), prompts),
        tokenizer,
        partial(_arguments, settings=settings, context=context),
        beta=config.beta,
        max_kl=config.max_kl,
        seed=context.seed,
        generations=config.generations,
        temperature=config.temperature,
        max_tokens=config.max_tokens,
    )
    metrics.values.update(_fitted(trainer, settings, context, out))
    metrics.values |= _measured(config, training.losses(trainer), updates, context)
    if trainer.is_world_process_zero():
        probe = parity.Probe(trainer.model, tokenizer)
        stage = models.Stage(step="rl", digest=digest_file(prompts / "chats.parquet"))
        adapters.save(trainer.model, config.method, out, policy, stage, tokenizer)
        metrics.values.update(probe.check(trainer, tokenizer, out, config.train.precision))
    return metrics


def _arguments(kind: Any, *, settings: training.TrainSettings, context: Context, **more: Any) -> Any:
    return training.arguments(kind, settings, context, **more)


def _check_rewards(config: RlConfig, prompts: Path, reward: Path | None) -> None:
    problems: list[str] = []
    if config.needs_a_model and reward is None:
        problems.append(
            "rl.rewards asks for a reward model: got none, because no artifact of reward was given; build the step reward, or "
            "reward by rules alone: rl.rewards='[{kind: rules}]'"
        )
    if reward and not config.needs_a_model:
        problems.append(
            "a reward model is given and read by nothing: got rl.rewards without kind model, because rules alone reward; add "
            "{kind: model} to rl.rewards, or leave the reward model out"
        )
    if any(term.kind == "rules" for term in config.rewards) and not (prompts / "task.yaml").exists():
        problems.append(
            "rl.rewards asks for rules: got data without task.yaml, because clean.task is not set; set clean.task to a file with "
            "rules, or take kind rules out of rl.rewards"
        )
    if problems:
        raise ConfigError(problems)


def _same_tokens(tokenizer: Any, reward: Path) -> None:
    other = models.load_tokenizer(models.model_folder(reward))
    if other.get_vocab() != tokenizer.get_vocab() or other.eos_token_id != tokenizer.eos_token_id:
        raise ConfigError(
            f"reward model {reward} does not fit the policy: got another vocabulary, because it was trained from another base, so "
            "it would read other words than the policy said; train it from this policy"
        )


def _prompts(
    config: RlConfig, tokenizer: Any, chats: Sequence[Chat], out: Path, found: Findings
) -> tuple[list[Chat], int, Metrics]:
    """A chat for each prompt that can be answered and rewarded, and the tokens of the longest prompt."""
    intake = Intake[Chat]("rl", "prompts", config.train, found)
    by_rules = any(term.kind == "rules" for term in config.rewards)
    asked: dict[str, Chat] = {}
    for row in chats:
        if row.messages[-1].role == "assistant":
            asked.setdefault("\x00".join(f"{turn.role} {turn.content}" for turn in row.messages[:-1]), row)
    rows: list[Chat] = []
    lengths: list[int] = []
    for row in asked.values():
        ids = intake.encoded(row, partial(chat.encode_prompt, tokenizer, row.messages[:-1]))
        if not ids:
            continue
        if by_rules and sum(turn.role == "user" for turn in row.messages) > 1:
            intake.drop(row, "several_turns", "rules read a single turn")
        elif intake.fits(row, len(ids) + config.max_tokens):
            rows.append(row)
            lengths.append(len(ids))
    metrics = intake.close(out, len(rows))
    metrics.values["chats"] = len(chats)
    found.as_served(tokenizer, [row.messages[:-1] for row in rows])
    return rows, max(lengths, default=0), metrics


def _rewards(
    config: RlConfig, tokenizer: Any, scorer: Any, ends: Sequence[int], data: Path
) -> list[tuple[online.Reward, float]]:
    """The functions that reward answers, with their weights."""
    task = Task.read(data / "task.yaml") if (data / "task.yaml").exists() else None

    def model(prompts: Any, completion_ids: Any, **kwargs: Any) -> list[float]:
        """The reward model reads the tokens that were said, not a text made of them."""
        rows = [
            [*chat.encode_prompt(tokenizer, prompt), *said]
            for prompt, said in zip(prompts, completion_ids, strict=True)
        ]
        return scoring.scores(scorer, rows, batch_size=config.train.batch_size)

    def rules(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        assert task is not None
        asked = (next(turn["content"] for turn in prompt if turn["role"] == "user") for prompt in prompts)
        return [task.score(one, said[0]["content"]) for one, said in zip(asked, completions, strict=True)]

    def cut(completion_ids: Any, **kwargs: Any) -> list[float]:
        return [0.0 if said[-1] in ends else -1.0 for said in completion_ids]

    by_kind: dict[str, online.Reward] = {"model": model, "rules": rules}
    found = [(by_kind[term.kind], term.weight) for term in config.rewards]
    return [*found, (cut, config.cut_penalty)] if config.cut_penalty else found


def _fitted(
    trainer: Any, settings: training.TrainSettings, context: Context, out: Path
) -> dict[str, float | int | str]:
    try:
        return training.fit(trainer, settings, context, out)
    except TrainingError as error:
        entries = training.losses(trainer)
        if entries and all(entry["frac_reward_zero_std"] == 1.0 for entry in entries):
            raise TrainingError(
                f"nothing to learn from the rewards: got equal rewards in every group of {len(entries)} updates, because the "
                "policy says the same each time, or the reward does not tell its answers apart; raise temperature or generations, "
                "or look at the reward"
            ) from error
        raise


def _measured(
    config: RlConfig, entries: Sequence[dict[str, Any]], updates: int, context: Context
) -> dict[str, float | int]:
    """What became of reward, KL and lengths; means of the first and of the last tenth of the updates (of one at least)."""
    tenth = math.ceil(len(entries) / 10)

    def mean(name: str, part: Sequence[dict[str, Any]]) -> float:
        return round(math.fsum(float(entry[name]) for entry in part) / len(part), 5)

    names = {"reward": "reward", "length": "completions/mean_length", "cut_share": "completions/clipped_ratio"}
    names |= {"kl": "kl"} if config.beta else {}
    found: dict[str, float | int] = {}
    for short, name in names.items():
        found[f"{short}_first"], found[f"{short}_last"] = mean(name, entries[:tenth]), mean(name, entries[-tenth:])
    found["equal_groups_share"] = mean("frac_reward_zero_std", entries)
    found["ended_early"] = int(len(entries) < updates)
    if found["ended_early"]:
        context.log.warning(
            "rl ended early: got a KL of %.4f nats a token at update %d of %d, because max_kl is %s; the policy of that update is "
            "kept. Raise beta or lower lr for more updates",
            *(entries[-1]["kl"], len(entries), updates, config.max_kl),
        )
    if found["length_last"] >= LONGER * found["length_first"] and found["reward_last"] > found["reward_first"]:
        context.log.warning(
            "answers became longer as the reward rose: got %.0f tokens at the end and %.0f at the start, because the reward may "
            "pay for length; read answers before you trust it, and look at length_correlation of the reward model",
            *(found["length_last"], found["length_first"]),
        )
    return found


if __name__ == "__main__":
    main("rl")
