"""Each check of ``prefline doctor`` says ok on a sound place, and names what is wrong, with its way out, where a fault was planted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from minimal import ROOT

from flows.commands import doctor

pytestmark = pytest.mark.flow


def asked(*words: str, **variables: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code and checks of the command in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "WANDB_"))}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "doctor", "--json", *words],
        cwd=ROOT,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode in (0, 1), done.stderr
    checks = json.loads(done.stdout)
    asked = [check for check in checks if check["name"] == "keys" and ": " in check["found"]]
    for check in asked:
        check["name"] = f"keys {check['found'].partition(':')[0]}"
    return done.returncode, {check["name"]: check for check in checks}


def test_a_sound_place_is_ok(tmp_path: Path) -> None:
    code, checks = asked(f"store={tmp_path / 'store'}", OMP_NUM_THREADS="1", PREFECT_HOME=str(tmp_path / "prefect"))
    unseen = Path("/proc/driver/nvidia/version").exists() and not torch.cuda.is_available()
    failed = {name for name, one in checks.items() if one["state"] == "fail"}
    assert (code, failed) == ((1, {"device"}) if unseen else (0, set()))
    names = "Python packages device threads memory configuration store disk keys tracking Prefect"
    assert list(checks) == names.split()
    assert checks["tracking"]["found"] == "offline (auto)"
    assert not [path for path in (tmp_path / "store").rglob("*") if path.name.startswith("doctor")], "it leaves nothing"


def test_what_is_wrong_is_named_with_its_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    recipe = tmp_path / "http.yaml"
    teacher = {"kind": "http", "name": "big", "endpoint": "vendor", "base_url": "https://127.0.0.1:9/v1", "model": "m"}
    prompts = [{"name": "train", "path": "data/seed/task/prompts_train.jsonl"}]
    judge = {**teacher, "name": "judge", "api_key_env": "JUDGE_KEY"}
    asking = {"prompts": prompts, "teachers": [{**teacher, "api_key_env": "BIG_KEY"}]}
    recipe.write_text(json.dumps({"generate": asking, "pairs": {"judge": {"teacher": judge}}}))
    words = ("--recipe", str(recipe), f"store={tmp_path / 'file' / 'store'}")
    code, checks = asked(
        *words, OMP_NUM_THREADS="64", OMP_WAIT_POLICY="active", PREFECT_API_URL="http://127.0.0.1:9/api", WANDB_API_KEY="secret-w"
    )  # fmt: skip
    assert code == 1
    assert {name for name, one in checks.items() if one["state"] == "fail"} == {
        "store",
        "keys big",
        "keys judge",
        "Prefect",
    }
    assert checks["threads"]["state"] == "warn"
    assert checks["threads"]["fix"] == f"set OMP_NUM_THREADS={len(os.sched_getaffinity(0))}"
    assert "BIG_KEY is not set" in checks["keys big"]["found"]
    assert checks["Prefect"]["found"].startswith("http://127.0.0.1:9/api does not answer")
    assert all(one["fix"] for one in checks.values() if one["state"] != "ok")
    _, checks = asked(*words, BIG_KEY="secret-k", WANDB_API_KEY="secret-w")
    states = [checks[name]["state"] for name in ("keys big", "keys judge")]
    assert (states, checks["tracking"]["found"]) == (["ok", "fail"], "online (auto)")
    assert "secret" not in json.dumps(checks), "a key is never printed"


def test_a_wrong_configuration_is_one_line_among_the_others() -> None:
    code, checks = asked("dpo.beta=wrong")
    assert code == 1
    assert "dpo.beta" in checks["configuration"]["found"]
    assert "store" not in checks and checks["Python"]["state"] == "ok"


def test_packages_are_held_against_what_is_needed_and_pinned(tmp_path: Path) -> None:
    def project(*needed: str, pinned: str) -> doctor.Check:
        listed = ", ".join(f'"{one}"' for one in needed)
        (tmp_path / "pyproject.toml").write_text(f"[project]\ndependencies = [{listed}]\n", encoding="utf-8")
        (tmp_path / "constraints.txt").write_text(f"# pins\n{pinned}\n", encoding="utf-8")
        return doctor.of_packages(tmp_path)

    rich = version("rich")
    assert project("rich>=1", pinned=f"rich=={rich}").state == "ok"
    other = project("rich>=1", pinned="rich==0.1")
    assert (other.state, other.found) == ("warn", f"not as tested: rich {rich} (pinned 0.1)")
    wrong = project("rich>=999", pinned=f"rich=={rich}")
    assert (wrong.state, wrong.found) == ("fail", f"rich {rich} (needs >=999)")
    missing = project("no-such-package-anywhere", pinned="rich==0.1")
    assert missing.state == "fail" and "no-such-package-anywhere is missing" in missing.found
    assert doctor.of_packages(tmp_path / "elsewhere").state == "warn"


def test_a_full_disk_fails_and_a_small_one_warns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flows.line import AlignConfig

    config = AlignConfig(store=str(tmp_path))
    monkeypatch.setattr(doctor, "NO_DISK", 1 << 60)
    assert doctor.of_disk(config).state == "fail"
    monkeypatch.setattr(doctor, "NO_DISK", 0)
    monkeypatch.setattr(doctor, "LITTLE_DISK", 1 << 60)
    found = doctor.of_disk(config)
    assert found.state == "warn" and re.search(r"^\d+\.\d GiB free", found.found)
