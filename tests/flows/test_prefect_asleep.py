"""``prefline run`` without a server, or with one that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from minimal import ROOT, Line, line_recipe, line_steps

pytestmark = pytest.mark.flow

URL = "http://127.0.0.1:1/api"  # nobody listens on port 1


def python(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_nothing_to_do_is_answered_from_the_store_and_no_server_wakes(minimal_line: Line, tmp_path: Path) -> None:
    line = minimal_line.copy(tmp_path / "line")
    home = tmp_path / "prefect"
    done = python("-X", "importtime", "-m", "flows.cli", "run", "--recipe", str(line.recipe), PREFECT_HOME=str(home))
    assert done.returncode == 0 and done.stdout.count("Cached") == len(line_steps()), done.stderr
    assert "report:" in done.stdout and "verdict:" in done.stdout
    imported = {
        words[-1].strip() for words in (line.split("|") for line in done.stderr.splitlines()) if len(words) == 3
    }
    assert {"flows.line", "pydantic"} <= imported
    heavy = {
        "prefect.server",
        "sqlalchemy",
        "torch",
        "transformers",
        "datasets",
        "trl",
        "matplotlib",
        "numpy",
        "pyarrow",
    }
    assert heavy & imported == set(), "what makes a run slow in which nothing is to be done"
    assert not (home / "prefect.db").exists(), "a server would have made its database"


@pytest.mark.parametrize(
    "place", ["nowhere", "environment", ".env", "prefect.toml", "pyproject.toml", "profile", "empty"]
)
def test_every_place_of_prefects_settings_counts(place: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    texts = {
        ".env": f"PREFECT_API_URL={URL}\n",
        "prefect.toml": f'[api]\nurl = "{URL}"\n',
        "pyproject.toml": f'[tool.prefect.api]\nurl = "{URL}"\n',
    }
    if place in texts:
        (tmp_path / place).write_text(texts[place])
    if place == "profile":
        (home / "profiles.toml").write_text(f'active = "us"\n[profiles.us]\nPREFECT_API_URL = "{URL}"\n')
    given = {"environment": {"PREFECT_API_URL": URL}, "empty": {"PREFECT_API_URL": ""}}.get(place, {})
    code = (
        "import os\n"
        f"os.environ.pop('PREFECT_API_URL') if {not given} else None\n"
        "from flows.commands.run import server_configured\nprint(server_configured())"
    )
    done = python("-c", code, cwd=tmp_path, PREFECT_HOME=str(home), **given)
    assert done.stdout.strip() == str(place not in ("nowhere", "empty")), done.stderr


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"PREFECT_API_URL": URL}, f"Prefect's server ({URL}) does not answer: got Failed to reach API"),
        ({"PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}, "Prefect has no server: got no PREFECT_API_URL, because"),
    ],
)
def test_no_server_to_talk_to_is_said_in_one_message(environment: dict[str, str], said: str, tmp_path: Path) -> None:
    line_recipe(tmp_path)
    recipe = Line(tmp_path).recipe
    words = ("-m", "flows.cli", "run", "--until", "generate", "--recipe", str(recipe))
    done = python(*words, PREFECT_HOME=str(tmp_path / "home"), **environment)
    text = " ".join(done.stderr.split())
    assert done.returncode == 1 and said in text and "Traceback" not in text, done.stderr
    assert "because" in text and "prefline step NAME --upstream" in text
    assert not list((tmp_path / "store").glob("generate/*")), "nothing was started"
