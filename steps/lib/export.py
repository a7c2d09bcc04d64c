"""A model of the line as others load it: one folder for plain transformers, or an adapter for PEFT, with its tokenizer and papers.

Merging is done in float32 and rounded once, to the type of the base's own weights. The folder is loaded again and must answer as
the adapter on its base did (``parity``). Tokenizer and chat template are copied byte for byte. The generation settings are the
base's; the tokens that end an answer are completed, since plain transformers knows those of generation_config.json alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steps.lib import inference, models, parity
from steps.lib.durable import fsync, write
from steps.lib.errors import ConfigError, ModelError
from steps.lib.methods import MERGING
from steps.lib.model_files import IDENTITY, WEIGHTS, model_digest
from steps.lib.tickets import abandoned, mark

Dtype = Literal["base", "float32", "bfloat16", "float16"]
RECORD = "export.json"
PAPERS = ("README.md", "MODEL_CARD.md", "bom.cdx.json", "lineage.json", "LICENSE*", "NOTICE*")
"""Files of the model's folder that go with it, where they are there."""
TOKENIZER = tuple(name for name in IDENTITY if name not in (*WEIGHTS, "config.json", "generation_config.json"))
PARTIAL = ".partial"
_TYPES: dict[str, Dtype] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    merged: bool
    """Whether it is whole weights; False: an adapter."""
    dtype: str
    """Type of the weights; empty for an adapter."""
    base: str
    """What the adapter names as its base; empty for whole weights."""
    digest: str
    """Of the files that are its identity; of an adapter, those of its tokenizer and weights."""


def export(
    source: Path,
    out: Path,
    *,
    merged: bool,
    dtype: Dtype = "base",
    base: str = "",
    facts: Mapping[str, str] | None = None,
) -> Exported:
    """Write the model of an artifact or of a registered version to a new folder, all or nothing.

    Args:
        source: folder of the artifact or version.
        out: the new folder.
        merged: put the adapter into its base. A model without an adapter is whole either way.
        dtype: of whole weights; base: that of the base's own files.
        base: hub id (``org/name`` or ``org/name@revision``) or folder that the adapter names as its base; empty: its base's folder
            on this machine, or its id and revision where it came from the hub.
        facts: where the model comes from; they go into ``export.json``.

    Raises:
        ConfigError: the folder is not empty, or words do not go together.
        ModelError: the model cannot be loaded or merged, or what was written answers differently.
    """
    whole = not (source / "adapter").exists()
    _check(out, whole, merged, dtype, base)
    folder = models.model_folder(source)
    models.check_base(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in abandoned(out.parent, f".{out.name}.*{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)
    staged = out.parent / f".{out.name}.{mark()}{PARTIAL}"
    staged.mkdir()
    try:
        own = _dtype(folder)
        named = ""
        if not merged and not whole:
            named, own = _adapter(source, folder, staged, base), ""
        elif whole and dtype in ("base", own):
            _copy(folder, staged, IDENTITY)
            _ends(staged, models.load_tokenizer(folder).eos_token_id)
        else:
            own = own if dtype == "base" else dtype
            _whole(source, folder, staged, own)
        _copy(folder, staged, ("LICENSE*", "NOTICE*"))
        _copy(source, staged, PAPERS)
        if merged and (staged / "README.md").exists():
            _whole_card(staged / "README.md")
        result = Exported(out, whole or merged, own, named, model_digest(staged))
        _record(staged, source, result, facts or {})
        for path in staged.rglob("*"):
            fsync(path)
        if out.is_dir():
            out.rmdir()  # it is empty
        os.replace(staged, out)
        fsync(out.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return result


def _whole_card(path: Path) -> None:
    """Say in the head of a card that no PEFT is needed."""
    text = path.read_text(encoding="utf-8")
    head, mark, body = text.partition("\n---\n")
    path.write_text(head.replace("library_name: peft", "library_name: transformers") + mark + body, encoding="utf-8")


def _check(out: Path, whole: bool, merged: bool, dtype: str, base: str) -> None:
    problems = []
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        problems.append(
            f"folder {out} cannot be written: got one with something in it, because an export never mixes with other files; "
            "name a new folder"
        )
    if not whole and not merged and dtype != "base":
        problems.append(
            f"dtype {dtype} cannot be used here: got an adapter that is not merged, because its weights stay as they were trained; "
            "merge it, or leave dtype out"
        )
    if base and (whole or merged):
        problems.append(
            f"base {base!r} cannot be used here: got whole weights, because they name no base; leave base out, or do not merge"
        )
    if problems:
        raise ConfigError(problems)


def _whole(source: Path, folder: Path, staged: Path, dtype: str) -> None:
    """Merged or cast weights, checked against what the model answered before."""
    import torch
    from transformers import GenerationConfig

    model = models.load_policy(source, "float32")
    tokenizer = models.load_tokenizer(folder)
    kinds = {str(one.peft_type.value) for one in getattr(model, "peft_config", {}).values()}
    if not kinds <= MERGING:
        raise ModelError(
            f"adapter {source / 'adapter'} cannot be merged: got {', '.join(sorted(kinds))}, because it is no change of the base's "
            "weights; export it without merging, and serve it through PEFT"
        )
    probe = parity.Probe(model, tokenizer)
    model = model.merge_and_unload() if kinds else model
    ends = inference.end_tokens(model, tokenizer)
    settings = model.generation_config.to_diff_dict()
    model.generation_config = GenerationConfig()  # the base's may be one that transformers loads and refuses to save
    model.to(getattr(torch, dtype)).save_pretrained(staged)
    _copy(folder, staged, (*TOKENIZER, "generation_config.json"))
    if not (folder / "generation_config.json").exists():
        settings.pop("_from_model_config", None)
        write(staged / "generation_config.json", json.dumps(settings, indent=2, sort_keys=True) + "\n")
    _ends(staged, *ends)
    del model
    problems = probe.check_copy(staged, "float32" if dtype == "float32" else "bfloat16")
    if problems:
        raise ModelError("\n".join(problems))
    parity.check_tokenizer(tokenizer, staged)


def _adapter(source: Path, folder: Path, staged: Path, base: str) -> str:
    """The adapter's files with a base that can be found; gives what it names."""
    _copy(source / "adapter", staged, ("*.safetensors", "adapter_config.json"))
    _copy(folder, staged, TOKENIZER)
    known = models.location(source)
    named, revision = base.partition("@")[::2]
    if not named:
        hub = known.get("id") and known.get("revision") and not Path(known["id"]).is_dir()
        named, revision = (known["id"], known["revision"]) if hub else (str(folder.resolve()), "")
    elif Path(named).is_dir():
        named = str(Path(named).resolve())
        if (found := model_digest(Path(named))) != models.Chain.read(source).base:
            raise ModelError(
                f"folder {named} is not the base of {source / 'adapter'}: got digest {found[:12]}, because the adapter was trained "
                f"on {models.Chain.read(source).base[:12]}; name that base"
            )
    path = staged / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": named, "revision": revision or None}
    write(path, json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return f"{named}@{revision}" if revision else named


def _ends(staged: Path, *ends: int) -> None:
    """Complete the tokens that end an answer."""
    path = staged / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    before = settings.get("eos_token_id")
    known = set(before if isinstance(before, list) else [] if before is None else [before])
    if not known >= set(ends):
        wanted = sorted(known | set(ends))
        settings["eos_token_id"] = wanted if len(wanted) > 1 else wanted[0]
        write(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _dtype(folder: Path) -> str:
    """The type of most weights of a checkpoint, from the heads of its files.

    Source: the safetensors format (README of the project): eight bytes of length, then a JSON object.
    """
    kinds: Counter[str] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            head: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, one in head.items():
            if name != "__metadata__":
                kinds[one["dtype"]] += one["data_offsets"][1] - one["data_offsets"][0]
    most = kinds.most_common(1)[0][0] if kinds else ""
    if most not in _TYPES:
        raise ModelError(
            f"weights of {folder} cannot be exported: got type {most or 'none'}, because they are quantised or no weights at all; "
            f"start from a base in one of {', '.join(_TYPES.values())}"
        )
    return _TYPES[most]


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file())


def _copy(folder: Path, staged: Path, patterns: tuple[str, ...]) -> None:
    """Copy files by content (a hub's cache holds links)."""
    for path in _matching(folder, patterns):
        target = staged / path.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


def _record(staged: Path, source: Path, result: Exported, facts: Mapping[str, str]) -> None:
    chain = models.Chain.read(source).model_dump()
    page = {
        "schema": 1,
        "from": dict(facts),
        "merged": result.merged,
        "dtype": result.dtype,
        "base": result.base,
        "digest": result.digest,
        "chain": chain,
    }
    write(staged / RECORD, json.dumps(page, indent=1, sort_keys=True) + "\n")
