"""Preference pairs as tokens: one way to encode them for all that trains on pairs or scores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from steps.lib import chat
from steps.lib.intake import Intake, Limits
from steps.lib.ledger import content_key
from steps.lib.preflight import Findings
from steps.lib.rows import Pair
from steps.lib.step import Metrics

PairRow = dict[str, list[int]]
"""Tokens of a pair by TRL's names: ``prompt_ids``, ``chosen_ids``, ``rejected_ids``."""


@dataclass(frozen=True)
class Encoded:
    """The pairs that are kept, and their tokens."""

    pairs: list[Pair]
    rows: list[PairRow]
    """In the order of the pairs."""


def encode(
    step: str,
    limits: Limits,
    tokenizer: Any,
    pairs: Sequence[Pair],
    out: Path,
    found: Findings,
    *,
    became: str = "trained",
) -> tuple[Encoded, Metrics]:
    """Tokens of the pairs that fit and differ; the others are dropped or cut, as the limits say, and written down.

    Args:
        step: that takes them.
        limits: how long a side may be, and what becomes of a longer one.
        out: folder of the step.
        found: gets what is wrong with rows.
        became: what the ledger calls the rows that are kept.
    """
    intake = Intake[Pair](step, "pairs", limits, found)
    kept = Encoded([], [])
    for pair in pairs:
        sides = intake.encoded(pair, partial(_sides, tokenizer, pair))
        if not sides:
            continue
        prompt, chosen, rejected = sides
        longest = len(prompt) + max(len(chosen), len(rejected))
        room = intake.room(pair, len(prompt), longest)
        if room is None:
            continue
        left = chosen[:room], rejected[:room]
        if left[0] == left[1]:
            cut = " once cut" if chosen != rejected else ""
            intake.drop(pair, "equal_pair", f"equal answers of {len(left[0])} tokens{cut}")
        elif [tokenizer.eos_token_id] in left:
            intake.drop(pair, "empty_answer", f"{len(chosen)} tokens chosen, {len(rejected)} rejected, end included")
        else:
            intake.cut(pair, longest, len(prompt) + max(map(len, left)))
            kept.rows.append({"prompt_ids": prompt, "chosen_ids": left[0], "rejected_ids": left[1]})
            kept.pairs.append(pair)
    return kept, intake.close(out, len(kept.rows), became)


def look(kept: Encoded, tokenizer: Any, found: Findings) -> int:
    """Look at the pairs as a whole before they are trained on. Returns the tokens of both sides, the prompt twice."""
    tokens = sum(2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in kept.rows)
    found.supervised(sum(len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in kept.rows), tokens)
    found.pairs(kept.pairs, [(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in kept.rows])
    found.as_served(tokenizer, [pair.prompt for pair in kept.pairs])
    return tokens


def digest(row: PairRow) -> str:
    """What tells a pair's tokens from others: 32 hex digits."""
    return content_key({name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")})


def _sides(tokenizer: Any, pair: Pair) -> tuple[list[int], list[int], list[int]]:
    """Tokens of a pair's prompt, chosen and rejected answer."""
    prompt, chosen = chat.encode_pair(tokenizer, pair.prompt, pair.chosen)
    return prompt, chosen, chat.encode_pair(tokenizer, pair.prompt, pair.rejected)[1]
