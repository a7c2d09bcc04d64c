"""Adapters: made fresh for training, put into their base, and saved with a record of the base that they belong to.

What is saved is what serving needs. An encoder that a prompt or prefix was trained through is dropped, and an adapter whose start
changed the base (pissa, olora) becomes a plain one on the base as it was. So each loads with PEFT alone, and goes on training.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steps.lib import model_files, models
from steps.lib.errors import ConfigError
from steps.lib.methods import (
    AdaLoraSettings,
    AnyMethod,
    Ia3Settings,
    LlamaAdapterSettings,
    LoraSettings,
    MergingMethods,
    PrefixSettings,
    PromptSettings,
    PTuningSettings,
)

CAUSAL = {"task_type": "CAUSAL_LM"}


def start(
    config: MergingMethods, folder: Path, precision: models.Precision, *, updates: int, attention: str | None = None
) -> Any:
    """A base ready to be trained: its own weights (full), or a fresh adapter (named "default") on it.

    Args:
        config: says which method.
        folder: of the base.
        precision: of the frozen weights.
        updates: of the training run; adalora plans with them.
        attention: what attends; None: as transformers chooses.

    Raises:
        ConfigError: adalora with fewer than two updates.
    """
    if config.method == "adalora" and updates < 2:
        raise ConfigError(
            f"method is wrong: got adalora for {updates} update, because the first one measures and a later one takes ranks "
            "away; train for more updates, or set method to lora"
        )
    model = models.load_model(folder, precision, quantize=config.quantize, attention=attention)
    return model if config.method == "full" else fresh(model, config, folder, updates=updates)


def fresh(model: Any, config: MergingMethods, folder: Path, *, updates: int) -> Any:
    """Wrap a model with the fresh adapter of a method; a quantised one is prepared for training."""
    from peft import prepare_model_for_kbit_training

    if config.method in ("lora", "qlora"):
        if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        return with_lora(model, config.lora)
    if config.method == "adalora":
        return _wrapped(model, _adalora(config.adalora, updates))
    if config.method == "ia3":
        return _wrapped(model, _ia3(config.ia3))
    assert isinstance(config, AnyMethod)
    if config.method == "llama_adapter":
        return _wrapped(model, _llama_adapter(config.llama_adapter, model))
    if config.method == "prompt":
        return _wrapped(model, _prompt(config.prompt, folder))
    if config.method == "p_tuning":
        return _wrapped(model, _p_tuning(config.p_tuning))
    return _wrapped(model, _prefix(config.prefix, mlp=config.method == "prefix"))


def _wrapped(model: Any, settings: Any) -> Any:
    from peft import get_peft_model

    return get_peft_model(model, settings)


def with_lora(model: Any, settings: LoraSettings) -> Any:
    """Wrap a model with fresh LoRA adapters (named "default")."""
    from peft import LoraConfig

    inits: dict[str, bool | str] = {"default": True}
    if settings.init == "pissa" and settings.iterations is not None:
        inits["pissa"] = f"pissa_niter_{settings.iterations}"
    wrapped = _wrapped(
        model,
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=settings.targets,
            use_rslora=settings.rslora,
            use_dora=settings.dora,
            init_lora_weights=inits.get(settings.init, settings.init),
            **CAUSAL,
        ),
    )
    if settings.init in ("pissa", "olora"):  # the base was changed: what it lost stands in the adapter's first weights
        wrapped.first_weights = {name: value.clone() for name, value in state(wrapped).items()}
    return wrapped


def _adalora(settings: AdaLoraSettings, updates: int) -> Any:
    from peft import AdaLoraConfig

    return AdaLoraConfig(
        init_r=settings.initial_rank,
        target_r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        total_step=updates,
        tinit=int(settings.start * updates),
        tfinal=int(settings.end * updates),
        deltaT=settings.allocate_every,
        beta1=settings.smoothing,
        beta2=settings.smoothing,
        orth_reg_weight=settings.orthogonality,
        **CAUSAL,
    )


def _ia3(settings: Ia3Settings) -> Any:
    from peft import IA3Config

    named = {} if settings.targets is None else {"feedforward_modules": settings.feedforward or []}
    return IA3Config(target_modules=settings.targets, **named, **CAUSAL)


def _llama_adapter(settings: LlamaAdapterSettings, model: Any) -> Any:
    from peft import AdaptionPromptConfig

    layers = settings.layers or model.config.get_text_config().num_hidden_layers
    return AdaptionPromptConfig(adapter_len=settings.tokens, adapter_layers=layers, **CAUSAL)


def _prompt(settings: PromptSettings, folder: Path) -> Any:
    from peft import PromptTuningConfig

    kind = {"vocabulary": "SAMPLE_VOCAB", "text": "TEXT", "random": "RANDOM"}[settings.init]
    text: dict[str, Any] = {}
    if settings.text:
        text = {"prompt_tuning_init_text": settings.text, "tokenizer_name_or_path": str(folder)}
    return PromptTuningConfig(num_virtual_tokens=settings.tokens, prompt_tuning_init=kind, **text, **CAUSAL)


def _p_tuning(settings: PTuningSettings) -> Any:
    from peft import PromptEncoderConfig

    deep = {"encoder_num_layers": settings.layers, "encoder_dropout": settings.dropout}
    return PromptEncoderConfig(
        num_virtual_tokens=settings.tokens,
        encoder_reparameterization_type=settings.encoder.upper(),
        encoder_hidden_size=settings.hidden,
        **(deep if settings.encoder == "lstm" else {}),
        **CAUSAL,
    )


def _prefix(settings: PrefixSettings, *, mlp: bool) -> Any:
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(
        num_virtual_tokens=settings.tokens,
        prefix_projection=mlp,
        encoder_hidden_size=settings.hidden if mlp else None,
        **CAUSAL,
    )


def merged(model: Any, config: MergingMethods, folder: Path, scratch: Path, precision: models.Precision) -> Any:
    """Whole weights of what was trained; the adapters of qlora are put into the unquantised base.

    Args:
        model: as it was trained.
        config: says which method.
        folder: of the base.
        scratch: a folder for files that go away.
        precision: of the unquantised base.
    """
    if config.method == "full":
        return model
    if config.method != "qlora":
        return model.merge_and_unload()
    from peft import PeftModel

    model.save_pretrained(scratch)
    return PeftModel.from_pretrained(models.load_model(folder, precision), scratch).merge_and_unload()


def save(model: Any, method: str, out: Path, artifact: Path, stage: models.Stage, tokenizer: Any) -> None:
    """Write what a step trained, and ``chain.json``: ``model/`` for full, else ``adapter/`` and where its base lies.

    Args:
        model: as it was trained.
        method: how.
        out: folder of the step's result.
        artifact: what training started from.
        stage: this step.
        tokenizer: goes beside whole weights.
    """
    before = models.Chain.read(artifact)
    stage = stage.model_copy(update={"method": method})
    if method == "full":
        model.save_pretrained(out / "model")
        tokenizer.save_pretrained(out / "model")
        before = models.Chain(base=model_files.model_digest(out / "model"), stages=before.stages)
    else:
        save_adapter(model, out, models.model_folder(artifact), artifact)
    before.model_copy(update={"stages": (*before.stages, stage)}).write(out)


def save_adapter(model: Any, out: Path, base: Path, base_artifact: Path) -> None:
    """Write ``adapter/`` (safetensors) with the name of its base, and a record of where the base lies."""
    with _quiet(model):
        model.save_pretrained(out / "adapter", selected_adapters=["default"])
    (out / "adapter" / "README.md").unlink(missing_ok=True)
    settings = _published(model.peft_config["default"])
    first = getattr(model, "first_weights", None)
    if first:
        _plain(out / "adapter" / "adapter_model.safetensors", first)
        settings.r, settings.lora_alpha = 2 * settings.r, settings.lora_alpha * (2**0.5 if settings.use_rslora else 2)
    settings.base_model_name_or_path = str(base.resolve())
    settings.inference_mode = True
    settings.save_pretrained(out / "adapter")
    facts = models.location(base_artifact)
    key = facts.get("key") if (base_artifact / "adapter").exists() else models.artifact_key(base_artifact)
    models.write_location(
        out, path=str(base.resolve()), key=key or "", id=facts.get("id", ""), revision=facts.get("revision")
    )


def _published(settings: Any) -> Any:
    """An adapter's settings as others need them: nothing of how it was started or trained, and no set.

    PEFT writes a set in an order that changes from process to process.
    """
    from peft import PromptTuningConfig

    settings = copy.deepcopy(settings)
    kind = str(settings.peft_type.value)
    for name in ("target_modules", "feedforward_modules", "exclude_modules"):
        if isinstance(getattr(settings, name, None), set):
            setattr(settings, name, sorted(getattr(settings, name)))
    if kind == "LORA" and settings.init_lora_weights != "mica":  # mica's frozen B is part of how it trains on
        settings.init_lora_weights = True
    if kind == "PREFIX_TUNING":
        settings.prefix_projection, settings.encoder_hidden_size = False, None
    if kind in ("PROMPT_TUNING", "P_TUNING"):
        shape = ("num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers")
        settings = PromptTuningConfig(**{name: getattr(settings, name) for name in shape}, **CAUSAL)
    return settings


def _plain(file: Path, first: dict[str, Any]) -> None:
    """B A - B0 A0 as one adapter of twice the rank, which fits the base as it was before the adapter's start changed it."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    for name, value in weights.items():
        start = first[name].to(value)
        pair = (value, -start) if "lora_B" in name else (value, start)
        weights[name] = torch.cat(pair, dim=1 if "lora_B" in name else 0).contiguous()
    save_file(weights, file, metadata={"format": "pt"})


def state(model: Any) -> dict[str, Any]:
    """Weights of the adapter by the names that they are saved under."""
    from peft import get_peft_model_state_dict

    with _quiet(model):
        return dict(get_peft_model_state_dict(model, adapter_name="default"))


@contextmanager
def _quiet(model: Any) -> Iterator[None]:
    """Without PEFT's warning of lost shards, for which it takes the matrices that AdaLoRA left without ranks."""
    with warnings.catch_warnings():
        if model.peft_config["default"].peft_type == "ADALORA":
            warnings.filterwarnings("ignore", message="Adapter 'default': .* have invalid shape", category=UserWarning)
        yield
