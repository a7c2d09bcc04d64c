"""Task files of lm-eval: what would run code or fetch something is refused, all at once, and includes and data are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steps.lib import lm_eval_tasks
from steps.lib.errors import ConfigError
from steps.lib.lm_eval import LmEval, LmEvalConfig

TASK = """\
task: fine
include: common.yaml
doc_to_text: "{{q}}"
doc_to_choice: ["yes", "no"]
doc_to_target: a
metric_list:
  - {metric: acc}
"""
COMMON = """\
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "lost"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fine.yaml").write_text(TASK)
    (tmp_path / "common.yaml").write_text(COMMON)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "Fine?", "a": 0}) + "\n")
    return tmp_path


def changed(folder: Path, old: str, new: str) -> None:
    path = folder / "fine.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_task_is_read_with_its_includes_and_rows(folder: Path) -> None:
    [task] = lm_eval_tasks.read(folder, ("fine",))
    assert task.config["doc_to_text"] == "{{q}}", "own values win"
    assert task.data == (folder / "rows.jsonl",)
    assert task.config["dataset_kwargs"] == {"data_files": {"test": [str(folder / "rows.jsonl")]}}
    [what] = task.measures()
    assert (what.name, what.suite, what.score, what.unit) == ("lm_eval_fine_acc", "lm_eval", "fine:acc", "share")


def test_the_digest_has_the_rows_and_not_their_place(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    def digest(place: Path) -> list[str]:
        return lm_eval_tasks.read(place, ("fine",))[0].digest()

    before = digest(folder)
    other = tmp_path_factory.mktemp("moved")
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    assert digest(other) == before
    (other / "rows.jsonl").write_text(json.dumps({"q": "Fine!", "a": 0}) + "\n")
    assert digest(other) != before, "lm-eval's own cache of requests is blind to this"
    changed(folder, "{{q}}", "{{q}}?")
    assert digest(folder) != before


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("doc_to_target: a", "doc_to_target: !function steal.me", "a tag such as !function would run code"),
        ("doc_to_target: a", "doc_to_target: !!python/name:os.system", "a tag such as !function would run code"),
        ("doc_to_target: a", "doc_to_target: a\nclass: x.Y", "class is refused: got 'x.Y', because it names code"),
        ('"{{q}}"', "\"{{ ''.__class__.__mro__ }}\"", "a template is refused"),
        ('"{{q}}"', "\"{{ q | attr('x') }}\"", "a template is refused"),
        ("doc_to_target: a", "doc_to_target: a\ndataset_path: org/set", "dataset_path is refused: got 'org/set'"),
        ("doc_to_target: a", "doc_to_target: a\ndataset_kwargs: {trust_remote_code: true}", "dataset_kwargs is wrong"),
        ("{metric: acc}", "{metric: f1}", r"metric 'f1' \(mean\) cannot be taken"),
        ("{metric: acc}", "{metric: acc, aggregation: median}", r"metric 'acc' \(median\) cannot be taken"),
        ("{metric: acc}", "{metric: acc, hf_evaluate: true}", "fetched from the hub"),
        ("common.yaml", "nowhere.yaml", "include nowhere.yaml of .* is wrong"),
        ("common.yaml", "fine.yaml", "include fine.yaml of .* is wrong: .* or a circle"),
        ("task: fine", "task: good", "tasks fine of lm-eval are not in .*: got good, because"),
    ],
)
def test_what_is_not_plain_data_is_refused(folder: Path, old: str, new: str, said: str) -> None:
    (folder / "steal.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\nme = str\n")
    changed(folder, old, new)
    with pytest.raises(ConfigError, match=said):
        lm_eval_tasks.read(folder, ("fine",))
    assert not (folder / "ran").exists()


def test_all_problems_are_told_at_once_and_rows_must_be_there(folder: Path) -> None:
    changed(folder, "{metric: acc}", "{metric: f1}")
    changed(folder, "doc_to_target: a", "doc_to_target: a\nunsafe_code: true\ndataset_path: org/set")
    with pytest.raises(ConfigError) as caught:
        lm_eval_tasks.read(folder, ("fine",))
    assert len(caught.value.problems) == 3
    (folder / "fine.yaml").write_text(TASK)
    (folder / "rows.jsonl").unlink()
    with pytest.raises(ConfigError, match="rows.jsonl of task fine of lm-eval is not there"):
        lm_eval_tasks.read(folder, ("fine",))


def test_a_file_that_nobody_asks_for_may_hold_anything(folder: Path) -> None:
    (folder / "other.yaml").write_text("task: other\nprocess_docs: !function utils.process\n")
    assert [task.name for task in lm_eval_tasks.read(folder, ("fine",))] == ["fine"]
    with pytest.raises(ConfigError, match="task file .*other.yaml cannot be read"):
        lm_eval_tasks.read(folder, ("other",))
    (folder / "twin.yaml").write_text(TASK)
    with pytest.raises(ConfigError, match="task fine of lm-eval stands twice"):
        lm_eval_tasks.read(folder, ("fine",))


def test_without_the_extra_it_is_said_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"got no package lm_eval, because it is an optional extra; install it with"):
        LmEval(LmEvalConfig(include_path=folder, tasks=("fine",)))
