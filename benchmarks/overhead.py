"""What it costs when there is nothing to do: a cached run through Prefect, one from the store alone, a look-up, a digest.

The line is run once first, so that the store has all of it; then fresh processes take turns: the cached line through a running
server, as many empty cached Prefect tasks, and ``prefline run`` with no server configured. Medians are compared.

Run:  python benchmarks/overhead.py [--repeats 7] [--artifacts 10000] [-- --profile cpu-tiny seed=0]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows.line import STEPS
from steps.lib.artifact import MANIFEST, seal

EMPTY = """
import sys
from prefect import flow, task
from prefect.cache_policies import INPUTS

@task(cache_policy=INPUTS, persist_result=True)
def empty(number):
    return number

@flow
def tasks(count):
    return [empty(number, return_state=True).name for number in range(count)]

print(tasks(int(sys.argv[1])))
"""
FIND = """
import json, sys, time
from pathlib import Path
from steps.lib.store import Store
store, taken = Store(Path(sys.argv[1])), []
for key in json.load(open(sys.argv[2])):
    started = time.perf_counter()
    assert store.find(key)
    taken.append(time.perf_counter() - started)
print(sorted(taken)[len(taken) // 2] * 1000)
"""
HASH = """
import sys, time
from pathlib import Path
from steps.lib.digests import digest_file
path = Path(sys.argv[1])
cpu, wall = time.process_time(), time.perf_counter()
digest_file(path, fresh=True)
print(time.process_time() - cpu, time.perf_counter() - wall)
started = time.perf_counter()
digest_file(path)
print((time.perf_counter() - started) * 1000)
"""
HASHED_BYTES = 1 << 30


def seconds(argv: Sequence[str], environment: dict[str, str], cached: int) -> float:
    """Wall time of a process that must show ``cached`` cached steps or tasks."""
    started = time.perf_counter()
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    taken = time.perf_counter() - started
    if done.returncode or done.stdout.count("Cached") != cached:
        raise SystemExit(f"{argv} did not end with {cached} x Cached:\n{done.stdout}\n{done.stderr}")
    return taken


@contextmanager
def server(home: Path) -> Iterator[dict[str, str]]:
    """The environment of a running Prefect server with a database of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_API_URL": url}
    environment |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    argv = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield environment
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def runs(words: Sequence[str], repeats: int, folder: Path) -> dict[str, list[float]]:
    """Kind of run -> seconds of each repeat."""
    prefline = [str(Path(sys.executable).with_name("prefline")), "run", *words]
    script = folder / "empty.py"
    script.write_text(EMPTY)
    alone = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    alone["PREFECT_HOME"] = str(folder / "no-server")
    taken: dict[str, list[float]] = {"line": [], "empty": [], "alone": []}
    with server(folder / "prefect") as through:
        subprocess.run(prefline, env=through, check=True, stdout=subprocess.DEVNULL)
        shown = subprocess.run(prefline, env=through, check=True, capture_output=True, text=True).stdout
        count = shown.count("Cached")
        empty = [sys.executable, str(script), str(count)]
        subprocess.run(empty, env=through, check=True, capture_output=True)
        for _ in range(repeats):
            taken["line"].append(seconds(prefline, through, count))
            taken["empty"].append(seconds(empty, through, count))
            taken["alone"].append(seconds(prefline, alone, count))
    return taken


def look_up(root: Path, count: int, environment: dict[str, str]) -> float:
    """Milliseconds of ``Store.find`` in a store of ``count`` artifacts whose digests are remembered; median of 10 keys."""
    keys = []
    for number in range(count):
        step, name = STEPS[number % len(STEPS)], hashlib.sha256(str(number).encode()).hexdigest()[:20]
        data, made = f"{number}\n".encode() * 100, root / step / name
        made.mkdir(parents=True)
        (made / "rows.txt").write_bytes(data)
        facts = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest = {"step": step, "key": f"{step}/{name}", "digest": name, "inputs": {}, "files": {"rows.txt": facts}}
        (made / MANIFEST).write_text(json.dumps({**manifest, "seal": seal(manifest)}))
        keys.append(manifest["key"])
    time.sleep(0.1)
    everything, some = root / "all.json", root / "some.json"
    everything.write_text(json.dumps(keys))
    some.write_text(json.dumps(random.Random(0).sample(keys, 10)))
    code = [sys.executable, "-c", FIND, str(root)]
    subprocess.run([*code, str(everything)], env=environment, check=True, stdout=subprocess.DEVNULL)
    found = [
        subprocess.run([*code, str(some)], env=environment, check=True, capture_output=True, text=True)
        for _ in range(5)
    ]
    return statistics.median(float(one.stdout) for one in found)


def hashing(folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """(GB/s of one core, milliseconds when the digest is remembered) for a file in the page cache."""
    path = folder / "bytes.bin"
    block = random.Random(0).randbytes(1 << 20)
    with path.open("wb") as file:
        for _ in range(HASHED_BYTES >> 20):
            file.write(block)
    time.sleep(0.1)
    rates, remembered = [], []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", HASH, str(path)], env=environment, check=True, capture_output=True, text=True
        )
        first, second = done.stdout.splitlines()
        rates.append(HASHED_BYTES / 1e9 / float(first.split()[0]))
        remembered.append(float(second))
    return max(rates), statistics.median(remembered)


def machine() -> str:
    """Processor, cores and load."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = names[0].partition(":")[2].strip() if names else platform.machine()
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def main() -> None:
    """Measure everything and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--artifacts", type=int, default=10_000, help="size of the large store")
    parser.add_argument("words", nargs="*", help="words of prefline run, after --")
    arguments = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}, {machine()}, Python {platform.python_version()}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        taken = runs(arguments.words, arguments.repeats, folder)
        own = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        small = look_up(folder / "small", 10, own)
        large = look_up(folder / "large", arguments.artifacts, own)
        rate, remembered = hashing(folder, own)
    middle = {kind: statistics.median(times) for kind, times in taken.items()}
    spread = {kind: f"{min(times):.2f} to {max(times):.2f}" for kind, times in taken.items()}
    over = middle["line"] - middle["empty"]
    print("| what | median | spread | goal |")
    print("|---|---|---|---|")
    print(f"| cached line through Prefect, fresh process | {middle['line']:.2f} s | {spread['line']} | |")
    print(f"| as many empty cached Prefect tasks | {middle['empty']:.2f} s | {spread['empty']} | |")
    print(f"| the line above the empty tasks | {over:.2f} s | | at most 1.5 s |")
    print(f"| prefline run from the store alone | {middle['alone']:.2f} s | {spread['alone']} | under 3 s |")
    print(f"| look-up among 10 artifacts | {small:.2f} ms | | |")
    print(f"| look-up among {arguments.artifacts} artifacts | {large:.2f} ms | | as among 10 |")
    print(f"| hashing, one core | {rate:.2f} GB/s | | at least 1 GB/s |")
    print(f"| digest of an unchanged file of 1.07 GB | {remembered:.2f} ms | | not read again |")


if __name__ == "__main__":
    main()
