"""Answers to many prompts at once: rows share every pass over the weights, and nothing else that could change an answer.

Most of the time of a decoded token goes into reading the weights, whether one row is in the pass or sixteen. So a pass holds one
token of each running row and the whole prompts of the rows that begin, laid end to end without padding; a row that ends makes room
for the next one at once. The tokens that all prompts begin with are computed once, their keys and values are held once, and all
rows attend to them in one product.

Every row is drawn with numbers of its own (``chance``), made from its seed and the place in its answer. What its neighbours change
is the rounding of sums, about 1e-6 of a probability; the same rows in the same order give the same bits.

Source: mixing prompts and running rows in a pass, Yu et al., "Orca" (OSDI 2022), section 3. Deviation: a prompt is never cut into
pieces. Attention is in ``row_attention.py``.

Letters in shapes: R running rows, V vocabulary.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from steps.lib.draws import chance, choose
from steps.lib.inference import Sampling
from steps.lib.row_attention import NAME, Pass, attend

TOKENS_A_PASS = 2048
"""Tokens of prompts that begin in one pass; a longer prompt begins alone."""
PREFIXES = 4
"""Prefixes whose keys and values are kept."""


@dataclass(frozen=True)
class Row:
    """A prompt to be answered."""

    ids: list[int]
    seed: int


@dataclass
class Said:
    """What became of a row."""

    place: int
    """Index of the row."""
    tokens: list[int] = field(default_factory=list)
    """Tokens of the answer, without the one that ended it."""
    finished: bool = False
    """Whether it was ended by a token; False: cut at ``max_tokens``."""
    seconds: float = 0.0
    """Its part of the time of the passes it was in."""


def shared(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with; at least one token of each is left over."""
    first, last = min(prompts), max(prompts)  # what these two share, all between them do
    most = min(map(len, prompts)) - 1
    return next((k for k in range(most) if first[k] != last[k]), most)


def unable(model: Any) -> str:
    """Why a model cannot be decoded here ("" where it can); then ``plainly`` answers. Two short passes are compared."""
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder:
        return "it has an encoder"
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=config).layers):
        return "a layer is not plain attention over all that came before"
    kinds = getattr(config, "rope_parameters", None) or {}
    kinds = {str(one.get("rope_type")) for one in (kinds, *kinds.values()) if isinstance(one, dict)}
    if kinds & {"dynamic", "longrope"}:
        return "its positions depend on the longest row of a pass"
    if not model._can_set_attn_implementation():
        return "its attention cannot be exchanged"
    before, ids = config._attn_implementation, [k % config.vocab_size for k in range(3, 19)]
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1].float()
    try:
        found = Decoder(model, (), Sampling(0.0, 1.0, 1), 2).first_logits([Row(ids, 0), Row(ids[:9], 0)], 4)[0].float()
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        model.set_attn_implementation(before)
        return f"its layers do not work with our attention ({type(error).__name__}: {error})"
    allowed = float(wanted.abs().max()) * (1e-3 if model.dtype == torch.float32 else 0.1)
    if not float((found - wanted).abs().max()) <= allowed:
        model.set_attn_implementation(before)
        return "our attention gives other logits than its own"
    return ""


class Decoder:
    """Decodes rows with one loaded model. For one thread at a time.

    Args:
        model: a causal language model for which ``unable`` finds no reason.
        ends: tokens that end an answer.
        sampling: how answers are drawn.
        slots: rows that run at the same time.
    """

    def __init__(self, model: Any, ends: Collection[int], sampling: Sampling, slots: int) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, attend)
        model.set_attn_implementation(NAME)
        self._model, self._ends, self._sampling, self._slots = model, frozenset(ends), sampling, slots
        self._layers = model.config.get_text_config(decoder=True).num_hidden_layers
        self._keys: list[Any] = []
        self._values: list[Any] = []
        self._width = 0
        self._prefixes: dict[tuple[int, ...], list[tuple[Any, Any]]] = {}

    def answers(self, rows: Sequence[Row], *, prefix: int | None = None) -> Iterator[list[Said]]:
        """Decode rows; yields after every pass what ended in it (often nothing), so that a caller can stop between passes.

        Args:
            rows: in the order in which they begin.
            prefix: tokens that are computed once for all rows; None: as many as they share, 0: none.
        """
        size = shared([row.ids for row in rows]) if prefix is None and len(rows) > 1 else prefix or 0
        common = self._prefix(rows[0].ids[:size]) if size else None
        self._make_room(max(len(row.ids) for row in rows) - size + self._sampling.max_tokens)
        queue = deque(range(len(rows)))
        running: list[Said] = []
        lengths: list[int] = []  # tokens that each running row has in its slot
        while queue or running:
            started = time.perf_counter()
            begin: list[int] = []
            room = TOKENS_A_PASS
            while queue and len(running) + len(begin) < self._slots:
                if begin and len(rows[queue[0]].ids) - size > room:
                    break
                begin.append(queue.popleft())
                room -= len(rows[begin[-1]].ids) - size
            logits = self._pass(
                common, size, [said.tokens[-1] for said in running], lengths, [rows[i].ids[size:] for i in begin]
            )
            lengths = [length + 1 for length in lengths] + [len(rows[i].ids) - size for i in begin]
            running += [Said(place) for place in begin]
            chances = [chance(rows[said.place].seed, len(said.tokens)) for said in running]
            tokens = choose(logits, self._sampling, chances)
            each = (time.perf_counter() - started) / len(running)
            ended: list[Said] = []
            for slot in reversed(range(len(running))):
                said = running[slot]
                said.seconds += each
                said.finished = tokens[slot] in self._ends
                if not said.finished:
                    said.tokens.append(tokens[slot])
                if said.finished or len(said.tokens) >= self._sampling.max_tokens:
                    ended.append(said)
                    self._leave(slot, running, lengths)
            yield ended[::-1]

    def first_logits(self, rows: Sequence[Row], prefix: int) -> Any:
        """Logits (R, V) of the first token of each answer; for checks."""
        common = self._prefix(rows[0].ids[:prefix]) if prefix else None
        self._make_room(max(len(row.ids) for row in rows) - prefix)
        return self._pass(common, prefix, [], [], [row.ids[prefix:] for row in rows])

    def _pass(
        self,
        prefix: list[tuple[Any, Any]] | None,
        size: int,
        last: list[int],
        lengths: list[int],
        begin: Sequence[list[int]],
    ) -> Any:
        """One pass: logits (R, V) of the running rows and of those that begin, in the order of their slots."""
        import torch

        device = self._model.device
        ids, places, begins = list(last), [size + length for length in lengths], []
        for slot, tokens in enumerate(begin, len(last)):
            begins.append((slot, len(ids), len(ids) + len(tokens)))
            places += range(size, size + len(tokens))
            ids += tokens
        width = max(lengths, default=0) + 1
        have = torch.tensor(lengths, dtype=torch.long, device=device)
        hidden = (torch.arange(width, device=device)[None] > have[:, None])[:, None, None]
        now = Pass(self._keys, self._values, (self._slots, self._width), prefix, len(last), have, width, hidden, begins)
        keep = [*range(len(last)), *(stop - 1 for _, _, stop in begins)]
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([places], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(keep, device=device),
                rows=now,
            ).logits[0]
        if now.visited != self._layers:
            raise RuntimeError(f"{now.visited} of {self._layers} layers attended")
        return logits

    def _prefix(self, ids: list[int]) -> list[tuple[Any, Any]]:
        """Keys and values of a prefix, computed alone; the last few are kept."""
        name = tuple(ids)
        if name not in self._prefixes:
            self._make_room(len(ids))
            self._pass(None, 0, [], [], [ids])
            while len(self._prefixes) >= PREFIXES:
                self._prefixes.pop(next(iter(self._prefixes)))
            self._prefixes[name] = [
                (key[0, :, : len(ids)].clone(), value[0, :, : len(ids)].clone())
                for key, value in zip(self._keys, self._values, strict=True)
            ]
        return self._prefixes[name]

    def _make_room(self, width: int) -> None:
        """Slots of at least so many tokens; a layer makes its own when it first attends."""
        if width > self._width:
            self._width = width
            self._keys, self._values = [None] * self._layers, [None] * self._layers

    def _leave(self, slot: int, running: list[Said], lengths: list[int]) -> None:
        """A row leaves its slot, and the last one moves there."""
        import torch

        last = len(running) - 1
        if slot != last:
            size = lengths[last]
            with torch.inference_mode():
                for layer in (*self._keys, *self._values):
                    layer[slot, :, :size] = layer[last, :, :size]
            running[slot], lengths[slot] = running[last], lengths[last]
        running.pop()
        lengths.pop()


def plainly(
    model: Any, ends: Collection[int], sampling: Sampling, slots: int, pad: int, rows: Sequence[Row]
) -> Iterator[list[Said]]:
    """The same for any other architecture: transformers' ``generate``, batch by batch, with each row's own numbers."""
    import torch
    from transformers import LogitsProcessorList

    from steps.lib.inference import left_padded

    for start in range(0, len(rows), slots):
        batch = rows[start : start + slots]
        asking, given, width = left_padded(model, [list(row.ids) for row in batch], pad)
        begun = time.perf_counter()

        def only_chosen(ids: Any, logits: Any, batch: Sequence[Row] = batch, width: int = width) -> Any:
            chances = [chance(row.seed, ids.shape[1] - width) for row in batch]
            chosen = torch.tensor(choose(logits, sampling, chances), device=logits.device)
            return torch.full_like(logits, float("-inf")).scatter(1, chosen[:, None], 0.0)

        with torch.inference_mode():
            output = asking.generate(
                **given,
                max_new_tokens=sampling.max_tokens,
                pad_token_id=pad,
                eos_token_id=sorted(ends),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                logits_processor=LogitsProcessorList([only_chosen]),
            )
        each = (time.perf_counter() - begun) / len(batch)
        found: list[Said] = []
        for place, new in enumerate(output[:, width:].tolist(), start):
            stops = [at for at, token in enumerate(new) if token in ends]
            found.append(Said(place, new[: stops[0]] if stops else new, bool(stops), each))
        yield found
