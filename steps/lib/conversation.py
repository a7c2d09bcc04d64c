"""A conversation with models: one history, each turn answered by whichever model is asked, and the rows that are kept of it.

Nothing is cut from a conversation that has become too long for a model: that is an error, and the turn is not taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from steps.lib import chat, inference, language, models
from steps.lib.digests import digest_text
from steps.lib.errors import DataError, ModelError
from steps.lib.inference import Answer, Sampling
from steps.lib.rows import Chat, Message
from steps.lib.stages import Stages

Show = Callable[[str], None]
SOURCE = "chat"
"""Name of the source of rows that are kept of conversations."""


@dataclass(frozen=True)
class Speaker:
    """A model that can be talked with."""

    name: str
    """What the person calls it."""
    artifact: Path
    digest: str
    """Of what makes the model (``inference.identity``)."""

    @classmethod
    def of(cls, name: str, artifact: Path) -> Self:
        """The model of an artifact; its weights are not loaded, only their digest is taken.

        Raises:
            ModelError: the artifact holds no model, or one that gives scores in place of text.
        """
        folder = models.model_folder(artifact)
        made_for = [str(one) for one in _settings(folder / "config.json").get("architectures") or ()]
        made_for += [str(_settings(artifact / "adapter" / "adapter_config.json").get("task_type") or "")]
        if scoring := [one for one in made_for if one == "SEQ_CLS" or one.endswith("ForSequenceClassification")]:
            raise ModelError(
                f"model {name} cannot be talked with: got {scoring[-1]}, because it gives scores in place of text; name a model "
                "that answers (sft, dpo)"
            )
        return cls(name, artifact, inference.identity(artifact))


def _settings(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


@dataclass
class Conversation:
    """Turns so far, and who answered them.

    Args:
        stages: loads the models.
        sampling: how answers are drawn.
        seed: the same seed and turns give the same answer.
        system: the system turn; "" for none.
    """

    stages: Stages
    sampling: Sampling
    seed: int
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    """Without the system turn: user and assistant by turns."""
    answered: list[Speaker] = field(default_factory=list)
    """Who gave the answers among the turns."""

    def answer(self, speaker: Speaker, asked: Sequence[Message], show: Show | None = None) -> Answer:
        """What a model says to some turns; nothing is kept.

        Args:
            speaker: the model.
            asked: turns, the user's last; the system turn comes before them.
            show: gets the pieces of the answer as they come.

        Raises:
            DataError: the turns and the answer do not fit into the model's context, or a turn cannot be encoded.
        """
        tokenizer = models.load_tokenizer(models.model_folder(speaker.artifact))
        ids = chat.encode_prompt(tokenizer, [*self._opening(), *asked])
        model = self.stages(speaker.artifact)
        _fit(speaker.name, model, len(ids), self.sampling.max_tokens)
        [found] = inference.generate(model, tokenizer, [ids], self.sampling, seed=self.seed, batch_size=1, show=show)
        return found

    def keep(self, speaker: Speaker, text: str, answer: Answer) -> None:
        """Take a user's turn and its answer into the conversation."""
        self.turns += [_turn("user", text), _turn("assistant", answer.text)]
        self.answered.append(speaker)

    def reset(self, system: str | None = None) -> None:
        """Begin again, with another system turn where one is given."""
        self.turns.clear()
        self.answered.clear()
        self.system = self.system if system is None else system

    def chat_row(self) -> dict[str, Any]:
        """The conversation as a row that clean imports among its chats.

        Raises:
            DataError: nothing was answered yet.
        """
        row = Chat(id=self._id("chat"), lang=self._lang(), source=SOURCE, messages=[*self._opening(), *self._spoken()])
        return {**row.model_dump(), "answered_by": [{"model": one.name, "digest": one.digest} for one in self.answered]}

    def bad_case(self, reason: str) -> dict[str, Any]:
        """The last answer as a bad case: TRL's unpaired preference layout with label false, which clean never takes for a good one.

        Raises:
            DataError: nothing was answered yet, or no reason is given.
        """
        if not reason.strip():
            raise DataError("bad case has no reason: got '', because whoever mends it must know what is wrong; say it")
        *prompt, last = self._spoken()
        return {
            "id": self._id("bad"),
            "lang": self._lang(),
            "source": SOURCE,
            "prompt": chat.plain([*self._opening(), *prompt]),
            "completion": chat.plain([last]),
            "label": False,
            "reason": reason.strip(),
            "model": self.answered[-1].name,
            "digest": self.answered[-1].digest,
        }

    def _opening(self) -> list[Message]:
        return [_turn("system", self.system)] if self.system else []

    def _spoken(self) -> list[Message]:
        if not self.turns:
            raise DataError("conversation is empty: got no answer yet, because nothing was asked; ask something first")
        return self.turns

    def _id(self, kind: str) -> str:
        """The same conversation has the same id, so that a copy of it is seen."""
        said = [one.model_dump() for one in (*self._opening(), *self.turns)]
        return f"{kind}-{digest_text(json.dumps([said, [one.digest for one in self.answered]]))[:16]}"

    def _lang(self) -> Literal["zh", "en", "other"]:
        return language.detect("\n".join(turn.content for turn in self.turns))


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a JSONL file.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(
            f"file {path} cannot be written: got {error.strerror}, because its folder is not there or is closed; name another file"
        ) from None


def _turn(role: Literal["system", "user", "assistant"], content: str) -> Message:
    return Message(role=role, content=content)


def _fit(name: str, model: Any, asked: int, answer: int) -> None:
    """Refuse a conversation that is longer than the model's context."""
    places = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    settings: Any = model.active_peft_config if hasattr(model, "peft_config") else None
    learnt = settings.num_virtual_tokens if getattr(settings, "is_prompt_learning", False) else 0
    if places is None or asked + answer + learnt <= places:
        return
    left = places - asked - learnt
    more = f" and {learnt} of its learnt prompt" if learnt else ""
    way = f"ask for at most {left} tokens (--max-tokens), or begin again" if left > 0 else "begin again"
    raise DataError(
        f"conversation is too long for {name}: got {asked} tokens{more}, and {answer} for the answer, because its context has "
        f"{places}; {way} (/reset)"
    )
