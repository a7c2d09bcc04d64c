"""Teachers: the union, rules, shares, and a real tiny model."""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from teachers import collect, requests

from steps.lib.asking import Outcome, Request
from steps.lib.ledger import RequestLedger
from steps.lib.teacher import assign, open_client
from steps.lib.teacher_config import LocalTeacher, ScriptedTeacherConfig, Teacher

TEACHER = Path("data/seed/task/teacher.yaml")


def test_union_is_chosen_by_kind_and_scripted_is_recognisable() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Teacher)
    assert isinstance(adapter.validate_python({"kind": "scripted", "path": "x"}), ScriptedTeacherConfig)
    with pytest.raises(ValidationError, match="scripted"):
        adapter.validate_python({"kind": "scripted", "path": "x", "name": "gpt-5"})
    with pytest.raises(ValidationError, match="without user or password"):
        adapter.validate_python(
            {"kind": "http", "name": "t", "endpoint": "e", "model": "m", "base_url": "http://me:pw@host/v1"}
        )


def test_scripted_teacher_answers_by_rules(tmp_path: Path) -> None:
    config = ScriptedTeacherConfig(kind="scripted", name="scripted-desk", path=TEACHER)
    replies, failures, _ = collect(config, ["I want a refund for order A12345", "zzz"], tmp_path / "r")
    reply = replies["I want a refund for order A12345"]
    assert reply is not None and "A12345" in reply.text and reply.model == "scripted-desk"
    assert failures["zzz"].startswith("no_rule: prompt 'zzz' cannot be answered")


def test_shares_are_kept_for_each_prompt_and_on_average() -> None:
    counts: Counter[int] = Counter()
    for n in range(400):
        one = assign([1, 1], 2, f"p{n}", 0)
        assert sorted(one) == [0, 1], "equal shares and two samples: each teacher answers each prompt"
        counts.update(assign([3, 1], 1, f"p{n}", 0))
    assert 270 < counts[0] < 330
    assert assign([3, 1], 1, "p7", 0) == assign([3, 1], 1, "p7", 0)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from steps.lib.tiny import TinyConfig, build_model, build_tokenizer

    torch.manual_seed(0)
    config = TinyConfig(vocab_size=300, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, max_length=128)
    tokenizer = build_tokenizer(["hello there, 你好", "some words"], config)
    folder = tmp_path_factory.mktemp("model")
    build_model(tokenizer, config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.tiny
def test_local_teacher_is_the_same_wherever_it_was_killed(tmp_path: Path, tiny_model: Path) -> None:
    config = LocalTeacher(kind="local", name="l", model=str(tiny_model), max_tokens=6, temperature=1.0, batch_size=3)
    prompts = [f"hello {'x' * n}" for n in range(7)]
    whole, failures, tally = collect(config, prompts, tmp_path / "whole")
    assert not failures and tally.tokens_out > 7 and len({reply.text for reply in whole.values() if reply}) > 3
    client = open_client(config, 0)
    wanted = requests(client, prompts)
    got: list[str] = []

    def report(ledger: RequestLedger) -> Callable[[Request, Outcome], None]:
        def write(request: Request, outcome: Outcome) -> None:
            assert outcome.reply is not None
            if len(got) == 4:  # killed in the middle of the second batch
                raise KeyboardInterrupt
            got.append(request.key)
            ledger.put(request.key, outcome.reply)

        return write

    with RequestLedger(tmp_path / "cut") as ledger, pytest.raises(KeyboardInterrupt):
        asyncio.run(
            client.answer(wanted, frozenset(request.key for request in wanted), report(ledger), asyncio.Event())
        )
    again, _, tally = collect(config, prompts, tmp_path / "cut")
    assert (tally.from_ledger, tally.answered) == (4, 3)
    assert {prompt: reply and reply.text for prompt, reply in again.items()} == {
        p: reply and reply.text for p, reply in whole.items()
    }


@pytest.mark.tiny
def test_local_teacher_key_follows_weights_and_template(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "copy"
    shutil.copytree(tiny_model, other)
    config = LocalTeacher(kind="local", name="l", model=str(tiny_model))
    same = config.model_copy(update={"model": str(other)})
    assert requests(open_client(config, 0), ["a"])[0].key == requests(open_client(same, 0), ["a"])[0].key
    template = other / "chat_template.jinja"
    template.write_text(template.read_text() + "{# #}")
    assert requests(open_client(config, 0), ["a"])[0].key != requests(open_client(same, 0), ["a"])[0].key


@pytest.mark.tiny
def test_local_teacher_refuses_what_does_not_fit(tiny_model: Path, tmp_path: Path) -> None:
    config = LocalTeacher(kind="local", name="l", model=str(tiny_model), max_tokens=8, temperature=0)
    replies, failures, _ = collect(config, ["short", "long " * 100], tmp_path / "r")
    assert replies["short"] is not None and failures["long " * 100].startswith("context_overflow")
