"""Personal data made of digits: identity and bank cards, social security numbers, IBANs, IP addresses, passports, plates.

Each finder looks at one text and gives hits; ``personal`` says which finders run, and replaces what they found.

No pattern uses a word border: between a Chinese character and a digit there is none. What stands beside a number is checked
instead: no ASCII letter, digit or underscore, and no further group of digits. A number that a keyword names as an order, parcel
or part number is none of ours.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple


class Hit(NamedTuple):
    """Something personal in a text."""

    kind: str
    start: int
    end: int
    value: str
    """What it is, however it was written: equal values are one person's."""


BEFORE = r"(?<![0-9A-Za-z_])(?<![0-9][.-])"
BEHIND = r"(?![0-9A-Za-z_]|[.-][0-9])"


def cn_ids(text: str) -> Iterator[Hit]:
    """Chinese identity numbers of 18 digits: province, date and check digit fit. Those of 15 digits behind their keyword.

    Source: GB 11643-1999 (weights and check characters; DATA.md 3.6).
    """
    return near_numbers(text, _cn_ids)


def _cn_ids(text: str, _: list[tuple[int, int]]) -> Iterator[Hit]:
    for found in _CN_ID.finditer(text):
        digits = re.sub("[ -]", "", found[0]).upper()
        if digits[:2] in _PROVINCES and _is_date(digits[6:14]) and _cn_check(digits):
            yield Hit("cn_id", *found.span(), digits)
    for found in _OLD_CN_ID.finditer(text):
        if found["number"][:2] in _PROVINCES and _is_date("19" + found["number"][6:12]):
            yield Hit("cn_id", *found.span("number"), found["number"])


def bank_cards(text: str) -> Iterator[Hit]:
    """Payment cards: Luhn's check, an issuer's prefix, its length, and groups as they are printed.

    Source: ISO/IEC 7812-1 (Luhn); issuers' published ranges. Luhn alone takes one order number in ten for a card.
    """
    return near_numbers(text, _bank_cards)


def _bank_cards(text: str, urls: list[tuple[int, int]]) -> Iterator[Hit]:
    for found in _CARD.finditer(text):
        groups = re.split("[ -]", found[0])
        digits = "".join(groups)
        if (len(groups) == 1 or tuple(map(len, groups)) in _CARD_GROUPS) and _issued(digits, len(groups) > 1):
            named = _CARD_WORD.search(ahead_of(text, found.start()))
            if _luhn(digits) and (named or not is_other(text, *found.span(), urls)):
                yield Hit("bank_card", *found.span(), digits)


def ssns(text: str) -> Iterator[Hit]:
    """US social security numbers with hyphens, or nine digits behind their keyword.

    Source: SSA, "SSN randomization" (which areas, groups and serials there are not).
    """
    return near_numbers(text, _ssns)


def _ssns(text: str, _: list[tuple[int, int]]) -> Iterator[Hit]:
    for found in _SSN.finditer(text):
        if _allotted(found[0]):
            yield Hit("ssn", *found.span(), found[0].replace("-", ""))
    for found in _KEYED_SSN.finditer(text):
        digits = re.sub("[ -]", "", found["number"])
        if _allotted(f"{digits[:3]}-{digits[3:5]}-{digits[5:]}"):
            yield Hit("ssn", *found.span("number"), digits)


def ibans(text: str) -> Iterator[Hit]:
    """International bank account numbers: the country's length, and 1 modulo 97. Source: ISO 13616-1, SWIFT's IBAN registry."""
    for found in _IBAN.finditer(text) if _IBAN_START.search(text) else ():
        length = _IBAN_LENGTHS.get(found[0][:2])
        end, compact = found.start(), ""
        while length and end < found.end() and len(compact) < length:
            compact += text[end].strip()
            end += 1
        if length and len(compact) == length and not re.match("[0-9A-Za-z]", text[end : end + 1]):
            moved = compact[4:] + compact[:4]
            if int("".join(str(int(letter, 36)) for letter in moved)) % 97 == 1:
                yield Hit("iban", found.start(), end, compact)


def ips(text: str) -> Iterator[Hit]:
    """Public addresses of machines, IPv4 and IPv6. Private, reserved and documentation ranges, networks and versions stay."""
    for found in _IPV4.finditer(text) if _DOTTED.search(text) else ():
        parts = [int(part) for part in found[0].split(".")]
        named = _IP_WORD.search(ahead_of(text, found.start())) or re.match(r":[0-9]{2,5}(?![0-9])", text[found.end() :])
        if max(parts) > 255 or any(len(part) > 1 and part[0] == "0" for part in found[0].split(".")):
            continue
        if _VERSION_WORD.search(ahead_of(text, found.start())) or re.match("/[0-9]", text[found.end() :]):
            continue
        if not named and (max(parts) <= 30 or (parts[0] <= 2 and parts[1] < 40)):
            continue  # a version or a section; an object identifier (ITU-T X.660)
        if ipaddress.IPv4Address(found[0]).is_global:
            yield Hit("ip", *found.span(), found[0])
    for found in _IPV6.finditer(text) if _COLONS.search(text) else ():
        try:
            address = ipaddress.IPv6Address(found[0])
        except ValueError:
            continue
        if address.is_global:
            yield Hit("ip", *found.span(), address.compressed)


def passports(text: str) -> Iterator[Hit]:
    """Passport numbers, behind their keyword only: alone they look like any part number."""
    for found in _PASSPORT.finditer(text):
        if sum(map(str.isdigit, found["number"])) >= 6:
            yield Hit("passport", *found.span("number"), found["number"].upper())


def plates(text: str) -> Iterator[Hit]:
    """Chinese car plates with the dot, or behind their keyword: 新L39942 may as well be a new order. Source: GA 36-2018."""
    for found in _PLATE.finditer(text):
        named = found["dot"].strip() or _PLATE_WORD.search(ahead_of(text, found.start()))
        if named and sum(map(str.isdigit, found["tail"])) >= 3:
            yield Hit("plate", *found.span(), found["head"] + found["tail"])


def near_numbers(text: str, finder: Callable[[str, list[tuple[int, int]]], Iterator[Hit]]) -> Iterator[Hit]:
    """What a finder gives around each run of seven digits or more; the rest of a text need not be read with slow patterns."""
    windows = _windows(text)
    urls = _urls(text) if windows else []
    for start, end in windows:
        near = urls[bisect_right(urls, start, key=itemgetter(1)) : bisect_left(urls, end, key=itemgetter(0))]
        for hit in finder(text[start:end], [(a - start, b - start) for a, b in near]):
            yield hit._replace(start=hit.start + start, end=hit.end + start)


@lru_cache(maxsize=1)
def _windows(text: str) -> tuple[tuple[int, int], ...]:
    """Where the runs of digits are, with what stands beside them; four finders ask for the same text."""
    windows: list[tuple[int, int]] = []
    for run in _DIGITS.finditer(text):
        start, end = max(0, run.start() - _BESIDE), run.end() + _BESIDE
        if windows and start <= windows[-1][1]:
            start = windows.pop()[0]
        windows.append((start, end))
    return tuple(windows)


def ahead_of(text: str, start: int) -> str:
    return text[max(0, start - 32) : start]


def _urls(text: str) -> list[tuple[int, int]]:
    return [found.span() for found in _URL.finditer(text)] if "://" in text or "www." in text else []


def is_other(text: str, start: int, end: int, urls: list[tuple[int, int]]) -> bool:
    """An order number, an amount, a number of a sum, or part of an address on the web."""
    ahead = ahead_of(text, start)
    if _ORDER_WORD.search(ahead) or _MONEY.search(ahead) or _UNIT.match(text, end):
        return True
    place = bisect_right(urls, start, key=itemgetter(0))  # addresses stand apart and in order
    beside = _SUM.search(ahead) or (place and start < urls[place - 1][1])
    return bool(beside) and not _PARAMETER.search(ahead)


def _is_date(digits: str) -> bool:
    """Year, month and day of somebody who may live. No look at the clock: results must not change with it."""
    year, month, day = int(digits[:4]), int(digits[4:6]), int(digits[6:])
    return (
        1900 <= year <= 2049
        and 1 <= month <= 12
        and 1 <= day <= (29 if month == 2 else 30 if month in (4, 6, 9, 11) else 31)
    )


def _cn_check(digits: str) -> bool:
    weighed = sum(int(digit) * weight for digit, weight in zip(digits[:17], _CN_WEIGHTS, strict=True))
    return "10X98765432"[weighed % 11] == digits[17]


def _luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _issued(digits: str, grouped: bool) -> bool:
    """Whether an issuer gives out such numbers. Visa's rare 19 digits must be in groups: order numbers have 19 digits, too."""
    if not any(
        low <= int(digits[: len(str(low))]) <= high and len(digits) in lengths for low, high, lengths in _ISSUERS
    ):
        return grouped and digits[0] == "4" and len(digits) == 19
    return len(set(digits)) > 1


def _allotted(number: str) -> bool:
    area, group, serial = number.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


_DIGITS = re.compile(r"[0-9](?:[ ()（）.-]{0,3}[0-9]){6,}")
_BESIDE = 48
"""Characters beside a number that patterns may look at."""
_CN_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_PROVINCES = {
    *("11", "12", "13", "14", "15", "21", "22", "23", "31", "32", "33", "34", "35", "36", "37", "41", "42", "43"),
    *("44", "45", "46", "50", "51", "52", "53", "54", "61", "62", "63", "64", "65", "71", "81", "82", "83"),
}  # fmt: skip
_CN_ID = re.compile(
    r"(?<![0-9A-Za-z_])[1-8][0-9]{5}[ -]?(?:19|20)[0-9]{2}[01][0-9][0-3][0-9][ -]?[0-9]{3}[0-9Xx](?![0-9A-Za-z_])"
)
_OLD_CN_ID = re.compile(r"身份证(?:号码?)?[\s:：是为\"'“]{0,4}(?P<number>[1-8][0-9]{14})(?![0-9A-Za-z_])")
_CARD = re.compile(r"(?<![0-9A-Za-z_])(?<![0-9][.,-])[2-69][0-9]{3}(?:[ -]?[0-9]){10,15}(?![0-9A-Za-z_]|[.,-][0-9])")
_CARD_GROUPS = {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (6, 13), *((4, 4, 4, 4, rest) for rest in (1, 2, 3))}
_ISSUERS = (
    (4, 4, (16,)), (51, 55, (16,)), (2221, 2720, (16,)), (34, 34, (15,)), (37, 37, (15,)), (62, 62, (16, 17, 18, 19)),
    (9558, 9558, (19,)), (601382, 601382, (19,)), (6011, 6011, (16,)), (644, 659, (16,)), (3528, 3589, (16,)),
    (300, 305, (14,)), (36, 36, (14,)), (38, 39, (14,)),
)  # fmt: skip
"""First and last prefix, lengths: Visa, Mastercard, American Express, UnionPay, old cards of two banks, Discover, JCB, Diners."""
_CARD_WORD = re.compile(
    r"(?:银行卡|信用卡|储蓄卡|借记卡|卡号|(?i:card))(?:号码?|(?i: ?number| ?no))?[.\s:：是为is\"'“]{0,6}\Z"
)
_SSN = re.compile(
    r"(?<![0-9A-Za-z_])(?<![0-9A-Za-z][./-])[0-8][0-9]{2}-[0-9]{2}-[0-9]{4}(?![0-9A-Za-z_]|[./-][0-9A-Za-z])"
)
_KEYED_SSN = re.compile(
    r"(?<![A-Za-z])(?i:ssn|social security)(?i: number| no)?[.#\"']?\s*(?:[:：]|is|=)?\s*[\"']?"
    r"(?P<number>[0-8][0-9]{2}[ -]?[0-9]{2}[ -]?[0-9]{4})(?![0-9A-Za-z_])"
)
_IBAN_START = re.compile(r"[A-Z][A-Z][0-9]{2} ?[0-9A-Z]")
_IBAN = re.compile(r"(?<![0-9A-Za-z_])[A-Z]{2}[0-9]{2}(?: ?[0-9A-Z]){11,30}")
_IBAN_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        r"([A-Z]{2})(\d\d)",
        "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BR29BY28CH21CR22CY28CZ24DE22DK18DO28EE20EG29ES24FI18FO18FR27GB22GE22GI23GL18"
        "GR27GT28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21MC27MD24ME22MK19MR27MT31MU30NL18NO15PK24PL28"
        "PS29PT25QA29RO24RS22SA24SC31SE24SI19SK24SM27ST25SV28TL23TN24TR26UA29VA22VG24XK20",
    )
}
_DOTTED = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
_COLONS = re.compile(r"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f]{0,4}:")
_IPV4 = re.compile(r"(?<![0-9A-Za-z_.-])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9A-Za-z_]|[.-][0-9A-Za-z])")
_IPV6 = re.compile(
    r"(?<![0-9A-Za-z_:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![0-9A-Za-z_:.])"
)
_IP_WORD = re.compile(
    r"(?:(?<![A-Za-z])(?i:ip|ping|ssh|host|server|from|address)|地址|服务器|主机|@|//)[\s:：是为=v4\"'“]{0,6}\Z"
)
_VERSION_WORD = re.compile(
    r"(?:[A-Za-z]/|版本号?|固件|(?<![A-Za-z])(?i:version|ver|v|build|release|firmware|section|chapter)|第)[.\s:：是为]{0,4}\Z"
)
_PASSPORT = re.compile(
    r"(?:护照|(?i:passport))(?:号码?|(?i: ?number| ?no))?[.#\s:：是为\"'“]{0,4}(?i:is )?"
    r"(?P<number>[A-Za-z0-9]{7,9})(?![0-9A-Za-z_])"
)
_PLATE = re.compile(
    r"(?P<head>[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼][A-HJ-NP-Z])(?P<dot>[·•・]| ?)"
    r"(?P<tail>[A-HJ-NP-Z0-9]{4,5}[A-HJ-NP-Z0-9挂学警港澳])(?![0-9A-Za-z_])"
)
_PLATE_WORD = re.compile(r"(?:车牌|牌照|号牌|车号)(?:号码?)?[\s:：是为“\"]{0,4}\Z")
_URL = re.compile(r"(?:https?://|www\.)[!-~]+")
_ORDER_WORD = re.compile(
    r"(?:订单|单号|运单|快递|物流|流水|编号|货号|型号|批号|税号|序列号|条形?码|商品|包裹|交易|合同|发票|工单|学号|工号|"
    r"(?<![A-Za-z])(?i:orders?|tracking|parcel|invoice|serial|ref|reference|item|part|model|sku|isbn|imei|rma|ticket|transaction|"
    r"trade|batch|case|id|uid))(?:[\s_-]?(?:号码?|编号|单号|(?i:numbers?|no|id|num|code|sn)))?[\s.:：#=是为\"'“（(]{0,4}(?:is )?\Z"
)
_MONEY = re.compile(r"(?:[¥￥$€£]|(?i:rmb|usd|cny)) ?\Z")
_PARAMETER = re.compile(r"(?i:phone|mobile|tel|cell|card)[a-z_]* ?= ?\+?\Z")
_SUM = re.compile(r"(?:[=*×÷<>^−] ?-?|(?:\A|[\s(])-|[0-9)] ?[+*×÷] ?)\Z")
_UNIT = re.compile(
    r" ?(?:元|块|万|亿|美元|人民币|%|％|字节|(?i:bytes|dollars|yuan|usd|rmb|kg|km)(?![A-Za-z])"
    r"|[*×÷^]|[+=] ?[0-9]|- [0-9.]+ =)"
)
