"""Weights & Biases: one group a pipeline run, one run a step.

``mode: auto`` is online when a key is there (environment or netrc) and offline otherwise; nothing is asked, and no key, command
line or git remote is sent along.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from steps.lib.config import Neutral, Section


class TrackingConfig(Section):
    """Where metrics go while a step runs. Nothing here changes a result."""

    mode: Annotated[Literal["auto", "online", "offline", "disabled"], Neutral] = "auto"
    """auto: online with a key, offline without one."""
    project: Annotated[str, Neutral] = "prefline"
    """Name of the project in Weights & Biases."""
    folder: Annotated[Path, Neutral] = Path("data/artifacts")
    """Folder that gets the ``wandb/`` folder of offline runs."""


class Track(Protocol):
    def __call__(self, values: Mapping[str, float], step: int | None = None) -> None: ...


def resolve_mode(mode: str) -> Any:
    """``auto`` -> online or offline, by whether a key is there. ``WANDB_MODE`` of the environment wins over ``auto``."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        return "online" if netrc.netrc(os.environ.get("NETRC")).authenticators("api.wandb.ai") else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"


@contextmanager
def run(step: str, key: str, config: Mapping[str, Any], info: Mapping[str, Any] | None, work: Path) -> Iterator[Track]:
    """A tracked run for the length of the block.

    Args:
        step: job type and name of the run.
        key: the artifact's key.
        config: resolved configuration less secrets.
        info: ``mode, project, folder, group`` as the engine gives them; None tracks nothing (the bare shell door).
        work: the step's working folder.
    """
    mode: Any = resolve_mode(info["mode"]) if info else "disabled"
    if info is None or mode == "disabled" or int(os.environ.get("RANK", "0")):
        yield _silent
        return
    os.environ.update(WANDB_DISABLE_GIT="true", WANDB_DISABLE_CODE="true", WANDB_SILENT="true")
    import wandb

    folder = Path(info["folder"]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True, x_disable_meta=True
    )
    session = wandb.init(
        project=info["project"],
        group=info["group"],
        job_type=step,
        name=key,
        config=dict(config),
        mode=mode,
        dir=str(folder),
        settings=settings,
    )

    def track(values: Mapping[str, float], step: int | None = None) -> None:
        session.log(dict(values), step=step)

    try:
        yield track
    except BaseException:
        session.finish(exit_code=1)
        raise
    session.finish()


def _silent(values: Mapping[str, float], step: int | None = None) -> None:
    """Track nothing."""
