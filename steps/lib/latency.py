"""How fast a model answers, one request after another: time to the first piece, tokens a second, seconds an answer, peak memory.

Times are no result: they differ from run to run, so they lie in ``record/latency.json``, outside the artifact's digest.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from steps.lib import inference
from steps.lib.inference import Later, Sampling

FILE = "record/latency.json"
TOKENS = 64
"""Tokens of the longest answer whose time is taken."""


def taken(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, max_tokens: int) -> dict[str, float]:
    """Times of greedy answers at batch 1, after one that warms up.

    Returns:
        requests; tokens (of all answers); p50_s and p95_s (seconds an answer); first_p50_s (seconds to the first piece of text);
        tokens_per_s (of all answers together); peak_mib: of the device, or on a CPU of this process since it started.
    """
    import torch

    loaded = model.load() if isinstance(model, Later) else model
    cuda = loaded.device.type == "cuda"
    drawing = Sampling(0.0, 1.0, min(max_tokens, TOKENS))
    inference.generate(loaded, tokenizer, prompts[:1], drawing, seed=0, batch_size=1)
    if cuda:
        torch.cuda.reset_peak_memory_stats(loaded.device)
    whole: list[float] = []
    first: list[float] = []
    tokens = 0
    for prompt in prompts:
        pieces: list[float] = []
        start = time.perf_counter()
        [answer] = inference.generate(
            loaded,
            tokenizer,
            [prompt],
            drawing,
            seed=0,
            batch_size=1,
            show=partial(_note, pieces),
        )
        whole.append(time.perf_counter() - start)
        first.append(pieces[0] - start if pieces else whole[-1])
        tokens += answer.tokens + answer.finished
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    peak = (
        torch.cuda.max_memory_allocated(loaded.device)
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    )
    return {
        "requests": float(len(prompts)),
        "tokens": float(tokens),
        "p50_s": _quantile(whole, 0.5),
        "p95_s": _quantile(whole, 0.95),
        "first_p50_s": _quantile(first, 0.5),
        "tokens_per_s": round(tokens / sum(whole), 3),
        "peak_mib": round(peak / 2**20, 1),
    }


def write(out: Path, times: Mapping[str, Mapping[str, float]]) -> None:
    """Write the times of each model, and what else was the same for all of them."""
    (out / "record").mkdir(exist_ok=True)
    text = json.dumps({"batch_size": 1, "tokens_at_most": TOKENS, "models": times}, indent=1)
    (out / FILE).write_text(text + "\n", encoding="utf-8")


def _note(times: list[float], piece: str) -> None:
    times.append(time.perf_counter())


def _quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of values does not pass."""
    return round(sorted(values)[max(0, math.ceil(share * len(values)) - 1)], 6)
