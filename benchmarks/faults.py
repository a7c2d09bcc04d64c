"""Random kills over all steps of a micro line: after each, the same command goes on, and everything must be as if nothing had been.

The line is built undisturbed twice first, each step in a process of its own; that is the oracle, and says how long a step takes and
what it writes when. What was found goes to docs/faults.md, with a line for each kill. The exit code is 1 when a kill did harm.

Run:  make fault
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fault.kills import (  # noqa: E402
    PATIENCE,
    SIGNALS,
    TARGETS,
    Blow,
    Result,
    Trial,
    campaign,
    command,
    describe,
)
from fault.micro import (  # noqa: E402
    CONCURRENCY,
    SAVE_EVERY,
    TASK_PROMPTS,
    UPDATES,
    micro_line,
    teacher_answers,
    walk,
    with_http_teacher,
)
from fault.oracle import Micro  # noqa: E402
from openai_server import serve  # noqa: E402

PAGE = ROOT / "docs" / "faults.md"
SETTINGS = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
PHASES = ("starting", "working", "publishing", "published")


def oracle(folder: Path) -> Micro:
    """The line, built by ``prefline step`` without a disturbance, twice."""
    line = micro_line(folder)

    def build(step: str) -> None:
        argv = command(line, Trial(0, step, False, ()))
        subprocess.run(argv, cwd=ROOT, check=True, timeout=PATIENCE, capture_output=True)

    with serve(teacher_answers(line.folder)) as server:
        with_http_teacher(line, server.url)
        walk(line)
        return Micro.measure(line, build)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is text."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


PAGE_TEXT = """\
# Faults

Written by `make fault`. A micro line ({steps} steps; {answers} answers of a teacher over HTTP, {concurrency} at a time; {updates}
updates a training step, a checkpoint each {save_every}) was built undisturbed, twice, with equal digests. Then {kills} kills,
drawn with seed {seed}: one step's artifact is taken away (and for promote the registry), `prefline step` is started and killed, and
the same command goes on. In {walks} of the {trials} trials it is the whole line, with two steps missing; in {twice} the run that
goes on is killed, too. {verdict}

After each trial: the digest of every artifact is that of the undisturbed line; a walk over the line finds everything Cached; the
registry has the same versions and events; the history of a training run has the same bytes; nothing lies in `broken/`; no lock is
held; no process and no partial folder is left. Answers asked of the teacher (counted at its server) and updates done more than once
are allowed only where SIGKILL hit the step's own process: at most the {concurrency} requests in flight, and at most the
{save_every} updates since the last checkpoint. {hard} kills were such ones; after them {asked} answers and {updated} updates were
done again. After all others, none.

{by_step}

Starting: the process is starting, or waits for its lock. Working: the partial folder is there. Publishing: its manifest is being
written, or was. Published: the artifact is there, and the process not yet at its end.

{by_kind}

Half of the kills come at a time within the undisturbed length, half at a change below the store (the k-th write, rename or new
file, by inotify). The group is every process, the engine is `prefline` itself, the step is its child; where there is no child yet,
the group is hit. The slowest end is that until no process is left: after a SIGTERM a step finishes its update, saves, and goes.

* {day}, {machine}, {cores} cores, Python {python}, {workers} trials at a time, {minutes:.0f} minutes.
* The other faults (damaged files of every kind, four processes at once, a full disk, a read-only store, a clock that was set back,
  a server that is gone) are in tests/fault, and run in `make test` and `make fault`.

<details><summary>Every kill</summary>

```
{log}
```

</details>
"""


def steps_table(micro: Micro, results: Sequence[Result]) -> str:
    """A row a step: how long it takes, what hit it and when, and what was done again."""
    heads = [
        "step",
        "seconds undisturbed",
        "kills",
        *SIGNALS,
        *(f"hit {name}" for name in PHASES),
        "answers again",
        "updates again",
    ]
    rows = []
    for step in micro.seconds:
        own = [result for result in results if result.trial.step == step]
        hits = [blow for result in results for blow in result.blows if blow.step == step]
        signals, phases = Counter(hit.kill.signal for hit in hits), Counter(hit.phase for hit in hits)
        row = [
            step,
            f"{micro.seconds[step]:.1f}",
            len(hits),
            *(signals[one] for one in SIGNALS),
            *(phases[one] for one in PHASES),
        ]
        rows.append([*row, sum(result.asked_again for result in own), sum(result.updated_again for result in own)])
    return table(heads, rows)


def kinds_table(blows: Sequence[Blow]) -> str:
    """A row a signal and target: what triggered it, and how long it took until nothing was left."""
    heads = [
        "signal and target",
        "at a time",
        "at a change",
        "from the first save on",
        "while publishing",
        "slowest end, seconds",
    ]
    rows = []
    for number in SIGNALS:
        for target in TARGETS:
            hits = [blow for blow in blows if (blow.kill.signal, blow.target) == (number, target)]
            triggers = Counter(hit.kill.trigger for hit in hits)
            slowest = max((hit.gone for hit in hits), default=0.0)
            rows.append(
                [
                    f"{number} to the {target}",
                    *(triggers[one] for one in ("time", "change", "save", "publish")),
                    f"{slowest:.1f}",
                ]
            )
    return table(heads, rows)


def page(micro: Micro, results: Sequence[Result], seed: int, seconds: float, workers: int) -> str:
    """The text of docs/faults.md."""
    blows = [blow for result in results for blow in result.blows]
    problems = [problem for result in results for problem in result.problems]
    return PAGE_TEXT.format(
        steps=len(micro.seconds),
        answers=TASK_PROMPTS,
        concurrency=CONCURRENCY,
        updates=UPDATES,
        save_every=SAVE_EVERY,
        kills=len(blows),
        seed=seed,
        trials=len(results),
        walks=sum(result.trial.walk for result in results),
        twice=sum(len(result.blows) > 1 for result in results),
        verdict=f"**{len(problems)} findings: see the log.**" if problems else "**None of them did harm.**",
        hard=sum(blow.kill.signal == "SIGKILL" and blow.target != "engine" for blow in blows),
        asked=sum(result.asked_again for result in results),
        updated=sum(result.updated_again for result in results),
        by_step=steps_table(micro, results),
        by_kind=kinds_table(blows),
        day=time.strftime("%Y-%m-%d"),
        machine=platform.machine(),
        cores=os.cpu_count(),
        python=platform.python_version(),
        workers=workers,
        minutes=seconds / 60,
        log="\n".join(line for result in results for line in describe(result)),
    )


def main() -> int:
    """Run the campaign and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=int(os.environ.get("PREFLINE_KILLS", "200")))
    parser.add_argument("--seed", type=int, default=9)
    parser.add_argument("--workers", type=int, default=2, help="trials at a time")
    parser.add_argument("--page", type=Path, default=PAGE)
    words = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="prefline-faults-") as folder:
        os.environ.update(SETTINGS, XDG_CACHE_HOME=str(Path(folder) / "cache"))
        os.chdir(ROOT)
        (Path(folder) / "line").mkdir()
        micro = oracle(Path(folder) / "line")
        say = functools.partial(print, flush=True)
        results = campaign(micro, Path(folder) / "trials", words.seed, words.kills, workers=words.workers, say=say)
    text = page(micro, results, words.seed, time.monotonic() - started, words.workers)
    words.page.write_text(text, encoding="utf-8")
    harmful = [result for result in results if result.problems]
    print(
        f"{sum(len(result.blows) for result in results)} kills, {len(harmful)} trials with a finding; see {words.page}"
    )
    return 1 if harmful else 0


if __name__ == "__main__":
    sys.exit(main())
