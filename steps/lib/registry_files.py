"""What may come into a registry: files that cannot run code when they are loaded, each looked at before it is copied.

Source: the safetensors format (header of at most 100 MB, offsets that cover the buffer without a gap), README of
huggingface/safetensors; Trainer's files as transformers 5.23 writes them (``trainer.py``, ``training_args.py``).
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steps.lib.errors import ArtifactError

ALLOWED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.md", "*.model", "*.tiktoken", "*.jsonl.zst")
"""Files that a version may hold. None of them can run code when it is loaded."""
MANIFEST, SIGNATURE = "manifest.json", "SIGNATURE.json"
RECORDS = ("lineage.json", "README.md", "MODEL_CARD.md", "bom.cdx.json", "eval/verdict.json")
"""Files of a version that tell of it and do not decide whether two versions are one: they have times and hosts."""
TRAINER = ("trainer_state.json", "training_args.*", "optimizer.*", "scheduler.*", "rng_state*", "checkpoint-*")
"""What a raw folder of a training run has, and a published model never."""
HEADER_BYTES = 100 << 20
TEXT_BYTES = 256 << 20
"""Bytes of the longest text or JSON file; a large tokenizer.json has 40 MB."""
UNPACKED_BYTES = 4 << 30
"""Bytes that a packed file may unpack to."""
CODE = ("auto_map", "custom_pipelines")
"""Entries of a configuration that name code in the folder."""
PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
"""First bytes of pickles, and of the archives that torch packs them in."""


def inspect(folder: Path, patterns: tuple[str, ...] = ("**/*",), *, links: bool = False) -> list[Path]:
    """The files to copy, all checked.

    Args:
        folder: what comes in.
        patterns: which of its files are copied; all of them by default, so that one foreign file refuses the folder.
        links: whether a link to a file counts as the file, as in the hub's cache.

    Raises:
        ArtifactError: any of them is not allowed; all are named.
    """
    files: list[Path] = []
    refused: list[str] = []
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        if path.is_dir() and not path.is_symlink():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in TRAINER):
                refused.append(f"{path.relative_to(folder)} (of a training run)")
            continue
        if problem := _problem(path, path.relative_to(folder).as_posix(), links):
            refused.append(f"{path.relative_to(folder)} ({problem})")
        files.append(path)
    if refused or not files:
        raise ArtifactError(
            f"{folder} cannot be registered: got {', '.join(refused) or 'no file'}, because a version "
            f"holds only whole files of the kinds {' '.join(ALLOWED)}, and a pickle or foreign code runs when it is "
            "loaded; leave the others out (`prefline` publishes a clean copy of what it trains)"
        )
    return files


def is_record(name: str) -> bool:
    """Whether a file of a version, by its relative path, tells of it only."""
    return name in RECORDS


def _problem(path: Path, name: str, links: bool) -> str | None:
    """Why a file may not come in; None when it may."""
    if path.is_symlink() and not links:
        return "a link"
    if not path.is_file():
        return "no file"
    if name in (MANIFEST, SIGNATURE) or not any(fnmatch.fnmatch(path.name, pattern) for pattern in ALLOWED):
        return "kind of file"
    if any(fnmatch.fnmatch(path.name, pattern) for pattern in TRAINER):
        return "of a training run"
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix == ".zst":
        return None if name.startswith("eval/") and _unpacks(path) else "packed, and no items of an evaluation"
    if path.suffix in (".model", ".tiktoken"):
        with path.open("rb") as file:
            return "a pickle" if file.read(4).startswith(PICKLE) else None
    return _text(path)


def _safetensors(path: Path) -> str | None:
    """Eight bytes of header length, a JSON object, and a buffer that its tensors cover."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(9)
        length = int.from_bytes(head[:8], "little")
        if len(head) < 9 or head[8:] != b"{" or length > min(size - 8, HEADER_BYTES):
            return "no safetensors header"
        file.seek(8)
        text = file.read(length)
    try:
        spans = sorted((int(a), int(b)) for a, b in (one["data_offsets"] for one in _tensors(text)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "a safetensors header that does not parse"
    ends = [0, *(end for _, end in spans)]
    if any(start != end for (start, _), end in zip(spans, ends, strict=False)) or ends[-1] != size - 8 - length:
        return "cut off, or with bytes that no tensor has"
    return None


def _tensors(header: bytes) -> list[dict[str, Any]]:
    return [facts for name, facts in json.loads(header).items() if name != "__metadata__"]


def _text(path: Path) -> str | None:
    """Text that parses, is of a bearable size, and names no code."""
    if path.stat().st_size > TEXT_BYTES:
        return f"over {TEXT_BYTES >> 20} MiB"
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else None
    except (ValueError, RecursionError):
        return "does not parse" if path.suffix == ".json" else "no UTF-8"
    if isinstance(found, dict):
        code = [entry for entry in CODE if found.get(entry)]
        if code:
            return f"{code[0]}, which would run code from the folder"
        library = (found.get("auto_mapping") or {}).get("parent_library", "") if "auto_mapping" in found else ""
        if library and str(library).partition(".")[0] not in ("transformers", "peft"):
            return f"auto_mapping to {str(library)[:40]!r}, which would be imported"
    return None


def _unpacks(path: Path) -> bool:
    """Whether a zstd file unpacks to no more than ``UNPACKED_BYTES``."""
    import pyarrow as pa

    total = 0
    try:
        with pa.CompressedInputStream(str(path), "zstd") as file:
            while block := file.read(1 << 20):
                total += len(block)
                if total > UNPACKED_BYTES:
                    return False
    except OSError:
        return False
    return True


def listed(folder: Path) -> Iterator[str]:
    """Relative paths of everything below a folder that is no folder."""
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in (*names, *links):
            yield (Path(root) / name).relative_to(folder).as_posix()
