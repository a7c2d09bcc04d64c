"""Task files of lm-eval (EleutherAI/lm-evaluation-harness, 0.4) that are data: read here, so that its own loader never sees them.

lm-eval runs what ``!function`` names in a YAML file, and renders templates without a sandbox; both are refused. Rows come from
files on this machine, found from the folder of the YAML (lm-eval looks from the working directory). Metrics are those that are a
mean over items, or bits per byte: others have no interval that this project knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib.digests import digest_file
from steps.lib.errors import ConfigError
from steps.lib.figures import Measure

SUITE = "lm_eval"
MEANS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
BITS = "bits_per_byte"
READERS = ("json", "csv", "parquet", "text")
"""Values of dataset_path: kinds of files. Others are data sets of the hub."""
REFUSED = {
    "class": "it names code",
    "group": "it is a group, whose means of means have no interval; name its tasks",
    "use_prompt": "it loads templates from elsewhere",
    "unsafe_code": "it runs what the model wrote",
    "custom_dataset": "it names code",
    "process_docs": "it names code",
    "process_results": "it names code",
}


@dataclass(frozen=True)
class TaskFile:
    """One task."""

    name: str
    config: dict[str, Any]
    """As lm-eval takes it, without includes; paths of data are absolute."""
    data: tuple[Path, ...]
    """Files that its rows come from."""

    @property
    def filters(self) -> list[str]:
        """Names of its filters; "none" where it has none of its own."""
        return [one["name"] for one in self.config.get("filter_list") or [{"name": "none"}]]

    def score(self, metric: str, filter_: str) -> str:
        """Key of a metric in an item's scores."""
        name = f"{self.name}:{metric}"
        return name if len(self.filters) < 2 else f"{name}@{filter_}"

    def measures(self) -> Iterator[Measure]:
        """Its figures."""
        for one in self.config["metric_list"]:
            metric = one["metric"]
            for filter_ in self.filters:
                score = self.score(metric, filter_)
                bits = metric == BITS
                yield Measure(
                    name=f"{SUITE}_{score.replace(':', '_').replace('@', '_')}",
                    label_en=f"{score.replace(':', ': ')} (lm-eval)",
                    label_zh=f"{score.replace(':', '：')}（lm-eval）",
                    unit="bits/byte" if bits else "share",
                    better="lower" if bits else "higher",
                    suite=SUITE,
                    score=f"{self.name}:bits" if bits else score,
                    weight=f"{self.name}:bytes" if bits else "",
                    method=f"lm-eval, {self.config['output_type']}",
                )

    def digest(self) -> list[str]:
        """What decides its items, as texts: the task, and the bytes of its rows by split."""
        config = {key: value for key, value in self.config.items() if key != "dataset_kwargs"}
        splits: dict[str, list[str]] = self.config["dataset_kwargs"]["data_files"]
        rows = {split: [digest_file(Path(path)) for path in paths] for split, paths in splits.items()}
        return [json.dumps(one, sort_keys=True, ensure_ascii=False) for one in (config, rows)]


def read(folder: Path, names: tuple[str, ...]) -> list[TaskFile]:
    """The tasks of these names.

    Args:
        folder: where their YAML files are, at any depth.
        names: the tasks.

    Raises:
        ConfigError: the folder or a task is missing, a file does not parse, or it holds what is refused; all are told.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"folder {folder} of lm-eval's tasks is not there: got no folder, because evaluate.lm_eval.include_path is wrong; give "
            "the folder with their *.yaml files"
        )
    known, unread = _known(folder)
    for name in names:
        for path, error in unread.items():  # a file that nobody asks for may hold anything
            if name not in known and re.search(rf"^task:\s*['\"]?{re.escape(name)}['\"]?\s*$", _text(path), re.M):
                raise error
    if missing := [name for name in names if name not in known]:
        raise ConfigError(
            f"tasks {', '.join(missing)} of lm-eval are not in {folder}: got {', '.join(sorted(known)) or 'no task there'}, "
            "because the folder has no YAML file with that `task`; name one of these, or another folder"
        )
    problems: list[str] = []
    found: list[TaskFile] = []
    for name in names:
        wrong = len(problems)
        config = _included(known[name], (), problems)
        problems += [f"task {name} of lm-eval ({known[name]}): {one}" for one in _problems(config)]
        if len(problems) == wrong:
            found.append(_task(name, config, known[name].parent, problems))
    if problems:
        raise ConfigError(problems)
    return found


def _known(folder: Path) -> tuple[dict[str, Path], dict[Path, ConfigError]]:
    """Task -> file, and what is wrong with files that cannot be read.

    Raises:
        ConfigError: a task stands in two files.
    """
    known: dict[str, Path] = {}
    unread: dict[Path, ConfigError] = {}
    for path in sorted(folder.rglob("*.yaml")):
        try:
            name = _page(path).get("task")
        except ConfigError as error:
            unread[path] = error
            continue
        if isinstance(name, str) and known.setdefault(name, path) != path:
            raise ConfigError(
                f"task {name} of lm-eval stands twice: got {known[name]} and {path}, because two files have the same `task`; "
                "rename one"
            )
    return known, unread


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


def _page(path: Path) -> dict[str, Any]:
    """A YAML file that holds values only.

    Raises:
        ConfigError: it does not parse, or has a tag.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        page = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(
            f"task file {path} cannot be read: got {said:.160}, because it is no YAML, or a tag such as !function would run code; "
            "write values only"
        ) from None
    return page if isinstance(page, dict) else {}


def _included(path: Path, above: tuple[Path, ...], problems: list[str]) -> dict[str, Any]:
    """A page over those that it includes; its own values win, as in lm-eval."""
    page = _page(path)
    names = page.pop("include", [])
    merged: dict[str, Any] = {}
    for name in names if isinstance(names, list) else [names]:
        inner = (path.parent / name).resolve()
        if inner in above or inner == path.resolve() or not inner.is_file():
            problems.append(
                f"include {name} of {path} is wrong: got {inner}, because it is no file, or a circle; mend it"
            )
            continue
        merged |= _included(inner, (*above, path.resolve()), problems)
    return {**merged, **page}


def _problems(config: dict[str, Any]) -> Iterator[str]:
    for key, why in REFUSED.items():
        if config.get(key):
            yield f"{key} is refused: got {config[key]!r:.60}, because {why}; leave it out"
    if (reader := config.get("dataset_path")) not in READERS:
        yield (
            f"dataset_path is refused: got {reader!r}, because it is fetched from the hub; put its rows into a file and give one "
            f"of {', '.join(READERS)}"
        )
    kwargs = config.get("dataset_kwargs") or {}
    if set(kwargs) - {"data_files"} or not kwargs.get("data_files"):
        yield f"dataset_kwargs is wrong: got {sorted(kwargs)}, because rows come from files here; give data_files alone"
    for text in _texts(config):
        if "__" in text or "|attr" in text.replace(" ", ""):
            yield f"a template is refused: got {text!r:.80}, because templates reach Python's insides by such names; reword it"
    if not config.get("metric_list"):
        yield f"metric_list is missing: got none, because each figure is named here; give some of {', '.join(MEANS)}, {BITS}"
    for one in config.get("metric_list") or []:
        name, aggregation = one.get("metric"), one.get("aggregation", "mean")
        fits = aggregation in ("mean", BITS) if name == BITS else aggregation == "mean"
        if name not in (*MEANS, BITS) or not fits or one.get("hf_evaluate"):
            yield (
                f"metric {name!r} ({aggregation}) cannot be taken: got no mean over items, because its interval is not known or it "
                f"is fetched from the hub; give one of {', '.join(MEANS)} with aggregation mean, or {BITS}"
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _task(name: str, config: dict[str, Any], folder: Path, problems: list[str]) -> TaskFile:
    """A task with the files that its rows come from."""
    given = config["dataset_kwargs"]["data_files"]
    splits = given if isinstance(given, dict) else {"train": given}
    files: dict[str, list[str]] = {}
    for split, paths in splits.items():
        files[split] = [str((folder / one).resolve()) for one in (paths if isinstance(paths, list) else [paths])]
    found = tuple(Path(path) for paths in files.values() for path in paths)
    for path in found:
        if not path.is_file():
            problems.append(
                f"data {path} of task {name} of lm-eval is not there: got no file, because data_files is looked for beside its "
                "YAML file; put it there, or give its whole path"
            )
    metrics = [{"aggregation": "mean", "higher_is_better": True, **one} for one in config["metric_list"]]
    for one in metrics:
        if one["metric"] == BITS:
            one |= {"aggregation": BITS, "higher_is_better": False}
    config = {"output_type": "generate_until", "num_fewshot": 0, **config, "metric_list": metrics}
    return TaskFile(name, {**config, "dataset_kwargs": {"data_files": files}}, found)
