"""A verdict on a page: all four words, a verdict that knows more, and the report below it."""

from __future__ import annotations

import re
from pathlib import Path

import example_report
import pytest
from pydantic import BaseModel

from steps.lib import report, verdict_page
from steps.lib.decision import MEANING, WORDS, Decision
from steps.lib.gate import Check, Verdict
from steps.lib.report import Report


@pytest.fixture(scope="module")
def shown() -> Report:
    """Without what takes long to draw."""
    return example_report.report(example_report.items(30)).model_copy(
        update={"histories": {}, "lineage": [], "funnel": [], "rows": [], "highlights": ["none"]}
    )


@pytest.mark.parametrize("word", sorted(WORDS))
def test_the_verdict_stands_first_in_both_pages(word: str, shown: Report, tmp_path: Path) -> None:
    verdict_page.write(example_report.verdict(word), shown, tmp_path)
    html, markdown = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    for said in (*WORDS[word], *MEANING[word]):
        assert said.lower() in html.lower() and said.lower() in markdown.lower(), said
    assert f'class="card gate {word}"' in html
    assert 0 < html.index('class="card gate') < html.index('class="card warn') < html.index('class="card stage')
    assert 0 < markdown.index(f"## {WORDS[word][0].capitalize()}") < markdown.index("**dpo** against sft")
    assert f"<title>{WORDS[word][0]}: " in html


def test_every_check_is_shown_in_points_and_per_cent(shown: Report, tmp_path: Path) -> None:
    verdict_page.write(example_report.verdict("reject"), shown, tmp_path)
    html, markdown = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    text = markdown.replace("\u00a0", " ")
    assert (
        "| Rule score 规则得分 (primary) | failed 未通过 | +18.8 points | +10.0 to +27.0 | +2.0 | 80 | – | paired, "
        "cluster bootstrap |" in text
    )
    assert "(guard) | passed 通过 | −0.3 % | −0.6 % to −0.1 % | −5.0 % |" in text
    checks = html[html.index('<table class="checks">') : html.index("</table>")]
    assert checks.count('<svg class="strip') == 2 and "(40)" in checks and 'class="strip fail"' in checks
    assert "a sentence of its own" in html and html.count("rule_score improves by") == 0, "the table says it"


class Richer(Check):
    """A check of a later gate."""

    unit: str
    needed_n: int | None
    mde: float
    p: float | None
    against: str
    later: int = 7


class RicherVerdict(BaseModel):
    """A verdict of a later gate."""

    verdict: str = "inconclusive"
    candidate: str = "dpo"
    against: str = "champion 1a2b"
    policy: str = "p"
    reasons: list[str] = ["critical case <b>7</b> regressed"]
    vetoes: list[str] = ["critical case <b>7</b> regressed"]
    warnings: list[str] = ["looked at 12 times"]
    looks: int = 12
    checks: list[Richer]
    unknown: dict[str, int] = {"x": 1}


def test_a_verdict_may_hold_more_than_a_page_knows_of(shown: Report, tmp_path: Path) -> None:
    base = example_report.verdict("inconclusive").checks[0]
    rich = {"unit": "points", "needed_n": 412, "mde": 0.09, "p": 0.031, "against": "anchor"}
    check = Richer(**{**base.model_dump(), **rich})
    verdict_page.write(RicherVerdict(checks=[check]), shown, tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "412" in html and "; p 0.031" in html and "looked at 12 times" in html
    assert "anchor" in html[html.index('<table class="checks">') : html.index("</table>")], (
        "not the verdict's own rival"
    )
    assert re.search(r"veto.*critical case &lt;b&gt;7", html), "a name in a reason is text"


def test_a_verdict_without_evidence_is_a_verdict(shown: Report, tmp_path: Path) -> None:
    found = Decision.of(Verdict(verdict="invalid", reasons=["r"], policy="p", report="q", candidate="c", against="a"))
    assert (found.verdict, found.checks, found.warnings) == ("invalid", [], [])
    with pytest.raises(ValueError, match="verdict"):
        Decision.of(RicherVerdict(verdict="perhaps", checks=[]))


def test_a_report_alone_has_no_verdict(shown: Report, tmp_path: Path) -> None:
    report.write(shown, tmp_path)
    assert 'class="card gate' not in (tmp_path / "report.html").read_text(encoding="utf-8")
