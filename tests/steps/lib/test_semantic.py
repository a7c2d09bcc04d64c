"""Semantic copies: a tiny encoder against one text at a time, and all pairs against brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steps.lib.clusters import losers
from steps.lib.errors import ModelError
from steps.lib.semantic import Semantic, close_pairs, embeddings, externals, semantic_pairs

TEXTS = [
    "How do I return a kettle that leaks?",
    "怎么退回一个漏水的电水壶？",
    "The library opened a reading room for the older children of the town this spring.",
    "今年春天，镇上的图书馆为大一点的孩子开了一间阅览室。",
    "a",
    "How do I return a kettle that leaks?",
    "long text " * 60,
    "很长的文字。" * 40,
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with random weights, and a tokenizer with marks at both ends."""
    import torch
    from tokenizers import processors
    from transformers import BertConfig, BertModel

    from steps.lib.tiny import TinyConfig, build_tokenizer

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = build_tokenizer(TEXTS, TinyConfig(vocab_size=400, max_length=48))
    start, end = (tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_start|>", "<|im_end|>"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", start), ("<|im_end|>", end)]
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=48, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def one_by_one(texts: list[str], folder: Path, pooling: str) -> np.ndarray:
    """The oracle: each window of each text alone, without padding."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        total: Any = 0
        for place in range(0, len(ids), 46):
            window = tokenizer.convert_tokens_to_ids(["<|im_start|>"]) + ids[place : place + 46]
            window += tokenizer.convert_tokens_to_ids(["<|im_end|>"])
            with torch.no_grad():
                states = model(input_ids=torch.tensor([window])).last_hidden_state[0]
            total = total + (states.sum(0) if pooling == "mean" else states[0] * len(window))
        rows.append((total / total.norm()).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings_are_those_of_each_text_alone_and_long_texts_count_whole(encoder: Path, pooling: Any) -> None:
    want = one_by_one(TEXTS, encoder, pooling)
    for batch_tokens in (512, 4096):
        got = embeddings(TEXTS, Semantic(model=str(encoder), pooling=pooling, batch_tokens=batch_tokens))
        np.testing.assert_allclose(got, want, atol=2e-5)
    other = embeddings(
        ["long text " * 59 + "with another end", TEXTS[6]], Semantic(model=str(encoder), pooling=pooling)
    )
    assert float(other[0] @ other[1]) < 0.9999, "what stands behind the first window counts"


def test_equal_texts_in_both_languages_are_pairs_and_a_prefix_changes_vectors(encoder: Path) -> None:
    config = Semantic(model=str(encoder), threshold=0.9999)
    pairs = semantic_pairs([*TEXTS, TEXTS[3]], config)
    assert (pairs.left.tolist(), pairs.right.tolist(), pairs.jaccard.tolist()) == ([0, 3], [5, 8], [1.0, 1.0])
    assert losers(9, pairs).rows.tolist() == [5, 8], "the later copies go"
    prefixed = embeddings(TEXTS[:1], config.model_copy(update={"prefix": "query: "}))
    assert abs(float((prefixed @ embeddings(["query: " + TEXTS[0]], config).T)[0, 0]) - 1) < 1e-5
    assert float((prefixed @ embeddings(TEXTS[:1], config).T)[0, 0]) < 0.9999
    assert embeddings([], config).shape == (0, 32) and len(semantic_pairs([], config)) == 0


@pytest.mark.parametrize("chunk", [7, 64, 4096])
def test_pairs_are_those_of_brute_force_for_every_chunk(chunk: int) -> None:
    draw = np.random.default_rng(3)
    vectors = draw.standard_normal((90, 24)).astype(np.float32)
    vectors[60:] = vectors[:30] + 0.3 * draw.standard_normal((30, 24)).astype(np.float32)
    vectors[7] = 0
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    want = [(i, j) for i in range(90) for j in range(i + 1, 90) if round(exact[i, j], 4) >= 0.9]
    got = close_pairs(vectors, 0.9, chunk)
    assert list(zip(got.left.tolist(), got.right.tolist(), strict=True)) == want and 15 < len(want) < 40
    np.testing.assert_allclose(got.jaccard, exact[got.left, got.right], atol=1e-4)


def test_a_model_that_is_not_there_is_said_and_one_that_is_has_an_identity(encoder: Path, tmp_path: Path) -> None:
    assert externals(Semantic(model=str(encoder)))["semantic"]
    for call in (lambda config: embeddings(["x"], config), externals):
        with pytest.raises(ModelError, match="got no config.json"):
            call(Semantic(model=str(tmp_path)))
