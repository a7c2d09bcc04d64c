"""The step badcases on files of feedback: sides that stay, pairs that somebody stands for, nothing lost; and its guard in clean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from minimal import context
from pydantic import ValidationError

from steps import badcases, clean
from steps.badcases import BadcasesConfig
from steps.clean import CleanConfig
from steps.lib.config import key_view
from steps.lib.errors import DataError
from steps.lib.rows import BadCase, Chat, Dropped, Message, Pair, Prompt, Text, read_parquet
from steps.lib.step import Metrics, Spec, build

SEED = Path(__file__).parents[2] / "data" / "seed"
HELD, FREE = "净水器滤芯装反了会不会漏水呢", "Could the oven timer be set for ten minutes"


def event(case: str, text: str = "", name: str = "a", **values: Any) -> dict[str, Any]:
    asked = {
        "request": {"messages": [{"role": "user", "content": text}]},
        "response": {"text": f"bad answer to {case}"},
        "signal": {"kind": "thumb", "value": -1},
        "model": {"name": "aftersales", "version_digest": "v1"},
        "correction": {"text": "a better answer", "author_kind": "human_expert"},
    }
    return {
        "case_id": case,
        "event_id": f"{case}/{name}",
        "ts": "2026-09-01T00:00:00Z",
        **(asked if text else {}),
        **values,
    }


class Feedback:
    """Runs the step on events; every run has a new folder."""

    def __init__(self, tmp: Path) -> None:
        self.tmp, self.runs = tmp, 0
        self.folder = tmp

    def __call__(self, events: list[dict[str, Any]], **config: Any) -> Metrics:
        path = self.tmp / "events.jsonl"
        path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in events), encoding="utf-8")
        self.runs += 1
        self.folder = self.tmp / f"out{self.runs}"
        values = {"sources": [{"name": "s", "path": str(path)}], **config}
        return badcases.run(BadcasesConfig.model_validate(values), out=self.folder, context=context(self.folder))

    def cases(self, name: str = "cases") -> dict[str, BadCase]:
        return {case.id: case for case in read_parquet(self.folder / f"{name}.parquet", BadCase)}

    def pairs(self) -> list[Pair]:
        return read_parquet(self.folder / "pairs.parquet", Pair)

    def dropped(self) -> dict[str, str]:
        return {row.id: row.reason for row in read_parquet(self.folder / "dropped.parquet", Dropped)}


@pytest.fixture
def feedback(tmp_path: Path) -> Feedback:
    return Feedback(tmp_path)


def test_the_seed_becomes_cases_pairs_and_a_ledger_that_balances(feedback: Feedback) -> None:
    lines = (SEED / "badcases" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = feedback([json.loads(line) for line in lines], task=str(SEED / "task" / "task.yaml"))
    held, train, pairs = feedback.cases("holdout"), feedback.cases("train"), feedback.pairs()
    assert held and train and pairs and not held.keys() & train.keys()
    assert {case.split for case in held.values()} == {"holdout"} and {case.split for case in train.values()} == {
        "train"
    }
    assert len(feedback.dropped()) == sum(sum(own.values()) for own in metrics.rows.reasons.values())
    assert {
        case.id: case for case in feedback.cases().values() if case.cluster in {one.cluster for one in held.values()}
    }.keys().isdisjoint(train)
    by_case = {json.loads(pair.evidence)["case"]: pair for pair in pairs}
    for name, pair in by_case.items():
        case = train[name]
        assert pair.source == "badcases" and pair.prompt[1:] == case.prompt
        assert pair.prompt[0].role == "system" and "JSON" in pair.prompt[0].content, "asked as the suite asks"
        assert (pair.rejected[0].content, pair.chosen[0].content) == (case.response, case.correction)


def test_the_same_input_gives_the_same_bytes_and_sides_stay_when_more_comes(feedback: Feedback) -> None:
    lines = (SEED / "badcases" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    few = events[:22]
    feedback(few)
    first, record = feedback.cases(), feedback.folder / "cases.parquet"
    feedback(few)
    assert (feedback.folder / "cases.parquet").read_bytes() == record.read_bytes()
    feedback(events, record=str(record), salt="another", holdout=100)
    later = feedback.cases()
    assert {name: (case.cluster, case.split) for name, case in first.items()} == {
        name: (later[name].cluster, later[name].split) for name in first
    }
    assert {case.split for name, case in later.items() if name not in first and case.cluster == name} == {"holdout"}


def test_an_event_of_the_record_that_is_gone_stops_the_step(feedback: Feedback) -> None:
    feedback([event("h", HELD), event("f", FREE)])
    with pytest.raises(DataError, match="1 events of the record are gone: got no event h/a"):
        feedback([event("f", FREE)], record=str(feedback.folder / "cases.parquet"))


def test_what_was_deleted_after_training_is_told(feedback: Feedback, caplog: pytest.LogCaptureFixture) -> None:
    feedback([event("f", FREE)], holdout=0)
    metrics = feedback(
        [event("f", FREE), event("f", name="b", deleted=True)], record=str(feedback.folder / "cases.parquet")
    )
    assert metrics.values["deleted_after_training"] == 1 and "train again without them" in caplog.text
    assert (
        feedback.dropped() == {"f": "deleted"}
        and not feedback.pairs()
        and FREE not in (feedback.folder / "cases.parquet").read_bytes().decode("latin-1")
    )


@pytest.mark.parametrize(
    ("values", "config", "reason"),
    [
        ({"correction": None}, {}, "no_correction"),
        ({"correction": {"text": "better", "author_kind": "human_user"}}, {"corrections": ["human_expert"]}, "author"),
        ({"correction": {"text": "better", "author_kind": "teacher"}}, {}, "unverified"),
        ({"model": {}}, {}, "no_model"),
        ({}, {"models": ["v2"]}, "other_model"),
        ({"response": {"text": "A better answer!"}}, {}, "identical"),
        ({"response": None}, {}, "no_response"),
        (
            {"correction": {"text": "worse", "author_kind": "human_expert"}, "expected": {"must": ["better"]}},
            {},
            "correction_fails",
        ),
        ({"expected": {"must": ["bad"]}}, {}, "expectation_holds"),
        ({"expected": {"rules": [{"kind": "task"}]}}, {}, "unchecked"),
    ],
)
def test_a_pair_needs_a_recorded_answer_and_somebody_who_stands_for_the_other(
    feedback: Feedback, values: dict[str, Any], config: dict[str, Any], reason: str
) -> None:
    feedback([event("f", FREE, **values)], holdout=0, **config)
    assert feedback.dropped() == {"f": reason} and not feedback.pairs()


def test_a_verified_teacher_counts_when_the_rules_of_the_case_hold(feedback: Feedback) -> None:
    teacher = {"text": "better", "author_kind": "teacher", "verified_by": "desk lead"}
    feedback([event("f", FREE, correction=teacher, expected={"must": ["better"]})], holdout=0, models=["v1"])
    assert [pair.chosen[0].content for pair in feedback.pairs()] == ["better"]


def test_held_out_cases_say_what_they_expect_or_are_not_measured_with(feedback: Feedback) -> None:
    feedback(
        [event("h", HELD, correction=None), event("g", FREE, expected={"must": ["ten"]}, correction=None)], holdout=100
    )
    assert feedback.cases("holdout").keys() == {"g"} and feedback.dropped() == {"h": "no_expectation"}


def test_of_copies_the_one_that_says_most_stays(feedback: Feedback) -> None:
    rows = [
        event("a", HELD),
        event("b", HELD + "？", expected={"must": ["better"]}),
        event("c", "净水器滤芯装反了会不会漏水呢！"),
    ]
    feedback(rows, holdout=0)
    assert feedback.cases("train").keys() == {"b"} and feedback.cases("train")["b"].copies == 2
    assert feedback.dropped() == {"a": "near_duplicate", "c": "near_duplicate"}


def test_limits_of_users_and_clusters_and_the_alarm(feedback: Feedback, caplog: pytest.LogCaptureFixture) -> None:
    draw = "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳午未申酉戌亥"
    rows = [event(f"u{n}", draw[3 * n : 3 * n + 3] * 2, user_hash="aa") for n in range(7)]
    rows += [
        event(f"k{n}", f"how is the child lock of the oven set {draw[n]}{draw[-n - 1]}", user_hash=f"{n}b"[:2])
        for n in range(5)
    ]
    feedback(rows, holdout=0, duplicate=1.0)
    reasons = feedback.dropped()
    assert [name for name, reason in reasons.items() if reason == "cap_user"] == ["u5", "u6"]
    assert [name for name, reason in reasons.items() if reason == "cap_cluster"] == ["k3", "k4"]
    assert "teaching" not in caplog.text
    few = [{**one, "user_hash": "cc"} for one in rows[7:]]
    assert feedback(few, holdout=0, duplicate=1.0).values["warnings"] == 1
    assert "5 corrections of 1 user(s)" in caplog.text
    own = [{**one, "correction": {"text": "a better answer", "author_kind": "human_user"}} for one in few]
    own[0]["status"] = "accepted"
    feedback(own, holdout=0, duplicate=1.0, max_per_cluster=None)
    assert feedback.dropped() == {f"k{n}": "few_users" for n in range(1, 5)}, "but for the one that somebody accepted"
    feedback(own, holdout=0, duplicate=1.0, max_per_cluster=None, few_users="tell")
    assert not feedback.dropped() and len(feedback.pairs()) == 5


def test_what_is_alike_to_the_held_out_side_is_not_trained_on(feedback: Feedback) -> None:
    held, near = "空气炸锅第一次使用要不要空烧", "空气炸锅清洗之后要不要空烧一下"
    feedback([event("h", held, expected={"must": ["better"]})], holdout=100)
    record = str(feedback.folder / "cases.parquet")
    feedback(
        [event("h", held, expected={"must": ["better"]}), event("n", near)],
        holdout=0,
        record=record,
        guard=0.2,
        cluster=0.9,
        duplicate=0.95,
    )
    assert feedback.dropped() == {"n": "near_holdout"}


def test_too_much_set_aside_stops_the_step_and_no_raw_data_is_kept(feedback: Feedback) -> None:
    with pytest.raises(DataError, match=r"got 1 of 1, .* because of schema 1"):
        feedback([{"case_id": "x"}])
    with pytest.raises(ValidationError, match="keep_raw"):
        BadcasesConfig.model_validate({"sources": [{"name": "s", "path": "x"}], "personal": {"keep_raw": True}})
    with pytest.raises(ValidationError, match="do not rise"):
        BadcasesConfig.model_validate({"sources": [{"name": "s", "path": "x"}], "guard": 0.9})
    with pytest.raises(ValidationError, match="stand twice"):
        BadcasesConfig.model_validate({"sources": [{"name": "s", "path": "x"}, {"name": "s", "path": "y"}]})


def test_the_key_holds_the_content_of_what_is_read_and_a_mark_of_the_users_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps(event("f", FREE)) + "\n")
    config = BadcasesConfig.model_validate({"sources": [{"name": "s", "path": str(path)}]})
    monkeypatch.delenv("PREFLINE_USER_KEY", raising=False)
    before = badcases.externals(config)
    secret = "0123456789abcdef-secret"
    monkeypatch.setenv("PREFLINE_USER_KEY", secret)
    keyed = badcases.externals(config)
    assert before["user_key"] == "none" != keyed["user_key"] and secret not in json.dumps(keyed)
    path.write_text(path.read_text() * 2)
    assert badcases.externals(config)["source/s"] != before["source/s"] and str(tmp_path) not in json.dumps(
        key_view(config)
    )


# The guard in clean


def cleaned(tmp: Path, cases: Path | None, *more: dict[str, Any], **config: Any) -> dict[str, list[Any]]:
    chats = [HELD, "净水器的滤芯装反了会漏水吗", FREE, "How do I reset the clock of the microwave?", "快递什么时候到？"]
    rows = [
        {
            "id": f"c{n}",
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"好的，第{n}个回答。"}],
        }
        for n, text in enumerate(chats)
    ]
    rows += more
    rows.append(
        {
            "id": "late",
            "messages": [
                {"role": "user", "content": "在吗"},
                {"role": "assistant", "content": "在的"},
                {"role": "user", "content": HELD},
                {"role": "assistant", "content": "不会的。"},
            ],
        }
    )
    pair = {
        "id": "p0",
        "prompt": [{"role": "user", "content": HELD + "？"}],
        "chosen": [{"role": "assistant", "content": "会，请重装。"}],
        "rejected": [{"role": "assistant", "content": "不会。"}],
    }
    text = {
        "id": "t0",
        "text": f"这是一份常见问题的整理文档，收录了各类问题。{HELD}？答：请参考说明书第七页的示意图，按照箭头的方向重新安装即可。",
    }
    values: dict[str, Any] = {"filters": {}, "min_rows": {"corpus": 0, "chats": 0, "pairs": 0}, "workers": 1}
    for name, own in (("chats", rows), ("pairs", [pair]), ("domain", [text])):
        path = tmp / f"{name}.jsonl"
        path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in own), encoding="utf-8")
        values[name] = [{"name": name, "path": str(path)}]
    out = tmp / f"clean{len(list(tmp.glob('clean*')))}"
    clean.run(CleanConfig.model_validate(values | config), badcases=cases, out=out, context=context(out))
    kinds = {"chats": Chat, "pairs": Pair, "corpus": Text, "dropped": Dropped, "heldout_prompts": Prompt}
    return {name: read_parquet(out / f"{name}.parquet", kind) for name, kind in kinds.items()}


def test_no_row_of_clean_holds_a_held_out_case(feedback: Feedback, tmp_path: Path) -> None:
    feedback([event("h", HELD, expected={"must": ["better"]})], holdout=100)
    free = cleaned(tmp_path, None)
    assert {row.id for row in free["chats"]} >= {"c0", "c1", "c2", "late"} and free["pairs"]
    guarded = cleaned(tmp_path, feedback.folder)
    assert {row.id for row in guarded["chats"]} == {"c2", "c3", "c4"} and not guarded["pairs"] and not guarded["corpus"]
    reasons = {row.id: row.reason for row in guarded["dropped"]}
    assert reasons["c0"] == reasons["c1"] == reasons["p0"] == "near_heldout" and reasons["t0"] == "contaminated"
    assert all(
        "case:h" in row.detail for row in guarded["dropped"] if row.reason == "near_heldout" and row.id in ("c0", "c1")
    )


def test_a_stock_reply_that_the_training_side_has_too_guards_nothing(feedback: Feedback, tmp_path: Path) -> None:
    stock = {"text": "请提供订单号，我们马上为您核实这台机器的情况。", "author_kind": "human_expert"}
    row = {
        "messages": [{"role": "user", "content": "空调遥控器没有反应"}, {"role": "assistant", "content": stock["text"]}]
    }
    held = event("h", HELD, correction=stock, expected={"must": ["订单号"]})
    feedback([held], holdout=100)
    more = {"id": "stock", **row}

    def stays() -> bool:
        return "stock" in {row.id for row in cleaned(tmp_path, feedback.folder, more)["chats"]}

    assert not stays(), "no other case has it: it may be the answer itself"
    record = str(feedback.folder / "cases.parquet")
    feedback([held, event("t", FREE, correction=stock)], record=record, holdout=0)
    assert stays()


def test_with_all_other_guards_off_the_cases_still_guard(feedback: Feedback, tmp_path: Path) -> None:
    feedback([event("h", HELD, correction=None)], holdout=100)
    assert not feedback.cases("holdout"), "it cannot be measured with, and guards all the same"
    guarded = cleaned(tmp_path, feedback.folder, decontaminate=None, near_heldout=None)
    assert {"c0", "c1"}.isdisjoint(row.id for row in guarded["chats"]) and not guarded["pairs"]
    wide = cleaned(tmp_path, feedback.folder, decontaminate=None, near_heldout=None, near_case=1.0)
    assert "c1" in {row.id for row in wide["chats"]} and "c0" not in {row.id for row in wide["chats"]}


def test_clean_does_not_run_without_the_cases_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"cases\.parquet is missing"):
        cleaned(tmp_path, tmp_path / "empty")


def test_the_two_steps_build_as_artifacts_of_a_store(tmp_path: Path) -> None:
    config = BadcasesConfig.model_validate(
        {
            "sources": [{"name": "desk", "path": str(SEED / "badcases" / "events.jsonl")}],
            "task": str(SEED / "task" / "task.yaml"),
        }
    )
    made = build(Spec(badcases, config, {}, 0), tmp_path / "badcases" / "k")
    values = {"chats": [{"name": "c", "path": str(SEED / "pairs" / "train.jsonl")}], "workers": 1}
    assert made.manifest["metrics"]["holdout"] > 0 and values
    spec = Spec(clean, CleanConfig(), {"badcases": made}, 0)
    assert spec.parts["inputs"] == {"badcases": made.digest}
    assert Message(role="user", content="x") not in made.manifest
