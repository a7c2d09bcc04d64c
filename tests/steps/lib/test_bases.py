"""Bases of a registry: kept once, proved, found by the loader when the store is gone, pruned when nothing stands on them."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from example_report import safetensors
from minimal import TinyChain

from steps.lib import bases, models
from steps.lib.bases import Base
from steps.lib.digests import digest_text
from steps.lib.errors import ArtifactError, ModelError
from steps.lib.model_files import model_digest, template_digest
from steps.lib.registry import Registry, Version
from steps.lib.registry_import import bring


def checkpoint(folder: Path, text: str = "w", template: str = "{{ x }}") -> Path:
    safetensors(folder / "model.safetensors", text)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text(template)
    return folder


def adapter(folder: Path, base: Path, text: str) -> Path:
    safetensors(folder / "adapter" / "adapter_model.safetensors", text)
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base), "r": 4}))
    models.Chain(base=model_digest(base)).write(folder)
    return folder


def add(registry: Registry, tmp_path: Path, text: str, base: Path) -> Version:
    found = Base(base, model_digest(base))
    return registry.register(
        "desk", adapter(tmp_path / text, base, text), facts={"policy": text, "report": ""}, base=found
    )


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def test_a_base_is_kept_once_and_named_by_its_digest(registry: Registry, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base")
    one, two = add(registry, tmp_path, "one", base), add(registry, tmp_path, "two", base)
    kept = list((registry.root / "desk" / "bases").iterdir())
    assert [path.name for path in kept] == [model_digest(base)[:12]]
    assert model_digest(kept[0] / "model") == model_digest(base) == one.facts["base"] == two.facts["base"]
    assert one.facts["template"] == template_digest(base) != ""
    assert one.facts["adapter"] != two.facts["adapter"] and one.facts["tokenizer"] == two.facts["tokenizer"]


def test_a_template_is_the_same_wherever_it_is_kept(tmp_path: Path) -> None:
    beside, inside = checkpoint(tmp_path / "beside"), checkpoint(tmp_path / "inside")
    (inside / "chat_template.jinja").unlink()
    assert template_digest(inside) == ""
    (inside / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ x }}"}))
    assert template_digest(inside) == template_digest(beside) == digest_text("{{ x }}")
    (beside / "chat_templates").mkdir()
    (beside / "chat_templates" / "tools.jinja").write_text("{{ tools }}")
    assert template_digest(inside) != template_digest(beside)


def test_the_loader_finds_the_base_when_everything_else_is_gone(registry: Registry, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base")
    version = add(registry, tmp_path, "one", base)
    shutil.rmtree(base)
    shutil.rmtree(tmp_path / "one")
    moved = tmp_path / "elsewhere"
    registry.root.rename(moved)
    folder = Registry(moved).verify("desk", version.name).folder
    assert models.model_folder(folder) == moved / "desk" / "bases" / version.facts["base"][:12] / "model"
    models.check_base(folder)


def test_a_damaged_base_keeps_every_alias_where_it_is(registry: Registry, tmp_path: Path) -> None:
    version = add(registry, tmp_path, "one", checkpoint(tmp_path / "base"))
    kept = models.model_folder(version.folder)
    assert registry.problems("desk") == []
    (kept / "chat_template.jinja").write_text("{{ evil }}")
    with pytest.raises(ArtifactError, match=r"damaged: got other content in bases/\w{12}/chat_template\.jinja"):
        registry.promote("desk", version.name, expected=None, verdict_digest="d", reason="r")
    with pytest.raises(ModelError, match="does not fit its base"):
        models.check_base(version.folder)
    (kept.parent / "manifest.json").unlink()
    assert [problem for problem in registry.problems("desk") if "missing, or without its manifest" in problem]
    assert registry.champion("desk") is None


def test_a_base_that_changed_is_not_kept(registry: Registry, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base")
    found = Base(base, model_digest(base))
    folder = adapter(tmp_path / "one", base, "one")
    (base / "chat_template.jinja").write_text("changed")
    with pytest.raises(ArtifactError, match="is another one: got digest"):
        registry.register("desk", folder, facts={}, base=found)
    assert registry.history("desk").events == () and not list((registry.root / "desk").rglob("*.partial"))


def test_a_commit_on_the_hub_is_named_and_not_copied(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "a" * 40
    cache = tmp_path / "hub" / "models--org--tiny"
    snapshot = checkpoint(cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    folder = adapter(tmp_path / "one", tmp_path / "gone", "one")
    models.Chain(base=model_digest(snapshot)).write(folder)
    base = Base(snapshot, model_digest(snapshot), "org/tiny", commit)
    assert base.pinned and not Base(snapshot, base.digest, "org/tiny", "main").pinned
    version = registry.register("desk", folder, facts={}, base=base)
    assert not (registry.root / "desk" / "bases").exists()
    assert bases.of_version(version.folder) == {"digest": base.digest, "id": "org/tiny", "revision": commit}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert models.model_folder(version.folder) == snapshot


def test_links_of_a_cache_are_copied_as_files(registry: Registry, tmp_path: Path) -> None:
    real, linked = checkpoint(tmp_path / "real"), tmp_path / "linked"
    linked.mkdir()
    for path in real.iterdir():
        (linked / path.name).symlink_to(path)
    version = add(registry, tmp_path, "one", linked)
    assert not [path for path in models.model_folder(version.folder).iterdir() if path.is_symlink()]


@pytest.mark.parametrize(("name", "content"), [("tokenizer.py", "x"), ("config.json", '{"auto_map": {"A": "m.A"}}')])
def test_a_base_with_code_is_refused(registry: Registry, tmp_path: Path, name: str, content: str) -> None:
    base = checkpoint(tmp_path / "base")
    (base / name).write_text(content)
    with pytest.raises(ArtifactError, match="cannot be registered"):
        add(registry, tmp_path, "one", base)


def age(registry: Registry, seconds: float = 7200) -> float:
    """Make all folders old; events are aged by asking later."""
    then = time.time() - seconds
    for path in [*registry.root.glob("desk/versions/*"), *registry.root.glob("desk/bases/*")]:
        os.utime(path, (then, then))
    return then


def test_pruning_keeps_what_is_needed_and_the_evidence(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, lonely = checkpoint(tmp_path / "shared"), checkpoint(tmp_path / "lonely", "other")
    names = [add(registry, tmp_path, text, shared).name for text in ("a", "b", "c", "d", "e")]
    old = add(registry, tmp_path, "old", lonely).name
    before = None
    for name in names[:3]:
        registry.promote("desk", name, expected=before, verdict_digest="d", reason="better")
        before = name
    registry.point("desk", names[3], alias="anchor", reason="approved")
    assert [one.goes for one in registry.prune("desk", keep=1)] == [False] * 8, "all of it is younger than an hour"
    age(registry)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 7200)
    said = {one.name: (one.goes, one.reason) for one in registry.prune("desk", keep=1)}
    assert said[names[0]][0] and said[names[4]][0] and said[old][0]
    assert said[names[2]] == (False, "alias champion") and said[names[3]] == (False, "alias anchor")
    assert said[names[1]] == (False, "a rollback of champion goes back to it")
    assert registry.history("desk").retired() == set(), "a dry run changes nothing"
    registry.prune("desk", keep=1, dry=False)
    assert registry.history("desk").retired() == {names[0], names[4], old}
    assert [path.name for path in (registry.root / "desk" / "bases").iterdir()] == [model_digest(shared)[:12]]
    gone = registry.resolve("desk", old)
    assert gone.retired and gone.facts["policy"] == "old" and not (gone.folder / "adapter").exists()
    assert (gone.folder / "chain.json").exists() and registry.problems("desk") == []
    for move in (
        lambda: registry.promote("desk", old, expected=names[2], verdict_digest="d", reason="r"),
        lambda: registry.rollback("desk", expected=names[2], to=old, reason="r"),
        lambda: registry.point("desk", old, alias="challenger", reason="r"),
    ):
        with pytest.raises(ArtifactError, match="is retired: got no weights"):
            move()
    again = add(registry, tmp_path, "old", lonely)
    assert again.name == f"v0007-{old[6:]}" and models.model_folder(again.folder).exists(), (
        "made anew, it is a new version"
    )
    registry.rollback("desk", expected=names[2], reason="complaints")
    assert registry.problems("desk") == []


def test_a_kill_between_retiring_and_deleting_is_made_up_for(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = add(registry, tmp_path, "a", checkpoint(tmp_path / "base")).name
    registry._append("desk", lambda history: {"action": "retire", "to": name, "reason": "killed after this"})
    assert (registry.resolve("desk", name).folder / "adapter").exists() and registry.problems("desk") == []
    registry.prune("desk", dry=False)
    assert not (registry.resolve("desk", name).folder / "adapter").exists() and registry.problems("desk") == []
    orphan = registry.root / "desk" / "versions" / "v0009-0123456789ab"
    shutil.copytree(registry.resolve("desk", name).folder, orphan)
    registry.prune("desk", dry=False)
    assert orphan.exists(), "somebody may be registering it"
    age(registry)
    registry.prune("desk", dry=False)
    assert not orphan.exists() and not list((registry.root / "desk" / "bases").iterdir())


# --- taken in from outside -------------------------------------------------------------------------------------------


def test_a_checkpoint_an_adapter_and_a_version_are_taken_in(registry: Registry, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base")
    whole = bring(registry, "desk", base, origin="a friend", work=tmp_path / "w")
    assert models.model_folder(whole.folder) == whole.folder / "model" and whole.facts["origin"] == "a friend"
    folder = adapter(tmp_path / "one", base, "one") / "adapter"
    with pytest.raises(ModelError, match="has no base: got none given"):
        bring(registry, "desk", folder, origin="x", work=tmp_path / "w")
    lora = bring(registry, "desk", folder, origin="x", work=tmp_path / "w", base=base)
    models.check_base(lora.folder)
    other = Registry(tmp_path / "other")
    copied = bring(other, "desk", lora.folder, origin="the first registry", work=tmp_path / "w")
    assert copied.facts["adapter"] == lora.facts["adapter"] and other.problems("desk") == []
    (lora.folder / "chain.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"cannot be imported: got other content in chain\.json"):
        bring(other, "desk", lora.folder, origin="x", work=tmp_path / "w")
    with pytest.raises(ArtifactError, match="it is no version, adapter or checkpoint"):
        bring(other, "desk", tmp_path, origin="x", work=tmp_path / "w")


def test_a_raw_trainer_folder_is_refused(registry: Registry, tmp_path: Path) -> None:
    raw = checkpoint(tmp_path / "raw")
    (raw / "trainer_state.json").write_text("{}")
    (raw / "checkpoint-10").mkdir()
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth"):
        (raw / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ArtifactError) as caught:
        bring(registry, "desk", raw, origin="x", work=tmp_path / "w")
    for said in (
        "trainer_state.json (of a training run)",
        "checkpoint-10 (of",
        "training_args.bin (kind",
        "optimizer.pt (kind",
    ):
        assert said in str(caught.value)
    assert not registry.root.exists()


# --- with the tiny chain ---------------------------------------------------------------------------------------------


@pytest.mark.tiny
def test_a_registered_policy_answers_as_before_when_the_store_is_wiped(
    chain: TinyChain, registry: Registry, tmp_path: Path
) -> None:
    import torch

    store = tmp_path / "store"
    for artifact in (chain.pretrain, chain.sft):
        shutil.copytree(artifact.path, store / artifact.key)
    policy = store / chain.sft.key
    base = models.base_of(policy)
    assert base and not base.pinned and models.base_of(store / chain.pretrain.key) is None
    staged = tmp_path / "staged"
    shutil.copytree(policy / "adapter", staged / "adapter")
    shutil.copyfile(policy / "chain.json", staged / "chain.json")

    def said(folder: Path) -> torch.Tensor:
        with torch.no_grad():
            return models.load_policy(folder)(input_ids=torch.tensor([[5, 9, 40, 77, 2, 11]])).logits

    before = said(policy)
    settings = json.loads((staged / "adapter" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(store / "gone")
    (staged / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    version = registry.register("desk", staged, facts={"policy": chain.sft.digest}, base=base)
    shutil.rmtree(store)
    assert torch.equal(said(version.folder), before)
    assert version.facts["template"] == template_digest(chain.pretrain.path / "model")
