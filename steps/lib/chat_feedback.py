"""What a person says of an answer in a conversation, as an event of ``badcase.v1``.

The same words to the same model with the same answer are one case; the same verdict on an answer is one event, so a second click
stores nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from steps.lib import model_files, models
from steps.lib.conversation import Speaker
from steps.lib.digests import digest_text
from steps.lib.errors import DataError
from steps.lib.rows import Message

SOURCE = "playground"


def verdict(speaker: Speaker, asked: Sequence[Message], answer: str, good: bool, at: datetime) -> dict[str, Any]:
    """A thumb up or down.

    Args:
        speaker: the model that answered.
        asked: turns with the system turn, the user's last.
        answer: what it said.
        good: thumb up.
        at: moment of the answer.
    """
    signal = {"kind": "thumb", "annotator_kind": "human_user", "value": 1 if good else -1}
    return _event(speaker, asked, answer, {"signal": signal}, at)


def correction(speaker: Speaker, asked: Sequence[Message], answer: str, better: str, at: datetime) -> dict[str, Any]:
    """A better answer, in the person's own words; the arguments as those of ``verdict``.

    Raises:
        DataError: it says nothing, or the same.
    """
    if not better.strip() or better.strip() == answer.strip():
        raise DataError(
            "correction is not stored: got nothing, or the answer itself, because it must be better; edit it"
        )
    signal = {"kind": "edit", "annotator_kind": "human_user"}
    told = {"signal": signal, "correction": {"text": better.strip(), "author_kind": "human_user"}}
    return _event(speaker, asked, answer, told, at)


def _event(
    speaker: Speaker, asked: Sequence[Message], answer: str, told: dict[str, Any], at: datetime
) -> dict[str, Any]:
    turns = [{"role": turn.role, "content": turn.content} for turn in asked]
    case = digest_text(json.dumps([turns, answer, speaker.digest], ensure_ascii=False))[:16]
    moment = at.isoformat()
    said = digest_text(json.dumps([moment, told], ensure_ascii=False, sort_keys=True))[:12]
    return {
        "schema_version": "badcase.v1",
        "case_id": f"{SOURCE}-{case}",
        "event_id": f"{SOURCE}-{case}-{said}",
        "ts": moment,
        "source": SOURCE,
        "model": {
            "name": speaker.name,
            "version_digest": speaker.digest,
            "template_digest": model_files.template_digest(models.model_folder(speaker.artifact)),
        },
        "request": {"messages": turns},
        "response": {"text": answer},
        "consent": True,
        **told,
    }
