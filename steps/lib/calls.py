"""Calls to one endpoint over HTTP, and what it means when one fails on its way.

By aiohttp itself: the usual client library over the same aiohttp spends four times as long on a request (1.1 ms of CPU against
0.27), on checks and copies of what is made right here.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from steps.lib.prices import Usage
from steps.lib.wire import Again, Wire

JSON = {"Content-Type": "application/json"}
IDLE_SECONDS = 4.0
"""Seconds that an unused connection is kept: servers close them after 5 (uvicorn, so vLLM and SGLang), and a request that meets the
closing is lost."""


class Calls:
    """Calls to one endpoint, over one pool of connections. Opened in the loop that calls.

    Args:
        wire: says what a status means, and has the key.
        base_url: the endpoint's address up to and with /v1.
        timeout_seconds: of a call, to the last byte of its answer; for files, of silence.
    """

    def __init__(self, wire: Wire, base_url: str, timeout_seconds: float) -> None:
        self._wire, self._base, self._seconds = wire, base_url.rstrip("/"), timeout_seconds

    async def __aenter__(self) -> Self:
        import aiohttp

        self._whole = aiohttp.ClientTimeout(total=self._seconds)
        self._silence = aiohttp.ClientTimeout(total=None, sock_connect=self._seconds, sock_read=self._seconds)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Authorization": f"Bearer {self._wire.key}", "User-Agent": "prefline"},
            proxy=_proxy(self._base),
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    async def text(
        self, method: str, path: str, *, data: Any = None, most: Callable[[], Usage] = Usage, file: bool = False
    ) -> str:
        """The text of an answer.

        Args:
            method, path: what is called.
            data: bytes of JSON, or a form.
            most: what the call may have been billed when nobody can tell; asked only then.
            file: it carries a file, which takes its time.

        Raises:
            Again, Refused, TeacherError: as ``Wire.judge`` says; Again where no answer came.
        """
        headers = JSON if isinstance(data, bytes) else None
        timeout = self._silence if file else self._whole
        with self._told(most):
            async with self._session.request(
                method, self._base + path, data=data, headers=headers, timeout=timeout
            ) as answer:
                text = await answer.text(errors="replace")
        if answer.status >= 400:
            raise self._wire.judge(answer.status, text, answer.headers)
        return text

    async def json(self, method: str, path: str, *, data: Any = None, file: bool = False) -> dict[str, Any]:
        """The JSON object that an answer is. Raises as ``text`` does, and Again where it is none."""
        text = await self.text(method, path, data=data, file=file)
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Again(f"bad_json: {self._wire.clean(text) or 'an empty body'}")
        return found

    async def lines(self, path: str) -> AsyncGenerator[bytes, None]:
        """The lines of a file, while it comes. Raises as ``text`` does."""
        rest = b""
        with self._told(Usage):
            async with self._session.get(self._base + path, timeout=self._silence) as answer:
                if answer.status >= 400:
                    raise self._wire.judge(answer.status, await answer.text(errors="replace"), answer.headers)
                async for chunk in answer.content.iter_any():
                    *whole, rest = (rest + chunk).split(b"\n")
                    for line in whole:
                        yield line
        yield rest

    @contextmanager
    def _told(self, most: Callable[[], Usage]) -> Iterator[None]:
        import aiohttp

        try:
            yield
        except TimeoutError:
            raise Again(f"timeout: no answer in {self._seconds:g} s", pressed=True, usage=most()) from None
        except aiohttp.ClientConnectorError as error:  # nothing was sent
            raise Again(self._broken(error)) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Again(self._broken(error), usage=most()) from None

    def _broken(self, error: Exception) -> str:
        return f"connection: {self._wire.clean(f'{type(error).__name__} {error}')}"


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for an address."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
