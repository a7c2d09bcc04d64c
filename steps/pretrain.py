"""Continued pretraining on the domain corpus, mixed with a replay share of general text against forgetting.

Reads:  base: a model; corpus (clean): ``corpus.parquet``, ``general.parquet``.
Writes: ``model/`` (whole weights; an adapter is put into its unquantised base), ``record/preflight.json``,
        ``record/history.jsonl``.
Source: replay share and re-warming: Ibrahim et al. 2024, 2403.08763.
Run:    python -m steps.pretrain --config FILE --base DIR --corpus DIR --out DIR
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from steps.lib import adapters, methods, models, packed, parity, refusals, runtime, training
from steps.lib.door import main
from steps.lib.preflight import Findings
from steps.lib.rows import Text, read_parquet
from steps.lib.step import Context, Metrics

VERSION = "3"


class PretrainConfig(methods.MergingMethods):
    """Continued pretraining."""

    method: methods.Name = "lora"
    """full, lora, qlora, adalora or ia3: what an adapter learns is put into the (unquantised) base at the end."""
    replay: float = Field(0.25, ge=0, lt=1)
    """Share of general text among the trained tokens."""
    train: training.TrainSettings = training.TrainSettings()
    """Optimisation; rows are packed to max_length tokens."""

    @field_validator("method")
    @classmethod
    def _merges(cls, method: methods.Name) -> methods.Name:
        if not methods.METHODS[method].merges:
            fitting = ", ".join(name for name, one in methods.METHODS.items() if one.merges)
            raise ValueError(
                f"pretrain writes whole weights, and what {method} learns cannot be put into them; take one of {fitting}, or "
                f"{method} in sft"
            )
        return method


def run(config: PretrainConfig, *, base: Path, corpus: Path, out: Path, context: Context) -> Metrics:
    """Train, and write full weights."""
    runtime.seed_torch(context.seed)
    folder = models.model_folder(base)
    refusals.check(config, "pretrain", folder)
    tokenizer = models.load_tokenizer(folder)
    domain = read_parquet(corpus / "corpus.parquet", Text)
    general = read_parquet(corpus / "general.parquet", Text)
    training.need_rows(domain, "domain documents", {})
    found = Findings()
    rows, metrics = _mix(config, tokenizer, domain, general, context, found)
    trainer = packed.begun(config, config.train, folder, rows, tokenizer, found, context, metrics)
    metrics.values.update(training.fit(trainer, config.train, context, out))
    if trainer.is_world_process_zero():
        probe = parity.Probe(trainer.model, tokenizer)
        whole = adapters.merged(trainer.model, config, folder, context.resume / "adapter", config.train.precision)
        whole.save_pretrained(out / "model")
        tokenizer.save_pretrained(out / "model")
        parity.check_tokenizer(tokenizer, out / "model")
        metrics.values.update(probe.check_model(trainer, whole, out / "model", config.train.precision))
    return metrics


def _mix(
    config: PretrainConfig, tokenizer: Any, domain: list[Text], general: list[Text], context: Context, found: Findings
) -> tuple[list[packed.Row], Metrics]:
    """Packed rows of domain text and of as many general documents as make up the replay share."""
    metrics = Metrics()
    ids = [tokenizer(row.text, add_special_tokens=False)["input_ids"] for row in domain]
    domain_tokens, replay_tokens = sum(map(len, ids)), 0
    wanted = domain_tokens * config.replay / (1 - config.replay)
    order = list(range(len(general)))
    random.Random(context.seed).shuffle(order)
    replay: list[list[int]] = []
    for index in order:
        if replay_tokens >= wanted:
            break
        replay.append(tokenizer(general[index].text, add_special_tokens=False)["input_ids"])
        replay_tokens += len(replay[-1])
    documents = ids + replay
    random.Random(context.seed + 1).shuffle(documents)
    rows = packed.blocks(documents, config.train.max_length, tokenizer.eos_token_id)
    metrics.tokens = sum(len(row["input_ids"]) for row in rows)
    share = replay_tokens / max(1, domain_tokens + replay_tokens)
    metrics.values["replay_share"] = round(share, 4)
    if replay_tokens < wanted:
        found.warn(
            f"general text runs out: got {share:.1%} of the tokens, because all {len(general)} documents are taken and replay is "
            f"{config.replay}; give more general text, or lower replay"
        )
    metrics.rows.took("domain", len(domain))
    metrics.rows.took("general", len(general))
    metrics.rows.gave("trained domain", len(domain))
    metrics.rows.gave("trained general", len(replay))
    metrics.rows.drop("general", "not_needed_for_replay", len(general) - len(replay))
    metrics.rows.balance({"domain": ["trained domain"], "general": ["trained general"]})
    return rows, metrics


if __name__ == "__main__":
    main("pretrain")
