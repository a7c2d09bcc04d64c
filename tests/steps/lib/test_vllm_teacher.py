"""The teacher in vLLM's offline engine: what it is told, and what becomes of its outputs.

vLLM does not install here: it needs a GPU and pins another torch and transformers. So a module of the same call surface stands in its
place, in memory, which refuses arguments that vLLM (0.10 to 0.33) does not take. What only a GPU can show (speed, seeds, the engine's own
errors) is not shown by these tests.
"""

from __future__ import annotations

import asyncio
import importlib.machinery
import inspect
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from steps.lib import model_files, models, tiny
from steps.lib.asking import Batching, Outcome, Request, Requests
from steps.lib.chat import encode_prompt
from steps.lib.errors import TeacherError
from steps.lib.teacher import identities, open_client
from steps.lib.teacher_config import VllmTeacher

pytestmark = pytest.mark.tiny
SCHEMA = {"type": "object", "properties": {"reply": {"type": "string"}}}


@dataclass
class Held:
    json: Any = None


@dataclass
class Params:
    """vllm.SamplingParams, with the fields that are used."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 16
    seed: int | None = None
    skip_special_tokens: bool = True
    structured_outputs: Held | None = None


@dataclass
class OldParams:
    """The same before 0.11."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 16
    seed: int | None = None
    skip_special_tokens: bool = True
    guided_decoding: Held | None = None


@dataclass
class Engine:
    """What was told to the engine, and what it says."""

    started: list[dict[str, Any]] = field(default_factory=list)
    calls: list[tuple[list[list[int]], list[Any]]] = field(default_factory=list)
    finish: dict[int, str] = field(default_factory=dict)
    """finish_reason by place in a call; "stop" where none is named."""
    error: Exception | None = None

    def llm(self) -> type:
        engine = self

        class LLM:
            def __init__(
                self, model: str, *, tensor_parallel_size: int = 1, dtype: str = "auto", seed: int | None = None,
                trust_remote_code: bool = False, gpu_memory_utilization: float = 0.9, **kwargs: Any,
            ) -> None:  # fmt: skip
                assert set(kwargs) <= {"enable_prefix_caching", "max_model_len"}, kwargs
                if engine.error and not engine.started:
                    raise engine.error
                told = {"model": model, "tensor_parallel_size": tensor_parallel_size, "dtype": dtype, "seed": seed}
                more = {"trust_remote_code": trust_remote_code, "gpu_memory_utilization": gpu_memory_utilization}
                engine.started.append({**told, **more, **kwargs})
                self.llm_engine = SimpleNamespace(
                    model_config=SimpleNamespace(max_model_len=kwargs.get("max_model_len", 100))
                )

            def generate(self, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True) -> list[Any]:
                if engine.error:
                    raise engine.error
                assert not use_tqdm and len(prompts) == len(sampling_params)
                engine.calls.append(([list(one["prompt_token_ids"]) for one in prompts], list(sampling_params)))
                return [
                    SimpleNamespace(
                        outputs=[SimpleNamespace(text=f"re {len(engine.calls)}/{k}", token_ids=(7, 8, 9), finish_reason=engine.finish.get(k, "stop"))]
                    )
                    for k in range(len(prompts))
                ]  # fmt: skip

        return LLM


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    made = Engine()
    install(monkeypatch, made, Params, "StructuredOutputsParams")
    yield made


def install(monkeypatch: pytest.MonkeyPatch, engine: Engine, params: type, held: str) -> None:
    package, inner = types.ModuleType("vllm"), types.ModuleType("vllm.sampling_params")
    package.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    package.__path__ = []
    package.LLM, package.SamplingParams, package.sampling_params = engine.llm(), params, inner  # type: ignore[attr-defined]
    inner.SamplingParams = params  # type: ignore[attr-defined]
    setattr(inner, held, Held)
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", inner)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny.TinyConfig(
        vocab_size=300, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, max_length=128
    )
    tokenizer = tiny.build_tokenizer(["hello there, 你好", "some words"], config)
    made = tmp_path_factory.mktemp("model")
    tiny.build_model(tokenizer, config).save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


def teacher(folder: Path, **values: Any) -> VllmTeacher:
    return VllmTeacher.model_validate({"kind": "vllm", "name": "big", "model": str(folder), "max_tokens": 20, **values})


def ask(
    client: Any, wanted: list[Request], missing: set[str] | None = None, stop: asyncio.Event | None = None
) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    keys = frozenset(one.key for one in wanted) if missing is None else frozenset(missing)
    asyncio.run(
        client.answer(
            wanted, keys, lambda request, outcome: found.__setitem__(request.key, outcome), stop or asyncio.Event()
        )
    )
    return found


def requests(client: Any, prompts: list[str]) -> list[Request]:
    make = Requests(client, 0, SCHEMA).make
    return [make([{"role": "user", "content": text}], prompt=text) for text in prompts]


def test_the_engine_is_told_what_the_configuration_says(folder: Path, engine: Engine) -> None:
    config = teacher(
        folder,
        dtype="bfloat16",
        gpu_memory_utilization=0.5,
        tensor_parallel_size=2,
        max_model_len=64,
        temperature=0.3,
        top_p=0.8,
    )
    client: Any = open_client(config, 0)
    assert isinstance(client, Batching) and client.alone and client.window == 512 and engine.started == []
    wanted = requests(client, ["hello", "你好"])
    found = ask(client, wanted)
    assert engine.started == [{
        "model": str(folder), "dtype": "bfloat16", "gpu_memory_utilization": 0.5, "tensor_parallel_size": 2, "max_model_len": 64,
        "enable_prefix_caching": True, "trust_remote_code": False, "seed": 0,
    }]  # fmt: skip
    tokenizer = models.load_tokenizer(folder)
    [(prompts, params)] = engine.calls
    assert prompts == [encode_prompt(tokenizer, one.messages) for one in wanted]
    assert params == [
        Params(temperature=0.3, top_p=0.8, max_tokens=20, seed=one.seed, structured_outputs=Held(SCHEMA))
        for one in wanted
    ]
    assert len({one.seed for one in params}) == 2, "each request has its own seed"
    reply = found[wanted[1].key].reply
    assert reply is not None and (reply.text, reply.finish_reason, reply.tokens_in, reply.tokens_out) == (
        "re 1/1",
        "stop",
        len(prompts[1]),
        3,
    )
    ask(client, requests(client, ["some words"]))
    assert len(engine.started) == 1, "it is started once"


def test_the_schema_goes_by_the_names_of_the_installed_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Engine()
    install(monkeypatch, old, OldParams, "GuidedDecodingParams")
    client: Any = open_client(teacher(folder), 0)
    ask(client, requests(client, ["hello"]))
    assert old.calls[0][1][0].guided_decoding == Held(SCHEMA)
    free: Any = open_client(teacher(folder, structured_output=False), 0)
    ask(free, requests(free, ["hello"]))
    assert old.calls[1][1][0].guided_decoding is None and not free.sends_schema()


def test_windows_are_bounded_and_only_what_is_missing_is_asked(folder: Path, engine: Engine) -> None:
    client: Any = open_client(teacher(folder, window=2), 0)
    wanted = requests(client, [f"hello {k}" for k in range(7)])
    found = ask(client, wanted, {one.key for one in wanted[1:6]})
    assert [len(prompts) for prompts, _ in engine.calls] == [2, 2, 1] and set(found) == {one.key for one in wanted[1:6]}
    stop = asyncio.Event()
    stop.set()
    assert ask(client, wanted, stop=stop) == {} and len(engine.calls) == 3


def test_cut_aborted_and_too_long(folder: Path, engine: Engine) -> None:
    engine.finish = {1: "length", 2: "abort"}
    client: Any = open_client(teacher(folder), 0)
    wanted = requests(client, ["a", "b", "c", "too long " * 60])
    found = [ask(client, wanted)[one.key] for one in wanted]
    assert [outcome.reply and outcome.reply.finish_reason for outcome in found] == ["stop", "length", None, None]
    assert found[2].reason == "engine: finish_reason abort" and found[3].reason.startswith("context_overflow: ")
    assert found[3].reason.endswith("+ 20 tokens, the engine has 100") and len(engine.calls[0][0]) == 3


@pytest.mark.parametrize("started", [False, True])
def test_an_engine_that_breaks_is_an_error_of_the_teacher(folder: Path, engine: Engine, started: bool) -> None:
    client: Any = open_client(teacher(folder), 0)
    wanted = requests(client, ["hello"])
    if started:
        ask(client, wanted)
    engine.error = RuntimeError("Engine core initialization failed.\nmore")
    with pytest.raises(
        TeacherError, match="teacher big: vLLM .*got RuntimeError: Engine core initialization failed., because"
    ) as caught:
        ask(client, wanted)
    assert ("broke off" in str(caught.value)) == started


def test_a_missing_package_says_how_to_get_it(folder: Path) -> None:
    with pytest.raises(TeacherError, match="teacher big needs vllm: got no such package.*pip install --group vllm"):
        open_client(teacher(folder), 0)


CHANGES: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.5,
    "max_tokens": 3,
    "dtype": "bfloat16",
    "structured_output": False,
}
SAME: dict[str, Any] = {"name": "other", "share": 2.0, "license": "mit", "revision": "main", "gpu_memory_utilization": 0.1, "tensor_parallel_size": 2,
                        "window": 3, "max_model_len": 9}  # fmt: skip


def test_every_field_is_in_the_key_or_changes_no_answer(folder: Path, engine: Engine) -> None:
    def key(**values: Any) -> str:
        return requests(open_client(teacher(folder, **values), 0), ["a"])[0].key

    assert set(CHANGES) | set(SAME) | {"kind", "model"} == set(VllmTeacher.model_fields)
    assert all(key(**{name: value}) != key() for name, value in CHANGES.items())
    assert all(key(**{name: value}) == key() for name, value in SAME.items())
    assert identities([teacher(folder)]) == {"teacher big": model_files.hub_identity(str(folder))}


def test_nothing_imports_vllm_by_itself() -> None:
    import steps.lib.vllm_teacher as module

    source = inspect.getsource(module)
    assert all(
        line.startswith("        ")
        for line in source.splitlines()
        if "import" in line and " vllm " in line and '"' not in line
    )
    assert "vllm" not in sys.modules
