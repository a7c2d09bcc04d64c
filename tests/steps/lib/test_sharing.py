"""Pairs with their prompt once, against TRL's own trainer: losses, gradients and metrics, for every loss type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_packing import gradients, model_of, texts
from trl.trainer.dpo_trainer import DataCollatorForPreference

from steps.lib import packed
from steps.lib.sharing import Shared
from steps.lib.spans import longest

pytestmark = [
    pytest.mark.tiny,
    # TRL 1.16 sets a name that transformers 6 drops (runtime.py passes over it in a step)
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]
LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)


def rows() -> list[dict[str, Any]]:
    """Four pairs of many lengths, an answer of one token among them."""
    sizes = ((12, 7, 10), (3, 1, 5), (20, 11, 2), (8, 9, 9))
    found = []
    for number, size in enumerate(sizes):
        prompt, chosen, rejected = texts(*size, seed=number)
        row: dict[str, Any] = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        found.append({**row, "ref_chosen_logps": -4.0 * size[1], "ref_rejected_logps": -4.5 * size[2]})
    return found


def trainer(folder: Path, model: Any, loss: str) -> Any:
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
        loss_type=[loss],
        label_smoothing=0.1 if loss in ("robust", "exo_pair") else 0.0,
        beta=0.3,
        max_length=None,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    return Plain(model=model, args=arguments, train_dataset=Dataset.from_list(rows()), processing_class=tokenizer)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_are_trl_s(loss: str, tmp_path: Path) -> None:
    batch = DataCollatorForPreference(pad_token_id=0)(rows())
    reference = {
        name: torch.tensor([row[name] for row in rows()]) for name in ("ref_chosen_logps", "ref_rejected_logps")
    }
    found = []
    for shared in (False, True):
        model = model_of()
        made = trainer(tmp_path, packed.prepared(model) if shared else model, loss)
        made.model.train()
        made.precompute_ref_logps = True
        asked: Any = Shared(made.model, whole=made.model, pad=0) if shared else made.model
        value = made._compute_loss(asked, {**batch, **reference}, False)
        value.backward()
        found.append((value.detach(), gradients(made.model), {k: v[-1] for k, v in made._metrics["train"].items()}))
    (expected, wanted, metrics), (value, own, ours) = found
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    assert wanted.keys() == own.keys()
    for name, gradient in wanted.items():
        error = (own[name] - gradient).norm() / gradient.norm().clamp_min(1e-12)
        assert float(error) < 1e-5, (name, float(error))
    assert ours == pytest.approx(metrics, rel=1e-4, abs=1e-5)


def test_the_prompt_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed.prepared(model_of())
    batch = DataCollatorForPreference(pad_token_id=0)(rows())
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    shapes: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    Shared(model, whole=model, pad=0)(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
    )
    once = sum(len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows())
    assert shapes[0] < 1.2 * once < int(batch["attention_mask"].sum()) < batch["input_ids"].numel()


def test_a_sliding_window_that_a_given_mask_would_widen_keeps_the_sides_apart() -> None:
    """transformers takes a given mask in every layer as it is."""
    window = model_of(family="mistral", lora=False, sliding_window=16)
    assert longest(window) == 16 and longest(model_of(lora=False)) > 10**9
    model = packed.prepared(window)
    batch = DataCollatorForPreference(pad_token_id=0)(rows())
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    found = Shared(model, whole=model, pad=0)(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
    )
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    logps = torch.log_softmax(logits[:, :-1], -1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    expected = logps * batch["completion_mask"][:, 1:]
    torch.testing.assert_close(found.log_probs, expected, rtol=2e-5, atol=2e-5)
