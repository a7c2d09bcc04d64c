"""A teacher in this process: a transformers checkpoint that answers many requests at once (``decoding.py``).

Requests come by windows. A window's requests are put together by what their prompts begin with (a language's system text, the same
examples) and by length, and cut into units of a few batches; inside a unit a row that ends makes room for the next one.

What is guaranteed: units depend on the window's requests alone, never on which of them are missing or where a run was killed, and
a unit of which anything is missing is computed again whole. So a killed run gives the answers of an uninterrupted one bit by bit,
on the same machine with the same libraries and number of threads. A row's draws are its own (its request's seed); other neighbours
change the rounding of sums and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from steps.lib.asking import OnOutcome, Outcome, Request
from steps.lib.checkpoint_teacher import Asked, Checkpoint
from steps.lib.errors import TeacherError
from steps.lib.ledger import Reply
from steps.lib.teacher_config import LocalTeacher

if TYPE_CHECKING:
    from steps.lib.decoding import Said

WINDOW = 16
"""Batches of requests that are handed over together: enough to put likes together."""
UNIT = 4
"""Batches that are computed, and after a kill computed again, as one. At its end slots stand empty: one batch a unit took 8 to
17 % longer (160 answers of SmolLM2, of 7 to 256 tokens), and sixteen 1 to 3 % less."""
ALIKE = 32
"""Tokens that prompts begin with in common, for them to be put together."""
PASSES = 8
"""Passes between two looks at the stop flag."""


class LocalClient:
    """Answers requests with a model in this process, loaded when first needed."""

    alone = True

    def __init__(self, config: LocalTeacher) -> None:
        self.name = config.name
        self.window = WINDOW * config.batch_size
        """Requests that are handed over together."""
        self._config = config
        self._checkpoint = Checkpoint(config, draws="a row", batch_size=config.batch_size)
        self._model: Any = None
        self._decoder: Any = None

    def identity(self) -> dict[str, Any]:
        """Content of the model, bytes of the chat template, sampling, precision and batch size."""
        return self._checkpoint.identity()

    def sends_schema(self) -> bool:
        """A transformers model is not held to a schema; answers are checked afterwards."""
        return False

    async def answer(
        self, requests: Sequence[Request], missing: frozenset[str], report: OnOutcome, stop: asyncio.Event
    ) -> None:
        """Answer unit by unit, in one thread of its own, so that signals are seen. See ``asking.Client``."""
        if not any(request.key in missing for request in requests):
            return
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(
            1
        ) as thread:  # one, since a pass's threads of OpenMP belong to the thread that calls it
            fitting, failed = await loop.run_in_executor(thread, self._fitting, requests)
            for request, outcome in failed:
                if request.key in missing:
                    report(request, outcome)
            for unit in units([asked.ids for asked in fitting], UNIT * self._config.batch_size):
                asked = [fitting[place] for place in unit]
                left = {one.request.key for one in asked} & missing
                steps = self._steps(asked) if left else iter(())
                while left and not stop.is_set():
                    ended = await loop.run_in_executor(thread, next, steps, None)
                    if ended is None:
                        raise RuntimeError(f"{len(left)} rows of a unit were not answered")
                    for place, reply in ended:
                        if asked[place].request.key in left:
                            left.discard(asked[place].request.key)
                            report(asked[place].request, Outcome(reply))
                if stop.is_set():
                    return

    def _fitting(self, requests: Sequence[Request]) -> tuple[list[Asked], list[tuple[Request, Outcome]]]:
        self._load()
        room = getattr(self._model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return self._checkpoint.fitting(requests, room or 2**31, "the model")

    def _load(self) -> None:
        if self._model is not None:
            return
        from steps.lib import decoding, models
        from steps.lib.inference import Sampling, end_tokens

        self.identity()
        config, tokenizer = self._config, self._checkpoint.tokenizer
        model = models.load_model(config.model, config.dtype, revision=config.revision).eval()
        sampling = Sampling(config.temperature, config.top_p, config.max_tokens)
        ends = end_tokens(model, tokenizer)
        if why := decoding.unable(model):
            logging.getLogger("prefline.teacher").warning(
                "teacher %s answers by transformers' generate, batch by batch, which is slower: %s", config.name, why
            )
            pad = tokenizer.pad_token_id
            self._decoder = partial(decoding.plainly, model, ends, sampling, config.batch_size, pad)
        else:
            self._decoder = decoding.Decoder(model, ends, sampling, config.batch_size).answers
        self._model = model

    def _steps(self, asked: Sequence[Asked]) -> Iterator[list[tuple[int, Reply]]]:
        """A unit's answers, some passes at a time: (place, reply)."""
        import torch

        from steps.lib.decoding import Row

        found: list[tuple[int, Reply]] = []
        try:
            for number, ended in enumerate(self._decoder([Row(one.ids, one.request.seed) for one in asked]), 1):
                found += [(said.place, self._reply(asked[said.place], said)) for said in ended]
                if number % PASSES == 0:
                    yield found
                    found = []
        except torch.OutOfMemoryError as error:
            raise TeacherError(
                f"teacher {self.name} has no room: got {str(error).splitlines()[0]!r}, because {self._config.batch_size} "
                "rows run at a time; lower its batch_size or max_tokens"
            ) from None
        yield found

    def _reply(self, asked: Asked, said: Said) -> Reply:
        return Reply(
            self._checkpoint.tokenizer.decode(said.tokens, skip_special_tokens=True),
            "stop" if said.finished else "length",
            self._checkpoint.name,
            len(asked.ids),
            len(said.tokens),
            round(said.seconds, 3),
        )


def units(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Indices in units of at most ``size``: prompts that begin alike together, the longest first (they run while others follow).

    It depends on the prompts and their order only. What begins like few others goes into units of all kinds.
    """
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, ids in enumerate(prompts):
        alike[tuple(ids[:ALIKE]) if len(ids) > ALIKE else ()].append(place)
    groups = [group for start, group in alike.items() if start and 4 * len(group) >= size]
    rest = sorted(set(range(len(prompts))).difference(*groups))
    for group in (*groups, rest):
        group.sort(key=lambda place: (-len(prompts[place]), place))
        for start in range(0, len(group), size):
            yield group[start : start + size]
