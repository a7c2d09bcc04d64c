"""Public benchmarks through lm-eval (extra ``lm-eval``; EleutherAI/lm-evaluation-harness 0.4.13), as items like any other suite's.

Only its scoring is used: tasks are read by ``lm_eval_tasks``, the model is the one that is loaded already, and every document
becomes an item. Its caches stay off, since they answer for other models and other rows (issues #2715, #4063): finished tasks are
kept by ``recall``, whose key has the model, the task and the bytes of its rows. Data sets are read afresh into a folder that goes
away.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from steps.lib import lm_eval_tasks
from steps.lib.config import Neutral, Section
from steps.lib.digests import digest_text
from steps.lib.errors import ConfigError, PreflineError
from steps.lib.figures import Item, Measure
from steps.lib.inference import Later
from steps.lib.language import detect
from steps.lib.lm_eval_tasks import BITS, SUITE, TaskFile
from steps.lib.suites import Scored

SCORER = "1"


class LmEvalConfig(Section):
    """Tasks of lm-eval."""

    include_path: Annotated[Path, Neutral]
    """Folder of the tasks' YAML files, at any depth (their content is in the key, the path is not)."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of tasks in that folder; groups are not taken."""
    limit: int | None = Field(None, ge=1)
    """Documents of each task, the first ones; null: all."""
    chat_template: bool = False
    """Ask through the chat template. Public figures of base models are made without."""


class LmEval:
    """The suite ``lm_eval``.

    Args:
        config: which tasks.

    Raises:
        ConfigError: the extra is not installed, or a task is wrong.
    """

    name = SUITE

    def __init__(self, config: LmEvalConfig) -> None:
        try:
            self._version = importlib.metadata.version("lm_eval")
        except importlib.metadata.PackageNotFoundError:
            raise ConfigError(
                "evaluate.lm_eval cannot be used: got no package lm_eval, because it is an optional extra; install it with `pip "
                "install -c constraints.txt 'prefline[lm-eval]'`, or set evaluate.lm_eval to null"
            ) from None
        self._config = config
        self._tasks = lm_eval_tasks.read(config.include_path, tuple(dict.fromkeys(config.tasks)))

    @property
    def measures(self) -> Sequence[Measure]:
        """The figures of all tasks."""
        return [measure for task in self._tasks for measure in task.measures()]

    @property
    def prompts(self) -> Mapping[str, str]:
        """None: the answers are held against what a task expects."""
        return {}

    def __len__(self) -> int:
        return sum(self._count(task) for task in self._tasks)

    def digest(self) -> str:
        """Of tasks, rows, settings and lm-eval's version."""
        parts = [part for task in self._tasks for part in task.digest()]
        return digest_text("\n".join([SCORER, self._version, *self._settings, *parts]))

    def score(self, who: Scored) -> list[Item]:
        """An item for each document of each task. Where a task cannot be scored, each of its items has the error."""
        return [item for task in self._tasks for item in self._items(task, who)]

    @property
    def _settings(self) -> list[str]:
        return [str(self._config.limit), str(self._config.chat_template)]

    def _items(self, task: TaskFile, who: Scored) -> list[Item]:
        content = {
            "kind": SUITE,
            "version": [SCORER, self._version, *self._settings],
            "task": task.digest(),
            "seed": who.seed,
            "batch_size": who.limits.batch_size,
        }
        try:
            compute = partial(self._computed, task, who)
            rows = who.recall(content, compute) if who.recall else json.loads(json.dumps(compute()))
        except PreflineError:  # a stop, for one
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            bare = {"model": who.name, "suite": SUITE, "slices": [task.name], "error": said[:2000]}
            ids = [f"{task.name}/{place}" for place in range(self._count(task))]
            return [Item(item_id=one, cluster_id=one, **bare) for one in ids]
        return [Item(model=who.name, suite=SUITE, **row) for row in rows]

    def _count(self, task: TaskFile) -> int:
        """Documents that are scored."""
        count = len(self._loaded[task.name].eval_docs)
        return min(count, self._config.limit or count)

    @cached_property
    def _loaded(self) -> dict[str, Any]:
        """lm-eval's own task objects."""
        with tempfile.TemporaryDirectory(prefix="prefline-lm-eval-") as folder:
            return {task.name: _load(task, folder) for task in self._tasks}

    def _computed(self, task: TaskFile, who: Scored) -> list[dict[str, Any]]:
        """Rows of items, without the model's name."""
        import torch

        evaluator: Any = importlib.import_module("lm_eval.evaluator")
        wrappers: Any = importlib.import_module("lm_eval.models.huggingface")
        model = who.model.load() if isinstance(who.model, Later) else who.model
        model.eval()
        asked = wrappers.HFLM(
            pretrained=model, tokenizer=who.tokenizer, backend="causal", batch_size=who.limits.batch_size
        )
        with tempfile.TemporaryDirectory(prefix="prefline-lm-eval-") as folder:
            one = _load(task, folder)  # afresh: requests and their answers stay in the object
            one.set_fewshot_seed(seed=who.seed)
            torch.manual_seed(who.seed)
            found = evaluator.evaluate(
                lm=asked,
                task_dict={"tasks": {task.name: one}, "groups": {}, "group_map": {}},
                limit=self._config.limit,
                cache_requests=False,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=self._config.chat_template,
                fewshot_as_multiturn=self._config.chat_template,
            )
        rows: dict[int, dict[str, Any]] = {}
        for sample in found["samples"][task.name]:
            row = rows.setdefault(int(sample["doc_id"]), _row(task, sample, who.tokenizer, asked.max_length))
            row["scores"] |= _scores(task, sample)
        return [rows[place] for place in sorted(rows)]


def _load(task: TaskFile, folder: str) -> Any:
    """lm-eval's object of a task; ``folder`` takes what its reader of data sets keeps.

    Raises:
        ConfigError: lm-eval does not take the task.
    """
    tasks: Any = importlib.import_module("lm_eval.tasks")
    place = {"cache_dir": folder, "keep_in_memory": True}
    config = {**task.config, "dataset_kwargs": {**task.config["dataset_kwargs"], **place}}
    try:
        return tasks.TaskManager(include_path=None, include_defaults=False).load([config])["tasks"][task.name]
    except Exception as error:
        raise ConfigError(
            f"task {task.name} of lm-eval cannot be loaded: got {type(error).__name__}: {error}, because its templates or splits "
            "do not fit its rows; mend the YAML file"
        ) from error


def _row(task: TaskFile, sample: dict[str, Any], tokenizer: Any, most: int) -> dict[str, Any]:
    """An item as JSON types, without scores."""
    requests = [[part if isinstance(part, str) else "" for part in one] for one in sample["arguments"]]
    prompt, output = requests[0][0], _output(sample, requests)
    lengths = [_tokens(tokenizer, "".join(one)) for one in requests]
    return {
        "item_id": f"{task.name}/{sample['doc_id']}",
        "cluster_id": f"{task.name}/{sample['doc_hash'][:16]}",
        "lang": detect(prompt or output),
        "slices": [task.name, *(["truncated"] if max(lengths) > most else [])],
        "scores": {},
        "output": output,
        "n_in": _tokens(tokenizer, prompt),
        "n_out": _tokens(tokenizer, output),
    }


def _tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _output(sample: dict[str, Any], requests: list[list[str]]) -> str:
    """What the model said, or the choice that it finds likeliest; of a text that is only scored, nothing."""
    first = sample["filtered_resps"][0]
    if isinstance(first, str):
        return first
    if isinstance(first, list | tuple) and len(first) == 2 and len(requests[0]) == 2:
        likely = max(range(len(requests)), key=lambda place: float(sample["filtered_resps"][place][0]))
        return requests[likely][1]
    return ""


def _scores(task: TaskFile, sample: dict[str, Any]) -> dict[str, float]:
    """Scores of one document under one filter.

    Raises:
        ValueError: a metric is not the number that it should be.
    """
    import math

    found: dict[str, float] = {}
    for one in task.config["metric_list"]:
        metric = one["metric"]
        value = sample[metric]
        if metric == BITS:
            nats, size = value
            found |= {f"{task.name}:bits": -float(nats) / math.log(2), f"{task.name}:bytes": float(size)}
        else:
            found[task.score(metric, sample["filter"])] = float(value)
    if not all(map(math.isfinite, found.values())):
        raise ValueError(f"document {sample['doc_id']} of {task.name} has scores {found}, which are no numbers")
    return found
