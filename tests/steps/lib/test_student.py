"""Rows in tokens of the student, with the tiny student's own tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from steps.lib import chat, tiny
from steps.lib.config import key_view
from steps.lib.errors import ModelError
from steps.lib.rows import Chat, Message, Pair, Prompt, Row, Text, Thumb
from steps.lib.student import Counts, Student, counts, judge_lengths, lengths, student_identity

ZH, EN = "电水壶的保修期是两年。", "The warranty of the kettle is two years."


def said(*turns: str, system: str = "") -> list[Message]:
    talk = [Message(role=("user", "assistant")[number % 2], content=text) for number, text in enumerate(turns)]
    return [Message(role="system", content=system), *talk] if system else talk


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("student")
    tokenizer = tiny.build_tokenizer([ZH, EN] * 5, tiny.TinyConfig(vocab_size=420))
    tokenizer.add_special_tokens({"additional_special_tokens": ["[PAUSE]"]})
    tokenizer.save_pretrained(path)
    return path


ROWS: list[Row] = [
    Text(id="t", lang="zh", source="s", text=ZH),
    Prompt(id="p", lang="en", source="s", prompt=EN),
    Chat(id="c", lang="en", source="s", messages=said(EN, ZH, "ok", EN, system="Be kind.")),
    Pair(id="q", lang="en", source="s", prompt=said("hi"), chosen=said("x", "a")[1:], rejected=said("x", EN * 3)[1:]),
    Thumb(id="u", lang="zh", source="s", prompt=said("hi"), completion=said("x", ZH)[1:], label=False),
]


def test_rows_are_counted_as_sft_trains_on_them(folder: Path) -> None:
    tokenizer = counts(str(folder))._tokenizer
    found = lengths(ROWS, Student(tokenizer=str(folder)))
    assert found[0] == len(tokenizer(ZH)["input_ids"]) and found[1] == len(tokenizer(EN)["input_ids"])
    for number, turns in (
        (2, ROWS[2].messages),
        (3, [*ROWS[3].prompt, *ROWS[3].rejected]),
        (4, [*ROWS[4].prompt, *ROWS[4].completion]),
    ):  # type: ignore[attr-defined]
        assert found[number] == len(chat.encode(tokenizer, chat.plain(turns)).input_ids)
    assert [lengths([row], Student(tokenizer=str(folder)))[0] for row in ROWS] == found
    assert lengths(ROWS, Student()) == [0] * 5 and lengths([], Student(tokenizer=str(folder))) == []


def test_limits_drop_with_a_reason_each(folder: Path) -> None:
    def reasons(**limits: int) -> list[str | None]:
        student = Student.model_validate({"tokenizer": str(folder), **limits})
        return [finding and finding[0] for finding in judge_lengths(ROWS, student, lengths(ROWS, student))]

    assert reasons() == [None] * 5
    assert reasons(text_min_tokens=1000, chat_max_tokens=1) == ["too_few_tokens", None, *["too_many_tokens"] * 3]
    assert reasons(text_max_tokens=1, chat_min_tokens=1000) == ["too_many_tokens", None, *["too_few_tokens"] * 3]
    student = Student(tokenizer=str(folder), text_max_tokens=1)
    assert judge_lengths(ROWS[:1], student, [9]) == [("too_many_tokens", "9 tokens, at most 1")]


def test_its_special_tokens_are_known(folder: Path) -> None:
    assert set(counts(str(folder)).special) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "[PAUSE]"}


def test_a_tokenizer_that_says_to_cut_counts_all_the_same(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "tokenizer.json"
    value = json.loads(file.read_text())
    value["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(value))
    assert Counts(str(tmp_path)).tokens([EN * 9]) == Counts(str(folder)).tokens([EN * 9]) > [4]
    assert student_identity(Student(tokenizer=str(tmp_path))) != student_identity(Student(tokenizer=str(folder)))
    assert student_identity(Student()) is None


def test_a_template_that_refuses_a_conversation_gives_a_finding(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}x"
    (tmp_path / "chat_template.jinja").write_text(template)
    student = Student(tokenizer=str(tmp_path))
    findings = judge_lengths(ROWS, student, lengths(ROWS, student))
    assert [finding and finding[0] for finding in findings] == [None, None, "chat_template", None, None]
    assert findings[2] is not None and "System role not supported" in findings[2][1]


def test_limits_without_a_tokenizer_and_limits_that_cross_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="text_max_tokens, chat_min_tokens cannot be kept without a tokenizer"):
        Student(text_max_tokens=5, chat_min_tokens=2)
    with pytest.raises(ValidationError, match="chat_min_tokens 9 is more than chat_max_tokens 5"):
        Student(tokenizer=str(folder), chat_min_tokens=9, chat_max_tokens=5)
    with pytest.raises(ModelError, match="no tokenizer.json"):
        Counts(str(tmp_path))
    assert key_view(Student()) == {}, "switched off, it leaves old keys as they were"
