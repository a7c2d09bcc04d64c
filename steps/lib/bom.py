"""A bill of materials of a model: CycloneDX 1.6, as JSON, with the report's figures as its model card.

Source: https://cyclonedx.org/docs/1.6/json/ (schema bom-1.6). Written by hand: cyclonedx-python-lib 11.12 does not write model
cards. Deviations: no timestamp, and a serial number made of the content, so that the same model has the same bill.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from steps.lib.digests import digest_file, digest_text
from steps.lib.pedigree import LIBRARIES, Origin, Pedigree
from steps.lib.report_parts import Report

FILE = "bom.cdx.json"
LATER = (FILE, "README.md", "manifest.json")
"""Files that are written after the bill, or are the bill."""
MODEL = "model"
"""Reference of the model inside the bill."""


def document(name: str, folder: Path, report: Report, pedigree: Pedigree, *, licence: str = "") -> dict[str, Any]:
    """The bill as plain JSON.

    Args:
        name: of the model in the registry.
        folder: of the version; its files are listed with their digests, those in ``LATER`` left out.
        report: the evaluation; figures of ``report.candidate`` are taken.
        pedigree: where the model comes from.
        licence: of the model, an SPDX expression or a name; empty: not stated.
    """
    card = next(card for card in report.models if card.name == report.candidate)
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": MODEL,
        "name": name,
        "version": (card.policy or card.digest)[:12],
        "modelCard": {
            "modelParameters": {
                "task": "text-generation",
                "architectureFamily": "transformer",
                "datasets": [{"ref": origin.key} for origin in pedigree.origins if origin.is_data],
                "inputs": [{"format": "text"}],
                "outputs": [{"format": "text"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": _metrics(report)},
            "considerations": {"technicalLimitations": _limits(report)},
        },
        "properties": _properties(
            {
                "prefline:stage": card.name,
                "prefline:policy": card.policy,
                "prefline:code": pedigree.code,
                "prefline:seed": "" if pedigree.seed is None else str(pedigree.seed),
            }
        ),
    }
    if licence:
        model["licenses"] = _licences(licence)
    parts = [_base(pedigree), *map(_origin, pedigree.origins), *_libraries(pedigree), *_files(folder)]
    components = [part for part in parts if part]
    last = [pedigree.origins[-1].key] if pedigree.origins else []
    own = [part["bom-ref"] for part in components if part["type"] in ("library", "file")]
    body = {
        "metadata": {"component": model},
        "components": components,
        "dependencies": [
            {"ref": MODEL, "dependsOn": [*last, *own]},
            *({"ref": origin.key, "dependsOn": _upstream(origin, pedigree)} for origin in pedigree.origins),
        ],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_OID, digest_text(json.dumps(body, sort_keys=True, ensure_ascii=False)))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1}
    return {"$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json", **head, **body}


def write(name: str, folder: Path, report: Report, pedigree: Pedigree, *, licence: str = "") -> Path:
    """Write ``bom.cdx.json`` into a version's folder (see ``document``), after its other files and before its card."""
    path = folder / FILE
    text = json.dumps(document(name, folder, report, pedigree, licence=licence), ensure_ascii=False, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _metrics(report: Report) -> list[dict[str, Any]]:
    own = [figure for figure in (*report.figures, *report.slices) if figure.model == report.candidate]
    return [
        {
            "type": f"{figure.name} ({figure.unit})" + (f" against {figure.against}" if figure.against else ""),
            "value": f"{figure.interval.value:.6g}",
            **({"slice": figure.slice} if figure.slice else {}),
            "confidenceInterval": {
                "lowerBound": f"{figure.interval.low:.6g}",
                "upperBound": f"{figure.interval.high:.6g}",
            },
        }
        for figure in own
    ]


def _limits(report: Report) -> list[str]:
    """What is known to go wrong: bad cases by state, and the report's warnings."""
    states: dict[str, int] = {}
    for case in report.cases:
        states[case.state] = states.get(case.state, 0) + 1
    return [*(f"held-out bad cases {state}: {number}" for state, number in sorted(states.items())), *report.warnings]


def _base(pedigree: Pedigree) -> dict[str, Any] | None:
    if not pedigree.base:
        return None
    return {
        "type": "machine-learning-model",
        "bom-ref": "base-checkpoint",
        "name": pedigree.base,
        **({"version": pedigree.base_revision} if pedigree.base_revision else {}),
        "externalReferences": [{"type": "distribution", "url": f"https://huggingface.co/{pedigree.base}"}],
    }


def _origin(origin: Origin) -> dict[str, Any]:
    facts = {"prefline:digest": origin.digest} | {f"prefline:rows:{kind}": str(n) for kind, n in origin.rows.items()}
    found: dict[str, Any] = {
        "type": "data" if origin.is_data else "machine-learning-model",
        "bom-ref": origin.key,
        "name": origin.step,
        "version": origin.key.partition("/")[2],
        "properties": _properties(facts),
    }
    if origin.is_data:
        found["data"] = [{"type": "dataset", "name": origin.key}]
    return found


def _libraries(pedigree: Pedigree) -> list[dict[str, Any]]:
    return [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version.replace('+', '%2B')}",
        }
        for name, version in pedigree.versions
        if name in LIBRARIES
    ]


def _files(folder: Path) -> list[dict[str, Any]]:
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    return [
        {
            "type": "file",
            "bom-ref": f"file:{name}",
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": digest_file(folder / name)}],
        }
        for name in names
        if name.rpartition("/")[2] not in LATER
    ]


def _upstream(origin: Origin, pedigree: Pedigree) -> list[str]:
    return ["base-checkpoint"] if origin.step == "base" and pedigree.base else list(origin.inputs)


def _licences(licence: str) -> list[dict[str, Any]]:
    """A name, and not an SPDX id: whoever wrote it may have used his own words."""
    return [{"license": {"name": licence}}]


def _properties(facts: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in facts.items() if value]
