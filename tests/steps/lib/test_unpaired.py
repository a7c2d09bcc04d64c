"""Weights, order and rotation of single verdicts, and KTO's losses from packed rows: against TRL's own forward, and by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from minimal import NO, YES, pair, turn
from test_packing import gradients, model_of, plain_logps, texts

from steps.lib import packed, verdict_trainer
from steps.lib.rows import Thumb
from steps.lib.sharing import Apart
from steps.lib.unpaired import HIGHEST, LOWEST, arranged, before, examples, ratio, unusable, weights

pytestmark = [
    pytest.mark.tiny,
    # TRL 1.16 sets a name that transformers 6 drops (runtime.py passes over it in a step)
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("up", "down", "expected"),
    [
        (10, 10, (1.0, 1.0)),
        (12, 9, (1.0, 1.0)),  # 4/3: the range's end
        (10, 100, (10.0, 1.0)),  # the paper's example: 1 : 10, and a desirable weight from 10 on
        (100, 10, (1.0, 7.5)),
        (80, 40, (1.0, 1.5)),
    ],
)
def test_the_rarer_side_is_raised_as_little_as_the_range_allows(
    up: int, down: int, expected: tuple[float, float]
) -> None:
    assert weights(up, down) == pytest.approx(expected)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(0.01, 100))
def test_what_is_automatic_brings_the_ratio_into_range(up: int, down: int, given_weight: float) -> None:
    for found in (weights(up, down), weights(up, down, given_weight), weights(up, down, "auto", given_weight)):
        assert LOWEST - 1e-9 <= ratio(up, down, *found) <= HIGHEST + 1e-9
    assert weights(up, down, given_weight)[0] == given_weight == weights(up, down, "auto", given_weight)[1]
    assert min(weights(up, down)) == 1.0
    assert weights(up, down, 3.0, 0.1) == (3.0, 0.1)


# --- examples --------------------------------------------------------------------------------------------------------


def thumb(name: str, asked: str, said: str, label: bool) -> Thumb:
    return Thumb(id=name, prompt=[turn("user", asked)], completion=[turn("assistant", said)], label=label)


def test_a_pair_is_a_liked_and_a_disliked_answer() -> None:
    found = list(examples([pair(3)], [thumb("t", "a", "b", True)]))
    assert [(one.id, one.label, one.completion[0].content) for one in found] == [
        ("t", True, "b"),
        ("pair-3:chosen", True, YES),
        ("pair-3:rejected", False, NO),
    ]
    assert found[1].prompt == pair(3).prompt and found[1].source == "made"


def test_both_verdicts_on_an_answer_and_the_same_one_twice() -> None:
    rows = [
        thumb("a", "q", "x", True), thumb("b", "q", "y", True), thumb("c", "q", "x", False),
        thumb("d", "q", "y", True), thumb("e", "other", "x", False), thumb("f", "q", "x", True),
    ]  # fmt: skip
    found = unusable(rows)
    assert {number: reason for number, (reason, _) in found.items()} == {
        0: "contradiction",
        2: "contradiction",
        5: "contradiction",
        3: "duplicate",
    }
    assert "in c" in found[0][1] and "in a" in found[2][1] and "as b" in found[3][1]


# --- order -----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 40)), min_size=2, max_size=60), st.integers(2, 9), st.integers()
)
def test_the_order_has_each_example_once_and_both_sides_everywhere(
    rows: list[tuple[bool, int]], batch: int, seed: int
) -> None:
    labels, prompts = [label for label, _ in rows], [prompt for _, prompt in rows]
    order, own = arranged(labels, prompts, batch=batch, seed=seed)
    assert sorted(order) == list(range(len(rows)))
    assert (order, own) == arranged(labels, prompts, batch=batch, seed=seed)
    assert own == sum(
        prompts[order[place]] == prompts[order[before(place, len(rows), batch)]] for place in range(len(rows))
    )
    share = sum(labels) / len(labels)
    for end in range(len(rows) + 1):
        assert abs(sum(labels[number] for number in order[:end]) - share * end) <= 1, "spread evenly"


@given(st.integers(1, 60), st.integers(2, 9))
def test_in_a_batch_each_answer_moves_on_by_one(count: int, batch: int) -> None:
    places = [before(place, count, batch) for place in range(count)]
    for start in range(0, count, batch):
        own = list(range(start, min(start + batch, count)))
        if len(own) > 1:
            assert [places[place] for place in own] == [own[-1], *own[:-1]]
        else:
            assert places[start] == start - 1, "alone: the answer of the batch before"


def test_no_answer_is_rotated_onto_its_own_prompt_where_prompts_differ() -> None:
    """Both sides of 20 pairs, eight thumbs on one prompt among them."""
    prompts = [number // 2 for number in range(40)] + [99] * 8
    labels = [number % 2 == 0 for number in range(40)] + [True, False] * 4
    orders = [arranged(labels, prompts, batch=4, seed=seed) for seed in range(20)]
    assert [own for _, own in orders] == [0] * 20 and len({tuple(order) for order, _ in orders}) == 20
    assert arranged([True, False] * 3, ["same"] * 6, batch=2, seed=0)[1] == 6, "and it is said where they do not"


# --- losses ----------------------------------------------------------------------------------------------------------


def rows(*, rotated: bool = True) -> list[dict[str, Any]]:
    """Five examples of many lengths; with answers to other prompts."""
    sizes, labels = ((12, 7), (3, 1), (20, 11), (8, 9), (5, 2)), (True, False, True, True, False)
    found: list[dict[str, Any]] = []
    for number, (size, label) in enumerate(zip(sizes, labels, strict=True)):
        prompt, answer = texts(*size, seed=number)
        found.append({"prompt_ids": prompt, "completion_ids": answer, "spoken": [1] * len(answer), "label": label})
        found[-1]["ref_logps"] = -4.4 * size[1]
    for number, row in enumerate(found if rotated else ()):
        row |= {"KL_completion_ids": found[number - 1]["completion_ids"], "KL_spoken": found[number - 1]["spoken"]}
        row["ref_KL_logps"] = -4.7 * len(row["KL_completion_ids"])
    return found


def trainer(folder: Path, model: Any, loss: str, data: list[dict[str, Any]]) -> Any:
    """TRL's, with log-probabilities of a reference in the rows."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import KTOConfig, KTOTrainer

    class Plain(KTOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<end>",
    )
    arguments = KTOConfig(
        str(folder), loss_type=loss, beta=0.3, desirable_weight=1.2, undesirable_weight=2.0, max_length=None, use_cpu=True,
        per_device_train_batch_size=5, report_to=[], disable_tqdm=True, gradient_checkpointing=False, bf16=False,
    )  # fmt: skip
    return Plain(model=model, args=arguments, train_dataset=Dataset.from_list(data), processing_class=tokenizer)


def by_hand(model: Any, loss: str, data: list[dict[str, Any]]) -> tuple[float, float]:
    """The loss and its KL term: Ethayarajh et al. 2024, equation 7; D'Oosterlinck et al. 2024, section 3.3, unpaired."""

    def answers(name: str) -> np.ndarray:
        sums = []
        for row in data:
            with torch.no_grad():
                sums.append(
                    float(plain_logps(model, row["prompt_ids"] + row[name])[len(row["prompt_ids"]) - 1 :].sum())
                )
        return np.array(sums)

    moved = answers("completion_ids") - np.array([row["ref_logps"] for row in data])
    kl = 0.0
    if loss == "kto":
        kl = max(0.0, float(np.mean(answers("KL_completion_ids") - [row["ref_KL_logps"] for row in data])))
    up = np.array([row["label"] for row in data])
    sign, weight = np.where(up, 1.0, -1.0), np.where(up, 1.2, 2.0)
    return float(np.mean(weight * (1 - 1 / (1 + np.exp(-0.3 * sign * (moved - kl)))))), kl


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_loss_and_gradient_are_trl_s_and_the_paper_s(loss: str, tmp_path: Path) -> None:
    data = rows(rotated=loss == "kto")
    batch = verdict_trainer.collator(0)([dict(row) for row in data])
    found = []
    for apart in (False, True):
        model = model_of()
        made = trainer(tmp_path, packed.prepared(model) if apart else model, loss, data)
        made.model.train()
        made.precompute_ref_logps = True
        asked: Any = Apart(made.model, whole=made.model, pad=0) if apart else made.model
        value = made._compute_loss(asked, batch, False)
        value.backward()
        found.append((value.detach(), gradients(made.model), {k: v[-1] for k, v in made._metrics["train"].items()}))
    (expected, wanted, metrics), (value, own, ours) = found
    hand, kl = by_hand(model_of(), loss, data)
    assert float(value) == pytest.approx(hand, rel=1e-5) and ours["kl"] == pytest.approx(kl, rel=1e-4)
    assert (kl > 0) is (loss == "kto"), "else the term is not in this test"
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    assert wanted.keys() == own.keys()
    for name, gradient in wanted.items():
        error = (own[name] - gradient).norm() / gradient.norm().clamp_min(1e-12)
        assert float(error) < 1e-5, (name, float(error))
    assert ours == pytest.approx(metrics, rel=1e-4, abs=1e-5)


def test_the_collator_is_trl_s_but_for_what_the_user_says_inside_an_answer() -> None:
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    data = rows()
    plain = DataCollatorForUnpairedPreference(pad_token_id=0)([dict(row) for row in data])
    same = verdict_trainer.collator(0)([dict(row) for row in data])
    assert plain.keys() == same.keys() and all(torch.equal(plain[name], same[name]) for name in plain)
    data[0]["spoken"] = [1, 1, 0, 0, 1, 1, 1]
    data[1]["KL_spoken"] = data[0]["spoken"]
    made = verdict_trainer.collator(0)(data)
    assert made["completion_mask"][0].tolist() == [0] * 12 + data[0]["spoken"] + [0] * 12
    assert made["KL_completion_mask"][1].tolist()[3:10] == data[0]["spoken"]
    assert made["completion_mask"][1:].equal(plain["completion_mask"][1:])


def test_turns_of_the_user_inside_an_answer_carry_no_loss() -> None:
    model = packed.prepared(model_of())
    batch = verdict_trainer.collator(0)(
        [{**row, "spoken": [1, 0, 0, *row["spoken"]][: len(row["spoken"])]} for row in rows()]
    )
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    found = Apart(model, whole=model, pad=0)(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
    )
    for number, row in enumerate(rows()):
        ids = row["prompt_ids"] + row["completion_ids"]
        expected = plain_logps(model_of(), ids) * batch["completion_mask"][number, 1 : len(ids)]
        torch.testing.assert_close(found.log_probs[number, : len(ids) - 1], expected, rtol=1e-4, atol=1e-5)
        assert not found.log_probs[number, len(ids) - 1 :].any()


@pytest.mark.parametrize("loss", [0.0, 0.61, 0.59, 5.1, math.nan])
def test_a_first_loss_off_half_of_the_weights_is_refused(loss: float) -> None:
    from steps.lib.errors import TrainingError

    with pytest.raises(
        TrainingError,
        match=r"first kto loss is .*: got a value off half of the mean weight 0\.6000.* because .*; train",
    ):
        verdict_trainer.check_first_loss(loss, 0.6)
    with pytest.raises(TrainingError, match="drift 0.5000"):
        verdict_trainer.check_first_loss(0.6, 0.6, drift=0.5)
    verdict_trainer.check_first_loss(0.6003, 0.6, drift=1e-3)
