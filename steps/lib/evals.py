"""Suites of held-out items, and how one model is scored on them. Each item is a row; figures follow from the rows.

| suite | item | scores |
|---|---|---|
| domain, general | document | nats, bytes (bits per byte = nats / ln 2 / bytes) |
| prompts | prompt | format, rule_score, rule:NAME, labels; ``suite_answers.told``; bits of a reference answer |
| pairs | preference pair | ``preference`` |
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from steps.lib import chat, inference, preference
from steps.lib.digests import digest_text
from steps.lib.errors import DataError
from steps.lib.figures import Item
from steps.lib.rows import Message, Pair, Prompt, Text, read_parquet
from steps.lib.rules import Task
from steps.lib.suite_answers import ANSWERS_VERSION, told
from steps.lib.suites import Limits
from steps.lib.work_ledger import Recall

SCORER_VERSION = f"2.{ANSWERS_VERSION}"


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
    asked = asked_of(tokenizer, heldout)  # all that may be wrong with a row shows before a model runs
    both = preference.encoded(tokenizer, heldout.pairs)
    items = [item for suite, texts in suites for item in _texts(name, suite, model, tokenizer, texts, limits, recall)]
    items += _prompts(name, model, tokenizer, heldout, asked, limits, seed, recall)
    items += preference.items(name, model, heldout.pairs, both, limits, recall)
    return items


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
            slices=slices_of(row.source),
            scores={"bits": round(value / math.log(2), 4), "bytes": float(len(row.text.encode()))},
        )
        for row, value in zip(texts, nats, strict=True)
    ]


def slices_of(source: str) -> list[str]:
    """Parts of a suite that an item belongs to, besides its language."""
    return [f"source={source}"] if source else []


def prompt_turns(task: Task | None, row: Prompt) -> list[Message]:
    """What the student is asked: the task's short system line, where there is a task, and the prompt."""
    system = [Message(role="system", content=task.student_system["zh" if row.lang == "zh" else "en"])] if task else []
    return [*system, Message(role="user", content=row.prompt)]


@dataclass(frozen=True)
class Asked:
    """The prompts of a suite as tokens."""

    prompts: list[list[int]]
    references: dict[int, tuple[str, list[int], list[int]]]
    """Place of a prompt that has a reference answer -> the answer; tokens of the prompt and of the answer."""


def asked_of(tokenizer: Any, heldout: Heldout) -> Asked:
    """The prompts of the held-out set as a model is asked them."""
    rows = heldout.prompts
    turns = [prompt_turns(heldout.task, row) for row in rows]
    known = {i: json.loads(row.facts).get("reference") for i, row in enumerate(rows)}
    known = {i: text for i, text in known.items() if isinstance(text, str) and text}
    said = {i: [Message(role="assistant", content=text)] for i, text in known.items()}
    prompts = ((row.id, partial(chat.encode_prompt, tokenizer, turn)) for row, turn in zip(rows, turns, strict=True))
    answers = ((rows[i].id, partial(chat.encode_pair, tokenizer, turns[i], said[i])) for i in known)
    encoded = chat.each("reference answers of held-out prompts", answers)
    references = {i: (text, *pair) for (i, text), pair in zip(known.items(), encoded, strict=True)}
    return Asked(chat.each("held-out prompts", prompts), references)


def _prompts(
    name: str,
    model: Any,
    tokenizer: Any,
    heldout: Heldout,
    asked: Asked,
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
        scores: dict[str, float | None] = {
            **references.get(i, {}),
            **told(answer, row.lang),
        }
        error = ""
        try:
            scores |= _kept(task, row, answer.text) if task else {}
        except Exception as problem:  # one answer that breaks a rule's program is one row with an error
            scores, error = {}, f"{type(problem).__name__}: {problem}"
        items.append(
            Item(
                model=name,
                suite="prompts",
                item_id=row.id,
                cluster_id=row.id,
                lang=row.lang,
                slices=slices_of(row.source),
                scores=scores,
                output=answer.text,
                error=error,
                prompt_digest=digest_text(row.prompt)[:16],
                n_in=len(asked.prompts[i]),
                n_out=answer.tokens,
            )
        )
    return items


def _kept(task: Task, row: Prompt, answer: str) -> dict[str, float | None]:
    """What the task's rules say of an answer."""
    kept = task.check(row.prompt, answer)
    schema = next(rule.name for rule in task.rules if rule.kind == "schema")
    scores: dict[str, float | None] = {
        "format": float(bool(kept[schema])),
        "rule_score": task.score(row.prompt, answer),
    }
    scores |= {f"rule:{rule}": float(value) for rule, value in kept.items() if value is not None}
    return {**scores, **_labels(task, row, answer)}


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


def _reference_bits(model: Any, asked: Asked, limits: Limits, recall: Recall | None) -> dict[int, dict[str, float]]:
    fitting = [(p, a[: max(1, limits.window - len(p))]) for _, p, a in asked.references.values()]
    logps = inference.sequence_logps(model, fitting, batch_size=limits.batch_size, recall=recall)
    return {
        i: {"reference_bits": round(-logp / math.log(2), 4), "reference_bytes": float(len(text.encode()))}
        for (i, (text, p, a)), logp in zip(asked.references.items(), logps, strict=True)
        if len(p) + len(a) <= limits.window
    }
