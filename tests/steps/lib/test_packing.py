"""Packed rows against the plain forward, row by row: losses, gradients, and what a place can see."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steps.lib import head, kernels, packed, packing

pytestmark = pytest.mark.tiny
FLEX = pytest.param("flex_attention", marks=pytest.mark.gpu)  # it has no backward on a CPU
KINDS = ("sdpa", "eager", FLEX)


def model_of(kind: str = "sdpa", *, lora: bool = True, family: str = "llama", **more: Any) -> Any:
    """Two layers of random weights, with an adapter that is not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    shape = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "pad_token_id": 0}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 3}
    config = AutoConfig.for_model(family, **shape, **layers, **more)
    config.head_dim = 16
    model = AutoModelForCausalLM.from_config(config, attn_implementation=kind)
    if lora:
        model = get_peft_model(
            model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
        )
    return model.to("cuda" if kind == "flex_attention" else "cpu")


def scored(model: Any, one: dict[str, Any], mask: Any = None) -> dict[str, Any]:
    """Scores of a pass, on the CPU."""
    there = {name: values.to(model.device) if hasattr(values, "to") else values for name, values in one.items()}
    found = packed.scores_of(model, there, mask(there["segments"], there["branches"]) if mask else None)
    return {name: values.cpu() for name, values in found.items()}


def texts(*lengths: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(1, 97) for _ in range(length)] for length in lengths]


def labelled(ids: list[int], seed: int = 0) -> tuple[list[int], list[int]]:
    """Random tokens without loss."""
    draw = random.Random(f"{seed} {ids}")
    return ids, [token if draw.random() < 0.6 else -100 for token in ids]


def plain_logps(model: Any, ids: list[int]) -> Any:
    """log p of each token but the first, of a row alone: (T - 1,)."""
    rows = torch.tensor([ids])
    logits = model(input_ids=rows.to(model.device), use_cache=False).logits[0, :-1].float().cpu()
    return torch.log_softmax(logits, -1).gather(-1, rows[0, 1:, None])[:, 0]


def gradients(model: Any) -> dict[str, Any]:
    found = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(found: dict[str, Any], expected: dict[str, Any], rtol: float = 1e-4) -> None:
    assert found.keys() == expected.keys() and found
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-5 * float(value.abs().max()) + 1e-9)


# --- laying out ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 64))
def test_every_sequence_has_one_row_and_rows_are_not_too_wide(lengths: list[int], width: int) -> None:
    rows = packing.rows_of(lengths, width)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= width or len(row) == 1 for row in rows)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 100))
def test_every_sequence_is_in_one_pass_and_passes_are_not_too_large(lengths: list[int], most: int) -> None:
    passes = packing.split(lengths, most)
    assert sorted(i for one in passes for i in one) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in one) <= most or len(one) == 1 for one in passes)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_the_width_wastes_no_more_than_padding_to_the_longest(lengths: list[int]) -> None:
    width = packing.best_width(lengths, 10_000)
    assert max(lengths) <= width and len(packing.rows_of(lengths, width)) * width <= len(lengths) * max(lengths)


@given(st.lists(st.lists(st.integers(10, 99), max_size=9), max_size=6), st.integers(2, 8))
def test_blocks_lose_no_token(documents: list[list[int]], length: int) -> None:
    rows = packed.blocks(documents, length, 0)
    found = []
    for row in rows:
        at = 0
        for size in row["lengths"]:
            piece = row["input_ids"][at : at + size]
            assert piece[0] == 0 and size > 1, "each piece starts after a separator, as scored text does"
            found += piece[1:]
            at += size
        assert at == len(row["input_ids"]) <= length
    assert found == [token for document in documents for token in (*document, 0)]
    assert all(len(row["input_ids"]) >= length - 1 for row in rows[:-1])


def test_a_fork_gives_the_stem_once_and_each_branch_follows_it() -> None:
    one = packing.fork([5, 6], [7, 8], [9])
    assert (one.ids, one.positions, one.branches) == ([5, 6, 7, 8, 9], [0, 1, 2, 3, 2], [0, 0, 1, 1, 2])
    assert one.predictors == [-1, -1, 1, 2, 1] and one.predicted == 3
    seen = packing.visible(torch.tensor([[0] * 5 + [1]]), torch.tensor([[*one.branches, 0]]))[0, 0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_flex_attention_is_asked_for_the_same_mask() -> None:
    from torch.nn.attention.flex_attention import create_mask

    pairs = [packing.fork(*texts(5, 3, 4)), packing.fork(*texts(2, 6, 1)), packing.fork(*texts(1, 1, 1))]
    made = packing.pack(pairs, [0, 1, 2], width=14, pad=0)
    segments, branches = made["segments"], made["branches"]
    rows, width = segments.shape
    asked = create_mask(packing.sees(segments, branches), rows, 1, width, width, device="cpu")
    assert torch.equal(asked, packing.visible(segments, branches)) and rows == 2


# --- equal to the plain forward --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_packed_losses_and_gradients_are_those_of_each_row_alone(kind: str, lora: bool) -> None:
    rows = [labelled(ids) for ids in texts(17, 5, 29, 8, 2, 11)]
    model = model_of(kind, lora=lora)
    expected = []
    total = sum(sum(label != -100 for label in labels[1:]) for _, labels in rows)
    loss: Any = 0.0
    for ids, labels in rows:
        kept = torch.tensor([label != -100 for label in labels[1:]])
        logps = plain_logps(model, ids)[kept]
        expected.append(logps.detach())
        loss = loss - logps.sum() / total
    loss.backward()
    wanted = gradients(model)
    quick = packed.prepared(model_of(kind, lora=lora))
    collate = packed.Collator(quick, pad=0, tokens=40)
    batch = collate([packed.row(rows[:2]), packed.row(rows[2:3]), packed.row(rows[3:])])
    assert len(batch["passes"]) > 1 and batch["tokens"] == 72
    found: dict[tuple[int, int], Any] = {}
    for one in batch["passes"]:
        out = scored(quick, one)
        (-out["logps"].sum() / total).backward()
        for owner in one["owners"].unique().tolist():
            own = one["owners"] == owner
            tokens = one["targets"][own].tolist()
            found[len(tokens), tokens[0]] = out["logps"][own].detach()
    for (_, labels), logps in zip(rows, expected, strict=True):
        tokens = [label for label in labels[1:] if label != -100]
        if tokens:
            torch.testing.assert_close(found[len(tokens), tokens[0]], logps, rtol=2e-5, atol=2e-5)
    assert_same(gradients(quick), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_no_place_sees_a_neighbour(kind: str) -> None:
    """Another sequence in the row, other tokens in it: the same log-probabilities, bit for bit."""
    quick = packed.prepared(model_of(kind))
    first, second, third = texts(9, 14, 9)
    collate = packed.Collator(quick, pad=0, tokens=400)

    def of_first(neighbour: list[int]) -> Any:
        [one] = collate([packed.row([(first, first), (neighbour, neighbour)])])["passes"]
        assert len(one["input_ids"]) == 1, "they share a row"
        with torch.no_grad():
            return scored(quick, one)["logps"][one["owners"] == one["owners"][one["targets"] == first[1]][0]]

    changed = [*second[:3], *third, *second[12:]]
    assert torch.equal(of_first(second), of_first(changed))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_share_a_prompt_and_do_not_see_each_other(kind: str) -> None:
    prompt, chosen, rejected = texts(12, 7, 10)
    model = packed.prepared(model_of(kind))
    pairs = [packing.fork(prompt, chosen, rejected), packing.fork(rejected, prompt, chosen)]
    one = packing.pack(pairs, [0, 1], width=64, pad=0)
    found = scored(model, one, packed.mask_of(kind))["logps"].split([17, 19])
    for logps, (start, sides) in zip(found, [(prompt, (chosen, rejected)), (rejected, (prompt, chosen))], strict=True):
        alone = [plain_logps(model, start + side)[len(start) - 1 :] for side in sides]
        torch.testing.assert_close(logps, torch.cat(alone), rtol=2e-5, atol=2e-5)


# --- scores and quick layers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_scores_are_those_of_whole_logits(monkeypatch: pytest.MonkeyPatch, bias: bool, trained: bool) -> None:
    monkeypatch.setattr(head, "LOGITS", 97 * 4)  # chunks of four
    torch.manual_seed(0)
    leaves = [torch.randn(11, 16), torch.randn(97, 16), torch.randn(97) if bias else None]
    targets, weights = torch.randint(97, (11,)), torch.randn(11)

    def run(function: Any) -> tuple[dict[str, Any], list[Any]]:
        fresh = [
            leaf if leaf is None else leaf.clone().requires_grad_(n == 0 or trained) for n, leaf in enumerate(leaves)
        ]
        found = function(*fresh, targets)
        (found["logps"] * weights).sum().backward()
        return found, [leaf.grad for leaf in fresh if leaf is not None and leaf.requires_grad]

    def whole(hidden: Any, weight: Any, bias: Any, targets: Any) -> dict[str, Any]:
        return head._from_logits(torch.nn.functional.linear(hidden, weight, bias), targets)

    (found, own), (expected, wanted) = run(head.scores), run(whole)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    for left, right in zip(own, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(head.scores(*leaves, targets)["logps"], expected["logps"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_quick_layers_give_the_same_outputs_and_gradients(family: str) -> None:
    rows = torch.tensor(texts(13, 13))
    plain, quick = model_of(family=family), model_of(family=family)
    assert kernels.speed_up(quick) > 14, "seven products and two norms a layer"
    results = []
    for model in (plain, quick):
        logits = model(input_ids=rows, use_cache=False).logits
        logits.square().mean().backward()
        results.append((logits.detach(), gradients(model)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    assert_same(results[1][1], results[0][1])


def test_a_layer_that_is_not_plain_runs_as_peft_has_it() -> None:
    """Disabled, merged, a second adapter: looked at in each call."""
    rows = torch.tensor(texts(13))
    plain, quick = model_of(), model_of()
    kernels.speed_up(quick)
    score = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    for model in (plain, quick):
        model.eval()
        model.requires_grad_(False)
    with plain.disable_adapter(), quick.disable_adapter():
        score(quick(input_ids=rows).logits, plain(input_ids=rows).logits)
    plain.merge_adapter(), quick.merge_adapter()
    score(quick(input_ids=rows).logits, plain(input_ids=rows).logits)
    plain.unmerge_adapter(), quick.unmerge_adapter()
    score(quick(input_ids=rows).logits, plain(input_ids=rows).logits)


def test_a_capped_head_is_not_taken_for_a_plain_one() -> None:
    """Gemma 2 squeezes its logits: a product with the head's weights alone would be another model."""
    model = model_of("eager", family="gemma2", lora=False, final_logit_softcapping=0.5, query_pre_attn_scalar=16)
    [ids] = texts(9)
    expected = plain_logps(model, ids)
    quick = packed.prepared(model)
    [one] = packed.Collator(quick, pad=0, tokens=64)([packed.row([(ids, ids)])])["passes"]
    torch.testing.assert_close(scored(quick, one)["logps"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_processes_share_the_passes_and_every_sequence_counts_once(count: int) -> None:
    model = packed.prepared(model_of())
    rows = [packed.row([(ids, ids)]) for ids in texts(*range(5, 5 + count))]
    shares = [packed.Collator(model, pad=0, tokens=16, share=(number, 3))(rows) for number in range(3)]
    counted = [one for share in shares for one in share["passes"][: share["own"]]]
    assert sorted(token for one in counted for token in one["targets"].tolist()) == sorted(
        token for row in rows for token in row["input_ids"][1:]
    )
    assert all(share["passes"] for share in shares), "each takes part in every exchange of gradients"
    assert sum(share["tokens"] for share in shares) == sum(len(row["input_ids"]) for row in rows)
