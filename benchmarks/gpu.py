"""Speed and memory of sft and dpo on a GPU against plain TRL, on a made model of about a billion random weights.

No download: the model, its weights and the rows are made here, so the figures say nothing of quality. Model, adapter, rows, batch
and precision are the same for all sides; each is a process of its own. The first updates (compiling, warming up) are not timed.

* sft, rows of length/8 to length tokens, loss on the second half: ``trl`` (SFTTrainer, padded), ``trl-packed`` (bfd), ``ours``.
* dpo, prompts of length/2 and answers of length/16 to length/4: ``trl`` (DPOTrainer, reference computed once), and ``ours`` (the
  same with each prompt once). The reference is not part of the time.

Tokens are those of the rows, padding not counted. The model FLOPs of a token are 4 N (an adapter) or 6 N (full), N without the
embedding, and for attention 6 times the width times the square of a sequence's length a layer; ``ours`` computes prompts once, and
its share of the bound counts them once. The bound is the rate of a large matrix product in the same precision, in the same process.

Needs torch, transformers, trl, peft, accelerate, datasets, pydantic and this folder; no network.
Run:  python benchmarks/gpu.py --page docs/gpu.md        (--what, --lengths and --only make it shorter)
      python benchmarks/gpu.py --shape tiny --lengths 64 --updates 3 --together        (on a CPU; shows that it works)
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SIDES = {"sft": ("trl", "trl-packed", "ours"), "dpo": ("trl", "ours")}
SHAPES = {
    "1b": {"layers": 16, "hidden": 2048, "inner": 8192, "heads": 32, "kv": 8, "vocab": 128_000},
    "tiny": {"layers": 2, "hidden": 32, "inner": 64, "heads": 4, "kv": 2, "vocab": 400},
}
MARKS = ("<!-- measured -->", "<!-- /measured -->")


# --- one side --------------------------------------------------------------------------------------------------------


def model_of(arguments: argparse.Namespace, *, branches: bool) -> Any:
    """A Llama with random weights on the device, with an adapter unless all of it is trained."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from steps.lib import adapters, models

    shape = SHAPES[arguments.shape]
    config = LlamaConfig(
        vocab_size=shape["vocab"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["inner"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv"],
        max_position_embeddings=16_384,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config.dtype = kind_of()
    if attends := attention_of(arguments, branches=branches):
        config._attn_implementation = attends
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind_of())
    try:
        with torch.device(models.device()):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    if arguments.method == "full":
        return model
    return adapters.with_lora(model, adapters.LoraSettings(rank=16, alpha=32))


def attention_of(arguments: argparse.Namespace, *, branches: bool) -> str | None:
    """What attends: the same choice as in a step; TRL has the best that packing and padding allow."""
    from steps.lib import attention

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text('{"model_type": "llama"}')
        ours = arguments.side == "ours"
        return attention.chosen(
            arguments.attention if ours else "auto",
            Path(folder),
            method=arguments.method,
            precision="auto",
            branches=branches and ours,
        )


def kind_of() -> Any:
    import torch

    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def chats(length: int, count: int, vocab: int) -> list[dict[str, Any]]:
    """Random rows for sft."""
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        ids = [draw.randrange(3, vocab) for _ in range(draw.randint(max(4, length // 8), length))]
        rows.append({"input_ids": ids, "labels": [-100] * (len(ids) // 2) + ids[len(ids) // 2 :]})
    return rows


def pairs(length: int, count: int, vocab: int) -> list[dict[str, Any]]:
    """Random pairs for dpo."""
    draw = random.Random(0)

    def some(least: int, most: int) -> list[int]:
        return [draw.randrange(3, vocab) for _ in range(draw.randint(max(2, least), max(2, most)))]

    answer = (length // 16, length // 4)
    return [
        {
            "prompt_ids": some(length // 2, length // 2),
            "chosen_ids": some(*answer),
            "rejected_ids": some(*answer),
        }
        for _ in range(count)
    ]


def flops(rows: list[dict[str, Any]], kind: str, arguments: argparse.Namespace) -> float:
    """Model FLOPs of all rows, as a side lays them out."""
    shape = SHAPES[arguments.shape]
    hidden, head = shape["hidden"], shape["hidden"] // shape["heads"]
    layer = hidden * head * 2 * (shape["heads"] + shape["kv"]) + 3 * hidden * shape["inner"]
    weights = shape["layers"] * layer + shape["vocab"] * hidden
    once = kind == "dpo" and arguments.side == "ours"
    total = 0.0
    for row in rows:
        if kind == "sft":
            sequences = [len(row["input_ids"])]
        else:
            prompt, answers = len(row["prompt_ids"]), [len(row["chosen_ids"]), len(row["rejected_ids"])]
            sequences = [prompt + one for one in answers]
        tokens = sum(sequences) - (len(row["prompt_ids"]) if once else 0)
        square = sum(one**2 for one in sequences) - (len(row["prompt_ids"]) ** 2 if once else 0)
        total += tokens * weights * (6 if arguments.method == "full" else 4)
        total += 6 * hidden * shape["layers"] * square
    return total


def product_rate() -> float:
    """FLOP/s of a matrix product, in the precision that is trained in."""
    import torch

    cuda = torch.cuda.is_available()
    side = 8192 if cuda else 512
    one = torch.randn(side, side, dtype=kind_of(), device="cuda" if cuda else "cpu")
    rates = []
    for _ in range(5):
        for _ in range(3):
            one @ one
        settle()
        started = time.perf_counter()
        for _ in range(10):
            one @ one
        settle()
        rates.append(10 * 2 * side**3 / (time.perf_counter() - started))
    return statistics.median(rates)


def settle() -> None:
    """Wait until the GPU has done what it was asked."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def side(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train once and say what it took."""
    import torch
    from datasets import disable_progress_bars
    from transformers import PrinterCallback, TrainerCallback
    from transformers import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of words that the libraries rename between themselves
    kind, shape = arguments.kind, SHAPES[arguments.shape]
    made = chats if kind == "sft" else pairs
    rows = made(arguments.length, arguments.batch * (arguments.warm + arguments.updates), shape["vocab"])
    rate = product_rate()
    model = model_of(arguments, branches=kind == "dpo")
    folder = Path(tempfile.mkdtemp(prefix="prefline-gpu-"))
    trainer = (sft if kind == "sft" else dpo)(model, rows, arguments, folder)
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            settle()
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.remove_callback(PrinterCallback)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    timed = len(ends) - arguments.warm
    if timed < 1:
        raise SystemExit(
            f"{kind} {arguments.side}: got {len(ends)} updates, of which {arguments.warm} warm up; ask for more"
        )
    share = timed / len(ends)
    seconds = ends[-1] - ends[arguments.warm - 1]
    tokens = (
        sum(sum(map(len, row.values())) for row in rows) if kind == "dpo" else sum(len(r["input_ids"]) for r in rows)
    )
    tokens += sum(len(row["prompt_ids"]) for row in rows) if kind == "dpo" else 0
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "tokens_per_second": tokens * share / seconds,
        "rows_per_second": len(rows) * share / seconds,
        "of_bound": flops(rows, kind, arguments) * share / seconds / rate,
        "bound_tflops": rate / 1e12,
        "peak_mb": peak_mb(),
        "updates": timed,
        "losses": losses,
        "attention": str(trainer.model.config._attn_implementation),
    }


def peak_mb() -> float:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def common(arguments: argparse.Namespace, folder: Path, batch: int) -> dict[str, Any]:
    """Arguments of TRL's trainers."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": batch,
        "num_train_epochs": 1,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": not cuda,
        "bf16": cuda,
        "disable_tqdm": True,
        "dataloader_pin_memory": cuda,
        "gradient_checkpointing": arguments.checkpointing,
        "max_length": 2 * arguments.length,
    }


def sft(model: Any, rows: list[dict[str, Any]], arguments: argparse.Namespace, folder: Path) -> Any:
    if arguments.side == "ours":
        from steps.lib import packed
        from steps.lib.step import Context
        from steps.lib.training import TrainSettings

        settings = TrainSettings(
            lr=1e-5,
            batch_size=arguments.batch,
            warmup=0,
            scheduler="constant_with_warmup",
            max_length=arguments.length,
            tokens_per_pass=arguments.tokens_per_pass,
            gradient_checkpointing=arguments.checkpointing,
            save_every=10_000,
        )
        context = Context(
            log=logging.getLogger("benchmark"),
            seed=0,
            resume=folder,
            progress=lambda items, *_: items,
            track=lambda *_: None,
        )
        packed_rows = [packed.row([(row["input_ids"], row["labels"])]) for row in rows]
        return packed.trainer(model, packed_rows, tokenizer_of(arguments), settings, context)
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    packs = arguments.side == "trl-packed"
    more = common(arguments, folder, 1 if packs else arguments.batch)
    if packs:  # one row an update, of as many tokens as an update of the others has
        width = max(arguments.length, sum(len(row["input_ids"]) for row in rows) * arguments.batch // len(rows))
        more |= {"packing": True, "packing_strategy": "bfd", "max_length": width}
    return SFTTrainer(
        model=model,
        args=SFTConfig(**more),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer_of(arguments),
    )


def dpo(model: Any, rows: list[dict[str, Any]], arguments: argparse.Namespace, folder: Path) -> Any:
    """TRL's trainer for both sides; ours has packed rows with the prompt once under it."""
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

    more = {"precompute_ref_log_probs": True, "precompute_ref_batch_size": arguments.batch}
    return Pairs(
        model=packed.prepared(model) if ours else model,
        args=DPOConfig(**common(arguments, folder, arguments.batch), **more),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer_of(arguments),
    )


def tokenizer_of(arguments: argparse.Namespace) -> Any:
    """TRL asks for one; no text is ever encoded."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


# --- all sides -------------------------------------------------------------------------------------------------------


def asked(arguments: argparse.Namespace, kind: str, who: str, length: int) -> dict[str, Any]:
    """One side, once, in a process of its own; what it died of, if it did."""
    if arguments.together:
        return side(argparse.Namespace(**{**vars(arguments), "side": who, "kind": kind, "length": length}))
    words = [sys.executable, __file__, "--side", who, "--kind", kind, "--length", str(length)]
    for name in ("shape", "method", "batch", "updates", "warm", "tokens_per_pass", "attention"):
        words += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    words += ["--checkpointing"] if arguments.checkpointing else []
    done = subprocess.run(words, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if lines:
        found: dict[str, Any] = json.loads(lines[0][7:])
        return found
    if "OutOfMemory" in done.stderr:
        return {"died": "out of memory"}
    sys.stderr.write(done.stderr[-4000:])
    return {"died": "failed"}


def table(arguments: argparse.Namespace, kind: str) -> list[str]:
    """The sides over the lengths."""
    unit = "tokens/s" if kind == "sft" else "pairs/s"
    lines = [
        "",
        f"| {kind}: length | side | attends | {unit} | ours against it | of the bound | peak MB | first loss |",
        "|---:|---|---|---:|---:|---:|---:|---:|",
    ]
    for length in arguments.lengths:
        sides = [who for who in SIDES[kind] if not arguments.only or who in arguments.only]
        found = {who: asked(arguments, kind, who, length) for who in sides}
        name = "tokens_per_second" if kind == "sft" else "rows_per_second"
        best = found.get("ours", {}).get(name)
        for who, one in found.items():
            if "died" in one:
                lines.append(f"| {length} | {who} | {one['died']} | | | | | |")
                continue
            against = f"{best / one[name]:.2f}" if best and who != "ours" else ""
            lines.append(
                f"| {length} | {who} | {one['attention']} | {one[name]:.4g} | {against} | {one['of_bound']:.1%} | "
                f"{one['peak_mb']:,.0f} | {one['losses'][0]:.4f} |"
            )
            print(kind, length, who, one, flush=True)
    return lines


def machine() -> str:
    import torch
    import transformers
    import trl

    if torch.cuda.is_available():
        device = f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"
    else:
        device = "no GPU"
    return f"{device}, torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}"


def main(argv: list[str] | None = None) -> None:
    """Measure, print, and put the figures into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", default=["sft", "dpo"], choices=["sft", "dpo"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048, 8192])
    parser.add_argument("--only", nargs="+", help="sides")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1b")
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--attention", default="auto", help="of ours: auto, sdpa, flex_attention, flash_attention_2")
    parser.add_argument("--batch", type=int, default=8, help="rows or pairs an update")
    parser.add_argument("--updates", type=int, default=12, help="that are timed")
    parser.add_argument("--warm", type=int, default=4, help="updates before them")
    parser.add_argument("--tokens-per-pass", type=int, default=16_384)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument(
        "--together", action="store_true", help="all sides in this process (peak memory says nothing then)"
    )
    parser.add_argument("--page", type=Path, help="a page with the marks between which the figures go")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.side:
        print("RESULT " + json.dumps(side(arguments)))
        return
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {machine()}; shape {arguments.shape}, {arguments.method}, {arguments.batch} rows an update, "
        f"{arguments.updates} updates timed" + (", activation checkpointing." if arguments.checkpointing else "."),
    ]
    for kind in arguments.what:
        lines += table(arguments, kind)
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.page:
        before, _, rest = arguments.page.read_text(encoding="utf-8").partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        arguments.page.write_text(f"{before}{MARKS[0]}\n{text}{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
