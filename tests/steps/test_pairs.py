"""Preference pairs: which answers stand against each other, why the others do not, and resuming sample by sample."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import cuts
import pytest
from minimal import NO, PAIRS, ROOT, YES, TinyChain, chats, close, context, data_artifact, made, pair, turn
from openai_server import Act, serve
from pydantic import ValidationError
from training_runs import argv, environment, spec

from steps import pairs
from steps.lib import inference, models
from steps.lib.artifact import Artifact
from steps.lib.errors import ConfigError, DataError
from steps.lib.families import kinship
from steps.lib.pair_judging import authors, comparison
from steps.lib.rows import BadCase, Candidate, Chat, Dropped, Pair, read_parquet
from steps.lib.rules import Task
from steps.lib.step import build
from steps.lib.store import work_folder
from steps.pairs import PairsConfig

pytestmark = pytest.mark.tiny


POLICY, TEACHER, IMPORTED = {"kind": "policy"}, {"kind": "teacher"}, {"kind": "imported"}


def config(*sources: dict[str, Any], **changes: Any) -> PairsConfig:
    raw = {**PAIRS.model_dump(), **changes}
    return PairsConfig.model_validate(raw | ({"sources": list(sources)} if sources else {}))


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
            config({**POLICY, "min_margin": margin}),
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
    result = made(tmp_path, "pairs", config({**POLICY, "min_chosen": 0.9}), policy=chain.sft, data=chain.data)
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
            config({**POLICY, "per_prompt": 9}, samples=5),
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
    result = made(tmp_path, "pairs", config(TEACHER), policy=chain.sft, data=chain.data)
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
    share = made(tmp_path, "pairs", config({**TEACHER, "share": 0.4}), policy=chain.sft, data=chain.data)
    assert 0 < share.manifest["rows"]["in"]["teacher answers"] < 10


def test_imported_pairs_come_along_unchanged_or_stay_away(chain: TinyChain, tmp_path: Path) -> None:
    pairs, _, dropped = read(chain.pairs)
    twice = {row.id for row in dropped if row.reason == "duplicate" and row.id.startswith("pair-")}
    found = [row for row in pairs if row.source == "made"]
    assert found == [pair(n) for n in range(8) if f"pair-{n}" not in twice] and len(found) + len(twice) == 8
    own = {
        (row.prompt[-1].content, row.chosen[0].content, row.rejected[0].content) for row in pairs if row not in found
    }
    for name in twice:
        assert (f"Is {name[5:]} fine?", YES, NO) in own, "what a source before it made"
    without, _, _ = read(
        made(tmp_path, "pairs", config(POLICY, {**TEACHER, "share": 0.5}), policy=chain.sft, data=chain.data)
    )
    assert without == [row for row in pairs if row.source != "made"]
    only = made(tmp_path, "pairs", config(IMPORTED), policy=chain.sft, data=chain.data)
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
        match="got data without task.yaml, because clean.task is not set; set clean.task",
    ):
        made(tmp_path, "pairs", PAIRS, policy=chain.sft, data=data)
    assert made(tmp_path, "pairs", config(IMPORTED), policy=chain.sft, data=data).manifest["metrics"]["pairs"] == 8


def test_no_pairs_is_an_error_with_the_reasons(chain: TinyChain, tmp_path: Path) -> None:
    nothing = config({**POLICY, "min_margin": 1.0, "min_chosen": 1.0}, prompts=2, samples=2)
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
        made(tmp_path, "pairs", config(IMPORTED), policy=chain.sft, data=data_artifact(tmp_path, "empty", pairs=[]))
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
    outcomes = cuts.run("pairs", jobs, *cuts.MODEL)
    assert [outcome for outcome in outcomes if outcome.code] == []
    done = {outcome.held.get("samples", 0) for outcome in outcomes}
    assert {Artifact.read(Path(job.out)).digest for job in jobs} == {chain.pairs.digest} and len(done) > 20


# --- the judge -------------------------------------------------------------------------------------------------------


def judged(url: str, *sources: dict[str, Any], **changes: Any) -> PairsConfig:
    teacher = {
        "kind": "http",
        "name": "judge",
        "endpoint": "test",
        "base_url": url,
        "model": "m",
        "temperature": 0,
        "backoff_seconds": 0.01,
        "attempts": 2,
        **changes,
    }
    return config(*(sources or (POLICY, IMPORTED)), judge={"teacher": teacher})


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
    evidence = json.loads(kept[0].evidence)["judge"]
    assert len(set(evidence.pop("requests"))) == 2
    assert evidence == {"name": "judge", "status": "first", "said": ["A", "B"]}
    assert (
        result.manifest["metrics"]["judge_consistent_share"] == 1.0
        and result.manifest["metrics"]["judge_first_share"] == 0.5
    )
    assert result.manifest["tokens"] >= 10 * asked, "7 in and 3 out each, beside the samples'"
    assert result.manifest["rows"]["in"]["to judge"] == result.manifest["rows"]["out"]["judged pairs"] == len(kept)
    imported = [row for row in pairs if row.source == "made"]
    assert len(imported) >= 7 and not any("judge" in row.evidence for row in imported), "imported pairs are not judged"


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
    assert one == two != spec("pairs", config(POLICY, IMPORTED), **inputs).key()


def better(a: str, b: str) -> str:
    """What a judge says who knows the rules."""
    row = chats(1)[0]
    one, other = score(row, a), score(row, b)
    return "[[A]]" if one > other else "[[B]]" if one < other else "[[tie]]"


BY_JUDGE = {"kind": "policy", "scored_by": "judge"}


@pytest.mark.server
def test_a_judge_alone_ranks_the_samples_by_comparing_each_with_each(chain: TinyChain, tmp_path: Path) -> None:
    """No task, no rules: the best beats the worst itself, in both orders."""
    data = data_artifact(tmp_path, task=None)
    with serve(says(better)) as server:
        result = made(tmp_path, "pairs", judged(server.url, BY_JUDGE), policy=chain.sft, data=data)
        asked = len(server.bodies)
    pairs, samples, dropped = read(result)
    rows, expected, comparisons = {row.id: row for row in chats()}, {}, 0
    for name, some in samples.items():
        texts = {s.answer.strip() for s in some}
        comparisons += len(texts) * (len(texts) - 1) // 2
        scores = [score(rows[name], text) for text in texts]
        if len(texts) > 1 and max(scores) > min(scores):
            expected[name] = (max(scores), min(scores))
    assert asked == 2 * comparisons == 2 * result.manifest["metrics"]["judged"] and expected
    sides = {
        row.id.removesuffix("-policy0"): tuple(score(rows["chat-0"], s[0].content) for s in (row.chosen, row.rejected))
        for row in pairs
    }
    assert sides == expected
    assert {row.reason for row in dropped} <= {"equal_samples", "low_margin", "judge_tie", "duplicate"}
    for row in pairs:
        evidence = json.loads(row.evidence)
        assert evidence["judge"]["status"] == "first" and 0.1 <= row.margin <= 1.0
        assert row.margin == pytest.approx(evidence["chosen"]["score"] - evidence["rejected"]["score"])


@pytest.mark.server
def test_a_judge_alone_sets_the_teacher_against_the_first_sample_that_differs(chain: TinyChain, tmp_path: Path) -> None:
    data = data_artifact(tmp_path, task=None)
    with serve(says(better)) as server:
        config = judged(server.url, {**TEACHER, "scored_by": "judge"})
        result = made(tmp_path, "pairs", config, policy=chain.sft, data=data)
    pairs, samples, dropped = read(result)
    rows = {row.id: row for row in chats()}
    against = {}
    for name, some in samples.items():
        said = rows[name].messages[-1].content
        against[name] = (said, next((s.answer for s in some if s.answer.strip() != said), said))
    wins = {name for name, (one, other) in against.items() if score(rows[name], one) > score(rows[name], other)}
    assert {row.id.removesuffix("-teacher") for row in pairs} == wins and wins
    assert all((row.chosen[0].content, row.rejected[0].content) == against[row.id[:-8]] for row in pairs)
    assert {row.reason for row in dropped} <= {"judge_tie", "judge_disagrees", "equal_samples"} and len(pairs) + len(
        dropped
    ) == 10
    assert {row.margin for row in pairs} == {1.0}


def test_a_judge_is_told_all_turns_of_a_conversation() -> None:
    row = pair(0)
    assert comparison(row)[1:] == ("Is 0 fine?", YES, NO)
    more = [*row.prompt, turn("assistant", "Maybe."), turn("user", "Sure?")]
    long = row.model_copy(
        update={"prompt": more, "chosen": [*row.chosen, turn("user", "Why?"), turn("assistant", "So.")]}
    )
    assert comparison(long)[1] == "[user]\nIs 0 fine?\n\n[assistant]\nMaybe.\n\n[user]\nSure?"
    assert comparison(long)[2] == f"[assistant]\n{YES}\n\n[user]\nWhy?\n\n[assistant]\nSo."


@pytest.mark.server
@pytest.mark.parametrize(
    ("choose", "reason"),
    [(lambda a, b: "[[A]]", "judge_inconsistent"), (lambda a, b: "hm", "judge_unparsed")],
    ids=["always-A", "unparsed"],
)
def test_a_judge_without_verdicts_makes_no_pair_and_is_warned_of(
    chain: TinyChain, tmp_path: Path, choose: Any, reason: str
) -> None:
    with serve(says(choose)) as server:
        config = judged(server.url, BY_JUDGE, IMPORTED)
        result = made(tmp_path, "pairs", config, policy=chain.sft, data=chain.data)
    pairs, _, dropped = read(result)
    assert {row.source for row in pairs} == {"made"}, "no verdict is no tie and no win"
    reasons = [row.reason for row in dropped]
    assert set(reasons) <= {reason, "equal_samples"} and reason in reasons
    told = json.loads((result.path / "record" / "lint.json").read_text())["warnings"]
    assert any(("contradicts itself" if choose("", "") == "[[A]]" else "gave no verdict") in one for one in told)


@pytest.mark.server
def test_another_judge_or_another_threshold_draws_no_sample_and_repeats_no_question(
    chain: TinyChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generating and judging have ledgers of their own, which later runs of the store read."""
    drawn: list[int] = []
    real = inference.generate
    monkeypatch.setattr(inference, "generate", lambda *a, **k: drawn.append(len(a[2])) or real(*a, **k))
    inputs = {"policy": chain.sft, "data": chain.data}
    with serve(says(better)) as server:
        first = made(tmp_path, "pairs", judged(server.url, BY_JUDGE, IMPORTED), **inputs)
        assert sum(drawn) == 40 == first.manifest["metrics"]["samples"]
        asked = len(server.bodies)
        strict = made(tmp_path, "pairs", judged(server.url, {**BY_JUDGE, "min_margin": 0.9}, IMPORTED), **inputs)
        assert strict.key != first.key and sum(drawn) == 40 and len(server.bodies) == asked
        assert strict.manifest["metrics"]["samples_from_ledger"] == 40
        other = made(tmp_path, "pairs", judged(server.url, BY_JUDGE, IMPORTED, model="another"), **inputs)
        assert other.key not in (first.key, strict.key) and sum(drawn) == 40 and len(server.bodies) == 2 * asked
    assert read(other)[1] == read(first)[1] and len(read(strict)[0]) <= len(read(first)[0])


@pytest.mark.server
@pytest.mark.parametrize(("model", "kin"), [("acme/made-7b-chat", True), ("Qwen/Qwen3-32B", False)])
def test_a_judge_of_the_teachers_family_is_warned_of(chain: TinyChain, tmp_path: Path, model: str, kin: bool) -> None:
    """The rows' source is called made."""
    with serve(says(better)) as server:
        config = judged(server.url, POLICY, IMPORTED, model=model)
        result = made(tmp_path, "pairs", config, policy=chain.sft, data=chain.data)
    warned = json.loads((result.path / "record" / "lint.json").read_text())["warnings"]
    assert [("is of the family of source made" in one) for one in warned] == [True] * kin
    assert result.manifest["metrics"]["warnings"] == len(warned)


@pytest.mark.parametrize(("id", "kin"), [("meta-llama/Llama-3.2-1B", True), ("Qwen/Qwen3-0.6B", False)])
def test_a_judge_of_the_policys_family_is_warned_of(tmp_path: Path, id: str, kin: bool) -> None:
    """The policy's base is told by what was written down when it was trained."""
    models.write_location(tmp_path, path="/gone", id=id)
    judge = judged("http://127.0.0.1:9", POLICY, model="meta-llama/Llama-3.3-70B").judge
    assert judge is not None
    warned = kinship(judge.teacher, authors(tmp_path))
    assert [("is of the family of the policy" in one) for one in warned] == [True] * kin


@pytest.mark.server
def test_imported_pairs_are_judged_where_the_source_says_so(chain: TinyChain, tmp_path: Path) -> None:
    swapped = [pair(0), pair(1, NO, YES), pair(2), pair(3, YES, "{}")]
    broken = [pair(4).model_copy(update={"prompt": []})]
    data = data_artifact(tmp_path, pairs=[*swapped, *broken])
    with serve(says(better)) as server:
        config = judged(server.url, {**IMPORTED, "confirm": True})
        lenient = config.lint.model_copy(update={"max_prompt_mismatch": 0.5})
        config = config.model_copy(update={"lint": lenient})
        result = made(tmp_path, "pairs", config, policy=chain.sft, data=data)
    pairs, samples, dropped = read(result)
    assert [row.id for row in pairs] == ["pair-0", "pair-2", "pair-3"] and samples == {}
    assert [(row.id, row.reason) for row in dropped] == [("pair-4", "prompt_mismatch"), ("pair-1", "judge_disagrees")]
    assert pairs[0].margin == 0.5 and json.loads(pairs[0].evidence)["judge"]["said"] == ["A", "B"]


# --- bad cases, weights, the linter ----------------------------------------------------------------------------------


def case_artifact(root: Path, pairs: list[Pair], held: str = "") -> Artifact:
    """What the step badcases leaves, as far as pairs reads it."""
    case = BadCase(id="held", prompt=[turn("user", held)], split="holdout")
    files: dict[str, Any] = {"pairs": (pairs, Pair), "cases": ([case] if held else [], BadCase)}
    return close(root / "badcases" / "made", files, "badcases")


def of_case(n: int, asked: str = "") -> Pair:
    row = pair(n, YES, "broken")
    return row.model_copy(
        update={"id": f"badcases-{n}", "source": "badcases", "prompt": [turn("user", asked or f"Case {n} please?")]}
    )


def test_bad_cases_come_in_up_to_their_share_and_never_from_held_out_cases(chain: TinyChain, tmp_path: Path) -> None:
    held = "My blue kettle of series nine leaks since Monday, can you repair it?"
    cases = case_artifact(tmp_path, [*[of_case(n) for n in range(9)], of_case(99, held)], held)
    inputs = {"policy": chain.sft, "data": chain.data, "badcases": cases}
    lenient = {**PAIRS.lint.model_dump(), "max_heldout": 0.1}
    own = config(IMPORTED, {"kind": "badcases", "max_share": 0.5}, lint=lenient)
    result = made(tmp_path, "pairs", own, **inputs)
    pairs, _, dropped = read(result)
    assert sum(row.source == "badcases" for row in pairs) == 8 == sum(row.source == "made" for row in pairs)
    assert {row.id: row.reason for row in dropped if row.reason != "max_share"} == {"badcases-99": "heldout"}
    assert result.manifest["rows"]["in"]["bad cases"] == 10 and result.manifest["metrics"]["pairs/badcases"] == 8
    assert own.wants_badcases and not config(IMPORTED).wants_badcases
    with pytest.raises(
        DataError, match=r"fault heldout: got 1 of 18 \(5.6%, where pairs.lint.max_heldout allows 1.0%\)"
    ):
        made(tmp_path, "pairs", config(IMPORTED, {"kind": "badcases"}), **inputs)
    with pytest.raises(ConfigError, match="asks for badcases, but the line has none"):
        made(tmp_path, "pairs", own, policy=chain.sft, data=chain.data)


def test_weights_decide_how_much_each_source_gives(chain: TinyChain, tmp_path: Path) -> None:
    own = config({**TEACHER, "weight": 1}, {**IMPORTED, "weight": 1})
    result = made(tmp_path, "pairs", own, policy=chain.sft, data=chain.data)
    counts = Counter(row.source for row in read(result)[0])
    assert counts["made"] == counts["teacher against policy"] > 0
    assert result.manifest["rows"]["dropped"]["to mix"]["mix_surplus"] > 0


def test_the_linter_fails_the_step_with_all_that_it_found(chain: TinyChain, tmp_path: Path) -> None:
    rows = [
        *(pair(n) for n in range(4)),
        pair(4, YES, YES),
        pair(5, " ", NO),
        *(pair(n, YES, f"```json\n{YES}\n```") for n in (6, 7)),
    ]
    data = data_artifact(tmp_path, pairs=rows)
    what = spec("pairs", config(IMPORTED), policy=chain.sft, data=data)
    with pytest.raises(DataError) as caught:
        build(what, tmp_path / what.key())
    lines = str(caught.value).splitlines()
    assert [line.split(": got ")[0] for line in lines] == [
        "pairs have the fault empty",
        "pairs have the fault identical",
        "pairs differ by format only",
    ]
    left = work_folder(tmp_path / what.key())
    assert json.loads((left / "record" / "lint.json").read_text())["problems"] == lines
    assert {row.id: row.reason for row in read_parquet(left / "dropped.parquet", Dropped)} == {
        "pair-4": "identical",
        "pair-5": "empty",
    }
    lenient = dict.fromkeys(("max_empty", "max_identical", "max_format_only"), 0.9)
    result = made(tmp_path, "pairs", config(IMPORTED, lint=lenient), policy=chain.sft, data=data)
    assert len(read(result)[0]) == 6 and result.manifest["rows"]["dropped"]["made"] == {"empty": 1, "identical": 1}


def test_two_sources_with_the_same_id_are_refused(chain: TinyChain, tmp_path: Path) -> None:
    cases = case_artifact(tmp_path, [pair(0, YES, "broken")])
    with pytest.raises(DataError, match="row id 'pair-0' stands twice"):
        made(
            tmp_path, "pairs", config(IMPORTED, {"kind": "badcases"}), policy=chain.sft, data=chain.data, badcases=cases
        )


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"sources": [POLICY, POLICY]}, "kind policy twice"),
        ({"sources": [BY_JUDGE]}, "sources policy ask a judge: got judge: null"),
        ({"sources": [{**IMPORTED, "confirm": True}]}, "sources imported ask a judge"),
        (
            {"sources": [IMPORTED], "judge": {"teacher": {"kind": "scripted", "path": "data/seed/task/teacher.yaml"}}},
            "judge is never asked",
        ),
        ({"sources": []}, "at least 1 item"),
        ({"sources": [{"kind": "polcy"}]}, "polcy"),
        ({"teacher_share": 0.5}, "teacher_share"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(raw: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        PairsConfig.model_validate(raw)
