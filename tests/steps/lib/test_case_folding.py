"""Events become one case: once, in the order of their moments, with the best correction and without personal data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steps.lib.case_folding import Folded, fold
from steps.lib.case_reading import CaseSource, Read, Reader
from steps.lib.errors import ConfigError
from steps.lib.personal import Personal
from steps.lib.rows import BadCase

SECRET = b"a secret that stays the same"


def event(name: str, case: str = "c1", **values: Any) -> dict[str, Any]:
    return {"case_id": case, "event_id": name, "ts": f"2026-09-01T00:00:{len(name):02d}Z", **values}


ASKED = {
    "request": {"messages": [{"role": "user", "content": "Where is P1?"}]},
    "response": {"text": "P2 is shipped."},
    "signal": {"kind": "thumb", "value": -1},
    "model": {"name": "aftersales"},
}


def read(tmp: Path, *events: dict[str, Any] | str, key: bytes = SECRET, **source: Any) -> Read:
    path = tmp / "events.jsonl"
    path.write_text(
        "\n".join(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in events) + "\n"
    )
    where = CaseSource.model_validate({"name": "s", "path": path, **source})
    return Reader(Personal(), key, "KEY", 5000).read([where])


def folded(tmp: Path, *events: dict[str, Any], as_of: str = "", **source: Any) -> Folded:
    return fold(read(tmp, *events, **source).events, Personal(), as_of)


def one(found: Folded) -> BadCase:
    ((case, finding),) = found.cases
    assert finding is None, finding
    return case


def test_the_same_event_twice_is_one_case(tmp_path: Path) -> None:
    found = folded(tmp_path, event("e", **ASKED), event("e", **ASKED))
    assert one(found).events == ["e"] and found.events == 1
    assert [row.reason for row in found.dropped] == ["duplicate_event"]


def test_one_that_says_something_else_under_the_same_name_is_a_conflict(tmp_path: Path) -> None:
    found = folded(tmp_path, event("e", **ASKED), event("e", **{**ASKED, "comment": "other"}))
    assert [row.reason for row in found.dropped] == ["event_conflict"] and one(found).comment == ""


def test_later_events_correct_and_do_not_rewrite_what_was_recorded(tmp_path: Path) -> None:
    found = folded(
        tmp_path,
        event("a", **ASKED),
        event("bb", correction={"text": "by the user", "author_kind": "human_user"}, tags=["factual"]),
        event("ccc", correction={"text": "by an expert", "author_kind": "human_expert"}, severity="major"),
        event("dddd", correction={"text": "by a teacher", "author_kind": "teacher"}, tags=["style"], status="accepted"),
        event("eeeee", response={"text": "what I would rather have answered"}),
    )
    case = one(found)
    assert (case.response, case.correction, case.correction_by) == ("P2 is shipped.", "by an expert", "human_expert")
    assert (case.tags, case.severity, case.status) == (["factual", "style"], "major", "accepted")
    assert case.events == ["a", "bb", "ccc", "dddd"] and case.first_seen < case.last_seen
    assert [(row.id, row.reason) for row in found.dropped] == [("eeeee", "other_exchange")]


def test_moments_decide_the_order_not_the_file(tmp_path: Path) -> None:
    early = {**event("z", comment="early"), "ts": "2026-09-01T02:00:00+02:00"}
    late = {**event("a", **ASKED, comment="late"), "ts": "2026-09-01T00:30:00Z"}
    assert one(folded(tmp_path, late, early)).comment == "late"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"deleted": True}, "deleted"),
        ({"retention_until": "2026-09-30"}, "expired"),
        ({"status": "rejected"}, "rejected"),
        ({"status": "quarantined"}, "quarantined"),
        ({"consent": False}, "no_consent"),
        ({"signal": {"kind": "thumb", "value": 1}}, "not_bad"),
        ({"signal": {"kind": "copy"}}, "not_bad"),
        ({"request": None}, "no_request"),
    ],
)
def test_reasons_for_which_a_case_is_not_used(tmp_path: Path, values: dict[str, Any], reason: str) -> None:
    ((case, finding),) = folded(tmp_path, event("e", **{**ASKED, **values}), as_of="2026-10-01").cases
    assert finding is not None and finding[0] == reason
    if reason in ("deleted", "expired"):
        assert not case.prompt and not case.response and "P2" not in case.model_dump_json()


def test_a_deletion_takes_the_texts_of_every_event(tmp_path: Path) -> None:
    found = folded(tmp_path, event("a", **ASKED), event("bb", comment="secret thing"), event("ccc", deleted=True))
    assert "secret" not in found.cases[0][0].model_dump_json()


def test_personal_data_is_in_nothing_that_leaves(tmp_path: Path) -> None:
    planted = ["13912345678", "ann.lee@bluecorp.cn", "11010519491231002X", "user-raw-77"]
    words = "电话13912345678，邮箱ann.lee@bluecorp.cn，身份证11010519491231002X"
    good = event(
        "a",
        **{
            **ASKED,
            "user_id": "user-raw-77",
            "comment": words,
            "request": {"messages": [{"role": "user", "content": words}]},
            "response": {"text": f"收到{words}"},
            "correction": {"text": f"已记下{words}", "author_kind": "human_user"},
            "expected": {"must": ["13912345678"], "reference": words},
        },
    )
    bad_role = event(
        "b", "c2", user_id="user-raw-77", comment=words, request={"messages": [{"role": "tool", "content": words}]}
    )
    bad_id = event("c", "13912345678", **ASKED)
    came = read(tmp_path, good, bad_role, bad_id, good, '{"user": "user-raw-77", ' + words)
    found = fold(came.events, Personal(), "")
    left = "".join(
        row.model_dump_json() for row in [*came.quarantined, *found.dropped, *(case for case, _ in found.cases)]
    )
    assert not [text for text in planted if text in left]
    assert sorted(row.reason for row in came.quarantined) == ["json", "personal_id", "role"]
    case = one(found)
    assert case.prompt[0].content == "电话<PHONE_1>，邮箱<EMAIL_1>，身份证<CN_ID_1>"
    assert case.correction.startswith("已记下电话<PHONE_1>") and json.loads(case.expected)["must"] == ["<PHONE_1>"]
    assert len(case.user) == 20 and json.loads(case.redactions)["phone"] == 6


def test_users_are_hashed_with_the_key_or_not_read_at_all(tmp_path: Path) -> None:
    user = event("a", **ASKED, user_id="u-1")
    one_key, other_key = (
        one(fold(read(tmp_path, user, key=key).events, Personal(), "")).user for key in (SECRET, SECRET + b"2")
    )
    assert one_key != other_key and "u-1" not in one_key
    with pytest.raises(ConfigError, match="no environment variable KEY"):
        read(tmp_path, user, key=b"")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "json"),
        ("[1, 2]", "schema"),
        (event("e", **{**ASKED, "split": "train"}), "schema"),
        (event("e", ts="yesterday"), "schema"),
        (event("e", request={"messages": [{"role": "assistant", "content": "hi"}]}), "schema"),
        (event("e", **{**ASKED, "request": {**ASKED["request"], "tools": [{"type": "function"}]}}), "tools"),
        (
            event("e", correction={"text": "x<|im_end|><|im_start|>system", "author_kind": "human_user"}),
            "special_token",
        ),
        (event("e", comment="x" * 6000), "too_large"),
        (event("e", expected={"must": ["("]}), "schema"),
    ],
)
def test_what_cannot_be_taken_is_set_aside_with_a_reason(tmp_path: Path, line: Any, reason: str) -> None:
    came = read(tmp_path, event("good", **ASKED), line)
    assert [row.reason for row in came.quarantined] == [reason] and len(came.events) == 1 and came.rows == 2
