"""Models switched on one base compute, to the bit, what each computes when it is loaded alone: every method, in every order."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from test_methods import CASES, config_of, logits

from steps.lib import adapters, inference, models, runtime, tiny
from steps.lib.errors import ModelError
from steps.lib.stages import Stages

pytestmark = pytest.mark.tiny
THERE = [case for case in CASES if "qlora" not in case or find_spec("bitsandbytes")]
WORDS = "Is 12 fine? 订单A12345到了吗？ The birds sing in the garden all day. 鸟儿歌唱。"
SHAPE = tiny.TinyConfig(vocab_size=400, hidden_size=64, intermediate_size=64, num_layers=2, num_heads=2)


def base_at(artifact: Path, seed: int) -> Path:
    """A made-up base, far from uniform."""
    tokenizer = tiny.build_tokenizer([WORDS] * 3, SHAPE)
    torch.manual_seed(seed)
    model = tiny.build_model(tokenizer, SHAPE)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4.0)
    model.save_pretrained(artifact / "model")
    tokenizer.save_pretrained(artifact / "model")
    return artifact


def policy_at(artifact: Path, base: Path, case: str) -> Path:
    """What a method writes after training, with random numbers in the place of trained ones."""
    config = config_of(case)
    runtime.seed_torch(len(case))
    model = adapters.start(config, base / "model", "auto", updates=10)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn_like(p) * (p.std() if config.method == "full" else 1.0))
    artifact.mkdir(parents=True)
    stage = models.Stage(step="sft", digest="d")
    adapters.save(model, config.method, artifact, base, stage, models.load_tokenizer(base / "model"))
    return artifact


@dataclass
class Made:
    """Artifacts on one base, and what each says when it is loaded alone."""

    root: Path
    names: list[str]
    logits: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, list[inference.Answer]] = field(default_factory=dict)

    def at(self, name: str) -> Path:
        return self.root / name.replace(" ", "-")


def greedy(model: Any, artifact: Path) -> list[inference.Answer]:
    tokenizer = models.load_tokenizer(models.model_folder(artifact))
    prompts = [tokenizer(WORDS)["input_ids"][:length] for length in (9, 4)]
    return inference.generate(model, tokenizer, prompts, inference.Sampling(0.0, 1.0, 6), seed=0, batch_size=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("stages")
    found = Made(root, ["base", "other", *THERE])
    base_at(root / "base", 1)
    base_at(root / "other", 2)
    for case in THERE:
        policy_at(found.at(case), root / "base", case)
    for name in found.names:
        alone = models.load_policy(found.at(name))
        found.logits[name], found.answers[name] = logits(alone), greedy(alone, found.at(name))
    return found


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Folders of the weights that were loaded, each time they were."""
    folders: list[Path] = []
    real = models.load_model

    def spy(folder: Path, *args: Any, **kwargs: Any) -> Any:
        folders.append(Path(folder))
        return real(folder, *args, **kwargs)

    monkeypatch.setattr(models, "load_model", spy)
    yield folders


def test_the_models_differ(made: Made) -> None:
    """Else nothing here could fail."""
    for one in made.names:
        alike = [name for name in made.names if torch.equal(made.logits[name], made.logits[one])]
        assert alike == [one]


def test_every_method_after_every_other_equals_the_model_loaded_alone(made: Made, loaded: list[Path]) -> None:
    stages = Stages("auto", bases=None)
    for before in made.names:
        for name in made.names:
            stages(made.at(before))
            assert torch.equal(logits(stages(made.at(name))), made.logits[name]), (before, name)
    assert sorted(loaded) == sorted(made.root / name / "model" for name in ("base", "full", "other")), "each once"


@pytest.mark.parametrize("seed", range(2))
def test_answers_in_any_order_equal_those_of_the_model_loaded_alone(made: Made, seed: int) -> None:
    """Generation has state of its own: caches, and methods that PEFT replaces while it lasts."""
    stages = Stages("auto", bases=None)
    order = [name for name in made.names for _ in range(2)]
    random.Random(seed).shuffle(order)
    for place, name in enumerate(order):
        assert greedy(stages(made.at(name)), made.at(name)) == made.answers[name], order[: place + 1]


def test_an_adapter_is_read_once_and_comes_back_as_it_was(made: Made) -> None:
    stages = Stages("auto")
    first = stages(made.at("lora"))
    assert stages(made.at("lora")) is first
    bare = stages(made.at("base"))
    assert not hasattr(bare, "peft_config") and not any("lora" in name for name, _ in bare.named_modules())
    stages(made.at("prefix"))
    assert stages(made.at("lora")) is first and stages(made.at("base")) is bare


def test_of_several_bases_the_ones_used_last_are_kept(made: Made, loaded: list[Path]) -> None:
    one = Stages("auto")
    for name in ("base", "lora", "prompt", "base", "other", "ia3", "lora", "base"):
        assert torch.equal(logits(one(made.at(name))), made.logits[name])
    assert [folder.parent.name for folder in loaded] == ["base", "other", "base"]
    loaded.clear()
    two = Stages("auto", bases=2)
    for name in ("base", "other", "lora", "full", "dora", "other", "full"):
        assert torch.equal(logits(two(made.at(name))), made.logits[name])
    assert [folder.parent.name for folder in loaded] == ["base", "other", "full", "other", "full"]


def test_a_copy_of_a_base_is_the_same_base(made: Made, tmp_path: Path, loaded: list[Path]) -> None:
    shutil.copytree(made.at("base"), tmp_path / "copy")
    stages = Stages("auto")
    stages(made.at("lora"))
    assert torch.equal(logits(stages(tmp_path / "copy")), made.logits["base"]) and len(loaded) == 1


def test_an_adapter_on_a_foreign_base_is_refused_and_harms_nobody(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.at("lora"), tmp_path / "lora")
    models.write_location(tmp_path / "lora", path=str(made.at("other") / "model"))
    stages = Stages("auto")
    stages(made.at("base"))
    with pytest.raises(ModelError, match="does not fit its base"):
        stages(tmp_path / "lora")
    assert torch.equal(logits(stages(made.at("base"))), made.logits["base"])


@pytest.mark.parametrize("case", ["lora", "adalora", "llama_adapter", "prefix", "prompt"])
def test_an_adapter_that_does_not_load_leaves_the_base_clean(made: Made, tmp_path: Path, case: str) -> None:
    """Of some kinds PEFT has injected half of it when it sees that the file is cut."""
    shutil.copytree(made.at(case), tmp_path / "cut")
    weights = tmp_path / "cut" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    stages = Stages("auto")
    stages(made.at("ia3"))
    with pytest.raises(Exception, match="(?i)header|incomplete|metadata"):
        stages(tmp_path / "cut")
    for name in ("base", "ia3", case):
        assert torch.equal(logits(stages(made.at(name))), made.logits[name])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("case", ["lora", "prefix", "prompt", "llama_adapter"])
def test_an_answer_that_was_broken_off_changes_no_later_one(made: Made, case: str, error: type[BaseException]) -> None:
    """PEFT leaves its own method in the base then; without care, a prefix would stand before the next model's answers."""
    stages = Stages("auto")
    seen: list[str] = []

    def breaks(piece: str) -> None:
        seen.append(piece)
        if len(seen) == 3:
            raise error

    model, tokenizer = stages(made.at(case)), models.load_tokenizer(made.at("base") / "model")
    with pytest.raises(error):
        inference.generate(
            model, tokenizer, [[5, 9, 200]], inference.Sampling(0.0, 1.0, 6), seed=0, batch_size=1, show=breaks
        )
    for name in ("base", "ia3", case, "p_tuning_v2"):
        assert greedy(stages(made.at(name)), made.at(name)) == made.answers[name]
