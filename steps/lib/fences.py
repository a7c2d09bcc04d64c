"""Text of others inside a prompt: fenced, so that it is material, and without what could pass for a verdict on itself.

Used by judges and by the stages of recipes that show a teacher a document, an answer or a prompt to work on. A fence is a
mark made from the texts between such marks: no text can hold its own.
"""

from __future__ import annotations

import hashlib
import json
import re

_MARK = re.compile(r"\[\[\s*(A|B|C|tie)\s*\]\]", re.IGNORECASE)


def fence_of(*texts: str) -> str:
    """12 hex digits for the fence around these texts."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]


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
