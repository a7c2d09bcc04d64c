"""Pairs with their prompt once: what TRL's DPOTrainer asks of a model, answered from packed rows.

TRL asks for log-probabilities of a padded batch ``[chosen; rejected]``, in which each prompt stands twice. ``Shared`` stands where
the model stood: it lays each pair out as prompt, chosen, rejected (``packing.fork``), packs the pairs, and puts what comes out back
into the places of TRL's batch. So losses and metrics stay TRL's. In place of 2 (P + C) tokens a pair there are P + 2 C.

Letters in shapes: B pairs, T tokens of the longest side, M predicted tokens.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from steps.lib import attention, packed, packing
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
        import torch

        kind = packed.implementation(self._whole)
        lengths = attention_mask.sum(1).tolist()
        starts = (labels != IGNORE).int().argmax(1).tolist()
        ids = [row[:length] for row, length in zip(input_ids.tolist(), lengths, strict=True)]
        half = len(ids) // 2
        packs = packed.takes_rows(self._whole)
        mask = packed.mask_of(kind) if packs and attention.longest(self._whole) >= max(lengths) * 2 else None
        if mask:
            sequences = [
                packing.fork(ids[i][: starts[i]], ids[i][starts[i] :], ids[i + half][starts[i + half] :])
                for i in range(half)
            ]
            sides = [side for i in range(half) for side in (i, i + half)]
        else:  # no masks with branches, or virtual tokens before each row: both sides apart
            sequences = [
                packing.stem(row, [IGNORE] * start + row[start:]) for row, start in zip(ids, starts, strict=True)
            ]
            sides = list(range(2 * half))
        if packs:
            made = packed.Layout(self._whole, pad=self._pad).rows(sequences, range(len(sequences)), 2**62)
        else:
            made = packing.pad_rows(sequences, range(len(sequences)), pad=self._pad)
        device = input_ids.device
        tensors = {name: values.to(device) if hasattr(values, "to") else values for name, values in made.items()}
        seen = mask(tensors["segments"], tensors["branches"]) if mask and "spans" not in made else None
        found = packed.scores_of(self._model, tensors, seen)
        rows = torch.tensor([side for side in sides for _ in range(lengths[side] - starts[side])])
        places = torch.tensor([t - 1 for side in sides for t in range(starts[side], lengths[side])])
        where = (rows.to(device), places.to(device))
        shape = (2 * half, input_ids.shape[1] - 1)

        def back(values: Any) -> Any:
            return torch.zeros(shape, dtype=values.dtype, device=device).index_put(where, values)

        return SimpleNamespace(
            log_probs=back(found["logps"]),
            entropy=back(found["entropy"]),
            mean_logits=back(found["mean_logits"]),
            is_top1=back(found["hits"]),
            aux_loss=None,
        )
