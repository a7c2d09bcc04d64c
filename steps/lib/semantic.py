"""Rows that mean the same in other words: an embedding model, and the cosine of every two texts, exact.

The model is the user's: a folder or a hub id, such as one of BGE or E5. None is part of this project, and the pass is off without
one. A text that is longer than the model can read is read in windows, and all of them count.

Source: Abbas et al., SemDeDup, arXiv 2303.09540. DATA.md 3.7: the plain product of all rows is exact, and to 20,000 rows five times
as fast as the best index measured; it grows with the square of the rows.
Deviation: no k-means before, since the product is quick enough where this pass is of use: a million rows take minutes on a GPU.

Letters in shape comments: N texts, W windows, T tokens of a window, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from steps.lib.clusters import Pairs
from steps.lib.config import Neutral, Section

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 4096
"""Rows whose cosines with so many others are held at a time: 64 MiB."""
_TEXTS = 2048
"""Texts that are cut into tokens at a time."""


class Semantic(Section):
    """An embedding model, and how alike two rows may be."""

    model: Annotated[str, Neutral]
    """Folder or hub id of an embedding model, in safetensors (its content is in the key, its name is not)."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null: main."""
    pooling: Literal["mean", "cls"] = "mean"
    """What the model was trained to give: the mean over tokens (E5, GTE), or the first token's vector (BGE)."""
    prefix: str = ""
    """Text before every row, as some models want it: "query: " for E5."""
    threshold: float = Field(default=0.95, gt=0, le=1)
    """Cosine from which two rows are one too many. Each model has its own scale: look at some pairs before you trust it."""
    batch_tokens: int = Field(default=16_384, ge=512)
    """Tokens, padding included, that go through the model at a time; bounds the memory."""


def externals(config: Semantic) -> dict[str, str]:
    """The embedding model's content.

    Raises:
        ModelError: it is nowhere, or holds code or pickled weights.
    """
    from steps.lib import model_files

    return {"semantic": model_files.hub_identity(config.model, config.revision)}


def embeddings(texts: Sequence[str], config: Semantic) -> NDArray[np.float32]:
    """(N, D) vectors of length 1; of length 0 for a text without a token.

    Raises:
        ModelError: the model cannot be loaded.
    """
    import numpy as np
    import torch
    from transformers import AutoModel, AutoTokenizer

    from steps.lib import model_files, models

    folder = model_files.resolve(config.model, config.revision)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32)
    model = model.to(models.device()).eval()
    windows, owner = _windows([config.prefix + text for text in texts], tokenizer, _longest(model, tokenizer))
    total: NDArray[np.float32] | None = None
    with torch.inference_mode():
        for chosen in _batches([len(window) for window in windows], config.batch_tokens):
            width = len(windows[chosen[-1]])
            ids = torch.zeros((len(chosen), width), dtype=torch.long)
            mask = torch.zeros((len(chosen), width), dtype=torch.long)
            for place, one in enumerate(chosen):
                ids[place, : len(windows[one])] = torch.from_numpy(windows[one])
                mask[place, : len(windows[one])] = 1
            ids, mask = ids.to(model.device), mask.to(model.device)
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state  # (W, T, D)
            weight = mask.unsqueeze(-1).to(states.dtype)
            # Sums, not means: a window counts by its tokens, and the length is taken out at the end.
            sums = (states * weight).sum(1) if config.pooling == "mean" else states[:, 0] * weight.sum(1)  # (W, D)
            if total is None:
                total = np.zeros((len(texts), sums.shape[1]), np.float32)
            np.add.at(total, owner[chosen], sums.cpu().numpy())
    if total is None:
        return np.zeros((len(texts), int(model.config.hidden_size)), np.float32)
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    total /= np.where(lengths == 0, 1, lengths)
    return total


def close_pairs(vectors: NDArray[np.float32], threshold: float, chunk: int = CHUNK) -> Pairs:
    """Every two rows whose cosine reaches the threshold.

    Args:
        vectors: (N, D) of length 1.
        threshold: least cosine, above 0.
        chunk: rows a block; chunk x chunk cosines are all that is held beside the vectors and the pairs.

    Returns:
        Pairs with left < right, sorted, and cosines in place of Jaccard, to four decimals: more hang on the machine.
    """
    import numpy as np
    import torch

    from steps.lib import models

    rows = torch.from_numpy(vectors).to(models.device())
    found: list[tuple[Any, Any, Any]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for low in range(0, len(rows), chunk):
        for other in range(low, len(rows), chunk):
            cosines = rows[low : low + chunk] @ rows[other : other + chunk].T
            left, right = (cosines >= threshold - 1e-4).nonzero(as_tuple=True)
            score = cosines[left, right].cpu().numpy().astype(np.float64).round(4).clip(max=1.0)
            one, two = left.cpu().numpy() + low, right.cpu().numpy() + other
            some = (one < two) & (score >= threshold)
            found.append((one[some], two[some], score[some]))
    one, two, score = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((two, one))
    return Pairs(one[order], two[order], score[order])


def semantic_pairs(texts: Sequence[str], config: Semantic) -> Pairs:
    """Pairs of texts that mean the same; see ``close_pairs``."""
    return close_pairs(embeddings(texts, config), config.threshold)


def _longest(model: Any, tokenizer: Any) -> int:
    """Tokens that the model can read at a time, its own marks included."""
    config = model.config
    places = getattr(config, "max_position_embeddings", None) or 512
    if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        places -= int(getattr(config, "pad_token_id", 1) or 0) + 1  # their positions begin behind the padding's
    return min(int(tokenizer.model_max_length), int(places))


def _windows(texts: Sequence[str], tokenizer: Any, longest: int) -> tuple[list[NDArray[np.int32]], NDArray[np.int64]]:
    """Token ids of each window, the tokenizer's marks around each, and the text that each is of."""
    import numpy as np

    windows: list[NDArray[np.int32]] = []
    owners: list[int] = []
    for start in range(0, len(texts), _TEXTS):
        cut = tokenizer(
            list(texts[start : start + _TEXTS]),
            truncation=True,
            max_length=longest,
            return_overflowing_tokens=True,
            return_attention_mask=False,
        )
        for ids, owner in zip(cut["input_ids"], cut["overflow_to_sample_mapping"], strict=True):
            if ids:
                windows.append(np.array(ids, np.int32))
                owners.append(start + int(owner))
    return windows, np.array(owners, np.int64)


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Windows by rising length, as many as fill ``most`` places: little is padding."""
    batch: list[int] = []
    for one in sorted(range(len(lengths)), key=lambda number: (lengths[number], number)):
        if batch and (len(batch) + 1) * lengths[one] > most:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch
