"""Batches change nothing, and every token is scored once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from steps.lib import inference, tiny
from steps.lib.errors import Resumable
from steps.lib.inference import Later, Sampling, batches, generate, seed_of, sequence_logps, text_nats
from steps.lib.stopping import Stop
from steps.lib.work_ledger import WorkLedger

pytestmark = pytest.mark.tiny
WORDS = "Is 12 fine? 订单A12345到了吗？ The birds sing in the garden all day, and nobody minds. 鸟儿歌唱。"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.build_tokenizer([WORDS] * 3, tiny.TinyConfig(vocab_size=400))


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    import torch

    torch.manual_seed(3)
    made = tiny.build_model(
        tokenizer, tiny.TinyConfig(vocab_size=400, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2)
    )
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(6.0)  # far from uniform, so that a mistake shows
    return made.eval()


def rows(tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    ids = tokenizer(WORDS)["input_ids"]
    return [(ids[: 1 + n], ids[1 + n : 3 + 3 * n]) for n in range(1, 9)]


def hand_logps(model: Any, prompt: list[int], answer: list[int]) -> float:
    """One row, one token at a time, no batch, no padding."""
    import torch

    total, seen = 0.0, list(prompt)
    for token in answer:
        with torch.no_grad():
            total += float(torch.log_softmax(model(input_ids=torch.tensor([seen])).logits[0, -1].double(), -1)[token])
        seen.append(token)
    return total


def test_logps_are_the_sum_over_the_answers_tokens(model: Any, tokenizer: Any) -> None:
    given = rows(tokenizer)
    for got, (prompt, answer) in zip(sequence_logps(model, given, batch_size=3), given, strict=True):
        assert got == pytest.approx(hand_logps(model, prompt, answer), abs=1e-3)


def test_batch_one_equals_batch_eight_in_log_probabilities(model: Any, tokenizer: Any) -> None:
    one = sequence_logps(model, rows(tokenizer), batch_size=1)
    eight = sequence_logps(model, rows(tokenizer), batch_size=8)
    assert eight == pytest.approx(one, abs=1e-3) and len({round(value, 2) for value in one}) > 6


def test_batch_one_equals_batch_eight_in_greedy_answers(model: Any, tokenizer: Any) -> None:
    prompts = [prompt for prompt, _ in rows(tokenizer)]
    greedy = Sampling(0.0, 1.0, 8)
    one = generate(model, tokenizer, prompts, greedy, seed=0, batch_size=1)
    assert generate(model, tokenizer, prompts, greedy, seed=7, batch_size=8) == one
    import torch

    ids = torch.tensor([prompts[4]])
    for _ in range(8):
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=-1)
    new = ids[0, len(prompts[4]) :].tolist()
    new = new[: new.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in new else new
    assert one[4].text == tokenizer.decode(new, skip_special_tokens=True), "equal to the loop by hand"


def test_samples_depend_on_seed_and_batch_only(model: Any, tokenizer: Any) -> None:
    import torch

    prompts = [prompt for prompt, _ in rows(tokenizer)]
    drawing = Sampling(1.0, 0.95, 8)
    first = generate(model, tokenizer, prompts, drawing, seed=1, batch_size=4)
    torch.manual_seed(99)
    assert generate(model, tokenizer, prompts, drawing, seed=1, batch_size=4) == first, "not on the generator's state"
    assert generate(model, tokenizer, prompts, drawing, seed=2, batch_size=4) != first
    [_, last] = batches([len(prompt) for prompt in prompts], 4)
    alone = generate(model, tokenizer, [prompts[i] for i in last], drawing, seed=1, batch_size=4)
    assert alone == [first[i] for i in last], "not on the batches before"


def test_answers_end_at_the_end_of_turn_and_say_when_they_were_cut(model: Any, tokenizer: Any) -> None:
    import torch

    class Ends:
        """A model that says two tokens, then the end, then rubbish."""

        device = torch.device("cpu")
        generation_config = model.generation_config

        def eval(self) -> None: ...

        def generate(self, input_ids: Any, **options: Any) -> Any:
            said = torch.tensor([[40, 41, tokenizer.eos_token_id, 50], [40, 41, 42, 43]])
            return torch.cat([input_ids, said], dim=-1)

    ended, cut = generate(Ends(), tokenizer, [[5, 6], [7, 8]], Sampling(0.0, 1.0, 4), seed=0, batch_size=2)
    assert (ended.tokens, ended.finished, ended.text) == (2, True, tokenizer.decode([40, 41]))
    assert (cut.tokens, cut.finished) == (4, False)


def test_a_batch_that_is_kept_is_not_computed_again_and_needs_no_model(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Stopped after each batch in turn: the same numbers, and every batch computed once."""
    prompts = [prompt for prompt, _ in rows(tokenizer)]
    loads: list[int] = []

    def load() -> Any:
        loads.append(1)
        return model

    def all_of(stop_after: int, model: Any) -> tuple[Any, WorkLedger]:
        stop = Stop()

        def recall(content: Any, compute: Any) -> Any:
            if ledger.computed == stop_after:
                stop.signal = "SIGTERM"
            return kept(content, compute)

        with WorkLedger(tmp_path / "w.sqlite", stop) as ledger:
            kept = ledger.about(model="m")
            drawn = generate(model, tokenizer, prompts, Sampling(1.0, 0.9, 6), seed=3, batch_size=3, recall=recall)
            logps = sequence_logps(model, rows(tokenizer), batch_size=3, recall=recall)
            nats = text_nats(model, tokenizer, [WORDS, WORDS[:20]], window=7, batch_size=3, recall=recall)
        return (drawn, logps, nats), ledger

    plain = (
        generate(model, tokenizer, prompts, Sampling(1.0, 0.9, 6), seed=3, batch_size=3),
        sequence_logps(model, rows(tokenizer), batch_size=3),
        text_nats(model, tokenizer, [WORDS, WORDS[:20]], window=7, batch_size=3),
    )
    for _ in range(4):
        with pytest.raises(Resumable):
            all_of(2, Later(load))
    found, ledger = all_of(99, Later(load))
    assert found == plain, "bit by bit"
    assert ledger.kept == 8 and ledger.computed > 0 and len(loads) == ledger.kept + ledger.computed
    again, ledger = all_of(0, Later(lambda: pytest.fail("the model was loaded")))
    assert again == plain and ledger.computed == 0


@pytest.mark.parametrize("window", [4, 7, 512])
def test_bits_score_every_token_once_whatever_the_window(model: Any, tokenizer: Any, window: int) -> None:
    texts = [WORDS, "Is 12 fine?", ""]
    by_hand = []
    for text in texts:
        ids, nats = tokenizer(text)["input_ids"], 0.0
        for start in range(0, len(ids), window - 1):
            nats -= hand_logps(model, [tokenizer.eos_token_id], ids[start : start + window - 1])
        by_hand.append(nats)
    assert text_nats(model, tokenizer, texts, window=window, batch_size=2) == pytest.approx(by_hand, abs=1e-2)
    assert by_hand[2] == 0 and by_hand[0] > by_hand[1] > 0


def test_bits_of_a_uniform_model_are_the_logarithm_of_the_vocabulary(tokenizer: Any) -> None:
    import torch

    flat = tiny.build_model(
        tokenizer, tiny.TinyConfig(vocab_size=400, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2)
    )
    with torch.no_grad():
        for p in flat.parameters():
            p.zero_()
    count = len(tokenizer(WORDS)["input_ids"])
    for window in (5, 512):
        [nats] = text_nats(flat, tokenizer, [WORDS], window=window, batch_size=2)
        assert nats == pytest.approx(count * math.log(len(tokenizer)), rel=1e-5)


def test_batches_hold_every_row_once_longest_first() -> None:
    assert list(batches([3, 9, 3, 7], 3)) == [[1, 3, 0], [2]] and list(batches([], 4)) == []


def test_a_seed_is_the_same_in_every_process() -> None:
    assert seed_of(0, "teacher", "id") == seed_of(0, "teacher", "id") != seed_of("0", "teacher", "id")
    assert 0 <= seed_of(1) < 2**63 and seed_of(1, [2, 3]) == inference.seed_of(1, [2, 3])
