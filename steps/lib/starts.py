"""The policy as preference optimisation starts with it: the same model for what is trained and for its reference.

The reference is the policy at the first update. Most methods start where the policy is: their fresh adapters add nothing. Some do
not: fewer bits round the weights, virtual tokens answer otherwise before they are trained, and an adapter that splits the weights
rounds them. ``of`` says which of a method's settings matter so, and ``load`` makes the model from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steps.lib import adapters, models, runtime
from steps.lib.attention import chosen
from steps.lib.methods import METHODS, SECTIONS, AnyMethod, MergingMethods
from steps.lib.training import TrainSettings

AS_IT_IS = AnyMethod(method="full")
"""The start of a method that changes no answer before its first update."""


def of(method: AnyMethod) -> AnyMethod:
    """Of a method what decides the answers before the first update, and nothing else; ``full`` where nothing does.

    So learning rates, losses, ranks and the like can change, and the reference stays.
    """
    if method.method == "qlora":
        return AnyMethod(method="qlora", qlora=method.qlora)
    splits = method.method == "lora" and method.lora.init in ("pissa", "olora", "orthogonal")
    if splits or METHODS[method.method].kind in ("PROMPT_TUNING", "PREFIX_TUNING"):
        section = SECTIONS.get(method.method, method.method)
        return AnyMethod.model_validate({"method": method.method, section: getattr(method, section)})
    return AS_IT_IS


def trained(
    method: MergingMethods,
    policy: Path,
    settings: TrainSettings,
    *,
    updates: int,
    seed: int,
    branches: bool = False,
    plain: bool = False,
) -> Any:
    """The policy, ready to be trained with these settings.

    Args:
        method: of the training.
        policy: artifact.
        settings: of the training.
        updates: of the training; adalora plans with them.
        seed: what a fresh adapter draws depends on it alone.
        branches: whether pairs share a prompt.
        plain: whether rows are padded, as for sampling.

    Raises:
        ModelError: what is to attend cannot.
    """
    folder, precision = models.model_folder(policy), settings.precision
    kind = chosen(settings.attention, folder, method=method.method, precision=precision, branches=branches, plain=plain)
    return load(method, policy, precision, updates=updates, seed=seed, attention=kind)


def load(
    method: MergingMethods,
    policy: Path,
    precision: models.Precision,
    *,
    updates: int,
    seed: int,
    attention: str | None = None,
) -> Any:
    """The policy, ready to be trained: its own adapter, or what the method makes of whole weights.

    Args:
        method: of the training, or ``of`` it.
        policy: artifact.
        precision: of the frozen weights.
        updates: of the training; adalora plans with them.
        seed: what a fresh adapter draws depends on it alone.
        attention: what attends; None: as transformers chooses.
    """
    runtime.seed_torch(seed)
    if (policy / "adapter").exists():
        return models.load_policy(policy, precision, quantize=method.quantize, trainable=True, attention=attention)
    return adapters.start(method, models.model_folder(policy), precision, updates=updates, attention=attention)


def load_reference(method: AnyMethod, policy: Path, precision: models.Precision, *, seed: int) -> Any:
    """The same for log-probabilities alone."""
    import torch

    model = load(of(method), policy, precision, updates=1, seed=seed)
    if method.quantize:  # TRL trains the adapters of a quantised base in bfloat16
        for p in model.parameters():
            if p.requires_grad:
                p.data = p.data.to(torch.bfloat16)
    return model.requires_grad_(False).eval()


def no_model(model: Any) -> Any:
    """What TRL gets for a reference model: nothing that it could call, so that it makes no second model or adapter.

    A copy costs memory, AdaLoRA allows none, and a copy of a pissa adapter would change the base once more.
    """
    import torch

    class NoModel(torch.nn.Module):  # type: ignore[misc]
        """Never called."""

        config = model.config

    return NoModel()
