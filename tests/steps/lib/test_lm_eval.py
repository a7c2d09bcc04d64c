"""lm-eval's own scoring on a tiny model and local tasks: our items say what a computation by hand says, and no cache lies."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from minimal import TinyChain

from steps.lib import figures, inference, models
from steps.lib.errors import ConfigError
from steps.lib.figures import Item
from steps.lib.inference import Later
from steps.lib.lm_eval import LmEval, LmEvalConfig
from steps.lib.stopping import stop_signals
from steps.lib.suites import Limits, Scored, Suite
from steps.lib.work_ledger import WorkLedger

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
pytestmark = [pytest.mark.tiny, pytest.mark.filterwarnings("ignore")]  # of its many libraries
CHOICES = ['{"ok": "yes"}', '{"ok": "no"}']
HEAD = """\
dataset_path: json
dataset_kwargs: {data_files: {test: %s.jsonl}}
test_split: test
"""
TASKS = {
    "choice": """\
task: choice
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{c}}"
doc_to_target: a
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "bits": """\
task: bits
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{q}}"
metric_list: [{metric: bits_per_byte}]
""",
    "say": """\
task: say
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{c[a]}}"
generation_kwargs: {until: ["}"], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
""",
}


def rows(count: int = 6) -> list[dict[str, Any]]:
    return [{"q": f"Is {n} fine? 好吗{n}？", "c": CHOICES, "a": n % 2} for n in range(count)]


@pytest.fixture
def config(tmp_path: Path) -> LmEvalConfig:
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(text + HEAD % name)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return LmEvalConfig(include_path=tmp_path, tasks=tuple(TASKS))


def who(artifact: Path, **more: Any) -> Scored:
    tokenizer = models.load_tokenizer(models.model_folder(artifact))
    return Scored("sft", models.load_policy(artifact, "float32"), tokenizer, Limits(8, 64, 4), seed=0, **more)


def of(items: list[Item], task: str) -> list[Item]:
    return [item for item in items if item.slices[0] == task]


def test_items_say_what_a_computation_by_hand_says(chain: TinyChain, config: LmEvalConfig) -> None:
    suite: Suite = LmEval(config)
    asked = who(chain.sft.path)
    items = suite.score(asked)
    assert len(items) == len(suite) == 18 and not any(item.error for item in items)
    assert len({item.item_id for item in items}) == 18 and {item.suite for item in items} == {suite.name}

    ids = lambda text: asked.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    for row, item in zip(rows(), of(items, "choice"), strict=True):
        sides = [(ids(row["q"]), ids(row["q"] + choice)[len(ids(row["q"])) :]) for choice in CHOICES]
        logps = inference.sequence_logps(asked.model, sides, batch_size=1)
        best = max(range(2), key=lambda place: logps[place])
        assert item.scores["choice:acc"] == float(best == row["a"]) and item.output == CHOICES[best]
    nats = inference.text_nats(asked.model, asked.tokenizer, [row["q"] for row in rows()], window=128, batch_size=1)
    for row, value, item in zip(rows(), nats, of(items, "bits"), strict=True):
        assert item.scores["bits:bits"] == pytest.approx(value / math.log(2), rel=1e-4)
        assert item.scores["bits:bytes"] == len(row["q"].encode())
    assert all(item.output and item.n_out > 0 for item in of(items, "say"))
    taken = {what.name: figures.measure(items, what, "sft").interval for what in suite.measures}
    assert sorted(taken) == [
        "lm_eval_bits_bits_per_byte",
        "lm_eval_choice_acc",
        "lm_eval_choice_acc_norm",
        "lm_eval_say_exact_match",
    ]
    assert taken["lm_eval_choice_acc"].n == 6 and {item.lang for item in items} <= {"zh", "en", "other"}


def test_another_model_or_other_rows_are_never_answered_from_a_cache(
    chain: TinyChain, config: LmEvalConfig, tmp_path: Path
) -> None:
    """lm-eval's caches tie adapter and base (issue 2715), and answer for rows that were edited since."""
    narrow = config.model_copy(update={"tasks": ("bits",), "limit": 3})
    asked = who(chain.sft.path)

    def bits(items: list[Item]) -> list[float | None]:
        return [item.scores["bits:bits"] for item in items]

    with stop_signals() as stop, WorkLedger(tmp_path / "batches.sqlite", stop, logging.getLogger("test")) as ledger:

        def scored(name: str, model: Any) -> list[Item]:
            return LmEval(narrow).score(
                Scored(name, model, asked.tokenizer, asked.limits, seed=0, recall=ledger.about(model=name))
            )

        adapter = scored("adapter", asked.model)
        with asked.model.disable_adapter():
            base = scored("base", asked.model)
        assert len(adapter) == 3 and all(one != other for one, other in zip(bits(adapter), bits(base), strict=True))

        def refuse() -> Any:
            raise AssertionError("a finished task loads no model")

        assert scored("adapter", Later(refuse)) == adapter and ledger.kept == 1
        before = LmEval(narrow).digest()
        (tmp_path / "bits.jsonl").write_text("".join(json.dumps({**row, "q": row["q"] + "!"}) + "\n" for row in rows()))
        assert LmEval(narrow).digest() != before
        assert bits(scored("adapter", asked.model)) != bits(adapter) and ledger.computed == 3


def test_a_task_that_raises_gives_an_error_for_each_of_its_items(chain: TinyChain, config: LmEvalConfig) -> None:
    (config.include_path / "say.jsonl").write_text(
        "".join(json.dumps({**row, "a": 9 if place else 0}) + "\n" for place, row in enumerate(rows()))
    )
    suite = LmEval(config.model_copy(update={"tasks": ("say", "bits"), "limit": 2}))
    items = suite.score(who(chain.sft.path))
    assert [bool(item.error) for item in items] == [True, True, False, False] and len(suite) == 4
    assert "UndefinedError" in items[0].error
    path = config.include_path / "choice.yaml"
    path.write_text(path.read_text().replace('"{{c}}"', '"{{nothing}}"'))
    with pytest.raises(ConfigError, match="task choice of lm-eval cannot be loaded: got UndefinedError: 'nothing'"):
        LmEval(config).score(who(chain.sft.path))


def test_the_chat_template_is_used_when_it_is_asked_for(chain: TinyChain, config: LmEvalConfig) -> None:
    plain = config.model_copy(update={"tasks": ("say",), "limit": 2})
    chat = plain.model_copy(update={"chat_template": True})
    assert LmEval(chat).digest() != LmEval(plain).digest()
    lengths = [[item.n_in for item in LmEval(one).score(who(chain.sft.path))] for one in (chat, plain)]
    assert all(one > other for one, other in zip(*lengths, strict=True)), "the template's own tokens"
