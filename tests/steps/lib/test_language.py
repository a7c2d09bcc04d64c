import json
import subprocess
import sys
from pathlib import Path

import pytest

from steps.lib import codepoints
from steps.lib.language import detect, detect_many

REAL = Path(__file__).parents[4] / "shared" / "data"
OTHERS = [
    "Bitte senden Sie mir die Bestellnummer.",
    "Wo ist meine Bestellung geblieben?",
    "Schreibe eine kurze Geschichte über einen Hund.",
    "Quelle est la capitale de la France ?",
    "Il fait tres beau aujourd'hui dans la region parisienne.",
    "Je voudrais retourner ce produit parce qu'il ne fonctionne pas.",
    "Quiero devolver este producto porque no funciona.",
    "Gostaria de devolver este produto, ele não funciona.",
    "Vorrei restituire questo prodotto perché non funziona.",
    "De garantie van de waterkoker is twee jaar.",
    "Garantin på vattenkokaren gäller i två år.",
    "Jeg har kjøpt en ny telefon i går, og den virker ikke.",
    "Gwarancja na czajnik wynosi dwa lata od daty zakupu.",
    "Vă rog să-mi trimiteți numărul comenzii.",
    "Lütfen sipariş numarasını gönderin.",
    "Bảo hành của ấm đun nước là hai năm.",
    "Voisitteko lähettää tilausnumeron minulle?",
    "Kérem, küldje el a rendelési számot.",
]
ENGLISH = [
    "ls -la",
    "Danke",
    "git commit --amend --no-edit && git push origin main",
    "Write a function to convert Fahrenheit to Celsius",
    "Name the actors in Star Wars: The Last Jedi.",
    "Generate 5 hashtags",
    "Classify sentiment: awful service",
    "SELECT name, price FROM products WHERE price > 100 ORDER BY price DESC",
    "```python\ndef somme(valeurs):\n    resultat = 0\n    for valeur in valeurs:\n        resultat += valeur\n    return resultat\n```",
    "Read https://www.beispiel.de/datenschutz/erklaerung/nutzungsbedingungen please",
    "Translate the following sentence to German: Where is the station? The answer is: Wo ist der Bahnhof?",
]


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


@pytest.mark.parametrize("text", OTHERS)
def test_other_latin_alphabets_are_other(text: str) -> None:
    assert detect(text) == "other"


def test_code_does_not_turn_chinese() -> None:
    code = "def somme(valeurs):\n    resultat = 0\n    for valeur in valeurs:\n        resultat += valeur\n    return resultat\n"
    assert detect(f"写一个函数。\n```python\n{code * 3}```\n它把所有的数加起来。") == "zh"
    assert detect(f"Write a function for 你好:\n```python\n{code}```") == "en"


@pytest.mark.parametrize("text", ENGLISH)
def test_commands_code_and_mixed_english_stay_english(text: str) -> None:
    assert detect(text) == "en"


def test_many_at_a_time_are_what_each_is(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*OTHERS, *ENGLISH, "", "好", "1 2", "注文番号を教えてください。"]
    alone = [detect(text) for text in texts]
    assert detect_many(texts) == alone
    monkeypatch.setattr(codepoints, "TEXTS", 3)
    assert detect_many(texts) == alone


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data")
def test_real_english_is_not_called_other() -> None:
    rows = json.loads((REAL / "real" / "alpaca_en_demo.json").read_text("utf-8"))
    texts = ["\n".join(filter(None, row.values())) for row in rows]
    for name, field in (("gsm8k_test", "question"), ("ifeval", "prompt")):
        texts += [json.loads(line)[field] for line in (REAL / "eval" / f"{name}.jsonl").read_text("utf-8").splitlines()]
    assert len(texts) > 900
    assert detect_many(texts).count("en") >= 0.997 * len(texts)


def test_the_model_is_loaded_only_when_it_is_asked() -> None:
    code = (
        "import sys; from steps.lib.language import detect\n"
        "assert [detect(text) for text in ('好的，谢谢', 'What is the price of the kettle?', 'ok')] == ['zh', 'en', 'en']\n"
        "assert 'fasttext' not in sys.modules; detect('Wo ist meine Bestellung geblieben?'); assert 'fasttext' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
