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

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from steps.lib.config import Added, Neutral, Section, key_view
from steps.lib.digests import digest_file
from steps.lib.door import main
from steps.lib.errors import ConfigError, DataError
from steps.lib.quality import Filters, Finding, normalise
from steps.lib.rows import (
    Candidate,
    Chat,
    Dropped,
    Message,
    Pair,
    Prompt,
    Text,
    Thumb,
    by_id,
    read_parquet,
    write_parquet,
)
from steps.lib.rules import Task
from steps.lib.runtime import stop_signals
from steps.lib.shards import Shard, judge, set_aside, shards, taken
from steps.lib.sieve import Sieve, contradictions, copies, distinct, surplus, whole
from steps.lib.sources import Opened, Source, digest, open_sources
from steps.lib.step import Context, Metrics
from steps.lib.work_ledger import Recall, WorkLedger

VERSION = "2"
RECORDS = ("dropped.parquet",)

KINDS: dict[str, tuple[str, str, type[Any], type[Any]]] = {
    "domain": ("corpus", "heldout_domain", Text, Text),
    "general": ("general", "heldout_general", Text, Text),
    "chats": ("chats", "heldout_prompts", Chat, Prompt),
    "pairs": ("pairs", "heldout_pairs", Pair, Pair),
}
"""Kind of rows in -> file to train on, file held out, and their row types."""
THUMBS = "thumbs"
"""A kind of which nothing is held out (evaluation reads pairs), and whose file is only there when it has a source."""
TRAINED = (*KINDS, THUMBS)
"""Kinds that are trained on, which filters and held-out sets are for."""


class HeldoutConfig(Section):
    """What is never trained on."""

    domain: list[Source] = []
    """Sources of domain documents; without one, ``share`` of the domain corpus is held out."""
    general: list[Source] = []
    """Sources of general documents; without one, ``share`` of the general text is held out."""
    prompts: list[Source] = []
    """Sources of prompts, whose other columns become labels; without one, ``share`` of the chats becomes prompts."""
    pairs: list[Source] = []
    """Sources of preference pairs; without one, ``share`` of the pairs is held out."""
    share: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the groups of a kind to hold out where that kind has no held-out source; 0 holds out none."""
    group: float = Field(default=0.5, gt=0, le=1)
    """Jaccard similarity from which two rows are one group, which is held out whole or not at all."""


class NearDuplicate(Section):
    """Jaccard similarity from which one of two rows is dropped, a kind; null keeps near-copies of that kind."""

    corpus: float | None = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of domain documents."""
    general: float | None = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of general documents."""
    chats: float | None = Field(default=0.9, gt=0, le=1)
    """Jaccard similarity of user turns and answers. At .7, short chats that differ by an order number would go."""
    pairs: float | None = Field(default=0.9, gt=0, le=1)
    """Jaccard similarity of user turns and both answers."""
    thumbs: Annotated[float | None, Added] = Field(default=0.9, gt=0, le=1)
    """Jaccard similarity of user turns and the answer, of thumbs with one verdict: what differs little and was judged differently
    says most."""


class MinRows(Section):
    """Rows a kind must have after cleaning; null is 1 where the kind has an input, and 0 where it has none."""

    corpus: int | None = Field(default=None, ge=0)
    """Rows of the domain corpus."""
    general: int | None = Field(default=None, ge=0)
    """Rows of general text."""
    chats: int | None = Field(default=None, ge=0)
    """Rows of chats."""
    pairs: int | None = Field(default=None, ge=0)
    """Rows of imported pairs."""
    thumbs: Annotated[int | None, Added] = Field(default=None, ge=0)
    """Rows of imported thumbs."""


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
    allowed_flags: list[str] = ["repaired", "same_answer", "cost_estimated"]
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
            (THUMBS, self.thumbs, Thumb),
        ]
        return [(name, source, kind) for name, sources, kind in groups for source in sources]


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
        cut = _pass_all(config, rows, findings, sieve, context)
        _hold_out(cut, rows, config, sieve)
    stop.check()
    context.log.info("%d shards and passes done, %d were done before", ledger.computed, ledger.kept)
    _enough(rows, config, candidates is not None, sieve)
    flows = {"candidates": ["candidates"]}
    units = ledger.computed + ledger.kept
    values: dict[str, float | int | str] = {"units": units, "units_from_ledger": ledger.kept}
    for kind, (file, held, trained, kept_out) in KINDS.items():
        by_id(rows[kind])
        write_parquet(out / f"{file}.parquet", rows[kind], trained)
        write_parquet(out / f"{held}.parquet", rows[held], kept_out)
        sieve.ledger.gave(file, len(rows[kind]))
        sieve.ledger.gave(held, len(rows[held]))
        flows[kind] = [file, held] if kind in cut else [file]
        flows[held] = [] if kind in cut else [held]
        values |= {f"{file}_rows": len(rows[kind]), f"{file}_chars": sum(len(whole(row)) for row in rows[kind]),
                   f"{held}_rows": len(rows[held])}  # fmt: skip
        figures = (kind, len(rows[kind]), len(rows[held]), sieve.counts(kind))
        context.log.info("%s: %d to train on, %d held out; %s", *figures)
    if config.thumbs:
        values |= _write_thumbs(rows[THUMBS], out, sieve, context)
        flows[THUMBS] = [THUMBS]
    write_parquet(out / "dropped.parquet", sieve.dropped, Dropped)
    if config.task:
        shutil.copyfile(config.task, out / "task.yaml")
    sieve.ledger.balance(flows)
    return Metrics(values=values, rows=sieve.ledger)


def _write_thumbs(thumbs: Sequence[Thumb], out: Path, sieve: Sieve, context: Context) -> dict[str, float | int | str]:
    """Write and count the thumbs."""
    by_id(thumbs)
    write_parquet(out / f"{THUMBS}.parquet", thumbs, Thumb)
    sieve.ledger.gave(THUMBS, len(thumbs))
    up = sum(row.label for row in thumbs)
    context.log.info("thumbs: %d up and %d down to train on; %s", up, len(thumbs) - up, sieve.counts(THUMBS))
    return {"thumbs_rows": len(thumbs), "thumbs_up": up, "thumbs_chars": sum(len(whole(row)) for row in thumbs)}


def _read_all(
    config: CleanConfig, candidates: Path | None, task: Task | None, sieve: Sieve, context: Context
) -> tuple[dict[str, list[Any]], dict[str, list[Finding | None]]]:
    """Kind -> rows of all its sources, repaired; kind -> for each of these rows, the filter it fails."""
    rows: dict[str, list[Any]] = {name: [] for name in (*TRAINED, *(held for _, held, _, _ in KINDS.values()))}
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
    filters = config.filters if kind in TRAINED else None
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
    """Candidates that kept the rules, as chats, in shards."""
    rules = set(task.check("", "")) if task else set()
    if task and (unknown := sorted(set(config.check_rules) - rules)):
        raise ConfigError(
            f"clean.check_rules names {', '.join(unknown)}: got no such rule in {config.task}; "
            f"it has {', '.join(sorted(rules))}"
        )
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
        partial(_chats_of, task=task, config=config),
        Chat,
        facts,
        recall,
    )


def _chats_of(rows: Iterable[Candidate], *, task: Task | None, config: CleanConfig) -> Shard[Chat]:
    """The task's short system line, the prompt, the answer; what broke a rule is dropped."""
    shard = Shard[Chat]()
    systems = {str(lang): line for lang, line in task.student_system.items()} if task else {}

    def drop(row: Candidate, reason: str, detail: str) -> None:
        shard.dropped.append((set_aside("clean", row, reason, detail), 1))

    for row in rows:
        prompt, answer = normalise(row.prompt), normalise(row.answer)
        flags = [flag for flag in row.flags if flag not in config.allowed_flags]
        kept = task.check(prompt, answer) if task else {}
        broken = [name for name in config.check_rules if kept.get(name) is False]
        system = systems.get(row.lang) if task else ""
        if flags:
            drop(row, flags[0], f"flags of generate: {', '.join(row.flags)}")
        elif not prompt or not answer:
            drop(row, "empty", "no prompt" if not prompt else "no answer")
        elif broken:
            drop(row, f"rule:{broken[0]}", f"rules of the task broken: {', '.join(broken)}")
        elif system is None:
            drop(row, "wrong_language", f"the task has no system line for {row.lang}")
        else:
            turns = [Message(role="system", content=system)] if system else []
            turns += [Message(role="user", content=prompt), Message(role="assistant", content=answer)]
            chat = Chat(id=row.id, lang=row.lang, source=row.source or row.teacher, messages=turns)
            shard.keep(chat, judge(chat, config.filters))
    return shard


def _pass_all(
    config: CleanConfig,
    rows: dict[str, list[Any]],
    findings: Mapping[str, Sequence[Finding | None]],
    sieve: Sieve,
    context: Context,
) -> dict[str, list[Any]]:
    """The passes over all rows of a kind; what the share sets aside comes back."""
    for kind in (held for _, held, _, _ in KINDS.values()):
        own = distinct(rows[kind])
        rows[kind] = sieve.sift(kind, own, copies(own))
        if not rows[kind] and any(name == kind for name, _, _ in config.asked()):
            raise DataError(
                f"{kind} has no row left: got {sieve.counts(kind)}, because a held-out set that is "
                "configured must not be empty; mend its sources, or take them out"
            )
    heldout = [row for _, held, _, _ in KINDS.values() for row in rows[held]]

    cut: dict[str, list[Any]] = {}
    near = config.near_duplicate
    limits = {
        "domain": near.corpus,
        "general": near.general,
        "chats": near.chats,
        "pairs": near.pairs,
        THUMBS: near.thumbs,
    }
    kinds = TRAINED if config.thumbs else tuple(KINDS)
    for kind in context.progress(kinds, "clean", len(kinds)):
        kept = distinct(rows[kind])
        failed = {number: finding for number, finding in enumerate(findings[kind]) if finding}
        opposed = contradictions(kept) if kind == THUMBS else {}
        kept = sieve.sift(kind, kept, opposed, copies(kept), failed)
        kept = sieve.guard(kind, kept, heldout, config.near_heldout)
        groups = [kept] if kind != THUMBS else [[row for row in kept if row.label is side] for side in (True, False)]
        left = {row.id for group in groups for row in sieve.near_copies(kind, group, limits[kind])}
        kept = [row for row in kept if row.id in left]
        if kind == "chats" and config.answers_per_prompt is not None:
            kept = sieve.sift(kind, kept, surplus(kept, config.answers_per_prompt))
        if kind in KINDS and config.heldout.share and not rows[KINDS[kind][1]]:
            kept, cut[kind] = sieve.split(kept, config.heldout.share, config.heldout.group)
        rows[kind] = kept
    return cut


def _hold_out(cut: Mapping[str, Sequence[Any]], rows: dict[str, list[Any]], config: CleanConfig, sieve: Sieve) -> None:
    """Put what ``split`` set aside into the held-out sets, and take its near-copies out of every kind."""
    for kind, aside in cut.items():
        held = KINDS[kind][1]
        rows[held] = _prompts_of(aside, sieve) if kind == "chats" else list(aside)
    guarded = [row for kind in cut for row in rows[KINDS[kind][1]]]
    for kind in TRAINED if guarded else ():
        rows[kind] = sieve.guard(kind, rows[kind], guarded, config.near_heldout)


def _prompts_of(chats: Sequence[Chat], sieve: Sieve) -> list[Prompt]:
    """Held-out chats as prompts with the answer as label; what evaluation cannot ask is dropped."""
    prompts: dict[str, Prompt] = {}
    for row in chats:
        system = [turn.content for turn in row.messages if turn.role == "system"]
        users = [turn.content for turn in row.messages if turn.role == "user"]
        if len(users) != 1:
            sieve.drop("chats", row, "heldout_many_turns", f"{len(users)} user turns; a held-out prompt has one")
        elif users[0] in prompts:
            sieve.drop("chats", row, "heldout_duplicate", json.dumps({"kept_id": prompts[users[0]].id}))
        else:
            facts = {"reference": row.messages[-1].content} | ({"system": system[0]} if system else {})
            prompts[users[0]] = Prompt(id=row.id, lang=row.lang, source=row.source, prompt=users[0],
                                       facts=json.dumps(facts, ensure_ascii=False))  # fmt: skip
    return list(prompts.values())


def _enough(rows: Mapping[str, Sequence[Any]], config: CleanConfig, generated: bool, sieve: Sieve) -> None:
    """Refuse to publish a kind that has too few rows left."""
    problems = []
    fed = {name for name, _, _ in config.asked()} | ({"chats"} if generated else set())
    wanted = config.min_rows
    asked = {"domain": wanted.corpus, "general": wanted.general, "chats": wanted.chats, "pairs": wanted.pairs}
    for kind, given in (asked | {THUMBS: wanted.thumbs}).items():
        file = KINDS[kind][0] if kind in KINDS else kind
        least = int(kind in fed) if given is None else given
        if len(rows[kind]) < least:
            problems.append(
                f"{file} has too few rows after cleaning: got {len(rows[kind])}, at least {least} are "
                f"needed, because of {sieve.counts(kind)}; give more data, or loosen `clean.filters`"
            )
            if kind == "chats" and generated:
                problems[-1] += f" (candidates: {sieve.counts('candidates')})"
    if problems:
        raise DataError("\n".join(problems))


if __name__ == "__main__":
    main("clean")
