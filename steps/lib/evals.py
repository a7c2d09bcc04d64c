"""Suites of held-out items, and how one model is scored on them. Each item is a row; figures follow from the rows.

| suite | item | scores |
|---|---|---|
| domain, general | document | nats, bytes (bits per byte = nats / ln 2 / bytes) |
| prompts | prompt | format, rule_score, rule:NAME, labels, language, finished, repetition; nats, bytes of a reference answer |
| pairs | preference pair | logp_chosen, logp_rejected, raw_logprob, length_norm; implicit (against a reference, added later) |
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib import chat, inference
from steps.lib.errors import DataError
from steps.lib.figures import Item, Measure
from steps.lib.language import detect
from steps.lib.ledger import Recall
from steps.lib.rows import Message, Pair, Prompt, Text, read_parquet
from steps.lib.rules import Task

SCORER_VERSION = "1"

MEASURES = (
    Measure(
        name="domain_bits_per_byte",
        label_en="Domain text",
        label_zh="领域文本",
        unit="bits/byte",
        better="lower",
        suite="domain",
        score="bits",
        weight="bytes",
        method="-log2 p(text) / UTF-8 bytes, by document",
    ),
    Measure(
        name="general_bits_per_byte",
        label_en="General text (forgetting)",
        label_zh="通用文本（遗忘）",
        unit="bits/byte",
        better="lower",
        suite="general",
        score="bits",
        weight="bytes",
        method="-log2 p(text) / UTF-8 bytes, by document",
    ),
    Measure(
        name="reference_bits_per_byte",
        label_en="Reference answers",
        label_zh="参考答案",
        unit="bits/byte",
        better="lower",
        suite="prompts",
        score="reference_bits",
        weight="reference_bytes",
        method="-log2 p(answer | prompt) / UTF-8 bytes",
    ),
    Measure(
        name="format_rate",
        label_en="Strict format",
        label_zh="严格格式",
        unit="share",
        suite="prompts",
        score="format",
        method="the whole answer is JSON and fits the schema",
    ),
    Measure(
        name="rule_score",
        label_en="Rules kept",
        label_zh="规则得分",
        unit="share",
        suite="prompts",
        score="rule_score",
        method="mean over the rules that apply to the prompt",
    ),
    Measure(
        name="labels",
        label_en="Labelled fields right",
        label_zh="标注字段正确",
        unit="share",
        suite="prompts",
        score="labels",
        method="share of the prompt's labels that the answer's fields equal",
    ),
    Measure(
        name="implicit_reward_accuracy",
        label_en="Preference accuracy (implicit reward)",
        label_zh="偏好准确率（隐式奖励）",
        unit="share",
        suite="pairs",
        score="implicit",
        method="log p / p_ref of chosen above rejected; sum over answer tokens",
    ),
    Measure(
        name="raw_logprob_accuracy",
        label_en="Preference accuracy (raw log p)",
        label_zh="偏好准确率（原始对数概率）",
        unit="share",
        suite="pairs",
        score="raw_logprob",
        method="log p of chosen above rejected",
    ),
    Measure(
        name="length_norm_accuracy",
        label_en="Preference accuracy (log p a token)",
        label_zh="偏好准确率（按长度归一）",
        unit="share",
        suite="pairs",
        score="length_norm",
        method="log p / token of chosen above rejected",
    ),
    Measure(
        name="same_language",
        label_en="Answer in the prompt's language",
        label_zh="回答语言一致",
        unit="share",
        suite="prompts",
        score="language",
        method="script ratio",
    ),
    Measure(
        name="finished",
        label_en="Answer ended by itself",
        label_zh="回答正常结束",
        unit="share",
        suite="prompts",
        score="finished",
        method="end of turn before max_tokens",
    ),
    Measure(
        name="repetition",
        label_en="Repeated 8-grams",
        label_zh="重复 8 元组",
        unit="share",
        better="lower",
        suite="prompts",
        score="repetition",
        method="share of character 8-grams of the answer that came before in it",
    ),
)
"""Every figure that a report can show; those without items are left out."""


@dataclass(frozen=True)
class Heldout:
    """Held-out items of clean."""

    domain: list[Text]
    general: list[Text]
    prompts: list[Prompt]
    pairs: list[Pair]
    task: Task | None

    @classmethod
    def read(cls, folder: Path, limit: int | None) -> Heldout:
        """Read them; ``limit`` items a suite (the first).

        Raises:
            DataError: there is no held-out item at all.
        """
        cut = slice(limit)
        found = cls(
            domain=read_parquet(folder / "heldout_domain.parquet", Text)[cut],
            general=read_parquet(folder / "heldout_general.parquet", Text)[cut],
            prompts=read_parquet(folder / "heldout_prompts.parquet", Prompt)[cut],
            pairs=read_parquet(folder / "heldout_pairs.parquet", Pair)[cut],
            task=Task.read(folder / "task.yaml") if (folder / "task.yaml").exists() else None,
        )
        if not (found.domain or found.general or found.prompts or found.pairs):
            raise DataError(
                f"{folder} has no held-out item: got four empty suites, because clean kept nothing apart; set "
                "clean.heldout sources, or clean.heldout.share"
            )
        return found


@dataclass(frozen=True)
class Limits:
    """How a model is run."""

    max_tokens: int
    """Tokens of the longest answer."""
    window: int
    """Tokens of context when texts are scored."""
    batch_size: int
    """Rows of a forward pass; part of a report's fingerprint, since floating-point sums depend on it."""


def score_model(
    name: str,
    model: Any,
    tokenizer: Any,
    heldout: Heldout,
    limits: Limits,
    *,
    seed: int,
    recall: Recall | None = None,
) -> list[Item]:
    """All items of one model (greedy answers).

    Args:
        model: a loaded model, or ``inference.Later``.
        recall: keeps the model's finished batches (``WorkLedger.about`` the model).
    """
    items: list[Item] = []
    for suite, texts in (("domain", heldout.domain), ("general", heldout.general)):
        items += _texts(name, suite, model, tokenizer, texts, limits, recall)
    items += _prompts(name, model, tokenizer, heldout, limits, seed, recall)
    items += _pairs(name, model, tokenizer, heldout.pairs, limits, recall)
    return items


def add_implicit(items: list[Item], policy: str, reference: str) -> list[Item]:
    """Add the implicit-reward score to the pair items of ``policy``; it means something against its own reference only.

    beta is positive, so its value does not change which side is ahead: L(c) - L_ref(c) > L(r) - L_ref(r)
    (Rafailov et al. 2023, 2305.18290, equation 5). A tie counts as wrong.
    """
    base = {item.item_id: item.scores for item in items if item.suite == "pairs" and item.model == reference}
    result: list[Item] = []
    for item in items:
        if item.suite == "pairs" and item.model == policy and item.item_id in base:
            margin = sum(
                sign * (_number(item.scores[side]) - _number(base[item.item_id][side]))
                for side, sign in (("logp_chosen", 1), ("logp_rejected", -1))
            )
            scores = {**item.scores, "implicit_margin": round(margin, 6), "implicit": float(margin > 0)}
            item = item.model_copy(update={"scores": scores})
        result.append(item)
    return result


def _texts(
    name: str, suite: str, model: Any, tokenizer: Any, texts: Sequence[Text], limits: Limits, recall: Recall | None
) -> list[Item]:
    bare = [row.text for row in texts]
    nats = inference.text_nats(
        model, tokenizer, bare, window=limits.window, batch_size=limits.batch_size, recall=recall
    )
    return [
        Item(
            model=name,
            suite=suite,
            item_id=row.id,
            cluster_id=row.id,
            lang=row.lang,
            scores={"bits": round(value / math.log(2), 4), "bytes": float(len(row.text.encode()))},
        )
        for row, value in zip(texts, nats, strict=True)
    ]


def prompt_turns(task: Task | None, row: Prompt) -> list[Message]:
    """What the student is asked: the task's short system line, where there is a task, and the prompt."""
    system = [Message(role="system", content=task.student_system["zh" if row.lang == "zh" else "en"])] if task else []
    return [*system, Message(role="user", content=row.prompt)]


def _prompts(
    name: str, model: Any, tokenizer: Any, heldout: Heldout, limits: Limits, seed: int, recall: Recall | None
) -> list[Item]:
    rows, task = heldout.prompts, heldout.task
    if not rows:
        return []
    turns = [prompt_turns(task, row) for row in rows]
    tokens = [chat.encode_prompt(tokenizer, turn) for turn in turns]
    drawing = inference.Sampling(0.0, 1.0, limits.max_tokens)
    answers = inference.generate(
        model, tokenizer, tokens, drawing, seed=seed, batch_size=limits.batch_size, recall=recall
    )
    references = _reference_bits(model, tokenizer, rows, turns, limits, recall)
    items: list[Item] = []
    for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        scores = {
            **references.get(i, {}),
            "finished": float(answer.finished),
            "repetition": repetition(answer.text),
            "language": float(detect(answer.text) == row.lang),
        }
        if task:
            kept = task.check(row.prompt, answer.text)
            schema = next(rule.name for rule in task.rules if rule.kind == "schema")
            scores |= {"format": float(bool(kept[schema])), "rule_score": task.score(row.prompt, answer.text)}
            scores |= {f"rule:{rule}": float(value) for rule, value in kept.items() if value is not None}
            scores |= _labels(task, row, answer.text)
        items.append(
            Item(
                model=name,
                suite="prompts",
                item_id=row.id,
                cluster_id=row.id,
                lang=row.lang,
                scores=scores,
                output=answer.text,
                n_in=len(tokens[i]),
                n_out=answer.tokens,
            )
        )
    return items


def _labels(task: Task, row: Prompt, answer: str) -> dict[str, float]:
    facts = {k: v for k, v in json.loads(row.facts).items() if k in task.json_schema.get("properties", {})}
    if not facts:
        return {}
    try:
        fields = task.fields(answer)
    except ValueError:
        fields = {}
    right = [name in fields and fields[name] == value for name, value in facts.items()]
    return {"labels": sum(right) / len(right)}


def _reference_bits(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Prompt],
    turns: Sequence[list[Message]],
    limits: Limits,
    recall: Recall | None,
) -> dict[int, dict[str, float]]:
    references = {i: json.loads(row.facts).get("reference") for i, row in enumerate(rows)}
    known = {i: text for i, text in references.items() if isinstance(text, str) and text}
    encoded = [
        chat.encode_pair(tokenizer, turns[i], [Message(role="assistant", content=text)]) for i, text in known.items()
    ]
    fitting = [(p, a[: max(1, limits.window - len(p))]) for p, a in encoded]
    logps = inference.sequence_logps(model, fitting, batch_size=limits.batch_size, recall=recall)
    return {
        i: {"reference_bits": round(-logp / math.log(2), 4), "reference_bytes": float(len(text.encode()))}
        for (i, text), logp, (p, a) in zip(known.items(), logps, encoded, strict=True)
        if len(p) + len(a) <= limits.window
    }


def _pairs(
    name: str, model: Any, tokenizer: Any, pairs: Sequence[Pair], limits: Limits, recall: Recall | None
) -> list[Item]:
    both = [[chat.encode_pair(tokenizer, row.prompt, side) for side in (row.chosen, row.rejected)] for row in pairs]
    fits = [all(len(prompt) + len(answer) <= limits.window for prompt, answer in two) for two in both]
    pairs = [row for row, fit in zip(pairs, fits, strict=True) if fit]  # the caller counts the others as too_long
    sides = [side for two, fit in zip(both, fits, strict=True) if fit for side in two]
    logps = inference.sequence_logps(model, sides, batch_size=limits.batch_size, recall=recall)
    items: list[Item] = []
    for i, row in enumerate(pairs):
        chosen, rejected = logps[2 * i], logps[2 * i + 1]
        lengths = len(sides[2 * i][1]), len(sides[2 * i + 1][1])
        scores = {
            "logp_chosen": round(chosen, 6),
            "logp_rejected": round(rejected, 6),
            "raw_logprob": float(chosen > rejected),
            "length_norm": float(chosen / lengths[0] > rejected / lengths[1]),
        }
        items.append(
            Item(
                model=name,
                suite="pairs",
                item_id=row.id,
                cluster_id=row.prompt[-1].content[:200],
                lang=row.lang,
                scores=scores,
                n_in=len(sides[2 * i][0]),
                n_out=sum(lengths),
            )
        )
    return items


def repetition(text: str, n: int = 8) -> float:
    """Share of the text's character n-grams that occurred before in it; 0 for a text shorter than n."""
    grams = [text[i : i + n] for i in range(len(text) - n + 1)]
    return round(1 - len(set(grams)) / len(grams), 4) if grams else 0.0


def _number(value: float | None) -> float:
    assert value is not None
    return value
