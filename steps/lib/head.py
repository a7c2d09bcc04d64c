"""Log-probabilities of chosen tokens alone: no logits of tokens without loss, and never all logits at once.

The output layer of a small model with a large vocabulary is a fifth of its work and most of its memory. Here a model's forward
takes ``predictors`` and ``targets`` and gives log p of these targets; logits exist for a few rows at a time.

Letters in shapes: M predicted tokens, H hidden width, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

import inspect
import math
import types
from functools import cache
from typing import Any

LOGITS = 16_000_000
"""Logits that exist at once, at most (64 MB in float32)."""


def give_scores(model: Any) -> None:
    """Let a causal language model's ``forward`` take ``predictors`` and ``targets`` (M,) and give scores of them alone.

    With ``width``, the places of a row that ``predictors`` count, rows may have more outputs: those of virtual tokens that PEFT
    puts before a row do not count.

    The model keeps its forward without these words, so sampling goes on as before. Wrap it with PEFT before or after.
    The scores are a dict of ``logps`` (M,), and of ``entropy`` (NaN where nothing is trained), ``mean_logits`` and ``hits`` (M,),
    which have no gradient.
    """
    plain = model.forward
    if getattr(plain, "gives_scores", False):
        return

    def forward(
        self: Any, *args: Any, predictors: Any = None, targets: Any = None, width: int = 0, **kwargs: Any
    ) -> Any:
        if predictors is None:
            return plain(*args, **kwargs)
        head = self.get_output_embeddings()
        if _unusual(self, head):
            logits = plain(*args, **kwargs).logits[:, -width:]  # (R, W, V)
            return _from_logits(logits.reshape(-1, logits.shape[-1])[predictors].float(), targets)
        kwargs.pop("labels", None)  # PEFT hands it on
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, -width:]  # (R, W, H)
        hidden = hidden.reshape(-1, hidden.shape[-1])[predictors]  # (M, H)
        return scores(hidden, head.weight, head.bias, targets)

    forward.gives_scores = True  # type: ignore[attr-defined]
    forward.__signature__ = inspect.signature(type(model).forward)  # type: ignore[attr-defined]  # generate() asks what it takes
    model.forward = types.MethodType(forward, model)


def _unusual(model: Any, head: Any) -> bool:
    """Whether logits are more than a product with the output layer's weights."""
    import torch

    config = model.config.get_text_config()
    names = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
    scaled = any(getattr(config, name, None) not in (None, 1, 1.0) for name in names)
    return scaled or type(head) is not torch.nn.Linear


def scores(hidden: Any, weight: Any, bias: Any, targets: Any) -> dict[str, Any]:
    """Scores of the targets.

    Args:
        hidden: (M, H), outputs of the last layer at the places that predict.
        weight: (V, H) of the output layer.
        bias: (V,) or None.
        targets: (M,).
    """
    logps, entropy, mean_logits, hits = _function().apply(hidden, weight, bias, targets)
    return {"logps": logps, "entropy": entropy, "mean_logits": mean_logits, "hits": hits}


def _from_logits(logits: Any, targets: Any) -> dict[str, Any]:
    import torch

    all_logps = torch.log_softmax(logits, dim=-1)  # (M, V)
    logps = all_logps.gather(-1, targets[:, None])[:, 0]
    with torch.no_grad():
        entropy = -(all_logps.exp() * all_logps).sum(-1)
        hits = logps >= all_logps.amax(-1)
        mean_logits = logits.mean(-1)
    return {"logps": logps, "entropy": entropy, "mean_logits": mean_logits, "hits": hits}


@cache
def _function() -> Any:
    import torch

    class Scores(torch.autograd.Function):  # type: ignore[misc]
        """d logp_i / d hidden_i is W[t_i] - p_i W whatever comes behind, so it is made in the forward pass, chunk by chunk, and
        the backward pass only scales it. Gradients of the weights (where they are trained) need p_i again."""

        @staticmethod
        def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, targets: Any) -> Any:
            ctx.kind = hidden.dtype
            hidden = hidden.to(weight.dtype)
            count, rows = hidden.shape[0], max(1, LOGITS // weight.shape[0])
            wanted, trained = ctx.needs_input_grad[0], ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
            logps, entropy = (
                torch.empty(count, device=hidden.device),
                torch.full((count,), math.nan, device=hidden.device),
            )
            hits = torch.empty(count, dtype=torch.bool, device=hidden.device)
            slope = torch.empty_like(hidden) if wanted else None
            for at in range(0, count, rows):
                part = slice(at, at + rows)
                own = hidden[part]  # (C, H)
                logits = torch.nn.functional.linear(own, weight, bias).float()  # (C, V)
                picked = targets[part, None]
                chosen = logits.gather(1, picked)[:, 0]  # (C,)
                found = torch.log_softmax(logits, dim=1, out=logits)
                logps[part] = found.gather(1, picked)[:, 0]
                hits[part] = logps[part] >= found.amax(1)
                if wanted:
                    mean = found.exp_().to(weight.dtype) @ weight  # (C, H): what p expects of W
                    normaliser = chosen - logps[part]
                    entropy[part] = normaliser - (own * mean).sum(1).float()
                    if bias is not None:
                        entropy[part] -= (found.to(weight.dtype) @ bias).float()
                    slope[part] = weight[targets[part]] - mean  # type: ignore[index]
            mean_logits = (hidden @ weight.mean(0)).float() + (0 if bias is None else bias.mean().float())
            ctx.save_for_backward(slope, *((hidden, weight, bias, targets) if trained else ()))
            ctx.mark_non_differentiable(entropy, mean_logits, hits)
            return logps, entropy, mean_logits, hits

        @staticmethod
        def backward(ctx: Any, grad: Any, *_: Any) -> Any:
            slope, *trained = ctx.saved_tensors
            own = (grad[:, None] * slope).to(ctx.kind) if slope is not None else None
            if not trained:
                return own, None, None, None
            hidden, weight, bias, targets = trained
            weights = torch.zeros_like(weight, dtype=torch.float32)
            biases = torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None
            rows = max(1, LOGITS // weight.shape[0])
            for at in range(0, len(targets), rows):
                part = slice(at, at + rows)
                found = torch.nn.functional.linear(hidden[part], weight, bias).float()
                torch.softmax(found, dim=1, out=found)
                found.neg_()
                found.scatter_add_(1, targets[part, None], torch.ones_like(found[:, :1]))
                found.mul_(grad[part, None])
                weights.addmm_(found.T, hidden[part].float())
                if biases is not None:
                    biases += found.sum(0)
            return own, weights.to(weight.dtype), biases, None

    return Scores
