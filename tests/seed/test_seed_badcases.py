"""The demo's bad cases: taken whole, of both languages, apart from the other seed rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from steps.lib.case_clusters import asked
from steps.lib.case_folding import fold
from steps.lib.case_grams import Grams
from steps.lib.case_reading import CaseSource, Reader
from steps.lib.personal import Personal

SEED = Path(__file__).parents[2] / "data" / "seed"


def test_every_event_is_taken_and_no_user_is_named() -> None:
    source = CaseSource(name="desk", path=SEED / "badcases" / "events.jsonl")
    read = Reader(Personal(), b"", "NONE", 100_000).read([source])
    assert not read.quarantined and 40 <= read.rows <= 60
    cases = fold(read.events, Personal(), "").cases
    usable = [case for case, finding in cases if finding is None]
    assert Counter(case.lang for case in usable)["zh"] > 8 and Counter(case.lang for case in usable)["en"] > 8
    assert {case.severity for case in usable} == {"critical", "major", "minor"}
    assert len({tag for case in usable for tag in case.tags}) >= 8


def test_they_are_not_alike_to_prompts_of_the_task() -> None:
    source = CaseSource(name="desk", path=SEED / "badcases" / "events.jsonl")
    cases = fold(Reader(Personal(), b"", "NONE", 100_000).read([source]).events, Personal(), "").cases
    index = Grams([asked(case) for case, _ in cases])
    rows = [
        json.loads(line)
        for side in ("train", "heldout")
        for line in (SEED / "task" / f"prompts_{side}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    alike = [row["id"] for row in rows if index.near(row["prompt"], 0.3)]
    assert not alike, "clean would drop these rows"
