"""What a teacher's configuration may hold: one section for each kind, with the fields that kinds share written once.

The base classes declare fields in the order in which people read them; ``kind`` comes first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from steps.lib.config import Added, Neutral, Section
from steps.lib.models import Precision
from steps.lib.prices import Price

OURS = frozenset({"model", "messages", "stream", "n", "temperature", "top_p", "seed", "max_tokens", "max_completion_tokens",
                  "response_format"})  # fmt: skip
"""Fields of a request that the configuration sets, or that would break the reading of the answer."""


class _Common(Section):
    """What every teacher has."""

    kind: str
    name: str = Field(min_length=1)
    """The teacher's name in rows, metrics and reports."""
    share: float = Field(default=1.0, gt=0)
    """Weight (any unit) of this teacher among the samples of a prompt."""
    license: Annotated[str | None, Added] = Field(default=None, min_length=1)
    """What its answers may be used for, in your words, such as apache-2.0 or "vendor terms forbid training competitors"; it goes
    into every row's provenance. null: nobody wrote it down, which is counted and warned of."""


class _Model(_Common):
    """What every teacher has that is a language model."""

    temperature: float = Field(default=0.7, ge=0)
    """Divisor of the logits; 0 takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Share (0 to 1) of probability that sampling keeps."""
    max_tokens: int = Field(default=1024, gt=0)
    """Tokens an answer may have."""


class _Checkpoint(_Model):
    """What every teacher has whose weights are read here."""

    model: Annotated[str, Neutral]
    """Folder or hub id; its content is in the key, not its name."""
    revision: Annotated[str | None, Neutral] = None
    """Commit or tag of a hub id; null: the newest."""


class BatchFiles(Section):
    """How questions are asked by batch files (OpenAI's Batch API)."""

    poll_seconds: float = Field(default=30.0, gt=0)
    """Seconds between two looks at a batch."""
    max_requests: int = Field(default=50_000, gt=0, le=50_000)
    """Requests in one file; vendors take 50,000."""
    max_megabytes: float = Field(default=200.0, gt=0)
    """Megabytes (10^6 bytes) of one file; OpenAI takes 200."""


class HttpTeacher(_Model):
    """A model behind an OpenAI-compatible endpoint."""

    kind: Literal["http"]
    endpoint: str = Field(min_length=1)
    """Class of the endpoint, such as openai or vllm-bf16. It goes into the key in place of the address."""
    base_url: Annotated[str, Neutral]
    """Address up to and with /v1. It holds no user name and no password."""
    model: str = Field(min_length=1)
    """Model name as the endpoint knows it."""
    api_key_env: Annotated[str | None, Neutral] = None
    """Name of the environment variable that holds the key; null: the endpoint wants none."""
    api_key_block: Annotated[str | None, Neutral] = Field(default=None, pattern="^[a-z0-9][a-z0-9-]*$")
    """Name of the Prefect Secret block that holds the key, in place of a variable."""
    structured_output: bool | Literal["none", "json_schema", "json_object", "guided_json", "structured_outputs"] = False
    """How the endpoint is held to a JSON Schema: true or json_schema (response_format: OpenAI, vLLM, SGLang, Ollama from 0.5),
    structured_outputs (vLLM from 0.11), guided_json (vLLM before), json_object (JSON, whatever its shape: DeepSeek, Qwen);
    false or none."""
    extra_body: Annotated[dict[str, Any], Added()] = {}
    """Further fields of every request, such as {chat_template_kwargs: {enable_thinking: false}}; they are in the key."""
    send_seed: bool = True
    """Whether the endpoint takes a seed."""
    tokenizer: Annotated[str | None, Neutral] = None
    """Folder or hub id of the model's tokenizer, to count what is sent; its content is in the key. null: a bound, one token
    a UTF-8 byte."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Which field carries max_tokens; newer vendors' models want max_completion_tokens."""
    mode: Annotated[Literal["chat", "batch"], Neutral] = "chat"
    """chat: one request at a time, many at once; batch: files of requests, answered within a day, where the endpoint has them."""
    batch: Annotated[BatchFiles, Neutral] = BatchFiles()
    """Files of requests, for mode batch."""
    concurrency: Annotated[int, Neutral] = Field(default=16, gt=0)
    """Requests in flight at a time, at most: halved on 429 or timeout, then grown again."""
    requests_per_minute: Annotated[float | None, Neutral] = Field(default=None, gt=0)
    """Requests a minute; null: no limit."""
    tokens_per_minute: Annotated[int | None, Neutral] = Field(default=None, gt=0)
    """Tokens a minute, prompts and answers; null: no limit."""
    timeout_seconds: Annotated[float, Neutral] = Field(default=300.0, gt=0)
    """Seconds from sending to the last byte of the answer."""
    attempts: Annotated[int, Neutral] = Field(default=5, gt=0)
    """Attempts a request and run."""
    backoff_seconds: Annotated[float, Neutral] = Field(default=1.0, gt=0)
    """Seconds: the longest wait before the second attempt; it doubles up to 60."""
    give_up_after: Annotated[int, Neutral] = Field(default=20, gt=0)
    """Requests in a row without any answer after which only single probes are sent."""
    probe_seconds: Annotated[float, Neutral] = Field(default=10.0, gt=0)
    """Seconds before the first probe; they double up to 600."""
    probes: Annotated[int, Neutral] = Field(default=3, gt=0)
    """Probes in a row without an answer after which the teacher stops."""
    grace_seconds: Annotated[float, Neutral] = Field(default=10.0, ge=0)
    """Seconds that requests in flight get to finish after SIGTERM."""
    price: Annotated[Price | None, Neutral] = None
    """What tokens cost; null: what price_file says of the model."""
    price_file: Annotated[Path, Neutral] = Path("configs/prices.yaml")
    """Table of prices by model name."""
    budget_usd: Annotated[float | None, Neutral] = Field(default=None, ge=0)
    """US dollars that this teacher may cost, over all runs of one ledger; null: no limit."""
    budget_tokens: Annotated[int | None, Neutral] = Field(default=None, ge=0)
    """Tokens, prompts and answers, that this teacher may use, over all runs of one ledger; null: no limit."""

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        scheme, _, rest = value.partition("://")
        if scheme not in ("http", "https") or not rest or "@" in rest.partition("/")[0]:
            raise ValueError("an address is http://HOST/v1 or https://HOST/v1, without user or password")
        return value

    @field_validator("structured_output")
    @classmethod
    def _one_word_each(cls, value: bool | str) -> bool | str:
        return {"none": False, "json_schema": True}.get(value, value) if isinstance(value, str) else value

    @field_validator("extra_body")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(OURS & set(value)):
            raise ValueError(
                f"{', '.join(taken)} cannot stand there; other fields of the teacher set it, or it is not supported"
            )
        return value

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.api_key_env and self.api_key_block:
            raise ValueError("api_key_env and api_key_block exclude each other; leave one of them out")
        if self.tokens_per_minute is not None and self.tokens_per_minute < self.max_tokens:
            raise ValueError(
                f"tokens_per_minute {self.tokens_per_minute} is less than max_tokens {self.max_tokens}, so that one answer could "
                "take more than a minute's tokens; raise the first or lower the second"
            )
        return self


class LocalTeacher(_Checkpoint):
    """A transformers model in this process."""

    kind: Literal["local"]
    max_tokens: int = Field(default=256, gt=0)
    """Tokens an answer may have."""
    dtype: Precision = "auto"
    """Precision of the weights; auto: bfloat16 on a GPU, float32 on a CPU."""
    batch_size: int = Field(default=16, gt=0)
    """Requests answered at a time. It decides what is drawn together, and so counts as changing results."""


class VllmTeacher(_Checkpoint):
    """A model in vLLM's offline engine."""

    kind: Literal["vllm"]
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of the weights; auto: as the checkpoint says."""
    structured_output: bool = True
    """Whether answers are held to the prompt file's schema while they are generated."""
    max_model_len: int | None = Field(default=None, gt=0)
    """Tokens of prompt and answer together that the engine takes; null: as many as the model."""
    gpu_memory_utilization: Annotated[float, Neutral] = Field(default=0.9, gt=0, le=1)
    """Share (0 to 1) of a GPU's memory that the engine takes for itself."""
    tensor_parallel_size: Annotated[int, Neutral] = Field(default=1, gt=0)
    """GPUs over which the model's weights are split."""
    window: Annotated[int, Neutral] = Field(default=512, gt=0)
    """Requests that are handed to the engine at a time; a kill loses what it had not finished of them."""


class ScriptedTeacherConfig(_Common):
    """A rule program in place of a model: offline, for the demo and for tests."""

    kind: Literal["scripted"]
    name: str = Field(default="scripted", pattern="^scripted")
    """The teacher's name in rows, metrics and reports; it begins with "scripted"."""
    path: Annotated[Path, Neutral]
    """File of rules (steps/lib/scripted.py); its content is in the key."""


AnyTeacher = HttpTeacher | LocalTeacher | VllmTeacher | ScriptedTeacherConfig
Teacher = Annotated[AnyTeacher, Field(discriminator="kind")]
"""A teacher's configuration, chosen by ``kind``."""
