"""Attention in a pass that holds one token of each running row and the whole prompts of those that begin (``decoding.py``).

Rows lie end to end without padding, and each sees its own tokens. The tokens that all prompts begin with are held once, and all
rows attend to them in one product: Juravsky et al., "Hydragen" (arXiv 2402.05099), section 3.

Letters in shapes: N tokens of a pass, R running rows, P tokens of the prefix, W tokens of the longest row, S slots, D channels of a
head, A attention heads, K heads of keys and values, G = A / K, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NAME = "prefline_rows"
"""What transformers calls our attention."""


@dataclass
class Pass:
    """What attention has to know of one pass over the layers."""

    keys: list[Any]
    """Of each layer: (S, K, W, D), or None before its first pass."""
    values: list[Any]
    room: tuple[int, int]
    """Slots, and tokens of each."""
    prefix: list[tuple[Any, Any]] | None
    """Keys and values of each layer, (K, P, D); None while the prefix itself is computed, or where there is none."""
    running: int
    """The first tokens of the pass are one each of the rows in the first slots."""
    lengths: Any
    """(R,) tokens that each running row has in its slot."""
    width: int
    hidden: Any
    """(R, 1, 1, W) True where a slot holds nothing yet."""
    begins: list[tuple[int, int, int]]
    """Slot, first token and the one behind the last of each row that begins."""
    visited: int = 0
    """Layers that attended."""


def attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **kwargs: Any
) -> tuple[Any, None]:
    """Stands where transformers' attention does: (1, A, N, D) -> (1, N, A, D)."""
    import torch

    now: Pass = kwargs["rows"]
    if odd := sorted(name for name in ("softcap", "s_aux", "sliding_window") if kwargs.get(name) is not None):
        raise ValueError(f"{odd[0]} in its attention")
    layer, scale = module.layer_idx, scaling if scaling is not None else query.shape[-1] ** -0.5
    now.visited += 1
    if now.keys[layer] is None:  # zeros: what is hidden has no weight, but NaN would show
        slots, width = now.room
        now.keys[layer] = key.new_zeros(slots, key.shape[1], width, key.shape[-1])
        now.values[layer] = value.new_zeros(slots, value.shape[1], width, value.shape[-1])
    keys, values, prefix = now.keys[layer], now.values[layer], now.prefix[layer] if now.prefix else None
    heads, groups = key.shape[1], query.shape[1] // key.shape[1]
    out = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])  # (N, A, D)
    if now.running:
        count = now.running
        places = torch.arange(count, device=query.device)
        keys[places, :, now.lengths] = key[0, :, :count].transpose(0, 1)
        values[places, :, now.lengths] = value[0, :, :count].transpose(0, 1)
        asked = query[0, :, :count].transpose(0, 1).reshape(count, heads, groups, -1) * scale  # (R, K, G, D)
        scores = asked @ keys[:count, :, : now.width].transpose(-1, -2)  # (R, K, G, W)
        scores = scores.masked_fill(now.hidden, float("-inf"))
        if prefix is None:
            weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
            said = weights @ values[:count, :, : now.width]
        else:
            flat = asked.transpose(0, 1).reshape(heads, count * groups, -1)  # (K, R G, D)
            before = (flat @ prefix[0].transpose(-1, -2)).view(heads, count, groups, -1).transpose(0, 1)  # (R, K, G, P)
            weights = torch.cat([before, scores], -1).softmax(-1, dtype=torch.float32).to(value.dtype)
            size = before.shape[-1]
            old = weights[..., :size].transpose(0, 1).reshape(heads, count * groups, size) @ prefix[1]  # (K, R G, D)
            said = weights[..., size:] @ values[:count, :, : now.width]  # (R, K, G, D)
            said = said + old.view(heads, count, groups, -1).transpose(0, 1)
        out[:count] = said.reshape(count, heads * groups, -1)
    for slot, start, stop in now.begins:
        own_keys, own_values = key[0, :, start:stop], value[0, :, start:stop]  # (K, L, D)
        keys[slot, :, : stop - start], values[slot, :, : stop - start] = own_keys, own_values
        if prefix is not None:
            own_keys, own_values = torch.cat([prefix[0], own_keys], 1), torch.cat([prefix[1], own_values], 1)
        out[start:stop] = _causal(query[0, :, start:stop], own_keys, own_values, scale).transpose(0, 1)
    return out[None], None


def _causal(query: Any, key: Any, value: Any, scale: float) -> Any:
    """(A, L, D) over (K, P + L, D): each token sees the prefix, what came before it, and itself."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    groups, size, before = query.shape[0] // key.shape[0], query.shape[1], key.shape[1] - query.shape[1]
    key, value = (one.repeat_interleave(groups, 0)[None] for one in (key, value))
    mask = None
    if before:
        mask = torch.ones(size, before + size, dtype=torch.bool, device=query.device).tril(before)
    return scaled_dot_product_attention(query[None], key, value, mask, is_causal=mask is None, scale=scale)[0]
