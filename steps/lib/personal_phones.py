"""Telephone numbers. Candidates come from our own patterns and phonenumbers judges them: its matcher reads 460 documents a second.

Source: DATA.md 3.6.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from steps.lib.personal_numbers import BEFORE, BEHIND, Hit, ahead_of, is_other, near_numbers


def phones(text: str) -> Iterator[Hit]:
    """Mobiles and landlines of China, US numbers, UK mobiles in groups, numbers with +, and what a keyword calls a phone.

    Hotlines (400, 800, 95xxx; US toll-free) are a company's, and stay. Source: DATA.md 3.6; phonenumbers' metadata.
    """
    return near_numbers(text, _phones)


def _phones(text: str, urls: list[tuple[int, int]]) -> Iterator[Hit]:
    for pattern, region in ((_MOBILE, "CN"), (_LANDLINE, "CN"), (_US, "US"), (_UK, "GB"), (_WORLD, None)):
        for found in pattern.finditer(text):
            start, end = found.span()
            if is_other(text, start, end, urls):
                continue
            if pattern is _LANDLINE and found["apart"] == "" and not _PHONE_WORD.search(ahead_of(text, start)):
                continue
            if value := _dialled(found["number"], region):
                yield Hit("phone", start, end, value)
    for found in _KEYED_PHONE.finditer(text):
        start, end = found.span("number")
        digits = re.sub("[^0-9]", "", found["number"])
        if _HOTLINE.fullmatch(digits) or re.match(r"(?:19|20)[0-9]{2}[-. ][01]?[0-9][-. ]", found["number"]):
            continue
        if not found["sure"] and not re.fullmatch(r"[2-9][0-9]{2}[ -][0-9]{4}", found["number"]):
            continue
        yield Hit("phone", start, end, _dialled(found["number"], "CN") or digits)


def _dialled(number: str, region: str | None) -> str | None:
    """The number as it is dialled from anywhere; None where no one has such a number, or a company's hotline."""
    import phonenumbers

    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return None
    hotline = (
        phonenumbers.PhoneNumberType.TOLL_FREE,
        phonenumbers.PhoneNumberType.SHARED_COST,
        phonenumbers.PhoneNumberType.UAN,
    )
    if not phonenumbers.is_valid_number(parsed) or phonenumbers.number_type(parsed) in hotline:
        return None
    return str(phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164))


_END = r"(?:(?:-|转| ?(?:ext|x)\.? ?)[0-9]{1,6})?" + BEHIND
_MOBILE = re.compile(BEFORE + r"(?P<number>(?:(?:\(?\+?86\)?|0086)[ -]?)?1[3-9][0-9](?:[ -]?[0-9]{4}){2})" + _END)
_LANDLINE = re.compile(
    BEFORE
    + r"(?P<number>(?:\+?86[ -]?)?[（(]?0(?:10|2[0-9]|[3-9][0-9]{2})(?P<apart>[)） -]{0,2})[2-8][0-9]{2,3}[ -]?[0-9]{4})"
    + _END
)
_US = re.compile(
    BEFORE + r"(?P<number>(?:\+?1[ .-]?)?(?:\([2-9][0-9]{2}\)[ -]?|[2-9][0-9]{2}[.-])[2-9][0-9]{2}[.-][0-9]{4})" + _END
)
_UK = re.compile(BEFORE + r"(?P<number>07[0-9]{3} [0-9]{3} ?[0-9]{3})" + BEHIND)
_WORLD = re.compile(r"(?<![0-9A-Za-z_+])(?P<number>\+[1-9][0-9]{0,2}(?:[ ().-]{0,2}[0-9]){6,13})" + BEHIND)
_PHONE_WORD = re.compile(
    r"(?:电话|手机|座机|固话|热线|传真|联系方式|致电|拨打|(?i:tel|telephone|phone|mobile|cell|fax))(?:号码?)?[\s:：是为\"'“]{0,4}\Z"
)
_KEYED_PHONE = re.compile(
    r"(?:(?P<sure>(?:电话|手机|座机|固话|传真|(?<![A-Za-z])(?i:tel|telephone|phone|mobile|cell|fax|whatsapp))"
    r"(?:号码?|(?i: ?number| ?no))?[.\"'”]{0,2}\s*(?:[:：=]|是|为|is)\s*[\"'“]?)|(?<![A-Za-z])"
    r"(?i:call|dial|text|contact)(?: [A-Za-z'’.]{1,15}){0,4} )"
    r"(?P<number>[（(+]?[0-9](?:[ ()（）-]{0,2}[0-9]){6,14})" + BEHIND
)
_HOTLINE = re.compile(r"[48]00[0-9]{7}|1?8(?:00|88|77|66|55|44|33)[0-9]{7}|0?(?:95|96)[0-9]{3,6}")
