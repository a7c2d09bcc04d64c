"""The loop on cpu-tiny with nobody at the keyboard: a new wish is learnt, a poisoned batch is not, and a rollback brings v1 back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import poison
import pytest
import warranty
from minimal import ROOT, Line
from prefect_server import until
from up import Up, free_port, started, stopped

from steps.lib.case_store import CaseStore
from steps.lib.digests import digest_file
from steps.lib.registry import Registry

pytestmark = [pytest.mark.flow, pytest.mark.long]
MODEL, TOKEN = "after-sales", "a token of the desk"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loop")


@pytest.fixture(scope="module")
def up(folder: Path) -> Iterator[Up]:
    recipe = folder / "minimal.yaml"  # cpu-tiny as it is, elsewhere
    values = {"store": str(folder / "store"), "promote": {"registry": str(folder / "registry")}, "tracking": {"mode": "disabled"},
              "retrain": {"feedback": str(folder / "cases.sqlite"), "folder": str(folder / "retrain"), "watch_minutes": 1, "threshold": 20}}  # fmt: skip
    recipe.write_text(json.dumps(values))
    one = started(Line(folder), folder / "home", "--active")
    yield one
    stopped(one)


@pytest.fixture
def door(folder: Path) -> Iterator[str]:
    port = free_port()
    argv = [
        sys.executable,
        "-m",
        "flows.cli",
        "badcases",
        "serve",
        "--port",
        str(port),
        "--store",
        str(folder / "cases.sqlite"),
    ]
    process = subprocess.Popen(
        argv, cwd=ROOT, env={**os.environ, "PREFLINE_BADCASES_TOKEN": TOKEN}, stdout=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{address}/healthz").is_success
        except httpx.TransportError:
            return False

    until(answers, 60, "the door")
    yield address
    process.terminate()
    process.wait()


def turn_of(up: Up, folder: Path, number: int) -> dict[str, object]:
    """The result of a run of the loop that nobody started; its artifacts say the verdict first."""
    path = folder / "retrain" / f"retrain-{number:04d}" / "result.json"
    until(path.exists, 600, f"retraining {number}")
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return found


def content(folder: Path) -> dict[str, str]:
    """File -> digest."""
    return {str(path.relative_to(folder)): digest_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_loop_turns_by_itself(up: Up, folder: Path, door: str) -> None:
    run = up.run("align/align", "Completed", seconds=900)
    assert run["name"] == "align-cpu-tiny-aftersales"
    registry = Registry(folder / "registry")
    first = registry.resolve(MODEL, "champion")
    before = content(first.folder)
    # A new wish: half of its bad cases come over HTTP, half from a file.
    cases = warranty.events()
    answer = httpx.post(f"{door}/badcases", json=cases[:30], headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
    assert answer.json()["new"] == 30
    rest = folder / "rest.jsonl"
    rest.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in cases[30:]), encoding="utf-8")
    words = ["badcases", "add", str(rest), "--store", str(folder / "cases.sqlite")]
    subprocess.run([sys.executable, "-m", "flows.cli", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    result = turn_of(up, folder, 1)
    assert result["promoted"] and result["verdict"] == "promote", result
    second = registry.resolve(MODEL, "champion")
    assert second.name != first.name
    with CaseStore.open(str(folder / "cases.sqlite")) as store:
        told = {one["case_id"]: one["outcome"] for one in store.outcomes() if one["case_id"].startswith("warranty")}
        assert len(told) == 60, "no case is lost, and none used twice"
        held = [name for name, one in told.items() if one in ("fixed", "still_failing", "still_passes", "regressed")]
        fixed = [name for name in held if told[name] == "fixed"]
        assert len(held) >= 10 and len(fixed) >= 0.8 * len(held), told
        assert sum(told[name] == "still_passes" for name in held) < 0.2 * len(held), "v1 did not know them"
        assert {store.show(name)[0].state for name in fixed} == {"fixed"}
        # One user's wrong corrections: past his limit they are not used, and what is left convinces no gate.
        assert store.ingest(poison.events(), source="desk").new == 40
        result = turn_of(up, folder, 2)
        assert not result["promoted"], result
        told = {one["case_id"]: one["outcome"] for one in store.outcomes(run="retrain-0002")}
        used = [name for name, one in told.items() if one == "trained_on" and name.startswith("poison")]
        assert len([name for name in told if name.startswith("poison")]) == 40 and len(used) <= 5
        assert registry.resolve(MODEL, "champion").name == second.name
        # The same from many users, so that no limit of a user holds: the gate alone keeps it out.
        more = [
            {**one, "case_id": f"more-{n}", "event_id": f"more-{n}"}
            for n, one in enumerate(poison.events(60, users=60))
        ]
        assert store.ingest(more, source="desk").new == 60
        result = turn_of(up, folder, 3)
        assert not result["promoted"] and result["verdict"] != "promote", result
        assert registry.resolve(MODEL, "champion").name == second.name
        claims = store.claims()
        assert [one.done for one in claims] == [True] * 3 and all(
            a.last == b.first for a, b in zip(claims, claims[1:], strict=False)
        )
    back = ["models", "rollback", f"promote.registry={folder / 'registry'}", "--reason", "the drill", "--name", MODEL]
    subprocess.run([sys.executable, "-m", "flows.cli", *back], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    served = registry.resolve(MODEL, "champion")
    assert served.name == first.name and content(served.folder) == before, "v1, byte for byte"
