"""The report in headless Chromium: no request leaves it, both languages and themes can be read, samples are filtered."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import example_report
import pytest

from steps.lib import verdict_page

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


LOOK = """() => {
  const all = (selector) => [...document.querySelectorAll(selector)], box = (e) => e.getBoundingClientRect();
  return {
    wide: document.documentElement.scrollWidth,
    boxes: all("svg[role=img]").map(box).map((b) => [b.width, b.height]),
    outside: all("main *").filter((e) => !e.closest("svg") && !e.closest(".wide") && box(e).right > innerWidth + 1)
      .map((e) => e.tagName + "." + e.className),
    gate: box(document.querySelector(".gate")).top + scrollY,
    tile: box(document.querySelector(".tile")).top + scrollY,
    heads: all("h2 .en, h2 .zh").filter((e) => e.offsetWidth).map((e) => e.className),
  };
}"""


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
    shown = example_report.report(example_report.items())
    same = shown.samples[1].model_copy(
        update={"id": "p9", "outputs": dict.fromkeys(example_report.CHAIN, "the same Answer"), "rules": {}}
    )
    verdict_page.write(example_report.verdict(), shown.model_copy(update={"samples": [*shown.samples, same]}), folder)
    return folder / "report.html"


class Opened:
    """The page in a browser of one language and theme, with all that it asked for and complained of."""

    def __init__(self, browser: Any, path: Path, width: int = 1400, **settings: Any) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 1100}, **settings)
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(path.as_uri(), wait_until="load")

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *_: object) -> None:
        self.page.close()


@pytest.mark.parametrize("width", [1400, 420])
def test_page(browser: Any, page_path: Path, width: int) -> None:
    opened = Opened(browser, page_path, width)
    with opened as page:
        for language, theme in itertools.product(("en", "zh", ""), ("light", "dark")):
            page.click(f'button[data-set-lang="{language}"]')
            page.click(f'button[data-set-theme="{theme}"]')
            found = page.evaluate(LOOK)
            assert found["wide"] <= width and found["outside"] == [], (language, theme, found["outside"])
            assert len(found["boxes"]) == 12 and all(wide > 300 and high > 100 for wide, high in found["boxes"])
            assert found["gate"] < 300 and found["gate"] < found["tile"] and (width == 420 or found["tile"] < 1100)
            assert set(found["heads"]) == ({language} if language else {"en", "zh"})
        assert opened.requests == [page_path.as_uri()] and opened.problems == []


def test_text_can_be_read_on_its_ground(browser: Any, page_path: Path) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1, of every text that stands by itself, in both themes."""
    measure = """() => {
      const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
      const rgb = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                                return [...canvas.getImageData(0, 0, 1, 1).data]; };
      const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
        .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
      const ground = (e) => { for (let at = e; at; at = at.parentElement) { const c = rgb(getComputedStyle(at).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255]; };
      const bad = [];
      for (const e of document.querySelectorAll("main *")) {
        if (!e.offsetWidth && !e.closest("svg[role=img]")) continue;
        if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
        if (e.tagName === "STYLE" || e.tagName === "OPTION") continue;
        const style = getComputedStyle(e), svg = e.closest("svg");
        const one = light(rgb(svg ? style.fill : style.color)), other = light(ground(svg ? svg.parentElement : e));
        const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        if (ratio < 4.5) bad.push([ratio.toFixed(2), e.tagName, e.className.baseVal ?? e.className, e.textContent.slice(0, 30)]);
      }
      return bad;
    }"""
    for theme in ("light", "dark"):
        with Opened(browser, page_path) as page:
            page.click(f'button[data-set-theme="{theme}"]')
            assert page.evaluate(measure) == [], theme


def test_the_page_follows_its_reader(browser: Any, page_path: Path) -> None:
    """Language and theme of the browser, until the reader chooses."""
    with Opened(browser, page_path, locale="zh-CN", color_scheme="dark") as page:
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 25, 31)"
        assert page.evaluate("getComputedStyle(document.querySelector('svg text')).fill") != "rgb(31, 41, 51)"
        page.click('button[data-set-theme="light"]')
        page.click('button[data-set-lang="en"]')
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("document.documentElement.lang") == "en"
        assert page.get_attribute('button[data-set-lang="en"]', "aria-pressed") == "true"
        page.emulate_media(media="print")
        assert not page.is_visible(".bar") and not page.is_visible(".filter")


def test_samples_are_filtered(browser: Any, page_path: Path) -> None:
    with Opened(browser, page_path) as page:

        def shown() -> list[str]:
            found: list[str] = page.evaluate(
                "[...document.querySelectorAll('.sample')].filter(e => e.offsetHeight).map(e => e.dataset.id)"
            )
            assert page.inner_text(".filter output") == f"{len(found)} / 3"
            return found

        assert shown() == ["p7", "p8", "p9"]
        page.select_option("select[name=language]", "zh")
        assert shown() == ["p7"]
        page.select_option("select[name=language]", "")
        page.check("input[name=differs]")
        assert shown() == ["p7", "p8"], "four equal answers"
        page.check("input[name=broken]")
        for model in ("base", "pretrained", "sft"):
            page.uncheck(f"input[name=model][value={model}]")
        assert shown() == [], "one model cannot differ"
        page.uncheck("input[name=differs]")
        assert shown() == [], "dpo broke no rule"
        page.uncheck("input[name=broken]")
        assert page.locator(".sample >> nth=0").locator(".answers > div:visible").count() == 1
        page.fill("input[name=words]", "  SAME   ａnswer ")
        assert shown() == ["p9"], "case, width and spaces do not count"
        page.fill("input[name=words]", "保温杯")
        assert shown() == ["p7"]
        page.fill("input[name=words]", "nothing has this")
        assert shown() == []


def test_without_script_all_is_there(browser: Any, page_path: Path) -> None:
    with Opened(browser, page_path, java_script_enabled=False) as page:
        assert page.is_visible("h2 .en >> nth=0") and page.is_visible("h2 .zh >> nth=0")
        assert page.locator(".sample:visible").count() == 3
        assert not page.is_visible(".bar") and not page.is_visible(".filter"), "what would do nothing is not shown"


def test_no_other_script_runs(browser: Any, page_path: Path, tmp_path: Path) -> None:
    """Were an answer ever written without escaping, the page's own policy would stop it."""
    evil = page_path.read_text(encoding="utf-8").replace(
        "<nav", "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\"><nav", 1
    )
    path = tmp_path / "report.html"
    path.write_text(evil, encoding="utf-8")
    opened = Opened(browser, path)
    with opened as page:
        assert "taken" not in page.title() and page.locator("output").inner_text() == "3 / 3", "its own script runs"
        assert any("Content Security Policy" in problem for problem in opened.problems)


def test_chinese_has_glyphs(browser: Any, page_path: Path) -> None:
    """The font that draws Chinese is a CJK font, in the page and inside the plots."""
    with Opened(browser, page_path, locale="zh-CN") as page:
        page.evaluate(
            "[...document.querySelectorAll('svg text')].find(t => /[\\u4e00-\\u9fff]/.test(t.textContent)).id = 'chinese'"
        )
        session = page.context.new_cdp_session(page)
        session.send("DOM.enable")
        session.send("CSS.enable")
        root = session.send("DOM.getDocument")["root"]["nodeId"]
        for selector in (".stage p.zh", "#chinese"):
            node = session.send("DOM.querySelector", {"nodeId": root, "selector": selector})["nodeId"]
            fonts = [
                font["familyName"] for font in session.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]
            ]
            if not any("CJK" in font or "Hei" in font or "Han" in font or "PingFang" in font for font in fonts):
                pytest.fail(f"{selector}: Chinese is drawn with {fonts}; install a CJK font (fonts-noto-cjk)")
