"""Plots of training and of its results, as SVG text: the same input gives the same bytes, on any machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steps.lib.stats import Interval
from steps.lib.svg import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SOFT, cut, figure, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


def bars(
    title_en: str,
    title_zh: str,
    unit: str,
    values: Mapping[str, Interval],
    *,
    better: str = "higher",
    candidate: str = "",
) -> str:
    """One bar a model, with its interval and its value on top.

    Args:
        title_en: name of the figure.
        title_zh: the same in Chinese.
        unit: ``share`` is shown in percent; anything else stands at the axis.
        values: model -> interval, in the order of the chain.
        better: ``higher`` or ``lower``; said below the title.
        candidate: the model whose bar stands out; empty: the last one.
    """
    scale = 100.0 if unit == "share" else 1.0
    with figure(title_en, title_zh, height=2.35, bottom=0.28) as (axes, out):
        intervals = [(scale * figure.value, scale * figure.low, scale * figure.high) for figure in values.values()]
        spread = max(high for _, _, high in intervals) - min(0.0, min(low for _, low, _ in intervals))
        shown = candidate or list(values)[-1]
        for place, (name, (value, low, high)) in enumerate(zip(values, intervals, strict=True)):
            axes.bar(place, value, width=0.56, color=BLUE if name == shown else "#a9c6da", zorder=2)
            reach = [[value - low], [high - value]]
            axes.errorbar(place, value, yerr=reach, color=INK, linewidth=1.1, capsize=4, zorder=3)
            text = f"{value:.1f} %" if unit == "share" else number(value)
            label(axes, text, (place, high), (0, 4), ha="center", va="bottom", fontsize=9.5)
        axes.set_xticks(range(len(values)), list(values), color=INK)
        axes.set_xlim(-0.6, len(values) - 0.4)
        low_end = min(0.0, min(low for _, low, _ in intervals))
        axes.set_ylim(low_end * 1.1, max(high for _, _, high in intervals) + 0.16 * (spread or 1.0))
        axes.set_ylabel("%" if unit == "share" else unit)
        axes.grid(axis="x", visible=False)
        axes.axhline(0, color=SOFT, linewidth=0.8, zorder=4)
        _corner(axes, "higher is better 越高越好" if better == "higher" else "lower is better 越低越好")
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
            axes.text(text, y + 0.18, cut(rows_out, 62), fontsize=8, color=SOFT, va="center")
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


def _corner(axes: Axes, text: str) -> None:
    label(axes, text, (1, 1), (0, 5), xycoords="axes fraction", ha="right", va="bottom", fontsize=8, color=SOFT)
