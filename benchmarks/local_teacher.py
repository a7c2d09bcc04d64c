"""Tokens a second of the teacher in this process against transformers' `generate`, one row at a time and in padded batches.

The same model, prompts, `max_tokens` and greedy draws, the sides in turns in one process; `ours` is the whole client
(`LocalClient`), from requests to replies. `plain` has short prompts of both languages, `shared` a system text and examples that all
prompts begin with. Ratios are of the same round, by the clock and by the seconds of CPU that the process took, which other work on
the machine disturbs less; a round's answers are compared with those of one row at a time.

Run:  python benchmarks/local_teacher.py --model DIR [--rows 32] [--rounds 3] [--max-tokens 64] [--batch 16] [--what plain shared]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SHOTS = 6
Turns = list[dict[str, str]]


def turns(rows: int, what: str) -> list[Turns]:
    """Conversations of the seed data, every second one Chinese."""
    lines = (ROOT / "data/seed/task/prompts_train.jsonl").read_text(encoding="utf-8").splitlines()
    read = [json.loads(line) for line in lines]
    sides = [[row["prompt"] for row in read if row["lang"] == lang] for lang in ("en", "zh")]
    prompts = [prompt for both in zip(*sides, strict=False) for prompt in both][:rows]
    before: Turns = []
    if what == "shared":
        lines = (ROOT / "data/seed/prompts/task/examples.jsonl").read_text(encoding="utf-8").splitlines()
        before = [
            {"role": "system", "content": "You answer customers of a shop. 你是网店的客服。Write one JSON object."}
        ]
        for line in lines[:SHOTS]:
            example = json.loads(line)
            before += [{"role": "user", "content": example["prompt"]}]
            before += [{"role": "assistant", "content": example["answer"]}]
    return [[*before, {"role": "user", "content": prompt}] for prompt in prompts]


class Sides:
    """Each side answers all conversations and gives (text, tokens) of each; the end of turn is no token of an answer."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from steps.lib import models
        from steps.lib.local_teacher import LocalClient
        from steps.lib.teacher_config import LocalTeacher

        self.arguments = arguments
        self.tokenizer = models.load_tokenizer(arguments.model)
        self.model = models.load_model(arguments.model, "float32").eval()
        self.client = LocalClient(
            LocalTeacher(
                kind="local",
                name="ours",
                model=str(arguments.model),
                dtype="float32",
                temperature=0,
                max_tokens=arguments.max_tokens,
                batch_size=arguments.batch,
            )
        )

    def one(self, asked: list[Turns]) -> list[tuple[str, int]]:
        """transformers' generate, one row at a time."""
        return self._generate(asked, 1)

    def padded(self, asked: list[Turns]) -> list[tuple[str, int]]:
        """transformers' generate, batches of near lengths, padded."""
        return self._generate(asked, self.arguments.batch)

    def ours(self, asked: list[Turns]) -> list[tuple[str, int]]:
        """LocalClient."""
        from steps.lib.asking import Outcome, Request, Requests

        make = Requests(self.client, 0).make
        wanted = [make(one, prompt=one[-1]["content"]) for one in asked]
        found: dict[str, Outcome] = {}

        def report(request: Request, outcome: Outcome) -> None:
            found[request.key] = outcome

        asyncio.run(self.client.answer(wanted, frozenset(one.key for one in wanted), report, asyncio.Event()))
        replies = [found[one.key].reply for one in wanted]
        return [(reply.text, reply.tokens_out) for reply in replies if reply]

    def _generate(self, asked: list[Turns], size: int) -> list[tuple[str, int]]:
        from steps.lib import chat, inference

        prompts = [chat.encode_prompt(self.tokenizer, one) for one in asked]
        drawing = inference.Sampling(0.0, 1.0, self.arguments.max_tokens)
        answers = inference.generate(self.model, self.tokenizer, prompts, drawing, seed=0, batch_size=size)
        return [(answer.text, answer.tokens) for answer in answers]


def compared(sides: Sides, what: str, arguments: argparse.Namespace) -> list[str]:
    """Rounds of one kind of prompts, as a table."""
    from steps.lib import chat
    from steps.lib.decoding import shared

    asked = turns(arguments.rows, what)
    prompts = [chat.encode_prompt(sides.tokenizer, one) for one in asked]
    ways: dict[str, Callable[[list[Turns]], list[tuple[str, int]]]]
    ways = {"one row at a time": sides.one, "padded batches": sides.padded, "ours": sides.ours}
    for way in ways.values():  # what is done once: loading, and the first pass of each kind
        way(asked[:1])
    speed: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}  # tokens a second, and a second of CPU
    equal: dict[str, int] = {}
    for number in range(arguments.rounds):
        first: list[tuple[str, int]] = []
        for name, way in ways.items():
            started, worked = time.perf_counter(), time.process_time()
            found = way(asked)
            seconds = time.perf_counter() - started, time.process_time() - worked
            tokens = sum(count for _, count in found)
            speed[name].append((tokens / seconds[0], tokens / seconds[1]))
            first = first or found
            equal[name] = sum(a == b for a, b in zip(found, first, strict=True))
            both = "{:.1f} tokens/s, {:.1f} a second of CPU".format(*speed[name][-1])
            print(f"{what}, round {number + 1}, {name}: {both}", flush=True)
    sizes = f"{min(map(len, prompts))} to {max(map(len, prompts))} tokens, the first {shared(prompts)} in common"
    lines = ["", f"{what}: {len(prompts)} prompts of {sizes}; at most {arguments.max_tokens} tokens an answer", ""]
    lines += ["| side | tokens/s | ratio | tokens a second of CPU | ratio | equal answers |", "| --- |" + " ---: |" * 5]
    base = speed["one row at a time"]
    for name, values in speed.items():
        cells = [name]
        for kind in (0, 1):
            ratio = statistics.median(a[kind] / b[kind] for a, b in zip(values, base, strict=True))
            cells += [f"{statistics.median(one[kind] for one in values):.1f}", f"{ratio:.2f}"]
        lines.append("| " + " | ".join([*cells, f"{equal[name]} of {len(asked)}"]) + " |")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--what", nargs="+", default=["plain", "shared"], choices=["plain", "shared"])
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    sides = Sides(arguments)
    head = (
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {arguments.threads} threads, batches of {arguments.batch}."
    )
    lines = [head] + [line for what in arguments.what for line in compared(sides, what, arguments)]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
