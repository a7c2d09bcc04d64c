"""Log-probabilities of the reference: what the policy gives each pair's answers before it is trained, computed once.

Every run of dpo against the same policy and pairs reads this artifact, whatever its beta, loss, learning rate or epochs.

Reads:  policy (sft): an adapter on its base, or whole weights; pairs: ``pairs.parquet``.
Writes: ``logps.parquet`` (a row a pair: digest of its tokens, sums of both answers), ``policy.json`` (which model they are of),
        ``dropped.parquet``, ``truncated.parquet`` when rows are cut.
Source: Rafailov et al. 2023, 2305.18290, equation 7; the sums are those of TRL's compute_ref_log_probs, with each prompt computed
        once (steps/lib/sharing.py).
Resume: every pass is kept the moment it is done.
Run:    python -m steps.reference --config FILE --policy DIR --pairs DIR --out DIR
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from steps.lib import inference, logps, methods, models, packed, pair_rows, runtime, starts, stopping
from steps.lib.config import Neutral, Section
from steps.lib.door import main
from steps.lib.preflight import Findings
from steps.lib.rows import Pair, PairLogps, read_parquet, write_parquet
from steps.lib.step import Context, Metrics
from steps.lib.training import TooLong, TrainSettings
from steps.lib.work_ledger import WorkLedger

VERSION = "1"


class ReferenceConfig(Section):
    """Which pairs are scored, and how the policy is loaded. In the line all of it is dpo's: ``ReferenceConfig.of``."""

    start: methods.AnyMethod = starts.AS_IT_IS
    """What of dpo's method changes answers before its first update: fewer bits, fresh virtual tokens, weights that are split;
    full: nothing does."""
    precision: models.Precision = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU; dpo's train.precision."""
    max_length: int = Field(1024, ge=8)
    """Tokens of the longest side of a pair, prompt included; dpo's train.max_length."""
    too_long: TooLong = "drop"
    """What becomes of a longer pair; dpo's train.too_long."""
    tokens_per_pass: Annotated[int, Neutral] = Field(4096, ge=64)
    """Tokens that one forward pass holds at most (one longer pair goes alone): what memory allows."""
    processes: Annotated[int, Neutral] = Field(1, ge=1)
    """Processes started by torchrun, one a GPU, that share the passes."""

    @classmethod
    def of(cls, method: methods.AnyMethod, train: TrainSettings) -> ReferenceConfig:
        """What fits a training, from its method and settings: nothing that must be equal stands in two places."""
        return cls(
            start=starts.of(method),
            precision=train.precision,
            max_length=train.max_length,
            too_long=train.too_long,
            tokens_per_pass=train.tokens_per_pass,
            processes=train.processes,
        )


def run(config: ReferenceConfig, *, policy: Path, pairs: Path, out: Path, context: Context) -> Metrics:
    """Score every pair that fits.

    Raises:
        Resumable: SIGTERM or SIGINT; the passes so far are kept.
    """
    folder, found = models.model_folder(policy), Findings()
    tokenizer = models.load_tokenizer(folder)
    rows = read_parquet(pairs / "pairs.parquet", Pair)
    kept, metrics = pair_rows.encode("reference", config, tokenizer, rows, out, found, became="scored")
    found.loading(folder, config.precision, bits=config.start.bits)
    found.stop()
    for warning in found.warnings:
        context.log.warning("%s", warning)
    logps.write_scored(out, logps.scored(config.start, policy, config.precision, context.seed))
    timer, share = runtime.Timer(), runtime.share()
    with (
        stopping.stop_signals() as stop,
        WorkLedger(context.resume / f"passes-{share[0]}.sqlite", stop, context.log) as ledger,
    ):
        model = packed.prepared(starts.load_reference(config.start, policy, config.precision, seed=context.seed))
        sums = logps.score(
            model,
            kept.rows,
            pad=tokenizer.pad_token_id,
            tokens=config.tokens_per_pass,
            precision=config.precision,
            recall=ledger.about(**inference.conditions(config.precision)),
            progress=context.progress,
            share=share,
        )
        passes = ledger.kept + ledger.computed
        context.log.info("%d pairs scored; %d of %d passes were done before", len(kept.rows), ledger.kept, passes)
    stop.check()
    write_parquet(out / logps.FILE, logps.rows_of(kept, logps.gathered(sums, share[1])), PairLogps)
    metrics.tokens = sum(sum(map(len, row.values())) for row in kept.rows)
    metrics.values |= {"passes": passes, "passes_from_ledger": ledger.kept}
    metrics.values["scoring_seconds"] = round(timer.seconds, 2)
    metrics.values["pairs_per_second"] = round(len(kept.rows) / max(timer.seconds, 1e-9), 3)
    return metrics


if __name__ == "__main__":
    main("reference")
