"""What a version of the registry holds: the model, its evaluation with the verdict, where it came from, its bill and its card.

The card is written last, so that it can say no more than the other files do.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from steps.lib import bom, card
from steps.lib import report as reports
from steps.lib.artifact import lineage
from steps.lib.card import CardConfig
from steps.lib.figures import Item
from steps.lib.gate import Verdict
from steps.lib.pedigree import Pedigree
from steps.lib.registry_lineage import write_lineage
from steps.lib.report import Report

EVAL_REPORT, EVAL_ITEMS, EVAL_VERDICT = "eval/report.json", "eval/items.jsonl.zst", "eval/verdict.json"


def stage(
    folder: Path,
    *,
    name: str,
    policy: Path,
    report: Path,
    shown: Report,
    items: Sequence[Item],
    verdict: Verdict,
    told: CardConfig,
) -> Path:
    """Write a clean copy of all that becomes a version.

    Args:
        folder: where; what is there is deleted.
        name: of the model in the registry.
        policy: artifact of the model: ``adapter/`` and ``chain.json``, or ``model/``.
        report: artifact of its evaluation.
        shown: the report.
        items: of the report.
        verdict: on the model.
        told: what a person says of it.

    Returns:
        The folder.
    """
    import pyarrow as pa

    shutil.rmtree(folder, ignore_errors=True)
    (folder / "eval").mkdir(parents=True)
    for part in ("adapter" if (policy / "adapter").is_dir() else "model", "chain.json"):
        if (policy / part).is_dir():
            shutil.copytree(policy / part, folder / part, symlinks=True)
        elif (policy / part).exists():
            shutil.copyfile(policy / part, folder / part)
    (folder / EVAL_REPORT).write_text(reports.result(shown), encoding="utf-8")
    with pa.CompressedOutputStream(str(folder / EVAL_ITEMS), "zstd") as file:
        for item in items:
            file.write(item.model_dump_json().encode() + b"\n")
    (folder / EVAL_VERDICT).write_text(dumped(verdict), encoding="utf-8")
    write_lineage(folder, policy, report, shown.fingerprint)
    pedigree = Pedigree.of(lineage(policy))
    bom.write(name, folder, shown, pedigree, licence=told.license)
    card.write(folder, told, name, shown, pedigree, verdict)
    return folder


def dumped(verdict: Verdict) -> str:
    """A verdict as the text whose digest stands in the registry's events."""
    return verdict.model_dump_json(indent=1) + "\n"
