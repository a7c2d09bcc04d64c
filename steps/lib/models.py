"""Loading checkpoints: a local folder or a hub id, an adapter on its base, and what is refused.

An adapter artifact holds ``adapter/`` and ``chain.json``; the chain names the digest of the base that it was trained on, and
loading it on anything else is an error.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from steps.lib.digests import digest_folder
from steps.lib.errors import ModelError
from steps.lib.methods import MERGING

WEIGHTS = ("*.safetensors",)
IDENTITY = (
    "*.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
    "chat_templates/*",
)
"""Files whose bytes are a model's identity: weights, shape, tokenizer, chat template."""

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


def resolve(path_or_id: str, revision: str | None = None) -> Path:
    """The local folder of a checkpoint: a folder as it is, a hub id through the hub's cache (downloaded when needed).

    Raises:
        ModelError: neither a folder nor a model that the hub (or its cache, offline) has.
    """
    if Path(path_or_id).is_dir():
        return check_folder(Path(path_or_id))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if not _looks_like_hub_id(path_or_id):
        raise ModelError(
            f"model {path_or_id!r} is not there: got no such folder, because the path is wrong or the checkpoint "
            "was not put there; give a folder with config.json and *.safetensors, or a hub id such as org/name"
        )
    try:
        return check_folder(Path(snapshot_download(path_or_id, revision=revision, allow_patterns=list(IDENTITY))))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"model {path_or_id!r} could not be fetched: got {type(error).__name__}, because it is neither a local "
            "folder nor in the hub's cache, and the hub did not give it; give a local folder, or check the id "
            "and the network"
        ) from None


def _looks_like_hub_id(name: str) -> bool:
    return name.count("/") <= 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def check_folder(folder: Path) -> Path:
    """Refuse what would fail late or run foreign code.

    Raises:
        ModelError: no config.json, no safetensors weights, only pickled weights, code in ``auto_map``, or no tokenizer.
    """
    problems: list[str] = []
    config_path = folder / "config.json"
    if not config_path.exists():
        problems.append("no config.json, because it is not the folder of a checkpoint; give the folder that holds it")
    else:
        try:
            config = json.loads(config_path.read_text())
        except ValueError as error:
            config = {}
            problems.append(f"a config.json that does not parse, because {error}; copy it again")
        if "auto_map" in config:
            problems.append(
                "auto_map in config.json, refused because it would run code from the folder; use an architecture that "
                "transformers has, and remove auto_map"
            )
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")))
        if pickles:
            problems.append(
                f"only pickled weights ({', '.join(pickles[:3])}), refused because opening them can run code; convert "
                "them once with save_pretrained(safe_serialization=True) on a machine you trust them on"
            )
        else:
            problems.append(
                "no *.safetensors weights, because the copy or download stopped early; copy or download the "
                "checkpoint again"
            )
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        problems.append(
            "no tokenizer (tokenizer.json), because only the model was saved; save the tokenizer into the same folder"
        )
    if problems:
        raise ModelError(f"model folder {folder} cannot be used: got " + "; and ".join(problems))
    return folder


def hub_identity(path_or_id: str, revision: str | None = None) -> str:
    """Content identity of a checkpoint for keys: the digest of a folder's files, or the hub's commit (offline: the cached one)."""
    if Path(path_or_id).is_dir():
        return model_digest(check_folder(Path(path_or_id)))
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        commit = HfApi().model_info(path_or_id, revision=revision, timeout=10).sha
    except (HfHubHTTPError, OSError, ValueError):
        folder = resolve(path_or_id, revision)
        return f"hub:{folder.name}" if folder.parent.name == "snapshots" else model_digest(folder)
    return f"hub:{commit}"


def model_digest(folder: Path) -> str:
    """Digest of the files that are the model's identity."""
    return digest_folder(folder, IDENTITY)


def model_folder(artifact: Path) -> Path:
    """The full-weights folder of an artifact of base or pretrain, or the base folder of an adapter artifact.

    A base lies beside the artifact in the same store, where it lay when the artifact was made, or, on a machine that has only the
    store in common with that one, where its id and revision lead.

    Raises:
        ModelError: the artifact holds no model, its base is nowhere, or it is another one than base.json says.
    """
    if (artifact / "model" / "config.json").exists():
        return artifact / "model"
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

    A version of a registry has no such note: there the adapter's settings say where its base lay.
    """
    path, settings = artifact / "record" / "location.json", artifact / "adapter" / "adapter_config.json"
    if not path.exists() and settings.exists():
        return {"path": str(json.loads(settings.read_text(encoding="utf-8"))["base_model_name_or_path"])}
    return dict(json.loads(path.read_text())) if path.exists() else {}


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
        ModelError: the checkpoint is refused (``check_folder``), or bitsandbytes is missing.
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
