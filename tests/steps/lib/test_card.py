"""The card and the bill of a model: the same figures as the report, nothing private, the same bytes again, the schema's shape."""

from __future__ import annotations

import json
import re
import socket
import sys
from pathlib import Path
from typing import Any

import example_report
import pytest

from steps.lib import bom, card, wording
from steps.lib.card import CardConfig
from steps.lib.digests import digest_file
from steps.lib.pedigree import Pedigree, hub_id
from steps.lib.report import Case, Report


@pytest.fixture(scope="module")
def shown() -> Report:
    return example_report.report(example_report.items(30))


@pytest.fixture(scope="module")
def pedigree() -> Pedigree:
    return Pedigree.of(example_report.manifests())


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version's folder, with the card that PEFT leaves."""
    example_report.safetensors(tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "README.md").write_text("[More Information Needed]")
    (tmp_path / "chain.json").write_text("{}")
    return tmp_path


def head_of(page: str) -> dict[str, Any]:
    from ruamel.yaml import YAML

    return dict(YAML(typ="safe").load(page.split("---\n")[1]))


def test_the_card_has_the_figures_of_the_report(version: Path, shown: Report, pedigree: Pedigree) -> None:
    path = card.write(
        version, CardConfig(license="apache-2.0"), "after-sales", shown, pedigree, example_report.verdict()
    )
    page = path.read_text(encoding="utf-8")
    for figure in shown.figures:
        if figure.model == "dpo":
            assert f"| {wording.value(figure)} ({wording.span(figure)}) |" in page, figure.name
    for said in (
        "Promoted 晋升", "已知坏例", "case-07", "许可", "org/small-135m@0a1b2c3", "nobody stated one 未注明", "big-7b",
        "The holdout was used 9 times", "lang=zh", "bom.cdx.json", *(origin.key for origin in pedigree.origins),
    ):  # fmt: skip
        assert said in page, said
    assert "/srv/models" not in page and "bench" not in page, "no place of a machine"
    head = head_of(page)
    assert (head["license"], head["language"], head["library_name"]) == ("apache-2.0", ["en", "zh"], "peft")
    assert head["base_model"] == "org/small-135m"
    metrics = {m["type"]: m for one in head["model-index"][0]["results"] for m in one["metrics"]}
    rule = next(figure for figure in shown.figures if (figure.name, figure.model) == ("rule_score", "dpo"))
    assert metrics["rule_score"]["value"] == round(rule.interval.value, 4)
    assert metrics["rule_score"]["args"]["n"] == rule.interval.n
    assert (version / "adapter" / "README.md").read_text(encoding="utf-8") == page, "not PEFT's"


def test_what_nobody_said_is_not_made_up(version: Path, shown: Report) -> None:
    bare = shown.model_copy(update={"cases": [], "warnings": [], "slices": [], "samples": []})
    page = card.text(CardConfig(), "m", bare, Pedigree())
    assert "No bad cases were evaluated" in page and "* Model 模型: nobody stated one 未注明" in page
    assert "gate" not in page.lower() and not {"license", "base_model", "language"} & head_of(page).keys()
    assert "{{" not in page and "None" not in page


def test_many_cases_are_counted_and_some_are_named(shown: Report, pedigree: Pedigree) -> None:
    cases = [Case(id=f"c{n:03}", state="known_fail", tags=["a|b"]) for n in range(50)]
    page = card.text(CardConfig(), "m", shown.model_copy(update={"cases": cases}), pedigree)
    assert "仍失败: 50" in page and page.count("| c0") == card.SHOWN and "30 more are in the report" in page
    assert "a\\|b" in page


def test_papers_are_made_offline_and_are_the_same_again(
    version: Path, shown: Report, pedigree: Pedigree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise AssertionError("somebody was called")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    monkeypatch.setattr(socket.socket, "connect", nobody)
    found = []
    for _ in range(2):
        bom.write("m", version, shown, pedigree)
        card.write(version, CardConfig(), "m", shown, pedigree)
        found.append([path.read_bytes() for path in (version / bom.FILE, version / card.FILE)])
    assert found[0] == found[1], "the bill lists neither itself nor the card"
    assert Pedigree.of(example_report.manifests()[::-1]) == pedigree


def test_the_bill_lists_what_the_model_is_made_of(version: Path, shown: Report, pedigree: Pedigree) -> None:
    bill = json.loads(bom.write("m", version, shown, pedigree, licence="apache-2.0").read_text(encoding="utf-8"))
    parts = {part["bom-ref"]: part for part in bill["components"]}
    weights = parts["file:adapter/adapter_model.safetensors"]
    assert weights["hashes"][0]["content"] == digest_file(version / "adapter" / "adapter_model.safetensors")
    assert "file:adapter/README.md" not in parts and "pkg:pypi/torch@2.13.0" in parts
    clean = next(part for part in bill["components"] if part["name"] == "clean")
    assert clean["type"] == "data" and {"name": "prefline:rows:chats", "value": "421"} in clean["properties"]
    edges = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    refs = {"model", *parts}
    assert edges.keys() <= refs and all(set(upstream) <= refs for upstream in edges.values())
    metrics = bill["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    own = [figure for figure in (*shown.figures, *shown.slices) if figure.model == "dpo"]
    assert [float(one["confidenceInterval"]["lowerBound"]) for one in metrics] == pytest.approx(
        [figure.interval.low for figure in own], rel=1e-4
    )
    assert sum("slice" in one for one in metrics) == len([one for one in shown.slices if one.model == "dpo"])
    assert "/srv/models" not in json.dumps(bill)


def test_the_bill_fits_the_schema_of_cyclonedx(version: Path, shown: Report, pedigree: Pedigree) -> None:
    schema = pytest.importorskip("cyclonedx.schema", reason="pip install cyclonedx-python-lib: it brings the schema")
    from jsonschema import Draft7Validator
    from referencing import Registry, Resource

    folder = Path(sys.modules[schema.__name__].__file__ or "").parent / "_res"
    names = {
        "bom-1.6.schema.json": "bom-1.6.SNAPSHOT.schema.json",
        "spdx.schema.json": "spdx.SNAPSHOT.schema.json",
        "jsf-0.82.schema.json": "jsf-0.82.SNAPSHOT.schema.json",
    }
    documents = {name: json.loads((folder / file).read_text(encoding="utf-8")) for name, file in names.items()}
    registry: Any = Registry().with_resources(
        [(found["$id"], Resource.from_contents(found)) for found in documents.values()]
    )
    validator = Draft7Validator(
        documents["bom-1.6.schema.json"], registry=registry, format_checker=Draft7Validator.FORMAT_CHECKER
    )
    full = bom.document("m", version, shown, pedigree, licence="apache-2.0")
    bare = bom.document("m", version, shown.model_copy(update={"cases": [], "slices": []}), Pedigree())
    for bill in (full, bare):
        assert [error.message for error in validator.iter_errors(bill)] == []
    full["components"][0]["typ"] = "x"
    assert list(validator.iter_errors(full)), "the schema is asked in earnest"


def test_another_file_another_bill(version: Path, shown: Report, pedigree: Pedigree) -> None:
    before = bom.document("m", version, shown, pedigree)["serialNumber"]
    (version / "chain.json").write_text("[]")
    after = bom.document("m", version, shown, pedigree)["serialNumber"]
    assert before != after and re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", after)


def test_names_of_models_without_their_place(tmp_path: Path) -> None:
    assert [hub_id(name) for name in ("", "org/m-1.5", "/a/b/m", "./x/y", "a/b/c", str(tmp_path))] == [
        "", "org/m-1.5", "m", "y", "c", tmp_path.name,
    ]  # fmt: skip
