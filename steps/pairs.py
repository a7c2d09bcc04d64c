"""Preference pairs: the policy's own samples, best against worst; teacher against policy; imported pairs.

Reads:  policy (sft): an adapter on its base; data (clean): ``chats.parquet``, ``pairs.parquet``, ``task.yaml``.
Writes: ``pairs.parquet`` (Pair), ``samples.parquet`` (Candidate: every sample with its score), ``dropped.parquet``.
Source: best-of-n pairs as in Llama 2 (Touvron et al. 2023, 2307.09288, section 3.2.3); both orders of a judge: Zheng et al. 2023,
        2306.05685, section 3.4.
Run:    python -m steps.pairs --config FILE --policy DIR --data DIR --out DIR
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from steps.lib import chat, inference, models, runtime
from steps.lib.config import Section
from steps.lib.door import main
from steps.lib.errors import ConfigError, DataError
from steps.lib.judge import Judge, JudgeConfig, judge_externals
from steps.lib.ledger import Reply, RequestLedger
from steps.lib.rows import Candidate, Chat, Dropped, Message, Pair, read_parquet, write_parquet
from steps.lib.rules import Task
from steps.lib.shards import set_aside
from steps.lib.step import Context, Metrics

VERSION = "1"


class PairsConfig(Section):
    """Where pairs come from, and which are good enough."""

    prompts: int = Field(400, ge=0)
    """Training prompts that the policy answers (drawn with the seed); 0: no on-policy pairs."""
    samples: int = Field(4, ge=2)
    """Answers of the policy to each prompt."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of the samples; greedy ones would all be equal."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Share of probability kept in sampling (nucleus)."""
    max_tokens: int = Field(256, ge=1)
    """Tokens of the longest sample; a longer one is cut, scored as it is, and flagged truncated."""
    batch_size: int = Field(16, ge=1)
    """Prompts sampled at once."""
    min_margin: float = Field(0.1, gt=0, le=1)
    """Rule score that chosen must have above rejected."""
    min_chosen: float = Field(0.0, ge=0, le=1)
    """Rule score that chosen must have."""
    per_prompt: int = Field(1, ge=1)
    """On-policy pairs a prompt at most: best against worst, second best against second worst..."""
    teacher_share: float = Field(0.0, ge=0, le=1)
    """Share of the sampled prompts for which the teacher's answer stands against the policy's worst, where it scores higher."""
    imported: bool = True
    """Take the imported pairs of clean along."""
    judge: JudgeConfig | None = None
    """Judge that must prefer chosen in both orders for a sampled pair to stay; null: rules alone."""


def externals(config: PairsConfig) -> dict[str, str]:
    """The judge's identity and prompt."""
    return judge_externals(config.judge) if config.judge else {}


@dataclass(frozen=True)
class Scored:
    """One answer with its score."""

    text: str
    score: float
    rules: dict[str, bool | None]
    by: str


def run(config: PairsConfig, *, policy: Path, data: Path, out: Path, context: Context) -> Metrics:
    """Sample, score, pair."""
    metrics = Metrics()
    dropped: list[Dropped] = []
    pairs: list[Pair] = []
    samples: list[Candidate] = []
    chats = _single_turn(read_parquet(data / "chats.parquet", Chat))
    if config.prompts and chats:
        if not (data / "task.yaml").exists():
            raise ConfigError(
                "pairs.prompts asks for on-policy pairs, but nothing scores them: got data without task.yaml, because "
                "clean.task is not set; set clean.task to a file with rules, or pairs.prompts=0"
            )
        task = Task.read(data / "task.yaml")
        chosen_chats = _draw(chats, config.prompts, context.seed)
        answers = _sample(config, policy, chosen_chats, out, context, metrics)
        samples = _candidates(chosen_chats, answers)
        pairs += _on_policy(config, task, chosen_chats, answers, dropped, metrics)
        pairs += _teacher(config, task, chosen_chats, answers, dropped, metrics, context.seed)
        if config.judge:
            pairs = _judged(config.judge, pairs, dropped, metrics, context)
    if config.imported:
        imported = read_parquet(data / "pairs.parquet", Pair)
        metrics.rows.took("imported", len(imported))
        metrics.rows.gave("imported pairs", len(imported))
        pairs += imported
    if not pairs:
        reasons = dict(Counter(row.reason for row in dropped))
        raise DataError(
            f"no preference pairs: got 0 pairs, because of {reasons or 'nothing to make them from'}; lower "
            "pairs.min_margin, raise pairs.samples or pairs.temperature, or import pairs in clean"
        )
    write_parquet(out / "pairs.parquet", pairs, Pair)
    write_parquet(out / "samples.parquet", samples, Candidate)
    write_parquet(out / "dropped.parquet", dropped, Dropped)
    metrics.rows.balance(
        {"prompts": ["prompts paired"], "teacher answers": ["teacher pairs"], "imported": ["imported pairs"]}
    )
    metrics.values["pairs"] = len(pairs)
    metrics.values["mean_margin"] = round(sum(pair.margin for pair in pairs) / len(pairs), 4)
    lengths = [(len(pair.chosen[-1].content), len(pair.rejected[-1].content)) for pair in pairs]
    metrics.values["chosen_longer_share"] = round(sum(c > r for c, r in lengths) / len(lengths), 4)
    return metrics


def _single_turn(chats: list[Chat]) -> list[Chat]:
    """One chat a prompt: the first. Rules read one user turn, so longer conversations are not sampled."""
    seen: dict[str, Chat] = {}
    for row in chats:
        turns = [turn for turn in row.messages if turn.role != "system"]
        if [turn.role for turn in turns] == ["user", "assistant"]:
            seen.setdefault(turns[0].content, row)
    return list(seen.values())


def _draw(chats: list[Chat], count: int, seed: int) -> list[Chat]:
    order = list(range(len(chats)))
    random.Random(seed).shuffle(order)
    return [chats[i] for i in sorted(order[:count])]


def _user(row: Chat) -> str:
    return next(turn.content for turn in row.messages if turn.role == "user")


def _sample(
    config: PairsConfig, policy: Path, chats: list[Chat], out: Path, context: Context, metrics: Metrics
) -> list[list[Reply]]:
    """``samples`` answers a prompt, in the prompts' order.

    A batch whose answers are all in the ledger is not sampled again; one that was cut off is drawn again, the same.
    """
    runtime.seed_torch(context.seed)
    tokenizer = models.load_tokenizer(models.model_folder(policy))
    prompts = chat.each("chats", ((row.id, partial(chat.encode_prompt, tokenizer, row.messages[:-1])) for row in chats))
    drawing = inference.Sampling(config.temperature, config.top_p, config.max_tokens)
    identity = {"policy": inference.identity(policy), **inference.conditions("auto"), **vars(drawing)}
    jobs = [
        (sample, batch)
        for sample in range(config.samples)
        for batch in inference.batches([len(prompt) for prompt in prompts], config.batch_size)
    ]
    answers: list[list[Reply | None]] = [[None] * config.samples for _ in chats]
    timer = runtime.Timer()
    model: Any = None
    with runtime.stop_signals() as stop, RequestLedger(context.resume / "samples.sqlite", context.log) as ledger:
        for sample, batch in context.progress(jobs, "sampling", len(jobs)):
            stop.check()
            seed = inference.seed_of(context.seed, sample)
            drawn = RequestLedger.key(**identity, prompts=[prompts[i] for i in batch], seed=seed)
            keys = [RequestLedger.key(batch=drawn, place=place) for place in range(len(batch))]
            known = [ledger.get(key) for key in keys]
            if not all(known):
                model = model or models.load_merged(policy)
                new = inference.generate(
                    model, tokenizer, [prompts[i] for i in batch], drawing, seed=seed, batch_size=len(batch)
                )
                known = [Reply(a.text, "stop" if a.finished else "length", tokens_out=a.tokens) for a in new]
                for key, reply, i in zip(keys, known, batch, strict=True):
                    assert reply is not None
                    ledger.put(key, reply, source=chats[i].id)
            for i, reply in zip(batch, known, strict=True):
                answers[i][sample] = reply
    stop.check()
    done = [[reply for reply in row if reply is not None] for row in answers]
    metrics.tokens += sum(reply.tokens_out for row in done for reply in row)
    metrics.values["sampling_seconds"] = round(timer.seconds, 2)
    metrics.values["samples"] = sum(map(len, done))
    metrics.values["truncated_samples"] = sum(reply.finish_reason == "length" for row in done for reply in row)
    return done


def _candidates(chats: list[Chat], answers: list[list[Reply]]) -> list[Candidate]:
    return [
        Candidate(
            id=f"{row.id}-sample{k}",
            lang=row.lang,
            source=row.source,
            prompt=_user(row),
            answer=reply.text,
            teacher="policy",
            sample=k,
            flags=["truncated"] if reply.finish_reason == "length" else [],
        )
        for row, replies in zip(chats, answers, strict=True)
        for k, reply in enumerate(replies)
    ]


def _scored(task: Task, prompt: str, text: str, by: str) -> Scored:
    return Scored(text, task.score(prompt, text), task.check(prompt, text), by)


def _on_policy(
    config: PairsConfig,
    task: Task,
    chats: list[Chat],
    answers: list[list[Reply]],
    dropped: list[Dropped],
    metrics: Metrics,
) -> list[Pair]:
    """Best sample against worst, where the margin is wide enough."""
    pairs: list[Pair] = []
    metrics.rows.took("prompts", len(chats))
    for row, replies in zip(chats, answers, strict=True):
        ranked = sorted((_scored(task, _user(row), r.text, "policy") for r in replies), key=lambda s: -s.score)
        found = [
            _pair(row, best, worst, f"policy{k}")
            for k, (best, worst) in enumerate(zip(ranked, reversed(ranked), strict=True))
            if k < min(config.per_prompt, len(ranked) // 2)
            and best.score - worst.score >= config.min_margin
            and best.score >= config.min_chosen
        ]
        pairs += found
        if found:
            metrics.rows.gave("prompts paired")
        else:
            reason = "low_margin" if ranked[0].score - ranked[-1].score < config.min_margin else "chosen_too_low"
            metrics.rows.drop("prompts", reason)
            dropped.append(set_aside("pairs", row, reason, f"best {ranked[0].score:.2f}, worst {ranked[-1].score:.2f}"))
    metrics.values["on_policy_pairs"] = len(pairs)
    return pairs


def _teacher(
    config: PairsConfig,
    task: Task,
    chats: list[Chat],
    answers: list[list[Reply]],
    dropped: list[Dropped],
    metrics: Metrics,
    seed: int,
) -> list[Pair]:
    """The teacher's answer against the policy's worst sample, for a share of the prompts."""
    pairs: list[Pair] = []
    for row, replies in zip(chats, answers, strict=True):
        if random.Random(inference.seed_of(seed, "teacher", row.id)).random() >= config.teacher_share:
            continue
        metrics.rows.took("teacher answers")
        best = _scored(task, _user(row), row.messages[-1].content, "teacher")
        worst = min((_scored(task, _user(row), reply.text, "policy") for reply in replies), key=lambda s: s.score)
        if best.score - worst.score < config.min_margin or best.score < config.min_chosen:
            reason = "teacher_not_better"
            metrics.rows.drop("teacher answers", reason)
            dropped.append(set_aside("pairs", row, reason, f"teacher {best.score:.2f}, policy {worst.score:.2f}"))
            continue
        metrics.rows.gave("teacher pairs")
        pairs.append(_pair(row, best, worst, "teacher"))
    return pairs


def _judged(
    config: JudgeConfig, pairs: list[Pair], dropped: list[Dropped], metrics: Metrics, context: Context
) -> list[Pair]:
    """The pairs whose chosen answer a judge prefers in both orders."""
    judge = Judge(config, context.resume / "judge.sqlite", seed=context.seed, log=context.log)
    items = [(p.id, p.prompt[-1].content, p.chosen[-1].content, p.rejected[-1].content) for p in pairs]
    verdicts = judge.compare(items, context.progress)
    kept: list[Pair] = []
    metrics.rows.took("to judge", len(pairs))
    for pair in pairs:
        verdict = verdicts[pair.id]
        evidence = {**json.loads(pair.evidence), "judge": {"status": verdict.status, "said": list(verdict.said)}}
        if verdict.status == "first":
            kept.append(pair.model_copy(update={"evidence": json.dumps(evidence, ensure_ascii=False)}))
            continue
        reason = {"second": "judge_disagrees", "tie": "judge_tie"}.get(verdict.status, f"judge_{verdict.status}")
        metrics.rows.drop("to judge", reason)
        dropped.append(set_aside("pairs", pair, reason, f"said {verdict.said}"))
    metrics.rows.gave("judged pairs", len(kept))
    metrics.rows.balance({"to judge": ["judged pairs"]})
    return kept


def _pair(row: Chat, best: Scored, worst: Scored, kind: str) -> Pair:
    evidence = {
        "chosen": {"by": best.by, "score": best.score, "rules": best.rules},
        "rejected": {"by": worst.by, "score": worst.score, "rules": worst.rules},
    }
    return Pair(
        id=f"{row.id}-{kind}",
        lang=row.lang,
        source=f"{best.by} against {worst.by}",
        prompt=row.messages[:-1],
        chosen=[Message(role="assistant", content=best.text)],
        rejected=[Message(role="assistant", content=worst.text)],
        margin=best.score - worst.score,
        evidence=json.dumps(evidence, ensure_ascii=False),
    )


if __name__ == "__main__":
    main("pairs")
