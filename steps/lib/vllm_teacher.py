"""A teacher on this machine's GPUs: vLLM's offline engine, for machines where nobody serves the model.

vLLM pins versions of torch and transformers that are not ours, so it wants an environment of its own (docs/generation.md); it is
imported when a request is to be asked, and never otherwise. A served vLLM (``kind: http``) is the easier way.

Prompts are rendered and tokenised here, by the same code as for ``kind: local``. Each request has its own seed. vLLM puts batches
together by what arrives when, so an answer can differ between runs by the rounding of sums; what was received is kept, and only
what is missing is asked for.

Call surface: LLM(...), LLM.generate(prompts, sampling_params, use_tqdm=...), https://docs.vllm.ai/en/stable/api/vllm/;
StructuredOutputsParams(json=...) in SamplingParams(structured_outputs=...), before vLLM 0.11 GuidedDecodingParams(json=...) in
guided_decoding=..., https://docs.vllm.ai/en/stable/features/structured_outputs/.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

from steps.lib.asking import OnOutcome, Outcome, Request
from steps.lib.checkpoint_teacher import Checkpoint
from steps.lib.errors import TeacherError
from steps.lib.ledger import Reply
from steps.lib.teacher_config import VllmTeacher


class VllmClient:
    """Answers requests with vLLM, started when first needed.

    Raises:
        TeacherError: the package is not installed.
    """

    alone = True

    def __init__(self, config: VllmTeacher) -> None:
        if find_spec("vllm") is None:
            raise TeacherError(
                f"teacher {config.name} needs vllm: got no such package, because it is optional and brings a torch of its own "
                "that does not fit into prefline's environment; give it one with `python -m venv .venv-vllm && "
                ".venv-vllm/bin/pip install --group vllm` and run `.venv-vllm/bin/python -m steps.generate` "
                "(docs/generation.md), or serve the model with `vllm serve` and name it as a teacher of kind http"
            )
        self.name = config.name
        self.window = config.window
        """Requests that are handed over together."""
        self._config = config
        self._checkpoint = Checkpoint(config)
        self._engine: Any = None

    def identity(self) -> dict[str, Any]:
        """Content of the model, bytes of the chat template, sampling and precision."""
        return self._checkpoint.identity()

    def sends_schema(self) -> bool:
        """Whether answers are held to the schema of a request."""
        return self._config.structured_output

    async def answer(
        self, requests: Sequence[Request], missing: frozenset[str], report: OnOutcome, stop: asyncio.Event
    ) -> None:
        """Answer what is missing of a window, in a thread, so that signals are seen. See ``asking.Batching``.

        A stop is seen between windows: the engine takes a window as a whole.
        """
        wanted = [request for request in requests if request.key in missing]
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as thread:
            for start in range(0, len(wanted), self.window):
                if stop.is_set():
                    return
                some = wanted[start : start + self.window]
                for request, outcome in await loop.run_in_executor(thread, self._generate, some):
                    report(request, outcome)

    def _generate(self, requests: Sequence[Request]) -> list[tuple[Request, Outcome]]:
        self._start()
        room = int(self._engine.llm_engine.model_config.max_model_len)
        asked, found = self._checkpoint.fitting(requests, room, "the engine")
        if not asked:
            return found
        started = time.perf_counter()
        try:
            outputs = self._engine.generate(
                [{"prompt_token_ids": one.ids} for one in asked],
                [self._drawing(one.request) for one in asked],
                use_tqdm=False,
            )
        except (RuntimeError, ValueError) as error:
            raise self._broken("broke off", error) from None
        each = round((time.perf_counter() - started) / len(asked), 3)
        for one, output in zip(asked, outputs, strict=True):
            [said] = output.outputs
            if said.finish_reason in ("stop", "length"):
                counts = len(one.ids), len(said.token_ids)
                outcome = Outcome(Reply(said.text, said.finish_reason, self._checkpoint.name, *counts, each))
            else:
                outcome = Outcome(None, f"engine: finish_reason {said.finish_reason}")
            found.append((one.request, outcome))
        return found

    def _start(self) -> None:
        """The engine, started once."""
        if self._engine is not None:
            return
        self.identity()
        from steps.lib.model_files import resolve

        config = self._config
        options: dict[str, Any] = {
            "model": str(resolve(config.model, config.revision)),
            "dtype": config.dtype,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "tensor_parallel_size": config.tensor_parallel_size,
            "enable_prefix_caching": True,
            "trust_remote_code": False,
            "seed": 0,
        }
        if config.max_model_len is not None:
            options["max_model_len"] = config.max_model_len
        try:
            from vllm import LLM

            self._engine = LLM(**options)
        except (ImportError, RuntimeError, ValueError, OSError) as error:
            raise self._broken("did not start", error) from None

    def _drawing(self, request: Request) -> Any:
        """How one request is drawn; the structured output by the names of the installed version."""
        from vllm import SamplingParams, sampling_params

        config = self._config
        options: dict[str, Any] = {
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": config.max_tokens,
            "seed": request.seed,
            "skip_special_tokens": True,
        }
        if request.schema is not None:
            if hasattr(sampling_params, "StructuredOutputsParams"):
                options["structured_outputs"] = sampling_params.StructuredOutputsParams(json=request.schema)
            else:
                options["guided_decoding"] = sampling_params.GuidedDecodingParams(json=request.schema)
        return SamplingParams(**options)

    def _broken(self, what: str, error: Exception) -> TeacherError:
        first = (str(error).strip().splitlines() or [""])[0][:300]
        return TeacherError(
            f"teacher {self.name}: vLLM {what}: got {type(error).__name__}: {first}, because of the engine, the GPU or the "
            "settings; look at its own messages above, lower gpu_memory_utilization or max_model_len, or serve the model "
            "(kind: http)"
        )
