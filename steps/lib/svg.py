"""The page that plots are drawn on: matplotlib's SVG in the style of the house, the same bytes on any machine.

Text stays text (``svg.fonttype: none``): measured with the font that comes with matplotlib, shown with ``FONTS``. So Chinese needs
no font when drawing, and the reader's own when reading. No date, no file name, no random ids.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FONTS = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', 'Noto Sans CJK SC', "
    "'Source Han Sans SC', 'PingFang SC', 'Microsoft YaHei', sans-serif"
)
INK, SOFT, GRID = "#1f2933", "#5f6c7b", "#e4e8ed"
THEMED = {"ink": INK, "soft": SOFT, "line": GRID, "paper": "#ffffff"}
"""Colours that a page may give otherwise, by the name of its CSS variable: text and paper on a dark page."""
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, GREY = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#9aa5b1",
)
"""Okabe and Ito's palette (colour-blind safe): https://jfly.uni-koeln.de/color/"""


@contextmanager
def figure(
    english: str, chinese: str, *, height: float, rows: int = 1, left: float = 0.62, bottom: float = 0.48
) -> Iterator[tuple[Any, list[str]]]:
    """Axes of the house style on a page 5.2 inches wide; after the block the list holds the SVG text.

    Args:
        english: title.
        chinese: title.
        height: inches.
        rows: axes below each other that share x; with one, the axes come alone.
        left: inches of margin for the labels of y.
        bottom: inches of margin for the labels of x.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": english,
        "font.family": ["DejaVu Sans"],
        "font.size": 9,
        "axes.edgecolor": GRID,
        "axes.labelcolor": SOFT,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "text.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
    }
    out: list[str] = []
    # Missing Chinese glyphs only matter to matplotlib's own measuring; the reader's fonts have them.
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        width, top = 5.2, 0.46
        figure = Figure(figsize=(width, height))
        canvas = FigureCanvasSVG(figure)
        right = 0.9 if left > 1 else 0.12
        figure.subplots_adjust(
            left=left / width, right=1 - right / width, top=1 - top / height, bottom=bottom / height, hspace=0.28
        )
        grid = figure.subplots(rows, 1, sharex=True)
        title = f"{english}  {chinese}"
        figure.text(0.08 / width, 1 - 0.1 / height, title, ha="left", va="top", fontsize=10.5, weight="bold")
        yield grid, out
        page = io.StringIO()
        canvas.print_svg(page, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    out.append(_clean(page.getvalue(), f"{english} {chinese}"))


def _clean(svg: str, label: str) -> str:
    """Make matplotlib's SVG fit to stand inside a page: no prolog, no fixed size, own fonts, only ids that are used."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'xlink:href="#([^"]+)"', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    prefix = re.sub(r"\W+", "-", label)
    for name in sorted(used):
        svg = svg.replace(f'id="{name}"', f'id="{prefix}{name}"').replace(f'"#{name}"', f'"#{prefix}{name}"')
        svg = svg.replace(f"url(#{name})", f"url(#{prefix}{name})")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: 'DejaVu Sans';? ?", "", svg)
    svg = re.sub(r"(font: [^;\"]*?)'DejaVu Sans'", lambda match: match[1] + FONTS, svg)
    title, style = html.escape(label, quote=True), f"font-family: {FONTS}; stroke-linejoin: round"
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{title}" style="{style}"', 1)
    for name, colour in THEMED.items():
        svg = svg.replace(f": {colour}", f": var(--{name}, {colour})")
    return re.sub(r"\s*\n\s*", "\n", svg).strip() + "\n"


def label(axes: Any, text: str, at: tuple[float, float], shift: tuple[float, float], **look: Any) -> None:
    """Text beside a point, so many typographic points away from it."""
    axes.annotate(text, at, xytext=shift, textcoords="offset points", **{"color": INK, **look})


def cut(text: str, limit: int) -> str:
    """A text of so many characters at most; where some are missing, the last one is an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1].rstrip(" ,") + "…"
