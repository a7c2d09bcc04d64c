"""An exported model in plain transformers and PEFT answers as the adapter on its base does, and brings its papers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from minimal import SFT, TinyChain, made

from steps.lib import chat, export, inference, models, parity
from steps.lib.errors import ConfigError, ModelError
from steps.lib.registry import Registry

pytestmark = pytest.mark.tiny
ASKED = ("Is 91 fine?", "好吗92？", "Is 3 fine, really?", "订单")
TOKENS = 16


def turns(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "JSON."}, {"role": "user", "content": text}]


def plain_answers(model: Any, folder: Path) -> list[list[int]]:
    """What somebody gets who knows transformers and the folder alone."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = []
    for text in ASKED:
        given = tokenizer.apply_chat_template(
            turns(text), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**given, do_sample=False, max_new_tokens=TOKENS)
        said.append(out[0, given["input_ids"].shape[1] :].tolist())
    return said


def our_answers(artifact: Path) -> list[list[int]]:
    import torch

    model = models.load_policy(artifact, "float32")
    tokenizer = models.load_tokenizer(models.model_folder(artifact))
    said = []
    for text in ASKED:
        ids = chat.encode_prompt(tokenizer, turns(text))
        ends = inference.end_tokens(model, tokenizer)
        out = model.generate(
            input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=TOKENS, eos_token_id=ends, pad_token_id=0
        )
        said.append(out[0, len(ids) :].tolist())
    return said


@pytest.fixture(scope="module")
def version(chain: TinyChain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy as a registry keeps it, with a card."""
    root = tmp_path_factory.mktemp("version")
    staged = root / "staged"
    shutil.copytree(chain.dpo.path / "adapter", staged / "adapter")
    shutil.copyfile(chain.dpo.path / "chain.json", staged / "chain.json")
    (staged / "README.md").write_text("---\nlibrary_name: peft\n---\n\n# after-sales\n\nlibrary_name: peft\n")
    return Registry(root / "registry").register("desk", staged, facts={"policy": chain.dpo.digest}).folder


def test_a_merged_export_answers_in_plain_transformers_as_the_adapter_does(version: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    wanted = our_answers(version)
    done = export.export(version, tmp_path / "out", merged=True, facts={"name": "desk"})
    folder = models.model_folder(version)
    assert (done.merged, done.dtype, done.base) == (True, "float32", "")
    names = {path.name for path in done.folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md", "export.json"} <= names
    card = (done.folder / "README.md").read_text()
    assert card == "---\nlibrary_name: transformers\n---\n\n# after-sales\n\nlibrary_name: peft\n"
    assert not names & {"adapter_config.json", "adapter_model.safetensors", "chain.json"}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (done.folder / name).read_bytes() == (folder / name).read_bytes(), (
            "tokenizer and template travel as they are"
        )
    assert plain_answers(AutoModelForCausalLM.from_pretrained(done.folder), done.folder) == wanted
    bare = plain_answers(models.load_model(folder, "float32"), folder)
    assert bare != wanted, "else a lost adapter would pass"
    page = json.loads((done.folder / "export.json").read_text())
    assert page["from"] == {"name": "desk"} and page["digest"] == done.digest
    assert page["chain"]["base"] == models.Chain.read(version).base
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left beside it"


def test_weights_are_rounded_once_to_the_type_that_is_asked_for(version: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    half = export.export(version, tmp_path / "half", merged=True, dtype="bfloat16")
    whole = export.export(version, tmp_path / "whole", merged=True)
    low, high = (load_file(one.folder / "model.safetensors") for one in (half, whole))
    assert json.loads((half.folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert all((high[name].bfloat16() == value).all() for name, value in low.items())
    again = export.export(half_as_artifact(half.folder, tmp_path), tmp_path / "again", merged=True)
    assert again.dtype == "bfloat16", "a copy keeps the type of its files"
    assert (again.folder / "model.safetensors").read_bytes() == (half.folder / "model.safetensors").read_bytes()


def half_as_artifact(folder: Path, root: Path) -> Path:
    shutil.copytree(folder, root / "artifact" / "model")
    return root / "artifact"


def test_an_adapter_export_loads_with_peft_alone(version: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    done = export.export(version, tmp_path / "out", merged=False)
    assert done.base == str(models.model_folder(version).resolve()) and not done.merged
    loaded = AutoPeftModelForCausalLM.from_pretrained(done.folder)
    assert plain_answers(loaded, done.folder) == our_answers(version)
    assert (done.folder / "chat_template.jinja").exists()
    assert (done.folder / "README.md").read_text() == (version / "README.md").read_text()
    hub = export.export(version, tmp_path / "hub", merged=False, base="org/name@abc")
    settings = json.loads((hub.folder / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("org/name", "abc")


def test_an_adapter_on_a_commit_of_the_hub_names_that_commit(chain: TinyChain, tmp_path: Path) -> None:
    copied = tmp_path / "sft"
    shutil.copytree(chain.sft.path, copied)
    path = copied / "record" / "location.json"
    note = {**json.loads(path.read_text()), "key": "", "id": "org/name", "revision": "c" * 40}
    path.write_text(json.dumps(note))
    done = export.export(copied, tmp_path / "out", merged=False)
    settings = json.loads((done.folder / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("org/name", "c" * 40)
    assert done.base == f"org/name@{'c' * 40}"


def test_a_learnt_prompt_is_exported_as_it_is_and_cannot_be_merged(chain: TinyChain, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    config = SFT.model_validate(
        {**SFT.model_dump(), "method": "prompt", "train": {**SFT.train.model_dump(), "max_updates": 2, "warmup": 0.0}}
    )
    artifact = made(tmp_path / "store", "sft", config, base=chain.pretrain, chats=chain.data)
    with pytest.raises(
        ModelError, match="cannot be merged: got PROMPT_TUNING, because it is no change of the base's weights"
    ):
        export.export(artifact.path, tmp_path / "out", merged=True)
    done = export.export(artifact.path, tmp_path / "out", merged=False)
    assert AutoPeftModelForCausalLM.from_pretrained(done.folder).peft_config["default"].num_virtual_tokens > 0
    assert parity.check(artifact.path) == []


def test_the_end_of_a_turn_stops_plain_transformers_where_the_base_does_not_name_it(
    chain: TinyChain, tmp_path: Path
) -> None:
    """Llama 3 and others name in generation_config.json what the tokenizer does not, and the other way round."""
    artifact = tmp_path / "artifact"
    shutil.copytree(chain.pretrain.path / "model", artifact / "model")
    path = artifact / "model" / "generation_config.json"
    before = json.loads(path.read_text())
    end = before["eos_token_id"]
    path.write_text(json.dumps({**before, "eos_token_id": 5, "do_sample": True, "temperature": 0.6}))
    done = export.export(artifact, tmp_path / "out", merged=False)
    after = json.loads((done.folder / "generation_config.json").read_text())
    assert after["eos_token_id"] == sorted([5, end]) and after["temperature"] == 0.6


def test_what_cannot_be_exported_is_told_and_leaves_nothing(version: Path, chain: TinyChain, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="2 problems .*\n.*got one with something in it.*\n.*dtype bfloat16 cannot"):
        export.export(version, full, merged=False, dtype="bfloat16")
    with pytest.raises(ConfigError, match="base 'org/name' cannot be used here: got whole weights"):
        export.export(version, tmp_path / "out", merged=True, base="org/name")
    with pytest.raises(
        ModelError, match=r"is not the base of .*: got digest [0-9a-f]{12}, because the adapter was trained on"
    ):
        export.export(version, tmp_path / "out", merged=False, base=str(chain.base.path / "model"))
    assert [path.name for path in tmp_path.iterdir()] == ["full"] and (full / "mine.txt").exists()


def test_a_merge_that_loses_the_adapter_is_not_exported(
    version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.tuners_utils import BaseTuner

    real = BaseTuner.merge_and_unload

    def merge(self: Any, *args: Any, **kwargs: Any) -> Any:
        for name, value in self.named_parameters():
            if "lora_B" in name:
                value.data.zero_()
        return real(self, *args, **kwargs)

    monkeypatch.setattr(BaseTuner, "merge_and_unload", merge)
    with pytest.raises(ModelError, match="exported model answers differently: got logits"):
        export.export(version, tmp_path / "out", merged=True)
    assert not list(tmp_path.iterdir())
    assert parity.check(version)[0].startswith("merged adapter answers differently: got logits")


def test_a_sound_policy_has_no_problem(version: Path, chain: TinyChain) -> None:
    assert parity.check(version, [turns(text) for text in ASKED]) == []
    assert parity.check(chain.pretrain.path) == []


def test_a_template_that_serving_would_find_elsewhere_is_told(version: Path, tmp_path: Path) -> None:
    """A tokenizer beside the adapter wins in servers of adapters."""
    copied = tmp_path / "policy"
    shutil.copytree(version, copied)
    base = models.model_folder(version)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, copied / "adapter" / name)
    template = (base / "chat_template.jinja").read_text()
    (copied / "adapter" / "chat_template.jinja").write_text(template)
    assert parity.check(copied) == []
    (copied / "adapter" / "chat_template.jinja").write_text(template.replace("assistant\n{%", "assistant \n{%"))
    problems = parity.check(copied)
    assert len(problems) == 2 * len(parity.PROMPTS)
    assert "serving renders another text: got ' \\n' where '\\n' was expected, at place" in problems[0]
    assert "serving sends other tokens than evaluation" in problems[1]


def test_text_that_is_cut_elsewhere_when_turns_are_joined_is_told(chain: TinyChain, tmp_path: Path) -> None:
    """A server cuts the whole text at once: a token may run over the seam at which training began anew."""
    from transformers import AutoTokenizer

    artifact = tmp_path / "artifact"
    shutil.copytree(chain.pretrain.path / "model", artifact / "model")
    tokenizer = AutoTokenizer.from_pretrained(artifact / "model")
    tokenizer.add_tokens(["::x"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}<|im_end|>:{% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(artifact / "model")
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert parity.check(artifact, [[*said, {"role": "user", "content": "x"}]]) == []
    problems = parity.check(artifact, [[*said, {"role": "user", "content": ":x"}]])
    assert len(problems) == 1 and "conversation ':x' is not rendered alike: serving sends other tokens" in problems[0]
