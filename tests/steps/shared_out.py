"""Run steps in two processes that share the weights out; a program for torchrun.

    python -m torch.distributed.run --standalone --nproc-per-node=2 tests/steps/shared_out.py PLAN

PLAN is a JSON file: a list of {step, config, inputs, out}. Several steps in one launch, since starting takes longer than training.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
Planned = tuple[str, Any, dict[str, Path], Path]
"""Step, its configuration, its inputs and the folder of its result."""


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def launch(folder: Path, planned: Sequence[Planned]) -> None:
    """Run the steps in two processes."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "plan.json"
    plan.write_text(
        json.dumps(
            [
                {
                    "step": step,
                    "config": config.model_dump(mode="json"),
                    "inputs": {name: str(path) for name, path in inputs.items()},
                    "out": str(out),
                }
                for step, config, inputs, out in planned
            ]
        )
    )
    for *_, out in planned:
        for name in (".resume", "record"):
            (out / name).mkdir(parents=True)
    done = subprocess.run(
        [*TORCHRUN, str(Path(__file__)), str(plan)], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-8000:]


def alone(planned: Sequence[Planned]) -> None:
    """The same in this process, which holds the weights by itself."""
    from minimal import context

    from steps.lib.step import module_of

    for step, config, inputs, out in planned:
        written = module_of(step).run(config, **inputs, out=out, context=context(out))
        (out / "metrics.json").write_text(json.dumps(written.values))


def main() -> None:
    from steps.lib.step import config_class, module_of

    planned: list[Planned] = []
    for one in json.loads(Path(sys.argv[1]).read_text()):
        config = config_class(module_of(one["step"])).model_validate(one["config"])
        inputs = {name: Path(path) for name, path in one["inputs"].items()}
        planned.append((one["step"], config, inputs, Path(one["out"])))
    for one in planned:
        if os.environ["RANK"] == "0":
            alone([one])
        else:
            from minimal import context

            module_of(one[0]).run(one[1], **one[2], out=one[3], context=context(one[3]))


if __name__ == "__main__":
    main()
