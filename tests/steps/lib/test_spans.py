"""Attention by spans: the closed form, a neighbour's blindness, and models that it must not be used for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_packing import model_of, texts

from steps.lib import packed, packing
from steps.lib import spans as by_spans

SPANS = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 6), max_size=3).map(tuple)), min_size=1, max_size=4
)


def dense(query: Any, key: Any, value: Any, spans: list[by_spans.Span], scale: float) -> Any:
    """softmax(q k^T s) v over the places that each place sees, written out."""
    sees = torch.zeros(query.shape[2], query.shape[2], dtype=torch.bool)
    at = 0
    for stem, branches in spans:
        for place in range(stem):
            sees[at + place, at : at + place + 1] = True
        start = at + stem
        for branch in branches:
            for place in range(branch):
                sees[start + place, at : at + stem] = True
                sees[start + place, start : start + place + 1] = True
            start += branch
        at = start
    group = query.shape[1] // key.shape[1]
    keys, values = (one.repeat_interleave(group, dim=1) for one in (key, value))
    scores = (query @ keys.transpose(2, 3) * scale).masked_fill(~sees, -torch.inf)
    return (scores.softmax(-1) @ values).transpose(1, 2)


@settings(deadline=None, max_examples=40)
@given(SPANS, st.sampled_from([(4, 4), (6, 2), (3, 1)]))
def test_it_is_the_closed_form_and_so_are_its_gradients(spans: list[by_spans.Span], heads: tuple[int, int]) -> None:
    torch.manual_seed(0)
    width = sum(stem + sum(branches) for stem, branches in spans)
    given_ = [torch.randn(1, count, width, 8, dtype=torch.float64) for count in (heads[0], heads[1], heads[1])]
    weights = torch.randn(1, width, heads[0], 8, dtype=torch.float64)
    found = []
    for compute in (lambda *t: by_spans.attend(*t, spans, scale=0.3, dropout=0.0), lambda *t: dense(*t, spans, 0.3)):
        leaves = [one.clone().requires_grad_() for one in given_]
        out = compute(*leaves)
        (out * weights).sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def test_a_sequences_span_counts_its_stem_and_branches() -> None:
    assert packing.stem([1, 2, 3], [1, 2, 3]).span == (3, ())
    assert packing.fork([1, 2], [3], [4, 5, 6]).span == (2, (1, 3))


def test_rows_without_mask_have_no_padding() -> None:
    model = packed.prepared(model_of("sdpa"))
    made = packed.Layout(model, pad=0).rows([packing.stem(ids, ids) for ids in texts(9, 30, 4)], [0, 1, 2], 16)
    assert made["input_ids"].shape == (1, 43) and sorted(made["spans"]) == [(4, ()), (9, ()), (30, ())]


def test_sdpa_itself_is_as_before() -> None:
    model = model_of("sdpa", lora=False)
    ids = torch.tensor(texts(12))
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    before = model(input_ids=ids, attention_mask=mask).logits
    by_spans.register()
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)


def test_a_layer_that_is_not_handed_the_spans_fails() -> None:
    """What else would happen: each place sees every other one, and the loss looks fine."""
    model = model_of("sdpa", lora=False)
    with pytest.raises(RuntimeError, match="(?i)size|shape|expand"):
        model(input_ids=torch.tensor(texts(12)), attention_mask=by_spans.no_mask("cpu"))


def test_who_does_not_attend_by_spans() -> None:
    assert by_spans.takes_spans(model_of("sdpa")) and not by_spans.takes_spans(model_of("eager"))
    window = model_of("sdpa", lora=False, family="mistral", sliding_window=16)
    layout = packed.Layout(window, pad=0)
    short, long = ([packing.stem(ids, ids) for ids in texts(*lengths)] for lengths in ((16, 9), (17, 9)))
    assert "spans" in layout.rows(short, [0, 1], 64)
    assert "spans" not in layout.rows(long, [0, 1], 64)


def test_layers_that_take_no_more_words_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("sdpa", lora=False)
    layer = type(model.model.layers[0].self_attn)
    plain = layer.forward

    def forward(self: Any, hidden_states: Any, position_embeddings: Any, attention_mask: Any) -> Any:
        return plain(self, hidden_states, position_embeddings, attention_mask)

    monkeypatch.setattr(layer, "forward", forward)
    assert not by_spans.takes_spans(model)
