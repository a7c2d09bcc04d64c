"""Tokens: the bound is never below a real count, and a named tokenizer counts what is really sent."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minimal import ROOT, TINY, texts
from pydantic import TypeAdapter

from steps.lib.chat import encode_prompt
from steps.lib.errors import ModelError
from steps.lib.models import load_tokenizer
from steps.lib.rows import messages
from steps.lib.teacher import identities
from steps.lib.teacher_config import Teacher
from steps.lib.tiny import TinyConfig, build_tokenizer
from steps.lib.tokens import BOUND, Tokenizer, counter, whole

SMOL = ROOT.parent / "dev" / "smollm2"
HARD = [
    "13800138000 2026-11-23",
    "你好，我要退货。",
    "😀👨‍👩‍👧🇨🇳",
    "한국어 русский العربية",
    "\t\n\n  {}[]!?",
    "a" * 99,
    "\x00\x7f",
    "龘靐齉",
]


def teacher(**values: Any) -> Any:
    http = {"kind": "http", "name": "t", "endpoint": "e", "base_url": "http://x/v1", "model": "m"}
    return TypeAdapter(Teacher).validate_python({**http, **values} if "kind" not in values else values)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer([row.text for row in texts("general", 24)], TinyConfig(**TINY)).save_pretrained(folder)
    return folder


def real() -> Iterator[str]:
    for name in ("task/prompts_train", "general/train", "domain/train"):
        lines = (ROOT / "data" / "seed" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:40]
        yield from (str(row.get("text", row.get("prompt"))) for row in map(json.loads, lines))
    yield from (line for line in (ROOT / "data/seed/prompts/task/examples.jsonl").read_text().splitlines())
    yield (ROOT / "steps" / "lib" / "tokens.py").read_text()[:4000]
    yield from HARD


def never_less(count: Tokenizer) -> None:
    for text in real():
        assert BOUND(text) >= count(text), text
        for turns in (
            messages(("user", text)),
            messages(("system", "s"), ("user", text)),
            messages(("system", text), *[("user", text), ("assistant", text)] * 3, ("user", "")),
        ):
            assert BOUND.turns(turns) >= count.turns(turns), turns


def test_the_bound_is_never_below_the_tiny_tokenizer(tiny: Path) -> None:
    never_less(Tokenizer(str(tiny)))


@pytest.mark.smol
@pytest.mark.skipif(not SMOL.is_dir(), reason="needs SmolLM2-135M-Instruct beside the repository, in ../dev/smollm2")
def test_the_bound_is_never_below_smollm2() -> None:
    count = Tokenizer(str(SMOL))
    never_less(count)
    chinese = "我买的电水壶底部漏水，想要退货。"
    assert count(chinese) > len(chinese.encode()) / 3 * 1.5  # a third of the bytes would be far too few


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40))
def test_the_bound_holds_for_any_text(tiny: Path, text: str) -> None:
    global _TINY
    _TINY = _TINY or Tokenizer(str(tiny))
    assert BOUND(text) >= _TINY(text)
    assert BOUND(text) == len(text.encode())


_TINY: Tokenizer | None = None


def test_half_a_surrogate_pair_is_counted() -> None:
    assert BOUND("\ud83d") == 3


def test_a_teacher_is_counted_by_what_it_has(tiny: Path) -> None:
    assert counter(teacher()) is BOUND
    assert counter(teacher(kind="scripted", path="data/seed/task/teacher.yaml")) is BOUND
    named = counter(teacher(tokenizer=str(tiny)))
    local = counter(teacher(kind="local", name="l", model=str(local_model(tiny))))
    tokenizer = load_tokenizer(local_model(tiny))
    turns = messages(("system", "JSON."), ("user", "Is 1 fine?"), ("assistant", "\n是"), ("user", "好吗？"))
    assert local.turns(turns) == len(encode_prompt(tokenizer, turns))
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert named.turns(turns) == len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert named("Is 1 fine?") == len(tokenizer("Is 1 fine?")["input_ids"])
    assert str(tiny) in named.name and "no tokenizer" in BOUND.name
    assert whole(None, turns) == BOUND.turns(turns) and whole(named, turns) == named.turns(turns)
    assert whole(len, turns) > sum(len(turn["content"]) for turn in turns)


def local_model(tiny: Path) -> Path:
    """The tokenizer with what makes its folder a checkpoint; the weights are never read here."""
    if not (tiny / "model.safetensors").exists():
        from safetensors.torch import save_file

        save_file({}, tiny / "model.safetensors")
        (tiny / "config.json").write_text('{"model_type": "llama"}')
    return tiny


def test_a_tokenizer_without_a_chat_template(tiny: Path, tmp_path: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((tiny / file).read_bytes())
    count = Tokenizer(str(tmp_path))
    assert count.turns(messages(("user", "hi"))) > count("hi") and "no chat template" in count.name


def test_the_content_of_a_tokenizer_is_in_the_key(tiny: Path, tmp_path: Path) -> None:
    assert identities([teacher()]) == {}
    one = identities([teacher(tokenizer=str(tiny))])
    assert list(one) == ["tokenizer of t"]
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert identities([teacher(tokenizer=str(tmp_path))]) == one
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert identities([teacher(tokenizer=str(tmp_path))]) != one


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"got no tokenizer.json, because .*; give the folder"):
        counter(teacher(tokenizer=str(tmp_path)))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        Tokenizer(str(tmp_path))
    with pytest.raises(ModelError, match="could not be fetched"):
        counter(teacher(tokenizer="nobody/nothing"))
