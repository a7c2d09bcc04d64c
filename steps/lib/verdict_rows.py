"""Single verdicts as tokens: which examples of kto are trained on, in which order, and how much each side weighs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from steps.lib import chat, unpaired
from steps.lib.digests import digest_file, digest_text
from steps.lib.errors import DataError
from steps.lib.intake import Intake
from steps.lib.preflight import FEWEST, LENGTH_RATIO, Findings
from steps.lib.rows import Pair, Thumb, read_parquet
from steps.lib.step import Metrics
from steps.lib.training import TrainSettings
from steps.lib.unpaired import Weight

VerdictRow = dict[str, Any]
"""Tokens of an example by TRL's names: ``prompt_ids``, ``completion_ids``, ``label``; ``spoken``, whether the assistant says each
token of the answer. For loss kto also ``KL_completion_ids`` and ``KL_spoken``, the answer of another example."""


class Settings(Protocol):
    """What the rows hang on: kto's configuration."""

    @property
    def loss(self) -> Literal["kto", "apo_zero_unpaired"]: ...
    @property
    def desirable_weight(self) -> Weight: ...
    @property
    def undesirable_weight(self) -> Weight: ...
    @property
    def train(self) -> TrainSettings: ...


def read(pairs: Path | None, thumbs: Path | None, badcases: Path | None = None) -> tuple[list[Thumb], str]:
    """Every example, and the digest of what they come from.

    Raises:
        DataError: there is none.
    """
    given = (
        ("pairs", pairs, "pairs", Pair),
        ("thumbs", thumbs, "thumbs", Thumb),
        ("badcases", badcases, "thumbs", Thumb),
    )
    files = {name: (folder / f"{file}.parquet", kind) for name, folder, file, kind in given if folder is not None}
    there = {name: (path, kind) for name, (path, kind) in files.items() if name == "pairs" or path.exists()}
    rows: dict[str, list[Any]] = {name: read_parquet(path, kind) for name, (path, kind) in there.items()}
    if not any(rows.values()):
        raise DataError(
            "kto has nothing to train on: got no thumb and no pair, because "
            f"{'clean has no source of thumbs' if 'thumbs' not in there else 'thumbs.parquet is empty'} and "
            f"{'no pairs were given' if 'pairs' not in there else 'pairs.parquet is empty'}; "
            "name sources in clean.thumbs, or set pairs"
        )
    found = list(unpaired.examples(rows.get("pairs", ()), [*rows.get("thumbs", ()), *rows.get("badcases", ())]))
    return found, digest_text("\n".join(f"{name} {digest_file(path)}" for name, (path, _) in there.items()))


def encode(
    config: Settings, tokenizer: Any, examples: Sequence[Thumb], out: Path, found: Findings, *, seed: int
) -> tuple[list[VerdictRow], Metrics]:
    """Tokens of the examples that fit and contradict no other, in the order of training, each with an answer to another prompt."""
    intake = Intake[Thumb]("kto", "examples", config.train, found)
    rows: list[VerdictRow] = []
    trained: list[Thumb] = []
    twice = unpaired.unusable(examples)
    for number, example in enumerate(examples):
        encoded = intake.encoded(example, partial(chat.encode_answer, tokenizer, example.prompt, example.completion))
        if not encoded:
            continue
        if number in twice:
            intake.drop(example, *twice[number])
            continue
        prompt, answer, spoken = encoded
        length = len(prompt) + len(answer)
        room = intake.room(example, len(prompt), length)
        if room is None:
            continue
        if answer[:room] == [tokenizer.eos_token_id]:
            intake.drop(example, "empty_answer", f"{len(answer)} tokens, end included")
            continue
        intake.cut(example, length, len(prompt) + len(answer[:room]))
        row = {"prompt_ids": prompt, "completion_ids": answer[:room], "spoken": spoken[:room], "label": example.label}
        rows.append(row)
        trained.append(example)
    metrics = intake.close(out, len(rows))
    metrics.tokens = sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)
    found.supervised(sum(sum(row["spoken"]) for row in rows), metrics.tokens)
    _weigh(config, rows, metrics, found)
    found.as_served(tokenizer, [example.prompt for example in trained])
    return _rotated(config, rows, metrics, found, seed=seed), metrics


def _weigh(config: Settings, rows: Sequence[VerdictRow], metrics: Metrics, found: Findings) -> None:
    """The weights of both sides, and what is odd about the sides."""
    sides = [[sum(row["spoken"]) for row in rows if row["label"] is label] for label in (True, False)]
    up, down = map(len, sides)
    metrics.values |= {"desirable": up, "undesirable": down}
    if not rows:
        return
    if not up or not down:
        there, other = ("liked", "sft learns from good answers alone") if up else ("disliked", "it would only unlearn")
        found.error(
            f"kto needs both verdicts: got {up} liked and {down} disliked answers, because all that is left are {there} ones, and "
            f"{other}; give thumbs of both kinds, or pairs",
            DataError,
        )
        return
    wanted = unpaired.weights(up, down, config.desirable_weight, config.undesirable_weight)
    value = unpaired.ratio(up, down, *wanted)
    metrics.values |= {"desirable_weight": round(wanted[0], 6), "undesirable_weight": round(wanted[1], 6)}
    if not unpaired.LOWEST - 1e-9 <= value <= unpaired.HIGHEST + 1e-9:
        found.warn(
            f"weights of liked and disliked answers are out of balance: got {value:.2f} for {up} x {wanted[0]:g} against {down} x "
            f"{wanted[1]:g}, because KTO recommends 1 to 4/3; set one of desirable_weight and undesirable_weight to auto"
        )
    lengths = unpaired.length_ratio(*sides)
    found.values["length_ratio"] = round(lengths, 4)
    if min(up, down) >= FEWEST and max(lengths, 1 / lengths) >= LENGTH_RATIO:
        word = "longer" if lengths > 1 else "shorter"
        found.warn(
            f"length tells liked from disliked answers: got a mean ratio of {lengths:.2f}, because liked answers are {word} "
            f"throughout; expect {word} answers, or balance the thumbs"
        )


def _rotated(
    config: Settings, rows: Sequence[VerdictRow], metrics: Metrics, found: Findings, *, seed: int
) -> list[VerdictRow]:
    """The rows in the order of training; for loss kto each with the answer of the row before, cut where max_length is reached."""
    batch = config.train.batch_size
    labels, prompts = [row["label"] for row in rows], [tuple(row["prompt_ids"]) for row in rows]
    order, own = unpaired.arranged(labels, prompts, batch=batch, seed=seed)
    ordered = [rows[number] for number in order]
    if config.loss != "kto" or len(rows) < 2:
        return ordered
    result, cut = [], 0
    for place, row in enumerate(ordered):
        other = ordered[unpaired.before(place, len(ordered), batch)]
        room = config.train.max_length - len(row["prompt_ids"])
        cut += len(other["completion_ids"]) > room
        result.append({**row, "KL_completion_ids": other["completion_ids"][:room], "KL_spoken": other["spoken"][:room]})
    metrics.values |= {"kl_own_prompt": own, "kl_cut": cut}
    if own:
        found.warn(
            f"the KL term is measured on answers to their own prompts: got {own} of {len(rows)}, because too few prompts differ "
            "for batches in which neighbours do; give more prompts, or expect the term to be too high"
        )
    return result
