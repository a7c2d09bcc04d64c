"""Mirrors of the registry: copies of a version elsewhere, made after the alias moved. They never hold anything up.

Each mirror is a process of its own with a time limit, so one that hangs, crashes or prints cannot touch the run. What came of it is
returned, logged, and kept in ``<root>/<name>/mirrors/<version>.json``; the same version with the same aliases is sent once.
Keys come from the environment (WANDB_API_KEY, HF_TOKEN, MLFLOW_TRACKING_TOKEN ...), never from a configuration.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steps.lib.config import Neutral, Section
from steps.lib.digests import digest_text
from steps.lib.durable import write
from steps.lib.registry_versions import Version
from steps.lib.tickets import mark

RESULTS = "mirrors"
SECRETS = re.compile(r"(_API_KEY|_TOKEN|_PASSWORD|_SECRET\w*)$")
"""Names of variables whose values are in no message."""


class FolderMirror(Section):
    """A copy in a folder: a mounted share, or a drive."""

    folder: Annotated[Path, Neutral]
    """Where ``<name>/<version>/`` is written."""


class WandbMirror(Section):
    """An artifact of type model in Weights & Biases."""

    project: Annotated[str, Neutral] = "prefline"
    """Name of the project."""
    mode: Annotated[Literal["auto", "online", "offline"], Neutral] = "auto"
    """auto: online with a key, offline without one (``wandb sync`` sends it later)."""
    folder: Annotated[Path, Neutral] = Path("data/artifacts")
    """Folder that gets the ``wandb/`` folder of the run."""


class MlflowMirror(Section):
    """A model version in MLflow; needs the package mlflow or mlflow-skinny."""

    tracking_uri: Annotated[str, Neutral]
    """Address of the server; its aliases follow ours."""


class HubMirror(Section):
    """A commit with tags in a repository of the hub."""

    repo: Annotated[str, Neutral]
    """Repository, such as org/name; made when it is not there."""
    private: Annotated[bool, Neutral] = True
    """Whether a new repository is private."""


class MirrorsConfig(Section):
    """Where copies of each new version go. Nothing here changes a result, and none of it can stop a run."""

    folder: Annotated[FolderMirror | None, Neutral] = None
    """A copy in a folder; null: none."""
    wandb: Annotated[WandbMirror | None, Neutral] = None
    """Weights & Biases; null: none."""
    mlflow: Annotated[MlflowMirror | None, Neutral] = None
    """MLflow; null: none."""
    hub: Annotated[HubMirror | None, Neutral] = None
    """The hub; null: none."""
    max_seconds: Annotated[float, Neutral] = Field(900.0, gt=0)
    """Seconds that one mirror may take."""


class MirrorResult(BaseModel):
    """What came of one mirror."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    ok: bool
    place: str = ""
    """Where the copy is."""
    problem: str = ""
    """Why there is none."""
    aliases: tuple[str, ...] = ()
    seconds: float = 0.0
    settings: str = ""
    """Digest of the mirror's configuration: another place is another mirror."""


def send(config: MirrorsConfig, version: Version, aliases: Sequence[str], log: logging.Logger) -> list[MirrorResult]:
    """Copy a version to every mirror. Never raises; what failed is in the results, and is tried again the next time.

    Args:
        config: the mirrors.
        version: what is copied; its base is not.
        aliases: aliases that the version has now.
        log: told of each result.

    Returns:
        One result a mirror, those that were sent before with the same aliases as they were then.
    """
    found: list[MirrorResult] = []
    before = results(version)
    for kind in ("folder", "wandb", "mlflow", "hub"):
        settings = getattr(config, kind)
        if settings is None:
            continue
        facts = settings.model_dump(mode="json")
        known = digest_text(json.dumps(facts, sort_keys=True))
        past = before.get(kind)
        if past and past.ok and (past.settings, past.aliases) == (known, tuple(aliases)):
            found.append(past)
            continue
        started = time.monotonic()
        try:
            ok, place = _run(kind, facts, version, aliases, config.max_seconds)
        except Exception as error:  # whatever it is, the version is registered and the alias moved
            ok, place = False, f"{type(error).__name__}: {error}"
        result = MirrorResult(
            kind=kind,
            ok=ok,
            place=_shown(place) if ok else "",
            problem="" if ok else _shown(place),
            aliases=tuple(aliases),
            seconds=round(time.monotonic() - started, 1),
            settings=known,
        )
        found.append(result)
        if ok:
            log.info("mirror %s has %s at %s", kind, version.name, result.place)
        else:
            log.warning("mirror %s has no %s: got %s; the next run tries again", kind, version.name, result.problem)
    _keep(version, {**before, **{one.kind: one for one in found}}, log)
    return found


def results(version: Version) -> dict[str, MirrorResult]:
    """Kind -> what came of each mirror of a version the last time."""
    try:
        kept = json.loads(_file(version).read_text(encoding="utf-8"))
        return {kind: MirrorResult.model_validate(facts) for kind, facts in kept.items()}
    except (OSError, ValueError, AttributeError, ValidationError):
        return {}


def _run(kind: str, facts: dict[str, Any], version: Version, aliases: Sequence[str], limit: float) -> tuple[bool, str]:
    """Whether a mirror's process made its copy, and where, or why not."""
    with tempfile.TemporaryDirectory(prefix="prefline-mirror-") as folder:
        told, said = Path(folder) / "told.json", Path(folder) / "said.txt"
        payload = {
            "kind": kind,
            "settings": facts,
            "folder": str(version.folder.resolve()),
            "model": version.model,
            "version": version.name,
            "digest": version.digest,
            "facts": {name: str(value) for name, value in version.facts.items()},
            "aliases": list(aliases),
            "told": str(told),
        }
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        with said.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "steps.lib.mirror_doors"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
            try:
                process.communicate(json.dumps(payload).encode(), timeout=limit)
            except subprocess.TimeoutExpired:
                return False, f"no end after {limit:g} seconds"
            finally:
                _end(process)
        if told.exists():
            answer = json.loads(told.read_text(encoding="utf-8"))
            return bool(answer["ok"]), str(answer["said"])
        return False, f"exit code {process.returncode}: {said.read_text(errors='replace').strip()[-300:]}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a mirror's process, and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _shown(text: str) -> str:
    """A message without keys, in one line."""
    for name, value in os.environ.items():
        if SECRETS.search(name) and len(value) > 5:
            text = text.replace(value, f"<{name}>")
    text = re.sub(r"://[^/@\s]+@", "://", text)
    return " ".join(text.split())[:400]


def _file(version: Version) -> Path:
    return version.folder.parent.parent / RESULTS / f"{version.name}.json"


def _keep(version: Version, found: dict[str, MirrorResult], log: logging.Logger) -> None:
    if not found:
        return
    path = _file(version)
    try:
        path.parent.mkdir(exist_ok=True)
        draft = path.with_name(f".{mark()}.tmp")
        write(draft, json.dumps({kind: one.model_dump() for kind, one in found.items()}, indent=1) + "\n")
        os.replace(draft, path)
    except OSError as error:
        log.warning(
            "results of the mirrors were not kept in %s: got %s; they are sent again the next time", path, error
        )
