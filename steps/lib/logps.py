"""Log-probabilities of a reference: computed once for each pair, and looked up by whatever trains against them.

TRL's losses read two numbers a pair, the sums over the chosen and over the rejected answer; length-desensitised ones (``ld_alpha``)
weigh the tokens by which one answer is longer than the other. So a sum and the part of it in those tokens is all that any loss
needs, whatever its settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from steps.lib import inference, models, packed, packing, pair_rows, sharing, starts, training
from steps.lib.errors import ArtifactError
from steps.lib.methods import AnyMethod
from steps.lib.pair_rows import Encoded, PairRow
from steps.lib.preflight import Findings
from steps.lib.rows import PairLogps, read_parquet
from steps.lib.step import Progress
from steps.lib.work_ledger import Recall

FILE = "logps.parquet"
POLICY = "policy.json"
"""Says of which model the log-probabilities are."""
Sums = tuple[float, float]
"""Of an answer's log-probabilities: over all tokens, and over those behind the other answer's length."""


def score(
    model: Any,
    rows: Sequence[PairRow],
    *,
    pad: int,
    tokens: int,
    precision: models.Precision,
    recall: Recall,
    progress: Progress,
    share: tuple[int, int] = (0, 1),
) -> list[tuple[int, int, Sums]]:
    """Sums of log p of the answers: (row, side, sums), each pair's prompt computed once, packed without padding.

    Passes hold sequences of near lengths, the longest first; they depend on the rows and ``tokens`` alone.

    Args:
        model: ``packed.prepared``, in evaluation mode.
        pad: token of unused places.
        tokens: places of one pass, at most (a longer pair goes alone).
        precision: that the training will have.
        recall: keeps finished passes.
        share: this process's number, and of how many: it does every so manieth pass.
    """
    laid = sharing.lay(model, [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in rows])
    both = [min(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    passes = list(_passes([len(one) for one in laid.sequences], tokens, packs=packed.takes_rows(model)))
    found: list[tuple[int, int, Sums]] = []
    for chosen in progress(passes[share[0] :: share[1]], "reference", len(passes[share[0] :: share[1]])):
        stretches = [
            (row, side, len(rows[row][("chosen_ids", "rejected_ids")[side]]))
            for index in chosen
            for row, side in laid.stretches[index]
        ]
        content = {
            "kind": "reference",
            "sequences": [[laid.sequences[i].ids, laid.sequences[i].predictors] for i in chosen],
            "both": [both[row] for row, _, _ in stretches],
        }
        sizes = [(size, both[row]) for row, _, size in stretches]
        sums = recall(content, partial(_sums, model, laid, chosen, sizes, pad, precision))
        found += [(row, side, (total, tail)) for (row, side, _), (total, tail) in zip(stretches, sums, strict=True)]
    return found


def _passes(lengths: Sequence[int], most: int, *, packs: bool) -> Iterator[list[int]]:
    """Sequences of near lengths, longest first, of at most ``most`` tokens together (or rows x longest, where each has its row)."""
    if not packs:
        yield from (sorted(one) for one in reversed(packing.groups(lengths, most)))
        return
    held: list[int] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if held and lengths[index] > room:
            yield sorted(held)
            held = []
        room = (room if held else most) - lengths[index]
        held.append(index)
    if held:
        yield sorted(held)


def _sums(
    model: Any,
    laid: sharing.Laid,
    chosen: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    pad: int,
    precision: models.Precision,
) -> list[Sums]:
    """Sums of each answer of one pass; ``sizes`` has its tokens, and how many of them the other answer has, too."""
    import torch

    tensors, seen = sharing.one_pass(model, laid, chosen, pad=pad, device=models.device())
    mixed = training.mixes(precision)
    with torch.no_grad(), torch.autocast(models.device().partition(":")[0], torch.bfloat16, enabled=mixed):
        logps = packed.scores_of(model, tensors, seen)["logps"].double().cpu()
    answers = logps.split([size for size, _ in sizes])
    return [(float(one.sum()), float(one[both:].sum())) for one, (_, both) in zip(answers, sizes, strict=True)]


def gathered(found: list[tuple[int, int, Sums]], processes: int) -> list[tuple[int, int, Sums]]:
    """What all processes found, in each of them."""
    if processes == 1:
        return found
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    PartialState(cpu=not torch.cuda.is_available())
    return list(gather_object(found))


def rows_of(kept: Encoded, found: Sequence[tuple[int, int, Sums]]) -> list[PairLogps]:
    """The rows of ``logps.parquet``, in the order of the pairs."""
    sums = {(row, side): value for row, side, value in found}
    return [
        PairLogps(
            id=pair.id,
            lang=pair.lang,
            source=pair.source,
            digest=pair_rows.digest(row),
            chosen=sums[number, 0][0],
            chosen_tail=sums[number, 0][1],
            chosen_tokens=len(row["chosen_ids"]),
            rejected=sums[number, 1][0],
            rejected_tail=sums[number, 1][1],
            rejected_tokens=len(row["rejected_ids"]),
        )
        for number, (pair, row) in enumerate(zip(kept.pairs, kept.rows, strict=True))
    ]


def scored(method: AnyMethod, policy: Path, precision: models.Precision, seed: int) -> dict[str, Any]:
    """Which model the log-probabilities are of: the policy's content, and how it is loaded.

    Raises:
        ModelError: the base below the policy's adapter is another one.
    """
    if (policy / "adapter").exists():
        models.check_base(policy)
    start = starts.of(method)
    how = {} if start == starts.AS_IT_IS else start.model_dump(mode="json", exclude_defaults=True)
    draws = {"seed": seed} if how and start.method != "qlora" else {}
    return {"policy": inference.identity(policy), "precision": precision, **how, **draws}


def write_scored(out: Path, facts: dict[str, Any]) -> None:
    """Write ``policy.json``."""
    (out / POLICY).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def joined(
    kept: Encoded, reference: Path, expected: dict[str, Any], ld_alpha: float | None, found: Findings
) -> list[dict[str, Any]]:
    """The rows with the reference's sums, as TRL wants them. What does not fit is noted.

    Args:
        kept: the pairs that are trained on.
        reference: artifact of the step reference.
        expected: ``scored`` of the policy that is trained.
        ld_alpha: weight of the tokens by which one answer is longer than the other; None: 1.
        found: gets every row that the artifact does not have, and what else is foreign about it.
    """
    if not _same_model(reference, expected, found):
        return []
    there: dict[str, dict[str, PairLogps]] = {}
    for one in read_parquet(reference / FILE, PairLogps):
        there.setdefault(one.id, {})[one.digest] = one
    rows: list[dict[str, Any]] = []
    weight = 1.0 if ld_alpha is None else ld_alpha
    for pair, row in zip(kept.pairs, kept.rows, strict=True):
        own = there.get(pair.id, {})
        sums = own.get(pair_rows.digest(row))
        if sums is None:
            found.row("pairs", pair.id, OTHER_TOKENS if own else NOT_SCORED)
            continue
        chosen = sums.chosen - sums.chosen_tail + weight * sums.chosen_tail
        rejected = sums.rejected - sums.rejected_tail + weight * sums.rejected_tail
        rows.append({**row, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected})
    return rows


NOT_SCORED = (
    "the reference did not score them: got no row of this name in logps.parquet, because it was made of other pairs, or dropped "
    "these; make the reference of these pairs and this policy"
)
OTHER_TOKENS = (
    "the reference scored other tokens of them: got another digest in logps.parquet, because their text, the tokenizer, the chat "
    "template, max_length or too_long is another one; make the reference of these pairs with the settings of this step"
)


def _same_model(reference: Path, expected: dict[str, Any], found: Findings) -> bool:
    """Note where the log-probabilities are not of the policy that is trained; False where there are none."""
    try:
        facts = json.loads((reference / POLICY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found.error(
            f"{reference} is no reference: got {type(error).__name__} for {POLICY}, because another step made it, or it is not "
            "whole; give the folder of an artifact of reference",
            ArtifactError,
        )
        return False
    differing = sorted(name for name in facts.keys() | expected.keys() if facts.get(name) != expected.get(name))
    if differing:
        listed = ", ".join(f"{name} {_short(facts.get(name))} for {_short(expected.get(name))}" for name in differing)
        found.error(
            f"the reference is another model than the policy at its start: got {listed}, because it was made of another policy, or "
            "with other settings than this step's; make the reference of this policy with the settings of this step",
            ArtifactError,
        )
    return True


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if isinstance(value, str) and len(text) == 64 else text
