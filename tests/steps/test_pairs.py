"""Preference pairs: which answers stand against each other, why the others do not, and resuming sample by sample."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import cuts
import pytest
from minimal import NO, PAIRS, ROOT, YES, TinyChain, chats, context, data_artifact, made, pair, turn
from openai_server import Act, serve
from training_runs import argv, environment, spec

from steps import pairs
from steps.lib import inference
from steps.lib.artifact import Artifact
from steps.lib.errors import ConfigError, DataError
from steps.lib.rows import Candidate, Chat, Dropped, Pair, read_parquet
from steps.lib.rules import Task
from steps.lib.step import build
from steps.lib.store import work_folder
from steps.pairs import PairsConfig

pytestmark = pytest.mark.tiny


def config(**changes: Any) -> PairsConfig:
    return PairsConfig.model_validate({**PAIRS.model_dump(), **changes})


def read(artifact: Artifact) -> tuple[list[Pair], dict[str, list[Candidate]], list[Dropped]]:
    """Pairs, samples by chat, dropped rows."""
    samples: dict[str, list[Candidate]] = defaultdict(list)
    for row in read_parquet(artifact.path / "samples.parquet", Candidate):
        samples[row.id.rpartition("-sample")[0]].append(row)
    return (
        read_parquet(artifact.path / "pairs.parquet", Pair),
        samples,
        read_parquet(artifact.path / "dropped.parquet", Dropped),
    )


def score(row: Chat, text: str) -> float:
    """The task's rules written out: JSON {"ok": string}, and "yes" in it."""
    try:
        value = json.loads(text)
    except ValueError:
        return 0.0
    strict = isinstance(value, dict) and set(value) == {"ok"} and isinstance(value["ok"], str)
    return (1.0 + (value["ok"] == "yes")) / 2 if strict else 0.0


def test_the_policy_says_right_and_wrong_things(chain: TinyChain) -> None:
    """The other tests stand on this: samples of every score."""
    _, samples, _ = read(chain.pairs)
    task = Task.read(chain.data.path / "task.yaml")
    rows = {row.id: row for row in chats()}
    found = [
        (score(rows[name], s.answer), task.score(s.prompt, s.answer)) for name, some in samples.items() for s in some
    ]
    assert {mine for mine, _ in found} == {0.0, 0.5, 1.0} and all(mine == theirs for mine, theirs in found)
    assert len(samples) == 10 and {len(some) for some in samples.values()} == {4}
    assert [s.sample for some in samples.values() for s in some] == [0, 1, 2, 3] * 10


@pytest.mark.parametrize("margin", [0.1, 0.6])
def test_best_stands_against_worst_where_the_margin_is_wide_enough(
    chain: TinyChain, tmp_path: Path, margin: float
) -> None:
    pairs, samples, dropped = read(
        made(
            tmp_path,
            "pairs",
            config(min_margin=margin, teacher_share=0.0, imported=False),
            policy=chain.sft,
            data=chain.data,
        )
    )
    rows = {row.id: row for row in chats()}
    expected, reasons = {}, {}
    for name, some in samples.items():
        scores = [score(rows[name], s.answer) for s in some]
        if max(scores) - min(scores) >= margin:
            expected[f"{name}-policy0"] = (max(scores), min(scores))
        else:
            reasons[name] = "low_margin"
    assert {
        row.id: (score(rows[row.id[:-8]], row.chosen[0].content), score(rows[row.id[:-8]], row.rejected[0].content))
        for row in pairs
    } == expected
    assert {row.id: row.reason for row in dropped} == reasons and len(expected) + len(reasons) == 10 and expected
    for row in pairs:
        assert (
            row.margin == pytest.approx(expected[row.id][0] - expected[row.id][1])
            and row.source == "policy against policy"
        )
        assert row.prompt == rows[row.id[:-8]].messages[:-1], "system line and question"
        assert json.loads(row.evidence)["chosen"]["score"] == expected[row.id][0]


def test_chosen_must_be_good_enough(chain: TinyChain, tmp_path: Path) -> None:
    result = made(
        tmp_path, "pairs", config(min_chosen=0.9, teacher_share=0.0, imported=False), policy=chain.sft, data=chain.data
    )
    pairs, samples, dropped = read(result)
    rows = {row.id: row for row in chats()}
    assert all(score(rows[row.id[:-8]], row.chosen[0].content) == 1.0 for row in pairs)
    low = {
        name
        for name, some in samples.items()
        if {0.0, 0.5} <= {score(rows[name], s.answer) for s in some} <= {0.0, 0.5}
    }
    assert {row.id for row in dropped if row.reason == "chosen_too_low"} == low
    assert result.manifest["rows"]["out"]["prompts paired"] == len(pairs)


def test_several_pairs_a_prompt_never_use_an_answer_twice(chain: TinyChain, tmp_path: Path) -> None:
    pairs, samples, _ = read(
        made(
            tmp_path,
            "pairs",
            config(per_prompt=9, samples=5, teacher_share=0.0, imported=False),
            policy=chain.sft,
            data=chain.data,
        )
    )
    by_prompt: dict[str, list[Pair]] = defaultdict(list)
    for row in pairs:
        by_prompt[row.id.rpartition("-")[0]].append(row)
    assert {len(some) for some in by_prompt.values()} == {1, 2}, "five answers make two pairs at most"
    for name, some in by_prompt.items():
        used = sorted(side[0].content for row in some for side in (row.chosen, row.rejected))
        have = [s.answer for s in samples[name]]
        assert all(used.count(text) <= have.count(text) for text in used)
        assert [row.margin for row in some] == sorted((row.margin for row in some), reverse=True)


def test_the_teacher_stands_against_the_policys_worst_where_it_is_better(chain: TinyChain, tmp_path: Path) -> None:
    result = made(tmp_path, "pairs", config(teacher_share=1.0, imported=False), policy=chain.sft, data=chain.data)
    pairs, samples, dropped = read(result)
    rows = {row.id: row for row in chats()}
    found = {row.id.removesuffix("-teacher"): row for row in pairs if row.source == "teacher against policy"}
    for name, some in samples.items():
        worst, teacher = (
            min(score(rows[name], s.answer) for s in some),
            score(rows[name], rows[name].messages[-1].content),
        )
        assert (name in found) == (teacher - worst >= 0.1), (name, teacher, worst)
        if name in found:
            assert (
                found[name].chosen == rows[name].messages[-1:]
                and score(rows[name], found[name].rejected[0].content) == worst
            )
    counted = result.manifest["rows"]
    assert (
        counted["in"]["teacher answers"]
        == 10
        == len(found) + sum(row.reason == "teacher_not_better" for row in dropped)
    )
    share = made(tmp_path, "pairs", config(teacher_share=0.4, imported=False), policy=chain.sft, data=chain.data)
    assert 0 < share.manifest["rows"]["in"]["teacher answers"] < 10


def test_imported_pairs_come_along_unchanged_or_stay_away(chain: TinyChain, tmp_path: Path) -> None:
    pairs, _, _ = read(chain.pairs)
    assert [row for row in pairs if row.source == "made"] == [pair(n) for n in range(8)]
    without, _, _ = read(made(tmp_path, "pairs", config(imported=False), policy=chain.sft, data=chain.data))
    assert without == [row for row in pairs if row.source != "made"]
    only = made(tmp_path, "pairs", config(prompts=0), policy=chain.sft, data=chain.data)
    assert read(only) == ([pair(n) for n in range(8)], {}, []) and only.manifest["tokens"] == 0


def test_longer_conversations_and_repeated_prompts_are_not_sampled(chain: TinyChain, tmp_path: Path) -> None:
    first = chats(1)[0]
    rows = [
        first,
        first.model_copy(update={"id": "again"}),
        Chat(
            id="long",
            source="made",
            messages=[turn("user", "a"), turn("assistant", YES), turn("user", "b"), turn("assistant", NO)],
        ),
    ]
    _, samples, _ = read(made(tmp_path, "pairs", config(), policy=chain.sft, data=data_artifact(tmp_path, chats=rows)))
    assert set(samples) == {"chat-0"}


def test_without_a_task_nothing_scores_the_samples(chain: TinyChain, tmp_path: Path) -> None:
    data = data_artifact(tmp_path, task=None)
    with pytest.raises(
        ConfigError,
        match="got data without task.yaml, because clean.task is not set; set clean.task .* or pairs.prompts=0",
    ):
        made(tmp_path, "pairs", PAIRS, policy=chain.sft, data=data)
    assert made(tmp_path, "pairs", config(prompts=0), policy=chain.sft, data=data).manifest["metrics"]["pairs"] == 8


def test_no_pairs_is_an_error_with_the_reasons(chain: TinyChain, tmp_path: Path) -> None:
    nothing = config(min_margin=1.0, min_chosen=1.0, prompts=2, samples=2, imported=False, teacher_share=0.0)
    rows = [row.model_copy(update={"id": f"x{n}"}) for n, row in enumerate(chats(2))]
    with pytest.raises(
        DataError,
        match=r"no preference pairs: got 0 pairs, because of \{.*'(low_margin|chosen_too_low)': \d.*\}; lower",
    ):
        made(
            tmp_path,
            "pairs",
            nothing.model_copy(update={"temperature": 0.01}),
            policy=chain.sft,
            data=data_artifact(tmp_path, chats=rows),
        )
    with pytest.raises(DataError, match="because of nothing to make them from"):
        made(tmp_path, "pairs", config(prompts=0), policy=chain.sft, data=data_artifact(tmp_path, "empty", pairs=[]))
    assert not [path for path in (tmp_path / "pairs").iterdir() if not path.name.startswith(".")]


# --- resuming --------------------------------------------------------------------------------------------------------

KILL = """
import os, signal, sys
from steps.lib.ledger import RequestLedger
from steps.lib.door import main
put, seen = RequestLedger.put, []
def counted(self, *a, **k):
    put(self, *a, **k)
    seen.append(1)
    if len(seen) == 16:
        os.kill(os.getpid(), signal.SIGKILL)
RequestLedger.put = counted
main("pairs", sys.argv[1:])
"""


@pytest.mark.fault
def test_killed_in_mid_batch_it_samples_only_what_is_missing(
    chain: TinyChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 samples in batches of 4, 4 and 2; SIGKILL after the 16th answer, in mid-batch."""
    what = spec("pairs", PAIRS, policy=chain.sft, data=chain.data)
    out = tmp_path / "cut" / what.key()
    done = subprocess.run(
        [sys.executable, "-c", KILL, *argv(tmp_path, what, out)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -9 and not out.exists(), done.stderr
    assert (work_folder(out) / ".resume" / "samples.sqlite").exists()
    sampled: list[int] = []
    real = inference.generate

    def counted(model: Any, tokenizer: Any, prompts: Any, *a: Any, **k: Any) -> Any:
        sampled.append(len(prompts))
        return real(model, tokenizer, prompts, *a, **k)

    monkeypatch.setattr(inference, "generate", counted)
    resumed = build(what, out)
    assert sum(sampled) == 26, "the answers of 4 whole batches are kept; the broken batch is drawn again, whole"
    assert resumed.digest == chain.pairs.digest


@pytest.mark.fault
def test_no_sample_of_another_batch_or_policy_is_taken(
    chain: TinyChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is drawn as a whole: with other prompts beside it, the same prompt has other samples."""

    def sampled(out: Path, batch_size: int, policy: Artifact) -> tuple[list[str], int]:
        count: list[int] = []
        real = inference.generate
        with monkeypatch.context() as patch:
            patch.setattr(inference, "generate", lambda *a, **k: count.append(len(a[2])) or real(*a, **k))
            pairs.run(
                config(batch_size=batch_size), policy=policy.path, data=chain.data.path, out=out, context=context(out)
            )
        return [row.answer for row in read_parquet(out / "samples.parquet", Candidate)], sum(count)

    first, computed = sampled(tmp_path / "out", 4, chain.sft)
    assert computed == 40 and sampled(tmp_path / "out", 4, chain.sft) == (first, 0)
    other, computed = sampled(tmp_path / "out", 10, chain.sft)
    assert computed == 40 and other == sampled(tmp_path / "fresh", 10, chain.sft)[0] != first
    assert sampled(tmp_path / "out", 4, chain.dpo)[1] == 40
    assert sampled(tmp_path / "out", 4, chain.sft) == (first, 0)


@pytest.mark.fault
@pytest.mark.long
def test_cut_off_anywhere_it_goes_on_to_the_same_bytes(chain: TinyChain, tmp_path: Path) -> None:
    what = spec("pairs", PAIRS, policy=chain.sft, data=chain.data)
    jobs: list[cuts.Job] = []
    for number, (cut, by) in enumerate([(None, ""), *cuts.spread(40, 20)]):
        store = tmp_path / str(number)
        for artifact in (chain.base, chain.pretrain, chain.sft, chain.data):
            (store / artifact.key).parent.mkdir(parents=True, exist_ok=True)
            (store / artifact.key).symlink_to(artifact.path)
        out = store / what.key()
        jobs.append(cuts.Job(str(store), argv(store, what, out), str(out), cut, by))
    modules = ("torch", "transformers.models.llama.modeling_llama", "peft.tuners.lora.bnb", "pandas")
    outcomes = cuts.run("pairs", jobs, *modules)
    assert [outcome for outcome in outcomes if outcome.code] == []
    done = {outcome.held.get("samples", 0) for outcome in outcomes}
    assert {Artifact.read(Path(job.out)).digest for job in jobs} == {chain.pairs.digest} and len(done) > 20


# --- the judge -------------------------------------------------------------------------------------------------------


def judged(url: str) -> PairsConfig:
    teacher = {
        "kind": "http",
        "name": "judge",
        "endpoint": "test",
        "base_url": url,
        "model": "m",
        "temperature": 0,
        "backoff_seconds": 0.01,
        "attempts": 2,
    }
    return config(judge={"teacher": teacher}, teacher_share=0.0)


def says(choose: Any) -> Any:
    def decide(number: int, body: dict[str, Any]) -> Act:
        found = re.findall(r"<<([0-9a-f]{12})\n(.*?)\n\1>>", body["messages"][-1]["content"], re.DOTALL)
        return Act(text=choose(found[1][1], found[2][1]))

    return decide


@pytest.mark.server
def test_a_judge_that_agrees_keeps_the_pairs_with_its_evidence(chain: TinyChain, tmp_path: Path) -> None:
    rows = {row.id: row for row in chats()}
    any_row = next(iter(rows.values()))
    with serve(says(lambda a, b: "[[A]]" if score(any_row, a) > score(any_row, b) else "[[B]]")) as server:
        result = made(tmp_path, "pairs", judged(server.url), policy=chain.sft, data=chain.data)
        pairs, _, dropped = read(result)
        asked = len(server.bodies)
    kept = [row for row in pairs if row.source == "policy against policy"]
    assert kept and asked == 2 * len(kept) and not [row for row in dropped if row.reason.startswith("judge")]
    assert json.loads(kept[0].evidence)["judge"] == {"status": "first", "said": ["A", "B"]}
    assert result.manifest["rows"]["in"]["to judge"] == result.manifest["rows"]["out"]["judged pairs"] == len(kept)
    assert len([row for row in pairs if row.source == "made"]) == 8, "imported pairs are not judged"


@pytest.mark.server
@pytest.mark.parametrize(
    ("choose", "reason"),
    [
        (lambda a, b: "[[A]]", "judge_inconsistent"),
        (lambda a, b: "[[B]]" if score(chats(1)[0], a) > score(chats(1)[0], b) else "[[A]]", "judge_disagrees"),
        (lambda a, b: "[[tie]]", "judge_tie"),
        (lambda a, b: "I cannot say", "judge_unparsed"),
    ],
    ids=["inconsistent", "disagrees", "tie", "unparsed"],
)
def test_a_judge_that_does_not_agree_drops_the_pair_with_the_reason(
    chain: TinyChain, tmp_path: Path, choose: Any, reason: str
) -> None:
    with serve(says(choose)) as server:
        result = made(tmp_path, "pairs", judged(server.url), policy=chain.sft, data=chain.data)
    pairs, _, dropped = read(result)
    gone = [row for row in dropped if row.reason == reason]
    assert not [row for row in pairs if row.source != "made"] and gone
    assert result.manifest["rows"]["dropped"]["to judge"] == {reason: len(gone)}
    assert Pair.model_validate_json(gone[0].row).id == gone[0].id and "said" in gone[0].detail


def test_the_judge_is_in_the_key_and_its_address_is_not(chain: TinyChain) -> None:
    inputs = {"policy": chain.sft, "data": chain.data}
    one, two = (
        spec("pairs", judged(url), **inputs).key() for url in ("http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1")
    )
    assert one == two != spec("pairs", config(teacher_share=0.0), **inputs).key()
