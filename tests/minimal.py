"""The smallest chain that does what the real one does: short made-up rows, a Llama of two layers, a few updates.

The task: answer ``{"ok": "yes"}``. The chats say yes or no at random, so a trained policy says both, and rules tell them apart.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from steps.base import BaseConfig
from steps.dpo import DpoConfig
from steps.evaluate import EvaluateConfig
from steps.lib.artifact import Artifact
from steps.lib.config import Section
from steps.lib.publishing import publish
from steps.lib.rows import Chat, Message, Pair, Prompt, Row, Text, write_parquet
from steps.lib.step import Context, Spec, build, module_of
from steps.lib.store import work_folder
from steps.pairs import PairsConfig
from steps.pretrain import PretrainConfig
from steps.reference import ReferenceConfig
from steps.sft import SftConfig

ROOT = Path(__file__).resolve().parent.parent
YES, NO = '{"ok": "yes"}', '{"ok": "no"}'
TASK = """\
name: say-yes
student_system: {zh: "用JSON。", en: "JSON."}
schema:
  type: object
  additionalProperties: false
  required: [ok]
  properties: {ok: {type: string}}
rules:
  - {name: json_schema, kind: schema}
  - {name: yes, kind: must_match, field: ok, pattern: '^yes$'}
"""
TINY = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "max_length": 128,
}
FEW: dict[str, Any] = {
    "max_updates": 6,
    "epochs": 50,
    "batch_size": 4,
    "max_length": 96,
    "log_every": 1,
    "save_every": 2,
}

BASE = BaseConfig.model_validate(
    {
        "kind": "tiny",
        "tiny": TINY,
        "train": {"lr": 1e-2, "max_updates": 80, "epochs": 50, "batch_size": 8, "max_length": 64},
    }
)
PRETRAIN = PretrainConfig.model_validate(
    {"method": "full", "replay": 0.4, "train": {**FEW, "max_length": 64, "lr": 1e-3}}
)
SFT = SftConfig.model_validate(
    {
        "lora": {"rank": 8, "alpha": 16},
        "train": {**FEW, "lr": 1e-2, "max_updates": 16, "batch_size": 8, "save_every": 50},
    }
)
PAIRS = PairsConfig.model_validate(
    {
        "sources": [{"kind": "policy"}, {"kind": "teacher", "share": 0.5}, {"kind": "imported"}],
        "prompts": 10,
        "samples": 4,
        "max_tokens": 10,
        "batch_size": 4,
    }
)
DPO = DpoConfig.model_validate({"train": {**FEW, "lr": 5e-3}})
EVALUATE = EvaluateConfig.model_validate({"max_tokens": 8, "window": 64, "batch_size": 8, "samples": 2})


def turn(role: str, content: str) -> Message:
    return Message.model_validate({"role": role, "content": content})


def chats(count: int = 16) -> list[Chat]:
    rows = []
    for n in range(count):
        lang, system, ask = ("zh", "用JSON。", f"好吗{n}？") if n % 2 else ("en", "JSON.", f"Is {n} fine?")
        rows.append(
            Chat.model_validate(
                {
                    "id": f"chat-{n}",
                    "lang": lang,
                    "source": "made",
                    "messages": [turn("system", system), turn("user", ask), turn("assistant", YES if n % 3 else NO)],
                }
            )
        )
    return rows


def pair(n: int, chosen: str = YES, rejected: str = NO) -> Pair:
    return Pair(
        id=f"pair-{n}",
        lang="en",
        source="made",
        prompt=[turn("system", "JSON."), turn("user", f"Is {n} fine?")],
        chosen=[turn("assistant", chosen)],
        rejected=[turn("assistant", rejected)],
        margin=0.5,
    )


def texts(kind: str, count: int) -> list[Text]:
    chat = "<|im_start|>system\nJSON.<|im_end|>\n<|im_start|>user\nIs {n} fine?<|im_end|>\n<|im_start|>assistant\n{ok}<|im_end|>\n"
    said = {
        "general": "The {n} birds sing. 鸟儿{n}在歌唱。" + chat,
        "domain": "Order {n} is {ok} at the desk. 订单{n}已处理。",
    }[kind]
    return [
        Text(id=f"{kind}-{n}", lang="en", source=kind, text=said.format(n=n * 7, ok=(YES, NO)[n % 2]))
        for n in range(count)
    ]


def data_rows() -> dict[str, tuple[list[Any], type[Row]]]:
    """File -> rows, as clean writes them."""
    return {
        "corpus": (texts("domain", 12), Text),
        "general": (texts("general", 24), Text),
        "chats": (chats(), Chat),
        "pairs": ([pair(n) for n in range(8)], Pair),
        "heldout_domain": (texts("domain", 16)[12:], Text),
        "heldout_general": (texts("general", 28)[24:], Text),
        "heldout_prompts": (
            [Prompt(id=f"p{n}", lang="en", source="made", prompt=f"Is {n} fine?") for n in range(90, 93)],
            Prompt,
        ),
        "heldout_pairs": ([pair(n) for n in range(90, 95)], Pair),
    }


def close(target: Path, files: dict[str, tuple[list[Any], type[Row]]], step: str, task: str | None = None) -> Artifact:
    """Publish rows as the artifact of a step that ran elsewhere."""
    work = work_folder(target)
    work.mkdir(parents=True)
    for name, (rows, kind) in files.items():
        write_parquet(work / f"{name}.parquet", rows, kind)
    if task:
        (work / "task.yaml").write_text(task)
    rows_ledger: dict[str, Any] = {"in": {}, "out": {}, "dropped": {}}
    return publish(
        work, target, {"step": step, "key": f"{step}/{target.name}", "inputs": {}, "config": {}, "rows": rows_ledger}
    )


def data_artifact(root: Path, name: str = "minimal", *, task: str | None = TASK, **replaced: list[Any]) -> Artifact:
    """A clean-like artifact; ``chats=[...]`` and the like replace a file's rows."""
    files = {kind: (replaced.get(kind, rows), row) for kind, (rows, row) in data_rows().items()}
    return close(root / "clean" / name, files, "clean", task)


def pairs_artifact(root: Path, rows: list[Pair], name: str = "made") -> Artifact:
    return close(root / "pairs" / name, {"pairs": (rows, Pair)}, "pairs")


def made(root: Path, name: str, config: Section, *, seed: int = 0, **inputs: Artifact) -> Artifact:
    """The artifact of a real step, built in this process at its place in the store ``root``.

    dpo gets the reference that fits it, where none is given.
    """
    if isinstance(config, DpoConfig) and "reference" not in inputs:
        inputs["reference"] = made_reference(root, config, seed=seed, **inputs)
    spec = Spec(module_of(name), config, inputs, seed)
    target = root / spec.key()
    return Artifact.read(target) if target.exists() else build(spec, target)


def made_reference(root: Path, config: DpoConfig, *, policy: Artifact, pairs: Artifact, seed: int = 0) -> Artifact:
    """The reference that fits a training with dpo."""
    return made(root, "reference", ReferenceConfig.of(config, config.train), seed=seed, policy=policy, pairs=pairs)


def context(out: Path, *, seed: int = 0, track: Any = None) -> Context:
    """A context for a bare ``run``; ``out`` and its resume folder are made."""

    def progress(items: Any, label: str, total: int | None = None) -> Iterator[Any]:
        return iter(items)

    (out / ".resume").mkdir(parents=True, exist_ok=True)
    (out / "record").mkdir(exist_ok=True)
    return Context(
        log=logging.getLogger("test"),
        seed=seed,
        resume=out / ".resume",
        progress=progress,
        track=track or (lambda values, step=None: None),
    )


def with_train(config: Any, **changes: Any) -> Any:
    """The configuration with other values in its ``train`` section."""
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


@dataclass
class TinyChain:
    """One trained chain, each part built when it is first asked for."""

    root: Path

    @cached_property
    def data(self) -> Artifact:
        return data_artifact(self.root)

    @cached_property
    def base(self) -> Artifact:
        return made(self.root, "base", BASE, corpus=self.data)

    @cached_property
    def pretrain(self) -> Artifact:
        return made(self.root, "pretrain", PRETRAIN, base=self.base, corpus=self.data)

    @cached_property
    def sft(self) -> Artifact:
        return made(self.root, "sft", SFT, base=self.pretrain, chats=self.data)

    @cached_property
    def pairs(self) -> Artifact:
        return made(self.root, "pairs", PAIRS, policy=self.sft, data=self.data)

    @cached_property
    def reference(self) -> Artifact:
        return made_reference(self.root, DPO, policy=self.sft, pairs=self.pairs)

    @cached_property
    def dpo(self) -> Artifact:
        return made(self.root, "dpo", DPO, policy=self.sft, pairs=self.pairs, reference=self.reference)

    @cached_property
    def evaluate(self) -> Artifact:
        return made(
            self.root,
            "evaluate",
            EVALUATE,
            base=self.base,
            pretrained=self.pretrain,
            sft=self.sft,
            dpo=self.dpo,
            heldout=self.data,
        )


# --- the whole line --------------------------------------------------------------------------------------------------

SEEDS = {
    "domain/train": 20,
    "general/train": 24,
    "task/prompts_train": 12,
    "pairs/train": 8,
    "domain/heldout": 3,
    "general/heldout": 3,
    "task/prompts_heldout": 3,
    "pairs/heldout": 3,
}
"""File of data/seed -> rows that the minimal line takes."""


ALONE = ("pairs.sources=[{kind: policy}, {kind: teacher}, {kind: imported}]",)
"""What cpu-tiny must leave out with its bad cases."""


def line_steps() -> tuple[str, ...]:
    """The steps of the minimal line: those of cpu-tiny but badcases, which starts from its files alone and has its own tests."""
    from flows.line import AlignConfig, steps_of
    from steps.lib.config import layers_of, load

    return steps_of(load(AlignConfig, layers_of("cpu-tiny", root=ROOT / "configs"), ["badcases=null", *ALONE]).value)


def line_recipe(folder: Path) -> Path:
    """A recipe over cpu-tiny: own copies of the first seed rows, a few updates a step, store and registry in ``folder``."""
    import json

    for name, count in SEEDS.items():
        lines = (ROOT / "data" / "seed" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        (folder / f"{name.replace('/', '-')}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def source(name: str) -> list[dict[str, str]]:
        return [{"name": name.replace("/", "-"), "path": str(folder / f"{name.replace('/', '-')}.jsonl")}]

    few = {"batch_size": 8, "accumulation": 1, "epochs": 20, "log_every": 1, "max_length": 512, "lr": 1e-3}
    recipe = {
        "name": "minimal",
        "store": str(folder / "store"),
        "tracking": {"mode": "disabled"},
        "generate": {"prompts": source("task/prompts_train")},
        "badcases": None,
        "clean": {
            "domain": source("domain/train"),
            "general": source("general/train"),
            "pairs": source("pairs/train"),
            "heldout": {
                kind: source(f"{where}_heldout" if kind == "prompts" else f"{where}/heldout")
                for kind, where in (
                    ("domain", "domain"),
                    ("general", "general"),
                    ("prompts", "task/prompts"),
                    ("pairs", "pairs"),
                )
            },
        },
        "base": {"tiny": {**TINY, "max_length": 512}, "train": {**few, "max_updates": 6, "max_length": 64}},
        "pretrain": {"train": {**few, "max_updates": 2, "max_length": 64}},
        "sft": {"lora": {"rank": 4, "alpha": 8}, "train": {**few, "max_updates": 3}},
        "pairs": {
            "prompts": 4,
            "samples": 2,
            "max_tokens": 6,
            "batch_size": 4,
            "sources": [{"kind": "policy"}, {"kind": "teacher"}, {"kind": "imported"}],
        },
        "dpo": {"train": {**few, "max_updates": 2}},
        "evaluate": {"limit": 3, "max_tokens": 6, "window": 128, "batch_size": 4, "suites": []},
        "promote": {"registry": str(folder / "registry")},
    }
    path = folder / "minimal.yaml"
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Line:
    """A recipe of the minimal line, and the folder in which its data, store and registry lie."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "minimal.yaml"

    def config(self, *overrides: str) -> Any:
        from flows.line import AlignConfig
        from steps.lib.config import layers_of, load

        return load(AlignConfig, layers_of("cpu-tiny", [self.recipe], ROOT / "configs"), overrides).value

    def copy(self, folder: Path) -> Line:
        """The same line with a store and a registry of its own."""
        import shutil

        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        copied = Line(folder)
        copied.recipe.write_text(
            self.recipe.read_text(encoding="utf-8").replace(str(self.folder), str(folder)), encoding="utf-8"
        )
        return copied
