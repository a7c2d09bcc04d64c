"""What is never trained on: where it comes from, and chats of it as prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import Field

from steps.lib.config import Section
from steps.lib.quality import Finding
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


def unaskable(chats: Sequence[Chat]) -> dict[int, Finding]:
    """Held-out chats that evaluation cannot ask: of many user turns, or with the prompt of an earlier one."""
    first: dict[str, str] = {}
    found: dict[int, Finding] = {}
    for number, row in enumerate(chats):
        users = [turn.content for turn in row.messages if turn.role == "user"]
        if len(users) != 1:
            found[number] = "heldout_many_turns", f"{len(users)} user turns; a held-out prompt has one"
        elif users[0] in first:
            found[number] = "heldout_duplicate", json.dumps({"kept_id": first[users[0]]})
        else:
            first[users[0]] = row.id
    return found


def prompt_of(chat: Chat) -> Prompt:
    """A chat of one user turn as a prompt, with the answer as label."""
    said = {turn.role: turn.content for turn in reversed(chat.messages)}
    facts = {"reference": chat.messages[-1].content} | ({"system": said["system"]} if "system" in said else {})
    return Prompt(
        id=chat.id, lang=chat.lang, source=chat.source, prompt=said["user"], facts=json.dumps(facts, ensure_ascii=False)
    )
