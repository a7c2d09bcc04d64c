"""The gate: verdicts, the champion's items, the alias, idempotence."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cuts
import example_report
import pyarrow as pa
import pytest
from minimal import TinyChain
from promoting import TRAINED, artifact, decide, evaluation, improved, policy
from pydantic import ValidationError

from steps import promote
from steps.lib import figures, model_files, models, report_page, version_files
from steps.lib import report as reports
from steps.lib.figures import Item
from steps.lib.gate import Guard, Primary, Verdict
from steps.lib.registry import Registry
from steps.promote import PromoteConfig

pytestmark = pytest.mark.tiny


@pytest.fixture(scope="module", autouse=True)
def trained(chain: TinyChain) -> None:
    TRAINED.append(chain)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are most of the time, are made of report.json alone, and are drawn in test_promote_version.py."""
    monkeypatch.setattr(report_page, "drawings", lambda report: [])


@pytest.fixture
def config(tmp_path: Path) -> PromoteConfig:
    guards = tuple(
        Guard(figure=guard.figure, margin=2 * guard.margin) for guard in PromoteConfig().guards
    )  # few items here
    return PromoteConfig(registry=tmp_path / "registry", guards=guards)


def test_primary_is_one_or_several() -> None:
    one = PromoteConfig.model_validate({"primary": {"figure": "labels"}})
    two = PromoteConfig.model_validate(
        {"primary": [{"figure": "labels"}, {"figure": "rule_score", "min_effect": 0.01}]}
    )
    assert [part.figure for part in one.primaries] == ["labels"]
    assert [(part.figure, part.min_effect) for part in two.primaries] == [("labels", 0.0), ("rule_score", 0.01)]
    with pytest.raises(ValidationError):
        PromoteConfig.model_validate({"primary": []})


def test_the_first_champion_must_beat_sft(config: PromoteConfig, tmp_path: Path) -> None:
    items = example_report.items()
    verdict = decide(config, policy(tmp_path / "p", "one"), evaluation(tmp_path / "r", items, "one"), tmp_path / "out")
    assert verdict.verdict == "promote", verdict.reasons
    assert verdict.against == "sft of the same report"
    champion = Registry(config.registry).champion("after-sales")
    assert champion is not None and champion.facts["policy"] == "one"
    assert champion.facts["base"] == models.Chain.read(tmp_path / "p").base
    held = {path.relative_to(champion.folder).as_posix() for path in champion.folder.rglob("*") if path.is_file()}
    assert held == {
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "chain.json",
        "eval/report.json",
        "eval/items.jsonl.zst",
        "eval/verdict.json",
        "lineage.json",
        "bom.cdx.json",
        "README.md",
        "manifest.json",
    }
    checks = {check.figure: check for check in verdict.checks}
    expected = figures.compare(items, example_report.MEASURES[3], "dpo", "sft", confidence=0.9)
    assert checks["rule_score"].improvement == expected.interval
    assert checks["general_bits_per_byte"].improvement.value < 0  # lower is better, and it rose
    assert (checks["general_bits_per_byte"].unit, checks["rule_score"].unit) == ("%", "points")
    assert verdict.vetoes == [] and verdict.looks == 0
    assert champion.facts["template"] == model_files.template_digest(tmp_path / "base of p")


def test_no_improvement_is_no_promotion(config: PromoteConfig, tmp_path: Path) -> None:
    """dpo = sft on every item: nothing differs, so nothing is shown; the version is registered all the same."""
    items = example_report.items()
    sft = {(item.suite, item.item_id): item.scores for item in items if item.model == "sft"}
    same = [
        item.model_copy(update={"scores": sft[item.suite, item.item_id]}) if item.model == "dpo" else item
        for item in items
    ]
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "report.json").write_text(example_report.report(items).model_dump_json())
    figures.write_items(folder / "items.parquet", same)
    artifact(folder, "evaluate", "r", {"sft": "s", "dpo": "one"})
    verdict = decide(config, policy(tmp_path / "p", "one"), folder, tmp_path / "out")
    assert verdict.verdict == "inconclusive"
    registry = Registry(config.registry)
    assert registry.champion("after-sales") is None and len(registry.versions("after-sales")) == 1


def test_a_loss_is_rejected(config: PromoteConfig, tmp_path: Path) -> None:
    items = improved(example_report.items(), -0.5)
    verdict = decide(config, policy(tmp_path / "p", "one"), evaluation(tmp_path / "r", items, "one"), tmp_path / "out")
    assert verdict.verdict == "reject" and "not above" in verdict.reasons[0]


def test_a_broken_guard_is_rejected(config: PromoteConfig, tmp_path: Path) -> None:
    strict = config.model_copy(update={"guards": (Guard(figure="domain_bits_per_byte", margin=0.2),)})
    items = [
        item.model_copy(update={"scores": {**item.scores, "bits": item.scores["bits"] * 1.1}})
        if item.model == "dpo" and item.suite == "heldout_domain"
        else item
        for item in example_report.items()
    ]
    verdict = decide(strict, policy(tmp_path / "p", "one"), evaluation(tmp_path / "r", items, "one"), tmp_path / "out")
    assert verdict.verdict == "reject"
    assert [check.outcome for check in verdict.checks] == ["pass", "fail"]


def test_min_effect_counts(config: PromoteConfig, tmp_path: Path) -> None:
    greedy = config.model_copy(update={"primary": Primary(min_effect=0.5)})
    verdict = decide(
        greedy, policy(tmp_path / "p", "one"), evaluation(tmp_path / "r", example_report.items(), "one"), tmp_path / "o"
    )
    assert verdict.verdict == "reject"


def test_champion_and_challenger_are_paired(config: PromoteConfig, tmp_path: Path) -> None:
    """A second policy meets the first one as it did in the same run; against sft it would have passed."""
    items = example_report.items()
    decide(config, policy(tmp_path / "p1", "one"), evaluation(tmp_path / "r1", items, "one"), tmp_path / "o1")
    worse = decide(
        config,
        policy(tmp_path / "p2", "two"),
        evaluation(tmp_path / "r2", improved(items, -0.05), "two", champion=("one", items)),
        tmp_path / "o2",
    )
    assert worse.verdict == "reject" and worse.against == "champion one"
    better = decide(
        config,
        policy(tmp_path / "p3", "three"),
        evaluation(tmp_path / "r3", improved(items, 0.05), "three", champion=("one", items)),
        tmp_path / "o3",
    )
    assert better.verdict == "promote", better.reasons
    assert better.checks[0].improvement.value == pytest.approx(0.05) and better.checks[0].against == "champion"
    assert (worse.looks, better.looks) == (1, 2)
    champion = Registry(config.registry).champion("after-sales")
    assert champion is not None and champion.facts["policy"] == "three"


@pytest.mark.parametrize("met", ["nobody", "another"])
def test_a_report_about_another_champion_is_invalid(config: PromoteConfig, tmp_path: Path, met: str) -> None:
    items = example_report.items()
    decide(config, policy(tmp_path / "p1", "one"), evaluation(tmp_path / "r1", items, "one"), tmp_path / "o1")
    champion = {"champion": ("zero", items)} if met == "another" else {}
    report = evaluation(tmp_path / "r2", improved(items, 0.05), "two", **champion)
    verdict = decide(config, policy(tmp_path / "p2", "two"), report, tmp_path / "o2")
    assert verdict.verdict == "invalid" and verdict.checks == []
    said = "zero" if met == "another" else "none"
    assert (
        f"champion of the report is not the registry's: got policy {said} where the registry has one"
        in verdict.reasons[0]
    )


def test_a_champion_that_the_registry_lacks_is_invalid(config: PromoteConfig, tmp_path: Path) -> None:
    items = example_report.items()
    report = evaluation(tmp_path / "r", improved(items, 0.05), "two", champion=("one", items))
    verdict = decide(config, policy(tmp_path / "p", "two"), report, tmp_path / "o")
    assert verdict.verdict == "invalid" and "got policy one where the registry has none" in verdict.reasons[0]


def test_guards_hold_against_the_anchor_too(config: PromoteConfig, tmp_path: Path) -> None:
    """Better than the champion, and within the margin of it; but the anchor is lost, by small steps that were each allowed."""
    strict = config.model_copy(update={"guards": (Guard(figure="format_rate", margin=0.15),)})
    items = example_report.items()
    decide(strict, policy(tmp_path / "p1", "one"), evaluation(tmp_path / "r1", items, "one"), tmp_path / "o1")
    registry = Registry(config.registry)
    first = registry.versions("after-sales")[0]
    registry.promote("after-sales", first.name, expected=None, verdict_digest="", reason="release", alias="anchor")
    champion = (
        policy(tmp_path / "p2", "two"),
        evaluation(tmp_path / "r2", improved(items, 0.05), "two", champion=("one", items)),
    )
    assert decide(strict, *champion, tmp_path / "o2").verdict == "promote"
    formed = {item.item_id for item in items if item.model == "dpo" and item.scores.get("json_strict")}
    lost = set(sorted(formed)[:24])
    worse = [
        item.model_copy(update={"scores": {**item.scores, "json_strict": 0.0}}) if item.item_id in lost else item
        for item in improved(items, 0.05)
    ]
    met = {"champion": ("two", worse), "anchor": ("one", items)}
    report = evaluation(tmp_path / "r3", improved(worse, 0.05), "three", **met)
    verdict = decide(strict, policy(tmp_path / "p3", "three"), report, tmp_path / "o3")
    outcomes = {(check.figure, check.against): check.outcome for check in verdict.checks}
    assert outcomes == {
        ("rule_score", "champion"): "pass",
        ("format_rate", "champion"): "pass",
        ("format_rate", "anchor"): "fail",
    }
    assert verdict.verdict == "reject"


@pytest.mark.parametrize("allowed", [False, True])
def test_another_chat_template_is_a_veto(config: PromoteConfig, tmp_path: Path, allowed: bool) -> None:
    items = example_report.items()
    decide(config, policy(tmp_path / "p1", "one"), evaluation(tmp_path / "r1", items, "one"), tmp_path / "o1")
    report = evaluation(tmp_path / "r2", improved(items, 0.05), "two", champion=("one", items))
    own = config.model_copy(update={"allow_template_change": allowed})
    verdict = decide(own, policy(tmp_path / "p2", "two", more="{# other #}"), report, tmp_path / "o2")
    assert verdict.verdict == ("promote" if allowed else "reject")
    assert [veto.split(" is ")[0] for veto in verdict.vetoes] == ([] if allowed else ["the chat template"])


def test_a_spent_level_goes_to_a_person(config: PromoteConfig, tmp_path: Path) -> None:
    """Two looks a quarter, each with half of the level; the third has none left. The same candidate again is no new look."""
    own = config.model_copy(update={"spending": "quarter", "max_looks": 2})
    items = example_report.items()
    rounds = [
        ("one", 0.0, {}),
        ("two", -0.05, {"champion": ("one", items)}),
        ("three", 0.05, {"champion": ("one", items)}),
    ]
    found = {}
    for name, by, met in rounds:
        made = policy(tmp_path / name, name), evaluation(tmp_path / f"r {name}", improved(items, by), name, **met)
        found[name] = decide(own, *made, tmp_path / f"o {name}")
    again = decide(own, tmp_path / "two", tmp_path / "r two", tmp_path / "again")
    assert again == found["two"]
    assert [verdict.looks for verdict in found.values()] == [0, 1, 2]
    assert [verdict.verdict for verdict in found.values()] == ["promote", "reject", "inconclusive"]
    assert [verdict.checks[0].improvement.confidence for verdict in found.values()] == pytest.approx([0.95, 0.95, 0.9])
    assert "is spent" in found["three"].reasons[-1] and "looked at 2 times before" in found["three"].warnings[0]
    assert found["one"].warnings == []


@pytest.mark.parametrize("harm", ["error", "missing", "figure", "policy"])
def test_what_cannot_be_judged_is_invalid(config: PromoteConfig, tmp_path: Path, harm: str) -> None:
    items = example_report.items()
    if harm == "error":
        place = next(i for i, item in enumerate(items) if item.model == "dpo" and item.suite == "heldout_prompts")
        items[place] = items[place].model_copy(update={"error": "TimeoutError"})
    elif harm == "missing":
        items.remove(next(item for item in items if item.model == "sft" and item.suite == "heldout_prompts"))
    elif harm == "figure":
        config = config.model_copy(update={"primary": Primary(figure="rule_scores")})
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "report.json").write_text(example_report.report(example_report.items()).model_dump_json())
    figures.write_items(folder / "items.parquet", items)
    artifact(folder, "evaluate", "r", {"sft": "s", "dpo": "other" if harm == "policy" else "one"})
    verdict = decide(config, policy(tmp_path / "p", "one"), folder, tmp_path / "out")
    assert verdict.verdict == "invalid"
    said = {
        "error": "TimeoutError",
        "missing": "not paired",
        "figure": "'rule_scores' of the gate",
        "policy": "not about this policy",
    }
    assert said[harm] in verdict.reasons[0]
    assert Registry(config.registry).champion("after-sales") is None


def test_a_second_run_has_the_same_key_and_verdict(config: PromoteConfig, tmp_path: Path) -> None:
    items = example_report.items()
    folders = policy(tmp_path / "p", "one"), evaluation(tmp_path / "r", items, "one")
    own = {"policy": "one", "report": "report of one"}
    before = promote.externals(config, own)
    decide(config, *folders, tmp_path / "o1")
    assert promote.externals(config, own) == before == {"champion": "none", "anchor": "none", "looks": "none"}
    champion = Registry(config.registry).champion("after-sales")
    other = promote.externals(config, {**own, "policy": "two"})
    assert champion and (other["champion"], other["anchor"]) == (champion.digest, "none")
    assert other["looks"] != "none"
    assert promote.holds(config, tmp_path / "o1") is None
    decide(config, *folders, tmp_path / "o2")
    assert (tmp_path / "o1" / "verdict.json").read_bytes() == (tmp_path / "o2" / "verdict.json").read_bytes()
    assert len(Registry(config.registry).history("after-sales").events) == 2


def test_a_verdict_holds_only_with_its_registry(config: PromoteConfig, tmp_path: Path) -> None:
    items = example_report.items()
    decide(config, policy(tmp_path / "p", "one"), evaluation(tmp_path / "r", items, "one"), tmp_path / "o1")
    other = config.model_copy(update={"registry": tmp_path / "empty"})
    assert "has no version" in (promote.holds(other, tmp_path / "o1") or "")
    registry = Registry(config.registry)
    (tmp_path / "registry" / "after-sales" / "events" / "000002.json").unlink()
    assert "alias champion" in (promote.holds(config, tmp_path / "o1") or "")
    decide(config, tmp_path / "p", tmp_path / "r", tmp_path / "o2")
    assert registry.champion("after-sales") is not None


def test_a_rollback_is_not_undone_by_running_again(config: PromoteConfig, tmp_path: Path) -> None:
    items = example_report.items()
    decide(config, policy(tmp_path / "p1", "one"), evaluation(tmp_path / "r1", items, "one"), tmp_path / "o1")
    decide(
        config,
        policy(tmp_path / "p2", "two"),
        evaluation(tmp_path / "r2", improved(items, 0.05), "two", champion=("one", items)),
        tmp_path / "o2",
    )
    registry = Registry(config.registry)
    champion = registry.champion("after-sales")
    assert champion is not None and champion.facts["policy"] == "two"
    inputs = {"policy": "two", "report": "report of two"}
    before = promote.externals(config, inputs)
    registry.rollback("after-sales", expected=champion.name, reason="complaints")
    assert promote.holds(config, tmp_path / "o2") is None
    assert promote.externals(config, inputs) == {**before, "rolled back": "yes"}, "the verdict is another one now"
    verdict = decide(config, tmp_path / "p2", tmp_path / "r2", tmp_path / "o3")
    assert verdict.verdict == "inconclusive" and "rolled back" in verdict.reasons[-1]
    after = registry.champion("after-sales")
    assert after is not None and after.facts["policy"] == "one"


def test_a_whole_model_can_be_registered(config: PromoteConfig, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(models.model_folder(TRAINED[-1].dpo.path), folder / "model")
    artifact(folder, "pretrain", "one")
    assert (
        decide(config, folder, evaluation(tmp_path / "r", example_report.items(), "one"), tmp_path / "o").verdict
        == "promote"
    )


def test_answers_with_odd_line_ends_survive_the_registry(config: PromoteConfig, tmp_path: Path) -> None:
    items = [item.model_copy(update={"output": "a\u2028b\x85c\nd"}) for item in example_report.items(20)]
    decide(config, policy(tmp_path / "p", "one"), evaluation(tmp_path / "r", items, "one"), tmp_path / "o")
    version = Registry(config.registry).versions("after-sales")[0]
    with pa.CompressedInputStream(str(version.folder / version_files.EVAL_ITEMS), "zstd") as file:
        lines = file.read().split(b"\n")
    assert [Item.model_validate_json(line) for line in lines if line] == items


def test_the_shell_door(config: PromoteConfig, tmp_path: Path) -> None:
    (tmp_path / "promote.json").write_text(json.dumps(config.model_dump(mode="json")))
    evaluation(tmp_path / "r", example_report.items(), "one")
    command = [
        sys.executable,
        "-m",
        "steps.promote",
        "--config",
        str(tmp_path / "promote.json"),
        "--policy",
        str(policy(tmp_path / "p", "one")),
        "--report",
        str(tmp_path / "r"),
        "--out",
        str(tmp_path / "out" / "promote"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    manifest = json.loads((tmp_path / "out" / "promote" / "manifest.json").read_text())
    assert manifest["metrics"]["verdict"] == "promote" and manifest["parts"]["externals"]["champion"] == "none"
    record = json.loads((tmp_path / "out" / "promote" / "record" / "registry.json").read_text())
    assert record["champion"] == record["version"] == manifest["metrics"]["version"]
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr  # the same key: the artifact is there already


def state(folder: Path) -> dict[str, Any]:
    """All that a run leaves: the verdict, the record, the events without their time, versions with every byte, the alias."""
    out, home = folder / "out" / "promote", folder / "registry" / "after-sales"
    events = [json.loads(path.read_text()) for path in sorted((home / "events").glob("0*.json"))]
    versions = {path.name: path for path in (home / "versions").iterdir() if not path.name.startswith(".")}
    files = [path for version in versions.values() for path in version.rglob("*") if path.is_file()]
    return {
        "verdict": (out / "verdict.json").read_bytes(),
        "record": json.loads((out / "record" / "registry.json").read_text()),
        "events": [{k: v for k, v in event.items() if k not in ("ts", "prev_sha256")} for event in events],
        "versions": {path.relative_to(home).as_posix(): path.read_bytes() for path in files},
        "alias": json.loads((home / "aliases.json").read_text()),
    }


@pytest.mark.fault
@pytest.mark.parametrize(("kills", "terms"), [(3, 1), pytest.param(75, 40, marks=pytest.mark.long)])
@pytest.mark.parametrize("before", ["no champion", pytest.param("a champion", marks=pytest.mark.long)])
def test_cut_off_anywhere_there_is_one_version_one_move_and_the_same_verdict(
    config: PromoteConfig, tmp_path: Path, kills: int, terms: int, before: str
) -> None:
    items, digest = example_report.items(), "one"
    folders = policy(tmp_path / "p", "one"), evaluation(tmp_path / "r", items, "one")
    jobs: list[cuts.Job] = []
    for number, (cut, by) in enumerate([(None, ""), *cuts.spread(kills, terms)]):
        folder = tmp_path / str(number)
        own = config.model_copy(update={"registry": folder / "registry"})
        folder.mkdir()
        if before == "a champion":
            decide(own, *folders, folder / "earlier")
            digest = "two"
        (folder / "promote.json").write_text(own.model_dump_json())
        words = ["--config", str(folder / "promote.json"), "--policy", str(tmp_path / f"p-{digest}")]
        words += ["--report", str(tmp_path / f"r-{digest}"), "--out", str(folder / "out" / "promote")]
        plots = ("steps.lib.report_page.drawings",)  # most of the time, and made of report.json alone
        jobs.append(cuts.Job(str(folder), words, str(folder / "out" / "promote"), cut, by, plots))
    policy(tmp_path / f"p-{digest}", digest)
    met = {"champion": ("one", items)} if before == "a champion" else {}
    evaluation(tmp_path / f"r-{digest}", improved(items, 0.05), digest, **met)
    outcomes = cuts.run("promote", jobs, *cuts.MODEL, "huggingface_hub")
    assert [outcome for outcome in outcomes if outcome.code] == []
    undisturbed, *others = [state(Path(job.folder)) for job in jobs]
    assert Verdict.model_validate_json(undisturbed["verdict"]).verdict == "promote"
    versions = 1 + (before == "a champion")
    assert [event["action"] for event in undisturbed["events"]] == ["register", "promote"] * versions
    assert undisturbed["record"]["champion_before"] == (None if versions == 1 else undisturbed["events"][0]["to"])
    for job, outcome, other in zip(jobs[1:], outcomes[1:], others, strict=True):
        assert outcome.ended in ((-signal.SIGKILL,) if job.signal == "SIGKILL" else (75, 0)), outcome
        for part, value in undisturbed.items():
            assert other[part] == value, (part, job)


def test_import_is_light() -> None:
    code = "import sys, steps.promote; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'prefect', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_report_reads_what_evaluate_wrote(tmp_path: Path) -> None:
    shown = reports.read(evaluation(tmp_path / "r", example_report.items(20), "one"))
    assert shown.chain == list(example_report.CHAIN)
