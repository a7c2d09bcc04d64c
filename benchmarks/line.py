"""Wall time and peak memory of the main job: the first run, and the second, which is all cached.

Memory is the proportional set size (PSS) of the whole process tree, read every half second.

Run:  python benchmarks/line.py [--profile cpu-tiny]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def children(pid: int) -> list[int]:
    """The process and all its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def pss_mb(pid: int) -> float:
    """Proportional set size of a process tree, in MB."""
    total = 0
    for process in children(pid):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def measure(argv: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """(seconds, peak MB) of a command."""
    started = time.perf_counter()
    peak = 0.0
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            try:
                peak = max(peak, pss_mb(process.pid))
            except (FileNotFoundError, ProcessLookupError):
                break
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{argv} failed with exit code {process.returncode}")
    return time.perf_counter() - started, peak


def main() -> None:
    """Run the line twice in an empty store and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="cpu-tiny")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PREFECT_HOME": f"{folder}/prefect", "OMP_WAIT_POLICY": "passive"}
        command = [
            str(Path(sys.executable).parent / "prefline"),
            "run",
            "--profile",
            arguments.profile,
            f"store={folder}/store",
            f"promote.registry={folder}/registry",
            f"tracking.folder={folder}",
        ]
        for label in ("first run", "second run"):
            seconds, peak = measure(command, environment)
            print(
                f"{label}: {seconds:.1f} s, peak {peak:.0f} MB, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
            )


if __name__ == "__main__":
    main()
