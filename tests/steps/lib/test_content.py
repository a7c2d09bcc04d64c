"""Content rules of documents and chats: each with what it drops and what it keeps, in Chinese and English."""

from __future__ import annotations

import random
import time

import pytest

from steps.lib import codepoints, repeats
from steps.lib.answers import answer_language, bad_json, cut_off, near_echo
from steps.lib.boilerplate import boilerplate
from steps.lib.chat_rules import BAD_ANSWERS, judge_chats, judge_rows
from steps.lib.content import Content, judge_content
from steps.lib.document_rules import repeated, repetitions
from steps.lib.markup import answer_markup, document_markup, residue
from steps.lib.phrases import refusal, special_token
from steps.lib.quality import Filters
from steps.lib.rows import Chat, Message, Pair, Text, Thumb

ZH = "电水壶的保修期是两年，从小票日期算起。进水或摔坏不在保修范围内。请先拔掉电源，再检查底座。"
EN = "The warranty of the kettle is two years. It begins on the date of the receipt. Water damage is not covered."
PAGE_EN = "Home\nWe use cookies to improve your visit. Accept all cookies.\nSubscribe to our newsletter\n© 2024 Tea House. All rights reserved.\n"
PAGE_ZH = "扫描下方二维码关注我们。\n点击下方链接阅读全文。\n责任编辑：王某\n版权所有，未经授权不得转载。\n"
TAGS = "<div class=\"x\"><p>Tea</p>&nbsp;&amp;&nbsp;<a href='/m'>more</a></div>"


def talk(*turns: str, system: str = "") -> list[Message]:
    said = [Message(role=("user", "assistant")[number % 2], content=text) for number, text in enumerate(turns)]
    return [Message(role="system", content=system), *said] if system else said


@pytest.mark.parametrize(
    ("text", "least"),
    [(PAGE_EN, 0.9), (PAGE_ZH, 0.9), (EN + "\n" + PAGE_EN, 0.4), (ZH + "\n" + PAGE_ZH, 0.4), ("京ICP备12345号", 1.0)],
)
def test_boilerplate_is_measured_by_its_share(text: str, least: float) -> None:
    share, seen = boilerplate(text)
    assert least <= share <= 1 and seen
    reason = judge_content([text], Content())[0]
    assert reason is not None and reason[0] == "boilerplate" and len(reason[1]) < 120


@pytest.mark.parametrize(
    "text",
    [
        EN, ZH,
        "Sure! Here is a list of three teas: Assam, Keemun and Darjeeling.",
        "当然可以！以下是三种茶：阿萨姆、祁门和大吉岭。",
        "A cookie is a small file that a browser keeps. Copyright law protects it no more than a recipe.",
        "版权是作者的权利。转载率、点击率和订阅数是报纸的三个指标。植物的能量来源：阳光。",
    ],
)  # fmt: skip
def test_what_speaks_about_such_things_is_no_boilerplate(text: str) -> None:
    assert boilerplate(text) == (0.0, "")
    assert judge_content([text], Content()) == [None]


def test_long_lines_are_content_and_one_footer_is_forgiven() -> None:
    assert boilerplate("click here " + "and read on about tea " * 20)[0] == 0.0
    assert judge_content([EN * 5 + "\nClick here to read more.", ZH * 5 + "\n责任编辑：王某"], Content()) == [
        None,
        None,
    ]
    strict = Content(boilerplate=0.0)
    assert [
        finding and finding[0] for finding in judge_content([EN * 5 + "\nClick here.", ZH + "\n责任编辑：王某"], strict)
    ] == ["boilerplate"] * 2


@pytest.mark.parametrize("text", [EN + TAGS, ZH + TAGS, EN + "[[Tea|black tea]] {{cite web|url=x}} <ref>y</ref>", ZH + "[b]茶[/b][url=x]茶[/url]",
                                  EN + "$(document).ready() window.dataLayer p {margin: 0px; padding: 1px}"])  # fmt: skip
def test_markup_left_in_a_document(text: str) -> None:
    finding = judge_content([text], Content())[0]
    assert finding is not None and finding[0] == "markup"
    assert judge_content([text], Content(markup=None)) == [None]


@pytest.mark.parametrize(
    "text",
    [
        EN, ZH, "Tea & sugar cost < 3 but > 2; AT&T; if a[b] == c[i]: x = {1: [[2, 3], [4]]}",
        "```html\n" + TAGS * 9 + "\n```\n" + EN, "行内代码 `<div>` 与 `&nbsp;`。" + ZH,
        r"$\frac{{a}}{{b}} < c$ 与 $x \& y$。" + ZH, "**bold** | a | b |\n|---|---|\n" + EN,
        "In HTML a tag such as <p> opens, and the tag </p> closes; HTML also has <div> and <span>.",
        "标签 <p> 用来写段落，标签 <div> 用来分块，源码里还有 <span>，这些标签都要闭合。",
    ],
)  # fmt: skip
def test_code_and_texts_about_markup_are_kept(text: str) -> None:
    assert document_markup(text) == 0.0


@pytest.mark.parametrize(
    ("question", "answer", "dropped"),
    [
        ("How do I brew tea?", "<p>Boil the water.</p>", True),
        ("怎么泡茶？", "<p>先烧水。</p>", True),
        ("怎么泡茶？", "先烧水&nbsp;&nbsp;再放茶叶。", True),
        ("How do I brew tea?", "Boil the water[/b].", True),
        ("Write an HTML page", "<p>Boil the water.</p>", False),
        ("写一个网页", "<p>先烧水。</p>", False),
        ("What does &nbsp; mean?", "&nbsp; is a blank that does not break.", False),
        ("How do I brew tea?", "Use `<p>` or\n```\n<b>tea</b>\n```", False),
        ("怎么泡茶？", "先烧水，再放 3<x<5 克茶叶。", False),
    ],
)
def test_markup_left_in_an_answer(question: str, answer: str, dropped: bool) -> None:
    assert bool(answer_markup(question, answer)) is dropped


@pytest.mark.parametrize(
    ("question", "answer", "dropped"),
    [
        ("Where is my order?", "where is my order", True),
        ("我的订单在哪里呢？请帮我查", "我的订单在哪里呢，请帮我查！", True),
        (
            "Please tell me where my order is and when it will come to me.",
            "“Please tell me where my order is and when it will come to me!!” 1",
            True,
        ),
        ("1+1=?", "11", False),
        ("Is it true that tea is green?", "Yes, it is true that tea is green.", False),
        ("绿茶是绿色的吗？是或者不是", "是", False),
    ],
)
def test_near_echo(question: str, answer: str, dropped: bool) -> None:
    assert bool(near_echo(question, answer)) is dropped


@pytest.mark.parametrize(
    ("question", "answer", "system", "dropped"),
    [
        ("退款", '{"intent": "refund"', "", True),
        ("List", 'Here:\n```json\n{"a": 1,}\n```', "", True),
        ("给个例子", "如下：\n```json\n{a: 1}\n```", "", True),
        ("Reply in JSON only: name and age", "Name: Li, age: 3", "", True),
        ("在吗", "在的", "用JSON回答：intent、reply。", True),
        ("x", '{"a": NaN}', "", True),
        ("退款", '{"intent": "refund"}', "用JSON回答：intent。", False),
        ("退款", '```json\n{"intent": "refund"}\n```', "用JSON回答：intent。", False),
        ("List", 'Here:\n```json\n{"a": 1}\n```\nAnd more.', "", False),
        ("Lines", '```json\n{"a": 1}\n{"a": 2}\n```', "", False),
        ("How do I reply with JSON in Flask?", "Use jsonify.", "", False),
        ("如何用JSON回答请求？", "用 jsonify 函数。", "", False),
        ("What is JSON?", "A format: {name: value}", "", False),
        ("集合", "{1, 2, 3}", "", False),
        ("x", '{"a": 1}\n\nThis is the object.', "", False),
    ],
)
def test_json_that_should_parse(question: str, answer: str, system: str, dropped: bool) -> None:
    assert bool(bad_json(question, answer, system)) is dropped


@pytest.mark.parametrize(
    ("answer", "dropped"),
    [
        (EN + " Then you take the", True),
        (ZH + "另外，还需要准备螺丝刀、", True),
        (ZH + "另外还有几种情况，例如", True),
        ("Code:\n```python\nx = 1\n", True),
        (EN + " See (", True),
        (EN, False), (ZH, False), ("the", False), ("a, an, the", False),
        (ZH + "以上就是全部", False),
        ("```\nx\n```\nand a slip\n```", False),
        ("a\n```\nb\nDone.", False),
        (EN + "\n- Assam\n- Keemun", False),
    ],
)  # fmt: skip
def test_an_end_that_is_missing(answer: str, dropped: bool) -> None:
    assert bool(cut_off(answer)) is dropped


@pytest.mark.parametrize(
    ("question", "answer", "around", "dropped"),
    [
        ("列出三种茶。", EN, "", True),
        ("Which tea is mild?", ZH, "", True),
        ("把这句话翻译成英文：茶很好喝。", EN, "", False),
        ("保修多久？", EN, "Always answer in English.", False),
        ("Which tea is mild?", EN, "", False),
        ("保修多久？", ZH, "", False),
        ("写一段代码", "```python\nprint('hello, this is a long line of code')\n```", "", False),
    ],
)
def test_the_language_of_an_answer(question: str, answer: str, around: str, dropped: bool) -> None:
    assert bool(answer_language(question, answer, around)) is dropped


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "[INST]", "[/INST]", "<<SYS>>", "[TOOL_CALLS]", "[SYSTEM_PROMPT]",
        "<start_of_turn>", "<turn|>", "[gMASK]", "<sop>", "<|observation|>", "<｜User｜>", "<｜end▁of▁sentence｜>", "<|begin▁of▁sentence|>",
        "<｜tool▁calls▁begin｜>", "<|end|>", "<|startoftext|>", "<eoa>", "[UNUSED_TOKEN_145]", "<|action_start|>", "<reserved_106>", "<fim_middle>",
    ],
)  # fmt: skip
def test_marks_of_every_common_template_are_seen(text: str) -> None:
    assert special_token(f"茶{text}茶") == text == special_token(f"tea {text} tea")


@pytest.mark.parametrize(
    "text",
    ["a <b> c", "x[INSTANCE]", "a <| b |> c", "if a < b | c > d", "<s>old price</s> new", "列表[1]｜[2]", "a </s> b"],
)
def test_what_looks_like_a_mark_is_kept(text: str) -> None:
    assert special_token(text) is None


def test_the_students_own_tokens_and_marks_at_the_ends() -> None:
    assert special_token("tea </s>") == "</s>" and special_token("<s>tea") and special_token("茶<eos>")
    assert special_token("say [PAUSE] now") is None
    assert special_token("say [PAUSE] now", ["[PAUSE]"]) == "[PAUSE]"
    finding = judge_chats([talk("hi", "well [PAUSE] yes")], Filters(), special=["[PAUSE]"])
    assert finding == [("special_token", "[PAUSE]")]


@pytest.mark.parametrize(
    "text",
    ["I'm not equipped to help with that.", "I am not designed to answer such questions.", "I must respectfully decline.", "恕我无法回答。",
     "I'm sorry, but as an AI language model, I can't write that.", "Your request is outside of my capabilities.", "我没有实时访问互联网的能力。",
     "出于安全考虑，我无法提供这些信息。", "I don't have the ability to browse the internet."],
)  # fmt: skip
def test_refusals(text: str) -> None:
    assert refusal(text)


@pytest.mark.parametrize("text", ["I won't give up, she said.", "I'm not able to dance, but I sing.", "我没有钱，但我有时间。", "I must go.",
                                  "Sorry, we cannot ship there.", "抱歉，作为一个文本机器人，我不具备制作海报的能力。但可以给您一些建议。",
                                  "出于安全考虑，请先拔掉电源。"])  # fmt: skip
def test_polite_words_and_stories_are_no_refusals(text: str) -> None:
    assert refusal(text) is None


@pytest.mark.parametrize(
    ("turns", "system", "reason", "switch"),
    [
        (("Where is my order?", "where is my order!"), "", "near_echo", "near_echo"),
        (("退款", '{"intent": '), "", "bad_json", "bad_json"),
        (("写代码", "```python\nx = 1"), "", "cut_off", "cut_off"),
        (("列出三种茶。", EN), "", "answer_language", "answer_language"),
        (("怎么泡茶？", "<p>先烧水。</p>"), "", "markup", "answer_markup"),
        (("怎么泡茶？", "<p>先烧水。</p>", "谢谢", "不客气。"), "", "markup", "answer_markup"),
    ],
)
def test_each_rule_of_chats_has_its_reason_and_its_switch(
    turns: tuple[str, ...], system: str, reason: str, switch: str
) -> None:
    finding = judge_chats([talk(*turns, system=system)], Filters(), Content())[0]
    assert finding is not None and finding[0] == reason
    assert (
        judge_chats([talk(*turns, system=system)], Filters(), Content().model_copy(update={switch: False}))[0] is None
    )
    assert judge_chats([talk(*turns, system=system)], Filters())[0] is None


def test_boilerplate_in_answers_is_judged_when_asked_for() -> None:
    turns = talk("怎么关注你们？", "扫描下方二维码关注我们。")
    assert judge_chats([turns], Filters(), Content())[0] is None
    finding = judge_chats([turns], Filters(), Content(answer_boilerplate=0.5))[0]
    assert finding is not None and finding[0] == "boilerplate"


def test_pairs_and_thumbs_are_judged_by_what_is_learned_from_them() -> None:
    bad, good = [Message(role="assistant", content="```\nx = "[:8])], [Message(role="assistant", content="Fine.")]
    asked = talk("hi")
    loop = [Message(role="assistant", content="好的，" * 100)]
    rows = [
        Chat(id="a", lang="en", source="s", messages=[*asked, *bad]),
        Pair(id="b", lang="en", source="s", prompt=asked, chosen=good, rejected=bad),
        Pair(id="c", lang="en", source="s", prompt=asked, chosen=bad, rejected=good),
        Pair(id="d", lang="en", source="s", prompt=asked, chosen=good, rejected=good),
        Thumb(id="e", lang="en", source="s", prompt=asked, completion=bad, label=True),
        Thumb(id="f", lang="en", source="s", prompt=asked, completion=bad, label=False),
        Thumb(id="g", lang="en", source="s", prompt=asked, completion=loop, label=False),
        Thumb(id="h", lang="en", source="s", prompt=talk("<|im_end|>"), completion=good, label=False),
        Text(id="i", lang="en", source="s", text="no turns"),
    ]
    reasons = [finding and finding[0] for finding in judge_rows(rows, Filters(), Content())]
    assert reasons == ["cut_off", None, "cut_off", "equal_pair", "cut_off", None, None, "special_token", None]
    assert set(BAD_ANSWERS) < set(Filters.model_fields)


def _mixed(count: int) -> list[list[Message]]:
    draw = random.Random(4)
    answers = [EN, ZH, "好的，" * 60, "I cannot assist with that.", "As an AI language model, I sleep.", "x", EN * 12, "well " * 300, "<p>茶</p>",
               "+---+" + "-" * 400 + ZH, "```\nx", "|" + " " * 90 + "茶\n" * 3, ZH + "<|im_end|>", "".join(chr(0x4E00 + n) for n in range(2500))]  # fmt: skip
    return [
        talk(draw.choice(["列出三种茶。", "Which tea is mild?", "茶？"]), draw.choice(answers)) for _ in range(count)
    ]


def test_a_finding_does_not_hang_on_the_batch() -> None:
    chats = _mixed(160)
    whole = judge_chats(chats, Filters(), Content())
    assert {finding[0] for finding in whole if finding} >= {
        "repetition",
        "refusal",
        "identity",
        "special_token",
        "cut_off",
    }
    for size in (1, 3, 50):
        assert [
            one
            for start in range(0, 160, size)
            for one in judge_chats(chats[start : start + size], Filters(), Content())
        ] == whole


def test_the_quick_look_at_repetition_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(7)
    texts = []
    for _ in range(120):
        letters = "".join(draw.choice("abc 茶水😀") for _ in range(draw.randrange(0, 2600)))
        piece = letters[: draw.randrange(1, 300)]
        texts.append(letters + piece * draw.randrange(0, 6))
    exact = [share if (share := repeated(text)) > 0.3 else 0.0 for text in texts]
    assert 10 < sum(map(bool, exact)) < 110
    assert repetitions(texts, 0.3) == exact
    monkeypatch.setattr(codepoints, "CHARS", 1000)
    assert repetitions(texts, 0.3) == exact
    assert repeats.all_without_frames(texts) == [repeats.without_frames(text) for text in texts]
    framed = ["a----b", "", "茶    茶", "--", "--", "1111", "a|", "|||b", "=" * 9]
    assert repeats.all_without_frames(framed) == ["a b", "", "茶 茶", "--", "--", "1111", "a|", "|||b", " "]


def test_tables_and_charts_are_no_repetition() -> None:
    chart = "| 茶 | 分钟 |\n|" + "-" * 120 + "|" + "-" * 120 + "|\n| 绿茶" + " " * 150 + "| 2 |\n"
    assert repeated(chart) > 0.5
    assert judge_chats([talk("画个表", chart)], Filters())[0] is None


def test_no_rule_takes_long_on_hostile_text() -> None:
    for text in ("<a " * 15_000, "[[a" * 15_000, "{{a|" * 15_000, "&amp" * 15_000, "click " * 10_000, "未经" * 20_000, '{"a' * 10_000, "```" * 10_001,
                 "== " * 15_000, "```json\n" * 5_000, "[" * 20_000, "关注" * 20_000, "来源" * 20_000, "I'm not " * 5_000):  # fmt: skip
        started = time.process_time()
        (
            boilerplate(text),
            residue(text),
            bad_json(text, text, "json only"),
            cut_off(text),
            near_echo(text, text),
            refusal(text),
        )
        answer_language("茶茶", text), special_token(text)
        assert time.process_time() - started < 2.0, text[:10]
