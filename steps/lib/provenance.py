"""Where a row came from, as JSON that travels with it: who said it, how it was asked, and what it was made from.

No path, address, time or price is among it, so the same work gives the same rows on any machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from steps.lib.teacher_config import AnyTeacher

OURS = ("kind", "endpoint", "model")
"""Fields of a client's identity that stand by themselves; the others are the settings of sampling."""


def provenance(
    *, teacher: str, identity: Mapping[str, Any], answered: str, license: str | None, stage: str, prompt_file: str
) -> str:
    """The JSON of one answer.

    Args:
        teacher: its name in the configuration.
        identity: the client's part of a request key: kind, model, endpoint class, sampling.
        answered: model name as the endpoint gave it; empty: it gave none.
        license: the configuration's note on what the answers may be used for; None: nobody wrote one.
        stage: of the recipe.
        prompt_file: its digest.
    """
    return dump(
        {
            "teacher": teacher,
            **{name: identity[name] for name in OURS if name in identity},
            "answered_as": answered or None,
            "sampling": {name: value for name, value in sorted(identity.items()) if name not in OURS},
            "stage": stage,
            "prompt_file": prompt_file,
            "license": license,
        }
    )


def evidence(*, source: str, row: str, facts: str, trail: Sequence[Mapping[str, Any]]) -> str:
    """The JSON of what a prompt was made from: the row of the source, its labels, and the entries of the stages passed."""
    found: dict[str, Any] = {"source": source, "row": row}
    labels = json.loads(facts)
    if labels:
        found["facts"] = labels
    if trail:
        found["trail"] = [dict(entry) for entry in trail]
    return dump(found)


def unlicensed(teachers: Sequence[AnyTeacher]) -> list[str]:
    """Names of the teachers without a licence note."""
    return [teacher.name for teacher in teachers if teacher.license is None]


def dump(value: Mapping[str, Any]) -> str:
    """JSON in one line, in the order given."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
