"""Cost per row and peak memory of the step clean, whole and in its own process, on made-up documents and chats of both languages.

Rows are made from a seed: nine of ten are documents (200 to 400 words, frequencies as in ../shared/design/DATA.md 6), one of ten is
a chat; half zh, half en; a tenth of the documents are near-copies of an earlier one, a hundredth exact ones, and some rows fail a
filter. CPU is that of the step and its workers; memory the proportional set size (PSS) of their whole tree, read every half second.
``--kills N`` kills the step N times at moments spread over the time of the first run, goes on, and compares all files but logs.

Run:  python benchmarks/clean.py [shard_rows=5000 ...] [--rows 10000 100000 1000000] [--workers 2] [--kills 3]
"""

from __future__ import annotations

import argparse
import bisect
import hashlib
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from line import pss_mb

ROOT = Path(__file__).parents[1]
WORDS = 50_000
"""Different words of a language."""
PARAGRAPHS = 20


class Language:
    """Made-up words of a language, drawn with p ~ 1 / (rank + 2.7)."""

    def __init__(self, name: str, draw: random.Random) -> None:
        self.name = name
        letters = "etaoinshrdlucmfwypvbgk" if name == "en" else "".join(chr(0x4E00 + n) for n in range(4000))
        lengths = (range(2, 11), None) if name == "en" else ((1, 2, 3, 4), (0.10, 0.70, 0.14, 0.06))
        words: dict[str, None] = {}
        while len(words) < WORDS:
            [length] = draw.choices(lengths[0], lengths[1])
            words["".join(draw.choices(letters, k=length))] = None
        self.words = sorted(words, key=len) if name == "en" else list(words)
        self._sums = list(itertools.accumulate(1 / (rank + 2.7) for rank in range(WORDS)))
        self.paragraphs = [self.some(120, draw) for _ in range(PARAGRAPHS)]

    def some(self, count: int, draw: random.Random) -> list[str]:
        """So many words."""
        return [self.words[bisect.bisect(self._sums, draw.random() * self._sums[-1])] for _ in range(count)]

    def text(self, words: list[str]) -> str:
        """Words as sentences, with a line end after every sixth one."""
        blank, stop = (" ", ". ") if self.name == "en" else ("", "。")
        out: list[str] = []
        sentence: list[str] = []
        for word in words:
            sentence.append(word)
            if (7 * len(word) + ord(word[0])) % 13 == 0 or len(sentence) == 24:
                out.append(blank.join(sentence))
                sentence = []
        out.append(blank.join(sentence) or words[-1])
        lines = [stop.join(out[start : start + 6]) + stop.strip() for start in range(0, len(out), 6)]
        return "\n".join(lines)

    def document(self, draw: random.Random) -> list[str]:
        """200 to 400 words; a tenth of the documents open with a paragraph that others have, too."""
        words = self.some(draw.randint(200, 400), draw)
        return [*draw.choice(self.paragraphs), *words[120:]] if draw.random() < 0.1 else words

    def edited(self, words: list[str], rate: float, draw: random.Random) -> list[str]:
        """A copy with that share of its words replaced, deleted or followed by another one."""
        out: list[str] = []
        for word in words:
            if draw.random() >= rate:
                out.append(word)
            elif (kind := draw.random()) < 0.5:
                out += self.some(1, draw)
            elif kind < 0.75:
                out += [word, *self.some(1, draw)]
        return out


def rows(count: int, seed: int = 0) -> Iterator[tuple[str, dict[str, object]]]:
    """(kind, row) of made-up documents and chats."""
    draw = random.Random(seed)
    languages = [Language(name, draw) for name in ("en", "zh")]
    recent: dict[str, list[list[str]]] = {"en": [], "zh": []}
    for number in range(count):
        language = languages[number % 2]
        if number % 20 >= 18:
            question, answer = (
                language.text(language.some(draw.randint(*span), draw)) for span in ((8, 40), (20, 120))
            )
            if number % 200 >= 198:
                answer = (
                    "As an AI language model, I cannot. "
                    if language.name == "en"
                    else "作为一个人工智能语言模型，我不能。"
                ) + answer
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            yield "chats", {"messages": turns, "id": f"c{number}"}
            continue
        known, kind = recent[language.name], draw.random()
        words = draw.choice(known) if known and kind < 0.11 else language.document(draw)
        if known and 0.01 <= kind < 0.11:
            words = language.edited(words, draw.choice((0.01, 0.03, 0.05, 0.10)), draw)
        if len(known) < 2_000:
            known.append(words)
        else:
            known[draw.randrange(2_000)] = words
        text = language.text(words)
        if number % 40 == 0:
            text = text[:15]
        elif number % 40 == 11:
            text += "#…" * 60
        yield "domain", {"text": text, "id": f"d{number}"}


def written(folder: Path, count: int) -> dict[str, object]:
    """Write the sources; the step's configuration."""
    files = {kind: (folder / f"{kind}.jsonl").open("w", encoding="utf-8") for kind in ("domain", "chats")}
    for kind, row in rows(count):
        files[kind].write(json.dumps(row, ensure_ascii=False) + "\n")
    for file in files.values():
        file.close()
    sources = {kind: [{"name": kind, "path": str(folder / f"{kind}.jsonl")}] for kind in files}
    return {**sources, "heldout": {"share": 0.01}}


def run(
    config: Path, out: Path, overrides: list[str], kill_after: float | None = None
) -> tuple[float, float, float, int]:
    """(wall seconds, CPU seconds, peak MB, exit code) of the step."""
    argv = [sys.executable, "-m", "steps.clean", "--config", str(config), "--out", str(out), *overrides]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started, peak = time.perf_counter(), 0.0
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", **os.environ}
    with (
        (out.parent / "log.txt").open("ab") as log,
        subprocess.Popen(argv, cwd=ROOT, env=environment, stderr=log) as process,
    ):
        while process.poll() is None:
            try:
                peak = max(peak, pss_mb(process.pid))
            except (FileNotFoundError, ProcessLookupError):
                break
            if kill_after is not None and time.perf_counter() - started > kill_after:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.5 if kill_after is None else 0.02)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, peak, process.returncode


def digests(out: Path) -> dict[str, str]:
    """File -> sha256, of all that is neither a log nor a manifest."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob("*"))
        if path.suffix in (".parquet", ".html")
    }


def main() -> None:
    """Print the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="of the step, such as shard_rows=5000")
    arguments = parser.parse_intermixed_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    heads = (
        ("rows", 9),
        ("workers", 7),
        ("wall s", 8),
        ("CPU s", 8),
        ("wall ms/row", 11),
        ("CPU ms/row", 10),
        ("peak MB", 8),
    )
    print(*(name.rjust(width) for name, width in heads), " kept  held  dropped")
    for count in arguments.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            config = folder / "clean.json"
            config.write_text(json.dumps(written(folder, count)))
            for workers in arguments.workers:
                words = [f"workers={workers}", *arguments.overrides]
                out = folder / f"out-{workers}"
                wall, cpu, peak, code = run(config, out, words)
                if code:
                    raise SystemExit(
                        f"the step failed with exit code {code}: {(folder / 'log.txt').read_text()[-2000:]}"
                    )
                ledger = json.loads((out / "manifest.json").read_text())["rows"]
                kept, held = (
                    sum(ledger["out"].get(file, 0) for file in files)
                    for files in (("corpus", "chats"), ("heldout_domain", "heldout_prompts"))
                )
                gone = sum(sum(reasons.values()) for reasons in ledger["dropped"].values())
                print(
                    f"{count:>9,} {workers:>7} {wall:>8.1f} {cpu:>8.1f} {1000 * wall / count:>11.3f} {1000 * cpu / count:>10.3f} "
                    f"{peak:>8.0f}  {kept:,}  {held:,}  {gone:,}",
                    flush=True,
                )
                if arguments.kills:
                    killed(config, folder, words, wall, arguments.kills, digests(out))


def killed(config: Path, folder: Path, words: list[str], wall: float, kills: int, whole: dict[str, str]) -> None:
    """Kill a run at moments spread over its time, go on each time, and compare what it wrote in the end."""
    out = folder / f"killed-{'-'.join(words)}"
    spent = 0.0
    for number in range(kills):
        took, _, _, code = run(config, out, words, wall * (number + 1) / (kills + 1))
        spent += took
        if code == 0:
            break
    took, _, _, code = run(config, out, words)
    metrics = json.loads((out / "manifest.json").read_text())["metrics"]
    same = "the same files" if digests(out) == whole else "OTHER FILES"
    print(
        f"{'':>9} {kills} kills: {spent + took:.1f} s in all, the last run {took:.1f} s with {metrics['units_from_ledger']} of "
        f"{metrics['units']} units from the ledger, {same}",
        flush=True,
    )
    if code or same != "the same files":
        raise SystemExit(1)


if __name__ == "__main__":
    main()
