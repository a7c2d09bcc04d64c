"""The same products with fewer passes over memory: by hand for training on a CPU, by torch.compile where it is asked for.

PEFT runs a LoRA layer as four operations, each of which writes and reads the layer's whole output, forward and backward. Here it is
two products that add into one output (as Unsloth does on GPUs); gradients are those of the closed form. Norms likewise. On a GPU
nothing of this is changed.
"""

from __future__ import annotations

import types
from functools import cache
from typing import Any

from steps.lib import spans


def speed_up(model: Any) -> int:
    """Give the layers of a model on a CPU their quick forms where they are plain. Returns how many got one.

    A layer that is merged, disabled, quantised, of another variant or with dropout, or that got a second adapter, runs as PEFT has
    it; this is looked at in every call.
    """
    from peft.tuners.lora.layer import Linear

    if next(model.parameters()).device.type != "cpu":
        return 0
    found = 0
    for module in model.modules():
        if type(module) is Linear:
            _patch(module, _lora_forward, _lora())
            found += 1
        elif _is_rms_norm(module):
            _patch(module, _norm_forward, _norm())
            found += 1
    return found


def compile_layers(model: Any) -> int:
    """Let torch.compile make one function of what stands before attention in a layer, and one of what stands behind it.

    All layers share it, and it takes rows of any width; attention stays as it is. Returns how many layers there are.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    spans.stay_eager()
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)


def back_to_plain(model: Any) -> None:
    """Undo ``compile_layers``: what is asked of the model now has other shapes, and would be compiled again."""
    for module in model.modules():
        module._compiled_call_impl = None


def _patch(module: Any, forward: Any, function: Any) -> None:
    module.plain_forward, module.quick = module.forward, function
    module.forward = types.MethodType(forward, module)


def _is_rms_norm(module: Any) -> bool:
    """A norm as Llama has it: x / rms(x) * weight (Gemma's adds 1 to its weight)."""
    return type(module).__name__ in ("LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "MistralRMSNorm")


def _lora_forward(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    import torch

    active = self.active_adapters
    name = active[0] if len(active) == 1 else ""
    base = self.get_base_layer()
    quick = (
        not args
        and not kwargs
        and not self.disable_adapters
        and not self.merged
        and name in self.lora_A
        and name not in self.lora_variant
        and type(base) is torch.nn.Linear
        and type(self.lora_dropout[name]) is torch.nn.Identity
        and not base.weight.requires_grad
        and self.lora_A[name].weight.dtype == x.dtype == base.weight.dtype
        and self.lora_B[name].bias is None
    )
    if not quick:
        return self.plain_forward(x, *args, **kwargs)
    a, b = self.lora_A[name].weight, self.lora_B[name].weight
    return self.quick.apply(x, base.weight, base.bias, a, b, float(self.scaling[name]))


def _norm_forward(self: Any, x: Any) -> Any:
    import torch

    if x.dtype != torch.float32 or self.weight.requires_grad:
        return self.plain_forward(x)
    return self.quick.apply(x, self.weight, float(self.variance_epsilon))


@cache
def _lora() -> Any:
    import torch

    class Lora(torch.autograd.Function):  # type: ignore[misc]
        """y = x W^T + s (x A^T) B^T + bias, the adapter's product added into the output. W (out, in), A (r, in), B (out, r)."""

        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float) -> Any:
            rows = x.reshape(-1, x.shape[-1])  # (N, in)
            low = rows @ a.T  # (N, r)
            y = torch.nn.functional.linear(rows, weight, bias).addmm_(low, b.T, alpha=scale)  # (N, out)
            ctx.save_for_backward(rows, low, weight, a, b)
            ctx.scale = scale
            return y.view(*x.shape[:-1], -1)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            rows, low, weight, a, b = ctx.saved_tensors
            wanted = ctx.needs_input_grad
            flat = grad.reshape(-1, grad.shape[-1])
            back = (flat @ b).mul_(ctx.scale)  # (N, r)
            into = (flat @ weight).addmm_(back, a).view(*grad.shape[:-1], -1) if wanted[0] else None
            of_a = back.T @ rows if wanted[3] else None
            of_b = (flat.T @ low).mul_(ctx.scale) if wanted[4] else None
            return into, None, None, of_a, of_b, None

    return Lora


@cache
def _norm() -> Any:
    import torch

    class Norm(torch.autograd.Function):  # type: ignore[misc]
        """y = w x / r with r = sqrt(mean x^2 + eps) (Zhang and Sennrich 2019, 1910.07467).

        With g = w dy: dx = g / r - x (g . x) / (H r^3).
        """

        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, eps: float) -> Any:
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
            ctx.save_for_backward(x, weight, scale)
            return (x * scale).mul_(weight)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            x, weight, scale = ctx.saved_tensors
            g = grad * weight
            dot = torch.linalg.vecdot(g, x)[..., None]
            dot.mul_(scale.pow(3)).div_(-x.shape[-1])
            return g.mul_(scale).addcmul_(x, dot), None, None

    return Norm
