"""A real server on loopback that speaks S3 (moto's), for tests. It does per request what a test tells it to.

moto looks and then writes, in threads of its own: of many conditional puts several may win (5 of 150 races of 8 threads here).
S3 has one winner, so requests are served one by one.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from steps.lib.remote import RemoteStore
from steps.lib.stores import open_store

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
"""Environment of every client: dummy credentials, and none of the person's own."""


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    """``/bucket/key``."""
    query: str
    conditional: bool
    """It has If-None-Match."""


@dataclass(frozen=True)
class Act:
    """What the server does with a request."""

    delay: float = 0.0
    """Seconds before the request is served."""
    refuse: tuple[int, str] | None = None
    """Status and S3's code of an error in place of service."""
    lose: bool = False
    """Serve the request, and close the connection without a word."""
    overwrite: bool = False
    """Serve it as a server does that never heard of If-None-Match."""


Decide = Callable[[Asked], Act | None]


class Server:
    """``decide(asked)`` acts on a request; None serves it."""

    def __init__(self) -> None:
        self.decide: Decide = lambda asked: None
        self.log: list[Asked] = []
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._turn = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def bucket(self) -> str:
        """A new empty bucket."""
        import http.client

        name = f"bucket-{uuid.uuid4().hex[:12]}"
        connection = http.client.HTTPConnection("127.0.0.1", self._server.server_port)
        connection.request("PUT", f"/{name}", headers={"Host": "s3.amazonaws.com"})
        assert connection.getresponse().status == 200
        connection.close()
        return name

    def puts(self, part: str = "") -> list[str]:
        """Paths of the objects that were put, in order."""
        return [asked.path for asked in self.log if asked.method == "PUT" and part in asked.path]

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        conditional = "HTTP_IF_NONE_MATCH" in environ
        asked = Asked(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"], conditional)
        self.log.append(asked)
        act = self.decide(asked) or Act()
        time.sleep(act.delay)
        if act.refuse:
            status, code = act.refuse
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(
                f"{status} {code}", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
            )
            return [] if asked.method == "HEAD" else [body]
        if act.overwrite:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        with self._turn:
            answer = list(self._moto(environ, start_response))
        if act.lose:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        return answer

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


class _Quiet(MotoRequestHandler):
    disable_nagle_algorithm = True

    def log(self, *_: Any) -> None:
        pass


@contextmanager
def serve() -> Iterator[Server]:
    """A running server. All servers of a process share their buckets: moto keeps them in globals."""
    with Server() as server:
        yield server


def environment(server: Server, folder: Path) -> dict[str, str]:
    """Environment of a process that uses the server; digests are remembered in the folder."""
    return {**CREDENTIALS, "AWS_ENDPOINT_URL": server.url, "XDG_CACHE_HOME": str(folder / "xdg")}


def machine(url: str, cache: Path) -> RemoteStore:
    """The store at a URL as a machine with this cache sees it."""
    store = open_store(url, cache)
    assert isinstance(store, RemoteStore)
    return store
