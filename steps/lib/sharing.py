"""Pairs with their prompt once: what TRL's DPOTrainer asks of a model, answered from packed rows.

TRL asks for log-probabilities of a padded batch ``[chosen; rejected]``, in which each prompt stands twice. ``Shared`` stands where
the model stood: it lays each pair out as prompt, chosen, rejected (``packing.fork``), packs the pairs, and puts what comes out back
into the places of TRL's batch. So losses and metrics stay TRL's. In place of 2 (P + C) tokens a pair there are P + 2 C.

Letters in shapes: B pairs, T tokens of the longest side, M predicted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from steps.lib import packed, packing
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
        kind = packed.implementation(self._whole)
        lengths = attention_mask.sum(1).tolist()
        starts = (labels != IGNORE).int().argmax(1).tolist()
        ids = [row[:length] for row, length in zip(input_ids.tolist(), lengths, strict=True)]
        half = len(ids) // 2
        packs = packed.takes_rows(self._whole)
        mask = packed.mask_of(kind) if packs and longest(self._whole) >= max(lengths) * 2 else None
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
        rows = [side for side in sides for _ in range(lengths[side] - starts[side])]
        places = [t - 1 for side in sides for t in range(starts[side], lengths[side])]
        return self._answered(sequences, rows, places, labels, mask)

    def _answered(
        self,
        sequences: Sequence[packing.Packable],
        rows: Sequence[int],
        places: Sequence[int],
        labels: Any,
        mask: Any = None,
    ) -> SimpleNamespace:
        """The model's scores of the sequences' predicted tokens, in these rows and places of TRL's batch."""
        import torch

        kind, packs, device = packed.implementation(self._whole), packed.takes_rows(self._whole), labels.device
        sizes = [len(one) for one in sequences]
        if packs:
            width = sum(sizes) if kind.startswith(("flash", "flex")) else packing.best_width(sizes, 2**62)
            made = packing.pack(sequences, range(len(sequences)), width=width, pad=self._pad)
        else:
            made = packing.pad_rows(sequences, range(len(sequences)), pad=self._pad)
        tensors = {name: None if values is None else values.to(device) for name, values in made.items()}
        seen = mask(tensors["segments"], tensors["branches"]) if mask else None
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
        return self._answered(sequences, [row for row, _ in places], [place for _, place in places], labels)


def longest(model: Any) -> int:
    """Tokens of a row for which a given mask is right in every layer: a layer with a sliding window would need its own."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or []
    sliding = "sliding_attention" in kinds or (not kinds and getattr(config, "use_sliding_window", True))
    window = getattr(config, "sliding_window", None) if sliding else None
    return int(window) if window else 2**62
