"""Each rule keeps and breaks, in both languages; adversarial answers do not pass; no rule is constant on a fuzz set."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from steps.lib.instruction_words import sentences_of, words_of
from steps.lib.instructions import RULES, Instruction, instruction
from steps.lib.rows import Lang

LEAST, LESS = {"relation": "at least"}, {"relation": "less than"}
K = "keywords:"
L = "length_constraints:"
F = "detectable_format:"
CASES: list[tuple[str, dict[str, Any], Lang, tuple[str, ...], tuple[str, ...]]] = [
    (K + "existence", {"keywords": ["Tea", "cup"]}, "en", ("tea and a cup",), ("tea only", "a c-u-p of tea")),
    (K + "existence", {"keywords": ["茶", "杯子"]}, "zh", ("一杯子茶",), ("一杯茶",)),
    (K + "frequency", {"keyword": "tea", "frequency": 2, **LEAST}, "en", ("tea, Tea",), ("tea", "t e a tea")),
    (K + "frequency", {"keyword": "tea", "frequency": 2, **LESS}, "en", ("tea", "milk"), ("tea tea",)),
    (K + "frequency", {"keyword": "茶", "frequency": 2, **LEAST}, "zh", ("茶和茶",), ("茶",)),
    (K + "forbidden_words", {"forbidden_words": ["run"]}, "en", ("A running bark",), ("We run.", "RUN!")),
    (K + "forbidden_words", {"forbidden_words": ["跑"]}, "zh", ("我们走",), ("我们跑步",)),
    (K + "letter_frequency", {"letter": "z", "let_frequency": 2, "let_relation": "at least"}, "en", ("Zoo buzz",), ("zoo",)),
    (K + "letter_frequency", {"letter": "的", "let_frequency": 2, "let_relation": "less than"}, "zh", ("我的",), ("我的你的",)),
    ("language:response_language", {"language": "en"}, "en", ("This is plain English, of course.",), ("这是中文。", "123")),
    ("language:response_language", {"language": "zh"}, "zh", ("並查看更多內容", "共30天，费用100元"), ("An English answer.", "ok")),
    ("language:response_language", {"language": "kn"}, "en", ("ಇದು ಕನ್ನಡ ವಾಕ್ಯ",), ("This is English.",)),
    ("language:response_language", {"language": "de"}, "en", ("Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter.",), ("This is an ordinary sentence about the weather.",)),
    (L + "number_words", {"num_words": 3, **LEAST}, "en", ("one two three",), ("one two", "...,,, !!")),
    (L + "number_words", {"num_words": 5, **LESS}, "zh", ("你好ok",), ("你好你好ok",)),
    (L + "number_sentences", {"num_sentences": 2, **LEAST}, "en", ("One. Two!",), ("Mr. Smith paid 3.50.", "One line\nand another")),
    (L + "number_sentences", {"num_sentences": 2, **LESS}, "zh", ("一句话。", "一句话……"), ("一句。两句？", "好！好！")),
    (L + "number_paragraphs", {"num_paragraphs": 2}, "en", ("a\n***\nb", "***\na\n***\nb"), ("a\n\nb", "a\n***\n***\nb")),
    (L + "number_paragraphs", {"num_paragraphs": 2}, "zh", ("甲\n***\n乙",), ("甲", "甲\n***\n乙\n***\n丙")),
    (L + "nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "it"}, "en", ("a\n\nIt is", "a\n\n\"It\" is"), ("a\n\nIts", "a\n\nb it", "it\n\nb", "a\n\nb\n\nit")),
    (L + "nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "月亮"}, "zh", ("月亮很圆\n\n好", "“月亮”\n\n好"), ("圆月亮\n\n好", "月亮")),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "en", ("[a] and [b c]",), ("[a]", "[] []")),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "zh", ("【姓名】和［地址］",), ("【】【】",)),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "en", ("Bye.\nP.S. Write soon", "P. S. x"), ("Bye.", "Bye. P.S.", "ups. well")),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "en", ("Bye.\nP.P.S. Write",), ("Bye.\nP.S. Write",)),
    ("detectable_content:postscript", {"postscript_marker": "又及"}, "zh", ("再见。\n又及：带伞",), ("再见。又及：", "涉又及此")),
    (F + "number_bullet_lists", {"num_bullets": 2}, "en", ("* a\n- b",), ("* a", "* a\n* b\n* c", "**a**\n**b**")),
    (F + "number_bullet_lists", {"num_bullets": 2}, "zh", ("* 甲\n* 乙", "• 甲\n• 乙"), ("1. 甲\n2. 乙",)),
    (F + "constrained_response", {}, "en", ("My answer is yes.",), ("yes", "My answer is yes. My answer is no.")),
    (F + "constrained_response", {}, "zh", ("我的回答是肯定的。",), ("肯定的", "我的回答是肯定的。我的回答是否定的。")),
    (F + "number_highlighted_sections", {"num_highlights": 2}, "en", ("*a* and **b**",), ("*a*", "** ** * *", "* a\n* b")),
    (F + "number_highlighted_sections", {"num_highlights": 1}, "zh", ("*重点*在这",), ("重点",)),
    (F + "multiple_sections", {"section_spliter": "Section", "num_sections": 2}, "en", ("Section 1\na\nSection 2\nb",), ("Section one, Section two", "Section 1")),
    (F + "multiple_sections", {"section_spliter": "节", "num_sections": 2}, "zh", ("第一节 甲\n第二节 乙",), ("第一节", "节日节约")),
    (F + "json_format", {}, "en", ('{"a": 1}', '```json\n{"a": 1}\n```'), ("a: 1", '{"a": NaN}', '{"a": 1, "a": 2}', 'Sure: {"a": 1}')),
    (F + "json_format", {}, "zh", ('{"名": "好"}',), ("{名: 好}",)),
    (F + "title", {}, "en", ("<<A title>>\ntext",), ("<< >>", "<A title>", "A title")),
    (F + "title", {}, "zh", ("《标题》\n正文", "<<标题>>"), ("《》", "标题")),
    ("combination:two_responses", {}, "en", ("a\n******\nb",), ("a\n******\na", "a", "a\n***\nb", "a******b******c")),
    ("combination:two_responses", {}, "zh", ("甲\n******\n乙",), ("甲\n******\n",)),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "en", ("Say hi.\nHi!", "say HI. Hello"), ("Say hi.", "Sure! Say hi. Hi!")),
    ("combination:repeat_prompt", {"prompt_to_repeat": "说你好。"}, "zh", ("说你好。你好！",), ("说你好。", "你好！说你好。")),
    ("startend:end_checker", {"end_phrase": "The end."}, "en", ("So. The end.", '"So. the END."'), ("The end. So", "The end")),
    ("startend:end_checker", {"end_phrase": "完了。"}, "zh", ("好，完了。", "“好，完了。”"), ("完了。好",)),
    ("startend:quotation", {}, "en", ('"All of it."', "“All of it.”"), ('"Half" of it', '""', '"')),
    ("startend:quotation", {}, "zh", ("“都在里面。”", "「都在里面。」"), ("“一半”在里面", "“”")),
    ("punctuation:no_comma", {}, "en", ("No comma. None!",), ("One, two", "")),
    ("punctuation:no_comma", {}, "zh", ("没有逗号。",), ("有，逗号", "有、顿号")),
    ("change_case:english_lowercase", {}, "en", ("all of this is small, and it is so.",), ("Not all of this", "这是中文", "123")),
    ("change_case:english_capital", {}, "en", ("ALL OF THIS IS BIG, AND THAT IS IT.",), ("Not ALL of this", "123")),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "en", ("A BIG word",), ("A big Word", "BIG")),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"}, "en", ("one BIG word",), ("BIG BIG word",)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments", "lang", "good", "bad"), CASES, ids=[f"{c[0]}-{c[2]}-{n}" for n, c in enumerate(CASES)]
)
def test_a_rule_keeps_and_breaks(name: str, arguments: dict[str, Any], lang: Lang, good: Any, bad: Any) -> None:
    rule = instruction(name, arguments)
    assert rule.problem() is None
    assert [text for text in good if rule.strict(text, lang) is not True] == []
    assert [text for text in bad if rule.strict(text, lang) is not False] == []
    assert all(rule.loose(text, lang) for text in good), "loose holds wherever strict does"


def test_every_rule_has_cases_in_both_languages_or_does_not_apply() -> None:
    covered = {(name, lang) for name, _, lang, _, _ in CASES}
    assert len(RULES) == 25
    for name in RULES:
        assert (name, "en") in covered
        if (name, "zh") not in covered:
            assert name.startswith("change_case")
            arguments = next(arguments for one, arguments, *_ in CASES if one == name)
            assert instruction(name, arguments).strict("ABC 好", "zh") is None, "excluded, never passed"
            assert instruction(name, arguments).loose("ABC 好", "zh") is None


def fuzz(lang: Lang, count: int = 150) -> list[str]:
    """Answers put together at random from what answers are made of."""
    rng = random.Random(f"fuzz {lang}")
    bits = {
        "en": ["The window is open.", "A basket, slowly filled.", "The neighbour has a candle", "seven SILVER bridges", "honey and an engine",
               "Section 1", "Section 2", "[name]", "[place]", "* one\n", "* two\n", "P.S. more", "That is all for today.", "Ask me again tomorrow.",
               "My answer is yes.", "<<A title>>", "*this*", "\n***\n", "\n\n", "\n******\n", "NO MORE", "aaaa eeee oooo tttt"],
        "zh": ["窗户开着。", "篮子慢慢满了，", "邻居有蜡烛", "七天的银色桥", "蜂蜜和发动机", "第一节", "第二节", "【姓名】", "［地址］", "* 甲\n", "* 乙\n",
               "又及：还有", "今天就到这里。", "明天再问我吧。", "我的回答是否定的。", "《标题》", "*重点*", "\n***\n", "\n\n", "\n******\n", "的的的", "是不是我"],
    }["zh" if lang == "zh" else "en"]  # fmt: skip
    texts = [
        '{"a": 1}',
        "plain english words in a row, and that is all of it",
        "PLAIN ENGLISH WORDS AND THAT IS ALL OF IT",
        "只有中文",
    ]
    for _ in range(count):
        text = " ".join(rng.choices(bits, k=rng.randint(1, 25)))
        texts += [text, f'"{text}"', *(f"{text[:20]}\n\n{bit} {text[20:]}" for bit in rng.sample(bits, 2))]
    return texts


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_no_rule_is_constant_on_a_fuzz_set(lang: Lang) -> None:
    """A rule that never fails, or never holds, measures nothing (mIFEval's first-word rule is always true)."""
    seen: dict[str, set[bool | None]] = {name: set() for name in RULES}
    texts = fuzz(lang)
    rows = [json.loads(line) for line in Path("data/seed/rules/instructions.jsonl").read_text().splitlines()]
    for row in (row for row in rows if row["lang"] == lang):
        for name, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            if seen[name] >= {True, False}:
                continue
            rule = instruction(name, arguments)
            answers = [
                *texts,
                f"{row['prompt'].partition('。' if lang == 'zh' else '.')[0]}",
                f"{arguments.get('prompt_to_repeat')} So.",
            ]
            if "first_word" in arguments:
                answers += [
                    "\n\n".join(["x", f"{arguments['first_word']} y", *"zwvu"[: arguments["num_paragraphs"] - 2]])
                ]
            seen[name] |= {rule.strict(text, lang) for text in answers}
    asked = {name for name, found in seen.items() if found}
    assert asked == {name for name in RULES if lang == "en" or not name.startswith("change_case")}
    assert {name: found for name, found in seen.items() if name in asked and found != {True, False}} == {}


def test_an_empty_answer_keeps_no_rule() -> None:
    for name, arguments, lang, _, _ in CASES:
        assert instruction(name, arguments).strict(" \n", lang) in (False, None), name


def test_loose_forgives_an_opening_line_a_closing_line_and_asterisks() -> None:
    quoted = instruction("startend:quotation", {})
    assert not quoted.strict('Sure:\n"It is."\nBye', "en") and quoted.loose('Sure:\n"It is."\nBye', "en")
    assert quoted.loose('**"It is."**', "en") and not quoted.loose('Well: "It is." Bye', "en")


def test_what_cannot_be_checked_says_why() -> None:
    assert "unknown" in str(Instruction("keywords:nothing", {}).problem())
    assert "takes ['keywords']" in str(instruction("keywords:existence", {"keyword": "x"}).problem())
    wrong = {"num_words": 3, "relation": "around"}
    assert "relation 'around'" in str(instruction("length_constraints:number_words", wrong).problem())
    assert instruction("startend:quotation", {"num_words": None}).problem() is None, "null arguments are left out"


def test_words_and_sentences_of_both_languages() -> None:
    assert words_of("共30天，USD ok") == ["共", "30", "天", "USD", "ok"]
    assert len(sentences_of("Mr. A. Smith paid 3.50 at 5 p.m. and left. Why? 好的。不行…… ok")) == 5
    assert sentences_of("...") == [] == words_of("，。 --")


def test_the_public_file_is_read_whole(shared_data: Path) -> None:
    """Every rule of IFEval's own rows is known, with its arguments; and every prompt as an answer is scored."""
    rows = [json.loads(line) for line in (shared_data / "eval" / "ifeval.jsonl").read_text().splitlines()]
    found = [instruction(n, a) for row in rows for n, a in zip(row["instruction_id_list"], row["kwargs"], strict=True)]
    assert len(rows) > 200 and {rule.name for rule in found} == set(RULES)
    assert [rule.problem() for rule in found if rule.problem()] == []
