"""Pieces of an answer: no character is cut, nothing is shown twice, and together they are the answer."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from steps.lib import inference, tiny
from steps.lib.streaming import CUT, Pieces

pytestmark = pytest.mark.tiny
TEXTS = [
    "订单 A12345 已发货，共 3 件；谢谢！",
    "naïve café — 😀👩‍👩‍👧 done",
    "  blanks before,\n\n\tand behind  \n",
    "no end of turn",
    "",
    "halves: \ufffd, and at the end \ufffd",
    "鸟儿歌唱",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Of bytes: each Chinese character is three tokens, an emoji four and more."""
    return tiny.build_tokenizer(["plain words only"] * 3, tiny.TinyConfig(vocab_size=300))


def streamed(tokenizer: Any, tokens: list[int], ends: tuple[int, ...] = ()) -> list[str]:
    found: list[str] = []
    pieces = Pieces(tokenizer, ends, found.append)
    pieces.put(torch.tensor([[7, 7, 7]]))  # the prompt
    for token in tokens:
        pieces.put(torch.tensor([token]))
    pieces.end()
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_are_the_answer_and_cut_no_character(tokenizer: Any, text: str) -> None:
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = streamed(tokenizer, tokens)
    assert "".join(found) == tokenizer.decode(tokens) == text
    assert len(found) == len(tokens) + 1, "each token has its turn, so that an answer can be broken off at each"
    if CUT not in text:
        assert not any(CUT in piece for piece in found)
        assert sum(bool(piece) for piece in found) >= len(text.split()) - 1, "it comes in pieces, not at the end"


def test_any_bytes_end_as_they_are_decoded(tokenizer: Any) -> None:
    """A model may begin a character and never end it."""
    for seed in range(200):
        draw = random.Random(seed)
        tokens = [draw.randrange(3, len(tokenizer)) for _ in range(draw.randrange(1, 30))]
        assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens, skip_special_tokens=True)


def test_nothing_behind_an_end_is_shown(tokenizer: Any) -> None:
    word, other = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("words", "only"))
    end = tokenizer.eos_token_id
    assert "".join(streamed(tokenizer, [*word, end, *other, end], (end,))) == "words"
    assert "".join(streamed(tokenizer, [*word, other[0], *word], (other[0],))) == "words", "any of the ends"


def test_what_a_tokenizer_changes_afterwards_is_shown_again_whole() -> None:
    """Tokenizers of some models take blanks out: "do n't" is "don't" when the last letter is there."""
    joins = tiny.build_tokenizer(["plain words only"] * 3, tiny.TinyConfig(vocab_size=300))
    joins.clean_up_tokenization_spaces = True
    joins.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    mark = joins("Yes .", add_special_tokens=False)["input_ids"]
    assert "".join(streamed(joins, mark)) == joins.decode(mark) == "Yes."
    tokens = joins("I do n't", add_special_tokens=False)["input_ids"]
    assert joins.decode(tokens) == "I don't"
    assert "".join(streamed(joins, tokens)) == "I do n'\nI don't"


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_that_is_shown_is_the_one_that_is_not(tokenizer: Any, seed: int) -> None:
    shape = tiny.TinyConfig(vocab_size=300, hidden_size=32, intermediate_size=32, num_layers=1, num_heads=2)
    torch.manual_seed(seed)
    model = tiny.build_model(tokenizer, shape)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5.0)
    ids = tokenizer("plain words")["input_ids"]
    for sampling in (inference.Sampling(0.0, 1.0, 24), inference.Sampling(1.0, 0.9, 24)):
        found: list[str] = []
        given = {"seed": seed, "batch_size": 1}
        [shown] = inference.generate(model, tokenizer, [ids], sampling, show=found.append, **given)
        assert [shown] == inference.generate(model, tokenizer, [ids], sampling, **given)
        assert "".join(found) == shown.text and len(found) > 2
    with pytest.raises(ValueError, match="unpack"):
        inference.generate(model, tokenizer, [ids, ids[:1]], sampling, seed=0, batch_size=2, show=found.append)
