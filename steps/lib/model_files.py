"""The files of a checkpoint: where they lie, whether they may be loaded, and the digest that they are known by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from steps.lib.digests import digest_folder, digest_text
from steps.lib.errors import ModelError

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
TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)


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


def tokenizer_digest(folder: Path) -> str:
    """Digest of the tokenizer's files, without the chat template's own."""
    return digest_folder(folder, TOKENIZER)


def template_digest(folder: Path) -> str:
    """Digest of the chat template's text, wherever a tokenizer of this format keeps it; empty without one.

    Several templates of one tokenizer are digested together, by their names.
    """
    found: dict[str, Any] = {}
    for path in (folder / "chat_template.jinja", *sorted(folder.glob("chat_templates/*.jinja"))):
        if path.exists():
            found[path.stem] = path.read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    if not found and settings.exists():
        kept = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
        found = {"chat_template": kept} if kept else {}
    if found.keys() == {"chat_template"} and isinstance(found["chat_template"], str):
        return digest_text(found["chat_template"])
    return digest_text(json.dumps(found, sort_keys=True)) if found else ""


def adapter_digest(folder: Path) -> str:
    """Digest of an adapter's weights and settings; where its base lay is not among them."""
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    settings.pop("base_model_name_or_path", None)
    return digest_text("\n".join([digest_folder(folder, WEIGHTS), json.dumps(settings, sort_keys=True)]))


def _looks_like_hub_id(name: str) -> bool:
    return name.count("/") <= 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")
