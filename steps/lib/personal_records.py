"""``personal`` on records of any shape, and on raw lines: for what is kept of rows that were dropped.

Beside what a value looks like, its key tells what it is: ``"password": "letmein"``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from steps.lib.personal import Personal, redact, redact_row, shadow
from steps.lib.personal_numbers import Hit


def redact_json(record: Any, config: Personal) -> Any:
    """A record without personal data: in every string, key and whole number at any depth, by type and by key ("password": ...).

    For what is kept of dropped rows. Types whose action is drop are replaced, too.
    """
    texts: list[str] = []

    def collect(text: str) -> str:
        texts.append(text)
        return text

    _walk(record, collect)
    kinds = config.looked_for()
    named = {value: Hit(kind, 0, 0, value) for key, value in _leaves(record) if (kind := _named(key, value)) in kinds}
    clean = iter(redact_row(texts, kinds, config, named).texts)
    return _walk(record, lambda _: next(clean))


def redact_raw(text: str, config: Personal) -> str:
    """A raw record, which may be JSON or may be cut off, without personal data."""
    try:
        record = json.loads(text)
        clean = redact_json(record, config)
        if clean != record:
            text = _dumped(clean)
    except (ValueError, RecursionError):
        pass  # cut off, or nested too deep: it is text like any other
    return redact([[text]], config)[0].texts[0]  # a key that stands twice has lost its first value when it was parsed


def _dumped(record: Any) -> str:
    """JSON that can be written as UTF-8: half characters stay escapes."""
    text = json.dumps(record, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(record)
    return text


def _walk(value: Any, change: Callable[[str], str]) -> Any:
    """The value with ``change`` done to each string, key and whole number in it, in order."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        changed: dict[Any, Any] = {}
        for key, item in value.items():
            name = change(key) if isinstance(key, str) else key
            while name in changed:
                name = f"{name}_"
            changed[name] = _walk(item, change)
        return changed
    if isinstance(value, (list, tuple)):
        return [_walk(item, change) for item in value]
    if (digits := _digits(value)) is not None:
        clean = change(digits)
        return value if clean == digits else clean
    return value


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(nearest key, text) of each string and whole number."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, str(name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item, key)
    elif isinstance(value, str) and value.strip():
        yield key, shadow(value)
    elif (digits := _digits(value)) is not None:
        yield key, digits


def _digits(value: Any) -> str | None:
    """A whole number as text; tables turn telephone numbers into floats."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**63 else None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _named(key: str, value: str) -> str:
    """The type of which a record's key says that its value is; empty where it says none, or the value cannot be of it."""
    if "\0" in value:
        return ""
    return next(
        (kind for kind, (keys, values) in _KEYED.items() if keys.fullmatch(key.strip()) and values.search(value)), ""
    )


_KEYED = {
    kind: (re.compile(f"(?i:{keys})"), re.compile(values))
    for kind, keys, values in (
        ("password", r"(?:user_?|login_?)?(?:password|passwd|pwd)|密码|口令", r"\A.{4,64}\Z"),
        ("secret", r"(?:\w{0,20}_)?(?:secret|token|api_?key)|密钥|令牌", r"\A[!-~]{8,}\Z"),
        (
            "phone",
            r"(?:\w{0,20}_)?(?:phone|mobile|tel|telephone)(?:_?(?:number|no))?|(?:联系)?(?:电话|手机)(?:号码?)?",
            r"[0-9](?:[^0-9A-Za-z]?[0-9]){6}",
        ),
        ("email", r"(?:\w{0,20}_)?e?_?mail(?:_?address)?|(?:电子)?邮箱|电子邮件", "@"),
        ("cn_id", r"id_?card(?:_?(?:number|no))?|身份证号?码?", "[0-9]{15}"),
        ("address", r"(?:home_|street_|shipping_|billing_)?address|(?:收货|家庭)?(?:地址|住址)", r"\A.{4,200}\Z"),
        (
            "name",
            r"(?:full_?|first_?|last_?|user_?|real_?)?name|(?:真实)?姓名|收[件货]人|联系人",
            r"\A[^0-9]{2,40}\Z",
        ),
    )
}
"""Type -> keys of a record whose value is of that type, and what the value must look like for it."""
