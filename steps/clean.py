"""Imports, candidates and documents -> corpus, chats, pairs, held-out sets, and the dropped rows with their reasons.

Order: schema, characters, exact duplicates, language and filters, copies of held-out rows, near-copies, split.
docs/cleaning.md lists the reason codes.

Reads: ``candidates``/candidates.parquet (Candidate), the configured sources, the task file.
Writes: corpus.parquet, general.parquet (Text); chats.parquet (Chat); pairs.parquet (Pair); heldout_domain.parquet,
  heldout_general.parquet (Text); heldout_prompts.parquet (Prompt); heldout_pairs.parquet (Pair); dropped.parquet
  (Dropped); task.yaml (the task file, when there is one).
Source: DATA.md section 3 (what was measured, and why this order).

Run:  python -m steps.clean --config clean.yaml --candidates DIR --out DIR
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from steps.lib.config import Neutral, Section
from steps.lib.errors import ConfigError, DataError
from steps.lib.quality import Filters, normalise
from steps.lib.rows import Candidate, Chat, Dropped, Message, Pair, Prompt, Text, by_id, read_parquet, write_parquet
from steps.lib.rules import Task
from steps.lib.sieve import Sieve, distinct, split, whole
from steps.lib.sources import Opened, Source, digest, open_sources
from steps.lib.step import Context, Metrics, main
from steps.lib.store import digest_file

VERSION = "1"
RECORDS = ("dropped.parquet",)

KINDS: dict[str, tuple[str, str, type[Any], type[Any]]] = {
    "domain": ("corpus", "heldout_domain", Text, Text),
    "general": ("general", "heldout_general", Text, Text),
    "chats": ("chats", "heldout_prompts", Chat, Prompt),
    "pairs": ("pairs", "heldout_pairs", Pair, Pair),
}
"""Kind of rows in -> file to train on, file held out, and their row types."""


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
    allowed_flags: list[str] = ["repaired", "cost_estimated"]
    """Flags of ``generate`` with which a candidate may still become a chat; any other drops it."""

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
    """
    task = Task.read(config.task) if config.task else None
    sieve = Sieve("clean")
    rows: dict[str, list[Any]] = {name: [] for name in (*KINDS, *(held for _, held, _, _ in KINDS.values()))}
    asked = config.asked()
    opened = open_sources([(source, kind) for _, source, kind in asked])
    for (kind, _, _), source in zip(asked, opened, strict=True):
        rows[kind] += _read(kind, source, sieve, context)
    if candidates is not None:
        rows["chats"] += _chats_of(candidates / "candidates.parquet", task, config, sieve, context)

    for kind in (held for _, held, _, _ in KINDS.values()):
        rows[kind] = sieve.exact(kind, distinct(rows[kind]))
        if not rows[kind] and any(name == kind for name, _, _ in asked):
            raise DataError(
                f"{kind} has no row left: got {sieve.counts(kind)}, because a held-out set that is "
                "configured must not be empty; mend its sources, or take them out"
            )
    heldout = [row for _, held, _, _ in KINDS.values() for row in rows[held]]

    cut: dict[str, list[Any]] = {}
    near = config.near_duplicate
    copies = {"domain": near.corpus, "general": near.general, "chats": near.chats, "pairs": near.pairs}
    for kind, (_, held, _, _) in context.progress(KINDS.items(), "clean", len(KINDS)):
        kept = sieve.exact(kind, distinct(rows[kind]))
        kept = sieve.filter(kind, kept, config.filters)
        kept = sieve.guard(kind, kept, heldout, config.near_heldout)
        kept = sieve.near_copies(kind, kept, copies[kind])
        if kind == "chats":
            kept = sieve.at_most(kind, kept, config.answers_per_prompt)
        if config.heldout.share and not rows[held]:
            kept, cut[kind] = split(kept, config.heldout.share, config.heldout.group)
        rows[kind] = kept
    _hold_out(cut, rows, config, sieve)

    _enough(rows, config, candidates is not None, sieve)
    flows = {"candidates": ["candidates"]}
    values: dict[str, float | int | str] = {}
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
    write_parquet(out / "dropped.parquet", sieve.dropped, Dropped)
    if config.task:
        shutil.copyfile(config.task, out / "task.yaml")
    sieve.ledger.balance(flows)
    return Metrics(values=values, rows=sieve.ledger)


def _read(kind: str, source: Opened[Any], sieve: Sieve, context: Context) -> list[Any]:
    """Rows of one source."""
    context.log.info("%s: %s", kind, source)
    return sieve.take(kind, context.progress(source, f"read {source.source.name}", None))


def _chats_of(path: Path, task: Task | None, config: CleanConfig, sieve: Sieve, context: Context) -> list[Chat]:
    """Candidates that kept the rules, as chats: the task's short system line, the prompt, the answer."""
    chats: list[Chat] = []
    systems = {str(lang): line for lang, line in task.student_system.items()} if task else {}
    rules = set(task.check("", "")) if task else set()
    if task and (unknown := sorted(set(config.check_rules) - rules)):
        raise ConfigError(
            f"clean.check_rules names {', '.join(unknown)}: got no such rule in {config.task}; "
            f"it has {', '.join(sorted(rules))}"
        )
    for row in context.progress(read_parquet(path, Candidate), "candidates", None):
        sieve.ledger.took("candidates")
        prompt, answer = normalise(row.prompt), normalise(row.answer)
        flags = [flag for flag in row.flags if flag not in config.allowed_flags]
        kept = task.check(prompt, answer) if task else {}
        broken = [name for name in config.check_rules if kept.get(name) is False]
        system = systems.get(row.lang) if task else ""
        if flags:
            sieve.drop("candidates", row, flags[0], f"flags of generate: {', '.join(row.flags)}")
        elif not prompt or not answer:
            sieve.drop("candidates", row, "empty", "no prompt" if not prompt else "no answer")
        elif broken:
            sieve.drop("candidates", row, f"rule:{broken[0]}", f"rules of the task broken: {', '.join(broken)}")
        elif system is None:
            sieve.drop("candidates", row, "wrong_language", f"the task has no system line for {row.lang}")
        else:
            turns = [Message(role="system", content=system)] if system else []
            turns += [Message(role="user", content=prompt), Message(role="assistant", content=answer)]
            chats.append(Chat(id=row.id, lang=row.lang, source=row.source or row.teacher, messages=turns))
    sieve.ledger.gave("candidates", len(chats))
    sieve.ledger.took("chats", len(chats))
    return chats


def _hold_out(cut: Mapping[str, Sequence[Any]], rows: dict[str, list[Any]], config: CleanConfig, sieve: Sieve) -> None:
    """Put what ``split`` set aside into the held-out sets, and take its near-copies out of every kind."""
    for kind, aside in cut.items():
        held = KINDS[kind][1]
        rows[held] = _prompts_of(aside, sieve) if kind == "chats" else list(aside)
    guarded = [row for kind in cut for row in rows[KINDS[kind][1]]]
    for kind in KINDS if guarded else ():
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
    for kind, (file, *_) in KINDS.items():
        given = asked[kind]
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
