"""Checkpoints that are refused, adapters on their base, and the chain that names both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from minimal import TinyChain

from steps.lib import model_files, models
from steps.lib.errors import ModelError
from steps.lib.model_files import check_folder, model_digest, resolve
from steps.lib.models import Chain, Stage, model_folder


def folder(root: Path, *, files: tuple[str, ...] = ("model.safetensors", "tokenizer.json"), config: Any = None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]} if config is None else config))
    for name in files:
        (root / name).write_bytes(b"content of " + name.encode())
    return root


def test_a_whole_folder_is_taken(tmp_path: Path) -> None:
    assert check_folder(folder(tmp_path / "m")) == resolve(str(tmp_path / "m")) == tmp_path / "m"


@pytest.mark.parametrize(
    ("files", "config", "said"),
    [
        (("tokenizer.json",), None, r"no \*\.safetensors weights, because .*; copy or download"),
        (
            ("tokenizer.json", "pytorch_model.bin"),
            None,
            r"only pickled weights \(pytorch_model\.bin\), refused because opening them can run code; .*save_pretrained",
        ),
        (("tokenizer.json", "model.pt", "consolidated.00.pth"), None, "only pickled weights"),
        (("model.safetensors",), None, r"no tokenizer \(tokenizer\.json\), because .*; save the tokenizer"),
        (
            ("model.safetensors", "tokenizer.json"),
            {"auto_map": {"AutoModel": "modeling_x.X"}},
            "auto_map in config.json, refused because it would run code",
        ),
    ],
    ids=["no weights", "bin", "pt", "no tokenizer", "code"],
)
def test_a_folder_that_fails_late_or_runs_code_is_refused(
    tmp_path: Path, files: tuple[str, ...], config: Any, said: str
) -> None:
    with pytest.raises(ModelError, match=rf"model folder .* cannot be used: got {said}"):
        check_folder(folder(tmp_path / "m", files=files, config=config))


def test_every_problem_of_a_folder_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError) as error:
        check_folder(tmp_path)
    assert all(part in str(error.value) for part in ("does not parse", "no *.safetensors", "no tokenizer"))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        check_folder(tmp_path)


@pytest.mark.parametrize("name", ["models/llama/8b", "./nowhere", "/nowhere/at/all", "~/model", "nowhere/"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match="is not there: got no such folder, because .*; give a folder"):
        resolve(name)


def test_a_hub_id_that_nothing_has_is_named() -> None:
    with pytest.raises(
        ModelError, match=r"model 'nobody/nothing' could not be fetched: got \w+, because .*; give a local folder"
    ):
        resolve("nobody/nothing")


def test_identity_is_of_weights_shape_tokenizer_and_template(tmp_path: Path) -> None:
    made = folder(tmp_path / "m")
    digest = model_digest(made)
    (made / "README.md").write_text("x")
    assert model_digest(made) == digest
    for name in (
        "chat_template.jinja",
        "tokenizer_config.json",
        "generation_config.json",
        "model-2.safetensors",
        "config.json",
    ):
        (made / name).write_text("{} ")
        changed = model_digest(made)
        assert changed != digest, name
        digest = changed
    shutil.copytree(made, tmp_path / "copy")
    assert model_digest(tmp_path / "copy") == digest == model_files.hub_identity(str(made)), "wherever it lies"


def test_a_chain_survives_the_file_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    chain = Chain(base="b" * 64, stages=(Stage(step="sft", digest="d"),))
    chain.write(tmp_path)
    assert Chain.read(tmp_path) == chain
    with pytest.raises(ValueError, match="extra"):
        Chain.model_validate({"base": "b", "merged": True})


def test_an_artifact_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no model: got neither model/ nor record/location.json"):
        model_folder(tmp_path)


def checkpoint_artifact(root: Path, path: Path, **named: Any) -> Path:
    """What the step base leaves of a checkpoint that stays where it is."""
    made = root / "base" / "b"
    made.mkdir(parents=True)
    (made / "base.json").write_text(json.dumps({"digest": model_digest(path)}))
    models.write_location(made, path=str(path), **named)
    return made


def test_a_checkpoint_is_found_by_its_name_where_its_path_is_not(tmp_path: Path) -> None:
    """Another machine that shares the store."""
    artifact = checkpoint_artifact(tmp_path, folder(tmp_path / "here"), id=str(tmp_path / "named"), revision="v1")
    assert model_folder(artifact) == tmp_path / "here"
    shutil.move(tmp_path / "here", tmp_path / "named")
    assert model_folder(artifact) == tmp_path / "named"
    assert models.location(artifact) == {
        "path": str(tmp_path / "here"),
        "key": "",
        "id": str(tmp_path / "named"),
        "revision": "v1",
    }


@pytest.mark.parametrize("where", ["here", "named"])
def test_another_checkpoint_at_its_place_is_refused(tmp_path: Path, where: str) -> None:
    artifact = checkpoint_artifact(tmp_path, folder(tmp_path / "here"), id=str(tmp_path / "named"))
    shutil.move(tmp_path / "here", tmp_path / where)
    (tmp_path / where / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(
        ModelError,
        match=rf"checkpoint .*/{where} is not the one of .*: got digest \w+, because it changed since .*; put",
    ):
        model_folder(artifact)


def test_a_hub_checkpoint_is_found_in_the_cache_of_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    def cache(name: str) -> Path:
        repo = tmp_path / name / "models--org--tiny"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text("a" * 40)
        return folder(repo / "snapshots" / ("a" * 40))

    one, two = cache("one"), cache("two")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "one"))
    assert resolve("org/tiny") == one
    artifact = checkpoint_artifact(tmp_path, one, id="org/tiny", revision="a" * 40)
    shutil.rmtree(tmp_path / "one")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "two"))
    assert model_folder(artifact) == two
    shutil.rmtree(tmp_path / "two")
    with pytest.raises(ModelError, match="model 'org/tiny' could not be fetched"):
        model_folder(artifact)


# --- with the tiny chain ---------------------------------------------------------------------------------------------


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[5, 9, 40, 77, 2, 11]])).logits


@pytest.mark.tiny
def test_an_adapter_equals_its_merge_and_differs_from_its_base(chain: TinyChain) -> None:
    adapted = models.load_policy(chain.sft.path)
    assert not any(p.requires_grad for p in adapted.parameters())
    before = logits(models.load_model(model_folder(chain.sft.path)))
    said = logits(adapted).clone()
    merged = adapted.merge_and_unload()
    assert float((said - logits(merged)).abs().max()) < 1e-5
    assert float((said - before).abs().max()) > 1e-2
    assert any(p.requires_grad for p in models.load_policy(chain.sft.path, trainable=True).parameters())


@pytest.mark.tiny
def test_a_merge_survives_the_disk(chain: TinyChain, tmp_path: Path) -> None:
    adapted = models.load_policy(chain.sft.path)
    said = logits(adapted).clone()
    adapted.merge_and_unload().save_pretrained(tmp_path / "m")
    models.load_tokenizer(model_folder(chain.sft.path)).save_pretrained(tmp_path / "m")
    assert float((said - logits(models.load_model(tmp_path / "m"))).abs().max()) < 1e-5


@pytest.mark.tiny
def test_an_adapter_on_a_wrong_base_is_refused(chain: TinyChain, tmp_path: Path) -> None:
    copy = tmp_path / "sft" / chain.sft.path.name
    shutil.copytree(chain.sft.path, copy)
    models.write_location(copy, path=str(model_folder(chain.base.path)))
    with pytest.raises(
        ModelError, match="does not fit its base .*: got base digest .*, because the adapter was trained on .*; restore"
    ):
        models.load_policy(copy)


@pytest.mark.tiny
def test_the_base_is_found_beside_the_adapter_after_the_store_moved(chain: TinyChain, tmp_path: Path) -> None:
    for artifact in (chain.pretrain, chain.sft, chain.dpo):
        shutil.copytree(artifact.path, tmp_path / artifact.key)
    for artifact in (chain.sft, chain.dpo):
        assert model_folder(tmp_path / artifact.key) == tmp_path / chain.pretrain.key / "model"
        models.check_base(tmp_path / artifact.key)


@pytest.mark.tiny
def test_the_chain_names_base_and_stages(chain: TinyChain) -> None:
    base = model_digest(chain.pretrain.path / "model")
    assert Chain.read(chain.pretrain.path) == Chain(base=base)
    found = Chain.read(chain.dpo.path)
    assert found.base == base and [stage.step for stage in found.stages] == ["sft", "dpo"]
    assert found.stages[:1] == Chain.read(chain.sft.path).stages


@pytest.mark.tiny
def test_a_published_model_folder_holds_no_pickle_and_no_foreign_path(chain: TinyChain) -> None:
    for artifact in (chain.base, chain.pretrain, chain.sft, chain.dpo):
        names = [path.name for path in artifact.path.rglob("*") if path.is_file()]
        assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))], artifact.key
    check_folder(chain.base.path / "model")
    check_folder(chain.pretrain.path / "model")
    assert (chain.pretrain.path / "model" / "chat_template.jinja").read_text() == (
        chain.base.path / "model" / "chat_template.jinja"
    ).read_text()
    named = json.loads((chain.dpo.path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named and Path(named) == model_folder(chain.dpo.path), (
        "PEFT writes null for a base that was an object in memory"
    )


@pytest.mark.tiny
def test_a_tokenizer_without_a_chat_template_is_refused(chain: TinyChain, tmp_path: Path) -> None:
    shutil.copytree(chain.base.path / "model", tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template: got None, because .*; put a chat_template.jinja"):
        models.load_tokenizer(tmp_path / "m")
