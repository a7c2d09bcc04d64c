"""Every rule of the task passes, fails and resists tricks in both languages; strict parsing; reading of the file."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from steps.lib.errors import ConfigError
from steps.lib.rules import Task, language_of, parse_strict, script_of

PATH = Path(__file__).resolve().parents[3] / "data" / "seed" / "task" / "task.yaml"
TASK = Task.read(PATH)

EN_ORDER = "My kettle leaks at the base. I want a refund. I bought it last year. Order K48213."
EN_NONE = "My kettle leaks at the base. Please repair it."
EN_USAGE = "How do I clean the lid of the kettle?"
EN_WITHIN = "I want a refund. I bought it two days ago. Order K48213."
ZH_ORDER = "我的电水壶底部漏水，我要退款。两个月前买的。订单号K48213。"
ZH_NONE = "我的电水壶底部漏水，请帮我维修。"
ZH_USAGE = "怎么清洗电水壶的壶盖？"
ZH_WITHIN = "电水壶烧不开水，我要退款。三天前买的。订单号K48213。"


def answer(reply: str, order: str | None = None, intent: str = "refund") -> str:
    return json.dumps({"intent": intent, "order_number": order, "reply": reply}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("prompt", "rule", "reply", "order", "expected"),
    [
        # copied
        (EN_ORDER, "order_number", "We will check it.", "K48213", True),
        (EN_ORDER, "order_number", "We will check it.", "K48214", False),
        (EN_ORDER, "order_number", "We will check it.", None, False),
        (EN_NONE, "order_number", "We will check it.", None, True),
        (EN_NONE, "order_number", "We will check it.", "K48213", False),
        (ZH_ORDER, "order_number", "我们会检测。", "K48213", True),
        (ZH_NONE, "order_number", "我们会检测。", "A00000", False),
        ("Order K482130, refund please.", "order_number", "We will check it.", None, True),  # six digits: none
        ("退款，K48213和B11111两单。", "order_number", "我们会检测。", "B11111", False),  # the first one counts
        # asks for the order number
        (EN_NONE, "asks_order_number", "Please send us your order number.", None, True),
        (EN_NONE, "asks_order_number", "What is the order number?", None, True),
        (EN_NONE, "asks_order_number", "We will look into it.", None, False),
        (EN_NONE, "asks_order_number", "The order number is being checked.", None, False),
        (EN_NONE, "asks_order_number", "Please wait. Your order number is fine.", None, False),
        (EN_NONE, "asks_order_number", "Please send us your name.", None, False),
        (ZH_NONE, "asks_order_number", "请提供您的订单号。", None, True),
        (ZH_NONE, "asks_order_number", "订单号是多少？", None, True),
        (ZH_NONE, "asks_order_number", "我们会尽快处理。", None, False),
        (ZH_NONE, "asks_order_number", "请稍等。订单号没有问题。", None, False),
        (EN_ORDER, "asks_order_number", "We will look into it.", "K48213", None),
        (EN_USAGE, "asks_order_number", "Follow the manual.", None, None),
        (ZH_USAGE, "asks_order_number", "请按说明书操作。", None, None),
        # promises no refund
        (EN_ORDER, "no_refund_promise", "We can repair or exchange it.", "K48213", True),
        (EN_ORDER, "no_refund_promise", "We cannot promise a refund.", "K48213", True),
        (EN_ORDER, "no_refund_promise", "We will not refund it.", "K48213", True),
        (EN_ORDER, "no_refund_promise", "We guarantee a full refund today.", "K48213", False),
        (EN_ORDER, "no_refund_promise", "WE'LL GLADLY REFUND IT.", "K48213", False),
        (EN_ORDER, "no_refund_promise", "You will get your money back.", "K48213", False),
        (ZH_ORDER, "no_refund_promise", "可以维修或换货。", "K48213", True),
        (ZH_ORDER, "no_refund_promise", "我们不能保证退款。", "K48213", True),
        (ZH_ORDER, "no_refund_promise", "我们马上核实是否可以退款。", "K48213", True),
        (ZH_ORDER, "no_refund_promise", "保证马上全额退款。", "K48213", False),
        (ZH_ORDER, "no_refund_promise", "今天一定退钱。", "K48213", False),
        ("我要退款，十七天前买的。", "no_refund_promise", "保证退款。", None, False),  # 17, not 7
        ("Refund, bought 27 days ago.", "no_refund_promise", "We guarantee a refund.", None, False),
        (EN_WITHIN, "no_refund_promise", "We guarantee a full refund today.", "K48213", None),
        (ZH_WITHIN, "no_refund_promise", "保证马上全额退款。", "K48213", None),
        (EN_USAGE, "no_refund_promise", "We guarantee a full refund today.", None, None),
        # no preamble
        (EN_USAGE, "no_preamble", "Follow the manual.", None, True),
        (EN_USAGE, "no_preamble", "Follow the manual. Thank you.", None, True),
        (EN_USAGE, "no_preamble", " great question! Follow the manual.", None, False),
        (EN_USAGE, "no_preamble", "Thank you so much for reaching out! Follow it.", None, False),
        (ZH_USAGE, "no_preamble", "请按说明书操作，谢谢。", None, True),
        (ZH_USAGE, "no_preamble", "亲爱的顾客您好呀！请按说明书操作。", None, False),
        (ZH_USAGE, "no_preamble", "您好，请按说明书操作。", None, False),
        # language
        (EN_USAGE, "language", "Follow the manual.", None, True),
        (EN_USAGE, "language", "请按说明书操作。", None, False),
        (EN_USAGE, "language", "Follow 说明书 please.", None, False),
        (ZH_USAGE, "language", "请按说明书操作。", None, True),
        (ZH_USAGE, "language", "Follow the manual.", None, False),
        (ZH_USAGE, "language", "123。", None, False),
        (ZH_ORDER, "language", "订单K48213的RMA已开好。", "K48213", True),
    ],
)
def test_rule(prompt: str, rule: str, reply: str, order: str | None, expected: bool | None) -> None:
    assert TASK.check(prompt, answer(reply, order))[rule] is expected


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "Here is the answer: " + answer("Follow the manual."),
        "```json\n" + answer("Follow the manual.") + "\n```",
        answer("Follow the manual.")[:-1] + ",}",
        answer("Follow the manual.").replace('"', "'"),
        '{"intent": "usage", "reply": "Follow the manual."}',
        '{"intent": "usage", "order_number": null, "reply": ""}',
        '{"intent": "other", "order_number": null, "reply": "Follow the manual."}',
        '{"intent": "usage", "order_number": "48213", "reply": "Follow the manual."}',
        '{"intent": "usage", "order_number": NaN, "reply": "Follow the manual."}',
        '{"intent": "usage", "order_number": null, "reply": "Follow it.", "reply": "Follow the manual."}',
        '{"intent": "usage", "order_number": null, "reply": "Follow the manual.", "mood": "good"}',
        '{"intent": "usage", "order_number": null, "reply": ["Follow the manual."]}',
        "[]",
        "null",
        answer("Follow the manual.") * 2,
    ],
)
@pytest.mark.parametrize("prompt", [EN_ORDER, EN_NONE, EN_USAGE, ZH_ORDER, ZH_NONE, ZH_USAGE])
def test_an_answer_that_is_not_strict_breaks_every_rule_that_applies(bad: str, prompt: str) -> None:
    verdict = TASK.check(prompt, bad)
    assert set(verdict.values()) <= {False, None} and verdict["json_schema"] is False
    assert TASK.score(prompt, bad) == 0.0
    strict = TASK.check(prompt, answer("x"))
    assert {name for name, kept in verdict.items() if kept is None} == {
        name for name, kept in strict.items() if kept is None
    }


def test_score_is_the_mean_over_the_rules_that_apply() -> None:
    good = answer("Please send us your order number.", None, "repair")
    assert TASK.check(EN_NONE, good) == {
        "json_schema": True, "order_number": True, "asks_order_number": True, "no_refund_promise": None,
        "no_preamble": True, "language": True,
    }  # fmt: skip
    assert TASK.score(EN_NONE, good) == 1.0
    assert TASK.score(EN_NONE, answer("Great question! We look into it.", "A11111", "repair")) == pytest.approx(2 / 5)


def test_no_rule_is_constant() -> None:
    rng = random.Random(0)
    replies = [
        "We will check it.", "Please send us your order number.", "We guarantee a full refund today.", "Great question!",
        "我们会检测。", "请提供您的订单号。", "保证马上全额退款。", "非常感谢您的咨询！", "",
    ]  # fmt: skip
    prompts = [EN_ORDER, EN_NONE, EN_USAGE, EN_WITHIN, ZH_ORDER, ZH_NONE, ZH_USAGE, ZH_WITHIN]
    seen: dict[str, set[bool | None]] = {rule.name: set() for rule in TASK.rules}
    for prompt, reply in itertools.product(prompts, replies):
        for name, kept in TASK.check(prompt, answer(reply, rng.choice([None, "K48213", "B00001"]))).items():
            seen[name].add(kept)
    assert all({True, False} <= kept for kept in seen.values()), seen
    assert {name for name, kept in seen.items() if None in kept} == {"asks_order_number", "no_refund_promise"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a": 1, "a": 2}', "'a' twice"),
        ('{"b": {"a": 1, "a": 1}}', "'a' twice"),
        ('{"a": 1} x', "Extra data"),
        ("[" * 100_000, "nested too deeply"),
        ("", "Expecting value"),
        ("\ufeff{}", "BOM"),
    ],
)
def test_parse_strict_refuses(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_strict(text)


def test_parse_strict_keeps_any_json_value() -> None:
    assert parse_strict(' {"a": [1, null, "é"]}\n') == {"a": [1, None, "é"]}
    assert parse_strict("3") == 3


@pytest.mark.parametrize(
    ("text", "script", "language"),
    [
        ("hello", "en", "en"),
        ("你好", "zh", "zh"),
        ("K48213", "en", "en"),
        ("12345", None, "en"),
        ("air fryer 坏了", "zh", "zh"),
        ("the air fryer 坏了", None, "en"),
        ("订单 K48213 的 RMA 单", "zh", "zh"),
        ("café crème", "en", "en"),
    ],
)
def test_language_by_script(text: str, script: str | None, language: str) -> None:
    assert script_of(text) == script
    assert language_of(text) == language


def test_the_copied_pattern_is_the_teachers() -> None:
    teacher = (PATH.parent / "teacher.yaml").read_text(encoding="utf-8")
    copied = next(rule for rule in TASK.rules if rule.kind == "copied")
    promise = next(rule for rule in TASK.rules if rule.name == "no_refund_promise")
    assert f"pattern: '{copied.pattern}'" in teacher
    assert f"within_policy: '{promise.unless_prompt}'" in teacher


def edited(tmp_path: Path, old: str, new: str) -> Path:
    text = PATH.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "task.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("kind: language", "kind: tongue", ["rules.5", "tongue"]),
        ("name: aftersales", "name: aftersales\nmood: good", ["mood", "Extra inputs"]),
        ("name: no_preamble", "name: language", ["['language'] occur twice"]),
        ("    field: order_number", "    field: number", ["field 'number'", "schema.properties"]),
        ("  zh: ", "  fr: ", ["student_system"]),
        ("type: object", "type: thing", ["not a JSON Schema"]),
        ("(?i)^\\s*(?:great", "(?i)^\\s*((?:great", ["not a regular expression"]),
        ("rules:", "rules: [", ["is not YAML"]),
    ],
)
def test_errors_name_file_field_and_cause(tmp_path: Path, old: str, new: str, parts: list[str]) -> None:
    path = edited(tmp_path, old, new)
    with pytest.raises(ConfigError) as caught:
        Task.read(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    path = edited(tmp_path, "name: aftersales", "name: ''\nmood: good")
    with pytest.raises(ConfigError) as caught:
        Task.read(path)
    assert len(caught.value.problems) == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Task.read(tmp_path / "none.yaml")


def test_the_task_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TASK.name = "other"
