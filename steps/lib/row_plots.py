"""Plots of where requests and rows went, as SVG text: the same input gives the same bytes, on any machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steps.lib.svg import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, YELLOW, cut, figure, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REASONS = (ORANGE, YELLOW, PURPLE, SKY, GREEN)
"""Colours of the most frequent drop reasons; the others share grey."""
KEPT = "#b9d3c6"
TEACHERS = (BLUE, YELLOW, GREEN, PURPLE, SKY)
"""Colours of the teachers who were asked most; the others share grey."""
FUNNEL = (("asked", "请求"), ("answered", "应答"), ("parsed", "可读"), ("kept", "保留"))


def funnel(entries: Sequence[tuple[str, str, Sequence[int]]]) -> str:
    """What became of the requests of generate: for each stage four bars, each made of the teachers' parts.

    Args:
        entries: (stage, teacher, counts as ``FUNNEL`` has them); stages in their order. Without requests: an empty string.
    """
    stages = list(dict.fromkeys(stage for stage, _, counts in entries if counts[0]))
    if not stages:
        return ""
    totals: dict[str, int] = {}
    for _, teacher, counts in entries:
        totals[teacher] = totals.get(teacher, 0) + counts[0]
    order = sorted((name for name in totals if name), key=lambda name: (-totals[name], name))
    named = dict(zip(order, TEACHERS, strict=False))
    shown = [(cut(name, 30), colour) for name, colour in named.items()]
    if len(order) > len(named) or "" in totals:
        shown.append(("others 其他" if len(order) > len(named) else "nobody 未分配", GREY))
    bottom = 0.52 + 0.2 * ((len(shown) + 1) // 2)
    group = len(FUNNEL) + 0.7  # bars and the space for a stage's name
    height = 0.3 + 0.27 * group * len(stages) + bottom
    with figure("Requests of generate", "请求漏斗", height=height, left=1.25, bottom=bottom) as (axes, out):
        most = max(sum(counts[0] for stage, _, counts in entries if stage == one) for one in stages)
        ticks, labels = [], []
        for number, stage in enumerate(stages):
            top = number * group + 0.7
            own = sorted(
                (
                    (order.index(name) if name else len(order), name, counts)
                    for at, name, counts in entries
                    if at == stage
                ),
                key=lambda entry: entry[0],
            )
            label(axes, stage, (0, top - 0.62), (2, 0), va="center", weight="bold", fontsize=9)
            first = sum(counts[0] for _, _, counts in own)
            for place, words in enumerate(FUNNEL):
                start, y = 0, top + place
                for _, name, counts in own:
                    colour = named.get(name, GREY)
                    axes.barh(y, counts[place], left=start, height=0.74, color=colour, edgecolor="white", linewidth=0.6)
                    start += counts[place]
                share = f"  {start / first:.1%}" if place and first else ""
                label(axes, f"{start:,}{share}", (start, y), (5, 0), va="center", fontsize=8.5)
                ticks.append(y)
                labels.append(" ".join(words))
        axes.set_yticks(ticks, labels, color=INK)
        axes.set_ylim(len(stages) * group - 0.1, -0.2)
        axes.set_xlim(0, most * 1.02)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("requests 请求数")
        _legend(axes, shown)
    return out[0]


def rows(steps: Sequence[tuple[str, int, int, Mapping[str, int]]]) -> str:
    """Where rows went: one bar for each kind of rows of each step, as shares of the rows that came in.

    Args:
        steps: (label, rows in, rows kept, reason -> rows dropped); bars without rows are left out.
    """
    shown = [entry for entry in steps if entry[1] > 0]
    if not shown:
        return ""
    totals: dict[str, int] = {}
    for _, _, _, dropped in shown:
        for reason, count in dropped.items():
            totals[reason] = totals.get(reason, 0) + count
    order = sorted(totals, key=lambda reason: (-totals[reason], reason))
    named = order[: len(REASONS)]
    colours = dict(zip(named, REASONS, strict=False))
    entries = [("kept 保留", KEPT), *colours.items()]
    if len(order) > len(named):
        entries.append(("other reasons 其他原因", GREY))
    bottom = 0.52 + 0.2 * ((len(entries) + 1) // 2)
    height = 0.46 + 0.34 * len(shown) + bottom
    with figure("Rows kept and dropped", "保留与丢弃的行", height=height, left=1.55, bottom=bottom) as (axes, out):
        for place, (_, rows_in, kept, dropped) in enumerate(shown):
            parts = [(kept, KEPT)] + [(dropped.get(reason, 0), colours[reason]) for reason in named]
            parts.append((sum(count for reason, count in dropped.items() if reason not in colours), GREY))
            start = 0.0
            for count, colour in parts:
                share = 100 * count / rows_in
                axes.barh(place, share, left=start, height=0.62, color=colour, edgecolor="white", linewidth=0.6)
                start += share
            beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "annotation_clip": False}
            label(axes, f"{kept:,} / {rows_in:,}", (1, place), (6, 0), ha="left", va="center", fontsize=8.5, **beside)
        axes.set_yticks(range(len(shown)), [label for label, _, _, _ in shown], color=INK)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("% of rows in 占输入行的百分比")
        _legend(axes, entries)
    return out[0]


def _legend(axes: Axes, entries: Sequence[tuple[str, str]]) -> None:
    """Labelled squares in two columns below the axes."""
    from matplotlib.patches import Rectangle

    figure = axes.get_figure()
    assert figure is not None
    width, height = figure.get_window_extent().width / figure.dpi, figure.get_window_extent().height / figure.dpi
    for place, (words, colour) in enumerate(entries):
        x = (0.2 + (place % 2) * 0.5 * width) / width
        y = (0.2 * ((len(entries) + 1) // 2 - 1 - place // 2) + 0.08) / height
        figure.add_artist(Rectangle((x, y), 0.11 / width, 0.11 / height, facecolor=colour, edgecolor="none"))
        figure.text(x + 0.17 / width, y + 0.05 / height, words, fontsize=8.5, color=INK, va="center")
