"""A hub on loopback: as much of its API as publishing a small folder needs. Nothing is checked but what a test asks for."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """What one repository got."""

    def __init__(self) -> None:
        self.url = ""
        self.private: bool | None = None
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        """sha256 -> bytes of files that go by LFS."""
        self.tags: dict[str, str] = {}
        self.commit = "c" * 40
        self.seen: list[str] = []

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON for one request."""
        self.seen.append(f"{method} {path}")
        if path == "/api/repos/create":
            self.private = json.loads(body).get("visibility") == "private"
            return 200, {"url": f"{self.url}/org/desk", "id": "x", "name": "org/desk"}
        if "/preupload/" in path:
            sent = json.loads(body)["files"]
            kinds = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in sent
            ]
            return 200, {"files": kinds}
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [{**one, "actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}} for one in objects]
            return 200, {"transfer": "basic", "objects": actions}
        if path.startswith("/lfs/"):
            assert hashlib.sha256(body).hexdigest() == path.rpartition("/")[2]
            self.large[path.rpartition("/")[2]] = body
            return 200, {}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.large[value["oid"]]
            facts = {"commitUrl": f"{self.url}/org/desk/commit/{self.commit}", "commitOid": self.commit}
            return 200, {**facts, "success": True}
        if path.endswith("/refs"):
            return 200, {"branches": [], "converts": [], "tags": []}
        if "/tag/" in path:
            self.tags[json.loads(body)["tag"]] = path.rpartition("/")[2]
            return 200, {}
        if "/tree/" in path:
            return 200, []
        if "/xet-write-token/" in path:
            return 404, {"error": "no xet here"}
        return 200, {"id": "org/desk", "sha": self.commit, "siblings": [], "private": True, "tags": []}


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub for the length of the block."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = state.answer(self.command, self.path.partition("?")[0], body)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_DELETE = _do

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
