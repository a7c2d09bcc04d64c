"""The playground in a real browser: two models answer side by side, and what a person says of it is in the store of bad cases."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from minimal import ROOT, Line, turn
from prefect_server import until
from up import free_port

from steps.lib import chat_feedback
from steps.lib.case_events import Event
from steps.lib.case_store import CaseStore
from steps.lib.conversation import Speaker
from steps.lib.errors import DataError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AT = datetime(2026, 11, 24, tzinfo=UTC)
pytestmark = pytest.mark.tiny


@dataclass
class Opened:
    page: Any
    store: Path

    def events(self) -> list[dict[str, Any]]:
        with CaseStore.open(str(self.store)) as store:
            return list(store.events())


@pytest.fixture
def opened(minimal_line: Line, tmp_path: Path) -> Iterator[Opened]:
    pytest.importorskip("nicegui", reason="nicegui is not installed: pip install 'prefline[web]'")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if not CHROMIUM:
        pytest.skip("chromium is not installed: apt-get install chromium")
    store, port = tmp_path / "cases.sqlite", free_port()
    words = [
        "chat",
        "sft",
        "dpo",
        "--web",
        "--port",
        str(port),
        "--recipe",
        str(minimal_line.recipe),
        f"retrain.feedback={store}",
    ]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST")
    }  # nicegui looks at it
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *words, "--max-tokens", "12"],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env=environment,
        )

    def answers() -> bool:
        assert server.poll() is None, (tmp_path / "log").read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/").is_success
        except httpx.TransportError:
            return False

    try:
        until(answers, 60, "the page")
        with api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1300, "height": 1000})
            outside: list[str] = []
            page.on("request", lambda one: outside.append(one.url) if "127.0.0.1" not in one.url else None)
            page.goto(f"http://127.0.0.1:{port}/")
            yield Opened(page, store)
            browser.close()
            assert not [url for url in outside if not url.startswith("data:")], "nothing is asked of anybody else"
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.browser
def test_two_models_answer_and_verdicts_are_stored_once(opened: Opened) -> None:
    page = opened.page
    page.get_by_label("System turn").fill("用JSON。")
    page.get_by_label("Your turn").fill("<b>灯</b> is broken?")
    page.get_by_role("button", name="Send").click()
    page.get_by_label("bad").nth(1).wait_for(timeout=30_000)
    assert page.locator(".answer").count() == 2
    page.get_by_text("What the model was shown").first.click()
    page.get_by_text("<b>灯</b> is broken?<|im_end|>").first.wait_for(timeout=10_000)
    bad = page.get_by_label("bad").first
    bad.click()
    page.get_by_text(": stored").first.wait_for(timeout=10_000)
    bad.click()
    page.get_by_text(": there already").first.wait_for(timeout=10_000)
    page.get_by_text("Correct it").nth(1).click()
    page.get_by_label("Better answer").nth(1).fill('{"ok": "no"}')
    page.get_by_role("button", name="Store the correction").nth(0).click()
    until(lambda: len(opened.events()) == 2, 20, "the correction")
    thumb, better = opened.events()
    assert (thumb["signal"]["value"], thumb["model"]["name"]) == (-1, "sft")
    assert (
        better["correction"] == {"author_kind": "human_user", "text": '{"ok": "no"}'}
        and better["model"]["name"] == "dpo"
    )
    for one in (thumb, better):
        assert [turn["role"] for turn in one["request"]["messages"]] == ["system", "user"]
        assert one["model"]["version_digest"] and one["model"]["template_digest"] and one["response"]["text"]


def test_events_of_verdicts_are_of_badcase_v1_and_one_a_verdict(minimal_line: Line) -> None:
    speaker = Speaker.of("dpo", next((minimal_line.folder / "store" / "dpo").glob("[0-9a-f]*")))
    asked = [turn("system", "JSON."), turn("user", "Is 3 fine?")]
    down = chat_feedback.verdict(speaker, asked, "no", False, AT)
    assert Event.model_validate(down).model.version_digest == speaker.digest
    assert chat_feedback.verdict(speaker, asked, "no", False, AT) == down
    up = chat_feedback.verdict(speaker, asked, "no", True, AT)
    assert up["case_id"] == down["case_id"] and up["event_id"] != down["event_id"]
    assert chat_feedback.verdict(speaker, asked, "yes", False, AT)["case_id"] != down["case_id"]
    assert Event.model_validate(chat_feedback.correction(speaker, asked, "no", "yes", AT)).correction
    for words in (" ", "no "):
        with pytest.raises(DataError, match="correction is not stored"):
            chat_feedback.correction(speaker, asked, "no", words, AT)
