"""The pages of promote: the verdict and its checks first, then the report that it rests on."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from steps.lib import report_page
from steps.lib.decision import Decision
from steps.lib.report_parts import Report


def write(verdict: BaseModel, report: Report, folder: Path) -> None:
    """Write ``report.md`` and ``report.html`` into a folder.

    Args:
        verdict: ``gate.Verdict``.
        report: what it was decided upon.
        folder: promote's output; it exists.
    """
    decision = Decision.of(verdict)
    (folder / "report.md").write_text(report_page.text(report, decision), encoding="utf-8")
    (folder / "report.html").write_text(report_page.page(report, decision), encoding="utf-8")
