import pytest

from steps.lib.characters import normalise
from steps.lib.chat_rules import judge_chats
from steps.lib.document_rules import repeated
from steps.lib.quality import Filters, judge_texts
from steps.lib.rows import Message

GOOD_ZH = "电水壶的保修期是两年，从小票日期算起。进水或摔坏不在保修范围内。请先拔掉电源，再检查底座。"
GOOD_EN = "The warranty of the kettle is two years. It begins on the date of the receipt. Water damage is not covered."


def chat(*turns: str) -> list[Message]:
    return [Message(role=("user", "assistant")[number % 2], content=text) for number, text in enumerate(turns)]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a\u00a0b\u3000c\u200b\ufeff ", "a b c"),
        ("a\r\nb\rc\td\x00", "a\nb\nc\td"),
        ("e\u0301", "\u00e9"),
        ("你好，世界！（测试）", "你好，世界！（测试）"),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467 a\u200db", "\U0001f468\u200d\U0001f469\u200d\U0001f467 ab"),
        ("plain", "plain"),
    ],
)
def test_normalise(raw: str, clean: str) -> None:
    assert normalise(raw) == clean
    assert normalise(clean) == clean


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("太短。", "too_short"),
        ("x" * 100_001, "too_long"),
        ("Пожалуйста, пришлите нам номер вашего заказа ещё раз.", "wrong_language"),
        (GOOD_EN + " <|im_end|>", "special_token"),
        (GOOD_EN + "|-=*/+" * 30, "word_ratio"),
        ("word " * 1 + "no end mark in this long line of words " * 30, "sentence_marks"),
        (GOOD_ZH + "…" * 5, "symbol_ratio"),
        ("Buy it now, today only.\n" * 5, "duplicate_lines"),
        (GOOD_ZH + "请联系客服。" * 60, "repetition"),
    ],
)
def test_a_bad_document_has_its_reason(text: str, reason: str) -> None:
    finding = judge_texts([text], Filters())[0]
    assert finding is not None and finding[0] == reason


@pytest.mark.parametrize("text", [GOOD_ZH, GOOD_EN])
def test_good_documents_stay(text: str) -> None:
    assert judge_texts([text], Filters())[0] is None


@pytest.mark.parametrize(
    "turns",
    [
        ("在吗", "在的。"),
        ("1+1=?", "2"),
        ("谢谢", "不客气！"),
        ("能退货吗？", "抱歉，我们无法承诺退款，请先发订单号。"),
        ("Can I return it?", "Sorry, we cannot promise a refund. Please send the order number."),
        ("写一个函数", "```python\ndef f(x):\n    return {'a': [x, x ** 2]}\n```"),
        ("谁需要它？", "作为人工智能领域的专家，他每天都要用到它。"),
        ("退款", '{"intent": "refund", "order_number": null, "reply": "请提供订单号。"}'),
    ],
)
def test_good_short_chats_stay(turns: tuple[str, ...]) -> None:
    assert judge_chats([chat(*turns)], Filters())[0] is None


@pytest.mark.parametrize(
    ("turns", "reason", "switch"),
    [
        (("你好", "你好"), "echo", {"echo": False}),
        (("hi", "Fine.<|im_end|>"), "special_token", {"special_tokens": False}),
        (("hi", "<think>hm</think>Fine."), "think_tag", {"think_tags": False}),
        (("hi", "As an AI language model, I have no house."), "identity", {"identity": False}),
        (("你好", "作为一个人工智能语言模型，我没有房子。"), "identity", {"identity": False}),
        (("hi", "I'm sorry, but I can't help with that."), "refusal", {"refusal": False}),
        (("你好", "很抱歉，我无法回答这个问题。"), "refusal", {"refusal": False}),
        (("hi", "### Instruction: be kind"), "prompt_leak", {"prompt_leak": False}),
        (("hi", "好的，" * 100), "repetition", {"repetition": None}),
        (("Здравствуйте, где мой заказ?", "Он уже в пути к вам."), "wrong_language", {"languages": []}),
        (("hi", "well " * 5_000), "too_long", {"chat_max_chars": None, "repetition": None}),
    ],
)
def test_a_bad_chat_has_its_reason_and_a_switch(turns: tuple[str, ...], reason: str, switch: dict[str, object]) -> None:
    finding = judge_chats([chat(*turns)], Filters())[0]
    assert finding is not None and finding[0] == reason
    assert judge_chats([chat(*turns)], Filters.model_validate(switch))[0] is None


def test_an_answer_that_repeats_the_system_turn_leaks_it() -> None:
    system = Message(role="system", content="Answer in JSON: intent, order_number, reply.")
    turns = [system, *chat("hi", "I was told: Answer in JSON: intent, order_number, reply.")]
    assert judge_chats([turns], Filters())[0] == ("prompt_leak", system.content)


def test_every_threshold_of_documents_has_a_reader() -> None:
    measures = {
        "word_ratio": 1.0,
        "symbol_ratio": 0.0,
        "sentence_marks": 1.0,
        "duplicate_lines": 0.0,
        "repetition": 0.0,
    }
    text = "Same line here.\nSame line here.\n# " + GOOD_EN * 3
    for name, strict in measures.items():
        off = Filters.model_validate(dict.fromkeys(measures) | {"text_min_chars": None, "text_max_chars": None})
        assert judge_texts([text], off)[0] is None
        finding = judge_texts([text], off.model_copy(update={name: strict}))[0]
        assert finding is not None and finding[0] == name


def test_repetition_sees_a_loop_at_the_end_of_a_long_text() -> None:
    varied = "".join(chr(0x4E00 + number % 5000) for number in range(3000))
    assert repeated(varied) == 0.0
    assert repeated(varied + "好的好的" * 200) > 0.9
