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
from functools import partial
from pathlib import Path
from typing import Any

from steps.lib import chat, inference
from steps.lib.errors import DataError
from steps.lib.figures import Item
from steps.lib.language import detect
from steps.lib.rows import Message, Pair, Prompt, Text, read_parquet
from steps.lib.rules import Task
from steps.lib.work_ledger import Recall

SCORER_VERSION = "1"


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

    Raises:
        DataError: rows that cannot be encoded.
    """
    suites = (("domain", heldout.domain), ("general", heldout.general))
    asked = _asked(tokenizer, heldout)  # all that may be wrong with a row shows before a model runs
    both = chat.each("held-out pairs", ((row.id, partial(_sides, tokenizer, row)) for row in heldout.pairs))
    items = [item for suite, texts in suites for item in _texts(name, suite, model, tokenizer, texts, limits, recall)]
    items += _prompts(name, model, tokenizer, heldout, asked, limits, seed, recall)
    items += _pairs(name, model, heldout.pairs, both, limits, recall)
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


@dataclass(frozen=True)
class _Asked:
    """The prompts of a suite as tokens."""

    prompts: list[list[int]]
    references: dict[int, tuple[str, list[int], list[int]]]
    """Place of a prompt that has a reference answer -> the answer; tokens of the prompt and of the answer."""


def _asked(tokenizer: Any, heldout: Heldout) -> _Asked:
    rows = heldout.prompts
    turns = [prompt_turns(heldout.task, row) for row in rows]
    known = {i: json.loads(row.facts).get("reference") for i, row in enumerate(rows)}
    known = {i: text for i, text in known.items() if isinstance(text, str) and text}
    said = {i: [Message(role="assistant", content=text)] for i, text in known.items()}
    prompts = ((row.id, partial(chat.encode_prompt, tokenizer, turn)) for row, turn in zip(rows, turns, strict=True))
    answers = ((rows[i].id, partial(chat.encode_pair, tokenizer, turns[i], said[i])) for i in known)
    encoded = chat.each("reference answers of held-out prompts", answers)
    references = {i: (text, *pair) for (i, text), pair in zip(known.items(), encoded, strict=True)}
    return _Asked(chat.each("held-out prompts", prompts), references)


def _sides(tokenizer: Any, row: Pair) -> list[tuple[list[int], list[int]]]:
    """Tokens of the prompt and of the answer, of both sides."""
    return [chat.encode_pair(tokenizer, row.prompt, side) for side in (row.chosen, row.rejected)]


def _prompts(
    name: str,
    model: Any,
    tokenizer: Any,
    heldout: Heldout,
    asked: _Asked,
    limits: Limits,
    seed: int,
    recall: Recall | None,
) -> list[Item]:
    rows, task = heldout.prompts, heldout.task
    if not rows:
        return []
    drawing = inference.Sampling(0.0, 1.0, limits.max_tokens)
    answers = inference.generate(
        model, tokenizer, asked.prompts, drawing, seed=seed, batch_size=limits.batch_size, recall=recall
    )
    references = _reference_bits(model, asked, limits, recall)
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
                n_in=len(asked.prompts[i]),
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


def _reference_bits(model: Any, asked: _Asked, limits: Limits, recall: Recall | None) -> dict[int, dict[str, float]]:
    fitting = [(p, a[: max(1, limits.window - len(p))]) for _, p, a in asked.references.values()]
    logps = inference.sequence_logps(model, fitting, batch_size=limits.batch_size, recall=recall)
    return {
        i: {"reference_bits": round(-logp / math.log(2), 4), "reference_bytes": float(len(text.encode()))}
        for (i, (text, p, a)), logp in zip(asked.references.items(), logps, strict=True)
        if len(p) + len(a) <= limits.window
    }


def _pairs(
    name: str,
    model: Any,
    pairs: Sequence[Pair],
    both: list[list[tuple[list[int], list[int]]]],
    limits: Limits,
    recall: Recall | None,
) -> list[Item]:
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
