"""A budget through the engine: the step stops as resumable, and goes on when the budget is raised."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from openai_server import Act, serve
from ruamel.yaml import YAML

from flows.engine import Engine, Plan
from flows.line import AlignConfig
from steps.lib.config import layers_of, load
from steps.lib.errors import BudgetSpent


@pytest.mark.flow
def test_a_spent_budget_stops_the_step_and_more_of_it_goes_on(tmp_path: Path) -> None:
    from flows.tasks import _worth_another_try, failed

    rows = [{"id": f"p{n}", "lang": "en", "prompt": f"question {n}"} for n in range(30)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(tokens: int) -> AlignConfig:
        teacher = {"kind": "http", "name": "t", "endpoint": "e", "base_url": server.url, "model": "m", "max_tokens": 100,
                   "concurrency": 4, "budget_tokens": tokens}  # fmt: skip
        generate = {"prompts": [{"name": "train", "path": str(tmp_path / "prompts.jsonl")}],
                    "prompt_file": "configs/prompts/plain.yaml", "teachers": [teacher]}  # fmt: skip
        with (tmp_path / "recipe.yaml").open("w") as file:
            YAML(typ="safe").dump({"store": str(tmp_path / "store"), "generate": generate}, file)
        return load(AlignConfig, layers_of("cpu-tiny", [tmp_path / "recipe.yaml"])).value

    with serve(lambda n, b: Act(text="fine", usage={"prompt_tokens": 10, "completion_tokens": 90})) as server:
        first = Engine(config(1500), Plan.of("generate"))
        with pytest.raises(
            BudgetSpent, match=r"got 1\d00 of 1500 tokens used, .* raise budget_tokens and run the same command"
        ) as caught:
            first.run()
        assert caught.value.exit_code == 75 and not _worth_another_try(None, None, failed(caught.value))  # type: ignore[arg-type]
        assert 10 <= len(server.bodies) <= 15
        second = Engine(config(100_000), Plan.of("generate"))
        second.run()
        assert Counter(server.asked()) == {f"question {n}": 1 for n in range(30)}
    metrics = second.outcomes[0].artifact.manifest["metrics"]
    assert metrics["t/tokens_in"] + metrics["t/tokens_out"] == 3000
