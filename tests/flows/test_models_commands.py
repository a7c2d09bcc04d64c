"""``prefline models``: what it prints, its exit codes, the log that it leaves, and that nothing moves unasked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import example_report
import pytest
from looking import prefline
from minimal import TINY, texts

from flows.commands import models, models_export, models_import, models_move
from steps.lib.errors import ArtifactError, ConfigError
from steps.lib.registry import Registry, Version

NAME = "desk"


def registered(root: Path, text: str, verdict: str = "reject") -> Version:
    """A version without weights worth the name, with an evaluation and a verdict."""
    folder = root / f"staged-{text}"
    example_report.safetensors(folder / "adapter" / "adapter_model.safetensors", text)
    (folder / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "eval").mkdir()
    (folder / "eval" / "report.json").write_text(example_report.report(example_report.items()).model_dump_json())
    (folder / "eval" / "verdict.json").write_text(json.dumps({"verdict": verdict, "reasons": [f"because of {text}"]}))
    return Registry(root / "registry", actor="gate").register(
        NAME, folder, facts={"policy": text * 8, "report": "r", "model": "dpo"}
    )


@pytest.fixture
def three(tmp_path: Path) -> list[Version]:
    return [registered(tmp_path, text) for text in ("one", "two", "three")]


@pytest.fixture
def where(tmp_path: Path) -> dict[str, Any]:
    return {"name": NAME, "folder": tmp_path / "registry"}


def page(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_person_promotes_and_goes_back_and_the_log_tells_it(
    three: list[Version], where: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    models_move.promote("v0001", reason="first", by="ann", **where)
    models_move.promote("v0003", reason="complaints", by="ann", expect="champion", **where)
    assert f"champion of desk: {three[0].name} -> {three[2].name} (event 5, by ann)" in capsys.readouterr().out
    models_move.rollback(reason="worse refunds", by="bob", **where)
    registry = Registry(where["folder"])
    assert registry.history(NAME).aliases() == {"champion": three[0].name}
    assert registry.history(NAME).rolled_back() == {three[2].name}, "no run of the line promotes it again"
    models_move.rollback(reason="to the second", to="v0002", by="bob", **where)
    told = [(one.action, one.actor, one.reason) for one in registry.history(NAME).events[3:]]
    assert told == [
        ("promote", "ann", "by a person: first"),
        ("promote", "ann", "by a person: complaints"),
        ("rollback", "bob", "worse refunds"),
        ("rollback", "bob", "to the second"),
    ]
    models_move.promote("v0002", reason="again", **where)
    assert "nothing was done" in capsys.readouterr().out and len(registry.history(NAME).events) == 7


def test_an_alias_that_moved_meanwhile_is_not_overrun(three: list[Version], where: dict[str, Any]) -> None:
    models_move.promote("v0001", reason="first", expect="none", **where)
    for expect in ("none", "v0002"):
        with pytest.raises(ArtifactError, match="alias champion of desk has moved: got 'v0001-.* was expected"):
            models_move.promote("v0003", reason="mine", expect=expect, **where)
    with pytest.raises(ArtifactError, match="alias anchor of desk has moved"):
        models_move.promote("v0003", reason="mine", alias="anchor", expect="v0002", **where)
    models_move.promote("v0002", reason="release 1", alias="anchor", **where)
    aliases = Registry(where["folder"]).history(NAME).aliases()
    assert aliases == {"champion": three[0].name, "anchor": three[1].name}


def test_nothing_moves_without_a_reason_or_to_a_damaged_version(three: list[Version], where: dict[str, Any]) -> None:
    for call in (
        lambda: models_move.promote("v0001", reason=" ", **where),
        lambda: models_move.rollback(reason="", **where),
    ):
        with pytest.raises(ConfigError, match="is empty: got .* because the log must say why"):
            call()
    (three[1].folder / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is damaged: got other content in adapter/adapter_config.json"):
        models_move.promote("v0002", reason="mine", **where)
    assert len(Registry(where["folder"]).history(NAME).events) == 3


def test_list_and_show_tell_what_the_registry_knows(
    three: list[Version], where: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    models_move.promote("v0002", reason="good", by="ann", **where)
    capsys.readouterr()
    models.list_(json=True, **where)
    pages = page(capsys)
    assert [(one["version"], one["aliases"]) for one in pages] == [
        (three[0].name, []),
        (three[1].name, ["champion"]),
        (three[2].name, []),
    ]
    assert {(one["by"], one["verdict"], one["model"]) for one in pages} == {("gate", "reject", "dpo")}
    models.list_(**where)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if " v0" in line] == [one.name for one in three]
    models.show(json=True, **where)
    shown = page(capsys)
    assert shown["version"] == three[1].name and shown["reasons"] == ["because of two"]
    assert [event["action"] for event in shown["events"]] == ["register", "promote"]
    report = example_report.report(example_report.items())
    wanted = {one.name: one.interval.value for one in report.figures if one.model == "dpo"}
    assert {one["name"]: one["value"] for one in shown["figures"]} == wanted and wanted
    models.show("v0002", **where)
    text = capsys.readouterr().out
    assert three[1].digest in text and "because of two" in text and "rule_score" in text and "by a person: good" in text


def test_a_word_that_names_no_version_is_told(three: list[Version], where: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="is not one: got 3 that begin so"):
        models.show("v0", **where)
    with pytest.raises(ArtifactError, match="has no alias or version 'champion'"):
        models.show(**where)
    with pytest.raises(ArtifactError, match="model shop is not in the registry .*: got desk, because"):
        models.list_(name="shop", folder=where["folder"])


def test_verify_reads_all_and_ends_with_a_code(
    three: list[Version], where: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("models", "verify", "--name", NAME, "--folder", str(where["folder"]))
    assert models.verify(**where) == 0 and "3 versions are whole" in capsys.readouterr().out
    content = (three[0].folder / "eval" / "report.json").read_bytes()
    (three[0].folder / "eval" / "report.json").write_bytes(content[:-1] + b" ")
    assert models.verify("v0002", **where) == 0
    done = prefline(*words, "--json")
    assert done.returncode == models.DAMAGED == 5, done.stderr
    assert "eval/report.json" in json.loads(done.stdout)["problems"][0]
    (three[0].folder / "eval" / "report.json").write_bytes(content)
    event = where["folder"] / NAME / "events" / "000001.json"
    event.write_text(event.read_text().replace("gate", "eve"))
    assert models.verify(**where) == 5 and "does not follow the one before" in " ".join(capsys.readouterr().out.split())


def test_from_the_shell_a_promotion_needs_a_reason(three: list[Version], where: dict[str, Any]) -> None:
    words = ("models", "promote", "v0001", "--name", NAME, "--folder", str(where["folder"]))
    done = prefline(*words)
    assert done.returncode != 0 and "--reason" in done.stdout + done.stderr
    assert Registry(where["folder"]).champion(NAME) is None
    done = prefline(*words, "--reason", "looked at by hand", "--expect", "v0002")
    assert done.returncode == 5 and "has moved: got None" in " ".join(done.stderr.split()), done.stderr


def test_prune_says_and_only_then_deletes(
    three: list[Version], where: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from steps.lib import registry_retention

    monkeypatch.setattr(registry_retention, "YOUNG", -1.0)
    models_move.promote("v0002", reason="good", **where)
    weights = [one.folder / "adapter" / "adapter_model.safetensors" for one in three]
    capsys.readouterr()
    models_move.prune(keep=1, **where)
    assert "nothing was deleted; --yes does it" in capsys.readouterr().out and all(one.exists() for one in weights)
    models_move.prune(keep=1, yes=True, **where)
    assert [one.exists() for one in weights] == [False, True, False]
    capsys.readouterr()
    models.list_(**where)
    assert capsys.readouterr().out.count("retired") == 2
    with pytest.raises(ConfigError, match="--keep is wrong: got 0"):
        models_move.prune(keep=0, **where)


def test_a_version_of_another_registry_comes_with_its_base_and_moves_nothing(
    tmp_path: Path, where: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from steps.lib.bases import Base
    from steps.lib.model_files import model_digest
    from steps.lib.models import Chain, model_folder

    base, staged, there = tmp_path / "base", tmp_path / "staged", tmp_path / "there"
    example_report.safetensors(base / "model.safetensors")
    for path in ("config.json", "tokenizer.json"):
        (base / path).write_text('{"eos_token": "x"}')
    example_report.safetensors(staged / "adapter" / "adapter_model.safetensors")
    (staged / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    Chain(base=model_digest(base)).write(staged)
    theirs = Registry(there).register("shop", staged, facts={"policy": "p"}, base=Base(base, model_digest(base)))
    models_import.import_(theirs.folder, by="ann", **where)
    registry = Registry(where["folder"])
    [ours] = registry.versions(NAME)
    assert f"-> {ours.name} of {NAME}" in capsys.readouterr().out and registry.history(NAME).aliases() == {}
    assert ours.facts == theirs.facts and ours.manifest["identity"] == theirs.manifest["identity"]
    assert model_folder(ours.folder).is_relative_to(where["folder"])
    assert registry.history(NAME).events[0].actor == "ann"
    (theirs.folder / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is damaged"):
        models_import.import_(theirs.folder, **where)
    with pytest.raises(ArtifactError, match="cannot be imported: got no version of a registry"):
        models_import.import_(staged, **where)
    assert len(registry.versions(NAME)) == 1


@pytest.mark.tiny
def test_export_writes_a_folder_that_plain_transformers_loads(
    tmp_path: Path, where: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from steps.lib import tiny

    shape = tiny.TinyConfig.model_validate(TINY)
    tokenizer = tiny.build_tokenizer((row.text for row in texts("general", 24)), shape)
    tiny.build_model(tokenizer, shape).save_pretrained(tmp_path / "staged" / "model")
    tokenizer.save_pretrained(tmp_path / "staged" / "model")
    registry = Registry(where["folder"])
    version = registry.register(NAME, tmp_path / "staged", facts={"policy": "p", "report": "r", "model": "sft"})
    registry.promote(NAME, version.name, expected=None, verdict_digest="", reason="r")
    models_export.export(out=tmp_path / "out", json=True, **where)
    done = page(capsys)
    assert (done["merged"], done["dtype"], done["version"]) == (True, "float32", version.name)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == len(tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template
    with pytest.raises(ConfigError, match="got one with something in it"):
        models_export.export(out=tmp_path / "out", **where)
    path = version.folder / "model" / "config.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(ArtifactError, match="is damaged"):
        models_export.export(out=tmp_path / "other", **where)
    assert not (tmp_path / "other").exists()
