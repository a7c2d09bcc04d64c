"""A gate in tests: policies that are really trained, reports of made-up items, and the step that decides."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import example_report
from minimal import TinyChain

from steps import promote
from steps.lib import figures, model_files, models
from steps.lib.artifact import seal
from steps.lib.digests import digest_file
from steps.lib.figures import Item
from steps.lib.gate import Verdict
from steps.lib.report import ModelCard
from steps.lib.step import Context
from steps.promote import PromoteConfig

TRAINED: list[TinyChain] = []
"""What ``policy`` copies; a test module puts its chain here."""


def artifact(folder: Path, step: str, digest: str, inputs: dict[str, str] | None = None) -> Path:
    """Close a folder as the store does: a sealed manifest that lists every file."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest_file(path)}
        for path in folder.rglob("*")
        if path.is_file()
    }
    entries = {name: {"key": f"{name}/0", "digest": value} for name, value in (inputs or {}).items()}
    manifest = {
        "key": f"{step}/{digest[:20]}",
        "step": step,
        "digest": digest,
        "inputs": entries,
        "files": files,
        "rows": {"in": {}, "out": {}, "dropped": {}},
    }
    (folder / "manifest.json").write_text(json.dumps({**manifest, "seal": seal(manifest)}))
    return folder


def policy(folder: Path, digest: str, more: str = "") -> Path:
    """A trained adapter under another digest, on a base that lies beside it; ``more`` ends the base's chat template."""
    chain, base = TRAINED[-1], folder.parent / f"base of {folder.name}"
    shutil.copytree(models.model_folder(chain.dpo.path), base)
    with (base / "chat_template.jinja").open("a") as file:
        file.write(more)
    shutil.copytree(chain.dpo.path / "adapter", folder / "adapter")
    stages = json.loads((chain.dpo.path / "chain.json").read_text())
    (folder / "chain.json").write_text(json.dumps({**stages, "base": model_files.model_digest(base)}))
    models.write_location(folder, path=str(base))
    (folder / "record" / "history.jsonl").write_text("{}\n")
    return artifact(folder, "dpo", digest)


def evaluation(folder: Path, items: list[Item], digest: str, **met: tuple[str, list[Item]]) -> Path:
    """A report of a line whose candidate has this digest; ``met`` are champion and anchor: policy and the items it has."""
    folder.mkdir()
    rows, shown = list(items), example_report.report(items)
    cards = [card.model_copy(update={"policy": f"{card.name} of this line"}) for card in shown.models[:-1]]
    cards.append(shown.models[-1].model_copy(update={"policy": digest}))
    for name, (own, theirs) in met.items():
        rows += [item.model_copy(update={"model": name}) for item in theirs if item.model == "dpo"]
        cards.append(ModelCard(name=name, digest=f"weights of {own}", policy=own))
    (folder / "report.json").write_text(shown.model_copy(update={"models": cards}).model_dump_json())
    figures.write_items(folder / "items.parquet", rows)
    return artifact(
        folder,
        "evaluate",
        f"report of {digest}",
        {"base": "base digest", "sft": "sft digest", "dpo": digest, "heldout": "data digest"},
    )


def decide(config: PromoteConfig, policy_folder: Path, report_folder: Path, out: Path) -> Verdict:
    out.mkdir()
    context = Context(
        log=logging.getLogger("test"),
        seed=0,
        resume=out / ".resume",
        progress=lambda items, label, total=None: iter(items),
        track=lambda values, step=None: None,
    )
    promote.run(config, policy=policy_folder, report=report_folder, out=out, context=context)
    return Verdict.model_validate_json((out / "verdict.json").read_text())


def improved(items: list[Item], by: float) -> list[Item]:
    """The same items, with the candidate's rule score changed."""
    return [
        item.model_copy(update={"scores": {**item.scores, "rules": item.scores["rules"] + by}})
        if item.model == "dpo" and "rules" in item.scores
        else item
        for item in items
    ]
