"""Loading models: a checkpoint, an adapter on its base, and the chain that tells which base that is.

An adapter artifact holds ``adapter/`` and ``chain.json``; the chain names the digest of the base that it was trained on, and
loading it on anything else is an error.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from steps.lib import bases
from steps.lib.bases import Base
from steps.lib.errors import ModelError
from steps.lib.methods import MERGING
from steps.lib.model_files import model_digest, resolve

Precision = Literal["auto", "float32", "bfloat16"]
Quantize = Literal["4bit", "8bit"] | None


class Stage(BaseModel):
    """One trained stage of a chain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    digest: str
    """Digest of what the stage was trained from: its data artifact's content."""
    method: str = "lora"
    """How it was trained (steps/lib/methods.py); full: the weights are new ones, and the chain's base is their digest."""


class Chain(BaseModel):
    """How a model came to be: the whole weights it stands on, and the stages trained, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    """Digest of the files of the base that the adapter fits, or of ``model/`` where the last stage wrote whole weights."""
    stages: tuple[Stage, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Chain:
        """The chain of an artifact; a model without an adapter is its own base."""
        path = folder / "chain.json"
        if path.exists():
            return cls.model_validate_json(path.read_text())
        return cls(base=model_digest(model_folder(folder)))

    def write(self, folder: Path) -> None:
        """Write ``chain.json``."""
        (folder / "chain.json").write_text(self.model_dump_json(indent=1) + "\n")


def model_folder(artifact: Path) -> Path:
    """The full-weights folder of an artifact of base or pretrain, or the base folder of an adapter artifact.

    A base lies beside the artifact in the same store, where it lay when the artifact was made, or, on a machine that has only the
    store in common with that one, where its id and revision lead. The base of a version of a registry is kept there, or is a
    commit on the hub.

    Raises:
        ModelError: the artifact holds no model, its base is nowhere, or it is another one than base.json says.
    """
    if (artifact / "model" / "config.json").exists():
        return artifact / "model"
    if kept := bases.beside(artifact):
        return kept
    facts = location(artifact)
    if not facts:
        raise ModelError(
            f"{artifact} holds no model: got neither model/ nor record/location.json; give the folder of an artifact "
            "of base, pretrain, sft, dpo or kto"
        )
    beside = artifact.resolve().parent.parent / facts["key"] if facts.get("key") else None
    if beside and (beside / "manifest.json").exists():
        return model_folder(beside)
    there = Path(facts["path"]).is_dir() or not facts.get("id")
    folder = resolve(facts["path"] if there else facts["id"], facts.get("revision"))
    if (artifact / "base.json").exists():
        expected = str(json.loads((artifact / "base.json").read_text())["digest"])
        if (found := model_digest(folder)) != expected:
            raise ModelError(
                f"checkpoint {folder} is not the one of {artifact}: got digest {found[:12]}, because it changed since the "
                f"artifact was made (digest {expected[:12]}); put that checkpoint back, or give its commit as base.revision "
                "and build the step base again (--force)"
            )
    return folder


def location(artifact: Path) -> dict[str, Any]:
    """What ``write_location`` noted in an artifact; empty when it holds its own weights.

    A version of a registry has no such note: there the manifest names the commit on the hub, and the adapter's settings say where
    its base lay.
    """
    path, settings = artifact / "record" / "location.json", artifact / "adapter" / "adapter_config.json"
    if not path.exists() and settings.exists():
        found = bases.of_version(artifact)
        named: dict[str, Any] = {name: found[name] for name in ("id", "revision") if name in found}
        lay = json.loads(settings.read_text(encoding="utf-8")).get("base_model_name_or_path") or named.get("id")
        return {"path": str(lay), **named} if lay else {}
    return dict(json.loads(path.read_text())) if path.exists() else {}


def base_of(artifact: Path) -> Base | None:
    """The base that the adapter of an artifact stands on, checked; None for whole weights.

    Raises:
        ModelError: it is nowhere, or another one than the adapter was trained on.
    """
    if not (artifact / "adapter").is_dir():
        return None
    check_base(artifact)
    facts = location(artifact)
    return Base(model_folder(artifact), Chain.read(artifact).base, facts.get("id") or "", facts.get("revision"))


def write_location(artifact: Path, *, path: str, key: str = "", id: str = "", revision: str | None = None) -> None:
    """Note where a base lies (a record: not part of the artifact's digest).

    Args:
        artifact: folder that gets the note.
        path: folder of the base on this machine.
        key: key of the artifact that the base is, in the same store.
        id: what the configuration calls it, a hub id or a folder.
        revision: commit on the hub.
    """
    (artifact / "record").mkdir(exist_ok=True)
    facts = {"path": path, "key": key, "id": id, "revision": revision}
    (artifact / "record" / "location.json").write_text(json.dumps(facts) + "\n")


def artifact_key(folder: Path) -> str:
    """Key in the manifest of the artifact a folder is, or ""."""
    manifest = folder / "manifest.json"
    return str(json.loads(manifest.read_text())["key"]) if manifest.exists() else ""


def load_tokenizer(path_or_id: str | Path, revision: str | None = None) -> Any:
    """The tokenizer of a checkpoint, with a pad token.

    Raises:
        ModelError: it has no chat template.
    """
    from transformers import AutoTokenizer

    folder = resolve(str(path_or_id), revision)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.chat_template is None:
        raise ModelError(
            f"tokenizer of {path_or_id} has no chat template: got None, because it is a base model's; "
            "put a chat_template.jinja into the folder, or start from the instruct model"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def device() -> str:
    """``cuda:<local rank>`` where there is one, else ``cpu``."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def load_model(
    path_or_id: str | Path,
    dtype: Precision = "auto",
    *,
    revision: str | None = None,
    quantize: Quantize = None,
    attention: str | None = None,
) -> Any:
    """A causal language model on this process's device.

    Args:
        dtype: ``auto`` is bfloat16 on a GPU and float32 on a CPU.
        quantize: load the frozen weights in 4-bit NF4 (Dettmers et al. 2023, 2305.14314) or 8-bit through bitsandbytes.
        attention: what attends (``attention.chosen``); None: as transformers chooses.

    Raises:
        ModelError: the checkpoint is refused (``model_files.check_folder``), or bitsandbytes is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder = resolve(str(path_or_id), revision)
    torch_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(
        dtype, torch.bfloat16 if torch.cuda.is_available() else torch.float32
    )
    options: dict[str, Any] = {"dtype": torch_dtype, "trust_remote_code": False, "use_safetensors": True}
    if attention:
        options["attn_implementation"] = attention
    if quantize:
        options["quantization_config"] = _quantization(quantize, torch_dtype)
        options["device_map"] = {"": device()}
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
        for (
            module
        ) in model.modules():  # bitsandbytes packs 4-bit weights for inference in the first pass without gradients, on
            # CPUs with AVX512-BF16; from then on no gradient goes through them, and nothing but a warning tells
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return model
    return AutoModelForCausalLM.from_pretrained(folder, **options).to(device())


def _quantization(quantize: Quantize, compute: Any) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise ModelError(
            "method qlora needs bitsandbytes: got no such package, because it is an optional extra; "
            "install it with `pip install -c constraints.txt 'prefline[qlora]'`"
        ) from None
    from transformers import BitsAndBytesConfig

    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def load_policy(
    artifact: Path,
    dtype: Precision = "auto",
    *,
    quantize: Quantize = None,
    trainable: bool = False,
    attention: str | None = None,
) -> Any:
    """The model of any stage's artifact: whole weights, or an adapter (named "default") on its checked base.

    Raises:
        ModelError: the base beside the adapter is not the one it was trained on.
    """
    base = load_model(model_folder(artifact), dtype, quantize=quantize, attention=attention)
    if not (artifact / "adapter").exists():
        return base
    from peft import PeftConfig, PeftModel

    check_base(artifact)
    settings = PeftConfig.from_pretrained(artifact / "adapter")
    later = trainable and settings.is_prompt_learning  # PEFT loads a prompt or prefix for inference only
    model = PeftModel.from_pretrained(
        base, artifact / "adapter", is_trainable=trainable and not later, use_safetensors=True
    )
    if later:
        model.peft_config["default"].inference_mode = False
        model.prompt_encoder["default"].requires_grad_(True)
    if not trainable:
        model.eval()
    return model


def load_merged(artifact: Path, dtype: Precision = "auto") -> Any:
    """The model of any stage for inference alone: an adapter that can be is put into its base, which spares its products."""
    model = load_policy(artifact, dtype)
    kinds = {str(one.peft_type.value) for one in getattr(model, "peft_config", {}).values()}
    return model.merge_and_unload() if kinds and kinds <= MERGING else model


def check_base(artifact: Path) -> None:
    """Check that an adapter's base is the one its chain names.

    Raises:
        ModelError: it is another one, and the adapter's deltas would be added to foreign weights.
    """
    chain = Chain.read(artifact)
    found = model_digest(model_folder(artifact))
    if found != chain.base:
        raise ModelError(
            f"adapter {artifact} does not fit its base {model_folder(artifact)}: got base digest {found[:12]}, "
            f"because the adapter was trained on {chain.base[:12]}; restore that base, or train the adapter again"
        )
