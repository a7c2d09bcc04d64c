"""The report of an evaluation: one plain model, written as JSON, Markdown and one self-contained page.

``report.html`` asks for nothing from outside: style and plots stand in the file. No sentence holds a figure of its own;
``wording`` makes them from the intervals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from steps.lib import plots, row_plots, svg, wording
from steps.lib.errors import DataError
from steps.lib.figures import Comparison, Figure, Plain

BACKGROUND = ("rows", "lineage", "histories", "teachers", "funnel")
"""Fields that say how the models came to be."""
RECORD = "record/background.json"
TILES = 6
"""Figures on the first screen when the report names no highlights."""


class ModelCard(Plain):
    """A model of the chain."""

    name: str
    digest: str
    chain: list[str] = Field(default_factory=list)
    """What the model was made from, first to last: ``base 1a2b3c...``, ``sft adapter 4d5e...``."""


class Sample(Plain):
    """One held-out prompt and what every model answered."""

    id: str = ""
    prompt: str
    lang: str
    outputs: dict[str, str]
    """Model -> answer, in the order of the chain."""
    rules: dict[str, dict[str, bool | None]] = Field(default_factory=dict)
    """Model -> rule -> kept, broken, or None where it does not apply."""


class StepRows(Plain):
    """Rows in and out of a step, as its ledger counted them: kind -> rows, kind -> reason -> rows (none is 0)."""

    step: str
    rows_in: dict[str, int]
    rows_out: dict[str, int]
    dropped: dict[str, dict[str, int]] = Field(default_factory=dict)

    @classmethod
    def from_ledger(cls, step: str, ledger: Mapping[str, Any]) -> StepRows:
        """From ``RowLedger.dump()``, which is also what a manifest holds as ``rows``."""
        dropped = {kind: {reason: n for reason, n in why.items() if n} for kind, why in ledger["dropped"].items()}
        return cls(
            step=step,
            rows_in=ledger["in"],
            rows_out=ledger["out"],
            dropped={kind: why for kind, why in dropped.items() if why},
        )


class Funnel(Plain):
    """What became of the requests of one stage of generate to one teacher: asked = answered + failed, answered = kept + dropped."""

    stage: str
    teacher: str
    """Empty: what was lost before a teacher was asked."""
    asked: int = 0
    answered: int = 0
    parsed: int = 0
    """Answers in the asked form."""
    kept: int = 0
    failed: dict[str, int] = Field(default_factory=dict)
    """Reason -> requests without an answer."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Flag -> answers that it kept back."""

    @property
    def lost(self) -> dict[str, int]:
        """Reason -> requests that came to nothing, the most frequent first."""
        both = {**self.failed, **self.dropped}
        return dict(sorted(both.items(), key=lambda pair: (-pair[1], pair[0])))


class Node(Plain):
    """One artifact behind the models. Its key is made of content, so it names no place and no time."""

    step: str
    key: str
    """``<step>/<12 digits>``: enough for ``prefline show``."""
    rows: dict[str, int] = Field(default_factory=dict)
    """Kind -> rows that came out."""
    inputs: list[str] = Field(default_factory=list)
    """Keys of what it was made from, as far as they are nodes, too."""


class Report(Plain):
    """All that the report shows."""

    title: str
    seed: int
    facts: dict[str, str] = Field(default_factory=dict)
    """Short facts under the title: task, held-out items, size of the model."""
    models: list[ModelCard]
    """In the order of the chain; the last one is the candidate for promotion."""
    figures: list[Figure]
    comparisons: list[Comparison] = Field(default_factory=list)
    highlights: list[str] = Field(default_factory=list)
    """Names of the figures on the first screen; empty: the first six."""
    samples: list[Sample] = Field(default_factory=list)
    rows: list[StepRows] = Field(default_factory=list)
    lineage: list[Node] = Field(default_factory=list)
    """What the models were made from: each after those that it was made from (``nodes``)."""
    histories: dict[str, list[dict[str, float | int | str | None]]] = Field(default_factory=dict)
    """Training step -> lines of its ``record/history.jsonl``."""
    teachers: list[str] = Field(default_factory=list)
    funnel: list[Funnel] = Field(default_factory=list)
    """Stages of generate in their order, and in each the teachers."""
    fingerprint: dict[str, str] = Field(default_factory=dict)
    """All that two evaluations must share to be compared: suite and scorer digests, template, generation, versions."""
    notes: list[str] = Field(default_factory=list)

    @property
    def chain(self) -> list[str]:
        """Names of the models."""
        return [card.name for card in self.models]

    def by_figure(self, names: list[str] | None = None) -> list[list[Figure]]:
        """Figures grouped by name, each group in the order of the chain.

        Args:
            names: only these, in this order.
        """
        groups: dict[str, list[Figure]] = {}
        for figure in self.figures:
            groups.setdefault(figure.name, []).append(figure)
        order = self.chain
        for group in groups.values():
            group.sort(key=lambda figure: order.index(figure.model))
        return [groups[name] for name in (names or groups) if name in groups]


def nodes(manifests: Iterable[Mapping[str, Any]]) -> list[Node]:
    """Nodes of a lineage, each once, and after those that it was made from.

    Args:
        manifests: of the artifacts, in any order (``steps.lib.store.lineage``).
    """
    known = {str(manifest["key"]): manifest for manifest in manifests}
    above = {
        key: sorted({entry["key"] for entry in manifest["inputs"].values()} & known.keys())
        for key, manifest in known.items()
    }
    depths: dict[str, int] = {}

    def depth(key: str) -> int:
        if key not in depths:
            depths[key] = 1 + max((depth(one) for one in above[key]), default=-1)
        return depths[key]

    return [
        Node(
            step=known[key]["step"],
            key=_short(key),
            rows=known[key]["rows"]["out"],
            inputs=list(map(_short, above[key])),
        )
        for key in sorted(known, key=lambda key: (depth(key), key))
    ]


def funnels(metrics: Mapping[str, Any]) -> list[Funnel]:
    """The funnel in the metrics of generate: ``funnel/STAGE/TEACHER/WHAT``, where WHAT is asked, answered, parsed, kept,
    failed:REASON or dropped:REASON."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name, value in metrics.items():
        if not name.startswith("funnel/"):
            continue
        stage, _, rest = name.removeprefix("funnel/").partition("/")
        teacher, _, what = rest.rpartition("/")
        entry = found.setdefault((stage, teacher), {"failed": {}, "dropped": {}})
        kind, colon, reason = what.partition(":")
        if colon:
            entry[kind][reason] = int(value)
        else:
            entry[kind] = int(value)
    return [Funnel(stage=stage, teacher=teacher, **entry) for (stage, teacher), entry in found.items()]


def write(report: Report, folder: Path) -> None:
    """Write ``report.json``, the record of what lies behind it, and the pages ``report.md`` and ``report.html``.

    ``report.json`` follows from the models and the held-out items alone. How they came to be (``BACKGROUND``) may differ between
    two stores in which they are the same, so it is a record.
    """
    (folder / "record").mkdir(exist_ok=True)
    (folder / "report.json").write_text(result(report), encoding="utf-8")
    (folder / RECORD).write_text(report.model_dump_json(indent=1, include=set(BACKGROUND)) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(_render("report.md.jinja", report), encoding="utf-8")
    (folder / "report.html").write_text(_render("report.html.jinja", report), encoding="utf-8")


def read(folder: Path) -> Report:
    """Read ``report.json`` back, with its background where that lies beside it.

    Raises:
        DataError: it is missing or is not a report.
    """
    path, behind = folder / "report.json", folder / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if behind.exists():
            content |= json.loads(behind.read_text(encoding="utf-8"))
        return Report.model_validate_json(json.dumps(content))
    except FileNotFoundError:
        raise DataError(f"{path} is missing: got no file, because evaluate writes it; rebuild that step") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} does not parse: got {error}, because it was changed; rebuild the step evaluate"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{path}, field {'.'.join(map(str, first['loc']))} is wrong: {first['msg']}, because another "
            "version wrote it; rebuild the step evaluate"
        ) from None


def result(report: Report) -> str:
    """The text of ``report.json``."""
    return report.model_dump_json(indent=1, exclude=set(BACKGROUND)) + "\n"


def drawings(report: Report) -> list[str]:
    """The plots, as SVG text: training curves, one small multiple a figure, the funnel of generate, rows."""
    shown = {step: history for step, history in report.histories.items() if step != "rl"}  # its loss is 0 on average
    pages = [plots.loss_curve(step, history) for step, history in shown.items()]
    pages += [plots.reward_curve(history) for history in report.histories.values()]
    pages += [plots.answers_curve(history) for history in report.histories.values()]
    for group in report.by_figure():
        if len(group) > 1:
            first = group[0]
            values = {figure.model: figure.interval for figure in group}
            pages.append(plots.bars(first.label_en, first.label_zh, first.unit, values, better=first.better))
    pages.append(row_plots.funnel([(one.stage, one.teacher, _widths(one)) for one in report.funnel]))
    pages.append(row_plots.rows(list(_row_bars(report))))
    return [page for page in pages if page]


def _short(key: str) -> str:
    step, _, digest = key.partition("/")
    return f"{step}/{digest[:12]}"


def _graph(report: Report) -> str:
    """The lineage as SVG text; empty without nodes."""
    places = {node.key: place for place, node in enumerate(report.lineage)}
    entries = [
        (node.step, node.key, ", ".join(f"{count:,} {kind}" for kind, count in node.rows.items()))
        for node in report.lineage
    ]
    return plots.lineage(entries, [(places[key], places[node.key]) for node in report.lineage for key in node.inputs])


def _widths(one: Funnel) -> tuple[int, int, int, int]:
    return one.asked, one.answered, one.parsed, one.kept


def _row_bars(report: Report) -> Iterator[tuple[str, int, int, Mapping[str, int]]]:
    for step in report.rows:
        for kind, count in step.rows_in.items():
            dropped = step.dropped.get(kind, {})
            yield f"{step.step} · {kind}", count, count - sum(dropped.values()), dropped


def _render(template: str, report: Report) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape="html" in template,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        value=wording.value,
        span=wording.span,
        change=wording.change,
        change_span=wording.change_span,
        fence=_fence,
        cell=_cell,
    )
    stages = [wording.verdict(name, report.comparisons, report.figures) for name in report.chain]
    return environment.get_template(template).render(
        report=report,
        stages=[stage for stage in stages if stage],
        tiles=report.by_figure(report.highlights)[: None if report.highlights else TILES],
        groups=report.by_figure(),
        drawings=[Markup(page) for page in drawings(report)] if "html" in template else [],
        graph=Markup(_graph(report)) if "html" in template else "",
        outcomes=wording.OUTCOMES,
        fonts=Markup(svg.FONTS),
    )


def _fence(text: str) -> str:
    """A Markdown code block that the text cannot close."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{ticks}\n{text}\n{ticks}"


def _cell(text: object) -> str:
    """Text for one cell of a Markdown table."""
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|").replace("<", "&lt;")
