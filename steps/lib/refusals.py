"""What a method cannot do with this model or this policy: refused before a row is read or a weight is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from steps.lib.errors import ConfigError
from steps.lib.methods import METHODS, SECTIONS, AnyMethod, MergingMethods, settings_of

UNSHARED = {
    "qlora": "bitsandbytes keeps a matrix as packed blocks, which cannot be cut by rows",
    "adalora": "it moves ranks between matrices by looking at all of them whole after each update",
}
"""Methods whose weights cannot be shared out over processes, and why."""
SHARING = ("base", "pretrain", "sft", "dpo")
"""Steps that can share weights out."""
BY_ROWS = ("kto", "reward", "rl")
"""Steps whose passes are counted in rows, not in tokens."""
PLAIN = ("reward", "rl")
"""Steps whose layers are not compiled."""


def check(config: MergingMethods, step: str, folder: Path, *, adapter: Path | None = None) -> None:
    """Refuse what cannot work with this model or this policy. Cheap: reads two small files, loads no weights.

    Args:
        config: of the step.
        step: name of the step.
        folder: of the base.
        adapter: of the policy, for dpo; its folder may be missing, then the policy is whole weights.

    Raises:
        ConfigError: every problem that there is.
    """
    problems: list[str] = []
    held = adapter / "adapter_config.json" if adapter else None
    if held and held.exists():
        problems += _going_on(config, step, json.loads(held.read_text(encoding="utf-8")))
    else:
        problems += _fresh(config, step, json.loads((folder / "config.json").read_text(encoding="utf-8")))
        problems += [] if problems else _misplaced(config, step, folder)
    problems += unread(config, step)
    if config.method == "qlora" and find_spec("bitsandbytes") is None:
        problems.append(
            f"{step}.method is wrong: got qlora, because the package bitsandbytes is not installed; install it with "
            f"`pip install -c constraints.txt 'prefline[qlora]'`, or set {step}.method to lora"
        )
    if problems:
        raise ConfigError(problems)


def unread(config: Any, step: str) -> list[str]:
    """Settings of the training that this step, or its method, cannot follow."""
    train, problems = config.train, []
    where = f"{step}.train.parallel"
    if train.parallel == "fsdp" and step not in SHARING:
        problems.append(
            f"{where} is wrong: got fsdp, because only {', '.join(SHARING)} share weights out; set {where} to ddp"
        )
    elif train.parallel == "fsdp" and config.method in UNSHARED:
        problems.append(
            f"{where} is wrong: got fsdp with method {config.method}, because {UNSHARED[config.method]}; set it to ddp, or "
            f"{step}.method to lora"
        )
    if step in BY_ROWS and train.tokens_per_pass != type(train).model_fields["tokens_per_pass"].default:
        problems.append(
            f"{step}.train.tokens_per_pass is read by nothing: got {train.tokens_per_pass}, because {step} makes its passes of "
            f"batch_size rows; leave it out, and set {step}.train.batch_size and accumulation"
        )
    if train.compiled and step in PLAIN:
        problems.append(
            f"{step}.train.compiled is read by nothing: got true, because {step} trains by TRL's own trainer; leave it out"
        )
    elif train.compiled and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        problems.append(
            f"{step}.train.compiled cannot be followed: got true, because torch.compile needs a C++ compiler and this machine "
            f"has none; install one (g++), or set {step}.train.compiled to false"
        )
    return problems


def foreign(step: str, method: str, kind: str | None) -> str | None:
    """Why a method cannot go on from a policy with an adapter of a kind (None: whole weights, from which all can start)."""
    fitting = [name for name, one in METHODS.items() if one.kind == kind]
    if kind is None or method in fitting:
        return None
    return (
        f"{step}.method is wrong: got {method}, because the policy holds an adapter of kind {kind}, which goes on training as "
        f"it is; set {step}.method to {' or '.join(fitting) or 'nothing that there is'}, or train the policy with sft.method "
        "full, on which every method can start"
    )


def _going_on(config: MergingMethods, step: str, adapter: dict[str, Any]) -> list[str]:
    """Problems of training the adapter on that a policy holds."""
    if problem := foreign(step, config.method, str(adapter.get("peft_type"))):
        return [problem]
    problems = []
    section = SECTIONS.get(config.method, config.method)
    settings = settings_of(config)
    if settings is not None and settings != type(settings)():
        problems.append(
            f"{step}.{section} is wrong: got settings of its own, because the policy's adapter goes on training with the shape "
            f"that sft gave it; leave {step}.{section} out"
        )
    if config.method == "qlora" and adapter.get("init_lora_weights") == "mica":
        problems.append(
            f"{step}.method is wrong: got qlora, because the policy's adapter was made by init mica, which reads unquantised "
            f"weights; set {step}.method to lora"
        )
    return problems


def _fresh(config: MergingMethods, step: str, model: dict[str, Any]) -> list[str]:
    """Problems of starting afresh on whole weights."""
    text = {**model, **model.get("text_config", {})}
    kind = str(text.get("model_type"))
    if config.method == "llama_adapter":
        return list(_llama_adapter(config, step, text, kind))
    if config.method == "ia3" and config.ia3.targets is None:
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

        if kind not in KNOWN:
            return [
                f"{step}.ia3.targets is missing: got null, because PEFT does not know which matrices of a model of type {kind} to "
                f"scale (it knows {', '.join(sorted(KNOWN))}); name them, such as [k_proj, v_proj, down_proj]"
            ]
    return []


def _misplaced(config: MergingMethods, step: str, folder: Path) -> list[str]:
    """Targets that the model does not have, and ranks that its matrices do not have: on a model without weights."""
    settings = settings_of(config)
    targets = getattr(settings, "targets", None)
    rank = config.lora.rank if config.method == "lora" and config.lora.init in ("pissa", "olora", "mica") else 0
    if not isinstance(targets, list) and not rank:
        return []
    import torch

    section = f"{step}.{SECTIONS.get(config.method, config.method)}"
    names = {name: module for name, module in skeleton(folder).named_modules() if isinstance(module, torch.nn.Linear)}
    wanted = [targets] if isinstance(targets, str) else targets or []
    known = sorted({name.rpartition(".")[2] for name in names})
    problems = [
        f"{section}.targets is wrong: got {one}, because no matrix of the model ends with that name; take some of "
        f"{', '.join(known)}, or all-linear"
        for one in wanted
        if one != "all-linear" and not any(name == one or name.endswith(f".{one}") for name in names)
    ]
    smallest = min(min(module.weight.shape) for module in names.values())
    if rank > smallest:
        problems.append(
            f"{section}.rank is wrong: got {rank} with init {config.lora.init}, because the smallest matrix of the model has only "
            f"{smallest} singular vectors; set it to {smallest} or less, or {section}.init to default"
        )
    return problems


def skeleton(folder: Path) -> Any:
    """A checkpoint's model without its weights: in a moment, and in no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))


def _llama_adapter(config: MergingMethods, step: str, text: dict[str, Any], kind: str) -> Sequence[str]:
    from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG as KNOWN

    known = sorted(set(KNOWN) - {"gpt2"})  # its attention of today gives no query that PEFT could look up
    if kind not in known:
        return [
            f"{step}.method is wrong: got llama_adapter for a model of type {kind}, because PEFT wraps the attention of "
            f"{' and '.join(known)} only; set {step}.method to lora, or start from such a model"
        ]
    heads, width = int(text["num_attention_heads"]), int(text["hidden_size"])
    problems = []
    if (text.get("head_dim") or width // heads) * heads != width:
        problems.append(
            f"{step}.method is wrong: got llama_adapter for heads of {text['head_dim']} channels, because PEFT takes "
            f"{heads} heads to be {width} channels wide together; set {step}.method to lora"
        )
    wanted = config.llama_adapter.layers if isinstance(config, AnyMethod) else None
    if wanted and wanted > (there := int(text["num_hidden_layers"])):
        problems.append(
            f"{step}.llama_adapter.layers is wrong: got {wanted}, because the model has {there} layers; set it to {there} or less"
        )
    return problems
