"""What is never trained on: where it comes from, and chats of it as prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from steps.lib.config import Neutral, Section
from steps.lib.rows import Chat, Prompt
from steps.lib.sources import Source


class HeldoutConfig(Section):
    """What is never trained on."""

    domain: list[Source] = []
    """Sources of domain documents; without one, ``share`` of the domain corpus is held out."""
    general: list[Source] = []
    """Sources of general documents; without one, ``share`` of the general text is held out."""
    prompts: list[Source] = []
    """Sources of prompts, whose other columns become labels; without one, ``share`` of the chats becomes prompts."""
    pairs: list[Source] = []
    """Sources of preference pairs; without one, ``share`` of the pairs is held out."""
    share: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the groups of a kind to hold out where that kind has no held-out source; 0 holds out none."""
    group: float = Field(default=0.5, gt=0, le=1)
    """Jaccard similarity from which two rows are one group, which is held out whole or not at all."""
    record: Annotated[Path | None, Neutral] = None
    """The splits.parquet of an earlier run: its rows stay on their side, whatever is added. Null decides every side anew."""

    @model_validator(mode="after")
    def _record_of_a_share(self) -> Self:
        if self.record and not self.share:
            raise ValueError(
                f"record {self.record} is of no use with share 0: nothing would be held out, and rows that it held out would be "
                "trained on; give the share, or take the record out"
            )
        return self


def prompt_of(chat: Chat) -> Prompt:
    """A chat of one user turn as a prompt, with the answer as label."""
    said = {turn.role: turn.content for turn in reversed(chat.messages)}
    facts = {"reference": chat.messages[-1].content} | ({"system": said["system"]} if "system" in said else {})
    return Prompt(
        id=chat.id, lang=chat.lang, source=chat.source, prompt=said["user"], facts=json.dumps(facts, ensure_ascii=False)
    )
