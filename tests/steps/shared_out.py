"""Run steps in two processes that share the weights out, as torchrun starts them."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training_runs import forked

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
Planned = tuple[str, Any, dict[str, Path], Path]
"""Step, its configuration, its inputs and the folder of its result."""


def launch(folder: Path, planned: Sequence[Planned]) -> None:
    """Run the steps in two processes, one step after the other."""
    for *_, out in planned:
        for name in (".resume", "record"):
            (out / name).mkdir(parents=True)
    in_two(folder, alone, planned)


def in_two(folder: Path, target: Callable[..., None], *arguments: Any) -> None:
    """Call a function in two processes that know of each other as those of torchrun do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    screens = [folder / f"screen-{rank}.txt" for rank in range(2)]
    children = [forked(_share, rank, port, str(one), target, arguments) for rank, one in enumerate(screens)]
    for child in children:
        child.join(300)
    for child in children:
        child.kill()
    assert [child.exitcode for child in children] == [0, 0], "".join(one.read_text()[-4000:] for one in screens)


def _share(rank: int, port: int, screen: str, target: Callable[..., None], arguments: Sequence[Any]) -> None:
    sys.stderr = open(screen, "a", buffering=1)  # noqa: SIM115
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in ranks.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    target(*arguments)


def alone(planned: Sequence[Planned]) -> None:
    """In this process, which holds the weights by itself, or is one of those that share them."""
    from minimal import context

    from steps.lib.step import module_of

    for step, config, inputs, out in planned:
        written = module_of(step).run(config, **inputs, out=out, context=context(out))
        if os.environ.get("RANK", "0") == "0":
            (out / "metrics.json").write_text(json.dumps(written.values))
