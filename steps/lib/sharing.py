"""Pairs with their prompt once: what TRL's DPOTrainer asks of a model, answered from packed rows.

TRL asks for log-probabilities of a padded batch ``[chosen; rejected]``, in which each prompt stands twice. ``Shared`` stands where
the model stood: it lays each pair out as prompt, chosen, rejected (``packing.fork``), packs the pairs, and puts what comes out back
into the places of TRL's batch. So losses and metrics stay TRL's. In place of 2 (P + C) tokens a pair there are P + 2 C.

Letters in shapes: B pairs, T tokens of the longest side, M predicted tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from steps.lib import packed, packing, spans
from steps.lib.chat import IGNORE


class Shared:
    """A model that computes each prompt once. Call it as TRL calls a model with its fused head."""

    def __init__(self, model: Any, *, whole: Any, pad: int) -> None:
        """Stand before a model.

        Args:
            model: what is called, perhaps wrapped for several processes.
            whole: the model itself, which tells how it attends.
            pad: token of unused places.
        """
        self._model, self._whole, self._pad = model, whole, pad

    def __call__(self, *, input_ids: Any, attention_mask: Any, labels: Any, **_: Any) -> Any:
        """``log_probs``, ``entropy``, ``mean_logits`` and ``is_top1`` of the labelled tokens, 0 elsewhere: (2B, T - 1) each."""
        lengths = attention_mask.sum(1).tolist()
        starts = (labels != IGNORE).int().argmax(1).tolist()
        ids = [row[:length] for row, length in zip(input_ids.tolist(), lengths, strict=True)]
        half = len(ids) // 2
        pairs = [(ids[i][: starts[i]], ids[i][starts[i] :], ids[i + half][starts[i + half] :]) for i in range(half)]
        laid = lay(self._whole, pairs)
        sides = [pair + half * side for held in laid.stretches for pair, side in held]
        rows = [side for side in sides for _ in range(lengths[side] - starts[side])]
        places = [t - 1 for side in sides for t in range(starts[side], lengths[side])]
        return self._answered(laid, rows, places, labels)

    def _answered(self, laid: Laid, rows: Sequence[int], places: Sequence[int], labels: Any) -> SimpleNamespace:
        """The model's scores of the sequences' predicted tokens, in these rows and places of TRL's batch."""
        import torch

        device = labels.device
        tensors, seen = one_pass(self._whole, laid, range(len(laid.sequences)), pad=self._pad, device=device)
        found = packed.scores_of(self._model, tensors, seen)
        where = (torch.tensor(rows, device=device), torch.tensor(places, device=device))
        shape = (labels.shape[0], labels.shape[1] - 1)

        def back(values: Any) -> Any:
            return torch.zeros(shape, dtype=values.dtype, device=device).index_put(where, values)

        return SimpleNamespace(
            log_probs=back(found["logps"]),
            entropy=back(found["entropy"]),
            mean_logits=back(found["mean_logits"]),
            is_top1=back(found["hits"]),
            aux_loss=None,
        )


class Apart(Shared):
    """The same for answers of which none shares its prompt (TRL's KTOTrainer): sequences side by side in rows, without padding."""

    def __call__(self, *, input_ids: Any, attention_mask: Any, labels: Any, **_: Any) -> Any:
        """As ``Shared``, of a batch of B sequences: (B, T - 1) each. Tokens without a label carry no loss, wherever they stand."""
        lengths = attention_mask.sum(1).tolist()
        own = [row[:length] for row, length in zip(labels.tolist(), lengths, strict=True)]
        ids = [row[:length] for row, length in zip(input_ids.tolist(), lengths, strict=True)]
        sequences = [packing.stem(one, label) for one, label in zip(ids, own, strict=True)]
        places = [(row, t - 1) for row, label in enumerate(own) for t in range(1, len(label)) if label[t] != IGNORE]
        return self._answered(
            Laid(sequences, [], None), [row for row, _ in places], [place for _, place in places], labels
        )


@dataclass(frozen=True)
class Laid:
    """Pairs laid out as sequences."""

    sequences: list[packing.Packable]
    stretches: list[list[tuple[int, int]]]
    """For each sequence the answers in it, in their order: (pair, side), side 0 being the chosen one."""
    mask: Callable[[Any, Any], Any] | None
    """What makes the mask; None where the positions or the padding say what is visible."""


def lay(model: Any, pairs: Sequence[tuple[list[int], list[int], list[int]]]) -> Laid:
    """Lay pairs (prompt, chosen, rejected) out for a model: each prompt once, where the model can attend so."""
    lengths = [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in pairs]
    shares = packed.takes_rows(model) and spans.longest(model) >= max(lengths) * 2
    mask = packed.mask_of(packed.implementation(model)) if shares else None
    if mask:
        return Laid([packing.fork(*pair) for pair in pairs], [[(i, 0), (i, 1)] for i in range(len(pairs))], mask)
    # no masks with branches, or virtual tokens before each row: both sides apart
    answers = [(i, side, pairs[i][0], pairs[i][1 + side]) for side in (0, 1) for i in range(len(pairs))]
    sequences = [packing.stem([*prompt, *said], [IGNORE] * len(prompt) + said) for _, _, prompt, said in answers]
    return Laid(sequences, [[(i, side)] for i, side, _, _ in answers], None)


def one_pass(
    model: Any, laid: Laid, chosen: Sequence[int], *, pad: int, device: Any
) -> tuple[dict[str, Any], Any | None]:
    """What one forward pass over some of the sequences (rising numbers) gets, and its mask where it needs one."""
    if packed.takes_rows(model):
        made = packed.Layout(model, pad=pad).rows(laid.sequences, chosen, 2**62)
    else:
        made = packing.pad_rows(laid.sequences, chosen, pad=pad)
    tensors = {name: values.to(device) if hasattr(values, "to") else values for name, values in made.items()}
    if laid.mask is None or "spans" in made:
        return tensors, None
    return tensors, laid.mask(tensors["segments"], tensors["branches"])
