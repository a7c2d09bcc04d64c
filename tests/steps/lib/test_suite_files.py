"""Suites that are read from files: what their rows must be, how answers are scored, and that one bad item is one error."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from steps.evaluate import EvaluateConfig, externals
from steps.lib import inference, suite_answers, suite_config, tiny
from steps.lib.errors import DataError
from steps.lib.figures import measure, models_with, sliced
from steps.lib.inference import Answer
from steps.lib.suite_answers import Question
from steps.lib.suite_choices import Choices, right_of, scores_of
from steps.lib.suite_config import AnySuite
from steps.lib.suite_format import Format, judged, problem_of
from steps.lib.suite_instructions import Instructions
from steps.lib.suite_math import Gsm8k, last_number
from steps.lib.suites import Limits, Scored

SCHEMA = {
    "type": "object",
    "required": ["day"],
    "additionalProperties": False,
    "properties": {"day": {"type": "string", "format": "date"}},
}


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    texts = ["Is it fine? 好吗？", *(f"What is {n} plus {n}? 请问{n}" for n in range(40))]
    return tiny.build_tokenizer(texts, tiny.TinyConfig(vocab_size=400))


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    import torch

    torch.manual_seed(3)
    shape = tiny.TinyConfig(vocab_size=400, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2)
    made = tiny.build_model(tokenizer, shape)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(6.0)  # far from uniform, so that a mistake shows
    return made.eval()


def who(model: Any, tokenizer: Any, batch_size: int = 8) -> Scored:
    return Scored("m", model, tokenizer, Limits(8, 64, batch_size), seed=0)


# Scorers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18.", "18"), ("so 1,234 apples", "1234"), ("#### -5", "-5"), ("x = 3.50.", "3.5"), ("共１２元", "12"),
        ("答案是42。", "42"), ("$0.25 each", "0.25"), ("7 of 9", "9"), ("$$\\boxed{16}$$", "16"), ("= −5", "-5"), ("2-5", "5"),
        ("答案是1,234元", "1234"), ("是-5", "-5"), ("1,2345", "2345"),
    ],
)  # fmt: skip
def test_the_last_number_of_an_answer(text: str, number: str) -> None:
    assert last_number(text) == Decimal(number)


def test_a_text_without_a_number_has_none() -> None:
    assert last_number("none at all") is None is last_number("")


@pytest.mark.parametrize(
    ("text", "strict", "fenced", "schema"),
    [
        ('{"day": "2026-02-28"}', 1, 0, 1),
        (' {"day": "2026-02-28"}\n', 1, 0, 1),
        ('{"day": "2026-02-30"}', 1, 0, 0),
        ('{"day": "2026-02-28", "x": 1}', 1, 0, 0),
        ('{"day": "2026-02-28", "day": "2026-02-28"}', 0, 0, 0),
        ('{"day": NaN}', 0, 0, 0),
        ('Here:\n```json\n{"day": "2026-02-28"}\n```\nDone', 0, 1, 0),
        ("```\n{}\n```\n```\n{}\n```", 0, 0, 0),
        ("```json\n{day}\n```", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_answers_in_json(text: str, strict: int, fenced: int, schema: int) -> None:
    assert judged(text, SCHEMA) == {"json_strict": strict, "json_fenced": fenced, "schema_ok": schema}


def test_a_schema_that_nothing_checks_is_refused() -> None:
    assert "format postcode" in str(problem_of({"properties": {"a": {"format": "postcode"}}}))
    assert "no JSON Schema" in str(problem_of({"type": "objekt"})) and problem_of(SCHEMA) is None


def test_choices_by_sum_and_by_byte() -> None:
    assert scores_of([-4.0, -6.0], ["no", "certainly"], 1) == {"correct": 0.0, "correct_norm": 1.0}
    assert scores_of([-4.0, -6.0], ["no", "certainly"], 0) == {"correct": 1.0, "correct_norm": 0.0}
    assert scores_of([-4.0, -4.0], ["aa", "bb"], 0) == {"correct": 0.0, "correct_norm": 0.0}, "a tie is wrong"
    asked = [({"choices": ["a", "c", "b"], "answer": answer}) for answer in (1, "c", "B", "C", "d", 3, -1, True)]
    assert [right_of(row) for row in asked] == [1, 1, 1, 2, None, None, None, None]


def test_what_is_told_of_any_answer() -> None:
    told = suite_answers.told(Answer("I'm sorry, but I can't help with that.", 9, True), "en")
    assert (told["refusal"], told["language"], told["empty"], told["finished"]) == (1.0, 1.0, 0.0, 1.0)
    told = suite_answers.told(Answer(" ", 9, False), "zh")
    assert (told["refusal"], told["language"], told["empty"], told["finished"]) == (0.0, 0.0, 1.0, 0.0)


# Files


def test_rows_that_are_wrong_are_all_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "instruction_id_list": ["no:such"], "kwargs": [{}]},
        {"prompt": "a", "instruction_id_list": ["startend:quotation"], "kwargs": []},
        {"prompt": "a", "instruction_id_list": ["keywords:existence"], "kwargs": [{}]},
    ]
    with pytest.raises(DataError) as caught:
        Instructions.read("r", jsonl(tmp_path / "r.jsonl", *rows), None)
    assert [part in str(caught.value) for part in ("unknown", "other numbers", "takes ['keywords']")] == [True] * 3
    with pytest.raises(DataError, match=r"line 1 .*no question.*\n.*row 0|line 1"):
        Gsm8k.read("g", jsonl(tmp_path / "g.jsonl", {"answer": "#### 1"}), None)
    with pytest.raises(DataError, match="no number behind ####"):
        Gsm8k.read("g", jsonl(tmp_path / "g.jsonl", {"question": "?", "answer": "one"}), None)
    with pytest.raises(DataError, match="must differ"):
        Choices.read("c", jsonl(tmp_path / "c.jsonl", {"question": "?", "choices": ["a", "a"], "answer": 0}), None)
    with pytest.raises(DataError, match="no choice"):
        Choices.read("c", jsonl(tmp_path / "c.jsonl", {"question": "?", "choices": ["a", "b"], "answer": 2}), None)
    with pytest.raises(DataError, match="format nothing"):
        Format.read("f", jsonl(tmp_path / "f.jsonl", {"prompt": "?", "schema": {"format": "nothing"}}), None)
    with pytest.raises(DataError, match="ids twice"):
        same = {"id": 1, "question": "?", "answer": "#### 1"}
        Gsm8k.read("g", jsonl(tmp_path / "g.jsonl", same, same), None)
    (tmp_path / "bad.jsonl").write_text("{\n[]\n")
    with pytest.raises(DataError, match=r"line 1 .*\n.*line 2"):
        suite_answers.read_rows(tmp_path / "bad.jsonl", ("a",))
    with pytest.raises(DataError, match="cannot be read"):
        suite_answers.read_rows(tmp_path / "none.jsonl", ())


def test_the_seed_suites_are_read_and_their_digests_tell_any_change(tmp_path: Path) -> None:
    asked = TypeAdapter(tuple[AnySuite, ...]).validate_python(
        [{"kind": kind} for kind in ("rules", "format", "choices")]
    )
    whole = suite_config.read(asked, None)
    assert [len(suite) for suite in whole] == [200, 40, 80] and [len(s) for s in suite_config.read(asked, 3)] == [3] * 3
    digests = {suite.digest() for suite in (*whole, *suite_config.read(asked, 3))}
    assert len(digests) == 6
    config = EvaluateConfig(suites=asked)
    before = externals(config, {"base": "x"})
    lines = Path("data/seed/rules/format.jsonl").read_text().splitlines()
    (tmp_path / "f.jsonl").write_text("\n".join(lines).replace("2026", "2027") + "\n \n")
    moved = asked[1].model_copy(update={"path": tmp_path / "f.jsonl"})
    after = externals(EvaluateConfig(suites=(asked[0], moved, asked[2])), {"base": "x"})
    assert {name for name in before if before[name] != after[name]} == {"suite/format"}


def test_names_of_suites_are_their_own() -> None:
    for names in (["a", "a"], ["pairs"]):
        with pytest.raises(ValidationError, match="names twice"):
            EvaluateConfig.model_validate({"suites": [{"kind": "rules", "name": name} for name in names]})


def test_public_files_are_read(shared_data: Path) -> None:
    kinds = {"ifeval": "ifeval.jsonl", "gsm8k": "gsm8k_test.jsonl"}
    asked = [{"kind": kind, "path": str(shared_data / "eval" / name)} for kind, name in kinds.items()]
    sizes = [len(s) for s in suite_config.read(TypeAdapter(tuple[AnySuite, ...]).validate_python(asked), None)]
    assert sizes == [262, 218]


# Whole suites on a model


def test_batch_one_equals_batch_eight_in_every_suite(model: Any, tokenizer: Any) -> None:
    asked = TypeAdapter(tuple[AnySuite, ...]).validate_python(
        [{"kind": kind} for kind in ("rules", "format", "choices")]
    )
    for suite in suite_config.read(asked, 9):
        one, eight = suite.score(who(model, tokenizer, 1)), suite.score(who(model, tokenizer, 8))
        assert [item.output for item in one] == [item.output for item in eight]
        assert [item.scores for item in one] == [item.scores for item in eight]
        own = [item for item in one if item.suite == suite.name]
        assert len(own) == len(suite) and all(item.prompt_digest and not item.error for item in own)
        for what in suite.measures:
            assert models_with(one, what) == {"m"} and measure(one, what, "m").interval.n >= 9


def test_answers_do_not_depend_on_the_side_of_the_padding(model: Any, tokenizer: Any) -> None:
    """Log-probabilities are taken with padding on the right; the same rows padded on the left give the same."""
    import torch

    rows = [([5, 6, 7], [8, 9]), ([5] * 9, [6, 7, 8, 9]), ([7], [9])]
    right = inference.sequence_logps(model, rows, batch_size=3)
    sequences = [prompt + answer for prompt, answer in rows]
    _, given, width = inference.left_padded(model, sequences, tokenizer.pad_token_id)
    positions = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logps = torch.log_softmax(model(**given, position_ids=positions).logits.float(), -1)  # (B, T, V)
    left = [
        sum(float(logps[n, width - len(answer) + k - 1, token]) for k, token in enumerate(answer))
        for n, (_, answer) in enumerate(rows)
    ]
    assert left == pytest.approx(right, abs=1e-4)


def test_choices_equal_a_hand_computation(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    from steps.lib import chat

    row = {"question": "Is it fine?", "choices": ["yes", "no", "好"], "answer": 1}
    [item] = Choices.read("c", jsonl(tmp_path / "c.jsonl", row), None).score(who(model, tokenizer))
    asked = [{"role": "user", "content": "Is it fine?"}]
    logps = [
        inference.sequence_logps(
            model, [chat.encode_pair(tokenizer, asked, [{"role": "assistant", "content": choice}])], batch_size=1
        )[0]
        for choice in row["choices"]
    ]
    best = max(range(3), key=logps.__getitem__)
    assert item.output == row["choices"][best] and item.scores["correct"] == float(best == 1)


def test_one_item_that_raises_is_one_error_and_the_suite_keeps_its_size(model: Any, tokenizer: Any) -> None:
    questions = [Question(str(n), f"What is {n}?", "en", slices=("source=x",)) for n in range(4)]

    def score(one: Question, text: str) -> dict[str, float | None]:
        if one.id == "2":
            raise RecursionError("too deep")
        return {"right": 1.0}

    items = suite_answers.answered(who(model, tokenizer), "s", questions, score)
    assert [item.error for item in items] == ["", "", "RecursionError: too deep", ""]
    assert [item.scores.get("right") for item in items] == [1.0, 1.0, None, 1.0]
    what = Gsm8k("s", []).measures[0].model_copy(update={"score": "right"})
    assert measure(items, what, "m").interval.value == 0.75, "it counts as failed"
    lower = what.model_copy(update={"better": "lower"})
    with pytest.raises(DataError, match="RecursionError"):
        measure(items, lower, "m")

    class Refuses:
        """A tokenizer whose template refuses one prompt."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, *args: Any, **named: Any) -> Any:
            return tokenizer(*args, **named)

        def apply_chat_template(self, messages: Any, **named: Any) -> Any:
            if "1" in messages[0]["content"]:
                raise ValueError("no 1")
            return tokenizer.apply_chat_template(messages, **named)

    items = suite_answers.answered(who(model, Refuses()), "s", questions, lambda one, text: {"right": 1.0})
    assert [item.error for item in items] == ["", "ValueError: no 1", "", ""] and len(items) == 4


def test_parts_of_a_suite_have_their_own_figures(model: Any, tokenizer: Any) -> None:
    [suite] = suite_config.read(TypeAdapter(tuple[AnySuite, ...]).validate_python([{"kind": "choices"}]), None)
    assert isinstance(suite, Choices)
    mixed = Choices("choices", [one for one in suite.questions if one.id[-1] in "01"])
    items = mixed.score(who(model, tokenizer))
    found = sliced(items, mixed.measures[0], ["m"])
    assert [figure.slice for figure in found] == ["lang=en", "lang=zh"]
    whole = measure(items, mixed.measures[0], "m").interval
    assert sum(f.interval.n * f.interval.value for f in found) == pytest.approx(whole.n * whole.value)
    assert sliced([item for item in items if item.lang == "zh"], mixed.measures[0], ["m"]) == [], (
        "one part is the whole"
    )
