"""The process around a step: logs, progress, seeds, threads, versions."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import logging
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from steps.lib.errors import ArtifactError

T = TypeVar("T")
PROGRESS = "PREFLINE_PROGRESS"
"""Set by the engine for a step: the file in which it tells how far it is."""

PROCESS_SETTINGS = {
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "10000",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Environment of every step process. OpenMP threads that spin without bound ran ten times slower on a busy 2-core machine; some
ten microseconds of it spare a tiny model the kernel's wake-ups. glibc keeps large blocks in place of asking the kernel for fresh
pages at every tensor. Together a dpo update of the tiny model takes two thirds of the time."""

VERSIONS_THAT_MATTER = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "tokenizers",
    "accelerate",
    "datasets",
    "pyarrow",
    "prefline",
)


def environment() -> dict[str, str]:
    """The environment for a step's process: this one's, with thread and telemetry settings where none are set."""
    threads = str(min(os.cpu_count() or 1, 16))
    return {"OMP_NUM_THREADS": threads, **PROCESS_SETTINGS, **os.environ}


def prepare(seed: int) -> None:
    """Set the threads of this process and seed Python; before torch is loaded. Bars of libraries only on a terminal."""
    import random

    quiet = {} if sys.stderr.isatty() else {"TQDM_DISABLE": "1"}
    for name, value in {**environment(), **quiet}.items():
        os.environ.setdefault(name, value)
    random.seed(seed)


def seed_torch(seed: int) -> None:
    """Seed torch and numpy, choose deterministic kernels on the CPU, and keep library noise out of the log."""
    import numpy as np
    import torch

    hush(bars=sys.stderr.isatty())
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if not torch.cuda.is_available():
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # 43 % of a dpo update here


def hush(*, bars: bool) -> None:
    """Keep away what libraries say of themselves.

    Args:
        bars: whether transformers may draw its progress bars.
    """
    from transformers.utils.logging import disable_progress_bar

    # TRL turns on gradient checkpointing by its old name, which transformers 5.23 renames: nothing a user could change.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
    # PEFT 0.21.2 looks for LoRA's rank_pattern in AdaLoRA's, which has other keys and is used a little later.
    warnings.filterwarnings("ignore", message="The following rank_pattern keys", category=RuntimeWarning)
    if not bars:
        disable_progress_bar()


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _LogFile(logging.FileHandler):
    """A log on a full disk loses lines; the step itself will say that the disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def share() -> tuple[int, int]:
    """This process's number, and of how many torchrun started: (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def logger(step: str, file: Path | None) -> logging.Logger:
    """The step's logger: short lines on standard error, JSON lines in ``file``."""
    log = logging.getLogger(f"prefline.{step}")
    log.setLevel(logging.INFO)
    log.propagate = False
    close(log)
    screen = logging.StreamHandler(sys.stderr)
    screen.setFormatter(logging.Formatter(f"{step}: %(message)s"))
    log.addHandler(screen)
    if file is not None:
        lines = _LogFile(file, encoding="utf-8")
        lines.setFormatter(_JsonLines())
        log.addHandler(lines)
    return log


def close(log: logging.Logger) -> None:
    """Flush and take off the logger's handlers."""
    for handler in list(log.handlers):
        handler.close()
        log.removeHandler(handler)


def progress(
    items: Iterable[T], label: str, total: int | None = None, note: Callable[[], str] | None = None
) -> Iterator[T]:
    """Wrap ``items`` in a bar that shows up after two seconds, on a terminal only; ``note`` is asked what stands behind it.

    Without a terminal it is told to the engine that started this process.
    """
    if int(os.environ.get("RANK", "0")):
        yield from items
        return
    if not sys.stderr.isatty():
        for done, item in enumerate(items):
            yield item
            come_far(done + 1, total, label)
        return
    from tqdm.auto import tqdm

    bar, noted = tqdm(items, desc=label, total=total, delay=2.0, leave=False), 0.0
    for item in bar:
        if note and time.monotonic() - noted > 0.5:
            bar.set_postfix_str(note(), refresh=False)
            noted = time.monotonic()
        yield item


def come_far(done: int, total: int | None, unit: str) -> None:
    """Tell the engine that started this process how far the work has come; at most once a second."""
    path = os.environ.get(PROGRESS)
    if not path or not total:
        return
    file = Path(path)
    with suppress(OSError):
        if done < total and file.exists() and time.time() - file.stat().st_mtime < 1:
            return
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps({"done": done, "total": total, "unit": unit}), encoding="utf-8")
        fresh.replace(file)


def storage_error(error: BaseException, folder: Path) -> ArtifactError | None:
    """What to tell a person when writing failed because of the disk; None when ``error`` is of another kind.

    Libraries wrap it: torch and safetensors raise their own classes, of which only the text says why.
    """
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    numbers = {one.errno for one in seen if isinstance(one, OSError)}
    text = " ".join(str(one) for one in seen)
    existing = next((one for one in (folder, *folder.parents) if one.exists()), Path("/"))
    free = shutil.disk_usage(existing).free
    writing = "write" in text or "I/O" in text
    if numbers & {errno.ENOSPC, errno.EDQUOT} or "No space left" in text or (free < 1 << 20 and writing):
        return ArtifactError(
            f"disk of {folder} is full: got {free / 1e6:.1f} MB free, because the step needed more ({error!s:.120}); make room "
            "(prefline gc shows what may go) and run the same command again: it goes on where it stopped"
        )
    refused = any(
        str(existing) in str(one.filename) for one in seen if isinstance(one, PermissionError) and one.filename
    )
    if errno.EROFS in numbers or refused:
        return ArtifactError(
            f"store of {folder} cannot be written: got {error!s:.160}, because it is read-only or belongs to somebody else; "
            "make it writable, or name another store (store=FOLDER)"
        )
    return None


class Timer:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the timer was made."""
        return time.perf_counter() - self._start


def peak_memory() -> dict[str, int]:
    """Bytes at the most: ``host``, resident, of this process; ``workers``, of the largest process that it waited for; ``gpu``,
    allocated by torch, where there is one."""
    kib = {who: resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)}
    found = {"host": kib[resource.RUSAGE_SELF] * 1024, "workers": kib[resource.RUSAGE_CHILDREN] * 1024}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["gpu"] = int(torch.cuda.max_memory_allocated())
    return {name: size for name, size in found.items() if size}


def versions() -> dict[str, str]:
    """Versions of what can change a result."""
    found = {"python": platform.python_version()}
    for name in VERSIONS_THAT_MATTER:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str:
    """Commit of the code that runs ("" outside a checkout), with ``+dirty`` when files were changed."""
    root = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+dirty" if dirty.stdout.strip() else "")
