"""The store of bad cases under load: single events with their latency, batches, and 100,000 cases listed, clustered and split.

Goals: 500 single events a second with p99 under 50 ms on SQLite; listing, clustering and splitting 100,000 cases in under 60 s.

Run:  python benchmarks/badcases.py [--cases 100000] [--url ADDRESS]
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from steps.lib.case_clusters import HOLDOUT, Nearness, placed
from steps.lib.case_store import CaseStore
from steps.lib.rows import BadCase, Message

SOURCES = ("task/prompts_train", "task/prompts_heldout", "general/train")
SINGLES = 3000
"""Events that are sent one by one."""


def requests(count: int, seed: int = 0) -> list[str]:
    """Requests of one to three clauses of the seed's texts and an order number, Chinese and English."""
    pool: dict[str, list[str]] = {"zh": [], "en": []}
    for name in SOURCES:
        for line in (Path("data/seed") / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            text = row.get("prompt") or row["text"]
            lang = "zh" if re.search("[\u4e00-\u9fff]", text) else "en"
            pool[lang] += [
                part.strip() for part in re.split(r"[，。！？,.!?;；\n]", text) if 6 <= len(part.strip()) <= 80
            ]
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        lang = draw.choice(("zh", "en"))
        clauses = draw.sample(pool[lang], draw.randint(1, 3))
        found.append(
            f"{('，' if lang == 'zh' else ', ').join(clauses)} {draw.choice('KABC')}{draw.randint(10000, 99999)}"
        )
    return found


def event(name: str, text: str) -> dict[str, Any]:
    return {
        "schema_version": "badcase.v1", "case_id": name, "event_id": f"{name}-a", "ts": "2026-11-01T08:00:00Z", "consent": True,
        "request": {"messages": [{"role": "user", "content": text}]}, "response": {"text": "No idea."},
        "signal": {"kind": "thumb", "value": -1}, "model": {"name": "aftersales", "version_digest": "v1"},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--url", help="a database; without it a SQLite file in a temporary folder")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, CaseStore.open(words.url or f"{folder}/cases.sqlite") as store:
        _store(store, words.cases, Path(folder))


def _store(store: CaseStore, count: int, folder: Path) -> None:
    single = [event(f"single-{n}", text) for n, text in enumerate(requests(SINGLES, seed=1))]
    took = []
    for one in single:
        started = time.perf_counter()
        store.ingest([one], source="bench")
        took.append(time.perf_counter() - started)
    took.sort()
    print(
        f"one event a call: {SINGLES / sum(took):.0f} a second, median {took[SINGLES // 2] * 1000:.1f} ms, "
        f"p99 {took[SINGLES * 99 // 100] * 1000:.1f} ms"
    )
    texts = requests(count)
    started = time.perf_counter()
    for first in range(0, count, 5000):
        store.ingest([event(f"case-{n}", texts[n]) for n in range(first, min(count, first + 5000))], source="bench")
    print(f"in batches of 5,000: {count / (time.perf_counter() - started):.0f} a second")
    whole = time.perf_counter()

    def lap(what: str) -> None:
        nonlocal started
        print(f"{what}: {time.perf_counter() - started:.1f} s", flush=True)
        started = time.perf_counter()

    started = time.perf_counter()
    listed = store.cases()
    lap(f"{len(listed):,} cases listed")
    cases = [
        BadCase(id=f"c{n}", lang="en", source="bench", prompt=[Message(role="user", content=t)])
        for n, t in enumerate(texts)
    ]
    lap("rows made")
    near = Nearness.of(cases, 0.3)
    lap(f"compared: {len(near.pairs.left):,} pairs of 0.3 or more")
    places = placed(cases, near.at_least(0.4), {}, salt="prefline", percent=30)
    held = sum(one.split == HOLDOUT for one in places) / len(places)
    lap(f"{len({one.cluster for one in places}):,} clusters, {held:.1%} of the cases held out")
    print(f"listed, clustered and split: {time.perf_counter() - whole:.1f} s")


if __name__ == "__main__":
    main()
