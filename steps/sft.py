"""Supervised fine-tuning: loss on assistant tokens only, end of turn included.

Reads:  base (base or pretrain): a model; chats (clean): ``chats.parquet``, ``general.parquet`` when replay is asked for.
Writes: ``adapter/`` (``model/`` with method full), ``chain.json``, ``dropped.parquet``, ``truncated.parquet`` when rows are cut,
        ``record/preflight.json``, ``record/history.jsonl``.
Source: steps/lib/methods.py names each method's paper; packed rows: steps/lib/packed.py.
Run:    python -m steps.sft --config FILE --base DIR --chats DIR --out DIR
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from steps.lib import adapters, chat, methods, models, packed, parity, refusals, runtime, training
from steps.lib.digests import digest_file
from steps.lib.door import main
from steps.lib.intake import Intake
from steps.lib.preflight import Findings
from steps.lib.rows import Chat, Message, read_parquet
from steps.lib.step import Context, Metrics

VERSION = "3"


class SftConfig(methods.AnyMethod):
    """Supervised fine-tuning."""

    method: methods.Name = "lora"
    """full trains every weight; the others leave an adapter. docs/methods.md compares them."""
    train: training.TrainSettings = training.TrainSettings()
    """Optimisation; too_long says what becomes of a chat longer than max_length tokens."""


def run(config: SftConfig, *, base: Path, chats: Path, out: Path, context: Context) -> Metrics:
    """Train on the chats."""
    runtime.seed_torch(context.seed)
    folder = models.model_folder(base)
    refusals.check(config, "sft", folder)
    tokenizer = models.load_tokenizer(folder)
    found = Findings()
    rows, metrics = _encode(config, tokenizer, read_parquet(chats / "chats.parquet", Chat), out, found)
    trainer = packed.begun(config, config.train, folder, rows, tokenizer, found, context, metrics)
    metrics.values.update(training.fit(trainer, config.train, context, out))
    if trainer.is_world_process_zero():
        probe = parity.Probe(trainer.model, tokenizer)
        stage = models.Stage(step="sft", digest=digest_file(chats / "chats.parquet"))
        adapters.save(trainer.model, config.method, out, base, stage, tokenizer)
        metrics.values.update(probe.check(trainer, tokenizer, out, config.train.precision))
    return metrics


def _encode(
    config: SftConfig, tokenizer: Any, chats: list[Chat], out: Path, found: Findings
) -> tuple[list[packed.Row], Metrics]:
    """Tokens and labels of the chats that fit; the others are dropped or cut, as the settings say."""
    intake = Intake[Chat]("sft", "chats", config.train, found)
    rows: list[packed.Row] = []
    prompts: list[list[Message]] = []
    supervised = 0
    for row in chats:
        encoded = intake.encoded(row, partial(chat.encode, tokenizer, row.messages))
        if not encoded:
            continue
        length = len(encoded.input_ids)
        if not intake.fits(row, length):
            if not intake.cuts:
                continue
            encoded = encoded.cut(config.train.max_length)
            if not encoded:
                intake.drop_long(row, length)
                continue
            intake.cut(row, length, len(encoded.input_ids))
        rows.append(packed.row([(encoded.input_ids, encoded.labels)]))
        prompts.append(row.messages[: max(i for i, turn in enumerate(row.messages) if turn.role == "assistant")])
        supervised += encoded.supervised
    metrics = intake.close(out, len(rows))
    metrics.tokens = sum(len(row["input_ids"]) for row in rows)
    found.supervised(supervised, metrics.tokens)
    found.as_served(tokenizer, prompts)
    return rows, metrics


if __name__ == "__main__":
    main("sft")
