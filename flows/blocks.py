"""Prefect Secret blocks: read here, since steps know no Prefect, and handed to a step in the environment of its process.

A value goes nowhere else: into no key, manifest, ledger, message or log.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel

from steps.lib.api_keys import secret_variable
from steps.lib.errors import ConfigError

FIELD = "api_key_block"
"""The field of a section that names a block."""


def sections_in(value: Any) -> Iterator[BaseModel]:
    """A section and all those below it."""
    below: Iterable[Any] = ()
    if isinstance(value, BaseModel):
        yield value
        below = (getattr(value, field) for field in type(value).model_fields)
    elif isinstance(value, (list, tuple)):
        below = value
    elif isinstance(value, dict):
        below = value.values()
    for one in below:
        yield from sections_in(one)


def block_names(section: Any) -> Iterator[str]:
    """The blocks that a section and those below it name."""
    for one in sections_in(section):
        if name := getattr(one, FIELD, None):
            yield name


def secrets(section: Any) -> dict[str, str]:
    """Environment variables with the values of all blocks that a section names. What is set already is not read again.

    Raises:
        ConfigError: blocks cannot be read; all of them are told.
    """
    wanted = {name: secret_variable(name) for name in sorted(set(block_names(section)))}
    found: dict[str, str] = {}
    problems: list[str] = []
    for name, variable in wanted.items():
        if os.environ.get(variable):
            continue
        try:
            found[variable] = _read(name)
        except Exception as error:  # Prefect's and its server's errors are of many kinds
            cause = " ".join(str(error).split())[:200] or type(error).__name__
            problems.append(
                f"{FIELD} cannot be read: got no Prefect Secret block {name!r}, because {cause}; make the block (page "
                f"Blocks of Prefect, or Secret(value=...).save({name!r}) in Python), point PREFECT_API_URL at the server that has "
                "it, or name a variable with api_key_env"
            )
    if problems:
        raise ConfigError(problems)
    return found


def _read(name: str) -> str:
    from prefect.blocks.system import Secret

    block: Any = Secret.load(name, _sync=True)  # type: ignore[call-arg]  # also where a loop runs in this thread
    value = block.get()
    if not isinstance(value, str) or not value:
        raise ValueError("it holds no text")
    return value
