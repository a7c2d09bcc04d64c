"""Plots as SVG text: the same input gives the same bytes, on any machine.

The palette is Okabe and Ito's (colour-blind safe): https://jfly.uni-koeln.de/color/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steps.lib.stats import Interval
from steps.lib.svg import INK, SOFT, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, GREY = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#9aa5b1",
)
REASONS = (ORANGE, YELLOW, PURPLE, SKY, GREEN)
"""Colours of the most frequent drop reasons; the others share grey."""
KEPT = "#b9d3c6"
TEACHERS = (BLUE, YELLOW, GREEN, PURPLE, SKY)
"""Colours of the teachers who were asked most; the others share grey."""
STAGES = {"pretrain": BLUE, "sft": GREEN, "dpo": ORANGE, "kto": PURPLE, "reward": PURPLE, "rl": ORANGE}
SMOOTH = 1 / 24
"""Share of a long history on each side of a point that its smoothed line averages."""


def loss_curve(step: str, history: Sequence[Mapping[str, Any]]) -> str:
    """Loss by optimizer update of one training step; an empty string when nothing was logged.

    Args:
        step: pretrain, sft, dpo or kto.
        history: lines of ``record/history.jsonl``: ``step``, ``loss`` (nats a token, or nats a pair), ``eval_loss``.
    """
    points = _series(history, "loss")
    if not points:
        return ""
    with figure(f"{step}: loss", "损失", height=2.7) as (axes, out):
        _line(axes, points, STAGES.get(step, BLUE), "loss 损失")
        held_out = _series(history, "eval_loss")
        if held_out:
            _line(axes, held_out, GREY, "held-out 保留集")
        axes.set_xlabel("optimizer update 更新步")
        axes.set_ylabel("nats")
        _corner(axes, f"last 末值 {number(points[-1][1])}")
    return out[0]


def reward_curve(history: Sequence[Mapping[str, Any]]) -> str:
    """Reward margin and accuracy by update of dpo, one above the other; empty when nothing was logged.

    Args:
        history: lines with ``rewards/margins`` (chosen less rejected, times beta) and ``rewards/accuracies`` (share).
    """
    margins, shares = _series(history, "rewards/margins"), _series(history, "rewards/accuracies")
    if not margins or not shares:
        return ""
    with figure("dpo: reward margin and accuracy", "奖励差与准确率", height=3.3, rows=2) as (grid, out):
        upper, lower = grid
        _line(upper, margins, ORANGE, "margin")
        upper.axhline(0, color=SOFT, linewidth=0.8)
        upper.set_ylabel("margin 差")
        upper.tick_params(labelbottom=False)
        _corner(upper, f"last 末值 {number(margins[-1][1])}")
        _line(lower, shares, BLUE, "accuracy")
        lower.axhline(0.5, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
        lower.set_ylim(-0.03, 1.03)
        lower.set_ylabel("accuracy 准确率")
        lower.set_xlabel("optimizer update 更新步")
        _corner(lower, f"last 末值 {shares[-1][1]:.0%}")
    return out[0]


def answers_curve(history: Sequence[Mapping[str, Any]]) -> str:
    """Reward and length of a policy's own answers by update of rl, one above the other; empty when nothing was logged.

    Args:
        history: lines with ``reward`` (mean of the answers) and ``completions/mean_length`` (tokens).
    """
    rewards, lengths = _series(history, "reward"), _series(history, "completions/mean_length")
    if not rewards or not lengths:
        return ""
    with figure("rl: reward and length of answers", "奖励与回答长度", height=3.3, rows=2) as (grid, out):
        for axes, points, colour, label in (
            (grid[0], rewards, ORANGE, "reward 奖励"),
            (grid[1], lengths, BLUE, "tokens 词元"),
        ):
            _line(axes, points, colour, label)
            axes.set_ylabel(label)
            _corner(axes, f"last 末值 {number(points[-1][1])}")
        grid[0].tick_params(labelbottom=False)
        grid[1].set_xlabel("optimizer update 更新步")
    return out[0]


def bars(title_en: str, title_zh: str, unit: str, values: Mapping[str, Interval], *, better: str = "higher") -> str:
    """One bar a model, with its interval and its value on top.

    Args:
        title_en: name of the figure.
        title_zh: the same in Chinese.
        unit: ``share`` is shown in percent; anything else stands at the axis.
        values: model -> interval, in the order of the chain.
        better: ``higher`` or ``lower``; said below the title.
    """
    scale = 100.0 if unit == "share" else 1.0
    with figure(title_en, title_zh, height=2.55) as (axes, out):
        intervals = [(scale * figure.value, scale * figure.low, scale * figure.high) for figure in values.values()]
        spread = max(high for _, _, high in intervals) - min(0.0, min(low for _, low, _ in intervals))
        for place, (value, low, high) in enumerate(intervals):
            axes.bar(place, value, width=0.56, color=BLUE if place == len(intervals) - 1 else "#a9c6da", zorder=2)
            reach = [[value - low], [high - value]]
            axes.errorbar(place, value, yerr=reach, color=INK, linewidth=1.1, capsize=4, zorder=3)
            axes.annotate(
                f"{value:.1f} %" if unit == "share" else number(value),
                (place, high),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                va="bottom",
                color=INK,
                fontsize=9.5,
            )
        axes.set_xticks(range(len(values)), list(values), color=INK)
        axes.set_xlim(-0.6, len(values) - 0.4)
        low_end = min(0.0, min(low for _, low, _ in intervals))
        axes.set_ylim(low_end * 1.1, max(high for _, _, high in intervals) + 0.16 * (spread or 1.0))
        axes.set_ylabel("%" if unit == "share" else unit)
        axes.grid(axis="x", visible=False)
        axes.axhline(0, color=SOFT, linewidth=0.8, zorder=4)
        _corner(axes, "higher is better 越高越好" if better == "higher" else "lower is better 越低越好")
    return out[0]


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
    shown = [(_cut(name, 30), colour) for name, colour in named.items()]
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
            axes.annotate(
                stage,
                (0, top - 0.62),
                xytext=(2, 0),
                textcoords="offset points",
                va="center",
                weight="bold",
                color=INK,
                fontsize=9,
            )
            first = sum(counts[0] for _, _, counts in own)
            for place, words in enumerate(FUNNEL):
                start, y = 0, top + place
                for _, name, counts in own:
                    colour = named.get(name, GREY)
                    axes.barh(y, counts[place], left=start, height=0.74, color=colour, edgecolor="white", linewidth=0.6)
                    start += counts[place]
                share = f"  {start / first:.1%}" if place and first else ""
                axes.annotate(
                    f"{start:,}{share}",
                    (start, y),
                    xytext=(5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8.5,
                    color=INK,
                )
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
            axes.annotate(
                f"{kept:,} / {rows_in:,}",
                (1, place),
                xytext=(6, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="left",
                va="center",
                fontsize=8.5,
                color=INK,
                annotation_clip=False,
            )
        axes.set_yticks(range(len(shown)), [label for label, _, _, _ in shown], color=INK)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("% of rows in 占输入行的百分比")
        _legend(axes, entries)
    return out[0]


def lineage(entries: Sequence[tuple[str, str, str]], edges: Sequence[tuple[int, int]]) -> str:
    """What was made from what, from top to bottom: a dot and a line of text an artifact, a curve an edge.

    Args:
        entries: (step, short key, rows in words), each after those that it was made from; empty: no drawing.
        edges: (place of what was read, place of what was made from it).
    """
    if not entries:
        return ""
    row, spine, text = 0.42, 1.12, 1.3  # inches
    with figure("Made from", "来历", height=0.56 + row * len(entries), left=0.08, bottom=0.1) as (axes, out):
        axes.set_axis_off()
        axes.set_xlim(0, 5.0)
        axes.set_ylim(row * len(entries), 0)  # one unit is one inch
        centre = [row * (place + 0.4) for place in range(len(entries))]
        for first, last in edges:
            colour = STAGES.get(entries[last][0], GREY)
            bow = 0.0 if last - first == 1 else min(0.26 * (last - first) ** 0.75, 1.35)
            _bow(axes, (spine, centre[first]), (spine, centre[last]), bow, colour)
        for (step, key, rows_out), y in zip(entries, centre, strict=True):
            axes.plot(
                [spine], [y], marker="o", markersize=8, color=STAGES.get(step, GREY), markeredgecolor="white", zorder=3
            )
            axes.text(text, y, step, fontsize=9.5, weight="bold", color=INK, va="center")
            axes.text(text + 0.95, y, key.partition("/")[2], fontsize=8.5, color=SOFT, va="center")
            axes.text(text, y + 0.18, _cut(rows_out, 62), fontsize=8, color=SOFT, va="center")
        _corner(axes, "top to bottom 自上而下")
    return out[0]


def number(value: float) -> str:
    """Three significant digits, without an exponent for ordinary sizes."""
    size = abs(value)
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


def _series(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(float(line["step"]), float(line[key])) for line in history if line.get(key) is not None and "step" in line]


def _line(axes: Axes, points: Sequence[tuple[float, float]], colour: str, label: str) -> None:
    """The points; a long history also gets its smoothed line, and the points step back."""
    x, y = [point[0] for point in points], [point[1] for point in points]
    if len(points) < 30:
        axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=2.6, label=label)
        return
    axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.35)
    reach = max(2, round(SMOOTH * len(y)))
    smooth = []
    for place in range(len(y)):
        side = min(reach, place, len(y) - 1 - place)
        smooth.append(sum(y[place - side : place + side + 1]) / (2 * side + 1))
    axes.plot(x, smooth, color=colour, linewidth=1.8, label=label)


def _bow(axes: Axes, start: tuple[float, float], end: tuple[float, float], bow: float, colour: str) -> None:
    """A curve between two points that stands out to the left by about ``bow`` inches, with an arrow's head in the middle."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    (x, top), (_, bottom) = start, end
    out = x - bow * 4 / 3
    curve = Path([start, (out, top), (out, bottom), end], [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    axes.add_patch(PathPatch(curve, facecolor="none", edgecolor=colour, linewidth=1.4, alpha=0.75))
    axes.plot([x - bow], [(top + bottom) / 2], marker="v", markersize=3.6, color=colour, zorder=2)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip(" ,") + "…"


def _corner(axes: Axes, text: str) -> None:
    axes.annotate(
        text,
        (1, 1),
        xytext=(0, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8,
        color=SOFT,
    )


def _legend(axes: Axes, entries: Sequence[tuple[str, str]]) -> None:
    """Labelled squares in two columns below the axes."""
    from matplotlib.patches import Rectangle

    figure = axes.get_figure()
    assert figure is not None
    width, height = figure.get_window_extent().width / figure.dpi, figure.get_window_extent().height / figure.dpi
    for place, (label, colour) in enumerate(entries):
        x = (0.2 + (place % 2) * 0.5 * width) / width
        y = (0.2 * ((len(entries) + 1) // 2 - 1 - place // 2) + 0.08) / height
        figure.add_artist(Rectangle((x, y), 0.11 / width, 0.11 / height, facecolor=colour, edgecolor="none"))
        figure.text(x + 0.17 / width, y + 0.05 / height, label, fontsize=8.5, color=INK, va="center")
