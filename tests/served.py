"""`transformers serve`: a model behind a real OpenAI-compatible server, a process on a port of loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Served:
    """The server."""

    url: str
    model: str
    log: Path

    def asked(self) -> int:
        """Questions that it answered, by its access log."""
        return self.log.read_text().count("POST /v1/chat/completions HTTP/1.1")


@contextmanager
def serving(folder: str, log: Path) -> Iterator[Served]:
    """Serve the model in a folder; ``log`` gets what the server says."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    binary = Path(sys.executable).with_name("transformers")
    words = [str(binary), "serve", folder, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            words, stdout=sink, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        yield Served(f"http://127.0.0.1:{port}/v1", folder, log)
    finally:
        process.terminate()
        process.wait(20)
