"""Recipes run against a real server on loopback: rows, what it says, one run."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from openai_server import Act
from pydantic import TypeAdapter

from steps.lib.items import Answer, Lost
from steps.lib.programs import Asker
from steps.lib.recipe_parts import RecipeBase, Work
from steps.lib.recipes import Recipe
from steps.lib.rows import Message, Prompt, Row, Text, Thumb
from steps.lib.stopping import Stop
from steps.lib.teacher_config import HttpTeacher

LOG = logging.getLogger("test")


ROOT = Path(__file__).parents[3]


RECIPES: TypeAdapter[Any] = TypeAdapter(Recipe)


WORDS = [
    "chair",
    "desk",
    "ember",
    "flute",
    "grape",
    "house",
    "igloo",
    "jelly",
    "lemon",
    "mango",
    "nest",
    "ocean",
    "piano",
    "quilt",
    "river",
    "stone",
    "table",
    "violet",
    "water",
    "youth",
]


HAN = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜金生丽水玉出昆冈"


PROMPTS = [
    Prompt(id="p0", lang="en", prompt="How do I fix a heater that rattles?"),
    Prompt(id="p1", lang="zh", prompt="取暖器一直响，应该怎么修理？"),
    Prompt(id="p2", lang="en", prompt="Write a short poem about an old kettle."),
    Prompt(id="p3", lang="zh", prompt="请写一首关于旧水壶的短诗。"),
    Prompt(id="p4", lang="en", prompt="Which tea is best in the morning, and why?"),
    Prompt(id="p5", lang="zh", prompt="早上喝哪一种茶最好？为什么？"),
]


SENTENCES = {
    "en": [f"The {word} of mill number {n} turns {n * 7} times a minute." for n, word in enumerate(WORDS)],
    "zh": [f"第{n}号{HAN[n]}{HAN[n + 7]}磨坊的水轮每分钟转动{n * 7}次。" for n in range(20)],
}


DOCUMENTS = [
    Text(id="d0", lang="en", text=" ".join(SENTENCES["en"])),
    Text(id="d1", lang="zh", text="".join(SENTENCES["zh"])),
    Text(id="d2", lang="en", text="Too short."),
]


THUMBS = [
    Thumb(id="t0", lang="zh", label=False, evidence='{"complaint": "没有说价格"}', prompt=[Message(role="user", content="水壶多少钱？")],
          completion=[Message(role="assistant", content="很便宜。")]),
    Thumb(id="t1", lang="en", label=False, prompt=[Message(role="system", content="Be brief."), Message(role="user", content="What is tea?")],
          completion=[Message(role="assistant", content="Well, where shall I begin?")]),
    Thumb(id="t2", lang="en", label=True, prompt=[Message(role="user", content="Hi")], completion=[Message(role="assistant", content="Hello")]),
]  # fmt: skip


CASES: dict[str, tuple[dict[str, Any], list[Any], str]] = {
    "answer": ({}, PROMPTS, "plain"),
    "self_instruct": ({"rounds": 2, "per_request": 3}, PROMPTS, "plain"),
    "evolve": ({"rounds": 2}, PROMPTS, "plain"),
    "documents": ({"chunk_tokens": 400, "overlap_tokens": 80, "per_chunk": 2}, DOCUMENTS, "documents-answer"),
    "personas": ({"per_persona": 2}, PROMPTS, "plain"),
    "revise": ({"rounds": 2, "drawn": 2}, PROMPTS, "plain"),
    "correct": ({}, THUMBS, "correct"),
}


LAST = {"revise": "revise2"}


Said = Callable[[str], str | None]


def text_of(seed: str, lang: str) -> str:
    draw = random.Random(seed)
    return "".join(draw.sample(HAN, 14)) + "。" if lang == "zh" else " ".join(draw.sample(WORDS, 9)) + "."


def reply(turn: str) -> str:
    """What the server says to a turn: a list, a verdict or a text, always the same, in the language it is asked in."""
    lang = "zh" if len(re.findall(r"[一-鿿]", turn)) > 30 or re.fullmatch(r"[^a-z]+", turn) else "en"
    for field, count in (("prompts", 3), ("questions", 2)):
        if f'{{"{field}"' in turn:
            return json.dumps({field: [text_of(f"{turn}{n}", lang) for n in range(count)]}, ensure_ascii=False)
    if '{"supported"' in turn:
        supported = int(hashlib.sha256(turn.encode()).hexdigest()[0], 16) > 3
        return json.dumps({"supported": supported} | ({} if supported else {"reason": "no ground"}))
    return text_of(turn, lang)


def faithful(number: int, body: dict[str, Any]) -> Act:
    return Act(text=reply(body["messages"][-1]["content"]))


def saying(said: Said) -> Callable[[int, dict[str, Any]], Act]:
    """A server that says what ``said`` gives for a turn, and else what it always does."""

    def decide(number: int, body: dict[str, Any]) -> Act:
        turn = body["messages"][-1]["content"]
        return Act(text=reply(turn) if (planted := said(turn)) is None else planted)

    return decide


def recipe(kind: str, **more: Any) -> RecipeBase:
    made: RecipeBase = RECIPES.validate_python({"kind": kind, **CASES[kind][0], **more})
    return made


def teacher(url: str, **more: Any) -> HttpTeacher:
    return HttpTeacher.model_validate({"kind": "http", "name": "t", "endpoint": "test", "base_url": url, "model": "m", "concurrency": 4,
                                       "backoff_seconds": 0.01, "timeout_seconds": 5, "grace_seconds": 1, **more})  # fmt: skip


class Done:
    """What a run of a recipe gave."""

    def __init__(self, results: list[Answer | Lost], asker: Asker) -> None:
        self.answers = [one for one in results if isinstance(one, Answer)]
        self.lost = [one for one in results if isinstance(one, Lost)]
        self.rows = asker.rows.dump()
        self.funnels = dict(asker.funnels)

    def reasons(self, stage: str) -> Counter[str]:
        return Counter(one.reason for one in self.lost if one.stage == stage)

    def plain(self) -> list[Any]:
        """All that a row is made of; no time, no cost."""
        rows = [
            (one.item.id, one.item.sample, one.item.row.prompt, one.parsed.answer, one.request, one.item.trail)
            for one in self.answers
        ]
        return [rows, [(one.item.id, one.stage, one.reason, one.detail) for one in self.lost], self.rows]  # fmt: skip


def go(
    kind: str,
    url: str,
    folder: Path,
    *,
    rows: Iterable[Row] | None = None,
    seed: int = 0,
    samples: int = 1,
    prompt_file: Path | None = None,
    stop: Stop | None = None,
    drop_flags: tuple[str, ...] = ("empty", "unparsed", "schema", "truncated"),
    **more: Any,
) -> Done:
    """Run a recipe."""
    given, file = CASES[kind][1], prompt_file or ROOT / f"configs/prompts/{CASES[kind][2]}.yaml"
    folder.mkdir(exist_ok=True, parents=True)
    with Asker([teacher(url)], seed=seed, folder=folder, log=LOG, stop=stop) as asker:
        one = recipe(kind, **more)
        results = one.run(Work(asker, given if rows is None else rows, one.read(file), samples, drop_flags))
        return Done(list(results), asker)
