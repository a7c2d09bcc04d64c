"""The report of an evaluation: one plain model, written as JSON, Markdown and one self-contained page.

``report.html`` asks for nothing from outside: style, script and plots stand in the file. No sentence holds a figure of its own;
``wording`` makes them from the intervals.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from steps.lib import report_page
from steps.lib.errors import DataError
from steps.lib.report_behind import Cost, Funnel, Node, Speed, StepRows, funnels, nodes, report_costs
from steps.lib.report_parts import Case, Judging, ModelCard, Report, Sample

__all__ = [
    "Case",
    "Cost",
    "Funnel",
    "Judging",
    "ModelCard",
    "Node",
    "Report",
    "Sample",
    "Speed",
    "StepRows",
    "funnels",
    "nodes",
    "read",
    "report_costs",
    "result",
    "write",
]

BACKGROUND = ("rows", "lineage", "histories", "teachers", "funnel", "costs", "speeds")
"""Fields that say how the models came to be, and what another run would give otherwise: they are a record."""
RECORD = "record/background.json"


def write(report: Report, folder: Path) -> None:
    """Write ``report.json``, the record of what lies behind it, and the pages ``report.md`` and ``report.html``.

    ``report.json`` follows from the models and the held-out items alone. How they came to be (``BACKGROUND``) may differ between
    two stores in which they are the same, so it is a record.
    """
    (folder / "record").mkdir(exist_ok=True)
    (folder / "report.json").write_text(result(report), encoding="utf-8")
    (folder / RECORD).write_text(report.model_dump_json(indent=1, include=set(BACKGROUND)) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(report_page.text(report), encoding="utf-8")
    (folder / "report.html").write_text(report_page.page(report), encoding="utf-8")


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
