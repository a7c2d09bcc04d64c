"""Golden digests: what each step of the minimal line gives, so that an output that changed under the same VERSION fails.

``tests/golden.json`` holds them by platform, because sums of floats differ between processors and versions of torch. On a platform
that is not in it, the steps without a model are compared all the same. ``make golden`` (PREFLINE_GOLDEN=write) adds this platform,
or writes it anew.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import pytest
from minimal import Line, line_steps

from steps.lib.artifact import Artifact
from steps.lib.step import module_of

pytestmark = pytest.mark.tiny

GOLDEN = Path(__file__).with_name("golden.json")
STEPS = line_steps()
DATA_STEPS = ("generate", "clean")
"""Steps without a model: their output depends on Python and pyarrow alone."""
Entry = Mapping[str, str]
"""``version``, ``key`` and ``digest`` of a step."""


def platform_of(artifact: Artifact) -> tuple[str, str]:
    """What decides the bytes of a data step here, and what decides those of a step with a model."""
    import torch

    versions = artifact.manifest["versions"]
    python = ".".join(platform.python_version_tuple()[:2])
    data = f"python {python}, pyarrow {versions['pyarrow']}"
    libraries = [
        f"{name} {versions[name]}" for name in ("torch", "transformers", "tokenizers", "trl", "peft", "accelerate")
    ]
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {_processor()}, {torch.get_num_threads()} thread"
    return data, ", ".join((data, *libraries, processor))


def _processor() -> str:
    """Maker, family and model: libraries choose their kernels by these, too."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return "/".join(facts.get(name, "") for name in ("vendor_id", "cpu family", "model"))


def entry_of(step: str, artifact: Artifact) -> dict[str, str]:
    return {"version": module_of(step).VERSION, "key": artifact.key, "digest": artifact.digest}


def problem(step: str, found: Entry, golden: Entry) -> str | None:
    """What is wrong with a step's output, and what to do; None when it is the golden one."""
    if found == golden:
        return None
    if found["key"] == golden["key"]:
        return (
            f"output of step {step} changed: got digest {found['digest'][:12]} where tests/golden.json says "
            f"{golden['digest'][:12]}, because its code gives other bytes under the same VERSION {found['version']!r}; raise VERSION "
            f"in steps/{step}.py, or find the cause; `make golden` writes it anew"
        )
    return (
        f"tests/golden.json is not of this step {step}: got VERSION {found['version']!r} and key {found['key']} where it says "
        f"{golden['version']!r} and {golden['key']}, because the step, its configuration or its input changed; look at the change, "
        "then run `make golden`"
    )


@pytest.fixture(scope="module")
def artifacts(minimal_line: Line) -> dict[str, Artifact]:
    from fault.micro import walk

    return {step: outcome.artifact for step, outcome in walk(minimal_line).items()}


def known() -> dict[str, dict[str, Entry]]:
    return dict(json.loads(GOLDEN.read_text(encoding="utf-8"))) if GOLDEN.exists() else {}


@pytest.fixture(scope="module")
def _written(artifacts: dict[str, Artifact]) -> None:
    """``make golden``: this platform's entry is written first."""
    if os.environ.get("PREFLINE_GOLDEN") == "write":
        entries = {step: entry_of(step, artifacts[step]) for step in STEPS}
        every = {**known(), platform_of(artifacts["clean"])[1]: entries}
        GOLDEN.write_text(json.dumps(dict(sorted(every.items())), indent=1) + "\n", encoding="utf-8")


@pytest.mark.usefixtures("_written")
@pytest.mark.parametrize("step", STEPS)
def test_the_output_of_a_step_is_the_golden_one(step: str, artifacts: dict[str, Artifact]) -> None:
    data, whole = platform_of(artifacts["clean"])
    entries = known()
    golden = entries.get(whole)
    if golden is None and step in DATA_STEPS:
        golden = next((entry for name, entry in entries.items() if name.startswith(data + ",")), None)
    if golden is None:
        pytest.skip(
            f"no golden digest of {step} for this platform ({data if step in DATA_STEPS else whole}); `make golden` adds it"
        )
    upstream = [entry["key"].partition("/")[0] for entry in artifacts[step].manifest["inputs"].values()]
    changed = [one for one in upstream if artifacts[one].digest != golden[one]["digest"]]
    if changed:
        pytest.skip(f"{step} stands behind {', '.join(changed)}, whose output changed: see there first")
    if message := problem(step, entry_of(step, artifacts[step]), golden[step]):
        pytest.fail(message, pytrace=False)


def test_a_changed_output_is_told_by_the_forgotten_version() -> None:
    golden = {"version": "1", "key": "sft/a", "digest": "d" * 64}
    assert problem("sft", golden, golden) is None
    told = problem("sft", {**golden, "digest": "e" * 64}, golden)
    assert told and "raise VERSION in steps/sft.py, or find the cause; `make golden` writes it anew" in told
    told = problem("sft", {**golden, "version": "2", "key": "sft/b"}, golden)
    assert told and "because the step, its configuration or its input changed" in told and "make golden" in told


def test_every_platform_has_every_step() -> None:
    assert known() and all(list(entries) == list(STEPS) for entries in known().values())
    for name, entries in known().items():
        assert name.endswith("1 thread") and all(entry["key"].startswith(f"{step}/") for step, entry in entries.items())
