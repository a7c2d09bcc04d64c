"""The card of a model: ``README.md`` of a version, in English and Chinese, with the figures of its evaluation. Made offline.

Source: Mitchell et al., Model Cards for Model Reporting, arXiv 1810.03993; the head is that of the Hugging Face hub
(``ModelCardData``), which is never called: ``ModelCard.validate`` would.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from steps.lib import report_page
from steps.lib.config import Section
from steps.lib.decision import Decision
from steps.lib.figures import Figure
from steps.lib.pedigree import Pedigree
from steps.lib.report_parts import Report

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

FILE = "README.md"
SHOWN = 20
"""Bad cases that the card names; it counts all."""
BAD = ("regressed", "error", "flaky", "known_fail")
"""States of a bad case that a user should know of."""


class CardConfig(Section):
    """What only a person can say of a model. It stands in its card and in its bill of materials."""

    license: str = ""
    """Licence of the model: an identifier of the Hugging Face hub such as apache-2.0, or a name; empty: the card says that nobody
    stated one."""
    use: str = ""
    """What the model is for, in your words; empty: left out."""
    out_of_scope: str = ""
    """What it must not be used for; empty: left out."""
    contact: str = ""
    """Whom to write to; empty: left out."""


def text(
    config: CardConfig,
    name: str,
    report: Report,
    pedigree: Pedigree,
    verdict: BaseModel | None = None,
    *,
    method: str = "",
) -> str:
    """The card.

    Args:
        config: what a person says.
        name: of the model in the registry.
        report: the evaluation; the card is of ``report.candidate``.
        pedigree: where the model comes from.
        verdict: ``gate.Verdict``; None: the card says nothing of a gate.
        method: how the last stage was trained (lora, full).
    """
    from huggingface_hub import ModelCard, ModelCardData

    body = report_page.card(
        "card.md.jinja",
        report,
        Decision.of(verdict) if verdict else None,
        name=name,
        config=config,
        pedigree=pedigree,
        rivals=_rivals(report),
        bad=[case for case in report.cases if case.state in BAD],
        most=SHOWN,
        states_all=Counter(case.state for case in report.cases),
    )
    head = ModelCardData(
        language=_languages(report) or None,
        license=config.license or None,
        base_model=pedigree.base or None,
        library_name="transformers" if method == "full" else "peft",
        pipeline_tag="text-generation",
        tags=["prefline", *([report.candidate] if report.candidate != "base" else [])],
        model_name=name,
        eval_results=[_result(figure) for figure in report.figures if figure.model == report.candidate] or None,
    )
    return str(ModelCard.from_template(head, template_str="---\n{{ card_data }}\n---\n\n{{ body }}", body=body))


def write(
    folder: Path,
    config: CardConfig,
    name: str,
    report: Report,
    pedigree: Pedigree,
    verdict: BaseModel | None = None,
) -> Path:
    """Write ``README.md`` into a version's folder, last of its files. It takes the place of a card that PEFT left there."""
    method = "lora" if (folder / "adapter").is_dir() else "full"
    page = text(config, name, report, pedigree, verdict, method=method)
    for path in {folder / FILE, *folder.rglob(FILE)}:
        path.write_text(page, encoding="utf-8")
    return folder / FILE


def _rivals(report: Report) -> list[str]:
    """The models that the card shows beside the candidate: the champion if it was scored, else the stage before; and the base."""
    order = [name for name in report.chain if name != report.candidate]
    before = [name for name in order if name not in ("anchor",)]
    wanted = [name for name in ("base", "champion" if "champion" in order else before[-1] if before else "") if name]
    return list(dict.fromkeys(name for name in wanted if name in order))


def _languages(report: Report) -> list[str]:
    said = {sample.lang for sample in report.samples} | {one.slice.removeprefix("lang=") for one in report.slices}
    return sorted(said & {"zh", "en"})


def _result(figure: Figure) -> EvalResult:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="text-generation",
        dataset_type=figure.suite,
        dataset_name=f"{figure.suite} (held out)",
        metric_type=figure.name,
        metric_name=f"{figure.label_en} ({figure.unit})",
        metric_value=round(figure.interval.value, 4),
        metric_args={
            "low": round(figure.interval.low, 4),
            "high": round(figure.interval.high, 4),
            "n": figure.interval.n,
        },
    )
