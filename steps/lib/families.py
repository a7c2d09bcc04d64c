"""Families of models, by name: a judge prefers answers of its own family.

Source: Panickssery et al. 2024, "LLM Evaluators Recognize and Favor Their Own Generations", arXiv 2404.13076; Zheng et al. 2023,
arXiv 2306.05685, section 3.3 (self-enhancement bias). A family is who trained it or whose weights or answers it began from, as far
as a name tells: ``DeepSeek-R1-Distill-Qwen-7B`` is kin of both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from steps.lib.teacher_config import AnyTeacher, ScriptedTeacherConfig

_NAMES: dict[str, str] = {
    "eleuther": r"gpt-?neo|gpt-?j\b|pythia|eleuther",
    "gpt": r"(?<![a-z])gpt|chatgpt|openai|distilgpt|(?<![a-z0-9])o[1345](?![a-z0-9.])|davinci|codex",
    "claude": r"claude|anthropic",
    "gemini": r"gemini|gemma|(?<![a-z])palm(?![a-z])|google|medgemma",
    "smollm": r"smollm|smolvlm",
    "llama": r"llama|vicuna|alpaca|(?<![a-z])meta-",
    "qwen": r"qwen|(?<![a-z])qwq|qvq|tongyi",
    "deepseek": r"deepseek",
    "mistral": r"mistral|mixtral|ministral|codestral|magistral|devstral|zephyr|pixtral",
    "yi": r"(?<![a-z])yi-|01-ai|lingyi",
    "glm": r"(?<![a-z])glm|chatglm|zhipu|(?<![a-z])zai-",
    "baichuan": r"baichuan",
    "internlm": r"internlm|(?<![a-z])interns",
    "hunyuan": r"hunyuan|tencent",
    "ernie": r"ernie|wenxin|baidu",
    "doubao": r"doubao|bytedance|(?<![a-z])seed-",
    "kimi": r"kimi|moonshot|moonlight",
    "minimax": r"minimax|abab\d",
    "minicpm": r"minicpm|openbmb",
    "phi": r"(?<![a-z])phi-?\d|(?<![a-z])phi(?![a-z])",
    "falcon": r"falcon|tiiuae",
    "cohere": r"cohere|command-?[ar](?![a-z])|(?<![a-z])aya(?![a-z])|c4ai",
    "grok": r"grok",
    "olmo": r"olmo|tulu|allenai",
    "granite": r"granite",
    "nemotron": r"nemotron",
    "bloom": r"(?<![a-z])bloom",
}
_SHAPES = ("llama", "mistral", "gpt2", "gpt_neox")
"""Kinds of a config.json that many families use: a shape, and no origin."""
_FAMILIES = {name: re.compile(pattern) for name, pattern in _NAMES.items()}
_SIZE = re.compile(
    r"[-_.: ]+(v?\d[\w.]*|instruct|chat|base|it|sft|dpo|preview|latest|gguf|awq|gptq|fp8|int[48])(?=$|[-_.: ])"
)


def families(name: str) -> tuple[str, ...]:
    """Every family that a model's name, hub id or folder tells, in the order in which the name tells them.

    A name that tells none is a family of its own, without size and version: ``acme/house-7b-chat`` is ``house``. A folder with
    such a name is looked into: its ``config.json`` knows where it came from.
    """
    return _told(name.rstrip("/").rpartition("/")[2]) or _told(name) or _inside(name) or (_bare(name),)


def family(name: str) -> str:
    """The family that a model's name tells first."""
    return families(name)[0]


def family_of(teacher: AnyTeacher) -> str:
    """The family of a configured teacher or judge; a rule program is ``scripted``."""
    return "scripted" if isinstance(teacher, ScriptedTeacherConfig) else family(teacher.model)


def kinship(judge: AnyTeacher, others: Mapping[str, str]) -> list[str]:
    """A warning for each of the others that is of the judge's family.

    Args:
        judge: who judges.
        others: what it is in the run, such as ``teacher t1`` or ``policy`` -> its model's name, hub id or folder.
    """
    if isinstance(judge, ScriptedTeacherConfig):
        return []
    own = families(judge.model)
    return [
        f"judge {judge.name} ({judge.model}) is of the family of {who} ({name}): got {' and '.join(shared)}, because a judge "
        "prefers answers of its own family; take a judge of another family, or read its verdicts with that in mind"
        for who, name in sorted(others.items())
        if (shared := [one for one in families(name) if one in own])
    ]


def _told(name: str) -> tuple[str, ...]:
    lower = name.lower()
    found = {family: match.start() for family, pattern in _FAMILIES.items() if (match := pattern.search(lower))}
    return tuple(sorted(found, key=lambda one: found[one]))


def _inside(name: str) -> tuple[str, ...]:
    """What the configuration in a model's folder tells."""
    try:
        values = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    if not isinstance(values, dict):
        return ()
    kind = str(values.get("model_type") or "")
    return _told(str(values.get("_name_or_path") or "")) or (() if kind in _SHAPES else _told(kind))


def _bare(name: str) -> str:
    last = name.rstrip("/").rpartition("/")[2].lower()
    return _SIZE.split(last)[0] or last
