"""Attention of a packed row, sequence by sequence: no work for pairs of tokens that do not see each other.

A mask over a packed row costs its whole square, forward and backward, even for blocks of which nothing is seen. Here each sequence
of a row is a causal product of its own, stem and first branch in one; another branch attends to the stem and to itself. It is taken
where a model attends with PyTorch's ``scaled_dot_product_attention``; flash and flex attention skip blocks themselves.

Letters in shapes: W places, Q query heads, K key heads, D width of a head, S tokens of a stem, B of a branch.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

Span = tuple[int, tuple[int, ...]]
"""Tokens of a sequence's stem, and of each of its branches."""


def takes_spans(model: Any) -> bool:
    """Whether the model can attend by spans: through SDPA, with one kind of layer, and its attention is handed what forward got."""
    config = model.config.get_text_config()
    if config._attn_implementation != "sdpa":
        return False
    register()
    layers = [module for module in model.modules() if type(module).__name__.endswith(("Attention", "DecoderLayer"))]
    return bool(layers) and all(_takes_more(type(module).forward) for module in layers)


@cache
def _takes_more(forward: Any) -> bool:
    words = inspect.signature(forward).parameters.values()
    return any(word.kind is inspect.Parameter.VAR_KEYWORD for word in words)


def longest(model: Any) -> int:
    """Tokens of a sequence for which each layer sees all that comes before: a sliding window is shorter."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or []
    sliding = "sliding_attention" in kinds or (not kinds and getattr(config, "use_sliding_window", True))
    window = getattr(config, "sliding_window", None) if sliding else None
    return int(window) if window else 2**62


def no_mask(device: Any) -> Any:
    """Stands for the mask (1, 1, 0, 0): a layer that did not get the spans fails, it does not see everything."""
    import torch

    return torch.empty(1, 1, 0, 0, device=device, dtype=torch.bool)


@cache
def register() -> None:
    """Teach transformers' ``sdpa`` the word ``spans``; without it nothing is changed."""
    _register(attend)


@cache
def stay_eager() -> None:
    """Keep attention by spans out of what torch.compile makes of a layer: it would be another one for each row's spans."""
    import torch

    register()
    _register(torch.compiler.disable(attend))


def _register(attending: Any) -> None:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def forward(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        spans = kwargs.pop("spans", None)
        if spans is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return attending(
            query, key, value, spans, scale=kwargs.get("scaling"), dropout=kwargs.get("dropout", 0.0)
        ), None

    AttentionInterface.register("sdpa", forward)


def attend(query: Any, key: Any, value: Any, spans: Sequence[Span], *, scale: float | None, dropout: float) -> Any:
    """Attention of a row that holds spans one behind the other.

    Args:
        query: (1, Q, W, D).
        key: (1, K, W, D); Q is a multiple of K.
        value: (1, K, W, D).
        spans: of the row; their tokens sum to W.
        scale: of the scores; None: D^-1/2.
        dropout: share of the weights that are dropped.

    Returns:
        (1, W, Q, D).
    """
    import torch

    shape = query.transpose(1, 2).shape  # (1, W, Q, D)
    more = {"scale": scale, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
    sizes = [size for stem, branches in spans for size in (stem + sum(branches[:1]), *branches[1:])]
    parts = [one.transpose(1, 2)[0].split(sizes) for one in (query, key, value)]  # (size, heads, D) each
    found: list[Any] = []
    at = 0
    for stem, branches in spans:
        whole = [part[at].transpose(0, 1)[None] for part in parts]  # (1, heads, S + first branch, D)
        at += 1
        found.append(_product(*whole, is_causal=True, **more))
        for branch in branches[1:]:
            own, keys, values = (part[at].transpose(0, 1)[None] for part in parts)
            at += 1
            sees = torch.ones(branch, stem + branch, dtype=torch.bool, device=query.device).tril(stem)
            keys = torch.cat([whole[1][:, :, :stem], keys], dim=2)
            values = torch.cat([whole[2][:, :, :stem], values], dim=2)
            found.append(_product(own, keys, values, attn_mask=sees, **more))
    return torch.cat([one[0].transpose(0, 1) for one in found]).view(shape)


def _product(*tensors: Any, **more: Any) -> Any:
    import torch

    return torch.nn.functional.scaled_dot_product_attention(*tensors, **more)
