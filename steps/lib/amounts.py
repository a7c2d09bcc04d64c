"""Tokens, money and time in a few characters."""

from __future__ import annotations


def count(number: int) -> str:
    """A number of tokens in a few characters: 950, 12.3k, 4.56M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def money(usd: float) -> str:
    """US dollars: cents, and more digits for less than a cent."""
    return f"{usd:,.2f} USD" if usd >= 0.1 or usd == 0 else f"{usd:.2g} USD"


def duration(seconds: float) -> str:
    """A time in two units at most: 40 s, 12 min 5 s, 3 h 10 min, 2 d 4 h."""
    rest = round(seconds)
    if rest < 60:
        return f"{rest} s"
    for size, unit, small, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if rest >= size:
            minor = rest % size // small
            return f"{rest // size} {unit}" + (f" {minor} {smaller}" if minor else "")
    raise AssertionError(rest)
