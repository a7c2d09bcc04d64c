"""Teachers over HTTP: requests a second against the bare client library, memory by rows, going on with a finished ledger.

A server in a process of its own answers every request after 50 ms. Turn by turn the client library alone (openai over aiohttp,
prompts rendered beforehand, answers thrown away) and the whole step (reading, rendering, ledger, parsing, schema check, Parquet)
ask it the same questions, 64 at a time; the ratio of each turn is taken. The library alone is measured twice: by its
``chat.completions.create``, and by its plain ``post``; the step calls by aiohttp itself. Memory and going on are measured in fresh
processes, with a scripted teacher's answers. CPU time tells more than the clock where others use the machine, too.

Run:  python benchmarks/generate.py [--requests 3000] [--rounds 5] [--rows 1000,20000,200000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DELAY = 0.05
CONCURRENCY = 64
PROMPT_FILES = ("plain", "aftersales")
"""Nothing but the prompt; four examples and a JSON Schema."""
REPLY = "Your order is on its way and should reach you within three working days; the number above follows it. " * 3


def serve() -> None:
    """A server that answers after ``DELAY``, and says its port first."""
    from aiohttp import web

    answer = json.dumps({"intent": "delivery", "order_number": "A12345", "reply": REPLY})
    said = {"role": "assistant", "content": answer}
    body = json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": "bench",
            "choices": [{"index": 0, "message": said, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 700, "completion_tokens": 90, "total_tokens": 790},
        }
    ).encode()

    async def chat(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(DELAY)
        return web.Response(body=body, content_type="application/json")

    async def start() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(start())


@contextmanager
def server() -> Iterator[str]:
    """The address of a running server."""
    process = subprocess.Popen([sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
    finally:
        process.terminate()
        process.wait()


def write_prompts(path: Path, count: int) -> None:
    """So many different prompts."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = f"Where is my order A{number % 90000 + 10000}? I ordered it {number} hours ago and it has not arrived yet."
            file.write(json.dumps({"id": f"p{number}", "lang": "en", "prompt": text, "intent": "delivery"}) + "\n")


def settings(prompts: Path, prompt_file: str, url: str = "") -> dict[str, Any]:
    """Of the step: with the server, or with a scripted teacher."""
    http = {
        "kind": "http",
        "name": "bench",
        "endpoint": "bench",
        "base_url": url,
        "model": "bench",
        "concurrency": CONCURRENCY,
    }
    scripted = {"kind": "scripted", "name": "scripted-aftersales", "path": str(ROOT / "data/seed/task/teacher.yaml")}
    return {
        "prompts": [{"name": "bench", "path": str(prompts)}],
        "prompt_file": str(ROOT / f"configs/prompts/{prompt_file}.yaml"),
        "teachers": [http if url else scripted],
    }


@dataclass(frozen=True)
class Speed:
    """Of one side in one turn."""

    rate: float
    """Requests a second."""
    cpu: float
    """Milliseconds of CPU time a request."""


def bare(url: str, prompts: Path, prompt_file: str, *, plain: bool) -> Speed:
    """The client library alone: by its ``post``, or by its ``chat.completions.create``."""
    import openai

    from steps.lib.opened import open_source
    from steps.lib.prompts import PromptFile
    from steps.lib.rows import Prompt
    from steps.lib.sources import Source

    file = PromptFile.read(ROOT / f"configs/prompts/{prompt_file}.yaml")
    rows = [row for row in open_source(Source(name="bench", path=prompts), Prompt) if isinstance(row, Prompt)]
    turns = [file.render(row, 0).messages for row in rows]

    async def ask() -> Speed:
        todo = iter(turns)
        async with openai.DefaultAioHttpClient(timeout=300) as http:
            client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=http)

            async def work() -> None:
                for messages in todo:
                    body: Any = {
                        "model": "bench",
                        "messages": messages,
                        "temperature": 0.7,
                        "top_p": 1.0,
                        "max_tokens": 1024,
                        "seed": 1,
                    }
                    if plain:
                        await client.post("/chat/completions", cast_to=object, body=body)
                    else:
                        await client.chat.completions.create(**body)

            cpu, started = time.process_time(), time.perf_counter()
            await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
            return _speed(len(turns), cpu, started)

    return asyncio.run(ask())


def _speed(count: int, cpu: float, started: float) -> Speed:
    taken = time.process_time() - cpu, time.perf_counter() - started
    return Speed(count / taken[1], taken[0] / count * 1000)


def whole(url: str, prompts: Path, prompt_file: str, folder: Path) -> Speed:
    """The whole step, in a folder without any answer."""
    from steps import generate
    from steps.lib.step import Context

    shutil.rmtree(folder, ignore_errors=True)
    (folder / ".resume").mkdir(parents=True)
    log = logging.getLogger("benchmark")
    context = Context(log, 0, folder / ".resume", lambda items, *_: iter(items), lambda values, step=None: None)
    config = generate.GenerateConfig.model_validate(settings(prompts, prompt_file, url))
    cpu, started = time.process_time(), time.perf_counter()
    metrics = generate.run(config, out=folder, context=context)
    speed = _speed(int(metrics.values["answer/asked"]), cpu, started)
    assert metrics.values["bench/answered"] == metrics.values["bench/candidates"] == metrics.values["answer/asked"]
    return speed


def built(prompts: Path, prompt_file: str, target: Path, *, cut: bool) -> None:
    """Build the step in this process; print seconds without imports, peak memory in MB, and what was asked.

    Args:
        prompts, prompt_file: of the step.
        target: folder of the artifact.
        cut: end right before publishing, as a kill does.
    """
    import openai  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    from steps import generate, lib
    from steps.lib.step import Spec, build

    cpu, started = time.process_time(), time.perf_counter()
    publish = lib.step.publish

    def measured(work: Path, target: Path, facts: Any, **more: Any) -> Any:
        seconds, used = time.perf_counter() - started, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        asked = facts["metrics"]["scripted-aftersales/answered"]
        print(json.dumps({"seconds": seconds, "cpu": used, "peak": peak, "asked": asked}), flush=True)
        if cut:
            os._exit(0)
        return publish(work, target, facts, **more)

    lib.step.publish = measured
    build(Spec(generate, generate.GenerateConfig.model_validate(settings(prompts, prompt_file)), {}, 0), target)


def in_a_process(prompts: Path, prompt_file: str, target: Path, how: str) -> dict[str, float]:
    """``built`` (or ``cut``) in a fresh process, with the wall time of all of it."""
    started = time.perf_counter()
    argv = [sys.executable, __file__, how, str(prompts), prompt_file, str(target)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(
        argv, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    return {**json.loads(done.stdout.splitlines()[-1]), "wall": time.perf_counter() - started}


def machine() -> str:
    """Processor, cores and load."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = names[0].partition(":")[2].strip() if names else platform.machine()
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


SIDES = ("library, create", "library, post", "the whole step")


def speed(folder: Path, requests: int, rounds: int) -> None:
    """Print requests a second, side by side."""
    print("| prompt file | side | requests/s | CPU, ms a request | step / side: requests/s | CPU | of all turns |")
    print("|---|---|---:|---:|---:|---:|---|")
    prompts = folder / "prompts.jsonl"
    write_prompts(prompts, requests)
    with server() as url:
        bare(url, prompts, "plain", plain=True)  # imports, first connections
        for prompt_file in PROMPT_FILES:
            turns: list[tuple[Speed, Speed, Speed]] = []
            for number in range(rounds):
                made: dict[str, Speed] = {}
                for side in SIDES if number % 2 == 0 else reversed(SIDES):
                    if side == SIDES[2]:
                        made[side] = whole(url, prompts, prompt_file, folder / "step" / str(number) / ".partial")
                        shutil.rmtree(folder / "step")
                    else:
                        made[side] = bare(url, prompts, prompt_file, plain=side == SIDES[1])
                turns.append((made[SIDES[0]], made[SIDES[1]], made[SIDES[2]]))
            for place, side in enumerate(SIDES):
                rates = sorted(turn[2].rate / turn[place].rate for turn in turns)
                cpu = statistics.median(turn[place].cpu / turn[2].cpu for turn in turns)
                cells = (
                    prompt_file,
                    side,
                    f"{statistics.median(turn[place].rate for turn in turns):.0f}",
                    f"{statistics.median(turn[place].cpu for turn in turns):.2f}",
                    f"{statistics.median(rates):.2f}",
                    f"{cpu:.2f}",
                    ", ".join(f"{rate:.2f}" for rate in rates),
                )
                print(f"| {' | '.join(cells)} |", flush=True)


def memory(folder: Path, counts: list[int]) -> None:
    """Print peak memory by rows, and the time to go on with a finished ledger: with the finished parts beside it, and without."""
    print("| prompt file | rows | what | seconds | of CPU | with the start of Python | peak memory, MB |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for prompt_file in PROMPT_FILES:
        for count in counts:
            prompts = folder / f"prompts-{count}.jsonl"
            write_prompts(prompts, count)
            target = folder / f"{prompt_file}-{count}" / "a"
            parts = target.parent / ".a.partial" / ".resume" / "finished.sqlite"
            asked = in_a_process(prompts, prompt_file, target, "cut")
            behind = in_a_process(prompts, prompt_file, target, "cut")
            parts.unlink()
            again = in_a_process(prompts, prompt_file, target, "built")
            assert asked["asked"] == count and behind["asked"] == again["asked"] == 0
            for what, one in (
                ("asked, scripted teacher", asked),
                ("going on", behind),
                ("from the ledger alone", again),
            ):
                cells = (
                    prompt_file,
                    f"{count:,}",
                    what,
                    f"{one['seconds']:.1f}",
                    f"{one['cpu']:.1f}",
                    f"{one['wall']:.1f}",
                    f"{one['peak']:.0f}",
                )
                print(f"| {' | '.join(cells)} |", flush=True)
            shutil.rmtree(target.parent)


def main() -> None:
    """Measure and print as Markdown."""
    if sys.argv[1:2] == ["serve"]:
        serve()
        return
    if sys.argv[1:2] in (["built"], ["cut"]):
        built(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), cut=sys.argv[1] == "cut")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000, help="of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns; 0: none")
    parser.add_argument("--rows", default="1000,20000,200000", help="sizes for memory; empty: none")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    print(f"{time.strftime('%Y-%m-%d')}, {machine()}, Python {platform.python_version()}, {DELAY * 1000:.0f} ms answers, "
          f"{CONCURRENCY} in flight\n")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        if arguments.rounds:
            speed(Path(name), arguments.requests, arguments.rounds)
            print()
        if arguments.rows:
            memory(Path(name), [int(count) for count in arguments.rows.split(",")])


if __name__ == "__main__":
    main()
