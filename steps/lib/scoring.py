"""Reward models: a policy with one output in place of the vocabulary, read at the last token of an answer.

Source: Ouyang et al. 2022, 2203.02155, section 3.5. The head is new; all else starts as the SFT policy. What is saved is what
``AutoModelForSequenceClassification`` and PEFT load by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from steps.lib import adapters, inference, models
from steps.lib.config import Section
from steps.lib.errors import ConfigError, ModelError
from steps.lib.methods import LoraSettings
from steps.lib.refusals import unread

HEAD = "score"
"""Name that transformers gives the new output."""


class ScorerMethod(Section):
    """How a reward model is trained."""

    method: Literal["full", "lora"] = "lora"
    """full trains every weight of a policy of whole weights. lora: the policy's own adapter goes on (one of sft.method lora or
    qlora), or a fresh one is put on whole weights. The new head is trained in any case."""
    lora: LoraSettings = LoraSettings()
    """Adapter of lora, where the policy has none."""

    @model_validator(mode="after")
    def _plain_start(self) -> Self:
        if self.lora.init in ("pissa", "olora", "mica"):
            raise ValueError(
                f"lora.init is {self.lora.init} for a reward model: got an init that changes or freezes weights, because its "
                "adapter is saved with the head as it is; set lora.init to default, gaussian or orthogonal"
            )
        return self


def foreign(method: str, kind: str | None) -> str | None:
    """Why a reward model cannot start from a policy with an adapter of a kind (None: whole weights)."""
    if kind is None or (kind == "LORA" and method == "lora"):
        return None
    if kind == "LORA":
        return (
            f"reward.method is wrong: got {method}, because the policy holds an adapter of kind LORA, which goes on training as it "
            "is; set reward.method to lora, or train the policy with sft.method full"
        )
    return (
        f"reward.method is wrong: got {method}, because the policy holds an adapter of kind {kind}, and a reward model starts from "
        "whole weights or a LoRA adapter; train the policy with sft.method lora, qlora or full"
    )


def check(config: ScorerMethod, policy: Path) -> None:
    """Refuse what cannot work with this policy, before a row is read.

    Raises:
        ConfigError: the method does not fit it, or settings would be read by nothing.
    """
    adapter = policy / "adapter"
    kind = str(_settings(adapter).peft_type.value) if adapter.exists() else None
    problem = foreign(config.method, kind)
    if not problem and kind and config.lora != LoraSettings():
        problem = (
            "reward.lora is wrong: got settings of its own, because the policy's adapter goes on training with the shape that sft "
            "gave it; leave reward.lora out"
        )
    problems = [*([problem] if problem else []), *unread(config, "reward")]
    if problems:
        raise ConfigError(problems)


def start(config: ScorerMethod, policy: Path, precision: models.Precision, *, attention: str | None = None) -> Any:
    """The policy as a reward model, ready to be trained. The head's first weights are drawn from torch's generator."""
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    folder, adapter = models.model_folder(policy), policy / "adapter"
    model = _with_head(folder, precision, attention)
    if config.method == "full":
        return model
    if not adapter.exists():
        chosen = config.lora
        init = True if chosen.init == "default" else chosen.init
        settings = LoraConfig(
            r=chosen.rank,
            lora_alpha=chosen.alpha,
            lora_dropout=chosen.dropout,
            target_modules=chosen.targets,
            use_rslora=chosen.rslora,
            use_dora=chosen.dora,
            init_lora_weights=init,
        )
        return _wrapped(model, settings)
    models.check_base(policy)
    settings = _settings(adapter)
    settings.inference_mode, settings.base_model_name_or_path = False, None  # where it lies may have changed
    scorer = _wrapped(model, settings)
    weights, new = load_file(adapter / "adapter_model.safetensors"), adapters.state(scorer)
    if lost := sorted(name for name in weights.keys() ^ new.keys() if f".{HEAD}." not in name):
        raise ModelError(
            f"adapter {adapter} does not fit a reward model: got {len(lost)} matrices without a place ({lost[0]}), because a model "
            "with one output has no vocabulary to adapt; train sft without the head among lora.targets"
        )
    set_peft_model_state_dict(scorer, {**new, **weights})
    return scorer


def load(artifact: Path, precision: models.Precision) -> Any:
    """The reward model of an artifact of reward, for scoring."""
    from peft import PeftModel

    folder = models.model_folder(artifact)
    model = _with_head(folder, precision)
    if (artifact / "adapter").exists():
        models.check_base(artifact)
        model = PeftModel.from_pretrained(model, artifact / "adapter", use_safetensors=True)
    model.eval()
    return model


def scores(model: Any, rows: Sequence[Sequence[int]], *, batch_size: int) -> list[float]:
    """The reward of each row (tokens of a prompt and its answer, end of turn included)."""
    import torch

    found = [0.0] * len(rows)
    pad = model.config.get_text_config().pad_token_id
    for batch in inference.batches([len(row) for row in rows], batch_size):
        width = max(len(rows[i]) for i in batch)
        ids = torch.tensor([[*rows[i], *[pad] * (width - len(rows[i]))] for i in batch], device=model.device)
        mask = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in batch], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # (B, 1)
        for i, value in zip(batch, logits[:, 0].float().tolist(), strict=True):
            found[i] = value
    return found


def _settings(adapter: Path) -> Any:
    from peft import PeftConfig

    return PeftConfig.from_pretrained(adapter)


def _wrapped(model: Any, settings: Any) -> Any:
    """The adapter with the head among what is trained and saved. PEFT adds names of heads that the model does not have: they go."""
    from peft import get_peft_model

    settings.task_type, settings.modules_to_save = "SEQ_CLS", [HEAD]
    scorer = get_peft_model(model, settings)
    scorer.peft_config["default"].modules_to_save = [HEAD]
    return scorer


def _with_head(folder: Path, precision: models.Precision, attention: str | None = None) -> Any:
    """A checkpoint with one output. Its own head, where it has one; else a new one, and the vocabulary's is left out."""
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    wide = precision == "float32" or (precision == "auto" and not torch.cuda.is_available())
    options: dict[str, Any] = {"dtype": torch.float32 if wide else torch.bfloat16, "trust_remote_code": False}
    options["use_safetensors"] = True
    if attention:
        options["attn_implementation"] = attention
    told = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers warns of the new head and of the vocabulary's, both of which are meant
    try:
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **options)
    finally:
        logging.set_verbosity(told)
    model.config.get_text_config().pad_token_id = models.load_tokenizer(folder).pad_token_id
    return model.to(models.device())
