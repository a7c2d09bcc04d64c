"""Signatures of versions: Ed25519 over the digest of the manifest, which has the digest of every file.

Optional. With a private key, each version is signed when it is registered; with a public key, a version counts only when that key
signed it: it is checked before an alias moves, and whenever a version is verified. Keys are PEM files as openssl writes them.

Source: Ed25519, RFC 8032, through the package cryptography.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from steps.lib.config import Neutral, Section
from steps.lib.durable import write
from steps.lib.errors import ArtifactError, ConfigError
from steps.lib.events import DRAFT
from steps.lib.registry_files import SIGNATURE
from steps.lib.registry_versions import Version
from steps.lib.tickets import mark

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PURPOSE = "prefline version 1"
"""Begins what is signed, so that a signature made for something else never fits."""


class SigningConfig(Section):
    """Keys of the registry. Nothing here changes a result."""

    key: Annotated[Path | None, Neutral] = None
    """File of the private Ed25519 key (PEM) that signs new versions; null: they are not signed."""
    trusted: Annotated[Path | None, Neutral] = None
    """File of the public Ed25519 key (PEM) that every version must be signed with; null: signatures are not asked for."""


def new_key(private: Path, public: Path) -> None:
    """Make a pair of keys; the private one is readable by its owner alone.

    Raises:
        ConfigError: one of the files is there.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    there = [str(path) for path in (private, public) if path.exists()]
    if there:
        raise ConfigError(
            f"key {there[0]} is there: got a file, because a key is never written over; choose another name"
        )
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    shown = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    handle = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(secret)
    public.write_bytes(shown)


def sign(version: Version, key: Path) -> None:
    """Write ``SIGNATURE.json`` of a version.

    Args:
        version: what is signed.
        key: file of the private key.

    Raises:
        ConfigError: the key cannot be read.
    """
    secret = _private(key)
    signature = secret.sign(_message(version.model, version.digest))
    facts = {
        "algorithm": "ed25519",
        "key": _name(secret.public_key()),
        "manifest_sha256": version.digest,
        "signature": base64.b64encode(signature).decode(),
    }
    draft = version.folder.parent.parent / f".{mark()}{DRAFT}"
    write(draft, json.dumps(facts, indent=1) + "\n")
    os.replace(draft, version.folder / SIGNATURE)


def problem(version: Version, trusted: Path) -> str | None:
    """Why a version does not count as signed by a key; None when it does.

    Raises:
        ConfigError: the key cannot be read.
    """
    from cryptography.exceptions import InvalidSignature

    key = _public(trusted)
    try:
        facts = json.loads((version.folder / SIGNATURE).read_text(encoding="utf-8"))
        signature = base64.b64decode(facts["signature"], validate=True)
    except FileNotFoundError:
        return "no signature"
    except (ValueError, KeyError, TypeError):
        return f"a {SIGNATURE} that does not parse"
    try:
        key.verify(signature, _message(version.model, version.digest))
    except InvalidSignature:
        other = facts.get("key") != _name(key)
        return f"a signature of another key ({facts.get('key')!s:.16})" if other else "a signature of something else"
    return None


def check(version: Version, trusted: Path) -> None:
    """Check that a key signed a version.

    Raises:
        ArtifactError: it did not.
    """
    if found := problem(version, trusted):
        raise ArtifactError(
            f"version {version.name} of {version.model} is not signed by {trusted}: got {found}, because only "
            "signed versions count here; register it again with promote.signing.key, or correct promote.signing.trusted"
        )


def _message(model: str, digest: str) -> bytes:
    return f"{PURPOSE}\n{model}\n{digest}\n".encode()


def _name(key: Ed25519PublicKey) -> str:
    """sha256 of the key's 32 bytes: what it is called."""
    from cryptography.hazmat.primitives import serialization as form

    return hashlib.sha256(key.public_bytes(form.Encoding.Raw, form.PublicFormat.Raw)).hexdigest()


def _private(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = _load(path, lambda data: load_pem_private_key(data, None))
    if not isinstance(key, Ed25519PrivateKey):
        raise _wrong(path, "a key of another kind")
    return key


def _public(path: Path) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = _load(path, load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise _wrong(path, "a key of another kind")
    return key


def _load(path: Path, parse: Any) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise _wrong(path, str(error.strerror)) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _wrong(path, "no PEM file of such a key") from None


def _wrong(path: Path, got: str) -> ConfigError:
    return ConfigError(
        f"key {path} cannot be used: got {got}, because an unencrypted Ed25519 key in a PEM file is meant; make one with "
        "`openssl genpkey -algorithm ed25519`"
    )
