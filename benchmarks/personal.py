"""Personal data planted in made-up documents: recall by type and language, decoys taken, false alarms, documents a core-second.

2,000 documents by default, half Chinese (no spaces between words), half English, of made-up words (DATA.md section 6): each has
one item and one decoy that looks like an item and is none. A second set of documents has small numbers and dates only, which is
what most text is like; the speed there is what cleaning costs. Everything is drawn from a seed.

Run:  python benchmarks/personal.py [--documents 2000] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable

from steps.lib.personal import Personal, find, redact

Maker = Callable[[random.Random], str]


def digits(draw: random.Random, count: int) -> str:
    """So many digits, the first of which is not 0."""
    return str(draw.randint(1, 9)) + "".join(str(draw.randint(0, 9)) for _ in range(count - 1))


def luhn(number: str) -> str:
    """The check digit that Luhn's rule gives to a number without it."""
    total = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit) * (2 - place % 2)
        total += value - 9 if value > 9 else value
    return str(-total % 10)


def card(draw: random.Random) -> str:
    """A card of one of four issuers, printed in groups every second time."""
    prefix, length = draw.choice([("4", 16), ("53", 16), ("6222", 16), ("6217", 19)])
    body = prefix + "".join(str(draw.randint(0, 9)) for _ in range(length - len(prefix) - 1))
    number = body + luhn(body)
    return number if draw.random() < 0.5 else " ".join(number[place : place + 4] for place in range(0, length, 4))


def cn_id(draw: random.Random) -> str:
    """An identity number with its check digit."""
    body = f"{draw.choice(['110105', '310115', '440308', '510107'])}{draw.randint(1950, 2005)}{draw.randint(1, 12):02}"
    body += f"{draw.randint(1, 28):02}{draw.randint(0, 999):03}"
    return body + check(body)


def check(body: str) -> str:
    """The check digit of an identity number."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return "10X98765432"[sum(int(digit) * weight for digit, weight in zip(body, weights, strict=True)) % 11]


def other(last: str, draw: random.Random) -> str:
    """Another digit."""
    return draw.choice([digit for digit in "0123456789" if digit != last])


def mobile(draw: random.Random) -> str:
    """A mobile number of an area that is in use, in one of three shapes."""
    head, middle, tail = draw.choice(["138", "139", "158", "176", "188", "199"]), digits(draw, 4), digits(draw, 4)
    return draw.choice(["{}{}{}", "{}-{}-{}", "{} {} {}"]).format(head, middle, tail)


def landline(draw: random.Random) -> str:
    """A landline of Beijing or Shanghai."""
    return f"{draw.choice(['010', '021'])}-6{digits(draw, 7)}"


def us_phone(draw: random.Random) -> str:
    """A number of a US area, in one of three shapes."""
    area, office, line = draw.choice(["212", "415", "617", "713"]), draw.randint(220, 480), draw.randint(1000, 9999)
    return draw.choice(["({}) {}-{}", "{}-{}-{}", "+1 {} {} {}"]).format(area, office, line)


def ipv4(draw: random.Random) -> str:
    """A public address."""
    return (
        f"{draw.choice([23, 47, 52, 101, 139])}.{draw.randint(40, 250)}.{draw.randint(1, 250)}.{draw.randint(1, 250)}"
    )


def iban(draw: random.Random) -> str:
    """A German one."""
    body = digits(draw, 18)
    return f"DE{98 - int(body + '131400') % 97:02}{body}"


def email(draw: random.Random) -> str:
    """An address at a common provider."""
    name = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(4, 9)))
    host = draw.choice(["163.com", "qq.com", "gmail.com", "mail.bigcorp.co.uk"])
    return f"{name}{draw.choice(['', '.li', '_88', '2024'])}@{host}"


def zh_address(draw: random.Random) -> str:
    """Down to the flat."""
    area = draw.choice(["北京市海淀区", "浙江省杭州市余杭区", "广州市天河区", "苏州市工业园区"])
    road = draw.choice(["中山路", "学院路", "建设大道", "文一西路"])
    return f"{area}{road}{draw.randint(1, 999)}号{draw.randint(1, 20)}栋{draw.randint(101, 2504)}室"


def en_address(draw: random.Random) -> str:
    """With a postcode."""
    street = draw.choice(["Maple Street", "Oak Hill Road", "5th Avenue", "Sunset Drive", "N. Lake Blvd"])
    town = draw.choice(["Denver, CO", "Austin, TX", "New York, NY"])
    return f"{draw.randint(1, 9999)} {street}, {town} {draw.randint(10001, 99950):05}"


def token(draw: random.Random) -> str:
    """A key of one of four services."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    body = "".join(draw.choices(letters, k=40)) + "7"
    return draw.choice([f"AKIA{body[:16].upper()}", f"ghp_{body[:35]}7", f"sk-{body}", f"AIza{body[:34]}7"])


ITEMS: dict[str, dict[str, Maker]] = {
    "phone": {"zh": lambda draw: draw.choice([mobile, landline])(draw), "en": us_phone},
    "email": {"zh": email, "en": email},
    "cn_id": {"zh": cn_id, "en": cn_id},
    "bank_card": {"zh": card, "en": card},
    "ssn": {"en": lambda draw: f"{draw.randint(101, 599)}-{draw.randint(10, 99)}-{draw.randint(1000, 9999)}"},
    "iban": {"zh": iban, "en": iban},
    "ip": {"zh": ipv4, "en": ipv4},
    "address": {"zh": zh_address, "en": en_address},
    "secret": {"zh": token, "en": token},
    "password": {"zh": lambda draw: f"密码：ab{digits(draw, 6)}", "en": lambda draw: f"password: Ab{digits(draw, 6)}"},
    "account": {
        "zh": lambda draw: f"微信：wang_{digits(draw, 4)}",
        "en": lambda draw: f"WeChat ID: wang_{digits(draw, 4)}",
    },
}
"""Type -> language -> item; with the keyword where the type is told by it."""


def wrong_id(draw: random.Random) -> str:
    """Another check digit."""
    good = cn_id(draw)
    return good[:-1] + other(good[-1], draw)


def wrong_card(draw: random.Random) -> str:
    """Another check digit."""
    good = card(draw)
    return good[:-1] + other(good[-1], draw)


def named_order(draw: random.Random) -> str:
    """A card's number that is called an order."""
    return draw.choice(["订单号", "order number: "]) + card(draw).replace(" ", "")


DECOYS: dict[str, Maker] = {
    "id, wrong check digit": wrong_id,
    "card, wrong check digit": wrong_card,
    "order number, 18 digits": lambda draw: digits(draw, 18),
    "order number, 19 digits": lambda draw: digits(draw, 19),
    "order number of the desk": lambda draw: draw.choice("LUKXZ") + digits(draw, 5),
    "order number called so": named_order,
    "parcel": lambda draw: f"SF{digits(draw, 13)}",
    "date and time": lambda draw: (
        f"20{draw.randint(10, 26)}-{draw.randint(10, 12)}-{draw.randint(10, 28)} 10:30:{draw.randint(10, 59)}"
    ),
    "time in digits": lambda draw: f"20{draw.randint(10, 26)}1015{draw.randint(10, 23)}3015{draw.randint(100, 999)}",
    "float": lambda draw: f"{draw.randint(0, 9)}.{digits(draw, 11)}",
    "amount": lambda draw: f"¥{digits(draw, 6)}.{draw.randint(10, 99)}",
    "version": lambda draw: (
        f"v{draw.randint(1, 20)}.{draw.randint(0, 99)}.{draw.randint(0, 99)}.{draw.randint(0, 250)}"
    ),
    "private address": lambda draw: f"192.168.{draw.randint(0, 255)}.{draw.randint(1, 254)}",
    "hash": lambda draw: "".join(draw.choices("0123456789abcdef", k=40)),
    "item on the web": lambda draw: f"https://shop.com/item/{digits(draw, 16)}?id={digits(draw, 11)}",
    "hotline": lambda draw: f"400-{draw.randint(100, 999)}-{draw.randint(1000, 9999)}",
    "part number": lambda draw: f"{digits(draw, 3)}-{digits(draw, 4)}-{digits(draw, 2)}",
}


class Words:
    """Made-up words of a language, drawn by frequency."""

    def __init__(self, lang: str, draw: random.Random) -> None:
        letters = "etaoinshrdlucmfwypvbgk" if lang == "en" else [chr(0x4E00 + number * 5) for number in range(4000)]
        sizes = range(2, 10) if lang == "en" else (1, 2, 2, 2, 3)
        self.lang, self.draw = lang, draw
        self.words = ["".join(draw.choices(letters, k=draw.choice(sizes))) for _ in range(5000)]
        self.weights = [1 / (rank + 2.7) for rank in range(5000)]

    def text(self, length: int, every: int = 0, numbers: Maker | None = None) -> str:
        """A text of about so many characters; a small number after every so many words."""
        pieces: list[str] = []
        size = 0
        for place, word in enumerate(self.draw.choices(self.words, self.weights, k=length)):
            if size >= length:
                break
            ending = ("." if self.lang == "en" else "。") if place % 12 == 11 else ""
            number = numbers(self.draw) if numbers and place % every == every - 1 else ""
            pieces.append(f"{number} {word}{ending}" if number and self.lang == "en" else f"{number}{word}{ending}")
            size += len(pieces[-1]) + (self.lang == "en")
        return (" " if self.lang == "en" else "").join(pieces)


def small(draw: random.Random) -> str:
    """What most numbers in texts are."""
    return draw.choice(
        [str(draw.randint(1, 99)), str(draw.randint(1900, 2026)), f"{draw.randint(1, 99)}.5", f"{draw.randint(1, 99)}%"]
    )


def measure(seconds: Callable[[], float], texts: list[str]) -> float:
    """Documents a core-second, the best of three."""
    rates = []
    for _ in range(3):
        started = seconds()
        redact([[text] for text in texts], Personal())
        rates.append(len(texts) / (seconds() - started))
    return max(rates)


def main() -> None:
    """Plant, look, count, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    words = {lang: Words(lang, draw) for lang in ("zh", "en")}
    kinds = Personal().looked_for()
    planted, found, decoys, hit = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    alarms: dict[str, list[str]] = defaultdict(list)
    texts = []
    lengths = {"zh": 515, "en": 1666}
    for number in range(arguments.documents):
        lang = ("zh", "en")[number % 2]
        offered = [kind for kind in ITEMS if lang in ITEMS[kind]]
        kind = offered[number // 2 % len(offered)]
        decoy = list(DECOYS)[number // 2 % len(DECOYS)]
        item, lure = ITEMS[kind][lang](draw), DECOYS[decoy](draw)
        head, middle, tail = (words[lang].text(lengths[lang] // 3) for _ in range(3))
        space = " " if lang == "en" else ""
        begin = len(head) + len(space)
        text = f"{head}{space}{item}{space}{middle}{space}{lure}{space}{tail}"
        texts.append(text)
        lured = begin + len(item) + 2 * len(space) + len(middle)
        hits = find(text, kinds)
        cell = f"{kind} {lang}"
        planted[cell] += 1
        own = [one for one in hits if one.kind == kind and begin <= one.start and one.end <= begin + len(item)]
        found[cell] += bool(own)
        decoys[decoy] += 1
        hit[decoy] += any(one.start < lured + len(lure) and one.end > lured for one in hits)
        for one in hits:
            if one not in own and not (one.start < lured + len(lure) and one.end > lured):
                alarms[one.kind].append(text[one.start : one.end])
    print(f"{arguments.documents} documents, one item and one decoy each; load {os.getloadavg()[0]:.1f}")
    for kind in ITEMS:
        cells = [f"{lang} {found[c]}/{planted[c]}" for lang in ("zh", "en") if planted[c := f"{kind} {lang}"]]
        print(f"  found {kind:<10} {', '.join(cells)}")
    for decoy in DECOYS:
        print(f"  decoy {decoy:<26} taken {hit[decoy]}/{decoys[decoy]}")
    examples = {kind: one[:3] for kind, one in alarms.items()}
    print(f"  elsewhere: {sum(map(len, alarms.values()))} false alarms {examples or ''}")
    print(f"  with an item and a decoy each:  {measure(time.process_time, texts):,.0f} documents a core-second")
    for lang in ("zh", "en"):
        plain = [words[lang].text(lengths[lang], 15, small) for _ in range(1000)]
        print(
            f"  small numbers only, {lang} ({sum(map(len, plain)) / 1000:.0f} characters): {measure(time.process_time, plain):,.0f}"
        )


if __name__ == "__main__":
    main()
