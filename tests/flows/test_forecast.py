"""What a run would take: scaled from what the same steps took before, and not known where nothing tells it."""

from __future__ import annotations

import json
import platform
import shutil
from typing import Any

import pytest
from minimal import Line

from flows import forecast
from flows.commands.plan import look_ahead
from flows.engine import Engine, Plan
from flows.line import AlignConfig
from flows.plan import planned
from flows.present import plan_table
from steps.lib.artifact import Artifact
from steps.lib.stores import open_store

pytestmark = pytest.mark.flow


@pytest.fixture
def line(minimal_line: Line, tmp_path: Any) -> Line:
    return minimal_line.copy(tmp_path / "line")


def coming(config: AlignConfig, plan: Plan = Plan()) -> dict[str, forecast.Expected]:  # noqa: B008
    store = open_store(config.store, config.cache)
    return forecast.forecast(planned(config, plan, store), plan, store)


def built(line: Line, step: str) -> Artifact:
    [folder] = (line.folder / "store" / step).glob("[!.]*")
    return Artifact.read(folder)


def page(config: AlignConfig, capsys: pytest.CaptureFixture[str], plan: Plan = Plan()) -> tuple[int, Any]:  # noqa: B008
    capsys.readouterr()
    code = look_ahead(config, plan, json=True)
    return code, json.loads(capsys.readouterr().out)


def test_where_all_is_there_nothing_is_built(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = page(line.config(), capsys)
    assert (code, found["builds"], found["total"]["seconds"]) == (0, [], 0)
    assert all(step["would_be"] == "Cached" and step["expected"] is None for step in found["steps"])
    code, found = page(line.config(), capsys, Plan.of(force=["sft"]))
    assert (code, found["builds"]) == (10, ["sft"])


def test_one_override_says_what_changed_and_what_it_takes(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice the updates are twice the time of training, and what comes before and after it stays."""
    then = built(line, "dpo").manifest
    code, found = page(line.config("dpo.train.max_updates=12"), capsys)
    assert (code, found["builds"]) == (10, ["dpo", "evaluate", "promote"])
    dpo = next(step for step in found["steps"] if step["step"] == "dpo")
    assert dpo["note"].startswith("dpo.train.max_updates 6 -> 12")
    expected, training = dpo["expected"], then["metrics"]["train_seconds"]
    assert expected["seconds"] == pytest.approx(then["seconds"] + training)
    assert (expected["rows"], expected["tokens"]) == (sum(then["rows"]["out"].values()), then["tokens"])
    assert expected["memory"] == then["memory"]["host"] > 1 << 26
    assert expected["disk"] == built(line, "dpo").size
    steps = [step["expected"] for step in found["steps"] if step["expected"]]
    assert found["total"]["seconds"] == pytest.approx(sum(one["seconds"] for one in steps))
    assert found["total"]["memory"] == max(one["memory"] for one in steps)
    assert found["total"]["unknown"] == []


def test_a_step_that_waits_is_measured_by_its_own_settings(line: Line) -> None:
    then = built(line, "dpo").manifest
    one = coming(line.config("sft.train.max_updates=20", "dpo.train.max_updates=12"))["dpo"]
    assert one.seconds == pytest.approx(then["seconds"] + then["metrics"]["train_seconds"])
    assert "may be Cached" in one.basis and "2x its training" in one.basis


def test_other_sizes_make_the_memory_unknown(line: Line) -> None:
    for word, name in (
        ("dpo.train.batch_size=4", "batch_size"),
        ("dpo.train.gradient_checkpointing=true", "gradient_checkpointing"),
    ):
        one = coming(line.config(word))["dpo"]
        assert one.memory is None and one.seconds is not None
        assert f"memory not known: {name} differs" in one.basis


def test_rows_that_come_in_scale_the_rest(line: Line) -> None:
    """clean is built again with half of the domain's rows: base, which reads it, has a known key then."""
    before, base = built(line, "clean"), built(line, "base").manifest
    config = line.config("clean.mix={domain: {weights: {domain-train: 1}, rows: 10}}")
    Engine(config, Plan(until="clean")).run()
    [after] = [one for one in open_store(config.store, config.cache).manifests("clean") if one.key != before.key]
    then, now = (sum(one.manifest["rows"]["out"].values()) for one in (before, after))
    assert now < then
    expected = coming(config)["base"]
    assert expected.rows == round(sum(base["rows"]["out"].values()) * now / then)
    assert expected.tokens == round(base["tokens"] * now / then)
    assert expected.seconds == pytest.approx(base["seconds"]), "as many updates as before: max_updates says so"
    assert "x its rows" in expected.basis


def test_what_was_never_built_is_not_known(line: Line) -> None:
    shutil.rmtree(line.folder / "store" / "sft")
    found = coming(line.config())
    assert found["sft"].seconds is None and found["sft"].basis == "no sft was built in this store before"
    assert found["evaluate"].seconds is not None
    whole = forecast.total(list(found.values()))
    assert whole.unknown == ("sft",) and forecast.unknown(whole.unknown) == "without sft"
    shown = plan_table(list(found.values()))
    assert "| sft | ? | ? |" in shown and shown.splitlines()[-1].endswith("| without sft |")


def test_figures_of_another_machine_are_marked(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "elsewhere")
    host = built(line, "dpo").manifest["host"]
    assert f"on {host}, another machine" in coming(line.config("dpo.beta=0.3"))["dpo"].basis


@pytest.mark.long
def test_estimates_hold_on_cpu_tiny(tmp_path: Any) -> None:
    """The line once; then plan and run of three overrides: time within 2x, memory within 25 %, of every step that trains."""
    from looking import prefline

    own = [f"store={tmp_path / 'store'}", f"promote.registry={tmp_path / 'registry'}"]
    assert prefline("run", *own, timeout=1500).returncode == 0
    for words in (["dpo.train.epochs=3"], ["sft.train.epochs=4.5"]):
        planned_now = json.loads(prefline("plan", *own, *words, "--json").stdout)
        assert prefline("run", *own, *words, timeout=1500).returncode == 0
        status = json.loads(prefline("status", *own, *words, "--json").stdout)
        keys = {step["step"]: step["key"] for step in status["steps"]}
        for step in planned_now["steps"]:
            if step["expected"] is None:
                continue
            facts = Artifact.read(tmp_path / "store" / keys[step["step"]]).manifest
            told = step["expected"]
            assert 0.5 < told["seconds"] / facts["seconds"] < 2, (words, step)
            assert 0.75 < told["memory"] / facts["memory"]["host"] < 1.25, (words, step)
