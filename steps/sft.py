"""Supervised fine-tuning: loss on assistant tokens only, end of turn included.

Reads:  base (base or pretrain): a model; chats (clean): ``chats.parquet``, ``general.parquet`` when replay is asked for.
Writes: ``adapter/`` (``model/`` with method full), ``chain.json``, ``dropped.parquet``, ``record/history.jsonl``.
Source: steps/lib/methods.py names each method's paper; packed rows: steps/lib/packed.py.
Run:    python -m steps.sft --config FILE --base DIR --chats DIR --out DIR
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from steps.lib import adapters, chat, methods, models, packed, refusals, runtime, training
from steps.lib.digests import digest_file
from steps.lib.door import main
from steps.lib.rows import Chat, Dropped, read_parquet, write_parquet
from steps.lib.step import Context, Metrics

VERSION = "2"


class SftConfig(methods.AnyMethod):
    """Supervised fine-tuning."""

    method: methods.Name = "lora"
    """full trains every weight; the others leave an adapter. docs/methods.md compares them."""
    train: training.TrainSettings = training.TrainSettings()
    """Optimisation; a chat longer than max_length tokens is dropped and counted."""


def run(config: SftConfig, *, base: Path, chats: Path, out: Path, context: Context) -> Metrics:
    """Train on the chats."""
    runtime.seed_torch(context.seed)
    folder = models.model_folder(base)
    refusals.check(config, "sft", folder)
    tokenizer = models.load_tokenizer(folder)
    rows, metrics = _encode(config, tokenizer, read_parquet(chats / "chats.parquet", Chat), out)
    updates = training.updates(len(rows), config.train)
    model = adapters.start(config, folder, config.train.precision, updates=updates)
    trainer = packed.trainer(model, rows, tokenizer, config.train, context)
    metrics.values.update(training.fit(trainer, config.train, context, out))
    if trainer.is_world_process_zero():
        stage = models.Stage(step="sft", digest=digest_file(chats / "chats.parquet"))
        adapters.save(trainer.model, config.method, out, base, stage, tokenizer)
    return metrics


def _encode(config: SftConfig, tokenizer: Any, chats: list[Chat], out: Path) -> tuple[list[packed.Row], Metrics]:
    """Tokens and labels of the chats that fit, the others dropped with the reason."""
    metrics = Metrics()
    rows: list[packed.Row] = []
    dropped: list[Dropped] = []
    supervised = 0
    for row in chats:
        encoded = chat.encode(tokenizer, row.messages)
        if len(encoded.input_ids) > config.train.max_length:
            detail = f"{len(encoded.input_ids)} tokens, limit {config.train.max_length}"
            dropped.append(
                Dropped(
                    id=row.id,
                    lang=row.lang,
                    source=row.source,
                    step="sft",
                    reason="too_long",
                    detail=detail,
                    row=row.model_dump_json(),
                )
            )
            continue
        rows.append(packed.row([(encoded.input_ids, encoded.labels)]))
        supervised += encoded.supervised
    reasons = Counter(row.reason for row in dropped)
    training.need_rows(rows, "chats", reasons)
    write_parquet(out / "dropped.parquet", dropped, Dropped)
    metrics.rows.took("chats", len(chats))
    metrics.rows.gave("trained", len(rows))
    for reason, count in reasons.items():
        metrics.rows.drop("chats", reason, count)
    metrics.rows.balance({"chats": ["trained"]})
    metrics.tokens = sum(len(row["input_ids"]) for row in rows)
    metrics.values["supervised_share"] = round(supervised / metrics.tokens, 4)
    return rows, metrics


if __name__ == "__main__":
    main("sft")
