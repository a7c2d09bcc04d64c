"""Personal data in rows: found, and replaced by typed placeholders that are the same for the same value all over a row.

``redact`` does it to the texts of rows; ``personal_records`` to records of any shape, ``personal_rows`` to the rows of steps.
A row is looked at alone, so batches and shards change nothing. Order: after the characters are repaired, before copies are
looked for, so that rows which differ by a telephone number meet.

An output is a fixed point: its texts are searched again until nothing is found, so cleaning twice is cleaning once. Whatever was
found anywhere in a row is replaced everywhere in it. No error, finding or count holds a value.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from steps.lib.config import Section
from steps.lib.personal_numbers import Hit
from steps.lib.quality import Finding

Action = Literal["redact", "drop", "keep"]


class Personal(Section):
    """What becomes of personal data of each type: redact puts a placeholder there, drop drops the row, keep looks for none."""

    phone: Action = "redact"
    """Telephone numbers: Chinese mobiles and landlines, US numbers, international ones; never hotlines. <PHONE_1>"""
    email: Action = "redact"
    """E-mail addresses. <EMAIL_1>"""
    cn_id: Action = "redact"
    """Chinese identity numbers whose check digit fits. <CN_ID_1>"""
    ssn: Action = "redact"
    """US social security numbers. <SSN_1>"""
    passport: Action = "redact"
    """Passport numbers behind their keyword. <PASSPORT_1>"""
    bank_card: Action = "redact"
    """Payment cards: issuer, length and check digit fit. <CARD_1>"""
    iban: Action = "redact"
    """International bank account numbers. <IBAN_1>"""
    ip: Action = "redact"
    """Public IPv4 and IPv6 addresses; private ranges and versions stay. <IP_1>"""
    address: Action = "redact"
    """Postal addresses down to the house number. <ADDRESS_1>"""
    secret: Action = "redact"
    """Keys of services, tokens, private keys. <SECRET_1>"""
    password: Action = "redact"
    """What stands behind "password:" or 密码：. <PASSWORD_1>"""
    account: Action = "redact"
    """WeChat and QQ ids behind their keyword. <ACCOUNT_1>"""
    plate: Action = "redact"
    """Chinese car plates. <PLATE_1>"""
    name: Action = "keep"
    """Names behind a keyword (姓名：…, My name is …) or a title; off, because few are found, and some that are none. <NAME_1>"""
    fictional: bool = False
    """Take also what belongs to nobody: example.com, 555-01xx, 13800138000, test cards, public name servers."""
    keep_raw: bool = False
    """Keep dropped rows as they were, with everything personal in them."""

    def looked_for(self) -> frozenset[str]:
        """The types that are not kept."""
        return frozenset(kind for kind in LABELS if getattr(self, kind) != "keep")


LABELS = {
    "phone": "PHONE", "email": "EMAIL", "cn_id": "CN_ID", "ssn": "SSN", "passport": "PASSPORT", "bank_card": "CARD",
    "iban": "IBAN", "ip": "IP", "address": "ADDRESS", "secret": "SECRET", "password": "PASSWORD", "account": "ACCOUNT",
    "plate": "PLATE", "name": "NAME",
}  # fmt: skip
"""Type -> word of its placeholder."""
MANY = 100
"""Values of one length from which a text is gone through once for all of them."""
PLACEHOLDER = re.compile(rf"<(?P<label>{'|'.join(LABELS.values())})_(?P<number>[0-9]{{1,9}})>")


@dataclass
class Redacted:
    """What became of one row."""

    texts: list[str]
    """The texts without personal data, in their order; of dropped rows, too."""
    counts: Counter[str] = field(default_factory=Counter)
    """Type -> how many were replaced."""
    finding: Finding | None = None
    """Why the row is dropped: a type whose action is drop. It holds types and counts only."""


def redact(rows_texts: Sequence[Sequence[str]], config: Personal) -> list[Redacted]:
    """Personal data out of the texts of each row.

    Args:
        rows_texts: the texts of each row, in the order in which they are read: a chat's turns, a pair's prompt and answers.
    """
    kinds = config.looked_for()
    return [redact_row(texts, kinds, config) for texts in rows_texts]


def find(text: str, kinds: Iterable[str], fictional: bool = False) -> list[Hit]:
    """What is personal in a text, in order, without overlaps. Placeholders of ``redact`` are seen as none."""
    text = shadow(text)
    return _apart([*_looked(text, frozenset(kinds), fictional)])


def shadow(text: str) -> str:
    """The text as finders read it: as long as it was, full-width digits and letters as ASCII, escapes and placeholders blank."""
    if not text.isascii() and _WIDE.search(text):
        text = text.translate(_NARROW)
    if "\\" in text:
        text = _ESCAPES.sub(lambda found: " " * len(found[0]), text)
    if "<" in text:
        text = PLACEHOLDER.sub(lambda found: "\0" * len(found[0]), text)
    return text


def redact_row(
    texts: Sequence[str], kinds: frozenset[str], config: Personal, known: Mapping[str, Hit] | None = None
) -> Redacted:
    """One row, searched until nothing is found.

    Args:
        known: text -> the hit it is, wherever it stands.
    """
    done = Redacted(list(texts))
    numbers: dict[tuple[str, str], str] = {}
    last: Counter[str] = Counter()
    spread = dict(known or {})
    while True:
        shadows = [shadow(text) for text in done.texts]
        hits = [[*_looked(text, kinds, config.fictional)] for text in shadows]
        for text, found in zip(shadows, hits, strict=True):
            spread |= {text[hit.start : hit.end]: hit for hit in found}
        if not spread:
            break
        if not last:
            for text in done.texts:
                for old in PLACEHOLDER.finditer(text):
                    last[old["label"]] = max(last[old["label"]], int(old["number"]))
        again = sorted(spread, key=lambda one: (-len(one), one))
        for place, text in enumerate(shadows):
            found = _apart([*hits[place], *_repeats(text, again, spread)])
            done.texts[place] = _replaced(done.texts[place], found, numbers, last)
            done.counts.update(hit.kind for hit in found)
        spread.clear()
    dropped = [kind for kind in LABELS if done.counts[kind] and getattr(config, kind) == "drop"]
    if dropped:
        done.finding = (
            f"personal:{dropped[0]}",
            ", ".join(f"{kind} {done.counts[kind]}" for kind in LABELS if done.counts[kind]),
        )
    return done


@functools.cache
def _finders() -> dict[str, Callable[[str], Iterator[Hit]]]:
    """Type -> what finds it; where two hits are equal, the type that stands first has it."""
    from steps.lib.personal_numbers import bank_cards, cn_ids, ibans, ips, passports, plates, ssns
    from steps.lib.personal_phones import phones
    from steps.lib.personal_words import accounts, addresses, emails, names, passwords, secrets

    return {
        "cn_id": cn_ids, "bank_card": bank_cards, "phone": phones, "ssn": ssns, "email": emails, "secret": secrets,
        "password": passwords, "iban": ibans, "ip": ips, "passport": passports, "account": accounts, "plate": plates,
        "address": addresses, "name": names,
    }  # fmt: skip


def _looked(text: str, kinds: frozenset[str], fictional: bool) -> Iterator[Hit]:
    """What the finders give for a shadow."""
    wanted = _wanted(text)
    for kind, finder in _finders().items() if wanted else ():
        if kind in wanted and kind in kinds:
            yield from (hit for hit in finder(text) if fictional or not _is_nobodys(hit))


def _wanted(text: str) -> set[str]:
    """The types that a text may have: a few quick looks, because most texts have nothing. More than there are is no fault."""
    wanted = {"name"}
    for mark, kind in _MARKS if text.isascii() else _ALL_MARKS:
        if mark in text:
            wanted.add(kind)
    rare = {found.lastgroup for found in _RARE.finditer(text)}
    for group in rare:
        wanted |= _RARE_KINDS[group]
    if rare & {"long", "mixed"}:
        wanted |= {kind for mark, kind in _DIGIT_MARKS if mark in text}
    return wanted


def _is_nobodys(hit: Hit) -> bool:
    """Whether a value is known to belong to no person."""
    return hit.value in _NOBODYS or bool(_NOBODYS_SHAPE.fullmatch(hit.value))


def _apart(hits: list[Hit]) -> list[Hit]:
    """Hits without overlaps, in order: those that overlap become one, of the type of the longest; the first one, when equal."""
    merged: list[Hit] = []
    longest = 0
    for hit in sorted(hits, key=lambda one: one[1]):
        if not merged or hit.start >= merged[-1].end:
            merged.append(hit)
            longest = hit.end - hit.start
            continue
        before = merged[-1]
        best = hit if hit.end - hit.start > longest else before
        longest = max(longest, hit.end - hit.start)
        merged[-1] = best._replace(start=before.start, end=max(before.end, hit.end))
    return merged


def _repeats(text: str, values: Sequence[str], known: Mapping[str, Hit]) -> Iterator[Hit]:
    """Every place of a value in a text. A short one must stand alone: 1234 is not looked for inside of 91234."""
    for size, same in groupby(values, len):
        for value, place in _places(text, [*same], size):
            end = place + size
            beside = text[max(0, place - 1) : place] + text[end : end + 1]
            if size >= 8 or not re.search("[0-9A-Za-z]", beside):
                yield known[value]._replace(start=place, end=end)


def _places(text: str, values: Sequence[str], size: int) -> Iterator[tuple[str, int]]:
    """(value, place) of values of one size, none twice in the same characters. Many are looked for at once: a list of ten
    thousand telephone numbers is not searched ten thousand times."""
    ends = dict.fromkeys(values, 0)
    if len(ends) > MANY:
        for place in range(len(text) - size + 1):
            if ends.get(value := text[place : place + size], len(text)) <= place:
                yield value, place
                ends[value] = place + size
        return
    for value in values:
        place = text.find(value)
        while place >= 0:
            yield value, place
            place = text.find(value, place + size)


def _replaced(text: str, hits: Sequence[Hit], numbers: dict[tuple[str, str], str], last: Counter[str]) -> str:
    """The text with placeholders; new values get the next number of their type."""
    pieces, place = [], 0
    for hit in hits:
        label = LABELS[hit.kind]
        if (label, hit.value) not in numbers:
            last[label] += 1
            numbers[label, hit.value] = f"<{label}_{last[label]}>"
        word = numbers[label, hit.value]
        if _JSON_BEFORE.search(text, max(0, hit.start - 80), hit.start) and _JSON_BEHIND.match(text, hit.end):
            quote = '\\"' if _ESCAPED.search(text, max(0, hit.start - 80), hit.start) else '"'
            word = f"{quote}{word}{quote}"
        pieces += [text[place : hit.start], word]
        place = hit.end
    return "".join([*pieces, text[place:]])


_MARKS = (
    ("@", "email"),
    ("@", "password"),
    ("assw", "password"),
    ("hf_", "secret"),
    ("AKIA", "secret"),
    ("eChat", "account"),
)
_ALL_MARKS = (
    *_MARKS, ("密码", "password"), ("口令", "password"), ("微信", "account"), ("薇信", "account"), ("扣扣", "account"),
    ("护照", "passport"), ("牌", "plate"), ("车号", "plate"), ("·", "plate"), ("•", "plate"), ("・", "plate"),
    ("号", "address"), ("弄", "address"), ("栋", "address"), ("幢", "address"),
)  # fmt: skip
_DIGIT_MARKS = (
    ("ASSW", "password"), ("pwd", "password"), ("PWD", "password"), ("asscode", "password"), ("QQ", "account"), ("qq", "account"),
    ("VX", "account"), ("vx", "account"), ("wxid_", "account"), ("eixin", "account"), ("echat", "account"), ("assport", "passport"),
    ("ASSPORT", "passport"),
)  # fmt: skip
"""(what a type cannot do without, type); the last ones only where there are digits."""
_RARE = re.compile(
    r"[0-9](?:(?P<long>(?:[ ().-]{0,2}[0-9]){6})|(?P<dotted>\.[0-9]{1,3}\.[0-9])"
    r"|(?P<colons>(?<=[23])[0-9A-Fa-f]{3}:[0-9A-Fa-f]{0,4}:)"
    r"|(?P<mixed>(?=[A-Za-z])(?!(?:st|nd|rd|th|s|am|pm|[DGKMkmx]|[ckm]?m|k?g)(?![0-9A-Za-z]))|(?<=[A-Za-z_-][0-9])|[!#^&*_=~+@]"
    r"|(?<=[!#^&*_=~+@?][0-9])|[0-9]{4})|(?P<street>[A-Z]?,? (?:[A-Z]|[0-9]{1,3}[a-z])|(?<=Box [0-9])))"
)
"""A digit that is neither of a small number nor of a date: of a long number, a network address, a key, "5 Main Street"."""
_RARE_KINDS: dict[str | None, set[str]] = {
    "long": {"phone", "cn_id", "bank_card", "ssn", "ip", "iban", "secret", "address"},
    "dotted": {"ip"},
    "colons": {"ip"},
    "mixed": {"iban", "secret", "address"},
    "street": {"address"},
}
"""What a rare digit makes worth a look."""
_WIDE = re.compile("[０-９Ａ-Ｚａ-ｚ＠]")
_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) not in "，：；！？"} | {0x3000: 0x20}
_ESCAPES = re.compile(r"\\(?:[nrt]|u[0-9A-Fa-f]{4})")
"""Escapes of JSON: the n of "\\n" is no letter before a number."""
_JSON_BEFORE = re.compile(r"\"\s*:\s*\Z")
_ESCAPED = re.compile(r"\\\"\s*:\s*\Z")
_JSON_BEHIND = re.compile(r"\s*[,}\]]")
_NOBODYS = {
    "+8613800138000",  # China Mobile's number to top up, in every manual
    *(
        "4111111111111111",
        "4242424242424242",
        "4012888888881881",
        "5555555555554444",
        "5105105105105100",
        "378282246310005",
    ),
    *("6011111111111117", "3530111333300000", "30569309025904"),  # the card networks' test numbers
    *("078051120", "219099999"),  # printed in advertisements, never valid since (SSA)
    *("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "208.67.222.222", "208.67.220.220"),
    *("114.114.114.114", "114.114.115.115", "223.5.5.5", "223.6.6.6", "119.29.29.29", "180.76.76.76"),
    *("2001:4860:4860::8888", "2001:4860:4860::8844", "2606:4700:4700::1111", "2606:4700:4700::1001"),
    "AKIAIOSFODNN7EXAMPLE",
}
"""Values of published tests and services."""
_NOBODYS_SHAPE = re.compile(
    r"[^@]+@(?:[0-9a-z-]+\.)*(?:example\.(?:com|net|org|cn)|[0-9a-z-]+\.(?:example|test|invalid|localhost))"  # RFC 2606
    r"|\+1[2-9][0-9]{2}55501[0-9]{2}"  # 555-0100 to 555-0199: ATIS-0300115
    r"|55501[0-9]{2}"
)
