"""JSON of teachers: what is mended, what is not, and that mending never changes a value."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.lib.mending import mend, read_json

WANTED = {"reply": "He said: 'no, {not} now'", "n": [1, 2.5, True, None], "中文": "好的，{明天}：“行”"}
STRICT = json.dumps(WANTED, ensure_ascii=False)


@pytest.mark.parametrize(
    ("text", "value", "repairs"),
    [
        ('{"n": 1}', {"n": 1}, ()),
        (" [1]\n", [1], ()),
        ("```json\n{\"n\": 1}\n```", {"n": 1}, ("fence",)),
        ("```\n7\n```", 7, ("fence",)),
        ('Here you are: {"n": 1}. Good luck!', {"n": 1}, ("around",)),
        ('好的，答案是：{"n": 1}。', {"n": 1}, ("around",)),
        ('Sure:\n```json\n{"n": 1}\n```\nBye', {"n": 1}, ("around",)),
        ('{"n": 1,}', {"n": 1}, ("commas",)),
        ('{"n": [1, 2, ],\n}', {"n": [1, 2]}, ("commas",)),
        ("{'n': 'it is', 'm': None}", {"n": "it is", "m": None}, ("quotes", "words")),
        ("{'say': 'a \"word\"'}", {"say": 'a "word"'}, ("quotes",)),
        (r"{'say': 'it\'s \"so\" \n'}", {"say": 'it\'s "so" \n'}, ("quotes",)),
        ("{“n”: “好”}", {"n": "好"}, ("quotes",)),
        ("｛\"n\"：1，\"m\"：［2］｝", {"n": 1, "m": [2]}, ("width",)),
        ('{"n": "：，“”"，"m": 1}', {"n": "：，“”", "m": 1}, ("width",)),
        ('{"n": "two\nlines\tand a tab"}', {"n": "two\nlines\tand a tab"}, ("control",)),
        ('{"a": True, "b": False, "c": "True"}', {"a": True, "b": False, "c": "True"}, ("words",)),
        ("\ufeff{\"n\": 1}", {"n": 1}, ("around",)),
    ],
)  # fmt: skip
def test_what_is_mended(text: str, value: Any, repairs: tuple[str, ...]) -> None:
    reading = read_json(text)
    assert (reading.value, reading.repairs) == (value, repairs)
    assert json.loads(reading.text) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "yes", "The score is 7", "7/10", "[[A]]]",
        '{"n": 1} or {"n": 2}',  # two values
        '[1] {"n": 1}',
        '{"n": 1',  # cut off: nothing is closed
        '{"n": "a', '{"n": [1, 2}', '{"a": {"n": 1}, "b": ',
        '{"a": {"n": 1}, "b": oops}',  # the inner object is not the answer
        '"answer": {"n": 1}', "answer': {'n': 1}", '{"n": 1}, "m": 2',
        '{"n": 1 "m": 2}',  # a comma is not put anywhere
        "{'n': 'it's'}", "{'n': 'a', b'}", "{“n”: “a “b” c”}",  # where does the string end?
        '{"say": "a "word""}',
        "[,]", "[1,,]", "{,}", '{"n":,}',
        '{"n": NaN}', '{"n": Infinity}', '{"n": 1, "n": 2}', '{"n": 01}', '{"n": １}',
        '{"n": "a\\\nb"}', "{'n': 'a\\\nb'}",  # a backslash before a line end: which of the two was meant?
        "{n: 1}", '{"n": undefined}', '{"n": 1} // done {', "__import__('os').system('true')",
        "```json\n{\"n\": 1\n```",
    ],
)  # fmt: skip
def test_what_is_not(text: str) -> None:
    with pytest.raises(ValueError):
        read_json(text)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: f"```json\n{text}\n```",
        lambda text: f"Of course! 好的：\n{text}\n希望有帮助。",
        lambda text: text[:-1] + ", }",
    ],
)
def test_planted_damage_is_undone_exactly(damage: Any) -> None:
    assert read_json(damage(STRICT)).value == WANTED


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(VALUES, st.booleans())
def test_strict_json_is_never_touched(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    reading = read_json(text)
    assert reading.value == value and reading.repairs == () and reading.text == text.strip()


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=4), VALUES, min_size=1, max_size=3), st.data())
def test_what_was_cut_off_is_never_read(value: Any, data: st.DataObject) -> None:
    """Whatever is left of an object whose end is missing, it has no value."""
    text = json.dumps(value, ensure_ascii=False)
    kept = text[: data.draw(st.integers(0, len(text) - 1))]
    with pytest.raises(ValueError):
        read_json(kept)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=3))
def test_what_python_prints_is_read_as_it_was_or_not_at_all(value: Any) -> None:
    """``str`` of a dict is what a model writes that learned from Python: quotes, True, None."""
    printed = str(value)
    try:
        read = read_json(printed)
    except ValueError:
        assert "\\" in printed or '"' in printed, "plain words between single quotes are read"
        return
    assert read.value == value


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="{}[]\"'“”,:：，tT1 \\\n`a", max_size=24))
def test_any_text_is_mended_into_strict_json_or_refused(text: str) -> None:
    mended = mend(text)
    assert mended is None or mended[1]
    try:
        reading = read_json(text)
    except ValueError:
        return
    assert json.loads(reading.text) == reading.value
