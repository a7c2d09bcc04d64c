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
from typing import Annotated, Any

from pydantic import Field

from steps.lib import adapters, chat, methods, models, packed, parity, refusals, runtime, training
from steps.lib.config import Added
from steps.lib.digests import digest_file, digest_text
from steps.lib.door import main
from steps.lib.intake import Intake
from steps.lib.preflight import Findings
from steps.lib.rows import Chat, Message, Pair, read_parquet
from steps.lib.step import Context, Metrics

VERSION = "3"


class SftConfig(methods.AnyMethod):
    """Supervised fine-tuning."""

    method: methods.Name = "lora"
    """full trains every weight; the others leave an adapter. docs/methods.md compares them."""
    corrections: Annotated[int, Added] = Field(0, ge=0)
    """Times that each correction of a bad case stands among the chats, so that the policy says what it never said; 0: they are in
    pairs only."""
    train: training.TrainSettings = training.TrainSettings()
    """Optimisation; too_long says what becomes of a chat longer than max_length tokens."""


def run(
    config: SftConfig,
    *,
    base: Path,
    chats: Path,
    badcases: Path | None = None,
    corrections: Path | None = None,
    out: Path,
    context: Context,
) -> Metrics:
    """Train on the chats, and on corrections of bad cases as often as the settings say.

    Raises:
        DataError: no chat is left.
    """
    runtime.seed_torch(context.seed)
    folder = models.model_folder(base)
    refusals.check(config, "sft", folder)
    tokenizer = models.load_tokenizer(folder)
    found = Findings()
    files = [folder / "pairs.parquet" for folder in (badcases, corrections) if folder and config.corrections]
    corrected = [
        _corrected(pair, n) for n in range(config.corrections) for file in files for pair in read_parquet(file, Pair)
    ]
    rows, metrics = _encode(config, tokenizer, [*read_parquet(chats / "chats.parquet", Chat), *corrected], out, found)
    if config.corrections:
        metrics.values["corrections"] = len(corrected)
    trainer = packed.begun(config, config.train, folder, rows, tokenizer, found, context, metrics)
    metrics.values.update(training.fit(trainer, config.train, context, out))
    if trainer.is_world_process_zero():
        probe = parity.Probe(trainer.model, tokenizer)
        seen = [digest_file(file) for file in (chats / "chats.parquet", *files)]
        stage = models.Stage(step="sft", digest=seen[0] if len(seen) == 1 else digest_text("\n".join(seen)))
        adapters.save(trainer.model, config.method, out, base, stage, tokenizer)
        metrics.values.update(probe.check(trainer, tokenizer, out, config.train.precision))
    return metrics


def _corrected(pair: Pair, number: int) -> Chat:
    """A correction as a chat; ``number`` tells its copies apart."""
    return Chat(id=f"{pair.id}#{number}", lang=pair.lang, source=pair.source, messages=[*pair.prompt, *pair.chosen])


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
