"""Packed rows and pairs with their prompt once, against each sequence alone, for every kind of attention that there is."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from steps.lib import packed
from steps.lib.sharing import Shared

KINDS = ("sdpa", "eager", "flex_attention", "flash_attention_2")
pytestmark = [
    pytest.mark.tiny,
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]


def model_of(kind: str, device: str, dtype: str = "float32") -> Any:
    """Two layers of random weights, with an adapter that is not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    if device == "cpu" and kind.startswith("fl"):
        pytest.skip(f"{kind} has no backward pass on a CPU")
    if kind == "flash_attention_2" and find_spec("flash_attn") is None:
        pytest.skip("the package flash-attn is not installed")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config._attn_implementation = kind
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, lora).to(device)


def texts(*lengths: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, 97) for _ in range(length)] for length in lengths]


def precision_of(kind: str) -> tuple[str, float]:
    """What the kind takes, and how near results are in it."""
    return ("bfloat16", 0.1) if kind == "flash_attention_2" else ("float32", 1e-4)


def gradients(model: Any) -> dict[str, Any]:
    found = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_near(found: dict[str, Any], wanted: dict[str, Any], limit: float) -> None:
    assert found.keys() == wanted.keys() and found
    for name, value in wanted.items():
        error = float((found[name] - value).norm() / value.norm().clamp_min(1e-9))
        assert error < limit, (name, error)


def moved(one: dict[str, Any], device: str) -> dict[str, Any]:
    return {name: value.to(device) if hasattr(value, "to") else value for name, value in one.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_packed_is_unpacked(kind: str, device: str) -> None:
    """Log-probabilities and gradients of packed rows are those of each row alone."""
    import torch

    dtype, limit = precision_of(kind)
    rows = texts(33, 9, 57, 16, 5, 21)
    alone = model_of(kind if kind != "flash_attention_2" else "sdpa", device, dtype)
    expected: list[Any] = []
    for ids in rows:
        given = torch.tensor([ids], device=device)
        logits = alone(input_ids=given, use_cache=False).logits[0, :-1].float()
        logps = torch.log_softmax(logits, -1).gather(-1, given[0, 1:, None])[:, 0]
        expected.append(logps.detach().cpu())
        (-logps.sum()).backward()
    wanted = gradients(alone)
    model = packed.prepared(model_of(kind, device, dtype))
    batch = packed.Collator(model, pad=0, tokens=80)([packed.row([(ids, ids) for ids in rows])])
    assert len(batch["passes"]) > 1, "some rows share a pass, not all"
    found: dict[tuple[int, ...], Any] = {}  # by the tokens that are predicted
    for one in batch["passes"]:
        out = packed.scores_of(model, moved(one, device))
        (-out["logps"].sum()).backward()
        for owner in one["owners"].unique():
            own = one["owners"] == owner
            found[tuple(one["targets"][own].tolist())] = out["logps"].detach().cpu()[own]
    for ids, logps in zip(rows, expected, strict=True):
        torch.testing.assert_close(found[tuple(ids[1:])], logps, rtol=limit, atol=limit)
    assert_near(gradients(model), wanted, max(limit, 1e-3))


def dpo_rows() -> list[dict[str, Any]]:
    found = []
    for number, size in enumerate(((40, 7, 10), (3, 1, 5), (20, 11, 2), (8, 19, 9))):
        prompt, chosen, rejected = texts(*size, seed=number)
        row: dict[str, Any] = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        found.append({**row, "ref_chosen_logps": -4.0 * size[1], "ref_rejected_logps": -4.5 * size[2]})
    return found


def dpo_trainer(folder: Path, model: Any, device: str) -> Any:
    """TRL's, with log-probabilities of a reference in the rows."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    class Plain(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<end>",
    )
    arguments = DPOConfig(
        str(folder),
        beta=0.3,
        max_length=None,
        use_cpu=device == "cpu",
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return Plain(model=model, args=arguments, train_dataset=Dataset.from_list(dpo_rows()), processing_class=tokenizer)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_prompt_gives_trl_s_loss(kind: str, dtype: str, device: str, tmp_path: Path) -> None:
    """flash attention packs the sides apart, the others give the prompt once; TRL pads, and attends by sdpa."""
    import torch
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    if kind == "flash_attention_2" and dtype == "float32":
        pytest.skip("flash attention takes 16 bits only")
    limit = 1e-4 if dtype == "float32" else 0.1
    rows = dpo_rows()
    batch = DataCollatorForPreference(pad_token_id=0)(rows)
    batch |= {name: torch.tensor([row[name] for row in rows]) for name in ("ref_chosen_logps", "ref_rejected_logps")}
    found = []
    for shared in (False, True):
        model = model_of(kind if shared else "sdpa", device, dtype)
        made = dpo_trainer(tmp_path, packed.prepared(model) if shared else model, device)
        made.model.train()
        made.precompute_ref_logps = True
        asked: Any = Shared(made.model, whole=made.model, pad=0) if shared else made.model
        value = made._compute_loss(asked, moved(batch, device), False)
        value.backward()
        found.append((float(value.detach()), gradients(made.model)))
    (expected, wanted), (value, own) = found
    assert value == pytest.approx(expected, rel=limit)
    assert_near(own, wanted, limit if dtype == "float32" else 0.3)


@pytest.mark.gpu
def test_compiled_layers_give_the_same_scores() -> None:
    """torch.compile of each decoder layer, over passes of several widths."""
    import torch

    plain, quick = (packed.prepared(model_of("sdpa", "cuda")) for _ in range(2))
    for layer in quick.get_base_model().model.layers:
        layer.compile()
    for widths in ((33, 9), (57, 16, 5), (21, 40)):
        rows = [packed.row([(ids, ids)]) for ids in texts(*widths)]
        results = []
        for model in (plain, quick):
            [one] = packed.Collator(model, pad=0, tokens=4096)(rows)["passes"]
            out = packed.scores_of(model, moved(one, "cuda"))["logps"]
            (-out.sum()).backward()
            results.append((out.detach().cpu(), gradients(model)))
        torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-3, atol=1e-3)
        assert_near(results[1][1], results[0][1], 1e-2)
