"""What is wrong with an answer, in Chinese and English, for the teacher that wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from steps.lib.prompt_parts import ByLanguage

MOST = 3
"""Problems that are named at a time."""
LENGTH = 200
"""Characters of a value that are repeated."""
_RULES = {
    "required": ("缺少必需的字段 {}", "these fields are required: {}"),
    "type": ("类型必须是 {}", "its type must be {}"),
    "enum": ("只能是其中之一：{}", "it must be one of {}"),
    "const": ("必须等于 {}", "it must equal {}"),
    "pattern": ("必须匹配正则表达式 {}", "it must match the regular expression {}"),
    "minLength": ("至少 {} 个字符", "it must have at least {} characters"),
    "maxLength": ("最多 {} 个字符", "it must have at most {} characters"),
    "minItems": ("至少 {} 项", "it must have at least {} items"),
    "maxItems": ("最多 {} 项", "it must have at most {} items"),
    "minimum": ("不得小于 {}", "it must not be less than {}"),
    "maximum": ("不得大于 {}", "it must not be more than {}"),
}
_OTHER = ("不满足 {}：{}", "it breaks the rule {}: {}")


def no_answer() -> ByLanguage:
    """There is no text where the answer should be."""
    return ByLanguage(zh="没有答案", en="there is no answer in it")


def no_marker(marker: ByLanguage) -> ByLanguage:
    """The line before the answer is not there, or there are several."""
    return ByLanguage(
        zh=f"答案前必须恰好有一行“{marker.zh}”", en=f'exactly one line "{marker.en}" must stand before the answer'
    )


def no_json(error: ValueError) -> ByLanguage:
    """The answer is not one JSON value."""
    if not isinstance(error, json.JSONDecodeError):
        return ByLanguage(zh=f"它不是一个 JSON 值（{_short(error)}）", en=f"it is not one JSON value ({_short(error)})")
    place, reason = error.pos + 1, error.msg
    return ByLanguage(
        zh=f"它不是一个单独的 JSON 值（第 {place} 个字符处：{reason}）",
        en=f"it is not one JSON value and nothing else (at character {place}: {reason})",
    )


def off_schema(validator: Any, value: Any) -> ByLanguage:
    """The JSON value breaks the schema: where, and which rules."""
    from jsonschema.exceptions import best_match

    errors = sorted(validator.iter_errors(value), key=lambda error: error.json_path)
    said = [_said(best_match([error])) for error in errors[:MOST]]
    return ByLanguage(zh="；".join(zh for zh, _ in said), en="; ".join(en for _, en in said))


def _said(error: Any) -> tuple[str, str]:
    rule, wanted = str(error.validator), error.validator_value
    if rule == "required":
        wanted = [name for name in wanted if name not in error.instance]
    if rule == "additionalProperties" and isinstance(wanted, bool) and isinstance(error.instance, Mapping):
        known = error.schema.get("properties", {})
        zh, en = "只能有字段 {}", "it may have no other fields than {}"
        wanted = list(known)
    elif rule in _RULES:
        zh, en = _RULES[rule]
    else:
        zh, en = (text.format(rule, "{}") for text in _OTHER)
    shown = _short(json.dumps(wanted, ensure_ascii=False))
    where = _short(error.json_path)
    return f"{where}：{zh.format(shown)}", f"{where}: {en.format(shown)}"


def _short(text: object) -> str:
    shown = str(text)
    return shown if len(shown) <= LENGTH else f"{shown[:LENGTH]}..."
