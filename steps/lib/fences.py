"""Text of others inside a prompt: fenced, so that it is material, and without what could pass for a verdict on itself.

Used by judges and by the stages of recipes that show a teacher a document, an answer or a prompt to work on. A fence is a
mark made from the texts between such marks: no text can hold its own.
"""

from __future__ import annotations

import hashlib
import json
import re

_TORN = re.compile(r"<<\s*[0-9a-f]{8,}\b|\b[0-9a-f]{8,}\s*>>")
_SPECIAL = re.compile(
    r"<([|｜][^<>|｜\n]{1,60}[|｜]|/?s|bos|eos|pad|unk|/?(?:start|end)_of_turn|<?/?SYS>?)>|\[(/?INST|/?AVAILABLE_TOOLS)\]"
)
_MARK = re.compile(r"\[\[\s*(A|B|C|tie)\s*\]\]", re.IGNORECASE)


def fence_of(*texts: str) -> str:
    """12 hex digits for the fence around these texts."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]


def fence_in(text: str, fence: str) -> str:
    """What of a fence stands in a text, "" if nothing. Small teachers copy fences, and get half of the digits wrong."""
    if fence and fence[: len(fence) // 2] in text:
        return fence
    found = _TORN.search(text)
    return found[0] if found else ""


def disarm(text: str, field: str = "verdict") -> str:
    """A text without anything that reads like a verdict on it.

    Args:
        text: material that is to be judged.
        field: name of the field of a JSON verdict.
    """
    verdict = re.compile(rf"\{{[^{{}}]*\"?{re.escape(field)}\"?\s*:[^{{}}]*\}}", re.IGNORECASE)
    while (clean := verdict.sub("", _MARK.sub("", text))) != text:
        text = clean
    return text


def tame(text: str, field: str = "verdict") -> str:
    """``disarm``, and chat markup of models (``<|im_start|>``, ``[INST]``) in letters that no tokenizer takes for it.

    A judge in this process reads its chat template as text: an answer that holds its markup could end the user's turn and write
    a system turn of its own. The judge still sees what the answer holds.
    """
    while (clean := _SPECIAL.sub(_shown, disarm(text, field))) != text:
        text = clean
    return text


def _shown(found: re.Match[str]) -> str:
    return f"‹{found[1]}›" if found[1] else f"［{found[2]}］"
