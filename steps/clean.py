"""Imports, candidates and documents -> corpus, chats, pairs, held-out sets, and the dropped rows with their reasons.

Order: schema, characters, exact duplicates, language and filters, copies of held-out rows, near-copies, split.
docs/cleaning.md lists the reason codes.

Reading, characters and filters run in shards of rows; each finished shard, and each finished pass over all rows of a kind, is
kept, and a killed run goes on behind it.

Reads: ``candidates``/candidates.parquet (Candidate), the configured sources, the task file.
Writes: corpus.parquet, general.parquet (Text); chats.parquet (Chat); pairs.parquet (Pair); heldout_domain.parquet,
  heldout_general.parquet (Text); heldout_prompts.parquet (Prompt); heldout_pairs.parquet (Pair); dropped.parquet
  (Dropped); thumbs.parquet (Thumb; when there are sources of thumbs); task.yaml (the task file, when there is one).
Source: DATA.md section 3 (what was measured, and why this order).

Run:  python -m steps.clean --config clean.yaml --candidates DIR --out DIR
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from steps.lib.admission import Admission
from steps.lib.config import Added, Neutral, Section, key_view
from steps.lib.digests import digest_file
from steps.lib.door import main
from steps.lib.errors import DataError
from steps.lib.heldout import HeldoutConfig, prompt_of, unaskable
from steps.lib.kinds import HELD, KINDS, THUMBS, Kind, MinRows, NearDuplicate
from steps.lib.opened import Opened, open_sources
from steps.lib.quality import Filters, Finding
from steps.lib.rows import Candidate, Chat, Dropped, Pair, Prompt, Text, Thumb, by_id, read_parquet, write_parquet
from steps.lib.rules import Task
from steps.lib.runtime import stop_signals
from steps.lib.shards import Shard, shards, taken
from steps.lib.sieve import Sieve, contradictions, copies, distinct, surplus, whole
from steps.lib.sources import Source, digest
from steps.lib.step import Context, Metrics
from steps.lib.work_ledger import Recall, WorkLedger

VERSION = "3"
RECORDS = ("dropped.parquet",)


class CleanConfig(Section):
    """Where rows come from, and what is good enough to train on."""

    task: Annotated[Path | None, Neutral] = None
    """Task file: its short system line goes before every candidate, and its rules check the answers."""
    domain: list[Source] = []
    """Sources of domain documents, for continued pretraining."""
    general: list[Source] = []
    """Sources of general text, for replay."""
    chats: list[Source] = []
    """Sources of conversations, beside the candidates of ``generate``."""
    pairs: list[Source] = []
    """Sources of preference pairs."""
    thumbs: Annotated[list[Source], Added] = []
    """Sources of single answers with a thumb up or down, for kto."""
    heldout: HeldoutConfig = HeldoutConfig()
    """What is never trained on: its sources, or the share to split off."""
    filters: Filters = Filters()
    """Thresholds of the row filters."""
    near_duplicate: NearDuplicate = NearDuplicate()
    """When two rows are one too many, for each kind."""
    near_heldout: float | None = Field(default=0.5, gt=0, le=1)
    """Jaccard similarity to a held-out row from which a row is dropped; null drops exact copies only."""
    answers_per_prompt: int | None = Field(default=4, ge=1)
    """Chats that may have the same prompt, the first ones stay; null keeps all."""
    min_rows: MinRows = MinRows()
    """How few rows are too few, for each kind."""
    check_rules: list[str] = ["json_schema"]
    """Rules of the task that a candidate must keep to become a chat; a rule that does not apply is kept."""
    allowed_flags: list[str] = ["repaired", "same_answer"]
    """Flags of ``generate`` with which a candidate may still become a chat; any other drops it."""
    shard_rows: Annotated[int, Neutral] = Field(default=20_000, ge=1)
    """Rows that are read, repaired and judged at a time; a killed run repeats at most one such shard."""

    @model_validator(mode="after")
    def _own_names(self) -> Self:
        twice = [name for name, count in Counter(source.name for _, source, _ in self.asked()).items() if count > 1]
        if twice:
            raise ValueError(f"source names {', '.join(twice)} stand twice; give each source its own name")
        return self

    def asked(self) -> list[tuple[str, Source, type[Any]]]:
        """(kind in the ledger, source, row type) of every source, held-out ones first."""
        groups: list[tuple[str, list[Source], type[Any]]] = [
            ("heldout_domain", self.heldout.domain, Text),
            ("heldout_general", self.heldout.general, Text),
            ("heldout_prompts", self.heldout.prompts, Prompt),
            ("heldout_pairs", self.heldout.pairs, Pair),
            ("domain", self.domain, Text),
            ("general", self.general, Text),
            ("chats", self.chats, Chat),
            ("pairs", self.pairs, Pair),
            ("thumbs", self.thumbs, Thumb),
        ]
        return [(name, source, kind) for name, sources, kind in groups for source in sources]

    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that there are."""
        return KINDS if self.thumbs else HELD


def externals(config: CleanConfig) -> dict[str, str]:
    """Content digests of every source and of the task file.

    Raises:
        DataError: every file that is missing, in one message.
    """
    digests, problems = {}, []
    for kind, source, _ in config.asked():
        try:
            digests[f"{kind}/{source.name}"] = digest(source)
        except DataError as error:
            problems.append(str(error))
    if config.task:
        try:
            digests["task"] = digest_file(config.task)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return digests


def run(config: CleanConfig, *, candidates: Path | None = None, out: Path, context: Context) -> Metrics:
    """Clean everything; see the top of the file.

    Raises:
        DataError: a bad file, a held-out source without a row, or a kind with too few rows left.
        ConfigError: a rule name the task does not have.
        Resumable: SIGTERM or SIGINT; what is finished is kept.
    """
    task = Task.read(config.task) if config.task else None
    with stop_signals() as stop, WorkLedger(context.resume / "work.sqlite", stop, context.log) as ledger:
        sieve = Sieve("clean", ledger.about(step="clean", version=VERSION))
        rows, findings = _read_all(config, candidates, task, sieve, context)
        _pass_held(config, rows, sieve)
        cut = _pass_all(config, rows, findings, sieve, context)
        _hold_out(cut, rows, config, sieve)
    stop.check()
    context.log.info("%d shards and passes done, %d were done before", ledger.computed, ledger.kept)
    _enough(rows, config, candidates is not None, sieve)
    values: dict[str, float | int | str] = {
        "units": ledger.computed + ledger.kept,
        "units_from_ledger": ledger.kept,
        **_write(config.kinds(), rows, out, sieve, context),
    }
    write_parquet(out / "dropped.parquet", sieve.dropped, Dropped)
    if config.task:
        shutil.copyfile(config.task, out / "task.yaml")
    split = {kind.name: [kind.file, kind.held] if kind.name in cut else [kind.file] for kind in config.kinds()}
    given = {kind.held: [] if kind.name in cut else [kind.held] for kind in HELD}
    sieve.ledger.balance({"candidates": ["candidates"], **split, **given})
    return Metrics(values=values, rows=sieve.ledger)


def _read_all(
    config: CleanConfig, candidates: Path | None, task: Task | None, sieve: Sieve, context: Context
) -> tuple[dict[str, list[Any]], dict[str, list[Finding | None]]]:
    """Kind -> rows of all its sources, repaired; kind -> for each of these rows, the filter it fails."""
    rows: dict[str, list[Any]] = {name: [] for name in (*(k.name for k in KINDS), *(k.held for k in HELD))}
    findings: dict[str, list[Finding | None]] = {name: [] for name in rows}

    def take(counted: str, kind: str, found: Iterable[Shard[Any]]) -> None:
        for shard in found:
            sieve.add(counted, shard)
            rows[kind] += shard.rows
            findings[kind] += shard.findings

    asked = config.asked()
    opened = open_sources([(source, kind) for _, source, kind in asked])
    for (kind, _, _), source in zip(asked, opened, strict=True):
        take(kind, kind, _source(kind, source, config, sieve.recall, context))
    if candidates is not None:
        before = len(rows["chats"])
        take("candidates", "chats", _candidates(candidates / "candidates.parquet", task, config, sieve.recall, context))
        sieve.ledger.gave("candidates", len(rows["chats"]) - before)
        sieve.ledger.took("chats", len(rows["chats"]) - before)
    return rows, findings


def _source(
    kind: str, source: Opened[Any], config: CleanConfig, recall: Recall, context: Context
) -> Iterable[Shard[Any]]:
    """One source in shards. Held-out rows are judged by no filter."""
    context.log.info("%s: %s", kind, source)
    filters = None if kind.startswith("heldout_") else config.filters
    facts = {
        "source": key_view(source.source),
        "kind": source.kind.__name__,
        "content": digest(source.source),
        "layout": source.layout,
        "filters": key_view(filters) if filters else None,
    }
    return shards(
        lambda skip, ids: context.progress(source.behind(skip, ids), f"read {source.source.name}", None),
        config.shard_rows,
        partial(taken, step="clean", filters=filters),
        source.kind,
        facts,
        recall,
    )


def _candidates(
    path: Path, task: Task | None, config: CleanConfig, recall: Recall, context: Context
) -> Iterable[Shard[Chat]]:
    """Candidates that may become chats, as chats, in shards."""
    admission = Admission(task, config.check_rules, config.allowed_flags, config.filters)
    admission.check(config.task)
    facts = {
        "candidates": digest_file(path),
        "task": digest_file(config.task) if config.task else None,
        "check_rules": config.check_rules,
        "allowed_flags": config.allowed_flags,
        "filters": key_view(config.filters),
    }
    return shards(
        lambda skip, ids: context.progress(read_parquet(path, Candidate)[skip:], "candidates", None),
        config.shard_rows,
        partial(admission.chats, step="clean"),
        Chat,
        facts,
        recall,
    )


def _pass_held(config: CleanConfig, rows: dict[str, list[Any]], sieve: Sieve) -> None:
    """Held-out sources without copies; none of them may be empty."""
    asked = {name for name, _, _ in config.asked()}
    for name in (kind.held for kind in HELD):
        own = distinct(rows[name])
        rows[name] = sieve.sift(name, own, copies(own))
        if name in asked and not rows[name]:
            raise DataError(
                f"{name} has no row left: got {sieve.counts(name)}, because a held-out set that is "
                "configured must not be empty; mend its sources, or take them out"
            )


def _pass_all(
    config: CleanConfig,
    rows: dict[str, list[Any]],
    findings: Mapping[str, Sequence[Finding | None]],
    sieve: Sieve,
    context: Context,
) -> dict[str, list[Any]]:
    """The passes over all rows of a kind; what the share sets aside comes back."""
    heldout = [row for kind in HELD for row in rows[kind.held]]
    cut: dict[str, list[Any]] = {}
    kinds = config.kinds()
    for kind in context.progress(kinds, "clean", len(kinds)):
        name = kind.name
        kept = distinct(rows[name])
        failed = {number: finding for number, finding in enumerate(findings[name]) if finding}
        opposed = contradictions(kept) if kind is THUMBS else {}
        kept = sieve.sift(name, kept, opposed, copies(kept), failed)
        kept = sieve.guard(name, kept, heldout, config.near_heldout)
        sides = [[row for row in kept if row.label is up] for up in (True, False)] if kind is THUMBS else [kept]
        limit = config.near_duplicate.of(kind)
        left = {row.id for side in sides for row in sieve.near_copies(name, side, limit)}
        kept = [row for row in kept if row.id in left]
        if name == "chats" and config.answers_per_prompt is not None:
            kept = sieve.sift(name, kept, surplus(kept, config.answers_per_prompt))
        if kind.held and config.heldout.share and not rows[kind.held]:
            kept, cut[name] = sieve.split(kept, config.heldout.share, config.heldout.group)
        rows[name] = kept
    return cut


def _hold_out(cut: Mapping[str, Sequence[Any]], rows: dict[str, list[Any]], config: CleanConfig, sieve: Sieve) -> None:
    """Put what ``split`` set aside into the held-out sets, and take its near-copies out of every kind."""
    aside = [kind for kind in HELD if kind.name in cut]
    for kind in aside:
        own = list(cut[kind.name])
        if kind.held_row is Prompt:
            own = [prompt_of(chat) for chat in sieve.sift(kind.name, own, unaskable(own))]
        rows[kind.held] = own
    guarded = [row for kind in aside for row in rows[kind.held]]
    for kind in KINDS if guarded else ():
        rows[kind.name] = sieve.guard(kind.name, rows[kind.name], guarded, config.near_heldout)


def _enough(rows: Mapping[str, Sequence[Any]], config: CleanConfig, generated: bool, sieve: Sieve) -> None:
    """Refuse to publish a kind that has too few rows left."""
    problems = []
    fed = {name for name, _, _ in config.asked()} | ({"chats"} if generated else set())
    for kind in KINDS:
        given, got = config.min_rows.of(kind), len(rows[kind.name])
        least = int(kind.name in fed) if given is None else given
        if got < least:
            problems.append(
                f"{kind.file} has too few rows after cleaning: got {got}, at least {least} are "
                f"needed, because of {sieve.counts(kind.name)}; give more data, or loosen `clean.filters`"
            )
            if kind.name == "chats" and generated:
                problems[-1] += f" (candidates: {sieve.counts('candidates')})"
    if problems:
        raise DataError("\n".join(problems))


def _write(
    kinds: Sequence[Kind], rows: Mapping[str, Sequence[Any]], out: Path, sieve: Sieve, context: Context
) -> dict[str, int]:
    """Write and count what is trained on and what is held out."""
    values: dict[str, int] = {}
    for kind in kinds:
        own, held = rows[kind.name], rows[kind.held] if kind.held else []
        by_id(own)
        write_parquet(out / f"{kind.file}.parquet", own, kind.row)
        sieve.ledger.gave(kind.file, len(own))
        values |= {f"{kind.file}_rows": len(own), f"{kind.file}_chars": sum(len(whole(row)) for row in own)}
        if kind.held:
            write_parquet(out / f"{kind.held}.parquet", held, kind.held_row)
            sieve.ledger.gave(kind.held, len(held))
            values[f"{kind.held}_rows"] = len(held)
        else:
            values[f"{kind.file}_up"] = sum(row.label for row in own)
        apart = f"{len(held)} held out" if kind.held else f"{values[f'{kind.file}_up']} of them up"
        context.log.info("%s: %d to train on, %s; %s", kind.name, len(own), apart, sieve.counts(kind.name))
    return values


if __name__ == "__main__":
    main("clean")
