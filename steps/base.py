"""The model that the line starts from: a checked checkpoint (hub id or folder), or the tiny Llama built and briefly trained here.

Reads:  corpus (clean): ``general.parquet``, for the tiny model only.
Writes: ``model/`` for the tiny model; for a checkpoint ``base.json`` with its digest, while the weights stay where they are.
Source: Llama as in transformers; byte-level BPE (Sennrich et al. 2015, 1508.07909).
Run:    python -m steps.base --config FILE --corpus DIR --out DIR
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from steps.lib import model_files, models, packed, runtime, tiny, training
from steps.lib.config import Neutral, Section
from steps.lib.door import main
from steps.lib.errors import ConfigError
from steps.lib.rows import Text, read_parquet
from steps.lib.step import Context, Metrics
from steps.lib.tiny import TinyConfig

VERSION = "3"


class BaseConfig(Section):
    """Where the student starts."""

    kind: Literal["tiny", "checkpoint"] = "checkpoint"
    """tiny: built in code and trained on the general text; checkpoint: loaded from path."""
    path: Annotated[str, Neutral] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Local folder or hub id of the checkpoint (its content is in the key, its name is not)."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null: main."""
    tiny: TinyConfig = TinyConfig()
    """Shape of the tiny model."""
    train: training.TrainSettings = Field(default_factory=training.TrainSettings)
    """How the tiny model is trained on the general text."""


def externals(config: BaseConfig) -> dict[str, str]:
    """The checkpoint's content."""
    return {} if config.kind == "tiny" else {"checkpoint": model_files.hub_identity(config.path, config.revision)}


def run(config: BaseConfig, *, corpus: Path | None = None, out: Path, context: Context) -> Metrics:
    """Check the checkpoint, or build the tiny model."""
    if config.kind == "checkpoint":
        folder = model_files.resolve(config.path, config.revision)
        digest = model_files.model_digest(folder)
        models.load_tokenizer(folder)
        facts = json.loads((folder / "config.json").read_text())
        (out / "base.json").write_text(
            json.dumps({"digest": digest, "architectures": facts.get("architectures")}) + "\n"
        )
        commit = folder.name if folder.parent.name == "snapshots" else config.revision  # of the hub's cache
        models.write_location(out, path=str(folder.resolve()), id=config.path, revision=commit)
        return Metrics({"weights_mb": round(sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 1e6, 1)})
    if corpus is None:
        raise ConfigError(
            "base.kind is tiny without text to train it on: got no --corpus, because the tiny model starts from "
            "random weights; give the folder of clean's artifact"
        )
    return _train_tiny(config, read_parquet(corpus / "general.parquet", Text), out, context)


def _train_tiny(config: BaseConfig, texts: list[Text], out: Path, context: Context) -> Metrics:
    runtime.seed_torch(context.seed)
    training.need_rows(texts, "general text", {})
    tokenizer = tiny.build_tokenizer((row.text for row in texts), config.tiny)
    again = partial(tiny.build_model, tokenizer, config.tiny)
    model = again()
    documents = [tokenizer(row.text)["input_ids"] for row in texts]
    rows = packed.blocks(documents, min(config.train.max_length, config.tiny.max_length), tokenizer.eos_token_id)
    trainer = packed.trainer(model, rows, tokenizer, config.train, context)
    trainer.again = again
    tokens = sum(len(row["input_ids"]) for row in rows)
    metrics = Metrics(dict(training.fit(trainer, config.train, context, out)), tokens=tokens)
    metrics.values["parameters"] = sum(p.numel() for p in trainer.model.parameters())
    metrics.rows.took("texts", len(texts))
    metrics.rows.gave("trained", len(texts))
    metrics.rows.balance({"texts": ["trained"]})
    if trainer.is_world_process_zero():
        trainer.model.save_pretrained(out / "model")
        tokenizer.save_pretrained(out / "model")
    return metrics


if __name__ == "__main__":
    main("base")
