"""Divergences against hand computation, piece by piece as all at once; times; exact ties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steps.lib import drift, inference, latency, preference, tiny
from steps.lib.figures import Item, compare, measure

pytestmark = pytest.mark.tiny
ROWS = [([5, 6, 7], [8, 9, 10, 11]), ([5] * 9, [6, 7]), ([7], [9])]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    texts = ["Is it fine? 好吗？", *(f"What is {n} plus {n}? 请问{n}" for n in range(40))]
    return tiny.build_tokenizer(texts, tiny.TinyConfig(vocab_size=400))


def made(tokenizer: Any, seed: int) -> Any:
    import torch

    torch.manual_seed(seed)
    shape = tiny.TinyConfig(vocab_size=400, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2)
    model = tiny.build_model(tokenizer, shape)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5.0)
    return model.eval()


@pytest.fixture(scope="module")
def two(tokenizer: Any) -> drift.Two:
    model, reference = made(tokenizer, 1), made(tokenizer, 2)
    return drift.Two(lambda: model, lambda: reference)


def by_hand(two: drift.Two, prompt: list[int], answer: list[int]) -> float:
    """Token by token, without a batch: the sum over the vocabulary."""
    import torch

    total, seen = 0.0, list(prompt)
    for token in answer:
        with torch.no_grad():
            old, new = (
                torch.log_softmax(model(input_ids=torch.tensor([seen])).logits[0, -1].double(), -1)
                for model in (two.reference(), two.model())
            )
        total += sum(float(p.exp() * (p - q)) for p, q in zip(old, new, strict=True))
        seen.append(token)
    return total


def test_kl_ref_equals_a_hand_computation_whatever_the_batch_and_the_pieces(two: drift.Two) -> None:
    expected = [by_hand(two, *row) for row in ROWS]
    assert min(expected) > 0.01
    for batch_size in (1, 3):
        for floats in (1, 1000, drift.FLOATS):
            found = drift.divergences(two, ROWS, batch_size=batch_size, floats=floats)
            assert found == pytest.approx(expected, abs=1e-4), (batch_size, floats)


def test_a_model_does_not_diverge_from_itself(two: drift.Two, tokenizer: Any) -> None:
    same = drift.Two(two.model, two.model)
    rows = [drift.Row("a", "en", "s", [5, 6], [7, 8]), drift.Row("b", "en", "s", [5, 6, 7])]
    items = drift.score("m", same, tokenizer, rows, window=64, batch_size=2, sampled=6, seed=0)
    assert [item.scores for item in items] == [{"kl_ref": 0.0, "kl_ref_tokens": 2.0}, {"kl_sampled": 0.0}]
    assert items[1].n_out >= 1


def test_kl_sampled_is_the_log_ratio_of_what_was_drawn(two: drift.Two, tokenizer: Any) -> None:
    prompts = [[5, 6, 7], [5] * 9]
    rows = [drift.Row(str(n), "en", "", prompt) for n, prompt in enumerate(prompts)]
    items = drift.score("m", two, tokenizer, rows, window=64, batch_size=2, sampled=6, seed=3)
    drawn = inference.sampled_tokens(
        two.model(), tokenizer, prompts, inference.Sampling(1.0, 1.0, 6), seed=3, batch_size=2
    )
    said = list(zip(prompts, drawn, strict=True))
    own, other = (inference.sequence_logps(model(), said, batch_size=1) for model in (two.model, two.reference))
    assert [item.scores["kl_sampled"] for item in items] == pytest.approx(
        [a - b for a, b in zip(own, other, strict=True)], abs=1e-3
    )
    ends = inference.end_tokens(two.model(), tokenizer)
    assert all(not set(ids[:-1]) & set(ends) and (len(ids) == 6 or ids[-1] in ends) for ids in drawn)


def test_figures_of_drift(two: drift.Two, tokenizer: Any) -> None:
    rows = [drift.Row(str(n), "en", "", prompt, answer) for n, (prompt, answer) in enumerate(ROWS)]
    rows.append(drift.Row("long", "en", "", [5] * 60, [6] * 9))
    items = drift.score("m", two, tokenizer, rows, window=64, batch_size=2, sampled=0, seed=0)
    figure = measure(items, drift.MEASURES[0], "m", against="r")
    expected = sum(by_hand(two, *row) for row in ROWS) / sum(len(answer) for _, answer in ROWS)
    assert figure.interval.value == pytest.approx(expected, abs=1e-4) and figure.interval.n == 3
    assert items[-1].scores == {}, "longer than the window"
    assert compare([*items, *(i.model_copy(update={"model": "n"}) for i in items)], drift.MEASURES[0], "m", "n")


def test_times_are_told_of_every_model(two: drift.Two, tokenizer: Any, tmp_path: Path) -> None:
    found = latency.taken(two.model(), tokenizer, [[5, 6], [5] * 9, [7]], max_tokens=8)
    assert found["requests"] == 3 and 3 <= found["tokens"] <= 24
    assert 0 < found["first_p50_s"] <= found["p50_s"] <= found["p95_s"] and found["peak_mib"] > 10
    latency.write(tmp_path, {"m": found})
    assert json.loads((tmp_path / latency.FILE).read_text())["models"]["m"] == found


def test_exact_ties_are_wrong_and_counted() -> None:
    def item(model: str, chosen: float, rejected: float, number: str) -> Item:
        scores = {"logp_chosen": chosen, "logp_rejected": rejected, "raw_tie": float(chosen == rejected)}
        return Item(model=model, suite="pairs", item_id=number, cluster_id=number, scores=scores)

    items = [item("sft", -5, -5, "a"), item("sft", -5, -7, "b"), item("dpo", -4, -4, "a"), item("dpo", -4, -8, "b")]
    done = preference.add_implicit(items, "dpo", "sft")
    assert preference.ties(done, "raw_tie") == {"sft": 1, "dpo": 1} and preference.ties(done, "implicit_tie") == {
        "dpo": 1
    }
    assert [i.scores.get("implicit") for i in done] == [None, None, 0.0, 1.0]
    assert [i.scores.get("implicit_margin") for i in done] == [None, None, 0.0, 2.0]
