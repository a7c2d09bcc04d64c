"""Prefect's pages as a person uses them: the form, a run to its end, Cached, a wrong value, cancelling in mid-training."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minimal import Line
from prefect_server import until
from up import Up, started, stopped

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
pytestmark = [pytest.mark.browser, pytest.mark.flow, pytest.mark.long]
STEPS = ("generate", "clean", "base", "pretrain", "sft", "pairs", "reference", "dpo", "evaluate", "promote")


@pytest.fixture(scope="module")
def up(minimal_line: Line, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    if not CHROMIUM:
        pytest.skip("chromium is not installed: apt-get install chromium fonts-noto-cjk")
    line = minimal_line.copy(tmp_path_factory.mktemp("pages") / "line")
    for name in ("store", "registry"):  # everything is to be built once
        shutil.rmtree(line.folder / name)
    one = started(line, line.folder / "home")
    yield one
    stopped(one)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=CHROMIUM,
            args=ARGUMENTS,
            viewport={"width": 1400, "height": 1100},
        )
        yield opened.new_page()
        opened.close()


def address(up: Up, path: str) -> str:
    return up.api.url.removesuffix("/api") + path


def submit(page: Any, up: Up, *overrides: str) -> str:
    """Fill the form of align and send it; the run's id."""
    one = up.deployment("align/align")["id"]
    page.goto(address(up, f"/v2/deployments/deployment/{one}/run"), wait_until="load")
    page.get_by_role("button", name="Submit").wait_for(timeout=60_000)
    page.locator(f"textarea:has-text('{up.line.recipe}')").first.wait_for(timeout=60_000)  # the defaults are there
    for number, text in enumerate(overrides):
        page.get_by_role("button", name="Add item").first.click()
        page.get_by_role("textbox").nth(1 + number).fill(text)
    with page.expect_response(lambda answer: answer.url.endswith("/create_flow_run")) as got:
        page.get_by_role("button", name="Submit").click()
    assert got.value.ok, got.value.text()
    made = got.value.json()
    assert made["parameters"]["overrides"] == list(overrides)
    return str(made["id"])


def test_a_run_from_the_form_and_another_that_is_cached(page: Any, up: Up) -> None:
    run = submit(page, up)
    up.api.wait(run, "Completed", seconds=240)
    page.goto(address(up, f"/v2/runs/flow-run/{run}?tab=Artifacts"), wait_until="load")
    for key in ("align-report", "configuration", "sft-plot", "promote-table"):
        page.get_by_text(key, exact=True).first.wait_for(timeout=60_000)
    report = up.api.artifacts(run)["align-report"]["id"]
    page.goto(address(up, f"/v2/artifacts/artifact/{report}"), wait_until="load")
    page.get_by_role("heading", name="Verdict").first.wait_for(timeout=60_000)
    again = submit(page, up)
    up.api.wait(again, "Completed")
    until(
        lambda: (
            {name: run["state_name"] for name, run in up.api.task_runs(again).items() if name in STEPS}
            == dict.fromkeys(STEPS, "Cached")
        ),
        30,
        "ten steps that are Cached",
    )
    page.goto(address(up, f"/v2/runs/flow-run/{again}?tab=TaskRuns"), wait_until="load")
    page.get_by_text("Cached", exact=True).first.wait_for(timeout=60_000)
    assert page.get_by_text("Cached", exact=True).count() >= 5, "as many as the first page of the list shows"


def test_a_wrong_value_is_told_on_the_page_of_the_run(page: Any, up: Up) -> None:
    run = submit(page, up, "dpo.betta=0.1")
    up.api.wait(run, "Failed")
    page.goto(address(up, f"/v2/runs/flow-run/{run}?tab=Details"), wait_until="load")
    page.get_by_text("dpo.betta").first.wait_for(timeout=60_000)


def test_cancelled_in_mid_training_from_the_page_and_started_again(page: Any, up: Up) -> None:
    words = ("dpo.train.max_updates=400", "dpo.train.epochs=900", "dpo.train.save_every=100000")
    run = submit(page, up, *words)
    until(lambda: any("dpo: update 15/" in text for text in up.api.log(run)), 200, "a training")
    shown = until(lambda: up.api.artifacts(run).get("dpo-progress"), 60, "how far it is")
    assert shown["type"] == "progress" and " of 400 updates" in shown["description"]
    page.goto(address(up, f"/v2/runs/flow-run/{run}"), wait_until="load")
    page.get_by_role("button", name="Open menu").first.wait_for(timeout=60_000)
    page.get_by_role("button", name="Open menu").first.click()
    page.get_by_role("menuitem", name="Cancel").click()
    page.locator("[role=dialog], [role=alertdialog]").get_by_role("button", name="Cancel Flow Run").click()
    up.api.wait(run, "Cancelled")
    again = submit(page, up, *words)
    up.api.wait(again, "Completed", seconds=300)
    updates = [text for text in up.api.log(again) if "dpo: update " in text]
    assert int(updates[0].partition("update ")[2].partition("/")[0]) > 15, "it went on where it was cancelled"
