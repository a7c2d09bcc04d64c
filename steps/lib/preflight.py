"""Checks before the first update, reported together: one error with all that is wrong, and warnings that go on record.

Rows and template: ``Intake`` and ``chat`` find what is wrong with them. Here: what the rows are like as a whole, and whether disk
and memory hold the run. ``record/preflight.json`` has every figure and warning, ``docs/failures.md`` every message with an example.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.lib import chat, checkpoints, footprint, sharded
from steps.lib.errors import ArtifactError, DataError, PreflineError, TrainingError
from steps.lib.facts import fold
from steps.lib.intake import ids_of
from steps.lib.rows import Message, Pair
from steps.lib.step import Context, Metrics
from steps.lib.training import TrainSettings

LOW_SUPERVISED = 0.01
"""Share of tokens with loss below which training is nearly all reading."""
LONGER_SHARE = 0.8
"""Share of pairs in which the same side is the longer one, from which length alone tells the sides apart."""
LENGTH_RATIO = 1.5
"""Ratio of the sides' lengths from which the same is said."""
FEWEST = 10
"""Pairs below which nothing is said of their lengths."""
SERVED = 100
"""Conversations whose tokens are compared with those of the whole text."""


@dataclass
class Findings:
    """What the checks found so far."""

    errors: list[tuple[type[PreflineError], str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    values: dict[str, float | int] = field(default_factory=dict)
    """Figures that depend on rows and configuration alone: they go into the manifest."""
    here: dict[str, float | int] = field(default_factory=dict)
    """Figures of this machine."""
    _rows: dict[str, tuple[str, str, list[str]]] = field(default_factory=dict)

    def error(self, message: str, kind: type[PreflineError] = TrainingError) -> None:
        """Note what stops the step."""
        self.errors.append((kind, message))

    def warn(self, message: str) -> None:
        """Note what does not stop it."""
        self.warnings.append(message)

    def row(self, kind: str, name: str, message: str) -> None:
        """Note what is wrong with one row; rows with the same fault make one error, with the message of the first."""
        self._rows.setdefault(message.partition(":")[0], (kind, message, []))[2].append(name)

    def stop(self) -> None:
        """Raise everything that was found as one error.

        Raises:
            DataError: only rows are at fault.
            ArtifactError: only the disk is.
            TrainingError: something else is, or several things are.
        """
        found = [(DataError, f"{kind} {ids_of(names)}: {message}") for kind, message, names in self._rows.values()]
        errors = [*found, *self.errors]
        if not errors:
            return
        kinds = {kind for kind, _ in errors}
        head = "" if len(errors) == 1 else f"{len(errors)} problems before the first update:\n"
        raise (kinds.pop() if len(kinds) == 1 else TrainingError)(head + "\n".join(message for _, message in errors))

    def supervised(self, with_loss: int, tokens: int) -> None:
        """Look at the share of tokens that carry loss."""
        share = with_loss / max(1, tokens)
        self.values["supervised_share"] = round(share, 4)
        if tokens and not with_loss:
            self.error(
                f"no token carries loss: got 0 of {tokens}, because every row is a prompt without an answer; "
                "give rows with assistant turns",
                DataError,
            )
        elif tokens and share < LOW_SUPERVISED:
            self.warn(
                f"few tokens carry loss: got {with_loss} of {tokens} ({share:.2%}), because prompts are much longer than answers; "
                "shorten the prompts, or expect slow learning"
            )

    def as_served(self, tokenizer: Any, conversations: Sequence[Sequence[Message]]) -> None:
        """Compare tokens with those of a server, which renders the whole prompt and tokenises it in one go."""
        chosen = conversations[:: max(1, len(conversations) // SERVED)][:SERVED]
        differing = 0
        for turns in chosen:
            text = tokenizer.apply_chat_template(chat.plain(turns), tokenize=False, add_generation_prompt=True)
            whole = tokenizer(text, add_special_tokens=False)["input_ids"]
            differing += list(whole) != chat.encode_prompt(tokenizer, turns)
        self.values["not_as_served"] = differing
        if differing:
            self.warn(
                f"prompts have other tokens when a server tokenises them whole: got {differing} of {len(chosen)}, because tokens "
                "reach over the borders of turns in this template; use a template with special tokens between turns"
            )

    def pairs(self, pairs: Sequence[Pair], lengths: Sequence[tuple[int, int]]) -> None:
        """Look at what tells chosen from rejected answers: format alone, or length.

        Args:
            pairs: that are trained on.
            lengths: tokens of the chosen and the rejected answer of each.
        """
        same = [pair.id for pair in pairs if _said(pair.chosen) == _said(pair.rejected)]
        self.values["format_only_pairs"] = len(same)
        if same:
            self.warn(
                f"pairs differ by format only: got {len(same)} of {len(pairs)} ({ids_of(same)}), because their sides are equal but "
                "for spaces, case, punctuation or marks; check that one of the formats is what you want to teach"
            )
        uneven = [(one, other) for one, other in lengths if one != other]
        if not lengths:
            return
        share = sum(one > other for one, other in uneven) / max(1, len(uneven))
        ratio = math.exp(sum(math.log(one / other) for one, other in lengths) / len(lengths))
        self.values |= {"chosen_longer_share": round(share, 4), "length_ratio": round(ratio, 4)}
        if len(uneven) < FEWEST:
            return
        if max(share, 1 - share) >= LONGER_SHARE or max(ratio, 1 / ratio) >= LENGTH_RATIO:
            word = "longer" if share > 0.5 or ratio > 1 else "shorter"
            self.warn(
                f"length tells the sides of pairs apart: got a longer chosen answer in {share:.0%} of {len(uneven)} pairs and a "
                f"mean ratio of {ratio:.2f}, because chosen answers are {word} throughout; expect {word} answers, or balance "
                "the pairs"
            )

    def loading(self, folder: Path, precision: str, *, bits: int | None = None, free: int | None = None) -> None:
        """Look whether the weights fit into memory, before they are loaded; if not, raise all that was found.

        Args:
            folder: a checkpoint.
            precision: that it is loaded in.
            bits: of a weight, where it is quantised.
            free: bytes that are free; None: as the device or the machine says.

        Raises:
            TrainingError: they do not fit.
        """
        need = footprint.of_weights(folder, precision, bits)
        room = footprint.free_memory() if free is None else free
        self.here |= {"weights_bytes": need}
        if need > room:
            self.error(
                f"weights do not fit into memory: got {_gib(room)} free, because {folder.name} takes {_gib(need)}; use qlora, a "
                "smaller base or a larger machine, or end what else holds the memory"
            )
            self.stop()

    def check(
        self,
        model: Any,
        settings: TrainSettings,
        tokens: int,
        context: Context,
        metrics: Metrics,
        *,
        free: int | None = None,
    ) -> None:
        """Look at disk and memory, then raise, or log and record, what was found.

        Args:
            model: that is trained, loaded and wrapped.
            settings: of the training.
            tokens: of the largest forward pass.
            free: bytes of memory that are free; None: as the device or the machine says.

        Raises:
            PreflineError: one, of everything that stops the step.
        """
        self._disk(model, context.resume)
        self._memory(model, settings, tokens, free)
        metrics.values.update(self.values)
        metrics.values["warnings"] = len(self.warnings)
        if int(os.environ.get("RANK", "0")) == 0:
            self._write(context.resume.parent / "record" / "preflight.json", context.log)
        self.stop()

    def _write(self, path: Path, log: logging.Logger) -> None:
        for message in self.warnings:
            log.warning("%s", message)
        content = {"values": self.values, "here": self.here, "warnings": self.warnings}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def _disk(self, model: Any, resume: Path) -> None:
        one = footprint.of_checkpoint(model)
        there = sum(path.stat().st_size for path in checkpoints.kept(resume).rglob("*") if path.is_file())
        need = one * (checkpoints.KEEP + 1) - there
        free = shutil.disk_usage(resume).free
        self.here |= {"checkpoint_bytes": one, "disk_free_bytes": free}
        if need > free:
            self.error(
                f"the store has no room for checkpoints: got {_gib(free)} free at {resume.parent}, because {checkpoints.KEEP + 1} "
                f"checkpoints of {_gib(one)} (weights that are trained, and two moments of each) are there at once; free "
                f"some space ({_gib(need - free)} more), or put the store on a larger disk, and run the same command again",
                ArtifactError,
            )

    def _memory(self, model: Any, settings: TrainSettings, tokens: int, free: int | None) -> None:
        shares = int(os.environ["WORLD_SIZE"]) if sharded.wanted(settings) else 1
        parts = footprint.of_training(model, tokens, checkpointing=settings.gradient_checkpointing, shares=shares)
        room = footprint.free_memory() if free is None else free
        need = sum(parts.values())
        self.here |= {f"{name}_bytes": size for name, size in parts.items()} | {"memory_free_bytes": room}
        if need > room:
            listed = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
            self.error(
                f"training does not fit into memory: got {_gib(room)} free beside the weights, because it takes about {_gib(need)} "
                f"({listed}, for passes of {tokens} tokens); lower batch_size, tokens_per_pass or max_length, set "
                "gradient_checkpointing, or use a method that trains fewer weights"
            )


def _said(turns: Iterable[Message]) -> str:
    return "\x00".join(fold(turn.content) for turn in turns)


def _gib(size: float) -> str:
    """Bytes for people."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 2**10:.1f} KiB"
