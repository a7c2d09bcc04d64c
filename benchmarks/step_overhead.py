"""What a training step costs beside its updates: starting the process, loading, encoding, checks, saving, comparing what was saved.

Runs base, clean, pretrain, sft and dpo on a checkpoint and on real rows in a store of its own, through the engine (no Prefect), and
compares each training step's wall time, the start of its process included, with the time inside its updates.

Run:  python benchmarks/step_overhead.py --model DIR --data DIR [--updates 60] [--page docs/overhead-training.md]
      DIR of the data: alpaca_en_demo.json, alpaca_zh_demo.json, dpo_en_demo.json, dpo_zh_demo.json, wiki_demo.txt, c4_demo.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from flows.engine import Engine, Outcome, Plan  # noqa: E402
from flows.line import AlignConfig  # noqa: E402
from steps.lib.config import layers_of, load  # noqa: E402

TRAINED = ("pretrain", "sft", "dpo")


def recipe(model: Path, data: Path, folder: Path, updates: int) -> Path:
    """A recipe for these files, with so many updates a step."""
    train = {"batch_size": 4, "accumulation": 2, "max_updates": updates, "max_length": 512, "save_every": 20}
    most = {"chats": 8 * updates, "pairs": 2 * updates, "domain": 200, "general": 200}  # rows of a file
    files = {
        "chats": ("alpaca_en_demo.json", "alpaca_zh_demo.json"),
        "pairs": ("dpo_en_demo.json", "dpo_zh_demo.json"),
        "domain": ("wiki_demo.txt",),
        "general": ("c4_demo.jsonl",),
    }
    sources = {
        kind: [{"name": name, "path": str(data / name), "limit": most[kind]} for name in names]
        for kind, names in files.items()
    }
    held = {"domain": [], "general": [], "prompts": [], "pairs": [], "share": 0.1}
    values: dict[str, Any] = {
        "store": str(folder / "store"),
        "generate": None,
        "clean": {"task": None, **sources, "heldout": held},
        "base": {"kind": "checkpoint", "path": str(model)},
        "pretrain": {"method": "lora", "train": {**train, "max_updates": max(2, updates // 3)}},
        "sft": {"train": train},
        "pairs": {"prompts": 0},
        "dpo": {"train": {**train, "lr": 5e-5, "batch_size": 2, "max_updates": max(2, updates // 3)}},
        "promote": None,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
    return path


def line(one: Outcome) -> str:
    """A row of the table."""
    metrics = one.artifact.manifest["metrics"]
    beside = one.seconds - metrics["train_seconds"]
    cells = [one.step, f"{metrics['updates']}", f"{one.seconds:.0f}", f"{metrics['train_seconds']:.0f}"]
    return "| " + " | ".join([*cells, f"{beside:.1f}", f"{100 * beside / one.seconds:.1f} %"]) + " |"


def main() -> None:
    """Measure and print; write the page where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--scratch", default=tempfile.gettempdir())
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.scratch))
    own = recipe(arguments.model.resolve(), arguments.data.resolve(), folder, arguments.updates)
    engine = Engine(load(AlignConfig, layers_of("cpu-small", [own]), ()).value, Plan(until="dpo"))
    engine.run()
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, batches of 8 sequences (dpo: 4 pairs).",
        "",
        "| step | updates | wall time, s | inside updates, s | beside them, s | share |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(line(one) for one in engine.outcomes if one.step in TRAINED),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.page:
        arguments.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
