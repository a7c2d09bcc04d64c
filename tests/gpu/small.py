"""A small base, chats and pairs, made without the steps before training; and steps run on them without a line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from steps.lib import history, runtime, tiny
from steps.lib.rows import Chat, Message, Pair, write_parquet
from steps.lib.step import Context, config_class, module_of
from steps.reference import ReferenceConfig

SHAPE = tiny.TinyConfig(
    vocab_size=400, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, max_length=256
)
TRAIN: dict[str, Any] = {
    "lr": 5e-3,
    "max_updates": 6,
    "epochs": 50,
    "batch_size": 4,
    "max_length": 128,
    "save_every": 100,
}


def turn(role: Any, content: str) -> Message:
    return Message(role=role, content=content)


class Small:
    """What training starts from, in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._number = 0

    @cached_property
    def base(self) -> Path:
        """A Llama of two layers with random weights, and its tokenizer."""
        runtime.seed_torch(0)
        words = [message.content for chat in self._chats() for message in chat.messages]
        tokenizer = tiny.build_tokenizer(words, SHAPE)
        for one in (tokenizer, tiny.build_model(tokenizer, SHAPE)):
            one.save_pretrained(self.root / "base" / "model")
        return self.root / "base"

    @cached_property
    def data(self) -> Path:
        """Chats and pairs of many lengths."""
        folder = self.root / "data"
        folder.mkdir()
        write_parquet(folder / "chats.parquet", self._chats(), Chat)
        pairs = [
            Pair(
                id=f"pair-{n}",
                source="made",
                prompt=[turn("user", f"Is {n} fine? " + "Say why. " * (n % 4))],
                chosen=[turn("assistant", "yes, " * (1 + n % 3) + "it is")],
                rejected=[turn("assistant", "no " * (1 + n % 5))],
                margin=0.5,
            )
            for n in range(12)
        ]
        write_parquet(folder / "pairs.parquet", pairs, Pair)
        return folder

    def _chats(self) -> list[Chat]:
        return [
            Chat(
                id=f"chat-{n}",
                source="made",
                messages=[
                    turn("user", f"Is {n} fine? " * (1 + n % 5)),
                    turn("assistant", ("yes, " * (n % 3)) + "it is"),
                ],
            )
            for n in range(16)
        ]

    def config(self, step: str, **fields: Any) -> Any:
        """Configuration of a step; ``train`` has what differs from a few updates."""
        train = {**TRAIN, **fields.pop("train", {})}
        return config_class(module_of(step)).model_validate({**fields, "train": train})

    def inputs(self, step: str, config: Any) -> dict[str, Path]:
        """What the step reads; dpo goes on from a policy of sft, with the reference that fits it."""
        if step == "sft":
            return {"base": self.base, "chats": self.data}
        given = {"policy": self.policy, "pairs": self.data}
        if step == "reference":
            return given
        return {**given, "reference": self.run("reference", ReferenceConfig.of(config, config.train))[0]}

    @cached_property
    def policy(self) -> Path:
        """An adapter that sft trained."""
        return self.run("sft", self.config("sft", lora={"rank": 8, "alpha": 16}))[0]

    def run(self, step: str, config: Any, *, out: Path | None = None, track: Any = None) -> tuple[Path, dict[str, Any]]:
        """Run a step without a line. Gives its folder and its metrics."""
        self._number += 1
        out = out or self.root / f"{step}-{self._number}"
        for name in (".resume", "record"):
            (out / name).mkdir(parents=True, exist_ok=True)
        metrics = module_of(step).run(config, **self.inputs(step, config), out=out, context=context(out, track))
        return out, metrics.values


def context(out: Path, track: Any = None) -> Context:
    def progress(items: Any, label: str, total: int | None = None) -> Iterator[Any]:
        return iter(items)

    return Context(
        log=logging.getLogger("test"),
        seed=0,
        resume=out / ".resume",
        progress=progress,
        track=track or (lambda values, step=None: None),
    )


def losses(out: Path) -> list[float]:
    return [entry["loss"] for entry in history.read(out / "record" / "history.jsonl")]


def weights(out: Path) -> dict[str, Any]:
    """Name -> value of what a step saved."""
    from safetensors.torch import load_file

    return {name: value for path in sorted(out.glob("*/*.safetensors")) for name, value in load_file(path).items()}
