"""The pages of a report: ``report.md`` for a terminal, and ``report.html``, which asks for nothing from outside.

The one script of the page (languages, theme, filter of samples) stands in it, and the page's own policy names its digest: no other
script runs, whatever stands in an answer.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from steps.lib import decision as gates
from steps.lib import plots, row_plots, svg, wording
from steps.lib.amounts import count, duration, money
from steps.lib.decision import Decision
from steps.lib.figures import Comparison, Figure
from steps.lib.report_behind import Cost, Funnel
from steps.lib.report_parts import Report

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TILES = 6
"""Figures on the first screen when the report names no highlights."""
STATES = {
    "regressed": ("regressed", "退步", "worse"),
    "error": ("not scored", "未评分", "worse"),
    "fixed": ("fixed", "已修复", "better"),
    "flaky": ("flaky", "不稳定", "mixed"),
    "known_fail": ("still failing", "仍失败", ""),
    "still_pass": ("still passing", "仍通过", ""),
}
"""State of a bad case -> words and class, the most urgent first."""


class Drawing(NamedTuple):
    """A plot and where it stands."""

    section: str
    """``training``, ``figures`` or ``rows``."""
    svg: str


class Total(NamedTuple):
    """What all costs add up to."""

    seconds: float
    tokens: int
    dollars: float


def page(report: Report, decision: Decision | None = None) -> str:
    """The text of ``report.html``; with a decision, that stands first."""
    from markupsafe import Markup

    pictures = drawings(report)
    script = (Path(__file__).parent / "report_script.js.jinja").read_text(encoding="utf-8").strip()
    return (
        _environment(escape=True)
        .get_template("report.html.jinja")
        .render(
            **_content(report, decision),
            drawings={
                section: [Markup(one.svg) for one in pictures if one.section == section]
                for section in ("training", "figures", "rows")
            },
            graph=Markup(graph(report)),
            fonts=Markup(svg.FONTS),
            script=Markup(script),
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            strip=_strip,
            reaches=_reaches,
            reach_of=_reach,
            languages=sorted({sample.lang for sample in report.samples}),
        )
    )


def text(report: Report, decision: Decision | None = None) -> str:
    """The text of ``report.md``; with a decision, that stands first."""
    return _environment(escape=False).get_template("report.md.jinja").render(**_content(report, decision))


def card(template: str, report: Report, decision: Decision | None, **more: Any) -> str:
    """A page of Markdown from another template, with what the pages of a report show and ``more``."""
    return _environment(escape=False).get_template(template).render(**_content(report, decision), **more)


def drawings(report: Report) -> list[Drawing]:
    """The plots: training curves, one small multiple a figure of the first screen, the funnel of generate, rows."""
    shown = {step: history for step, history in report.histories.items() if step != "rl"}  # its loss is 0 on average
    curves = [plots.loss_curve(step, history) for step, history in shown.items()]
    curves += [plots.reward_curve(history) for history in report.histories.values()]
    curves += [plots.answers_curve(history) for history in report.histories.values()]
    charts = []
    for group in _tiles(report):
        if len(group) > 1:
            first = group[0]
            values = {figure.model: figure.interval for figure in group}
            charts.append(
                plots.bars(
                    first.label_en, first.label_zh, first.unit, values, better=first.better, candidate=report.candidate
                )
            )
    flows = [
        row_plots.funnel([(one.stage, one.teacher, _widths(one)) for one in report.funnel]),
        row_plots.rows(list(_row_bars(report))),
    ]
    pages = {"training": curves, "figures": charts, "rows": flows}
    return [Drawing(section, one) for section, found in pages.items() for one in found if one]


def graph(report: Report) -> str:
    """The lineage as SVG text; empty without nodes."""
    places = {node.key: place for place, node in enumerate(report.lineage)}
    entries = [
        (node.step, node.key, ", ".join(f"{count:,} {kind}" for kind, count in node.rows.items()))
        for node in report.lineage
    ]
    return plots.lineage(entries, [(places[key], places[node.key]) for node in report.lineage for key in node.inputs])


def total(costs: Sequence[Cost]) -> Total:
    """The sum of some costs."""
    return Total(sum(one.seconds for one in costs), sum(one.tokens for one in costs), sum(one.dollars for one in costs))


def _content(report: Report, decision: Decision | None) -> dict[str, Any]:
    """What both pages show."""
    stages = [
        wording.verdict(name, report.comparisons, report.figures, against)
        for name, against in wording.stages(report.comparisons, report.chain)
    ]
    labels = {figure.name: (figure.label_en, figure.label_zh) for figure in report.figures}
    order = list(STATES)
    known = Counter(case.state for case in report.cases)
    return {
        "report": report,
        "decision": decision,
        "gates": gates,
        "labels": labels,
        "units": {figure.name: _change_unit(figure) for figure in report.figures},
        "stages": [stage for stage in stages if stage],
        "tiles": _tiles(report),
        "groups": report.by_figure(),
        "slices": report.by_slice(),
        "pairs": report.by_pair(),
        "leading": {group[0].name for group in _tiles(report)},
        "cases": sorted(report.cases, key=lambda case: (_place(order, case.state), case.severity, case.id)),
        "case_counts": [(state, known[state]) for state in [*order, *sorted(known.keys() - order)] if known[state]],
        "states": STATES,
        "total": total(report.costs),
        "outcomes": wording.OUTCOMES,
    }


def _change_unit(figure: Figure) -> str:
    return "%" if figure.weight else "points" if figure.unit == "share" else figure.unit


def _tiles(report: Report) -> list[list[Figure]]:
    return report.by_figure(report.highlights)[: None if report.highlights else TILES]


def _place(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def _widths(one: Funnel) -> tuple[int, int, int, int]:
    return one.asked, one.answered, one.parsed, one.kept


def _row_bars(report: Report) -> Iterator[tuple[str, int, int, Mapping[str, int]]]:
    for step in report.rows:
        for kind, rows in step.rows_in.items():
            dropped = step.dropped.get(kind, {})
            yield f"{step.step} · {kind}", rows, rows - sum(dropped.values()), dropped


def _environment(*, escape: bool) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        value=wording.value,
        span=_spoken(wording.span) if escape else wording.span,
        change=_spoken(wording.change) if escape else wording.change,
        change_span=_spoken(wording.change_span) if escape else wording.change_span,
        fence=_fence,
        cell=_cell,
        amount=wording.amount,
        duration=duration,
        tokens=count,
        money=money,
    )
    return environment


def _reaches(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Unit of a change -> how far the strips of these comparisons go to each side."""
    found: dict[str, float] = {}
    for one in comparisons:
        unit = "%" if one.weight else one.unit
        found[unit] = max(found.get(unit, 0.0), _reach(one.interval, None))
    return found


def _reach(interval: Any, threshold: float | None) -> float:
    return max(abs(interval.low), abs(interval.high), abs(threshold or 0.0)) or 1.0


def _strip(interval: Any, outcome: str, reach: float, threshold: float | None = None) -> Markup:
    """An interval on a line around zero, as inline SVG: what a table says in figures, at a glance.

    Args:
        interval: what is drawn.
        outcome: class that gives its colour.
        reach: value at either end of the line; above zero.
        threshold: where a dashed mark stands; None: nowhere.
    """
    from markupsafe import Markup

    def x(value: float) -> str:
        return f"{60 + 56 * max(-1.0, min(1.0, value / reach)):.1f}"

    mark = f'<line class="mark" x1="{x(threshold)}" x2="{x(threshold)}" y1="1" y2="15"/>' if threshold else ""
    return Markup(
        f'<svg class="strip {re.sub("[^a-z]", "", outcome)}" viewBox="0 0 120 16" aria-hidden="true">'
        f'<line class="zero" x1="60" x2="60" y1="0" y2="16"/>{mark}'
        f'<line class="reach" x1="{x(interval.low)}" x2="{x(interval.high)}" y1="8" y2="8"/>'
        f'<circle cx="{x(interval.value)}" cy="8" r="3.2"/></svg>'
    )


def _spoken(words: Callable[[Any], str]) -> Callable[[Any], Markup]:
    """The same text in both languages: what stands between two figures, and after them."""
    from markupsafe import Markup, escape

    def spoken(what: Any) -> Markup:
        said = str(escape(words(what)))
        for english, chinese in ((" to ", " 至 "), (f"{wording.SPACE}points", f"{wording.SPACE}个百分点")):
            pair = f'<span class="en">{english}</span><span class="zh alone" lang="zh-CN">{chinese}</span>'
            said = said.replace(english, pair)
        return Markup(said)

    return spoken


def _fence(text: str) -> str:
    """A Markdown code block that the text cannot close."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{ticks}\n{text}\n{ticks}"


def _cell(text: object) -> str:
    """Text for one cell of a Markdown table."""
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|").replace("<", "&lt;")
