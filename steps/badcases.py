"""Feedback of production -> cases; those that are held out are measured with, of the others corrections become pairs.

Events are folded into cases without personal data, cases into clusters, and each cluster lies on one side for ever. A case is held
out with what it expects, so a program (or a judge) can tell whether a later model has learnt it. docs/badcases.md has the reasons.

Reads:  the configured sources: badcase.v1 (steps/lib/case_events.py), or exports of Langfuse, Phoenix, Open WebUI, Gradio,
        OpenAI-style logs, Label Studio; the record of an earlier run; the task file.
Writes: cases.parquet (BadCase; every case with its cluster and side: the record of the next run), holdout.parquet (BadCase; the
        suite ``cases``), train.parquet (BadCase), pairs.parquet (Pair: the recorded answer against its correction),
        thumbs.parquet (Thumb: bad answers that nobody corrected), dropped.parquet (Dropped).
Source: EVALUATION.md section 7 (loop, steps 1 to 8, and the figures of the split).
Run:    python -m steps.badcases --config badcases.yaml --out DIR
"""

from __future__ import annotations

import hmac
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from steps.lib import case_choice, case_clusters, case_pairs
from steps.lib.badcases_config import BadcasesConfig
from steps.lib.case_clusters import HOLDOUT, TRAIN, Known, Nearness, Place
from steps.lib.case_folding import Folded, fold
from steps.lib.case_reading import Read, Reader, digests, key_of
from steps.lib.digests import digest_file
from steps.lib.door import main
from steps.lib.errors import DataError
from steps.lib.quality import Finding
from steps.lib.row_ledger import RowLedger
from steps.lib.rows import BadCase, Dropped, Pair, Thumb, read_parquet, write_parquet
from steps.lib.rules import Task
from steps.lib.step import Context, Metrics

__all__ = ["BadcasesConfig", "externals", "run"]

VERSION = "2"
RECORDS = ("dropped.parquet",)


def externals(config: BadcasesConfig) -> dict[str, str]:
    """Content of every source, of the record and the task; a mark of the key that hashes users.

    Raises:
        DataError: every file that is missing, in one message.
        ConfigError: the key is too short.
    """
    found = dict(digests(config.sources))
    for name, path in (("record", config.record), ("task", config.task)):
        if path:
            found[name] = digest_file(path)
    key = key_of(config.user_key_env)
    found["user_key"] = hmac.new(key, b"prefline user key", "sha256").hexdigest()[:12] if key else "none"
    return found


def run(config: BadcasesConfig, *, out: Path, context: Context) -> Metrics:
    """Fold, place and choose; see the top of the file.

    Raises:
        DataError: a bad file, an event of the record that is gone, or too many events set aside.
        ConfigError: users without a key.
    """
    reader = Reader(config.personal, key_of(config.user_key_env), config.user_key_env, config.max_chars)
    read = reader.read(config.sources)
    folded = fold(read.events, config.personal, config.as_of.isoformat() if config.as_of else "")
    _sound(read, config)
    record = read_parquet(config.record, BadCase) if config.record else []
    cases, findings = _ordered(folded, record)
    known = {case.id: Known(case.cluster, case.split, case.contaminated) for case in record}
    near = Nearness.of(cases, config.guard)
    places = case_clusters.placed(cases, near.at_least(config.cluster), known, salt=config.salt, percent=config.holdout)
    cases = [_placed(case, place) for case, place in zip(cases, places, strict=True)]
    alarms = _alarms(cases, findings, config)
    told = [told for told, _ in alarms]
    if config.few_users == "hold":
        findings |= {name: ("few_users", why) for why, names in alarms for name in names}
    task = Task.read(config.task) if config.task else None
    cases, findings = case_choice.chosen(cases, findings, near, task, config)
    held = [case for case in cases if case.split == HOLDOUT and case.id not in findings]
    train = [case for case in cases if case.split == TRAIN and case.id not in findings]
    pairs, unpaired = case_pairs.pairs_of(train, task, config.corrections, config.models)
    thumbs = case_pairs.thumbs_of(train, unpaired, task)

    ledger = RowLedger()
    dropped = [*read.quarantined, *folded.dropped]
    ledger.took("events", read.rows)
    ledger.gave("case_events", folded.events)
    _drop(ledger, "events", (row.reason for row in dropped))
    ledger.took("cases", len(cases))
    ledger.gave("holdout", len(held))
    ledger.gave("train", len(train))
    _drop(ledger, "cases", (reason for reason, _ in findings.values()))
    ledger.took("corrections", len(train))
    ledger.gave("pairs", len(pairs))
    _drop(ledger, "corrections", (reason for reason, _ in unpaired.values()))
    by_id = {case.id: case for case in cases}
    dropped += [_dropped(by_id[name], found) for some in (findings, unpaired) for name, found in some.items()]
    for name, rows in (("cases", cases), ("holdout", held), ("train", train)):
        write_parquet(out / f"{name}.parquet", rows, BadCase)
    write_parquet(out / "pairs.parquet", pairs, Pair)
    write_parquet(out / "thumbs.parquet", thumbs, Thumb)
    write_parquet(out / "dropped.parquet", dropped, Dropped)
    ledger.balance({"events": ["case_events"], "cases": ["holdout", "train"], "corrections": ["pairs"]})

    gone = [
        case.id for case in cases if case.status == "deleted" and (one := known.get(case.id)) and one.split == TRAIN
    ]
    if gone:
        told.append(
            f"{len(gone)} cases that may have been trained on were deleted (first: {gone[0]}); train again without them"
        )
    for line in told:
        context.log.warning("%s", line)
    context.log.info(
        "%d events, %d cases: %d held out, %d to train on, %d pairs",
        read.rows,
        len(cases),
        len(held),
        len(train),
        len(pairs),
    )
    longer = [len(pair.chosen[-1].content) > len(pair.rejected[-1].content) for pair in pairs]
    clusters = {case.cluster for case in cases}
    return Metrics(
        values={
            "cases": len(cases),
            "clusters": len(clusters),
            "new_clusters": len(clusters - {one.cluster for one in known.values()}),
            "holdout": len(held),
            "holdout_critical": sum(case.severity == "critical" for case in held),
            "train": len(train),
            "pairs": len(pairs),
            "thumbs": len(thumbs),
            "contaminated": sum(case.contaminated for case in cases),
            "deleted_after_training": len(gone),
            "chosen_longer_share": round(sum(longer) / len(longer), 4) if longer else 0.0,
            "warnings": len(told),
        },
        rows=ledger,
    )


def _sound(read: Read, config: BadcasesConfig) -> None:
    """Refuse sources of which too much cannot be taken."""
    aside = len(read.quarantined)
    if config.max_quarantined is not None and aside > config.max_quarantined * read.rows:
        reasons = Counter(row.reason for row in read.quarantined)
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        first = read.quarantined[0]
        raise DataError(
            f"too many events were set aside: got {aside} of {read.rows}, where `badcases.max_quarantined` allows "
            f"{config.max_quarantined:.0%}, because of {listed} (first: {first.id}, {first.detail}); "
            "check the source's format, or mend it"
        )


def _ordered(folded: Folded, record: Sequence[BadCase]) -> tuple[list[BadCase], dict[str, Finding]]:
    """Cases of the record first, in its order; reasons of those that cannot be used.

    Raises:
        DataError: an event of the record is gone: what it held out would not be guarded any more.
    """
    found = {case.id: case for case, _ in folded.cases}
    there = {event for case in found.values() for event in case.events}
    gone = sorted(event for case in record for event in case.events if event not in there)
    if gone:
        raise DataError(
            f"{len(gone)} events of the record are gone: got no event {gone[0]}, because events are only ever added, and a "
            "case that is gone would no longer guard the training data; "
            "give every file of feedback again, and delete a case with an event"
        )
    names = [case.id for case in record]
    recorded = set(names)
    names += [case.id for case, _ in folded.cases if case.id not in recorded]
    return [found[name] for name in names], {case.id: finding for case, finding in folded.cases if finding}


def _placed(case: BadCase, place: Place) -> BadCase:
    return case.model_copy(update={"cluster": place.cluster, "split": place.split, "contaminated": place.contaminated})


def _alarms(
    cases: Sequence[BadCase], findings: Mapping[str, Finding], config: BadcasesConfig
) -> list[tuple[str, list[str]]]:
    """Clusters with which very few users teach the model something, and the cases in them that nobody stands for."""
    clusters: dict[str, list[BadCase]] = defaultdict(list)
    for case in cases:
        if case.correction and case.id not in findings:
            clusters[case.cluster].append(case)
    return [
        (
            f"cluster {name} has {len(own)} corrections of {len(users)} user(s), because somebody may be teaching the model a "
            "thing of his own; look at them before they are trained on",
            [
                one.id
                for one in own
                if one.correction_by == "human_user" and not one.verified and one.status != "accepted"
            ],
        )
        for name, own in clusters.items()
        if len(own) >= config.alarm and "" not in (users := {case.user for case in own}) and len(users) <= 2
    ]


def _drop(ledger: RowLedger, kind: str, reasons: Iterable[str]) -> None:
    for reason in reasons:
        ledger.drop(kind, reason)


def _dropped(case: BadCase, finding: Finding) -> Dropped:
    reason, detail = finding
    row = json.dumps(case.model_dump(mode="json"), ensure_ascii=False)
    return Dropped(
        id=case.id, lang=case.lang, source=case.source, step="badcases", reason=reason, detail=detail, row=row
    )


if __name__ == "__main__":
    main("badcases")
