"""How a model may be trained, as one typed choice: settings of each method, what it can do, and what cannot work.

A combination that the configuration alone shows to be wrong is refused when it is loaded; one that depends on the model or on
the policy by ``refusals.check``, at the start of a step. docs/methods.md compares the methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from steps.lib.config import Section

Name = Literal[
    "full", "lora", "qlora", "adalora", "ia3", "llama_adapter", "prompt", "prefix", "p_tuning", "p_tuning_v2"
]


@dataclass(frozen=True)
class Method:
    """What a method leaves behind."""

    kind: str | None
    """PEFT's type of the saved adapter; None: whole weights. An encoder is dropped at the end, so p_tuning leaves a prompt."""
    merges: bool
    """Whether what was trained can be put into the weights of the base."""


METHODS: dict[str, Method] = {
    "full": Method(None, True),
    "lora": Method("LORA", True),
    "qlora": Method("LORA", True),
    "adalora": Method("ADALORA", True),
    "ia3": Method("IA3", True),
    "llama_adapter": Method("ADAPTION_PROMPT", False),
    "prompt": Method("PROMPT_TUNING", False),
    "prefix": Method("PREFIX_TUNING", False),
    "p_tuning": Method("PROMPT_TUNING", False),
    "p_tuning_v2": Method("PREFIX_TUNING", False),
}
MERGING = {method.kind for method in METHODS.values() if method.merges}
"""Kinds of adapters that can be put into their base."""

Targets = str | list[str]


def _refuse(*rules: bool | str) -> None:
    """Raise what is wrong: pairs of (whether it is, what to say)."""
    problems = [str(text) for wrong, text in zip(rules[::2], rules[1::2], strict=True) if wrong]
    if problems:
        raise ValueError("; and ".join(problems))


class LoraSettings(Section):
    """Low-rank adapters (Hu et al. 2021, 2106.09685); method lora and qlora."""

    rank: int = Field(16, ge=1)
    """Rank of the update of each matrix."""
    alpha: float = Field(32.0, gt=0)
    """Scale of the update: it is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs dropped while training."""
    targets: Targets = "all-linear"
    """Matrices that get an adapter: ``all-linear`` (all but the head), or names such as q_proj."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) (Kalajdzievski 2023, 2312.03732): high ranks learn as fast as low ones."""
    dora: bool = False
    """Train the length of each column apart from its direction (DoRA, Liu et al. 2024, 2402.09353)."""
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "mica"] = "default"
    """Start of the adapter. default: Kaiming, B = 0; gaussian: the same with normal numbers; orthogonal: A and B that cancel out;
    pissa: the largest singular vectors (Meng et al. 2024, 2404.02948); olora: QR (Büyükakyüz 2024, 2406.01775); both are
    saved as a plain adapter of twice the rank; mica: the smallest singular vectors as a frozen B (2604.01694)."""
    iterations: int | None = Field(None, ge=0)
    """Subspace iterations of a fast approximate SVD for init pissa (16 are plenty); null: the exact one."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        changes = self.init in ("pissa", "olora")
        _refuse(
            self.init == "orthogonal" and self.rank % 2 == 1,
            f"rank is {self.rank} with init orthogonal: got an odd rank, because one half of its directions cancels the "
            f"other; set rank to {self.rank + 1}",
            self.dora and (changes or self.init == "mica"),
            f"dora is true with init {self.init}: got both, because {self.init} splits or freezes the matrices whose columns "
            "dora measures, and PEFT cannot save or train that; set dora to false, or init to default",
            self.iterations is not None and self.init != "pissa",
            f"iterations is {self.iterations} with init {self.init}: got a number that nothing reads, because only pissa has "
            "a fast SVD; set init to pissa, or iterations to null",
        )
        return self


class QloraSettings(Section):
    """The frozen weights under the adapters of qlora (Dettmers et al. 2023, 2305.14314)."""

    bits: Literal[4, 8] = 4
    """Bits of a frozen weight: 4 (NF4 with double quantisation) or 8 (LLM.int8, 2208.07339)."""


class AdaLoraSettings(Section):
    """Low-rank adapters that shift their ranks to where they matter (AdaLoRA, Zhang et al. 2023, 2303.10512)."""

    rank: int = Field(8, ge=1)
    """Rank that a matrix has at the end, on average."""
    initial_rank: int = Field(12, ge=2)
    """Rank that every matrix starts with."""
    alpha: float = Field(32.0, gt=0)
    """Scale of the update: it is multiplied by alpha / initial_rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs dropped while training."""
    targets: Targets = "all-linear"
    """Matrices that get an adapter: ``all-linear`` (all but the head), or names such as q_proj."""
    start: float = Field(0.1, ge=0, lt=1)
    """Share of the updates before the first rank is taken away."""
    end: float = Field(0.3, ge=0, lt=1)
    """Share of the updates after the last one."""
    allocate_every: int = Field(1, ge=1)
    """Updates between two allocations."""
    smoothing: float = Field(0.85, gt=0, lt=1)
    """Share of the past in the running means of importance and of its uncertainty (beta1 and beta2 of the paper)."""
    orthogonality: float = Field(0.5, ge=0)
    """Weight of the pull that keeps the directions of a matrix apart, |P'P - I|; it is added to the loss once an update."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _refuse(
            self.rank >= self.initial_rank,
            f"rank is {self.rank} with initial_rank {self.initial_rank}: got no rank to take away, because adalora starts high "
            f"and prunes; set initial_rank to {self.rank + self.rank // 2 + 1}, or take method lora",
            self.start + self.end >= 1,
            f"start and end are {self.start} and {self.end}: got no update between them, because their sum is 1 or more; "
            "lower one of them",
        )
        return self


class Ia3Settings(Section):
    """A learnt factor for each output of some matrices (IA3, Liu et al. 2022, 2205.05638)."""

    targets: list[str] | None = None
    """Matrices that are scaled, such as k_proj; null: those that PEFT knows for the architecture."""
    feedforward: list[str] | None = None
    """Those of the targets whose input is scaled in place of the output; null: PEFT's, when targets is null, else none."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        foreign = sorted(set(self.feedforward or []) - set(self.targets or []))
        _refuse(
            bool(foreign),
            f"feedforward is {self.feedforward}: got {', '.join(foreign)}, because only a target can be one; add it to targets",
        )
        return self


class LlamaAdapterSettings(Section):
    """Learnt tokens that upper layers look at through a gate that starts at 0 (LLaMA-Adapter, Zhang et al. 2023, 2303.16199)."""

    tokens: int = Field(10, ge=1)
    """Tokens a layer."""
    layers: int | None = Field(None, ge=1)
    """Layers that get them, counted from the top; null: all."""


class PromptSettings(Section):
    """Learnt embeddings before each sequence (prompt tuning, Lester et al. 2021, 2104.08691)."""

    tokens: int = Field(20, ge=1)
    """Tokens of the prompt; they come on top of max_length."""
    init: Literal["vocabulary", "text", "random"] = "vocabulary"
    """Start: embeddings of random tokens of the vocabulary, of ``text`` (repeated or cut to ``tokens``), or random numbers."""
    text: str | None = None
    """Text for init text."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _refuse(
            (self.init == "text") != bool(self.text),
            f"text is {self.text!r} with init {self.init}: got one without the other, because init text starts from it and "
            "nothing else reads it; set both, or none",
        )
        return self


class PrefixSettings(Section):
    """Learnt keys and values before each sequence, in every layer; method prefix and p_tuning_v2."""

    tokens: int = Field(20, ge=1)
    """Tokens of the prefix; they come on top of max_length."""
    hidden: int | None = Field(None, ge=1)
    """Width of the MLP that method prefix trains the prefix through (Li and Liang 2021, 2101.00190); null: the model's width.
    p_tuning_v2 (Liu et al. 2021, 2110.07602) trains the keys and values themselves."""


class PTuningSettings(Section):
    """Learnt embeddings before each sequence, trained through an encoder (p-tuning, Liu et al. 2021, 2103.10385)."""

    tokens: int = Field(20, ge=1)
    """Tokens of the prompt; they come on top of max_length."""
    encoder: Literal["mlp", "lstm"] = "mlp"
    """Network that makes the prompt while training; it is dropped at the end."""
    hidden: int = Field(128, ge=1)
    """Width of the encoder."""
    layers: int = Field(2, ge=1)
    """Layers of an lstm (an mlp has three)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share dropped between the layers of an lstm."""


class MergingMethods(Section):
    """The methods whose result can be put into the base."""

    method: Name = "lora"
    """How the model is trained."""
    lora: LoraSettings = LoraSettings()
    """Adapters of lora and qlora."""
    qlora: QloraSettings = QloraSettings()
    """Quantisation of qlora."""
    adalora: AdaLoraSettings = AdaLoraSettings()
    """Adapters of adalora."""
    ia3: Ia3Settings = Ia3Settings()
    """Factors of ia3."""

    @property
    def quantize(self) -> Literal["4bit", "8bit"] | None:
        """How the frozen weights are loaded."""
        return None if self.bits is None else "4bit" if self.bits == 4 else "8bit"

    @property
    def bits(self) -> int | None:
        """Bits of a frozen weight; None where it is not quantised."""
        return self.qlora.bits if self.method == "qlora" else None

    @model_validator(mode="after")
    def _works(self) -> Self:
        alone = self.method == "qlora" and self.lora.init not in ("default", "gaussian")
        again = bool(getattr(getattr(self, "train", None), "gradient_checkpointing", False))
        _refuse(
            alone,
            f"lora.init is {self.lora.init} with method qlora: got an init that reads or changes the frozen weights, because "
            f"those of qlora are quantised; set lora.init to default or gaussian, or method to lora",
            again and METHODS[self.method].kind == "PREFIX_TUNING",
            f"train.gradient_checkpointing is true with method {self.method}: got both, because the prefix stands in the cache, "
            "which recomputation does without; set train.gradient_checkpointing to false",
        )
        return self


class AnyMethod(MergingMethods):
    """Every method."""

    llama_adapter: LlamaAdapterSettings = LlamaAdapterSettings()
    """Tokens of llama_adapter."""
    prompt: PromptSettings = PromptSettings()
    """Embeddings of prompt."""
    prefix: PrefixSettings = PrefixSettings()
    """Keys and values of prefix and p_tuning_v2."""
    p_tuning: PTuningSettings = PTuningSettings()
    """Embeddings and encoder of p_tuning."""


SECTIONS = {"qlora": "lora", "p_tuning_v2": "prefix"}
"""Section of a method's settings, where it is not called like the method."""


def settings_of(config: MergingMethods) -> Section | None:
    """The settings of the chosen method; None for full."""
    found: Section | None = getattr(config, SECTIONS.get(config.method, config.method), None)
    return found
