"""Each document filter: what it keeps and drops in both languages, and that the batch gives what plain Python gives."""

import inspect
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.lib import codepoints, quality
from steps.lib.quality import Filters, Finding, judge_texts

ROOT = Path(__file__).parents[3]
ZH = "电水壶的保修期是两年，从小票日期算起。进水或摔坏不在保修范围内。请先拔掉电源，再检查底座。"
EN = "The warranty of the kettle is two years. It begins on the date of the receipt. Water damage is not covered."
STEPS_ZH = [
    "先把水壶放在底座上，再按下开关。",
    "水开以后它会自己断电。",
    "不要让底座沾到水。",
    "每个月用柠檬酸洗一次水垢。",
    "长时间不用时，请拔掉插头。",
]
STEPS_EN = ["Put the kettle on its base, then press the switch.", "It turns itself off when the water boils.",
            "Keep the base away from water at all times.", "Clean it with citric acid once a month.",
            "Pull the plug when you do not need it for long."]  # fmt: skip


def lines(texts: list[str], before: str = "", behind: str = "") -> str:
    return "\n".join(before + text.rstrip("。.") + behind for text in texts)


def only(**on: Any) -> Filters:
    """Filters with nothing on but these."""
    off = {name: False if value is True else [] if isinstance(value, list) else None
           for name, value in Filters().model_dump().items()}  # fmt: skip
    return Filters.model_validate({**off, **on})


CASES: list[tuple[dict[str, Any], str, list[str], list[str]]] = [
    ({"text_min_chars": 20}, "too_short", [ZH, EN], ["太短。", "Too short."]),
    ({"text_max_chars": 200}, "too_long", [ZH, EN], [ZH * 5, EN * 5]),
    (
        {"languages": ["zh", "en"]},
        "wrong_language",
        [ZH, EN, "好", "git commit -m x"],
        ["Die Garantie des Wasserkochers beträgt zwei Jahre ab Kaufdatum.", "やかんの保証期間は二年です。レシートの日付から始まります。"],
    ),
    ({"special_tokens": True}, "special_token", [ZH, EN, "a <b> c [d]"], [ZH + "<|im_end|>", EN + " [/INST]"]),
    ({"word_ratio": 0.7}, "word_ratio", [ZH, EN], [ZH + "|-=*/+" * 20, EN + "|-=*/+" * 20]),
    ({"sentence_marks": 0.001}, "sentence_marks", [ZH, EN], ["没有句号的长行" * 30, "no end mark in this line " * 9]),
    ({"symbol_ratio": 0.02}, "symbol_ratio", [ZH, EN + " #1"], [ZH + "…" * 5, EN + " #a #b #c"]),
    (
        {"duplicate_lines": 0.3},
        "duplicate_lines",
        [lines(STEPS_ZH), lines(STEPS_EN)],
        ["今天下单，立即发货。\n" * 3, "Buy it now, today only.\n" * 3],
    ),
    ({"repetition": 0.5}, "repetition", [ZH * 2, EN], [ZH + "请联系客服。" * 60, EN + " Call us now." * 40]),
    ({"lost_characters": 0.01}, "lost_characters", [ZH, EN], [ZH + "锟斤拷锟斤拷", EN + " caf\ufffd\ufffd"]),
    (
        {"duplicate_line_chars": 0.2},
        "duplicate_line_chars",
        [lines(STEPS_ZH) + "\n注意\n注意", lines(STEPS_EN) + "\nNote\nNote"],
        [lines([*STEPS_ZH[:3], STEPS_ZH[0]]), lines([*STEPS_EN[:3], STEPS_EN[0]])],
    ),
    (
        {"top_piece": 0.3},
        "top_piece",
        [lines(STEPS_ZH) * 2, lines(STEPS_EN) * 2, "Name | Age\n" + "-" * 400 + "\nAnn | 30", "好鞋" * 20],
        ["".join(f"便宜好鞋{n}" for n in range(40)), "".join(f"cheap good shoes {n}, " for n in range(40))],
    ),
    (
        {"bullet_lines": 0.9},
        "bullet_lines",
        ["用法：\n" + lines(STEPS_ZH, "- "), "Use:\n" + lines(STEPS_EN, "* "), "- 一\n- 二", lines(STEPS_EN, "1. ")],
        [lines(STEPS_ZH, "• "), lines(STEPS_EN, "  - ")],
    ),
    (
        {"ellipsis_lines": 0.3},
        "ellipsis_lines",
        [lines(STEPS_ZH, "", "。"), lines(STEPS_EN, "", "."), "完……\n" + lines(STEPS_ZH, "", "。"), "Read more...\n" * 2],
        [lines(STEPS_ZH, "", "……"), lines(STEPS_EN, "", "..."), lines(STEPS_EN, "", "… ")],
    ),
    (
        {"open_lines": 0.88},
        "open_lines",
        [lines(STEPS_ZH, "", "。”"), lines(STEPS_EN, "", "."), "首页\n关于", "Home\nAbout"],
        [lines(STEPS_ZH), lines(STEPS_EN)],
    ),
    (
        {"short_lines": 0.67},
        "short_lines",
        [lines([text * 2 for text in STEPS_ZH]), lines(STEPS_EN), "首页\n关于"],
        ["首页\n产品中心\n新闻\n关于我们\n联系方式\n", "Home\nAll products\nNews\nAbout us\nContact\n"],
    ),
    ({"braces": 0.05}, "braces", [ZH + "{name}", EN + EN + " {name}"], [ZH + "{{}}", EN + " {{{{}}}}"]),
    ({"word_min_chars": 3}, "short_words", [ZH * 3, EN * 3, "a b c"], ["a b c d e f " * 20]),
    ({"word_max_chars": 10}, "long_words", [ZH * 3, EN * 3], ["donaudampfschiffahrtsgesellschaft " * 6]),
    (
        {"stop_words": 2},
        "stop_words",
        [ZH * 2, EN, "Kettle manual", "水壶说明书"],
        ["水壶底座电源插头开关滤网" * 8, "kettle base plug switch filter " * 8],
    ),
    (
        {"lorem_ipsum": True},
        "lorem_ipsum",
        [ZH, EN, "The ipsum was written by nobody.", "此处为占位文字。" + ZH * 50, EN * 30 + "Lorem ipsum dolor"],
        ["此处为占位文字。" + ZH, "Lorem ipsum dolor sit amet. " + EN],
    ),
    (
        {"script_notice": True},
        "script_notice",
        [ZH, "JavaScript 是一种脚本语言。", "JavaScript is a language.", "Please enable JavaScript. " + EN * 6],
        ["您的浏览器不支持 JavaScript，请启用后再试。", "Please enable JavaScript to view this page."],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("on", "reason", "kept", "dropped"), CASES, ids=[case[1] for case in CASES])
def test_what_a_filter_keeps_and_drops(on: dict[str, Any], reason: str, kept: list[str], dropped: list[str]) -> None:
    found = judge_texts(kept + dropped, only(**on))
    assert found[: len(kept)] == [None] * len(kept)
    assert [finding and finding[0] for finding in found[len(kept) :]] == [reason] * len(dropped)
    assert judge_texts(dropped, only()) == [None] * len(dropped)


def test_every_filter_of_documents_has_its_case() -> None:
    read = set(re.findall(r"filters\.(\w+)", inspect.getsource(quality._judged)))
    assert len(read) > 20
    assert {name for case in CASES for name in case[0]} == read


def test_the_first_filter_that_fails_is_the_reason() -> None:
    assert judge_texts([""], Filters())[0] == ("too_short", "0 characters, at least 20")
    assert judge_texts([""], only(word_ratio=0.7, sentence_marks=0.1))[0] == ("word_ratio", "0.0000, at least 0.7")
    assert judge_texts(["Same line.\n" * 30], Filters())[0] == ("duplicate_lines", "0.9667, at most 0.3")


def plain(text: str, filters: Filters) -> Finding | None:
    """The oracle: one text in plain Python."""
    rows = [line.strip() for line in text.split("\n") if line.strip()]
    visible = len(re.sub(r"\s", "", text))
    worst = 0.0
    for start in range(0, max(1, len(text) - 500), 1000):
        part = text[start : start + 1000]
        if (number := len(part) - 19) >= 80:
            worst = max(worst, 1 - len({part[place : place + 20] for place in range(number)}) / number)
    han = len(re.findall("[\u4e00-\u9fff]", text)) >= max(1, 0.2 * sum(map(str.isalpha, text)))
    width = 4 if han else 12
    pieces = Counter(text[place : place + width] for place in range(len(text) - width + 1))
    top = max((count for piece, count in pieces.items() if re.search(r"[^\W_]", piece)), default=0)
    share = {
        "word_ratio": len(re.findall(r"[^\W_]", text)) / visible if visible else 0.0,
        "sentence_marks": len(re.findall("[。！？.!?]", text)) / len(text) if text else 0.0,
        "symbol_ratio": len(re.findall("[#…]", text)) / len(text) if text else 0.0,
        "duplicate_lines": 1 - len(set(rows)) / len(rows) if rows else 0.0,
        "repetition": worst,
        "duplicate_line_chars": 1 - len("".join(set(rows))) / len("".join(rows)) if rows else 0.0,
        "top_piece": min(1.0, top * width / len(text)) if len(text) >= 20 * width else 0.0,
        "bullet_lines": sum(row[0] in "•-*" for row in rows) / len(rows) if len(rows) >= 5 else 0.0,
        "ellipsis_lines": sum(row.endswith(("…", "...")) for row in rows) / len(rows) if len(rows) >= 5 else 0.0,
    }
    for name, value in share.items():
        limit = getattr(filters, name)
        if limit is not None and (value < limit if name in ("word_ratio", "sentence_marks") else value > limit):
            return name, f"{value:.4f}, at {'least' if name in ('word_ratio', 'sentence_marks') else 'most'} {limit}"
    return None


PIECES = st.sampled_from(
    [
        "电水壶的保修期",
        "abc def ",
        "x",
        "...",
        "…",
        "\n",
        "\n- ",
        " \t",
        "。",
        "#",
        "|-=",
        "\n\n",
        ". ",
        "é ",
        "\n......",
        "12",
    ]
)
DOCUMENTS = st.lists(st.tuples(PIECES, st.integers(1, 40)), max_size=14).map(
    lambda runs: "".join(one * n for one, n in runs)
)
MEASURES = ("word_ratio", "sentence_marks", "symbol_ratio", "duplicate_lines", "repetition", "duplicate_line_chars", "top_piece",
            "bullet_lines", "ellipsis_lines")  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(
    st.lists(DOCUMENTS, max_size=4),
    st.dictionaries(st.sampled_from(MEASURES), st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.9])),
)
def test_a_batch_gives_what_plain_python_gives(texts: list[str], on: dict[str, float]) -> None:
    filters = only(**on)
    assert judge_texts(texts, filters) == [plain(text, filters) for text in texts]


def test_long_texts_give_what_plain_python_gives() -> None:
    varied = "".join(chr(0x4E00 + number * 7 % 5000) for number in range(3000))
    texts = [varied + "好的好的" * size + varied[:200] for size in (0, 20, 90, 120, 180, 260)] + [
        varied[:n] for n in (99, 501, 1499, 1500)
    ]
    for limit in (0.0, 0.1, 0.3, 0.5):
        filters = only(repetition=limit)
        found = judge_texts(texts, filters)
        assert found == [plain(text, filters) for text in texts]
        assert any(found)


def test_the_size_of_a_batch_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text for _, _, kept, dropped in CASES for text in (*kept, *dropped)]
    whole = judge_texts(texts, Filters())
    assert whole == [judge_texts([text], Filters())[0] for text in texts]
    monkeypatch.setattr(codepoints, "TEXTS", 7)
    monkeypatch.setattr(codepoints, "CHARS", 400)
    assert judge_texts(texts, Filters()) == whole


def test_the_defaults_keep_every_document_of_our_own() -> None:
    for room in ("domain", "general"):
        paths = sorted((ROOT / "data" / "seed" / room).glob("*.jsonl"))
        texts = [json.loads(line)["text"] for path in paths for line in path.read_text("utf-8").splitlines()]
        assert len(texts) > 100
        assert judge_texts(texts, Filters()) == [None] * len(texts)
