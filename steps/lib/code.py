"""The code that a step is made of: the digest of its module and of every module of ``steps`` that it imports.

VERSION is what counts in a key; this says when somebody should have raised it. ``prefline status`` shows "code changed since", and
``--strict-code`` builds such a step again.
"""

from __future__ import annotations

import ast
import functools
import json
from pathlib import Path
from typing import Any

from steps.lib.digests import digest_file, digest_text

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def closure(module: str) -> dict[str, Any]:
    """Code of a module: ``{"digest": ..., "files": {"steps/lib/chat.py": sha256, ...}}``.

    Args:
        module: dotted name, such as ``steps.sft``. Imports inside functions count.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        if name in found or not path.exists():
            continue
        found[name] = path
        waiting += _imports(path)
    paths = sorted(
        {*found.values(), *(extra for path in found.values() for extra in path.parent.glob(f"{path.stem}.*.jinja"))}
    )
    files = {path.relative_to(ROOT).as_posix(): digest_file(path) for path in paths}
    return {"digest": digest_text(json.dumps(sorted(files.items()))), "files": files}


def changed(module: str, then: dict[str, Any]) -> list[str]:
    """Files of a step's code that differ from those that built an artifact (the manifest's ``code``); empty when none does."""
    now = closure(module)["files"]
    before = then.get("files", {})
    return sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))


@functools.cache
def _imports(path: Path) -> list[str]:
    """Dotted names below ``steps`` that a file imports, anywhere in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.startswith("steps.")]
