"""Looks at held-out items: what counts as one, which come before, and what they leave of the level."""

from __future__ import annotations

import calendar
import json
from pathlib import Path
from typing import Any

import pytest
from example_report import safetensors

from steps.lib.errors import ArtifactError
from steps.lib.figures import Item
from steps.lib.look_log import Look, LookLog, spent, suite_digests
from steps.lib.registry import Registry
from steps.promote import PromoteConfig

NOW = float(calendar.timegm((2026, 5, 1, 0, 0, 0)))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def register(registry: Registry, tmp_path: Path, policy: str, **facts: Any) -> str:
    safetensors(tmp_path / policy / "model.safetensors", policy)
    known = {"policy": policy, "report": f"report of {policy}", **facts}
    return registry.register("desk", tmp_path / policy, facts=known).name


def test_looks_before_a_candidate_are_counted_once_and_stay(registry: Registry, tmp_path: Path) -> None:
    assert LookLog.of(registry, "desk", "a", "report of a", now=NOW) == LookLog((), "2026Q2")
    for policy in ("a", "b", "c"):
        register(registry, tmp_path, policy, looks={"prompts": "p1", "pairs": "q1"})
    assert [LookLog.of(registry, "desk", p, f"report of {p}").count({"prompts": "p1"}) for p in "abcd"] == [0, 1, 2, 3]
    register(registry, tmp_path, "b", looks={"prompts": "p1", "pairs": "q1"})
    assert LookLog.of(registry, "desk", "c", "report of c").count({"prompts": "p1"}) == 2, "the same candidate again"
    assert LookLog.of(registry, "desk", "b", "another report").count({"prompts": "p1"}) == 3, "b with another report"


def test_fresh_items_are_not_worn(registry: Registry, tmp_path: Path) -> None:
    register(registry, tmp_path, "a", looks={"prompts": "p1", "pairs": "q1"})
    register(registry, tmp_path, "b", looks={"prompts": "p2", "pairs": "q1"})
    register(registry, tmp_path, "old")  # before looks were kept
    log = LookLog.of(registry, "desk", "c", "r")
    assert [log.count(suites) for suites in ({"prompts": "p1"}, {"prompts": "p3"}, {"pairs": "q1"})] == [1, 0, 2]
    assert log.count({"prompts": "p1", "pairs": "q1"}) == 2


def test_a_version_that_was_pruned_counts_for_every_suite(registry: Registry, tmp_path: Path) -> None:
    version = register(registry, tmp_path, "a", looks={"prompts": "p1"})
    folder = registry.root / "desk" / "versions" / version
    folder.rename(tmp_path / "away")
    log = LookLog.of(registry, "desk", "b", "r")
    assert log.count({"prompts": "p1"}) == log.count({"prompts": "p9"}) == 1


def test_a_manifest_that_somebody_changed_is_noticed(registry: Registry, tmp_path: Path) -> None:
    version = register(registry, tmp_path, "a", looks={"prompts": "p1"})
    manifest = registry.root / "desk" / "versions" / version / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"p1"', '"p2"'))
    with pytest.raises(ArtifactError, match="not the one registered"):
        LookLog.of(registry, "desk", "b", "r")


def test_the_quarter_is_that_of_the_event(registry: Registry, tmp_path: Path) -> None:
    register(registry, tmp_path, "a", looks={"prompts": "p1"})
    event = json.loads((registry.root / "desk" / "events" / "000001.json").read_text())
    own = f"{event['ts'][:4]}Q{(int(event['ts'][5:7]) + 2) // 3}"
    assert LookLog.of(registry, "desk", "a", "report of a", now=0).quarter == own
    later = LookLog.of(registry, "desk", "b", "r", now=0)
    assert later.quarter == "1970Q1"
    assert (later.count({"prompts": "p1"}), later.count({"prompts": "p1"}, this_quarter=True)) == (1, 0)


def test_what_it_adds_to_a_key() -> None:
    one, two = Look("2026Q1", {"prompts": "p1"}), Look("2026Q2", {"prompts": "p1"})
    assert LookLog((), "2026Q2").digest("quarter") == "none"
    logs = [LookLog((one, two), quarter) for quarter in ("2026Q2", "2026Q3")]
    assert len({log.digest("none") for log in logs}) == 1, "time is in no key where it changes nothing"
    assert len({log.digest("quarter") for log in logs}) == 2
    assert LookLog((one,), "2026Q2").digest("none") != logs[0].digest("none")


def test_a_quarter_shares_its_level() -> None:
    terms = PromoteConfig(spending="quarter", max_looks=5)
    assert [spent(terms, looks) for looks in (0, 4)] == pytest.approx([0.01, 0.01])
    assert spent(terms, 5) is None
    assert spent(PromoteConfig(max_looks=5), 50) == pytest.approx(0.05)


def test_suites_are_known_by_their_items() -> None:
    def item(suite: str, name: str, model: str = "dpo") -> Item:
        return Item(model=model, suite=suite, item_id=name, cluster_id=name)

    found = suite_digests([item("a", "1"), item("a", "2"), item("b", "1"), item("a", "3", "sft")], "dpo")
    assert list(found) == ["a", "b"] and found["a"] != found["b"]
    assert suite_digests([item("a", "2"), item("a", "1")], "dpo", ["a"]) == {"a": found["a"]}
    assert suite_digests([item("a", "1")], "dpo")["a"] == found["b"] != found["a"]
