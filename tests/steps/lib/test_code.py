"""The code of a step: its module and what it imports from the project."""

from __future__ import annotations

from steps.lib import code
from steps.lib.code import changed, closure


def test_the_closure_holds_what_the_step_imports_and_nothing_of_flows() -> None:
    files = closure("steps.sft")["files"]
    assert {"steps/sft.py", "steps/lib/training.py", "steps/lib/chat.py", "steps/lib/errors.py"} <= files.keys()
    assert not [name for name in files if name.startswith("flows") or name in ("steps/dpo.py", "steps/lib/report.py")]
    assert "steps/lib/report.html.jinja" in closure("steps.evaluate")["files"], "a template is code"
    assert closure("steps.sft")["digest"] != closure("steps.dpo")["digest"]


def test_imports_inside_functions_and_of_names_count(tmp_path: object) -> None:
    assert "steps.lib.inference" in code._imports(code.ROOT / "steps" / "pairs.py")
    assert "steps/lib/dedup.py" in closure("steps.clean")["files"], "through sieve"


def test_changed_names_the_files() -> None:
    now = closure("steps.sft")
    assert changed("steps.sft", now) == []
    files = {**now["files"], "steps/lib/training.py": "0" * 64, "steps/lib/gone.py": "1" * 64}
    del files["steps/lib/chat.py"]
    assert changed("steps.sft", {"files": files}) == ["steps/lib/chat.py", "steps/lib/gone.py", "steps/lib/training.py"]
    assert "steps/sft.py" in changed("steps.sft", {}), "an artifact of before there was such a record"
