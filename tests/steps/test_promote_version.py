"""What promote leaves in the registry: a version that stands alone, its papers, the challenger, signatures, mirrors, vetoes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import example_report
import pytest
from minimal import TinyChain
from promoting import TRAINED, decide, evaluation, improved, policy

from steps.lib import models, report_page, signing
from steps.lib.errors import ArtifactError
from steps.lib.gate import Guard, Verdict
from steps.lib.registry import Registry
from steps.promote import PromoteConfig

pytestmark = pytest.mark.tiny
NAME, LABEL = "after-sales", example_report.MEASURES[3].label_en


@pytest.fixture(scope="module", autouse=True)
def trained(chain: TinyChain) -> None:
    TRAINED.append(chain)


@pytest.fixture(autouse=True)
def no_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are most of the time; one test has them."""
    if request.function is not test_a_version_stands_alone_with_its_papers:
        monkeypatch.setattr(report_page, "drawings", lambda report: [])


@pytest.fixture
def config(tmp_path: Path) -> PromoteConfig:
    guards = tuple(guard.model_copy(update={"margin": 2 * guard.margin}) for guard in PromoteConfig().guards)
    return PromoteConfig(registry=tmp_path / "registry", guards=guards)


def promoted(config: PromoteConfig, tmp_path: Path, name: str = "one") -> Verdict:
    report = evaluation(tmp_path / f"r-{name}", example_report.items(), name)
    return decide(config, policy(tmp_path / f"p-{name}", name), report, tmp_path / f"out-{name}")


def test_a_version_stands_alone_with_its_papers(config: PromoteConfig, tmp_path: Path) -> None:
    own = config.model_copy(
        update={"card": config.card.model_copy(update={"license": "apache-2.0", "use": "after-sales desk"})}
    )
    verdict = promoted(own, tmp_path)
    version = Registry(config.registry).champion(NAME)
    assert version is not None and verdict.verdict == "promote"
    for folder in tmp_path.glob("*p-one"):
        shutil.rmtree(folder)  # the policy and its base are gone, as after gc
    model = models.load_policy(version.folder)
    assert model.peft_config and models.model_folder(version.folder).is_relative_to(config.registry)
    card = (version.folder / "README.md").read_text()
    assert "license: apache-2.0" in card and "after-sales desk" in card and LABEL in card
    bill = json.loads((version.folder / "bom.cdx.json").read_text())
    assert bill["specVersion"] == "1.6" and bill["metadata"]["component"]["name"] == NAME
    assert json.loads((version.folder / "lineage.json").read_text())["policy"].startswith("dpo/")
    kept = Verdict.model_validate_json((version.folder / "eval" / "verdict.json").read_text())
    assert kept == verdict
    page = (tmp_path / "out-one" / "report.html").read_text()
    assert page.index("promote") < page.index(LABEL)
    assert "## Promoted" in (tmp_path / "out-one" / "report.md").read_text()


def test_what_is_not_promoted_is_the_challenger_until_it_is(config: PromoteConfig, tmp_path: Path) -> None:
    strict = config.model_copy(update={"guards": (Guard(figure="general_bits_per_byte", margin=0.0001),)})
    items = example_report.items()
    report, own = evaluation(tmp_path / "r", items, "one"), policy(tmp_path / "p", "one")
    assert decide(strict, own, report, tmp_path / "o1").verdict != "promote"
    registry = Registry(config.registry)
    version = registry.versions(NAME)[0].name
    assert registry.history(NAME).aliases() == {"challenger": version}
    decide(strict, own, report, tmp_path / "o2")
    assert len(registry.history(NAME).events) == 2, "again: nothing is recorded twice"
    assert decide(config, own, report, tmp_path / "o3").verdict == "promote"
    assert registry.history(NAME).aliases() == {"champion": version}


def test_an_invalid_report_makes_no_challenger(config: PromoteConfig, tmp_path: Path) -> None:
    report = evaluation(tmp_path / "r", example_report.items(), "other")
    assert decide(config, policy(tmp_path / "p", "one"), report, tmp_path / "out").verdict == "invalid"
    assert Registry(config.registry).history(NAME).aliases() == {}


def test_a_server_that_would_read_another_template_is_a_veto(config: PromoteConfig, tmp_path: Path) -> None:
    """A tokenizer beside the adapter, which PEFT's users load in place of the base's."""
    own, report = policy(tmp_path / "p", "one"), evaluation(tmp_path / "r", example_report.items(), "one")
    base = models.model_folder(own)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, own / "adapter" / name)
    template = (base / "chat_template.jinja").read_text()
    (own / "adapter" / "chat_template.jinja").write_text("{{ 'Begin. ' }}" + template)
    verdict = decide(config, own, report, tmp_path / "out")
    assert verdict.verdict == "reject" and verdict.vetoes and "serv" in verdict.vetoes[0], verdict.vetoes
    assert Registry(config.registry).champion(NAME) is None


def test_a_rollback_counts_for_the_policy_under_any_report(config: PromoteConfig, tmp_path: Path) -> None:
    own, items = policy(tmp_path / "p", "one"), example_report.items()
    decide(config, own, evaluation(tmp_path / "r1", items, "one"), tmp_path / "o1")
    promoted_ = policy(tmp_path / "p2", "two")
    met = {"champion": ("one", items)}
    decide(config, promoted_, evaluation(tmp_path / "r2", improved(items, 0.05), "two", **met), tmp_path / "o2")
    registry = Registry(config.registry)
    second = registry.champion(NAME)
    assert second is not None and second.facts["policy"] == "two"
    registry.rollback(NAME, expected=second.name, reason="customers complain")
    again = evaluation(tmp_path / "r3", improved(items, 0.06), "two", **met)
    verdict = decide(config, promoted_, again, tmp_path / "o3")
    assert verdict.verdict == "inconclusive" and "only a person may promote it again" in verdict.reasons[-1]
    champion = registry.champion(NAME)
    assert champion is not None and champion.facts["policy"] == "one"


def test_signed_versions_and_no_others_count(config: PromoteConfig, tmp_path: Path) -> None:
    signing.new_key(tmp_path / "key.pem", tmp_path / "trusted.pem")
    keys = signing.SigningConfig(key=tmp_path / "key.pem", trusted=tmp_path / "trusted.pem")
    promoted(config.model_copy(update={"signing": keys}), tmp_path)
    reader = Registry(config.registry, signing=signing.SigningConfig(trusted=tmp_path / "trusted.pem"))
    version = reader.champion(NAME)
    assert version is not None and reader.verify(NAME, version.name) and not reader.problems(NAME)
    signature = version.folder / "SIGNATURE.json"
    facts = json.loads(signature.read_text())
    signature.write_text(json.dumps({**facts, "signature": facts["signature"][::-1]}))
    with pytest.raises(ArtifactError):
        reader.verify(NAME, version.name)


def test_mirrors_are_told_and_hold_nothing_up(config: PromoteConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    places = {"folder": {"folder": str(tmp_path / "copy")}, "mlflow": {"tracking_uri": str(tmp_path / "file" / "x")}}
    own = PromoteConfig.model_validate({**config.model_dump(), "mirrors": {**places, "max_seconds": 60}})
    assert promoted(own, tmp_path).verdict == "promote"
    sent = {one["kind"]: one for one in json.loads((tmp_path / "out-one" / "record" / "mirrors.json").read_text())}
    assert sent["folder"]["ok"] and sent["folder"]["aliases"] == ["champion"]
    assert not sent["mlflow"]["ok"] and sent["mlflow"]["problem"]
    assert list((tmp_path / "copy" / NAME).glob("v0001-*/README.md"))
