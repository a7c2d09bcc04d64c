"""Speed and memory of sft and dpo against TRL: the same rows, model, adapter, updates and machine, side by side in the same run.

Each side is a process of its own, and the sides take turns. ``trl`` is TRL without a word of configuration; ``grouped``,
``packed`` and ``best`` have the best settings that we found for it on this machine (no activation checkpointing; for sft packing or
grouping by length, for dpo log-probabilities of the reference computed once). ``-tuned`` is the same in a process with prefline's
settings of glibc and OpenMP, which are no settings of TRL. Tokens are those of the rows, padding not counted; pairs a second have
the reference's part in them. The bound is the rate of a large float32 matrix product, measured between the sides, over the 4 N
FLOP that LoRA needs a token.

Run:  python benchmarks/train_speed.py --model DIR --data DIR [--what sft dpo curve lengths compiled] [--repeats 3] [--page FILE]
      DIR of the data: alpaca_en_demo.json, alpaca_zh_demo.json, dpo_en_demo.json, dpo_zh_demo.json (LLaMA-Factory's data folder)
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from steps.lib import runtime  # noqa: E402

SIDES = {
    "sft": ("trl", "trl-grouped", "trl-packed", "trl-packed-tuned", "ours"),
    "dpo": ("trl", "trl-best", "trl-best-tuned", "ours"),
}
LENGTH = 512


# --- one side, in a process of its own -------------------------------------------------------------------------------


def chats(folder: Path, tokenizer: Any, count: int) -> list[dict[str, Any]]:
    """Rows of the two alpaca files in turn, of at most 512 tokens."""
    from steps.lib import chat

    files = [json.loads((folder / f"alpaca_{lang}_demo.json").read_text()) for lang in ("en", "zh")]
    found: list[dict[str, Any]] = []
    for row in (row for both in zip(*files, strict=False) for row in both):
        ask = "\n".join(part for part in (row["instruction"], row["input"]) if part)
        if not ask.strip() or not row["output"].strip():
            continue
        turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": row["output"]}]
        encoded = chat.encode(tokenizer, turns)
        if len(encoded.input_ids) <= LENGTH:
            found.append({"input_ids": encoded.input_ids, "labels": encoded.labels})
    return found[:count]


def pairs(folder: Path, tokenizer: Any, count: int) -> list[dict[str, Any]]:
    """Pairs of the two dpo files in turn, of at most 512 tokens a side."""
    from steps.lib import chat

    files = [json.loads((folder / f"dpo_{lang}_demo.json").read_text()) for lang in ("en", "zh")]
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    found: list[dict[str, Any]] = []
    for row in (row for both in zip(*files, strict=False) for row in both):
        prompt = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
        sides = [[{"role": "assistant", "content": row[side]["value"]}] for side in ("chosen", "rejected")]
        start, chosen = chat.encode_pair(tokenizer, prompt, sides[0])
        _, rejected = chat.encode_pair(tokenizer, prompt, sides[1])
        if len(start) + max(len(chosen), len(rejected)) <= LENGTH and chosen != rejected:
            found.append({"prompt_ids": start, "chosen_ids": chosen, "rejected_ids": rejected})
    return found[:count]


def some(draw: random.Random, length: int) -> list[int]:
    """Random tokens."""
    return [draw.randrange(100, 40_000) for _ in range(length)]


def made_chats(prompt: int, answer: int, count: int) -> list[dict[str, Any]]:
    """Random tokens, for the costs of lengths."""
    draw = random.Random(0)
    rows = [some(draw, prompt + answer) for _ in range(count)]
    return [{"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]} for ids in rows]


def made_pairs(prompt: int, answer: int, count: int) -> list[dict[str, Any]]:
    """The same, for the curve over lengths."""
    draw = random.Random(0)
    return [
        {
            name: some(draw, size)
            for name, size in (("prompt_ids", prompt), ("chosen_ids", answer), ("rejected_ids", answer))
        }
        for _ in range(count)
    ]


def adapted(folder: str, out: Path) -> Any:
    """The model with LoRA of rank 16 on all linear layers; B is not zero, as after sft."""
    import torch
    from peft import PeftModel

    from steps.lib import adapters, models

    torch.manual_seed(0)
    model = adapters.with_lora(models.load_model(folder, "float32"), adapters.LoraSettings(rank=16, alpha=32))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=1e-3)
    model.save_pretrained(out / "policy")
    return PeftModel.from_pretrained(models.load_model(folder, "float32"), out / "policy", is_trainable=True)


def side(arguments: argparse.Namespace) -> None:
    """Train once and print what it took."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from transformers import logging as transformers_logging

    from steps.lib import models, runtime

    transformers_logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    if arguments.side.startswith("ours"):
        runtime.seed_torch(0)
    tokenizer = models.load_tokenizer(arguments.model)
    folder = Path(tempfile.mkdtemp(dir=arguments.scratch))
    model = adapted(arguments.model, folder)
    who, kind = arguments.side.removesuffix("-tuned"), arguments.kind
    if kind == "sft":
        made = arguments.lengths and made_chats(*arguments.lengths, arguments.rows)
        rows = made or chats(Path(arguments.data), tokenizer, arguments.rows)
        tokens = sum(len(row["input_ids"]) for row in rows)
        trainer = ours_sft(model, rows, tokenizer, arguments, folder) if who.startswith("ours") else None
        if trainer is None:
            from trl import SFTConfig, SFTTrainer

            longest = max(LENGTH, *(len(row["input_ids"]) for row in rows))
            more: dict[str, Any] = {"max_length": longest, "packing": False}
            if who != "trl":
                more["gradient_checkpointing"] = False
            if who == "trl-grouped":
                more["train_sampling_strategy"] = "group_by_length"
            if who == "trl-packed":
                more |= {"packing": True, "packing_strategy": "bfd"}
            batch = 1 if who == "trl-packed" else arguments.batch
            trainer = SFTTrainer(
                model=model,
                args=SFTConfig(**common(folder, batch), **more),
                train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer,
            )
    else:
        lengths = arguments.lengths
        rows = (
            made_pairs(*lengths, arguments.rows) if lengths else pairs(Path(arguments.data), tokenizer, arguments.rows)
        )
        tokens = sum(2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows)
        trainer = dpo(model, rows, tokenizer, arguments, folder)
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter() - started)

    trainer.add_callback(Clock())
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    facts = {
        "seconds": seconds,
        "ends": ends,
        "rows": len(rows),
        "tokens": tokens,
        "updates": trainer.state.global_step,
        "losses": losses,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    print("RESULT " + json.dumps(facts))


def common(folder: Path, batch: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": batch,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def ours_sft(
    model: Any, rows: list[dict[str, Any]], tokenizer: Any, arguments: argparse.Namespace, folder: Path
) -> Any:
    from steps.lib import packed
    from steps.lib.step import Context
    from steps.lib.training import TrainSettings

    settings = TrainSettings(
        lr=1e-4,
        batch_size=arguments.batch,
        warmup=0,
        scheduler="constant_with_warmup",
        max_length=LENGTH,
        tokens_per_pass=arguments.tokens_per_pass,
        save_every=10_000,
        compiled=arguments.side == "ours-compiled",
    )
    (folder / ".resume").mkdir()
    context = Context(
        log=logging.getLogger("benchmark"),
        seed=0,
        resume=folder / ".resume",
        progress=lambda items, *_: items,
        track=lambda *_: None,
    )
    return packed.trainer(
        model, [packed.row([(r["input_ids"], r["labels"])]) for r in rows], tokenizer, settings, context
    )


def dpo(model: Any, rows: list[dict[str, Any]], tokenizer: Any, arguments: argparse.Namespace, folder: Path) -> Any:
    """TRL's trainer for all sides: ours has packed rows with the prompt once under it, and reference values in its rows."""
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from steps.lib import packed
    from steps.lib.sharing import Shared

    ours = arguments.side == "ours"

    class Pairs(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
            return super().compute_ref_log_probs(self.shared(model), inputs)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(self.shared(model), inputs, *args, **kwargs)

        def shared(self, model: Any) -> Any:
            return Shared(model, whole=self.model, pad=self.data_collator.pad_token_id) if ours else model

    longest = max(len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in rows)
    more: dict[str, Any] = {"max_length": max(LENGTH, longest)}
    if arguments.side != "trl":
        more |= {"gradient_checkpointing": False, "precompute_ref_log_probs": True}
        more["precompute_ref_batch_size"] = arguments.batch
    torch.manual_seed(0)
    return Pairs(
        model=packed.prepared(model) if ours else model,
        args=DPOConfig(**common(folder, arguments.batch), **more),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


# --- all sides, in turns ---------------------------------------------------------------------------------------------


def product_rate(threads: int) -> float:
    """GFLOP/s of a float32 matrix product of 2048."""
    code = (
        f"import torch, time; torch.set_num_threads({threads}); a = torch.randn(2048, 2048); a @ a; t = time.perf_counter();"
        "[a @ a for _ in range(10)]; print(10 * 2 * 2048 ** 3 / (time.perf_counter() - t) / 1e9)"
    )
    return float(subprocess.check_output([sys.executable, "-c", code], text=True))


def run(
    arguments: argparse.Namespace, kind: str, who: str, rows: int, lengths: tuple[int, int] | None = None
) -> dict[str, Any]:
    """One side, once."""
    words = [sys.executable, __file__, "--side", who, "--kind", kind, "--rows", str(rows)]
    for name in ("model", "data", "batch", "threads", "scratch", "tokens_per_pass"):
        words += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    if lengths:
        words += ["--lengths", *map(str, lengths)]
    settings = {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    if who.startswith("ours") or who.endswith("-tuned"):  # settings that every step's process has
        settings |= runtime.PROCESS_SETTINGS
    done = subprocess.run(words, env={**os.environ, **settings}, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{kind} {who} failed:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(lines[0][7:])
    return found


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument(
        "--what", nargs="+", default=["sft", "dpo"], choices=["sft", "dpo", "curve", "lengths", "compiled"]
    )
    parser.add_argument("--only", nargs="+", help="sides")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rows", type=int, default=0, help="rows a run; 0: 24 chats, 8 pairs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--tokens-per-pass", type=int, default=4096)
    parser.add_argument("--scratch", default=tempfile.gettempdir())
    parser.add_argument("--page", type=Path)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--lengths", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side(arguments)
        return
    lines: list[str] = [
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {arguments.threads} threads, batch {arguments.batch}."
    ]
    for kind in (kind for kind in arguments.what if kind in SIDES):
        lines += compared(arguments, kind, arguments.rows or {"sft": 24, "dpo": 8}[kind])
    if "curve" in arguments.what:
        lines += curve(arguments)
    if "lengths" in arguments.what:
        lines += lengths(arguments)
    if "compiled" in arguments.what:
        lines += compiled(arguments)
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.page:
        arguments.page.write_text(text, encoding="utf-8")


def compared(arguments: argparse.Namespace, kind: str, rows: int) -> list[str]:
    """A table of all sides; ratios are medians over the rounds, each against the same round's other sides."""
    sides = [who for who in SIDES[kind] if not arguments.only or who in arguments.only]
    found: dict[str, list[dict[str, Any]]] = {who: [] for who in sides}
    rates: list[float] = []
    for _ in range(arguments.repeats):
        for who in sides:
            rates.append(product_rate(arguments.threads))
            found[who].append(run(arguments, kind, who, rows))
            print(
                kind,
                who,
                {k: v for k, v in found[who][-1].items() if k != "losses"},
                found[who][-1]["losses"][:3],
                flush=True,
            )
    unit, count = ("tokens/s", "tokens") if kind == "sft" else ("pairs/s", "rows")
    speed = {who: [one[count] / one["seconds"] for one in runs] for who, runs in found.items()}
    bound = statistics.median(rates) * 1e9 / (4 * found[sides[0]][0]["parameters"])
    head = [
        "side",
        unit,
        *(f"against {who}" for who in sides if who != "ours"),
        "of the bound",
        "peak MB",
        "updates",
        "first loss",
    ]
    lines = ["", f"{kind}: {rows} rows, {found[sides[0]][0]['tokens']} tokens", "", "| " + " | ".join(head) + " |"]
    lines.append("| --- |" + " ---: |" * (len(head) - 1))
    for who in sides:
        tokens = statistics.median(one["tokens"] / one["seconds"] for one in found[who])
        ratios = [
            f"{statistics.median(a / b for a, b in zip(speed[who], speed[other], strict=True)):.2f}"
            for other in sides
            if other != "ours"
        ]
        one = found[who][0]
        cells = [who, f"{statistics.median(speed[who]):.3g}", *ratios, f"{100 * tokens / bound:.0f} %"]
        cells += [f"{max(r['peak_mb'] for r in found[who]):.0f}", str(one["updates"]), f"{one['losses'][0]:.4f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def curve(arguments: argparse.Namespace) -> list[str]:
    """dpo over prompt and answer lengths, against the ideal 2 (P + C) / (P + 2 C)."""
    lines = ["", "| prompt | answer | pairs/s trl-best | pairs/s ours | ratio | of that by the shared prompt, ideal |"]
    lines.append("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for prompt, answer in ((32, 96), (64, 64), (128, 64), (256, 64), (384, 64), (768, 64)):
        speed = {who: [] for who in ("trl-best", "ours")}  # type: dict[str, list[float]]
        for _ in range(arguments.repeats):
            for who, values in speed.items():
                one = run(arguments, "dpo", who, 8, (prompt, answer))
                values.append(one["rows"] / one["seconds"])
        ratio = statistics.median(a / b for a, b in zip(speed["ours"], speed["trl-best"], strict=True))
        ideal = 2 * (prompt + answer) / (prompt + 2 * answer)
        middle = {who: statistics.median(values) for who, values in speed.items()}
        lines.append(
            f"| {prompt} | {answer} | {middle['trl-best']:.3f} | {middle['ours']:.3f} | {ratio:.2f} | {ideal:.2f} |"
        )
        print(lines[-1], flush=True)
    return lines


def lengths(arguments: argparse.Namespace) -> list[str]:
    """sft over lengths of equal rows, half of each a prompt: 4,096 tokens in all, an update of a quarter of them."""
    sides = ("trl-packed-tuned", "ours")
    lines = ["", "| tokens a row | rows | " + " | ".join(f"tokens/s {who}, peak MB" for who in sides) + " | ratio |"]
    lines.append("| ---: | ---: | ---: | ---: | ---: |")
    for length in (128, 256, 512, 1024):
        count = 4096 // length
        own = argparse.Namespace(**{**vars(arguments), "batch": max(1, count // 4)})
        found = {
            who: [run(own, "sft", who, count, (length // 2, length // 2)) for _ in range(own.repeats)] for who in sides
        }
        speed = {who: statistics.median(one["tokens"] / one["seconds"] for one in runs) for who, runs in found.items()}
        cells = [f"{speed[who]:.0f}, {max(one['peak_mb'] for one in found[who]):.0f}" for who in sides]
        lines.append(f"| {length} | {count} | " + " | ".join(cells) + f" | {speed['ours'] / speed[sides[0]]:.2f} |")
        print(lines[-1], flush=True)
    return lines


def compiled(arguments: argparse.Namespace) -> list[str]:
    """sft with compiled layers against sft as it is: what compiling takes, and what the later updates win."""
    head = ["round", "first update, s", "compiled", "the later ones, s", "compiled", "ratio"]
    lines = ["", "| " + " | ".join(head) + " |", "| ---: |" + " ---: |" * (len(head) - 1)]
    for number in range(arguments.repeats):
        plain, quick = (run(arguments, "sft", who, arguments.rows or 24)["ends"] for who in ("ours", "ours-compiled"))
        later = [
            ends[-1] - ends[1] for ends in (plain, quick)
        ]  # the second update compiles what the first did not meet
        cells = [plain[0], quick[0], *later, later[0] / later[1]]
        lines.append(f"| {number} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    main()
