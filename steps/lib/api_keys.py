"""Keys of endpoints: from the environment alone, and what to say where there is none."""

from __future__ import annotations

import os

from steps.lib.teacher_config import HttpTeacher


def secret_variable(block: str) -> str:
    """The environment variable in which flows/ hands over the value of a Prefect Secret block."""
    return "PREFLINE_SECRET_" + block.upper().replace("-", "_")


def place_of(config: HttpTeacher) -> str:
    """Where a teacher's key comes from, in words for people."""
    if config.api_key_block:
        return f"Prefect Secret block {config.api_key_block}"
    return f"environment variable {config.api_key_env}" if config.api_key_env else "api_key_env (now null)"


def key_of(config: HttpTeacher) -> tuple[str, str]:
    """The key, and what is wrong where there is none."""
    variable = secret_variable(config.api_key_block) if config.api_key_block else config.api_key_env
    if variable is None:
        return "none", ""
    key = os.environ.get(variable, "").strip()
    if key or not config.api_key_block:
        cause, way = "api_key_env names it", "set it"
    else:
        cause = (
            f"api_key_block names the Prefect Secret block {config.api_key_block}, which a step by itself cannot read"
        )
        way = (
            "start the step through prefline (prefline run, prefline step), which reads the block, or set the variable"
        )
    where = f"(endpoint {config.endpoint}, {config.base_url})"
    problem = (
        f"teacher {config.name} has no key: got no environment variable {variable}, because {cause}; {way} {where}"
    )
    return key, "" if key else problem
