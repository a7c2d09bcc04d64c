"""What fits into a context: counted with the tokens that a method puts before each sequence, and refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from minimal import turn
from test_stages import WORDS, base_at, policy_at

from steps.lib import chat, models
from steps.lib.conversation import Conversation, Speaker
from steps.lib.errors import DataError
from steps.lib.inference import Sampling
from steps.lib.stages import Stages

pytestmark = pytest.mark.tiny


@pytest.mark.parametrize(
    ("case", "learnt"), [("lora", 0), ("prompt", 6), ("p_tuning", 6), ("prefix", 6), ("llama_adapter", 0)]
)
def test_what_fits_is_answered_and_what_does_not_is_refused(tmp_path: Path, case: str, learnt: int) -> None:
    base = base_at(tmp_path / "base", 1)
    speaker = Speaker.of("sft", policy_at(tmp_path / "policy", base, case))
    stages, asked = Stages("auto"), [turn("user", WORDS)]
    tokenizer = models.load_tokenizer(base / "model")
    count = len(chat.encode_prompt(tokenizer, asked))
    places: Any = stages(base).config.max_position_embeddings
    most = places - count - learnt

    def answered(tokens: int) -> Any:
        return Conversation(stages, Sampling(0.0, 1.0, tokens), 0).answer(speaker, asked)

    answer = answered(most)
    assert answer.finished or answer.tokens == most
    with pytest.raises(DataError) as caught:
        answered(most + 1)
    text = str(caught.value)
    assert f"got {count} tokens" in text and f"its context has {places}; ask for at most {most} tokens" in text
    assert ("6 of its learnt prompt" in text) == bool(learnt)
    with pytest.raises(DataError, match="; begin again"):
        Conversation(stages, Sampling(0.0, 1.0, 4), 0).answer(speaker, [turn("user", WORDS * 40)])


def test_ids_tell_conversations_apart_and_copies_together(tmp_path: Path) -> None:
    base = base_at(tmp_path / "base", 1)
    one, two = (Speaker.of(name, folder) for name, folder in (("a", base), ("b", base_at(tmp_path / "other", 2))))
    talk = Conversation(Stages("auto", bases=None), Sampling(0.0, 1.0, 4), 0)
    answer = talk.answer(one, [turn("user", "Hello")])
    found = set()
    for speaker, text, system in (
        (one, "Hello", ""),
        (one, "Hello", ""),
        (two, "Hello", ""),
        (one, "Bye", ""),
        (one, "Hello", "S"),
    ):
        talk.reset(system)
        talk.keep(speaker, text, answer)
        found |= {talk.chat_row()["id"], talk.bad_case("why")["id"]}
    assert len(found) == 2 * 4 and {name.partition("-")[0] for name in found} == {"chat", "bad"}
