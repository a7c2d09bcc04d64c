"""The seed data is current, reproducible, rightly labelled, and its held-out part is apart from the training part."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

import make_seed  # noqa: E402

from steps.lib.rules import Task, language_of  # noqa: E402
from steps.lib.scripted import ScriptedTeacher  # noqa: E402

SEED = ROOT / "data" / "seed"
SIDES = [
    ("general/train.jsonl", "general/heldout.jsonl"),
    ("domain/train.jsonl", "domain/heldout.jsonl"),
    ("task/prompts_train.jsonl", "task/prompts_heldout.jsonl"),
    ("pairs/train.jsonl", "pairs/heldout.jsonl"),
    ("thumbs/train.jsonl", "pairs/heldout.jsonl"),
    ("prompts/task/examples.jsonl", "task/prompts_heldout.jsonl"),
]
MESSAGES = ("task/prompts_train.jsonl", "task/prompts_heldout.jsonl")


def rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SEED / path).read_text(encoding="utf-8").splitlines()]


def text(row: dict[str, Any]) -> str:
    """The text by which a row is compared: a document, or the customer's message."""
    for name in ("text", "question"):
        if name in row:
            return str(row[name])
    return str(row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"])


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    return len(left & right) / len(left | right)


def test_generated_again_the_files_are_the_same_bytes(tmp_path: Path) -> None:
    make_seed.write(tmp_path / "seed")
    made = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert made == sorted([Path("README.md"), *(p.relative_to(ROOT / "data") for p in SEED.rglob("*.jsonl"))]), (
        "run python tests/seed/make_seed.py --out data/seed"
    )
    for path in made:
        assert (tmp_path / path).read_bytes() == (ROOT / "data" / path).read_bytes(), path


def test_table_of_the_readme_is_current() -> None:
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (seed/\S+) \|[^|]*\| *(\d*) *\| (\d+) \| ([0-9a-f]{16}) \|", readme, re.M)
    assert len(table) == 19 == len([p for p in SEED.rglob("*") if p.is_file()])
    for path, count, size, digest in table:
        data = (ROOT / "data" / path).read_bytes()
        assert (int(size), digest) == (len(data), hashlib.sha256(data).hexdigest()[:16]), path
        assert not count or int(count) == data.count(b"\n"), path


def test_size_is_small_enough_for_git() -> None:
    assert sum(p.stat().st_size for p in SEED.rglob("*") if p.is_file()) < 1_400_000


@pytest.mark.parametrize(("train", "heldout"), SIDES)
def test_no_heldout_text_is_a_training_text_or_near_one(train: str, heldout: str) -> None:
    known = {make_seed.digest(text(row)) for row in rows(train)}
    # Jaccard over an inverted index; `test_nearest_is_the_exact_jaccard` checks the index against the definition
    seen = make_seed.Seen()
    for row in rows(train):
        seen.add(text(row))
    for row in rows(heldout):
        assert make_seed.digest(text(row)) not in known, row["id"]
        assert seen.nearest(text(row)) < 0.5, row["id"]


def test_nearest_is_the_exact_jaccard() -> None:
    train = [text(row) for row in rows("task/prompts_train.jsonl")][:300]
    seen = make_seed.Seen()
    for sentence in train:
        seen.add(sentence)
    rng = random.Random(0)
    for sentence in [*rng.sample(train, 5), *(text(row) for row in rows("task/prompts_heldout.jsonl")[:20])]:
        grams = make_seed.shingles(sentence)
        assert seen.nearest(sentence) == max(jaccard(grams, make_seed.shingles(other)) for other in train)


def test_tokens_are_runs_and_single_characters() -> None:
    assert make_seed.tokens("Order K48213，订单K48213坏了!") == ["order", "k48213", "订", "单", "k48213", "坏", "了"]


def test_heldout_order_numbers_occur_in_no_training_file() -> None:
    numbers = {row["order_number"] for row in rows("task/prompts_heldout.jsonl")} - {None}
    assert len(numbers) > 80
    for path in SEED.rglob("*.jsonl"):
        if "heldout" not in path.name or path.parent.name in {"general", "domain"}:
            found = set(make_seed.ORDER.findall(path.read_text(encoding="utf-8")))
            assert not found & numbers, path


@pytest.mark.parametrize(
    "path", sorted(str(p.relative_to(SEED)) for p in SEED.rglob("*.jsonl") if p.parent.name != "badcases")
)
def test_rows_are_unique_complete_and_in_their_language(path: str) -> None:
    found = rows(path)
    if "id" in found[0]:
        assert len({row["id"] for row in found}) == len(found)
    for row in found:
        assert language_of(re.sub(r"\{.*?\}", "", text(row))) == row["lang"], row
        assert not re.search(r"\{[a-z]+\d?\}|  |，，|。。|。，|，。| \.|\b[Aa] [aeio]\w", text(row)), row
    share = sum(row["lang"] == "zh" for row in found) / len(found)
    assert 0.4 <= share <= 0.6 or path.startswith(("general", "domain"))  # those are balanced by bytes
    sizes = {lang: sum(len(text(row).encode()) for row in found if row["lang"] == lang) for lang in ("zh", "en")}
    assert not path.startswith(("general", "domain")) or 0.8 < sizes["zh"] / sizes["en"] < 1.25


def test_general_text_is_not_about_the_shop_and_repeats_codes() -> None:
    texts = [text(row) for row in rows("general/train.jsonl")]
    assert not [t for t in texts if re.search(r"蓝鹿|售后|退款|Blue Deer|refund|warranty|order number|订单", t)]
    repeated = [t for t in texts if any(t.count(code) > 1 for code in re.findall(r"[A-Z]{1,2}\d{3,5}", t))]
    assert 0.28 <= len(repeated) / len(texts) <= 0.45
    shop_like = [t for t in repeated if make_seed.ORDER.search(t)]
    assert 0.3 <= len(shop_like) / len(repeated) <= 0.7
    assert len([t for t in texts if '{"' in t]) > 60


@pytest.mark.parametrize("path", MESSAGES)
def test_labels_of_the_messages_are_what_the_teacher_and_the_rules_see(path: str) -> None:
    teacher, task = ScriptedTeacher(SEED / "task" / "teacher.yaml"), Task.read(SEED / "task" / "task.yaml")
    for row in rows(path):
        prompt, order = row["prompt"], row["order_number"]
        assert teacher.intent(prompt) == row["intent"], row
        assert make_seed.ORDER.findall(prompt) == ([order] if order else []), row
        assert teacher.order_number(prompt) == order, row
        assert order is None or row["intent"] != "usage", row
        verdict = task.check(prompt, teacher.compose(prompt, (), seed=0, sample=0))
        applicable = teacher.applicable(prompt)
        assert (verdict["asks_order_number"] is not None) == ("no_ask" in applicable), row
        assert (verdict["no_refund_promise"] is not None) == ("refund_promise" in applicable), row
        length = len(make_seed.tokens(prompt))
        assert (12 <= length <= 40) if row["lang"] == "zh" else (8 <= length <= 25), row


@pytest.mark.parametrize("path", MESSAGES)
def test_messages_cover_every_cell(path: str) -> None:
    found = rows(path)
    cells = {(row["intent"], row["lang"], row["order_number"] is not None) for row in found}
    assert len(cells) == 5 * 2 * 2 + 2
    assert 0.5 <= sum(row["order_number"] is not None for row in found) / len(found) <= 0.6
    teacher = ScriptedTeacher(SEED / "task" / "teacher.yaml")
    refunds = [row["prompt"] for row in found if row["intent"] == "refund"]
    outside = sum("refund_promise" in teacher.applicable(prompt) for prompt in refunds)
    assert 0.5 <= outside / len(refunds) <= 0.8


@pytest.mark.parametrize("side", ["train", "heldout"])
def test_pairs_differ_in_the_one_named_flaw(side: str) -> None:
    task = Task.read(SEED / "task" / "task.yaml")
    messages = {row["prompt"] for row in rows(f"task/prompts_{side}.jsonl")}
    rule = {"preamble": "no_preamble", "no_ask": "asks_order_number", "refund_promise": "no_refund_promise"}
    total = [0, 0]
    for row in rows(f"pairs/{side}.jsonl"):
        assert set(row) == {"id", "lang", "prompt", "chosen", "rejected"}
        system, user = row["prompt"]
        assert (system["role"], user["role"]) == ("system", "user") and user["content"] in messages
        assert system["content"] == task.student_system[row["lang"]]
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        total[0] += len(chosen)
        total[1] += len(rejected)
        assert False not in task.check(user["content"], chosen).values(), row["id"]
        broken = [name for name, kept in task.check(user["content"], rejected).items() if kept is False]
        assert broken == [rule[row["id"].split("-")[3]]], row["id"]
    assert 0.93 < total[0] / total[1] < 1.07


def test_thumbs_are_what_the_rules_see_on_messages_without_a_pair() -> None:
    task = Task.read(SEED / "task" / "task.yaml")
    messages = {row["prompt"] for row in rows("task/prompts_train.jsonl")}
    paired = {text(row) for row in rows("pairs/train.jsonl")}
    found = rows("thumbs/train.jsonl")
    for row in found:
        assert set(row) == {"id", "lang", "prompt", "completion", "label"}
        assert text(row) in messages - paired and row["prompt"][0]["content"] == task.student_system[row["lang"]]
        assert (False not in task.check(text(row), row["completion"][0]["content"]).values()) is row["label"], row["id"]
    assert sum(row["label"] for row in found) == 2 * len(found) / 3


def test_examples_are_flawless() -> None:
    task = Task.read(SEED / "task" / "task.yaml")
    assert [task.score(row["prompt"], row["answer"]) for row in rows("prompts/task/examples.jsonl")] == [1.0] * 8
