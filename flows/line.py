"""The line: every step on one page. Nothing here imports prefect.

``align`` runs it through Prefect, ``prefline step`` runs one step of it, and later commands walk it without running anything: all
give another ``make`` to the same function.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Annotated, Protocol, Self

from pydantic import Field, model_validator

from steps import (
    badcases,
    base,
    clean,
    correct,
    dpo,
    evaluate,
    generate,
    kto,
    pairs,
    pretrain,
    promote,
    reference,
    reward,
    rl,
    sft,
)
from steps.badcases import BadcasesConfig
from steps.base import BaseConfig
from steps.clean import CleanConfig
from steps.correct import CorrectConfig
from steps.dpo import DpoConfig
from steps.evaluate import EvaluateConfig
from steps.generate import GenerateConfig
from steps.kto import KtoConfig
from steps.lib.artifact import Artifact
from steps.lib.config import Neutral, Section
from steps.lib.methods import METHODS
from steps.lib.refusals import foreign
from steps.lib.retrain_config import RetrainConfig
from steps.lib.scoring import foreign as no_scorer
from steps.lib.tracking import TrackingConfig
from steps.pairs import PairsConfig
from steps.pretrain import PretrainConfig
from steps.promote import PromoteConfig
from steps.reference import ReferenceConfig
from steps.reward import RewardConfig
from steps.rl import RlConfig
from steps.sft import SftConfig

STEPS = (
    "generate",
    "badcases",
    "correct",
    "clean",
    "base",
    "pretrain",
    "sft",
    "pairs",
    "reference",
    "dpo",
    "kto",
    "reward",
    "rl",
    "evaluate",
    "promote",
)
"""Names of the steps in the order in which they run."""
ALIGNS = ("dpo", "kto", "rl")
"""Steps that align the SFT policy; a run has one of them at most."""


class AlignConfig(Section):
    """The whole line. A section set to null leaves its step out, and the line closes around it."""

    name: Annotated[str, Neutral] = "aftersales"
    """Name of the run in Prefect and in the tracker."""
    seed: int = Field(0, ge=0)
    """Seed of every random choice of every step."""
    store: Annotated[str, Neutral] = "data/artifacts"
    """Folder of the artifacts, or its URL: s3://bucket/prefix, gs://bucket/prefix."""
    cache: Annotated[Path, Neutral] = Path("data/cache")
    """Folder of this machine's copies, where the store is a URL."""
    retries: Annotated[int, Neutral] = Field(0, ge=0)
    """Times that a run through Prefect starts a step again when its process died or a teacher failed."""
    generate: GenerateConfig | None = None
    """Teachers answer prompts."""
    badcases: BadcasesConfig | None = None
    """Feedback of production becomes held-out cases and pairs."""
    correct: CorrectConfig | None = None
    """Teachers correct bad cases that no person corrected."""
    clean: CleanConfig = CleanConfig()
    """Imports, candidates and documents become training and held-out sets."""
    base: BaseConfig = BaseConfig()
    """The model that the line starts from."""
    pretrain: PretrainConfig | None = None
    """Continued pretraining on the domain corpus."""
    sft: SftConfig = SftConfig()
    """Supervised fine-tuning."""
    pairs: PairsConfig | None = None
    """Preference pairs."""
    dpo: DpoConfig | None = None
    """Preference optimisation."""
    kto: KtoConfig | None = None
    """Alignment on single verdicts (thumbs up or down), in place of dpo."""
    reward: RewardConfig | None = None
    """Reward model."""
    rl: RlConfig | None = None
    """Reinforcement learning, in place of dpo."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Every model side by side on held-out data."""
    promote: PromoteConfig | None = None
    """Gate against the champion, and registry."""
    tracking: TrackingConfig = TrackingConfig()
    """Weights & Biases."""
    retrain: Annotated[RetrainConfig, Neutral] = RetrainConfig()
    """Retraining on new bad cases."""

    @property
    def reference(self) -> ReferenceConfig | None:
        """What the step reference is configured with: no section of its own, since all of it must be as dpo has it."""
        return ReferenceConfig.of(self.dpo, self.dpo.train) if self.dpo else None

    @model_validator(mode="after")
    def _closed(self) -> Self:
        if self.dpo is not None and self.pairs is None:
            raise ValueError(
                "dpo has nothing to train on: got pairs: null, because dpo reads the pairs that it makes; "
                "set dpo to null too, or keep pairs"
            )
        if self.dpo is not None and (problem := foreign("dpo", self.dpo.method, METHODS[self.sft.method].kind)):
            raise ValueError(problem)
        if self.pairs is not None and self.pairs.wants_badcases and self.badcases is None:
            raise ValueError(
                "pairs.sources has kind badcases: got badcases: null, because the step badcases makes what it reads; "
                "set a section badcases, or take the source out"
            )
        if self.correct is not None and not self.sft.corrections and not (self.pairs and self.pairs.wants_badcases):
            raise ValueError(
                "correct is made for nothing: got no pairs.sources of kind badcases and sft.corrections=0, because its pairs go "
                "there; set one of them, or set correct to null"
            )
        if self.kto is not None and self.pairs is None and not self.clean.thumbs:
            raise ValueError(
                "kto has nothing to train on: got pairs: null and no clean.thumbs, because it reads thumbs or pairs; "
                "set kto to null too, name sources in clean.thumbs, or keep pairs"
            )
        if self.kto is not None and (problem := foreign("kto", self.kto.method, METHODS[self.sft.method].kind)):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _one_registry(self) -> Self:
        """evaluate scores the champion of the registry that promote decides for."""
        if self.promote is None:
            return self
        ours = {"registry": self.promote.registry, "name": self.promote.name}
        for field, value in ours.items():
            if getattr(self.evaluate, field) not in (EvaluateConfig.model_fields[field].default, value):
                raise ValueError(
                    f"evaluate.{field} and promote.{field} differ: got {getattr(self.evaluate, field)} and {value}, because the "
                    f"gate needs the champion of its own registry in the report; leave evaluate.{field} out"
                )
        self.__dict__["evaluate"] = self.evaluate.model_copy(update=ours)
        return self

    @model_validator(mode="after")
    def _one_way_to_align(self) -> Self:
        ways = [name for name in ALIGNS if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(
                f"{' and '.join(ways)} exclude each other: got {len(ways)} sections, because one policy is evaluated and gated; "
                f"set {' or '.join(ways)} to null"
            )
        return self

    @model_validator(mode="after")
    def _rewarded(self) -> Self:
        problems: list[str] = []
        kind = METHODS[self.sft.method].kind
        if self.reward is not None and self.pairs is None:
            problems.append(
                "reward has nothing to train on: got pairs: null, because reward reads the pairs that it makes; set reward to null "
                "too, or keep pairs"
            )
        if self.reward is not None and (problem := no_scorer(self.reward.method, kind)):
            problems.append(problem)
        if self.rl is not None and (problem := foreign("rl", self.rl.method, kind)):
            problems.append(problem)
        if self.rl is not None and self.rl.needs_a_model and self.reward is None:
            problems.append(
                "rl.rewards asks for a reward model: got reward: null, because kind model reads what the step reward makes; set a "
                "section reward, or reward by rules alone: rl.rewards=[{kind: rules}]"
            )
        if self.rl is not None and not self.rl.needs_a_model and self.reward is not None:
            problems.append(
                "reward is made for nothing: got rl.rewards without kind model, because rules alone reward; add {kind: model} to "
                "rl.rewards, or set reward to null"
            )
        if problems:
            raise ValueError("; and ".join(problems))
        return self


def steps_of(c: AlignConfig) -> tuple[str, ...]:
    """Names of the steps that a configuration has, in the order in which they run."""
    return tuple(name for name in STEPS if getattr(c, name) is not None)


class Make(Protocol):
    """Gives the artifact of a step: found in the store, or made. None where the step is left out."""

    def __call__(self, step: ModuleType, config: Section | None, **inputs: Artifact | None) -> Artifact | None: ...


def line(make: Make, c: AlignConfig) -> Artifact | None:
    """Teacher data, bad cases -> clean -> pretraining -> SFT -> pairs -> DPO, KTO, or reward model and RL -> evaluation -> gate."""
    candidates = make(generate, c.generate)
    cases = make(badcases, c.badcases)
    fixes = make(correct, c.correct, badcases=cases)
    data = make(clean, c.clean, candidates=candidates, badcases=cases)
    start = make(base, c.base, corpus=data if c.base.kind == "tiny" else None)
    grounded = make(pretrain, c.pretrain, base=start, corpus=data) or start
    better = {"badcases": cases, "corrections": fixes}
    chat = make(sft, c.sft, base=grounded, chats=data, **(better if c.sft.corrections else {}))
    prefs = make(pairs, c.pairs, policy=chat, data=data, **(better if c.pairs and c.pairs.wants_badcases else {}))
    logps = make(reference, c.reference, policy=chat, pairs=prefs)
    preferred = make(dpo, c.dpo, policy=chat, pairs=prefs, reference=logps)
    thumbed = make(kto, c.kto, policy=chat, pairs=prefs, thumbs=data, badcases=cases)
    scorer = make(reward, c.reward, policy=chat, pairs=prefs)
    rewarded = make(rl, c.rl, policy=chat, prompts=data, reward=scorer)
    models = {"base": start, "pretrained": grounded, "sft": chat, "dpo": preferred, "kto": thumbed, "rl": rewarded}
    report = make(evaluate, c.evaluate, **models, heldout=data, badcases=cases)
    return make(promote, c.promote, policy=preferred or thumbed or rewarded or chat, report=report)
