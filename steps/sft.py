"""Supervised fine-tuning with LoRA: loss on assistant tokens only, end of turn included.

Reads:  base (base or pretrain): a model; chats (clean): ``chats.parquet``, ``general.parquet`` when replay is asked for.
Writes: ``adapter/``, ``chain.json``, ``dropped.parquet``, ``truncated.parquet`` when rows are cut,
        ``record/preflight.json``, ``record/history.jsonl``.
Source: LoRA, Hu et al. 2021, 2106.09685; QLoRA, Dettmers et al. 2023, 2305.14314; packed rows: steps/lib/packed.py.
Run:    python -m steps.sft --config FILE --base DIR --chats DIR --out DIR
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from steps.lib import adapters, chat, footprint, models, packed, parity, runtime, training
from steps.lib.config import Section
from steps.lib.digests import digest_file
from steps.lib.door import main
from steps.lib.intake import Intake
from steps.lib.preflight import Findings
from steps.lib.rows import Chat, Message, read_parquet
from steps.lib.step import Context, Metrics

VERSION = "2"


class SftConfig(Section):
    """Supervised fine-tuning."""

    method: Literal["lora", "qlora"] = "lora"
    """lora: adapters on the base; qlora: adapters on the base loaded in 4-bit."""
    lora: adapters.LoraSettings = adapters.LoraSettings()
    """Adapters."""
    train: training.TrainSettings = training.TrainSettings()
    """Optimisation; too_long says what becomes of a chat longer than max_length tokens."""


def run(config: SftConfig, *, base: Path, chats: Path, out: Path, context: Context) -> Metrics:
    """Train an adapter on the chats."""
    runtime.seed_torch(context.seed)
    folder = models.model_folder(base)
    tokenizer = models.load_tokenizer(folder)
    found = Findings()
    rows, metrics = _encode(config, tokenizer, read_parquet(chats / "chats.parquet", Chat), out, found)
    found.loading(folder, config.train.precision, bits=4 if config.method == "qlora" else None)
    model = adapters.with_lora(
        models.load_model(folder, config.train.precision, quantize="4bit" if config.method == "qlora" else None),
        config.lora,
    )
    found.check(
        model,
        config.train,
        footprint.packed_pass(config.train, [len(row["input_ids"]) for row in rows]),
        context,
        metrics,
    )
    trainer = packed.trainer(model, rows, tokenizer, config.train, context)
    metrics.values.update(training.fit(trainer, config.train, context, out))
    if trainer.is_world_process_zero():
        before = parity.Probe(trainer.model, tokenizer)
        adapters.save_adapter(trainer.model, out, folder, base)
        stage = models.Stage(step="sft", digest=digest_file(chats / "chats.parquet"))
        models.Chain(base=models.model_digest(folder), stages=(stage,)).write(out)
        metrics.values.update(before.check_adapter(trainer, out, config.train.precision))
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
