"""The line by way of a reward model: SFT -> reward -> RL in place of dpo, through the engine to the gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fault.micro import in_this_process, walk
from minimal import Line

from flows.line import AlignConfig
from steps.lib.report import read

pytestmark = pytest.mark.tiny
FEW = {"batch_size": 4, "accumulation": 1, "log_every": 1, "max_length": 512, "lr": 1e-3, "max_updates": 2}
WORDS = (
    "dpo=null",
    f"reward={json.dumps({'heldback': 0.3, 'train': FEW})}",
    f"rl={json.dumps({'rewards': [{'kind': 'model'}, {'kind': 'rules'}], 'generations': 2, 'max_tokens': 6, 'train': FEW})}",
)


def test_the_line_runs_by_way_of_a_reward_model(minimal_line: Line, tmp_path: Path) -> None:
    line = minimal_line.copy(tmp_path / "line")
    with in_this_process() as built:
        found = walk(line, *WORDS)
        assert built == ["reward", "rl", "evaluate", "promote"], "all before it is there already"
        assert list(found)[-5:] == ["pairs", "reward", "rl", "evaluate", "promote"] and "dpo" not in found
        report = read(found["evaluate"].artifact.path)
        assert report.chain == ["base", "pretrained", "sft", "champion", "rl"], "that of the registry"
        assert {(one.model, one.against) for one in report.comparisons} >= {("rl", "sft"), ("rl", "base")}
        assert set(report.histories) >= {"sft", "reward", "rl"} or not report.histories, "records are not read back"
        verdict = json.loads((found["promote"].artifact.path / "verdict.json").read_text())
        assert verdict["candidate"] == "rl" and verdict["policy"] == found["rl"].artifact.digest
        built.clear()
        walk(line, *WORDS)
        assert not built
        walk(line, *WORDS, "rl.temperature=0.7")
        assert built == ["rl", "evaluate", "promote"], "the reward model is kept"


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"dpo": {}, "rl": {"rewards": [{"kind": "rules"}]}}, "dpo and rl exclude each other: got 2 sections"),
        ({"rl": {}}, "rl.rewards asks for a reward model: got reward: null"),
        ({"reward": {}, "pairs": None}, "reward has nothing to train on: got pairs: null"),
        ({"reward": {}, "rl": {"rewards": [{"kind": "rules"}]}}, "reward is made for nothing"),
        ({"sft": {"method": "ia3"}, "reward": {}}, "a reward model starts from whole weights or a LoRA adapter"),
        ({"pairs": {"sources": [{"kind": "badcases"}]}}, "pairs.sources has kind badcases: got badcases: null"),
        (
            {"promote": {}, "evaluate": {"registry": "x"}},
            "evaluate.registry and promote.registry differ: got x and data/reg",
        ),
        (
            {"promote": {"name": "desk"}, "evaluate": {"name": "shop"}},
            "evaluate.name and promote.name differ: got shop and",
        ),
        ({"sft": {"method": "ia3"}, "rl": {"rewards": [{"kind": "rules"}]}}, "rl.method is wrong: got lora"),
    ],
)
def test_sections_that_do_not_go_together_are_refused(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AlignConfig.model_validate({"pairs": {}, **sections})


def test_evaluate_meets_the_champion_of_the_registry_that_promote_decides_for() -> None:
    config = AlignConfig.model_validate({"promote": {"registry": "shelf", "name": "desk"}})
    assert (config.evaluate.registry, config.evaluate.name) == (Path("shelf"), "desk")
    assert AlignConfig.model_validate(config.model_dump()) == config
    assert AlignConfig.model_validate({}).evaluate.registry is None


def test_sections_that_go_together_are_taken() -> None:
    AlignConfig.model_validate({"pairs": {}, "reward": {}, "rl": {}})
    AlignConfig.model_validate({"rl": {"rewards": [{"kind": "rules"}]}})
    AlignConfig.model_validate({"pairs": {}, "dpo": {}, "reward": {}})
