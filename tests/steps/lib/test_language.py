import pytest

from steps.lib.language import detect


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("请把订单号发给我。", "zh"),
        ("好", "zh"),
        ("把这句话翻译成英文：Good morning", "zh"),
        ("Please send the order number.", "en"),
        ("The word 你好 means hello, and that is all there is to say.", "en"),
        ("A true to size t-shirt ・ shorter in length", "en"),
        ("注文番号を教えてください。", "other"),
        ("주문 번호를 알려 주세요.", "other"),
        ("Пожалуйста, пришлите номер заказа.", "other"),
        ("1 + 1 = 2", "other"),
        ("", "other"),
    ],
)
def test_script_decides(text: str, lang: str) -> None:
    assert detect(text) == lang


def test_english_letters_inside_chinese_do_not_turn_it() -> None:
    assert detect("我的 iPhone 15 Pro 充不进电，怎么办") == "zh"
