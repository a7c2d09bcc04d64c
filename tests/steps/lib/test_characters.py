import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.lib import codepoints
from steps.lib.characters import Repaired, normalise, repair

REAL = Path(__file__).parents[4] / "shared" / "data" / "real"
EN = "It’s a “smart” kettle — the café’s price is €20… and the naïve Zoë’s déjà vu."
ZH = "电水壶的保修期是两年，从小票日期算起。进水或摔坏（包括“泡水”）不在保修范围内！"
GOOD = [
    EN,
    ZH,
    "“你好”，她说：‘走吧’……《红楼梦》、１２３ＡＢＣ！？；（全角）～",
    "À côté, déjà vu – «\u2009Noël\u2009» – ça va\u00a0?".replace("\u2009", "").replace("\u00a0", ""),
    "São Paulo: não, irmão, coração. SÃO JOÃO. Ação!",
    "Việt Nam: Bảo hành của ấm đun nước là hai năm.",
    "Temperatur: 20 °C ± 2 °C, § 5 Abs. 2, µm, ½ Preis, £5, ©2024 ®",
    "浏览淇县的瑜伽馆，橄榄油很娴静，白璧无瑕。",
    "π ≈ 3.14, x² + y² ≤ z², ☕️ 👨\u200d👩\u200d👧 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "नमस्ते क्\u200dष می\u200cخواهم",
]


@pytest.mark.parametrize("text", GOOD)
def test_good_text_is_not_touched(text: str) -> None:
    assert repair([text]) == [Repaired(text)]


@pytest.mark.parametrize("good", [EN, ZH, "你好", "退货", "the café’s"])
@pytest.mark.parametrize("encoding", ["latin-1", "sloppy-windows-1252"])
def test_utf_8_read_as_a_western_encoding_is_read_again(good: str, encoding: str) -> None:
    import ftfy.bad_codecs  # noqa: F401

    bad = good.encode().decode(encoding)
    assert bad != good
    assert repair([bad]) == [Repaired(good, ("mojibake",))]


@pytest.mark.parametrize("good", ["你好", "请把订单号发给我", "我们在修理电水壶", "the kettle’s ok, it’s fine"])
def test_utf_8_read_as_gbk_is_read_again(good: str) -> None:
    assert repair([good.encode().decode("gbk")]) == [Repaired(good, ("mojibake",))]


@pytest.mark.parametrize("good", ["退货", "你好吗"])
def test_what_lost_a_byte_in_gbk_stays_as_it_is(good: str) -> None:
    bad = good.encode().decode("gbk", "replace")
    assert "\ufffd" in bad
    assert repair([bad]) == [Repaired(bad)]


def test_only_the_line_that_needs_it_is_read_again() -> None:
    text = f"{ZH}\nIt’s “fine”.\nthe cafÃ©'s price\n完"
    assert repair([text])[0].text == text.replace("cafÃ©", "café")


@pytest.mark.parametrize(
    ("raw", "clean", "codes"),
    [
        ("a\x00b\x85c\x1bd", "abcd", ("controls",)),
        ("abc\u202edef\u202c \u2066x\u2069 \u200fy", "abcdef x y", ("bidi",)),
        ("订单\u2067号", "订单号", ("bidi",)),
        ("\ufeffa\u200bb\u00adc", "abc", ("zero_width",)),
        ("hidden\U000e0041\U000e0042", "hidden", ("zero_width",)),
        ("a\u00a0b\u3000c\u205fd", "a b c d", ("spaces",)),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd", ("line_ends",)),
        ("cafe\u0301 \u1112\u1161\u11ab", "café 한", ("nfc",)),
        ("e\u200b\u0301 ok", "é ok", ("zero_width", "nfc")),
        ("cafÃ\u200b© now", "café now", ("mojibake", "zero_width")),
        (" \n plain \t", "plain", ()),
        ("", "", ()),
    ],
)
def test_repairs_have_their_codes(raw: str, clean: str, codes: tuple[str, ...]) -> None:
    assert repair([raw]) == [Repaired(clean, codes)]
    assert normalise(raw) == clean


ODD = "aé\u0301e â€™Ã©ä½\u00a0å¥½浣犲ソ你好\u200b\u200d\u202e\u2066\x00\x85\r\n\u2028\u3000👨\ufe0f\u1112\u1161\ufeff"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.sampled_from(ODD), max_size=20), max_size=6))
def test_a_repaired_text_needs_no_repair_and_does_not_hang_on_the_others(texts: list[str]) -> None:
    found = repair(texts)
    assert found == [repair([text])[0] for text in texts]
    assert [normalise(text) for text in texts] == [one.text for one in found]
    for one in found:
        assert repair([one.text]) == [Repaired(one.text)]


def test_the_size_of_a_batch_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*GOOD, "cafÃ©", "a\u200bb", ""] * 3
    whole = repair(texts)
    monkeypatch.setattr(codepoints, "TEXTS", 2)
    assert repair(texts) == whole


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data/real")
def test_real_chinese_is_never_changed() -> None:
    rows = json.loads((REAL / "alpaca_zh_demo.json").read_text("utf-8"))
    texts = [text for row in rows for text in row.values() if text]
    assert len(texts) > 1000
    assert [one.text for one in repair(texts)] == [text.strip() for text in texts]
    assert not any(one.codes for one in repair(texts))


def test_a_heap_of_marks_takes_no_time_and_spoils_no_letter() -> None:
    heap = "\u0315\u0300" * 20_000
    done = repair([f"e\u0301 {heap} e\u0301"])[0]
    assert done.text == f"é {heap} é" and done.codes == ("nfc",)
    assert repair([done.text])[0].text == done.text
    assert (
        repair(["a" + "\u0315\u0300" * 15])[0].text == "à" + "\u0300" * 14 + "\u0315" * 15
    )  # a writer's joke, in order
