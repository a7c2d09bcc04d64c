"""Figures in words: formatted values, and one sentence a stage, in English and Chinese.

Every number in a sentence comes from an interval; a difference whose interval contains zero is never called one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steps.lib.figures import Comparison, Figure
from steps.lib.plots import number

OUTCOMES = {
    "better": ("better", "更好"),
    "worse": ("worse", "更差"),
    "mixed": ("mixed", "有得有失"),
    "unclear": ("no clear change", "无明显变化"),
}
CLAUSES = 3
"""Differences of a kind (better, worse) that a sentence gives in figures, the largest first; the table has all."""
INCUMBENTS = ("champion", "anchor")
"""Names of the models that are scored again beside the candidate (``incumbents``)."""
SMALL = 1.0
"""Percent or points: a clear difference below it decides nothing in a sentence."""
SPACE = "\u00a0"
"""Between a number and its unit: no line break there."""


@dataclass(frozen=True)
class Verdict:
    """What a stage did, in one sentence."""

    model: str
    against: str
    outcome: str
    """A key of ``OUTCOMES``."""
    english: str
    chinese: str


def value(figure: Figure) -> str:
    """The figure with its unit: ``91.7 %``, ``2.31``."""
    return amount(figure.interval.value, figure.unit)


def span(figure: Figure) -> str:
    """The ends of its interval: ``81.9 to 96.4 %``."""
    return _span(figure.interval.low, figure.interval.high, figure.unit)


def change(comparison: Comparison) -> str:
    """The signed difference: ``+12.0 points``, ``-31.2 %``."""
    return amount(comparison.interval.value, _unit(comparison), signed=True) + _tail(comparison)


def change_span(comparison: Comparison) -> str:
    """The ends of its interval, signed."""
    interval, unit = comparison.interval, _unit(comparison)
    return f"{amount(interval.low, unit, signed=True)} to {amount(interval.high, unit, signed=True)}"


def stages(comparisons: Sequence[Comparison], chain: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs that get a sentence: each model with the first that it is compared with, then with the incumbents."""
    pairs = list(dict.fromkeys((comparison.model, comparison.against) for comparison in comparisons))
    first = dict(reversed(pairs))
    found = [(model, first[model]) for model in chain if model in first]
    return found + [pair for pair in pairs if pair[1] in INCUMBENTS and pair not in found]


def verdict(
    model: str, comparisons: Sequence[Comparison], figures: Sequence[Figure], against: str | None = None
) -> Verdict | None:
    """What the stage that made ``model`` did; None when nothing compares it.

    Args:
        model: the model.
        comparisons: of the report.
        figures: of the report.
        against: the other one; None: the first that the model is compared with.
    """
    own = [comparison for comparison in comparisons if comparison.model == model]
    against = against or next((comparison.against for comparison in own), None)
    own = [comparison for comparison in own if comparison.against == against]
    if not own or against is None:
        return None
    own.sort(key=_size, reverse=True)
    large = [comparison for comparison in own if comparison.outcome != "unclear" and _size(comparison) >= SMALL]
    better, worse = ([comparison for comparison in large if comparison.outcome == kind] for kind in ("better", "worse"))
    outcome = "mixed" if better and worse else "better" if better else "worse" if worse else "unclear"
    shown = [*better[:CLAUSES], *worse[:CLAUSES]]
    english = [_clause(comparison) for comparison in shown]
    chinese = [_clause_zh(comparison) for comparison in shown]
    for figure in [figure for figure in figures if figure.model == model and figure.against == against][:1]:
        english.append(f"{_lower(figure.label_en)} is {value(figure)} ({span(figure)})")
        chinese.append(f"{figure.label_zh}为 {value(figure)}（{_zh(span(figure))}）")
    open_ends = [comparison for comparison in own if comparison not in large]
    if open_ends and not shown:
        labels = ", ".join(_lower(comparison.label_en) for comparison in open_ends)
        english.append(f"no clear change of 1{SPACE}% or more in {labels}")
        chinese.append("、".join(comparison.label_zh for comparison in open_ends) + "没有 1 % 以上的明显变化")
    text = "; ".join(english)
    return Verdict(model, against, outcome, text[:1].upper() + text[1:] + ".", "；".join(chinese) + "。")


def _clause(comparison: Comparison) -> str:
    label, low, high = _lower(_label(comparison, "en")), comparison.interval.low, comparison.interval.high
    verb = "up" if comparison.interval.value > 0 else "down"
    near, far = sorted((abs(low), abs(high)))
    size = amount(abs(comparison.interval.value), _unit(comparison)) + _tail(comparison)
    return f"{label} {verb} by {size} ({_span(near, far, _unit(comparison))})"


def _clause_zh(comparison: Comparison) -> str:
    label, low, high = _label(comparison, "zh"), comparison.interval.low, comparison.interval.high
    verb = "上升" if comparison.interval.value > 0 else "下降"
    near, far = sorted((abs(low), abs(high)))
    size = amount(abs(comparison.interval.value), _unit(comparison))
    unit = f"{SPACE}个百分点" if _tail(comparison) else ""
    return f"{label}{verb} {size}{unit}（{_zh(_span(near, far, _unit(comparison)))}）"


def _size(comparison: Comparison) -> float:
    """Size of a difference in percent or points, which are close enough to sort by."""
    return abs(comparison.interval.value) * (1 if comparison.weight else 100)


def _label(comparison: Comparison, lang: str) -> str:
    """A relative change also says of what: ``Domain text (bits/byte)``."""
    label = comparison.label_zh if lang == "zh" else comparison.label_en
    return f"{label} ({comparison.unit})" if comparison.weight else label


def _unit(comparison: Comparison) -> str:
    """``%`` for relative changes, ``points`` for differences of shares."""
    return "%" if comparison.weight else "points" if comparison.unit == "share" else comparison.unit


def _tail(comparison: Comparison) -> str:
    return f"{SPACE}points" if _unit(comparison) == "points" else ""


def amount(size: float, unit: str, *, signed: bool = False) -> str:
    """A number with its unit: shares and differences of shares (``points``) in hundredths, ``%`` as it is, others plain."""
    if unit in ("share", "points"):
        size *= 100
    text = f"{abs(size):.1f}" if unit in ("share", "points", "%") else number(abs(size))
    zero = not float(text)
    sign = "" if zero or not (signed or size < 0) else "−" if size < 0 else "+"
    return f"{sign}{text}{f'{SPACE}%' if unit in ('share', '%') else ''}"


def _span(low: float, high: float, unit: str) -> str:
    first = amount(low, unit).removesuffix(f"{SPACE}%")
    return f"{first} to {amount(high, unit)}"


def _zh(text: str) -> str:
    return text.replace(" to ", " 至 ")


def _lower(label: str) -> str:
    """A label inside a sentence: ``Domain bits`` becomes ``domain bits``, ``DPO margin`` stays."""
    return label[:1].lower() + label[1:] if label[1:2].islower() else label
