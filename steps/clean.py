"""Imports, candidates and documents -> corpus, chats, pairs, held-out sets, and the dropped rows with their reasons.

Order: schema, characters, exact duplicates, language and filters, copies of held-out rows, near-copies, split.
docs/cleaning.md lists the reason codes.

Reading, characters and filters run in shards of rows, on all cores; passes over all rows work on facts of the rows (hashes,
lengths) and not on the rows; then the shards are written as files. Each finished shard and pass is kept, and a killed run goes on
behind it. Memory holds some shards, and some hundred bytes a row.

Reads: ``candidates``/candidates.parquet (Candidate), the configured sources, the task file; ``badcases``/cases.parquet
  (BadCase): held-out cases, which no row may hold or be alike to.
Writes: corpus.parquet, general.parquet (Text); chats.parquet (Chat); pairs.parquet (Pair); heldout_domain.parquet,
  heldout_general.parquet (Text); heldout_prompts.parquet (Prompt); heldout_pairs.parquet (Pair); dropped.parquet
  (Dropped); thumbs.parquet (Thumb; when there are sources of thumbs); task.yaml (the task file, when there is one);
  report.html (what became of the rows).
Source: DATA.md section 3 (what was measured, and why this order).

Run:  python -m steps.clean --config clean.yaml --candidates DIR --badcases DIR --out DIR
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steps.lib import cleaning_report
from steps.lib.benchmarks import heldout_items
from steps.lib.case_guard import CaseGuard
from steps.lib.clean_config import CleanConfig, externals, models_of
from steps.lib.clean_reading import look_at, read_all
from steps.lib.door import main
from steps.lib.errors import DataError
from steps.lib.findings import contradictions, copies, failing, surplus, unaskable
from steps.lib.guarded import Guarded
from steps.lib.heldout import prompt_of
from steps.lib.kinds import HELD, KINDS, THUMBS
from steps.lib.overlap import Item
from steps.lib.row_tables import Rows
from steps.lib.rows import Prompt
from steps.lib.sieve import Sieve, Split
from steps.lib.sifted import DroppedFile, shares, write_rows
from steps.lib.splits import Record, read_records, uneven, write_records
from steps.lib.step import Context, Metrics
from steps.lib.stopping import stop_signals
from steps.lib.work_ledger import WorkLedger
from steps.lib.workers import Workers

if TYPE_CHECKING:
    from steps.lib.row_tables import Places

__all__ = ["CleanConfig", "externals", "run"]

VERSION = "5"
RECORDS = ("dropped.parquet", "report.html")


def run(
    config: CleanConfig, *, candidates: Path | None = None, badcases: Path | None = None, out: Path, context: Context
) -> Metrics:
    """Clean everything; see the top of the file.

    Raises:
        DataError: a bad file (also that of the held-out cases), a held-out source without a row, a kind with too few rows left, or
            too many rows dropped.
        ConfigError: a rule name the task does not have.
        ArtifactError: a worker process died.
        Resumable: SIGTERM or SIGINT; what is finished is kept.
    """
    cases = CaseGuard.read(badcases)
    with (
        stop_signals() as stop,
        WorkLedger(context.resume / "work.sqlite", stop, context.log) as ledger,
        Workers(config.workers, ledger, stop, context.resume) as workers,
    ):
        about = {"step": "clean", "version": VERSION}
        sieve = Sieve(ledger.about(**about), workers, context.resume, about)
        opened, items = look_at(config, candidates is not None)
        tables = read_all(config, opened, candidates, sieve, ledger, context)
        _pass_held(config, tables, sieve)
        cut = _pass_all(config, tables, [*items, *cases.items], sieve, context, cases)
        _hold_out(cut, tables, config, sieve)
        for kind in KINDS:
            if kind.name in config.mix:
                sieve.mix(tables[kind.name], config.mix[kind.name])
    stop.check()
    context.log.info("%d shards and passes done, %d were done before", ledger.computed, ledger.kept)
    _enough(tables, config, candidates is not None, sieve)
    warned = _warnings(config, sieve, cut, context)
    values: dict[str, float | int | str] = {
        "units": ledger.computed + ledger.kept,
        "units_from_ledger": ledger.kept,
        "warnings": len(warned),
        **_write(config, tables, cut, out, sieve, context, warned),
    }
    if config.task:
        shutil.copyfile(config.task, out / "task.yaml")
    split = {kind.name: [kind.file, kind.held] if kind.name in cut else [kind.file] for kind in config.kinds()}
    given = {kind.held: [] if kind.name in cut else [kind.held] for kind in HELD}
    sieve.ledger.balance({"candidates": ["candidates"], **split, **given})
    return Metrics(values=values, rows=sieve.ledger)


def _pass_held(config: CleanConfig, tables: Mapping[str, Rows], sieve: Sieve) -> None:
    """Held-out sources without copies; none of them may be empty."""
    asked = {name for name, _, _ in config.asked()}
    for name in (kind.held for kind in HELD):
        sieve.sift(tables[name], copies(tables[name]), failing(tables[name]))
        if name in asked and not tables[name].alive.any():
            raise DataError(
                f"{name} has no row left: got {sieve.counts(name)}, because a held-out set that is "
                "configured must not be empty; mend its sources, or take them out"
            )


def _pass_all(
    config: CleanConfig,
    tables: Mapping[str, Rows],
    items: Sequence[Item],
    sieve: Sieve,
    context: Context,
    cases: CaseGuard,
) -> dict[str, Split]:
    """The passes over all rows of a kind; what was held out of the kinds of which a share is."""
    held = [(tables[kind.held], tables[kind.held].kept()) for kind in HELD]
    guarded = Guarded.of(held, items)
    items = [*items, *_items(config, held)]
    earlier = _earlier(config)
    cut: dict[str, Split] = {}
    kinds = config.kinds()
    for kind in context.progress(kinds, "clean", len(kinds)):
        rows = tables[kind.name]
        opposed = [contradictions(rows)] if kind is THUMBS else []
        sieve.sift(rows, *opposed, copies(rows), failing(rows))
        sieve.guard([rows], guarded, config.near_heldout)
        cases.sift(sieve, rows, config.near_case)
        if config.decontaminate:
            sieve.decontaminate([rows], items, config.decontaminate)
        kept, label = rows.kept(), rows.facts["label"]
        sides = [kept[label[kept]], kept[~label[kept]]] if kind is THUMBS else [kept]
        for side in sides:
            sieve.near_copies(rows, side, config.near_duplicate.of(kind))
            if config.semantic:
                sieve.semantic_copies(rows, side[rows.alive[side]], config.semantic, models_of(config))
        if kind.name == "chats" and config.answers_per_prompt is not None:
            sieve.sift(rows, surplus(rows, config.answers_per_prompt))
        if kind.held and config.heldout.share and not tables[kind.held].alive.any():
            share, group = config.heldout.share, config.heldout.group
            cut[kind.name] = sieve.split(rows, share, group, earlier.get(kind.name))
    return cut


def _earlier(config: CleanConfig) -> dict[str, Record]:
    """Kind -> sides that its rows had."""
    return read_records(config.heldout.record) if config.heldout.record else {}


def _items(config: CleanConfig, held: Sequence[tuple[Rows, Places]]) -> list[Item]:
    """Texts of held-out rows that no other row may hold."""
    if config.decontaminate is None:
        return []
    return [item for rows, places in held for item in heldout_items(rows.all_objects(places), config.decontaminate)]


def _hold_out(cut: Collection[str], tables: Mapping[str, Rows], config: CleanConfig, sieve: Sieve) -> None:
    """Mend what ``split`` set aside, and take what holds it or is near to it out of every kind."""
    aside = [kind for kind in HELD if kind.name in cut]
    for kind in aside:
        if kind.held_row is Prompt:
            sieve.sift(tables[kind.name], unaskable(tables[kind.name]))
    held = [(tables[kind.name], tables[kind.name].held.nonzero()[0]) for kind in aside]
    guarded = Guarded.of(held)
    if guarded.texts:
        kinds = [tables[kind.name] for kind in KINDS]
        sieve.guard(kinds, guarded, config.near_heldout)
        if config.decontaminate:
            sieve.decontaminate(kinds, _items(config, held), config.decontaminate)


def _enough(tables: Mapping[str, Rows], config: CleanConfig, generated: bool, sieve: Sieve) -> None:
    """Refuse to publish a kind that has too few rows left, or of which too many were dropped."""
    problems = []
    fed = {name for name, _, _ in config.asked()} | ({"chats"} if generated else set())
    for kind in KINDS:
        given, got = config.min_rows.of(kind), len(tables[kind.name].kept())
        least = int(kind.name in fed) if given is None else given
        if got < least:
            problems.append(
                f"{kind.file} has too few rows after cleaning: got {got}, at least {least} are "
                f"needed, because of {sieve.counts(kind.name)}; give more data, or loosen `clean.filters`"
            )
            if kind.name == "chats" and generated:
                problems[-1] += f" (candidates: {sieve.counts('candidates')})"
    most = config.max_dropped_share
    for name, rows_in in sorted(sieve.ledger.rows_in.items()) if most is not None else ():
        dropped = sum(sieve.ledger.reasons.get(name, Counter()).values())
        if most is not None and dropped > most * rows_in:
            problems.append(
                f"too many rows of {name} were dropped: got {dropped / rows_in:.1%}, where `clean.max_dropped_share` allows "
                f"{most:.1%}, because of {sieve.counts(name)}; look at the rows, loosen the filters, or raise the limit"
            )
    if problems:
        raise DataError("\n".join(problems))


def _warnings(config: CleanConfig, sieve: Sieve, cut: Mapping[str, Split], context: Context) -> list[str]:
    """What one reason took of a kind, where that is more than ``warn_share``; sources of which far more or less is held out."""
    warned = [f"{name}: {told}" for name, split in cut.items() for told in uneven(split.strata, config.heldout.share)]
    for told in warned:
        context.log.warning("%s", told)
    for name, reasons in sorted(sieve.ledger.reasons.items()):
        rows_in = sieve.ledger.rows_in[name]
        for reason, share in shares(rows_in, reasons, config.warn_share).items():
            warned.append(f"{reason} dropped {share:.1%} of {name}: {reasons[reason]} of {rows_in} rows")
            context.log.warning("%s; look at them with `prefline show clean --dropped --reason %s`", warned[-1], reason)
    return warned


def _write(
    config: CleanConfig,
    tables: Mapping[str, Rows],
    cut: Mapping[str, Split],
    out: Path,
    sieve: Sieve,
    context: Context,
    warned: Sequence[str],
) -> dict[str, int]:
    """Write and count what is trained on, what is held out, and what was dropped; and the report."""
    values: dict[str, int] = {}
    ledger = sieve.ledger
    with DroppedFile(context.resume / "dropped") as dropped:
        for kind in HELD:
            if kind.name not in cut:
                held = tables[kind.held]
                write_rows(held, (out / f"{kind.held}.parquet", kind.held_row), None, dropped, "clean")
                ledger.gave(kind.held, len(held.kept()))
        for kind in config.kinds():
            rows = tables[kind.name]
            aside = None
            if kind.name in cut:
                aside = (out / f"{kind.held}.parquet", kind.held_row, prompt_of if kind.held_row is Prompt else None)
                ledger.gave(kind.held, int(rows.held.sum()))
            write_rows(rows, (out / f"{kind.file}.parquet", kind.row), aside, dropped, "clean")
            own = rows.kept()
            ledger.gave(kind.file, len(own))
            values |= {f"{kind.file}_rows": len(own), f"{kind.file}_chars": int(rows.facts["chars"][own].sum())}
            if kind.held:
                values[f"{kind.held}_rows"] = ledger.rows_out[kind.held]
                apart = f"{values[f'{kind.held}_rows']} held out"
            else:
                values[f"{kind.file}_up"] = int(rows.facts["label"][own].sum())
                apart = f"{values[f'{kind.file}_up']} of them up"
            context.log.info("%s: %d to train on, %s; %s", kind.name, len(own), apart, sieve.counts(kind.name))
        examples = dropped.write(out / "dropped.parquet", _unread(tables))
    if cut:
        # A kind that is not split in this run stays on record.
        records = _earlier(config) | {name: split.record for name, split in cut.items()}
        write_records(out / "splits.parquet", records)
    mended = _mended(tables)
    strata = [(name, one) for name, split in cut.items() for one in split.strata]
    cleaning_report.write(out / "report.html", list(tables.values()), ledger, examples, warned, mended, strata)
    return values | mended


def _mended(tables: Mapping[str, Rows]) -> dict[str, int]:
    """ "repaired/mojibake" and the like -> rows; "redacted/phone" and the like -> placeholders put in."""
    found: Counter[str] = Counter()
    for rows in tables.values():
        for shard in rows.shards:
            for what in ("repaired", "redacted"):
                found.update({f"{what}/{name}": count for name, count in shard[what].items()})
    return dict(sorted(found.items()))


def _unread(tables: Mapping[str, Rows]) -> list[Path]:
    """Files of rows that could not be taken, in the order in which they were read."""
    read = sorted(
        ((shard["number"], rows.folder, shard) for rows in tables.values() for shard in rows.shards),
        key=lambda one: one[0],
    )
    return [folder / name for _, folder, shard in read for name in shard["files"] if name.endswith("-dropped.parquet")]


if __name__ == "__main__":
    main("clean")
