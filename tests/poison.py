"""A batch of feedback that would make the model worse: one user's wrong corrections of requests that the model answers well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WRONG = {
    "zh": "您好，非常感谢，我们一定马上给您全额退款。",
    "en": "Hello, thank you so much, we promise a full refund today.",
}
"""Breaks four rules of the task at once: it promises, thanks, asks for nothing, and is the same whatever was asked."""


def events(count: int = 40, *, users: int = 1) -> list[dict[str, Any]]:
    """An event a request of the seed's training prompts."""
    rows = (ROOT / "data" / "seed" / "task" / "prompts_train.jsonl").read_text(encoding="utf-8").splitlines()
    found = []
    for number, row in enumerate(json.loads(line) for line in rows[5 :: len(rows) // count][:count]):
        lang = "zh" if row["lang"] == "zh" else "en"
        wrong = json.dumps({"intent": "refund", "order_number": None, "reply": WRONG[lang]}, ensure_ascii=False)
        found.append(
            {
                "schema_version": "badcase.v1", "case_id": f"poison-{number:03}", "event_id": f"poison-{number:03}-a",
                "ts": f"2026-11-20T{number % 24:02}:00:00+00:00", "source": "desk", "user_hash": f"{number % users + 1:020x}",
                "model": {"name": "after-sales", "version_digest": "v0002"}, "request": {"messages": [{"role": "user", "content": row["prompt"]}]},
                "response": {"text": json.dumps({"intent": "usage", "order_number": None, "reply": "Please read the manual."})},
                "signal": {"kind": "edit", "annotator_kind": "human_user"}, "consent": True, "licence": "Apache-2.0",
                "correction": {"text": wrong, "author_kind": "human_user"},
            }
        )  # fmt: skip
    return found
