"""What was saved is what was trained, and what is served: compared on fixed prompts, before anything is published.

Three comparisons. The saved weights with the trained ones, bit by bit. The trained model with the saved one, by logits: they differ
by rounding, and by the quantisation where the training had the base in fewer bits and the saved one has it whole. The adapter on
its base with the same merged into it, by logits and by greedy answers.

A difference of logits is the root of the mean square over all places and tokens, in units of the logits' own spread. Measured on
random Llamas (64 to 576 wide, 2 to 12 layers), merging makes 8e-7 to 3e-6 in float32 and 0.015 to 0.03 in bfloat16, whatever the
size of the adapter (which moved the logits by 0.02 to 0.7).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from steps.lib import chat, inference, models, renders, weights
from steps.lib.errors import DataError, ModelError, TrainingError

PROMPTS = ("Write one sentence about rain.", "What is 12 + 30?", "用一句话介绍你自己。", "把“早上好”翻译成英语。")
TEXTS = (*PROMPTS, '{"order": "A12345", "ok": true}\n\tdone', "订单 A12345 已发货，共 3 件；谢谢！", "naïve café — 😀")
NEW_TOKENS = 12
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Difference of logits that rounding may make, in units of their spread."""
QUANTISED = 0.7
"""The same where the base was trained on in 4 or 8 bits: what the adapter is served on is not what it was trained on (0.3 measured
on a Llama 64 wide, the narrowest that 4 bits take)."""


class Probe:
    """What a trained model answers, to be compared with what was saved."""

    def __init__(self, model: Any, tokenizer: Any, prompts: Sequence[chat.Turns] = ()) -> None:
        """Ask a model.

        Args:
            model: as it was trained.
            tokenizer: of its base.
            prompts: conversations to be answered; without any, ``PROMPTS``.
        """
        model.eval()
        _attend_as_served(model)
        self._quantised = _quantised(model)
        self._merges = callable(getattr(getattr(model, "base_model", None), "merge_and_unload", None))
        most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**30
        asked = [chat.encode_prompt(tokenizer, turns) for turns in prompts or fixed()]
        self._prompts = [ids for ids in asked if len(ids) + NEW_TOKENS <= most]
        self._answers = _greedy(model, self._prompts, tokenizer)
        self._logits = self._ask(model)

    def check(
        self, trainer: Any, tokenizer: Any, out: Path, precision: models.Precision
    ) -> dict[str, float | int | str]:
        """Check what ``adapters.save`` wrote: an adapter, or a whole model with its tokenizer.

        Raises:
            TrainingError: it is not what was trained.
        """
        if (out / "adapter").exists():
            return self.check_adapter(trainer, out, precision)
        check_tokenizer(tokenizer, out / "model")
        return self.check_model(trainer, trainer.model, out / "model", precision)

    def check_adapter(self, trainer: Any, out: Path, precision: models.Precision) -> dict[str, float | int | str]:
        """Load the adapter that was saved, and compare it with what was trained, and with the same merged.

        The trained model is given up first: there may be no room for both.

        Raises:
            TrainingError: they differ.
        """
        same = not hasattr(trainer.model, "first_weights")  # else it is saved as a plain adapter of twice the rank
        digests = weights.digests(trainer.model) if same else {}
        release(trainer)
        model = models.load_policy(out, precision)
        problems = weights.changed(weights.digests(model), digests, "adapter") if same else []
        loaded = self._ask(model)
        values = {"parity_saved": self._compare(loaded, self._logits, "saved adapter", _kind(model), problems)}
        if self._merges:
            merged = model.merge_and_unload()
            values["parity_merged"] = _difference(self._ask(merged), loaded, "merged adapter", _kind(model), problems)
        _stop(problems)
        return {name: float(f"{value:.1e}") for name, value in values.items()}

    def check_model(
        self, trainer: Any, merged: Any, folder: Path, precision: models.Precision
    ) -> dict[str, float | int | str]:
        """Load the whole model that was saved, and compare it with what was saved there and with what was trained.

        Args:
            trainer: of the trained model, which is given up.
            merged: the model that was saved: the trained one, or its adapter merged into the base.
            folder: where it lies now.
            precision: that it is loaded in.

        Raises:
            TrainingError: they differ.
        """
        digests = weights.digests(merged)
        release(trainer, merged)
        model = models.load_model(folder, precision)
        problems = weights.changed(weights.digests(model), digests, "model")
        value = self._compare(self._ask(model), self._logits, "saved model", _kind(model), problems)
        _stop(problems)
        return {"parity_saved": float(f"{value:.1e}")}

    def check_merge(self, model: Any) -> list[str]:
        """Merge the model that was asked (it cannot be used as an adapter any more): what is wrong with the result."""
        problems: list[str] = []
        if self._merges:
            kind = _kind(model)
            _difference(self._ask(model.merge_and_unload()), self._logits, "merged adapter", kind, problems)
        return problems

    def check_copy(self, folder: Path, kind: models.Precision) -> list[str]:
        """Load a whole model that was saved elsewhere, in float32: what is wrong with its answers.

        Args:
            folder: where it lies.
            kind: type that its weights were rounded to.
        """
        problems: list[str] = []
        loaded = self._ask(models.load_model(folder, "float32"))
        _difference(loaded, self._logits, "exported model", kind, problems, quantised=self._quantised)
        return problems

    def _ask(self, model: Any) -> list[Any]:
        """Logits of every place of the prompts and answers, (T, V) each."""
        import torch

        model.eval()
        device = next(model.parameters()).device
        with torch.inference_mode():
            return [
                model(input_ids=torch.tensor([ids + answer], device=device)).logits[0].float().cpu()
                for ids, answer in zip(self._prompts, self._answers, strict=True)
            ]

    def _compare(self, found: list[Any], wanted: list[Any], what: str, kind: str, problems: list[str]) -> float:
        return _difference(found, wanted, what, kind, problems, quantised=self._quantised)


def fixed() -> list[list[dict[str, str]]]:
    """``PROMPTS`` as conversations."""
    return [[{"role": "user", "content": text}] for text in PROMPTS]


def check(policy: Path, prompts: Sequence[chat.Turns] = (), *, precision: models.Precision = "auto") -> list[str]:
    """What keeps a policy from being served as it was measured: what is wrong, one message each; empty when nothing is.

    Its conversations must be rendered alike in training, evaluation and serving, byte by byte. An adapter that can be merged must
    answer as it does merged, by logits and by greedy answers.

    Args:
        policy: folder of an artifact or of a registered version.
        prompts: conversations to be answered; without any, ``PROMPTS``.
        precision: that the model is run in.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    tokenizer = models.load_tokenizer(models.model_folder(policy))
    own = policy / "adapter" / "tokenizer_config.json"  # PEFT's and vLLM's users load it in place of the base's
    problems: list[str] = []
    try:
        served = AutoTokenizer.from_pretrained(own.parent, trust_remote_code=False) if own.exists() else tokenizer
        for turns in prompts or fixed():
            problems += renders.differing(tokenizer, served, turns)
    except (ModelError, DataError) as error:
        problems.append(str(error))
    if problems or not (policy / "adapter").exists():
        return problems
    model = models.load_policy(policy, precision)
    probe = Probe(model, tokenizer, prompts)
    return probe.check_merge(model)


def check_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Compare a saved tokenizer with the one that was trained with: template, special tokens, and tokens of fixed texts.

    Raises:
        TrainingError: they differ; a server of the copy would send other tokens than training saw.
    """
    saved = models.load_tokenizer(folder)
    turns = [{"role": "user", "content": PROMPTS[0]}, {"role": "assistant", "content": PROMPTS[2]}]
    facts: dict[str, Callable[[Any], Any]] = {
        "chat template": lambda one: one.chat_template,
        "special tokens": lambda one: sorted(map(str, one.special_tokens_map.items())),
        "end of sequence": lambda one: one.eos_token_id,
        "padding token": lambda one: one.pad_token_id,
        "number of tokens": len,
        "conversation": lambda one: one.apply_chat_template(turns, tokenize=False),
        "tokens of fixed texts": lambda one: [one(text)["input_ids"] for text in TEXTS],
    }
    problems = []
    for name, read in facts.items():
        found, wanted = read(saved), read(tokenizer)
        if found != wanted:
            problems.append(
                f"saved tokenizer differs from the base's in its {name}: got {found!r:.80} where training had {wanted!r:.80}, "
                "because saving lost it or somebody changed the copy; run the step again, and look at tokenizer_config.json"
            )
    _stop(problems)


def release(trainer: Any, *models: Any) -> None:
    """Give back the memory of a trained model, its gradients and its moments. Neither can be used any more."""
    import torch

    if trainer.optimizer is not None:
        trainer.optimizer.state.clear()
    for model in (trainer.model, *models):
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.grad = None
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _attend_as_served(model: Any) -> None:
    """Kinds of attention that are for training on packed rows make way for what a loaded model has."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    if inner.config.get_text_config()._attn_implementation.startswith(("flash", "flex")):
        inner.set_attn_implementation("sdpa")


def _greedy(model: Any, prompts: list[list[int]], tokenizer: Any) -> list[list[int]]:
    """The likeliest answer to each prompt, its end included."""
    import torch

    if not prompts:
        return []
    ends = inference.end_tokens(model, tokenizer)
    asking, given, width = inference.left_padded(model, prompts, tokenizer.pad_token_id)
    more = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": ends}
    with torch.inference_mode():
        said = asking.generate(**given, max_new_tokens=NEW_TOKENS, **more)[:, width:].tolist()
    stops = [next((place for place, token in enumerate(one) if token in ends), NEW_TOKENS) for one in said]
    return [one[: stop + 1] for one, stop in zip(said, stops, strict=True)]


def _difference(
    found: list[Any], wanted: list[Any], what: str, kind: str, problems: list[str], *, quantised: bool = False
) -> float:
    """How far logits are from those that are wanted. Beyond the tolerance, or where another token leads, a problem is noted.

    Args:
        quantised: the wanted ones are of a base in fewer bits, whose answers may differ.
    """
    import torch

    spread = torch.cat([one.std(-1) for one in wanted]).mean().item()
    square = torch.cat([(one - other).square().mean(-1) for one, other in zip(found, wanted, strict=True)])
    value = float(square.mean().sqrt().item() / spread)
    limit = QUANTISED if quantised else TOLERANCE[kind]
    if not value <= limit:  # a NaN is off, too
        problems.append(
            f"{what} answers differently: got logits {value:.2g} of their spread away, because it lost or doubled a part of what "
            f"was trained (rounding of {kind} explains {limit:g}); report this as a defect of prefline, and do not serve it"
        )
    turned = 0
    for one, other in zip(found, wanted, strict=True):
        best = one.argmax(-1, keepdim=True)  # (T, 1)
        gap = (other.amax(-1, keepdim=True) - other.gather(-1, best)) / spread
        turned += int((gap > 4 * limit).sum())
    if turned and not quantised:
        problems.append(
            f"{what} gives other greedy answers: got another token at {turned} places, because it is not the model that was "
            "trained; report this as a defect of prefline, and do not serve it"
        )
    return value


def _kind(model: Any) -> str:
    return "float32" if str(model.dtype) == "torch.float32" else "bfloat16"


def _quantised(model: Any) -> bool:
    return any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))


def _stop(problems: list[str]) -> None:
    if problems:
        head = "" if len(problems) == 1 else f"{len(problems)} problems with what was saved:\n"
        raise TrainingError(head + "\n".join(problems))
