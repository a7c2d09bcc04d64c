"""``lineage.json`` of a version: everything it was made from, with seeds, code, libraries and machines.

It is read from the manifests of the store, which may be gone later. It is a record: a version that was built again elsewhere is the
same version, whatever its times and hosts.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steps.lib import runtime
from steps.lib.artifact import lineage
from steps.lib.digests import digest_text

LINEAGE = "lineage.json"
GPUS = Path("/proc/driver/nvidia/gpus")


def write_lineage(version: Path, policy: Path, report: Path | None, fingerprint: Mapping[str, str]) -> Path:
    """Write ``lineage.json`` into the folder of a version that is about to be registered.

    Args:
        version: the folder.
        policy: artifact of the model.
        report: artifact of its evaluation.
        fingerprint: what the evaluation was made with: dtype, machine, libraries, digests of suites.

    Returns:
        The file.
    """
    manifests = {one["key"]: one for folder in (policy, report) if folder for one in lineage(folder)}
    named = {entry["key"] for one in manifests.values() for entry in one["inputs"].values()}
    page = {
        "schema": 1,
        "policy": json.loads((policy / "manifest.json").read_text(encoding="utf-8"))["key"],
        "artifacts": [_entry(one) for one in manifests.values()],
        "missing": sorted(named - manifests.keys()),
        "evaluation": dict(fingerprint),
        "registered_on": here(),
    }
    path = version / LINEAGE
    path.write_text(json.dumps(page, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def here() -> dict[str, Any]:
    """This machine and its software: processor, cores, accelerators, commit, versions, and a digest of all installed packages."""
    packages = sorted({f"{one.name.lower()}=={one.version}" for one in importlib.metadata.distributions() if one.name})
    return {
        "host": platform.node(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "accelerators": accelerators(),
        "git": runtime.git_commit(),
        "versions": runtime.versions(),
        "packages": len(packages),
        "packages_sha256": digest_text("\n".join(packages)),
    }


def accelerators(folder: Path = GPUS) -> list[str]:
    """Names of the NVIDIA devices that the driver shows; found without loading torch."""
    found = []
    for path in sorted(folder.glob("*/information")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return found


def _entry(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """One artifact: what decides it, and how it came to be."""
    parts, config = manifest.get("parts", {}), manifest.get("config", {})
    precision = (config.get("train") or {}).get("precision") or config.get("precision")
    kept = ("git", "versions", "host", "finished", "seconds", "tokens", "cost")
    return {
        "key": manifest["key"],
        "step": manifest["step"],
        "digest": manifest["digest"],
        "inputs": {name: entry["key"] for name, entry in manifest["inputs"].items()},
        "input_digests": {name: entry["digest"] for name, entry in manifest["inputs"].items()},
        "step_version": parts.get("version"),
        "config_sha256": digest_text(json.dumps(parts.get("config", config), sort_keys=True, ensure_ascii=False)),
        "externals": parts.get("externals", {}),
        "seed": parts.get("seed"),
        "precision": precision,
        **{name: manifest[name] for name in kept if name in manifest},
    }
