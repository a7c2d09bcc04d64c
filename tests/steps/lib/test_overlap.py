"""Decontamination: against sets of token tuples, on planted contamination, zh and en; guard sets that cannot be read."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from steps.lib.benchmarks import benchmark_items, contaminated_rows, heldout_items
from steps.lib.errors import DataError
from steps.lib.overlap import Decontaminate, Item, contaminated, guard
from steps.lib.rows import Chat, Message, Pair, Prompt, Text
from steps.lib.shingles import tokens
from steps.lib.sources import Source

CONFIG = Decontaminate()
EN = (
    "A large bag of candy has 232 pieces in it. If this bag has 54 red candies, twice that amount of orange candies and half as many "
    "yellow candies as red ones, how many candies are pink? Explain each of your steps."
)
ZH = (
    "一个水箱星期一水深十七英尺，星期二的水比星期一多了七英尺。星期三的水深是星期二的三分之二，"
    "请问星期三的水箱里水深是多少英尺？请写出完整的解题步骤。"
)
ANSWER_EN = "There are 54 red candies and 54*2=108 orange ones. The yellow candies are half of the red, so there are 27, and 43 are pink."
ANSWER_ZH = "星期二的水深为十七加七等于二十四英尺，星期三的水深是二十四乘以三分之二，等于十六英尺，所以答案是十六。"
AROUND = {
    "en": (
        "The town library opened a reading room for the older children this spring. ",
        " Nobody knew who had paid for it.",
    ),
    "zh": ("今年春天，镇上的图书馆为大一点的孩子开了一间阅览室。", "没有人知道是谁出的钱。"),
}


def facts(text: str, *items: str, config: Decontaminate = CONFIG, **more: Any) -> dict[str, Any] | None:
    table = guard([Item(str(number), item, **more) for number, item in enumerate(items)], config)
    (found,) = contaminated([text], table, config)
    assert found is None or found[0] == "contaminated"
    return json.loads(found[1]) if found else None


def brute(text: str, item: str) -> tuple[float, int]:
    """Share of the item's columns in 13-grams of the text, and the longest stretch: by tuples of tokens."""
    there, own = tokens(text), tokens(item)
    grams = {tuple(there[place : place + 13]) for place in range(len(there) - 12)}
    hits = [tuple(own[place : place + 13]) in grams for place in range(len(own) - 12)]
    wide = [2 if len(token) == 1 and ord(token) > 0x2E80 else len(token) for token in own]
    covered = {place + step for place, hit in enumerate(hits) if hit for step in range(13)}
    run = best = 0
    for place, hit in enumerate(hits):
        run = (run + wide[place + 12] if run else sum(wide[place : place + 13])) if hit else 0
        best = max(best, run)
    return sum(wide[place] for place in covered) / sum(wide), best


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(["en", "zh", "both"]))
def test_share_and_run_are_those_of_token_tuples(draw: random.Random, lang: str) -> None:
    letters = {"en": ["ab", "c", "defg"], "zh": list("的一是"), "both": ["ab", "的", "一", "x1"]}[lang]

    def made(size: int) -> list[str]:
        return [draw.choice(letters) for _ in range(size)]

    items = [made(draw.randint(13, 60)) for _ in range(4)]
    texts = []
    for _ in range(6):
        low = draw.choice(items)[draw.randint(0, 20) :]
        texts.append(" ".join([*made(draw.randint(0, 9)), *low, *made(draw.randint(0, 30))]))
    config = Decontaminate(share=0.05, run=26, boilerplate=100)
    table = guard([Item(str(number), " ".join(item)) for number, item in enumerate(items)], config)
    for text, found in zip(texts, contaminated(texts, table, config), strict=True):
        want = {str(number): brute(text, " ".join(item)) for number, item in enumerate(items)}
        wide = {
            str(number): sum(len(one) if one < "\u2e80" else 2 for one in item) for number, item in enumerate(items)
        }
        bad = {
            name: (share, run)
            for name, (share, run) in want.items()
            if run >= 26 or share >= 0.05 and round(share * wide[name]) >= min(17, wide[name])
        }
        assert (found is not None) == bool(bad)
        if found and (hit := json.loads(found[1]))["rule"] != "whole":
            assert (hit["share"], hit["run"]) == (round(bad[hit["guard_id"]][0], 3), bad[hit["guard_id"]][1])
            assert bad[hit["guard_id"]][0] == max(share for share, _ in bad.values())


@pytest.mark.parametrize(
    ("lang", "item"),
    [("en", EN), ("zh", ZH), ("en", ANSWER_EN), ("zh", ANSWER_ZH)],
    ids=["en", "zh", "en-answer", "zh-answer"],
)
def test_planted_contamination_is_found_in_both_languages(lang: str, item: str) -> None:
    before, behind = AROUND[lang]
    half = item[: int(len(item) * 0.6)]
    assert facts(item, item) == {"guard_id": "0", "rule": "share", "share": 1.0, "run": sum(map(wide, tokens(item)))}
    for text in (
        before + item + behind,
        item.upper(),
        item.replace("，", " , ").replace(" ", "\n"),
        before + half + behind,
    ):
        assert facts(text, "unrelated " * 20, item), text
    assert facts(before + behind, item) is None


def wide(token: str) -> int:
    return 2 if len(token) == 1 and token >= "\u2e80" else len(token)


@pytest.mark.parametrize(("lang", "item"), [("en", EN), ("zh", ZH)], ids=["en", "zh"])
def test_five_per_cent_of_edits_do_not_hide_an_item(lang: str, item: str) -> None:
    draw, words, found = random.Random(4), tokens(item), 0
    for _ in range(100):
        edited = [draw.choice(("new", "新")) if draw.random() < 0.05 else word for word in words]
        found += facts(AROUND[lang][0] + " ".join(edited), item) is not None
    assert found >= 90, "of 100; 5 % of single characters is more than 5 % of words"


def test_sentences_in_another_order_are_found() -> None:
    for item, stop in ((EN, ". "), (ZH, "。")):
        parts = item.split(stop)
        assert facts(stop.join(reversed(parts)), item)


def test_documents_may_share_a_sentence_and_prompts_may_not() -> None:
    for lang, item in (("en", EN + ANSWER_EN), ("zh", ZH + ANSWER_ZH)):
        quote = item[: len(item) * 2 // 5]
        text = AROUND[lang][0] + quote + AROUND[lang][1]
        assert facts(text, item, runs=False) is None
        found = facts(text, item, runs=True)
        assert found and found["rule"] == "run" and found["run"] >= 60 and found["share"] < 0.5


def test_what_many_items_share_is_boilerplate() -> None:
    for head, tails in (
        (
            "Read the following passage with care and then answer the question below in one short sentence only: ",
            ["what is the height of the tower", "who wrote the long letter to the king"],
        ),
        ("请仔细阅读下面的文章，然后用一句简短的话回答文章后面提出的问题，不要写任何多余的内容：", ["这座塔有多高", "谁给国王写了那封长信"]),
    ):  # fmt: skip
        few = [f"{head}{name * 3} {tails[0]} {name}" for name in ("one", "two", "three")]
        many = few + [f"{head}{name * 3} {tails[0]} {name}" for name in map(str, range(100, 110))]
        assert facts(head + tails[1], *few), "three items share it: it may be the item"
        assert facts(head + tails[1], *many) is None, "thirteen do: it is how this benchmark asks"
        assert facts(many[4], *many), "the item itself is still guarded"


def test_short_items_must_stand_whole() -> None:
    for item, inside, cut in (
        (
            "Who painted the Mona Lisa?",
            "Ann asked: who painted the Mona Lisa? Nobody knew.",
            "Who painted the Mona house?",
        ),
        ("蒙娜丽莎是谁画的作品？", "他问：“蒙娜丽莎是谁画的作品？”没人知道。", "蒙娜丽莎是谁画的？"),
    ):
        assert facts(inside, item) == {
            "guard_id": "0",
            "rule": "whole",
            "share": 1.0,
            "run": sum(map(wide, tokens(item))),
        }
        assert facts(cut, item) is None
    assert facts("中国的首都是哪里？", "中国的首都是哪里"), "16 columns: a turn of its own"
    assert facts("你知道中国的首都是哪里吗", "中国的首都是哪里") is None, "16 columns: not inside another"
    for label in ("yes", "A", "是", "answer: B"):
        assert facts(label, label) is None


def test_results_do_not_hang_on_the_batch_and_the_table_can_be_pickled() -> None:
    import pickle

    table = guard(
        [Item("en", EN), Item("zh", ZH), Item("zh-again", ZH), Item("short", "Who painted the Mona Lisa?")], CONFIG
    )
    texts = ["", "a", EN, "x " * 30, ZH, AROUND["zh"][0], "Who painted the Mona Lisa?", "\ud83d half " * 8] * 70
    alone = [contaminated([text], pickle.loads(pickle.dumps(table)), CONFIG)[0] for text in texts[:8]] * 70
    assert contaminated(texts, table, CONFIG) == alone
    assert [json.loads(found[1])["guard_id"] if found else "" for found in alone[:8]] == [
        "",
        "",
        "en",
        "",
        "zh",
        "",
        "short",
        "",
    ]
    assert contaminated(texts, guard([], CONFIG), CONFIG) == [None] * len(texts)
    assert contaminated([], table, CONFIG) == []


def test_switched_off_rules_find_nothing() -> None:
    off = Decontaminate(share=None, run=None)
    assert facts(EN, EN, config=off) is None
    assert facts(EN, EN, config=Decontaminate(share=None)) == {
        "guard_id": "0",
        "rule": "run",
        "share": 1.0,
        "run": sum(map(wide, tokens(EN))),
    }


def chat(*turns: str) -> Chat:
    roles = ["system", "user", "assistant"]
    return Chat(id="c", messages=[Message(role=role, content=turn) for role, turn in zip(roles, turns, strict=False)])  # type: ignore[arg-type]


def test_each_turn_of_a_row_is_searched_but_the_systems() -> None:
    table = guard([Item("en", EN), Item("zh", ANSWER_ZH)], CONFIG)
    rows = [
        chat("", EN, "43"),
        chat("", "?", f"好的。{ANSWER_ZH}"),
        chat(EN, "?", "!"),
        Text(id="t", text=ZH),
        Text(id="u", text=EN),
    ]
    found = contaminated_rows(rows, table, CONFIG)
    assert [json.loads(one[1])["guard_id"] if one else None for one in found] == ["en", "zh", None, None, "en"]


def test_held_out_rows_guard_their_prompts_and_their_answers_when_asked() -> None:
    user, bot = (
        (lambda text: Message(role="user", content=text)),
        (lambda text: Message(role="assistant", content=text)),
    )
    rows = [
        Text(id="doc", text=EN),
        Prompt(id="ask", prompt=ZH, facts=json.dumps({"reference": ANSWER_ZH, "system": "s"})),
        Pair(id="pair", prompt=[user(EN)], chosen=[bot(ANSWER_EN)], rejected=[bot("no")]),
    ]
    assert heldout_items(rows, CONFIG) == [
        Item("doc", EN, runs=False),
        Item("ask", ZH, runs=False),
        Item("pair", EN, runs=False),
    ]
    more = [item.id for item in heldout_items(rows, Decontaminate(answers=True))]
    assert more == ["doc", "ask", "ask/reference", "pair", "pair/chosen", "pair/rejected"]


def benchmark(folder: Path, name: str, text: str, **more: Any) -> Source:
    (folder / name).write_text(text, encoding="utf-8")
    return Source(name=name.split(".")[0], path=folder / name, **more)


def test_every_text_of_a_benchmark_is_guarded_whatever_its_columns(tmp_path: Path) -> None:
    rows = [{"id": 7, "q": EN, "choices": ["A", ANSWER_EN], "meta": {"by": "me"}}, {"q": ZH, "choices": []}]
    source = benchmark(tmp_path, "quiz.jsonl", "\n".join(json.dumps(row) for row in rows))
    items = benchmark_items(Decontaminate(benchmarks=[source]))
    assert [(item.id, item.text) for item in items] == [
        ("quiz:1/q", EN), ("quiz:1/choices/0", "A"), ("quiz:1/choices/1", ANSWER_EN), ("quiz:1/meta/by", "me"), ("quiz:2/q", ZH),
    ]  # fmt: skip
    only = source.model_copy(update={"columns": {"prompt": "q"}})
    assert [item.text for item in benchmark_items(Decontaminate(benchmarks=[only]))] == [EN, ZH]


def test_a_guard_that_cannot_be_read_whole_stops_the_step_with_all_problems(tmp_path: Path) -> None:
    sets = [
        Source(name="gone", path=tmp_path / "gone.jsonl"),
        benchmark(tmp_path, "nothing.jsonl", ""),
        benchmark(tmp_path, "blank.jsonl", "\n\n"),
        benchmark(tmp_path, "cut.jsonl", '{"q": "one"}\n{"q": "tw\n{"q": 3}\n'),
        benchmark(tmp_path, "other.jsonl", '{"q": "one"}\n', columns={"prompt": "question"}),
        benchmark(tmp_path, "good.jsonl", '{"q": "one"}\n'),
    ]
    with pytest.raises(DataError) as caught:
        benchmark_items(Decontaminate(benchmarks=sets))
    message = str(caught.value)
    for part in (
        "5 problems in the benchmarks", "gone.jsonl is missing", "nothing.jsonl is empty", "benchmark blank", "got no row",
        "benchmark cut", "line 2: not JSON", "line 3: no text in it", "line 1: no column question",
    ):  # fmt: skip
        assert part in message, (part, message)
    assert "good.jsonl" not in message


def test_benchmarks_are_read_as_they_stand() -> None:
    with pytest.raises(ValidationError, match="benchmark 'b' sets layout, limit"):
        Decontaminate(benchmarks=[Source(name="b", path=Path("b.jsonl"), layout="text", limit=3)])


def test_real_benchmarks_guard_themselves_and_next_to_nothing_in_real_data(shared_data: Path) -> None:
    """Every item is found in the middle of a real answer; the real rows hold none but a quotation that one item translates."""
    sets = [
        Source(name=name, path=shared_data / "eval" / f"{name}.jsonl")
        for name in ("belle_eval", "gsm8k_test", "ifeval")
    ]
    config = Decontaminate(benchmarks=sets)
    items = benchmark_items(config)
    table = guard(items, config)
    known = [item for item in items if len(tokens(item.text)) >= 5 and sum(map(wide, tokens(item.text))) >= 20]
    answers = json.loads((shared_data / "real" / "alpaca_zh_demo.json").read_text(encoding="utf-8"))
    english = json.loads((shared_data / "real" / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    real = [row[column] for row in answers + english for column in ("instruction", "input", "output")]
    found = contaminated(real, table, config)
    hits = [(text, json.loads(hit[1])) for text, hit in zip(real, found, strict=True) if hit]
    assert [("Nelson Mandela" in text, hit["guard_id"]) for text, hit in hits] == [(True, "belle_eval:110/question")]
    planted = [f"{real[number % len(real)]}\n{item.text}\n{real[-1]}" for number, item in enumerate(known)]
    missed = [item.id for item, hit in zip(known, contaminated(planted, table, config), strict=True) if not hit]
    assert len(known) > 1100 and missed == []
