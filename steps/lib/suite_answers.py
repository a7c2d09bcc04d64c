"""What suites of questions share: rows of a file, greedy answers of one model, and what is told of any answer.

A row that cannot be asked or scored becomes an item with an ``error``; it never makes the suite smaller.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.lib import chat, inference, phrases
from steps.lib.digests import digest_text
from steps.lib.errors import DataError
from steps.lib.figures import Item
from steps.lib.inference import Answer
from steps.lib.language import detect
from steps.lib.rows import Lang, Message
from steps.lib.suites import Scored

ANSWERS_VERSION = "1"
"""Of what ``told`` says of an answer."""


@dataclass(frozen=True)
class Question:
    """One question of a suite."""

    id: str
    prompt: str
    lang: Lang
    row: Mapping[str, Any] = field(default_factory=dict)
    """All columns of its row."""
    slices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Questions:
    """What every suite of questions has."""

    name: str
    questions: list[Question]

    @property
    def prompts(self) -> Mapping[str, str]:
        """Item id -> what is asked."""
        return {one.id: one.prompt for one in self.questions}

    def __len__(self) -> int:
        """Questions."""
        return len(self.questions)


def read_rows(path: Path, required: Sequence[str], limit: int | None = None) -> list[dict[str, Any]]:
    """Rows of a JSONL file, the first ``limit``.

    Raises:
        DataError: the file is missing or empty, or a line is no object or lacks a column; all such lines are named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: got {error.strerror}; give the path of a JSONL file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text: got {error.reason}, because it is not UTF-8; convert it") from None
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for number, line in [(n, one) for n, one in enumerate(lines, 1) if one.strip()][:limit]:
        try:
            row = json.loads(line)
            missing = [name for name in required if name not in row] if isinstance(row, dict) else list(required)
        except ValueError as error:
            problems.append(f"{path} line {number} is wrong: got {error}, because it is no JSON; mend the line")
            continue
        if missing:
            problems.append(
                f"{path} line {number} is wrong: got no {', '.join(missing)}, because the suite reads these columns; "
                "add them, or name another kind of suite"
            )
        else:
            rows.append(row)
    if problems:
        raise DataError("\n".join(problems))
    if not rows:
        raise DataError(f"{path} has no row: got an empty file, because nothing was written to it; give another file")
    return rows


def language_of(row: Mapping[str, Any], text: str) -> Lang:
    """The row's own ``lang``, or that of its text."""
    lang = row.get("lang")
    return lang if lang in ("zh", "en", "other") else detect(text)


def unique(suite: str, questions: Sequence[Question]) -> list[Question]:
    """The questions.

    Raises:
        DataError: two have one id.
    """
    ids = [one.id for one in questions]
    if twice := sorted({one for one in ids if ids.count(one) > 1}):
        raise DataError(
            f"suite {suite} has ids twice: got {', '.join(twice[:5])}, because rows were copied; give each row its own"
        )
    return list(questions)


def content_digest(kind: str, version: str, questions: Sequence[Question], *settings: object) -> str:
    """Of rows, settings and scorers."""
    rows = [(one.id, one.lang, dict(one.row)) for one in questions]
    return digest_text(json.dumps([kind, version, ANSWERS_VERSION, rows, settings], sort_keys=True, default=str))


def told(answer: Answer, lang: Lang) -> dict[str, float | None]:
    """What can be told of any answer: whether it ended, is empty, refuses, is in the prompt's language; its repetition."""
    return {
        "finished": float(answer.finished),
        "empty": float(not answer.text.strip()),
        "refusal": float(phrases.refusal(answer.text.lstrip()) is not None),
        "language": float(detect(answer.text) == lang),
        "repetition": repetition(answer.text),
    }


def repetition(text: str, n: int = 8) -> float:
    """Share of the text's character n-grams that occurred before in it; 0 for a text shorter than n."""
    grams = [text[i : i + n] for i in range(len(text) - n + 1)]
    return round(1 - len(set(grams)) / len(grams), 4) if grams else 0.0


def answered(
    who: Scored, suite: str, questions: Sequence[Question], score: Callable[[Question, str], Mapping[str, float | None]]
) -> list[Item]:
    """An item a question: the model's greedy answer, scored.

    Args:
        score: scores of one answer; what it raises becomes the item's error.
    """
    encoded: dict[int, list[int]] = {}
    errors: dict[int, str] = {}
    for place, one in enumerate(questions):
        try:
            encoded[place] = chat.encode_prompt(who.tokenizer, [Message(role="user", content=one.prompt)])
        except Exception as error:  # an item that cannot be asked is told as such, and the others are asked
            errors[place] = f"{type(error).__name__}: {error}"
    drawing = inference.Sampling(0.0, 1.0, who.limits.max_tokens)
    given = inference.generate(
        who.model,
        who.tokenizer,
        list(encoded.values()),
        drawing,
        seed=who.seed,
        batch_size=who.limits.batch_size,
        recall=who.recall,
    )
    answers = dict(zip(encoded, given, strict=True))
    items: list[Item] = []
    for place, one in enumerate(questions):
        answer, scores = answers.get(place), dict[str, float | None]()
        if answer:
            try:
                scores = {**told(answer, one.lang), **score(one, answer.text)}
            except Exception as error:  # one answer that breaks a scorer is one row with an error
                errors[place] = f"{type(error).__name__}: {error}"
                scores = {}
        items.append(
            Item(
                model=who.name,
                suite=suite,
                item_id=one.id,
                cluster_id=str(one.row.get("cluster") or one.id),
                lang=one.lang,
                slices=list(one.slices),
                scores=scores,
                output=answer.text if answer else "",
                n_in=len(encoded.get(place, ())),
                n_out=answer.tokens if answer else 0,
                error=errors.get(place, ""),
                prompt_digest=digest_text(one.prompt)[:16],
            )
        )
    return items
