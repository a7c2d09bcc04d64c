"""Which store a name means: a folder, or a URL of an object store."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.request import url2pathname

from steps.lib.digests import digest_text
from steps.lib.errors import ConfigError
from steps.lib.objects import PACKAGES, open_place
from steps.lib.remote import RemoteStore
from steps.lib.store import Store

SAME = {"s3a": "s3", "gcs": "gs"}
"""Other names of a protocol."""


def open_store(url: str, cache: Path) -> Store:
    """The store at a URL, or in a folder. Nothing is asked of a server yet.

    Args:
        url: a folder, ``file:///folder``, ``s3://bucket/prefix`` or ``gs://bucket/prefix``.
        cache: folder on this machine for copies of what lies on object stores; each URL has a folder of its own in it.

    Raises:
        ConfigError: a URL of another kind, without a bucket, or of a package that is not installed.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):(//)?", url)
    if scheme is None:
        return Store(Path(url).resolve())
    protocol = SAME.get(scheme[1].lower(), scheme[1].lower())
    rest = url[scheme.end() :]
    if protocol == "file" and scheme[2] and rest.startswith("/"):
        return Store(Path(url2pathname(rest)).resolve())
    if protocol not in PACKAGES or not scheme[2]:
        raise ConfigError(
            f"store {url} is no place for artifacts: got {scheme[0]!r}, because a store is a folder, or an object store with "
            "a conditional create; give a folder, file:///folder, s3://bucket/prefix or gs://bucket/prefix"
        )
    root = "/".join(part for part in rest.split("/") if part)
    if not root or rest.startswith("/"):
        raise ConfigError(
            f"store {url} names no bucket: got nothing behind {scheme[0]}; give {protocol}://bucket/prefix"
        )
    endpoint = None
    if protocol == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    place = open_place(protocol, root, endpoint)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{protocol}-{root}")[:80]
    return RemoteStore(cache.resolve() / f"{plain}-{digest_text(f'{endpoint} {place.url}')[:8]}", place)
