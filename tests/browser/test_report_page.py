"""The report in headless Chromium: no request leaves the page, both scripts render, nothing scrolls sideways."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import example_report
import pytest

from steps.lib import report

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("chromium is not installed: apt-get install chromium fonts-noto-cjk")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report.write(example_report.report(example_report.items()), folder)
    return folder / "report.html"


@pytest.mark.parametrize("width", [1400, 420])
def test_page(browser: Any, page_path: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 1100})
    requests: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(page_path.as_uri(), wait_until="load")
    assert requests == [page_path.as_uri()] and problems == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.evaluate(
        "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect()).map(b => [b.width, b.height])"
    )
    assert len(boxes) == 12 and all(wide > 300 and high > 100 for wide, high in boxes)
    outside = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => !e.closest('svg') && "
        "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className)"
    )
    assert outside == []
    first = page.evaluate("document.querySelector('.tile').getBoundingClientRect().top")
    assert first < (1100 if width == 1400 else 2000)
    page.close()


def test_chinese_has_glyphs(browser: Any, page_path: Path) -> None:
    """The font that draws Chinese is a CJK font, in the page and inside the plots."""
    page = browser.new_page()
    page.goto(page_path.as_uri(), wait_until="load")
    page.evaluate(
        "[...document.querySelectorAll('svg text')].find(t => /[\\u4e00-\\u9fff]/.test(t.textContent)).id = 'chinese'"
    )
    session = page.context.new_cdp_session(page)
    session.send("DOM.enable")
    session.send("CSS.enable")
    root = session.send("DOM.getDocument")["root"]["nodeId"]
    for selector in (".stage p.zh", "#chinese"):
        node = session.send("DOM.querySelector", {"nodeId": root, "selector": selector})["nodeId"]
        fonts = [font["familyName"] for font in session.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]]
        if not any("CJK" in font or "Hei" in font or "Han" in font or "PingFang" in font for font in fonts):
            pytest.fail(f"{selector}: Chinese is drawn with {fonts}; install a CJK font (fonts-noto-cjk)")
    page.close()
