"""What generate says of its rows: flags, agreement, provenance, the funnel by teacher, and how far it is."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from openai_server import Act, serve

from steps import generate
from steps.generate import GenerateConfig
from steps.lib import gauge, report
from steps.lib.artifact import Artifact
from steps.lib.excerpts import excerpts
from steps.lib.rows import Candidate, Dropped, read_parquet
from steps.lib.step import Spec, build

PROMPTS = [{"id": f"p{n}", "lang": "en", "prompt": f"question {n}", "intent": "x"} for n in range(12)]


def values(folder: Path, url: str, **more: Any) -> dict[str, Any]:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    teacher = {"kind": "http", "endpoint": "test", "base_url": url, "backoff_seconds": 0.01, "attempts": 1, "timeout_seconds": 5,
               "concurrency": 4}  # fmt: skip
    teachers = [
        {**teacher, "name": "a", "model": "m-a", "license": "apache-2.0"},
        {**teacher, "name": "b", "model": "m-b"},
    ]
    return {"prompts": [{"name": "train", "path": str(path)}], "prompt_file": "configs/prompts/plain.yaml", "samples": 4,
            "teachers": teachers, "max_failed_share": 0.5, "min_kept_share": 0.0, **more}  # fmt: skip


def spec(settings: dict[str, Any]) -> Spec:
    return Spec(generate, GenerateConfig.model_validate(settings), {}, 0)


def say(number: int, body: dict[str, Any]) -> Act:
    """Teacher b is unsure of even questions, refuses question 3, cuts question 5 off, and fails on question 7."""
    question = body["messages"][-1]["content"]
    place = int(question.split()[1])
    text = f"The answer to {question} is clear: it is number {place}."
    if body["model"] == "m-a":
        return Act(text=text, model="m-a-0801")
    if place == 3:
        return Act(text="I'm sorry, but I can't help with that.")
    if place == 5:
        return Act(text="The answer", finish="length")
    if place == 7:
        return Act(status=422)
    return Act(
        text=text if place % 2 else f"Nobody knows {question}.<|im_end|>" if place == 4 else f"Nobody knows {question}."
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("signals")
    with serve(say) as server:
        return build(spec(values(folder, server.url)), folder / "s" / "g")


def rows(artifact: Artifact) -> list[Candidate]:
    return read_parquet(artifact.path / "candidates.parquet", Candidate)


def test_flags_stand_on_rows_and_all_are_counted(built: Artifact) -> None:
    found = {row.id: row.flags for row in rows(built)}
    refused = [row for row in rows(built) if row.prompt == "question 3" and row.teacher == "b"]
    assert len(refused) == 2 and all(row.flags == ["refusal"] for row in refused)
    assert {flag for flags in found.values() for flag in flags} == {"refusal", "same_answer"}
    dropped = read_parquet(built.path / "dropped.parquet", Dropped)
    assert Counter(row.reason for row in dropped) == {"truncated": 2, "special_tokens": 2, "http_422": 2}
    metrics = built.manifest["metrics"]
    assert [metrics[f"answer/flags/{flag}"] for flag in ("refusal", "truncated", "special_tokens")] == [2, 2, 2]


def test_agreement_is_within_and_across_teachers(built: Artifact) -> None:
    by_prompt: dict[str, list[Candidate]] = {}
    for row in rows(built):
        by_prompt.setdefault(row.prompt, []).append(row)
    assert all(row.agreement == 1.0 and "same_answer" in row.flags for row in by_prompt["question 1"])
    split = by_prompt["question 2"]
    assert len(split) == 4 and all(row.agreement is not None and 1 / 3 < row.agreement < 0.9 for row in split)
    assert "same_answer" not in split[0].flags
    metrics = built.manifest["metrics"]
    assert metrics["agreement/within_teachers"] == 1.0 and 0 < metrics["agreement/across_teachers"] < 1
    same = [prompt for prompt, group in by_prompt.items() if all("same_answer" in row.flags for row in group)]
    assert metrics["agreement/prompts_compared"] == 12 and metrics["agreement/prompts_all_same"] == len(same)
    assert {"question 1", "question 5", "question 7", "question 9", "question 11"} <= set(same)


def test_same_answers_can_be_dropped_and_the_funnel_still_adds_up(tmp_path: Path) -> None:
    flags = ["truncated", "special_tokens", "same_answer"]
    with serve(say) as server:
        found = build(spec(values(tmp_path, server.url, drop_flags=flags)), tmp_path / "s" / "g")
    assert not any("same_answer" in row.flags for row in rows(found)) and "question 1" not in {
        row.prompt for row in rows(found)
    }
    stages = report.funnels(found.manifest["metrics"])
    assert sum(one.kept for one in stages) == len(rows(found)) == found.manifest["rows"]["out"]["answer kept"]
    assert (
        sum(one.dropped.get("same_answer", 0) for one in stages)
        == found.manifest["rows"]["dropped"]["answer"]["same_answer"]
        > 0
    )


def test_the_funnel_adds_up_by_teacher(built: Artifact) -> None:
    stages = {one.teacher: one for one in report.funnels(built.manifest["metrics"])}
    assert set(stages) == {"a", "b"} and {one.stage for one in stages.values()} == {"answer"}
    for one in stages.values():
        assert one.asked == 24 == one.answered + sum(one.failed.values())
        assert one.answered == one.kept + sum(one.dropped.values())
    assert (stages["a"].kept, stages["a"].lost) == (24, {})
    assert stages["b"].failed == {"http_422": 2} and stages["b"].dropped == {"truncated": 2, "special_tokens": 2}
    assert stages["b"].parsed == 20, "cut off answers are not in the asked form; such with a template's marks are"
    metrics = built.manifest["metrics"]
    assert metrics["answer/asked"] == 48 and metrics["answer/kept"] == len(rows(built)) == 42


def test_provenance_and_evidence_travel_with_the_row(built: Artifact) -> None:
    for row in rows(built):
        origin, made = json.loads(row.provenance), json.loads(row.evidence)
        assert (
            origin["teacher"] == row.teacher and origin["model"] == f"m-{row.teacher}" and origin["endpoint"] == "test"
        )
        assert origin["answered_as"] == ("m-a-0801" if row.teacher == "a" else "m-b")
        assert origin["license"] == ("apache-2.0" if row.teacher == "a" else None) and len(origin["prompt_file"]) == 64
        assert origin["sampling"]["temperature"] == 0.7 and "127.0.0.1" not in row.provenance
        assert made == {"source": "train", "row": row.id.partition("/")[0], "facts": {"intent": "x"}}
    assert built.manifest["metrics"]["teachers_without_license"] == 1


def test_a_licence_note_is_part_of_the_key_and_none_is_warned_of(tmp_path: Path) -> None:
    with serve(say) as server:
        one, two = values(tmp_path, server.url), values(tmp_path, server.url)
        two["teachers"][0]["license"] = "other"
        assert spec(one).key() != spec(two).key()
        artifact = build(spec(one), tmp_path / "s" / "g")
    lines = [json.loads(line) for line in (artifact.path / "record" / "log.jsonl").read_text().splitlines()]
    [warning] = [line["message"] for line in lines if line["level"] == "warning"]
    assert "no licence note on b" in warning


def test_the_estimate_stands_in_the_log_before_the_first_request(built: Artifact) -> None:
    lines = [json.loads(line)["message"] for line in (built.path / "record" / "log.jsonl").read_text().splitlines()]
    told = [line for line in lines if line.startswith("estimate: ")]
    assert told[0].startswith("estimate: answer by a: 24 requests") and any(
        "in all 48 requests" in line for line in told
    )


def test_a_long_run_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauge, "FIRST", 0.2)

    def slow(number: int, body: dict[str, Any]) -> Act:
        act = say(number, body)
        act.delay = 0.1
        return act

    with serve(slow) as server:
        artifact = build(spec(values(tmp_path, server.url)), tmp_path / "s" / "g")
    lines = [json.loads(line)["message"] for line in (artifact.path / "record" / "log.jsonl").read_text().splitlines()]
    told = [line for line in lines if line.startswith("asking: ")]
    assert 2 <= len(told) <= 8 and "/48" in told[-1] and "requests/s" in told[-1] and "left" in told[-1]


def test_samples_show_prompts_with_all_their_answers(built: Artifact) -> None:
    shown, of = excerpts(built.path, 4)
    assert of == 12 and len(shown) == 4 and len({one.prompt for one in shown}) == 4
    everything, _ = excerpts(built.path, 100)
    by_prompt = Counter(row.prompt for row in rows(built))
    assert {one.prompt: len(one.answers) for one in everything} == by_prompt
    assert [answer.id for one in everything for answer in one.answers] == [row.id for row in rows(built)]
    refused, of = excerpts(built.path, 5, flag="refusal")
    assert of == 1 and refused[0].prompt == "question 3" and {a.teacher for a in refused[0].answers} == {"a", "b"}
    assert excerpts(built.path, 5, flag="no_such_flag") == ([], 0)
    lost, of = excerpts(built.path, 5, dropped=True, flag="truncated")
    assert of == 1 and lost[0].prompt == "question 5"
    assert [(one.teacher, one.text, one.flags) for one in lost[0].answers] == [("b", "The answer", ("truncated",))] * 2
    page = everything[0].page()
    assert page["answers"][0]["provenance"]["teacher"] in ("a", "b") and json.dumps(page)


def test_samples_of_many_row_groups_are_the_rows(tmp_path: Path) -> None:
    """A prompt whose answers stand in two row groups comes out whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = [Candidate(id=f"p{n // 3}/{n % 3}", prompt=f"q{n // 3}", answer=f"a{n}", teacher="t") for n in range(50)]
    pq.write_table(
        pa.Table.from_pylist([row.model_dump() for row in made]), tmp_path / "candidates.parquet", row_group_size=7
    )
    everything, of = excerpts(tmp_path, 100)
    assert of == 17 and [a.text for one in everything for a in one.answers] == [f"a{n}" for n in range(50)]
    some, _ = excerpts(tmp_path, 5)
    assert [one.prompt for one in some] == ["q1", "q5", "q8", "q11", "q15"]
    assert all([a.id for a in one.answers] == [f"p{one.prompt[1:]}/{k}" for k in range(3)] for one in some)


def test_old_rows_are_an_error_with_a_way_out(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from steps.lib.errors import DataError

    with pytest.raises(DataError, match=r"cannot be read.*build the step generate again"):
        excerpts(tmp_path, 1)
    pq.write_table(pa.table({"prompt": ["x"]}), tmp_path / "candidates.parquet")
    with pytest.raises(DataError, match="no column flags"):
        excerpts(tmp_path, 1)
