"""Families of models, by their names."""

import json
from pathlib import Path

import pytest

from steps.lib.families import families, family, family_of, kinship
from steps.lib.teacher_config import HttpTeacher, ScriptedTeacherConfig


def http(model: str) -> HttpTeacher:
    return HttpTeacher(kind="http", name="judge", endpoint="e", base_url="http://h/v1", model=model)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gpt-4.1-mini", "gpt"),
        ("o3-mini", "gpt"),
        ("openai/gpt-oss-20b", "gpt"),
        ("EleutherAI/gpt-neo-125m", "eleuther"),
        ("claude-opus-4-5", "claude"),
        ("google/gemma-3-4b-it", "gemini"),
        ("Qwen/Qwen3-8B", "qwen"),
        ("QwQ-32B", "qwen"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "llama"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm"),
        ("deepseek-chat", "deepseek"),
        ("mistralai/Mixtral-8x7B", "mistral"),
        ("THUDM/chatglm3-6b", "glm"),
        ("GLM-4.6", "glm"),
        ("microsoft/phi-4", "phi"),
        ("01-ai/Yi-34B", "yi"),
        ("CohereForAI/c4ai-command-r-v01", "cohere"),
        ("acme/house-7b-chat", "house"),
        ("/models/house-v2", "house"),
        ("/models/qwen/merged/", "qwen"),
        ("sophia-1b", "sophia"),
        ("dolphin", "dolphin"),
        ("pro3", "pro3"),
    ],
)
def test_a_name_tells_its_family(name: str, told: str) -> None:
    assert family(name) == told


def test_a_distilled_model_is_kin_of_both() -> None:
    assert families("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B") == ("deepseek", "qwen")


def test_a_folder_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert family(str(tmp_path / "m")) == "m"
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    assert family(str(tmp_path / "m")) == "qwen"
    (tmp_path / "m" / "config.json").write_text(
        json.dumps({"model_type": "llama", "_name_or_path": "org/SmolLM2-135M"})
    )
    assert family(str(tmp_path / "m")) == "smollm"
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert family(str(tmp_path / "m")) == "m", "a shape that many use"
    (tmp_path / "m" / "config.json").write_text("[no object")
    assert family(str(tmp_path / "m")) == "m"


def test_kin_are_warned_of_by_name() -> None:
    others = {"policy": "Qwen/Qwen3-0.6B", "teacher t1": "gpt-5", "teacher t2": "qwen-max"}
    found = kinship(http("Qwen/Qwen3-32B"), others)
    assert len(found) == 2 and "family of policy (Qwen/Qwen3-0.6B): got qwen" in found[0] and "teacher t2" in found[1]
    assert not kinship(http("gemini-3-pro"), others)
    rules = ScriptedTeacherConfig.model_validate({"kind": "scripted", "path": "data/seed/task/teacher.yaml"})
    assert family_of(rules) == "scripted" and not kinship(rules, {"policy": "scripted"})
