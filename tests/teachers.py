"""Asking teachers in tests: a configuration for the loopback server, requests, and one whole run of them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openai_server import Server

from steps.lib.asking import Client, Request, Requests, Tally
from steps.lib.exchange import ask
from steps.lib.ledger import Reply, RequestLedger, Spent
from steps.lib.stopping import Stop
from steps.lib.teacher import open_client
from steps.lib.teacher_config import HttpTeacher, LocalTeacher, ScriptedTeacherConfig

LOG = logging.getLogger("prefline.test")
SECRET = "sk-very-secret-value"
VARIABLE = "TEST_TEACHER_KEY"


def http(server: Server, **values: Any) -> HttpTeacher:
    """A quick teacher at the server. Its key is in ``VARIABLE``."""
    base = {"kind": "http", "name": "t", "endpoint": "test", "base_url": server.url, "model": "m", "api_key_env": VARIABLE,
            "backoff_seconds": 0.01, "timeout_seconds": 5, "concurrency": 4, "grace_seconds": 1, "probe_seconds": 0.05}  # fmt: skip
    return HttpTeacher.model_validate({**base, **values})


def command(config: Path, out: Path) -> list[str]:
    """The shell door of generate."""
    return [sys.executable, "-m", "steps.generate", "--config", str(config), "--out", str(out)]


def requests(client: Client, prompts: Sequence[str], schema: dict[str, Any] | None = None) -> list[Request]:
    """One request a prompt."""
    make = Requests(client, 0, schema).make
    return [make([{"role": "user", "content": text}], prompt=text, source=text) for text in prompts]


def collect(
    config: HttpTeacher | LocalTeacher | ScriptedTeacherConfig,
    prompts: Sequence[str],
    path: Path,
    stop: Stop | None = None,
    spent: Spent | None = None,
) -> tuple[dict[str, Reply | None], dict[str, str], Tally]:
    """Ask for what the ledger at ``path`` lacks: replies and failures by prompt, and what was counted."""
    client = open_client(config, 0, spent, folder=path.parent, log=LOG)
    wanted = requests(client, prompts)
    tallies: dict[str, Tally] = {}
    with RequestLedger(path) as ledger:
        try:
            for _ in ask({"t": (client, wanted)}, ledger, Stop() if stop is None else stop, LOG, tallies):
                pass
        finally:
            replies = {request.prompt: ledger.get(request.key) for request in wanted}
            failures = ledger.failures()
    return (
        replies,
        {request.prompt: failures[request.key] for request in wanted if request.key in failures},
        tallies["t"],
    )
