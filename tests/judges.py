"""Judges in tests: rules behind the loopback server, which reads two answers out of their fences as a model would."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from openai_server import Act, Server

from steps.lib.judge import JudgeConfig
from steps.lib.teacher_config import HttpTeacher

FENCED = re.compile(r"<<([0-9a-f]{12})\n(.*?)\n\1>>", re.DOTALL)


def says(choose: Callable[[str, str], str]) -> Callable[[int, dict[str, Any]], Act]:
    """A server that answers as ``choose(first, second)`` says: A, B or tie; anything else goes out as it is."""

    def decide(number: int, body: dict[str, Any]) -> Act:
        texts = [text for _, text in FENCED.findall(body["messages"][-1]["content"])]
        chosen = choose(texts[1], texts[2])
        known = chosen in ("A", "B", "tie")
        return Act(text=f"I compared them.\n{json.dumps({'verdict': chosen})}" if known else chosen)

    return decide


def configured(server: Server, **teacher: Any) -> JudgeConfig:
    """The configuration of a judge at the server."""
    base = {"kind": "http", "name": "judge", "endpoint": "test", "base_url": server.url, "model": "m", "temperature": 0,
            "attempts": 2, "backoff_seconds": 0.01}  # fmt: skip
    return JudgeConfig(teacher=HttpTeacher.model_validate({**base, **teacher}))
