"""What clean reads: every source and the candidates, in shards that workers repair and judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from steps.lib.admission import Terms, candidate_shards
from steps.lib.benchmarks import benchmark_items
from steps.lib.clean_config import CleanConfig
from steps.lib.config import key_view
from steps.lib.digests import digest_file
from steps.lib.errors import DataError
from steps.lib.kinds import KINDS
from steps.lib.mixing import misnamed
from steps.lib.opened import Opened, open_sources
from steps.lib.overlap import Item
from steps.lib.row_tables import Rows
from steps.lib.shards import look, shards
from steps.lib.sieve import Sieve
from steps.lib.sources import digest
from steps.lib.step import Context
from steps.lib.work_ledger import WorkLedger
from steps.lib.workers import Known, Task


def look_at(config: CleanConfig, generated: bool) -> tuple[list[Opened[Any]], list[Item]]:
    """Open every source, and read the benchmarks: nothing is cleaned when one of them is bad, or a mix names other sources.

    Args:
        config: of the step.
        generated: whether there are candidates, too.

    Raises:
        DataError: every problem of every file and mix, in one message.
    """
    problems: list[str] = []
    for kind, mix in config.mix.items():
        names = [source.name for name, source, _ in config.asked() if name == kind]
        names += ["candidates"] if generated and kind == "chats" else []
        problems += [f"clean.mix.{kind}: {problem}" for problem in misnamed(names, mix)]
    opened: list[Opened[Any]] = []
    items: list[Item] = []
    try:
        opened = open_sources([(source, kind) for _, source, kind in config.asked()])
    except DataError as error:
        problems.append(str(error))
    try:
        items = benchmark_items(config.decontaminate) if config.decontaminate else []
    except DataError as error:
        problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return opened, items


def read_all(
    config: CleanConfig,
    opened: Sequence[Opened[Any]],
    candidates: Path | None,
    sieve: Sieve,
    ledger: WorkLedger,
    context: Context,
) -> dict[str, Rows]:
    """Kind -> rows of all its sources, repaired and judged, in shards."""
    folder = context.resume / "shards"
    folder.mkdir(exist_ok=True)
    kinds = {name: row for kind in KINDS for name, row in ((kind.held, kind.held_row), (kind.name, kind.row)) if name}
    tables = {name: Rows(name, row, folder) for name, row in kinds.items()}
    asked = config.asked()
    if candidates is not None:
        _terms(config).admission().check(config.task)
    work: list[tuple[str, str, str]] = []

    def tasks() -> Iterator[Task | Known]:
        for (kind, source, _), found in zip(asked, opened, strict=True):
            context.log.info("%s: %s", kind, found)
            for task in _source(kind, found, config, sieve.about, folder, ledger, context):
                work.append((kind, kind, source.name))
                yield task
        if candidates is not None:
            for task in _candidates(candidates / "candidates.parquet", config, sieve.about, folder, ledger):
                work.append(("candidates", "chats", "candidates"))
                yield task

    taken = 0
    for number, summary in enumerate(sieve.workers.each(tasks())):
        counted, kind, source_name = work[number]
        sieve.add(counted, summary)
        tables[kind].add(counted, {**summary, "source": source_name, "number": number})
        taken += summary["rows"] if counted == "candidates" else 0
    if candidates is not None:
        sieve.ledger.gave("candidates", taken)
        sieve.ledger.took("chats", taken)
    for rows in tables.values():
        rows.close()
    return tables


def _source(
    kind: str,
    source: Opened[Any],
    config: CleanConfig,
    about: Mapping[str, Any],
    folder: Path,
    ledger: WorkLedger,
    context: Context,
) -> Iterator[Task | Known]:
    """One source in shards. Held-out rows are judged by no rule."""
    standards = config.standards()
    if kind.startswith("heldout_"):
        standards = standards.unjudged()
    facts = {
        **about,
        "source": key_view(source.source),
        "kind": source.kind.__name__,
        "content": digest(source.source),
        "layout": source.layout,
        "standards": standards.facts(),
    }
    return shards(
        f"{kind}-{source.source.name}",
        facts,
        config.shard_rows,
        lambda skip, ids: context.progress(source.behind(skip, ids), f"read {source.source.name}", None),
        look,
        (source.kind, "clean", standards),
        folder,
        ledger,
    )


def _terms(config: CleanConfig) -> Terms:
    task = digest_file(config.task) if config.task else ""
    return Terms(config.task, task, tuple(config.check_rules), tuple(config.allowed_flags), config.standards())


def _candidates(
    path: Path, config: CleanConfig, about: Mapping[str, Any], folder: Path, ledger: WorkLedger
) -> Iterator[Task | Known]:
    """Candidates that may become chats, as chats, in shards."""
    terms = _terms(config)
    facts = {
        **about,
        "candidates": digest_file(path),
        "task": terms.task_digest,
        "check_rules": config.check_rules,
        "allowed_flags": config.allowed_flags,
        "standards": terms.standards.facts(),
    }
    return candidate_shards(path, terms, facts, config.shard_rows, "clean", folder, ledger)
