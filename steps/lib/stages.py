"""The models of a chain, each loaded when it is asked for: a base once, and adapters put on it and taken off again.

An adapter is wrapped around its base by PEFT as if it were alone, whatever its kind. What that changed in the base (modules in the
places of others) is noted, taken out when another model is asked for, and put back later: nothing is read a second time, adapters
of kinds that PEFT cannot hold together stand beside each other, and a model computes what it would compute alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.lib import model_files, models
from steps.lib.models import Precision

WRITTEN = ("peft_config", "prepare_inputs_for_generation")
"""What PEFT writes into a base itself; the second stays there when an answer is broken off."""


@dataclass
class _Fitted:
    """An adapter on its base."""

    model: Any
    changed: list[tuple[Any, dict[str, Any], dict[str, Any]]]
    """A module of the base, its children without the adapter, and with it."""
    settings: Any
    """What PEFT notes in the base of the adapters that it has injected; None where it injects none."""


@dataclass
class _Base:
    """Whole weights, and the adapters that were put on them."""

    model: Any
    adapters: dict[Path, _Fitted] = field(default_factory=dict)
    active: _Fitted | None = None

    def put_on(self, artifact: Path) -> Any:
        """The model with the adapter of an artifact, and no other."""
        wanted = self.adapters.get(artifact)
        if wanted is None or wanted is not self.active:
            self.take_off()
            wanted = wanted or self._wrapped(artifact)
            for module, _, children in wanted.changed:
                _set_children(module, children)
            if wanted.settings is not None:
                self.model.peft_config = wanted.settings
            self.active = wanted
        return wanted.model

    def take_off(self) -> Any:
        """The model without any adapter."""
        for module, children, _ in self.active.changed if self.active else ():
            _set_children(module, children)
        for name in WRITTEN:
            vars(self.model).pop(name, None)
        self.active = None
        return self.model

    def _wrapped(self, artifact: Path) -> _Fitted:
        from peft import PeftModel

        before = [(module, dict(module._modules)) for module in self.model.modules()]
        try:
            model = PeftModel.from_pretrained(self.model, artifact / "adapter", use_safetensors=True)
        except BaseException:  # Ctrl-C, too: a base with half an adapter would answer as no model does
            for module, children in before:
                _set_children(module, children)
            self.take_off()
            raise
        after = [(module, children, dict(module._modules)) for module, children in before]
        changed = [one for one in after if one[1] != one[2]]
        self.adapters[artifact] = _Fitted(model.eval(), changed, vars(self.model).get("peft_config"))
        return self.adapters[artifact]


class Stages:
    """Models of artifacts of base, pretrain, sft, dpo and the like.

    Args:
        precision: of all weights.
        bases: how many are kept in memory at most, the ones used last; None: all.
    """

    def __init__(self, precision: Precision, *, bases: int | None = 1) -> None:
        self._precision, self._most = precision, bases
        self._bases: dict[str, _Base] = {}

    def __call__(self, artifact: Path) -> Any:
        """The model of an artifact, to be run until another one is asked for.

        Raises:
            ModelError: the artifact holds no model, or its base is not the one that it was trained on.
        """
        artifact = artifact.resolve()
        folder = models.model_folder(artifact)
        models.check_base(artifact)
        base = self._base(folder)
        return base.put_on(artifact) if (artifact / "adapter").exists() else base.take_off()

    def _base(self, folder: Path) -> _Base:
        """Whole weights by their content: two folders with the same are one."""
        digest = model_files.model_digest(folder)
        found = self._bases.pop(digest, None)
        while found is None and self._most is not None and len(self._bases) >= self._most:
            del self._bases[next(iter(self._bases))]  # before the next is loaded: both at once may not fit
        self._bases[digest] = found or _Base(models.load_model(folder, self._precision).eval())
        return self._bases[digest]


def _set_children(module: Any, children: dict[str, Any]) -> None:
    module._modules.clear()
    module._modules.update(children)
