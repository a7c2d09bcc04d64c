"""The store of bad cases: each event once, nobody named, states that make sense, and a claim for each run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres_server import Postgres, missing, running

from steps.badcases import BadcasesConfig
from steps.lib.case_reading import CaseSource, Reader
from steps.lib.case_states import Outcome, Taken
from steps.lib.case_store import CaseStore
from steps.lib.errors import ConfigError, DataError
from steps.lib.personal import Personal


def event(name: str, case: str = "", **more: Any) -> dict[str, Any]:
    facts = {
        "schema_version": "badcase.v1",
        "case_id": case or name,
        "event_id": name,
        "ts": "2026-11-01T08:00:00+00:00",
    }
    asked = {
        "request": {"messages": [{"role": "user", "content": f"Where is order {name}?"}]},
        "response": {"text": "No idea."},
    }
    return {**facts, **asked, "consent": True, **more}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if reason := missing():
        pytest.skip(reason)
    with running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty store."""
    if request.param == "sqlite":
        return str(tmp_path / "some" / "cases.sqlite")
    server: Postgres = request.getfixturevalue("postgres")
    return server.database()


@pytest.fixture
def store(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[CaseStore]:
    monkeypatch.setenv("PREFLINE_USER_KEY", "a key of thirty-two characters!!")
    with CaseStore.open(url) as opened:
        yield opened


def test_an_event_that_comes_again_is_there_once(store: CaseStore) -> None:
    first = store.ingest([event("a"), event("b"), event("b")], source="desk")
    again = store.ingest([event("b"), event("c")], source="desk")
    assert (first.new, first.same, again.new, again.same) == (2, 1, 1, 1) and not again.quarantined
    assert [one["event_id"] for one in store.events()] == ["a", "b", "c"] and store.head() == 3
    other = store.ingest([event("a", comment="something else")], source="desk")
    assert (other.new, other.same) == (0, 0) and [row.reason for row in other.quarantined] == ["event_conflict"]


def test_what_is_wrong_is_set_aside_and_the_rest_is_taken(store: CaseStore) -> None:
    found = store.ingest([event("a"), {"case_id": "x"}, "text", None, event("b", unknown=1)], source="desk")
    assert found.new == 1 and [row.reason for row in found.quarantined] == ["schema"] * 4
    assert [one.case_id for one in store.cases()] == ["a"]


def test_nobody_is_named_in_the_file(store: CaseStore, tmp_path: Path) -> None:
    words = "Call 13912345678 or ann.lee@bluecorp.cn"
    store.ingest(
        [event("a", user_id="user-raw-77", comment=words, request={"messages": [{"role": "user", "content": words}]})],
        source="desk",
    )
    [row] = store.events()
    assert row["request"]["messages"][0]["content"] == "Call <PHONE_1> or <EMAIL_1>" and len(row["user_hash"]) == 20
    held = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()) + repr(row).encode()
    assert not [secret for secret in (b"13912345678", b"ann.lee", b"user-raw") if secret in held]


def test_a_user_without_a_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFLINE_USER_KEY", raising=False)
    with CaseStore.open(str(tmp_path / "cases.sqlite")) as store:
        with pytest.raises(ConfigError, match="PREFLINE_USER_KEY"):
            store.ingest([event("a"), event("b", user_id="u")], source="desk")
        assert store.head() == 0, "all of a batch, or nothing"


def test_a_case_is_folded_from_its_events(store: CaseStore) -> None:
    store.ingest(
        [event("a", "case", tags=["format"]), event("b", "case", severity="critical", tags=["safety"])], source="desk"
    )
    store.ingest([event("c", "case", ts="2026-11-03T08:00:00+00:00", status="triaged")], source="desk")
    [case] = store.cases()
    assert (case.state, case.severity, case.tags, case.events) == ("triaged", "critical", ("format", "safety"), 3)
    assert (
        case.first_seen < case.last_seen
        and store.cases(state="new") == []
        and len(store.cases(severity="critical")) == 1
    )
    assert store.stats()["triaged"] == 1 and store.stats()["events"] == 3


def test_states_follow_each_other_in_ways_that_make_sense(store: CaseStore) -> None:
    store.ingest([event("a")], source="desk")
    for state in ("triaged", "accepted", "fixed", "regressed"):
        store.set_state("a", state, reason="looked at", by="ann")  # type: ignore[arg-type]
    _, events, moves = store.show("a")
    assert [move["after"] for move in moves] == ["triaged", "accepted", "fixed", "regressed"]
    assert [one.get("status") for one in events] == [None, "triaged", "accepted"], (
        "what decides on its use is in the log"
    )
    with pytest.raises(
        DataError, match="'a' cannot become triaged: got a case that is regressed, because after that come fixed"
    ):
        store.set_state("a", "triaged", reason="x", by="ann")
    with pytest.raises(DataError, match="got no reason"):
        store.set_state("a", "fixed", reason=" ", by="ann")
    with pytest.raises(DataError, match="'b' is not in the store"):
        store.set_state("b", "fixed", reason="x", by="ann")


def test_a_deleted_case_leaves_a_tombstone_and_no_text(store: CaseStore, tmp_path: Path) -> None:
    store.ingest([event("a"), event("b")], source="desk")
    store.delete("a", reason="its sender asked", by="ann")
    store.delete("a", reason="again", by="ann")
    case, events, _ = store.show("a")
    assert case.flagged and case.state == "rejected" and store.stats()["flagged"] == 1
    assert all(one["deleted"] and "request" not in one for one in events) and events[-1]["event_id"] == "a:deleted"
    assert store.ingest([event("a")], source="desk").new == 0, "what is deleted does not come back"
    assert store.export(tmp_path / "all.jsonl") == 3
    read = Reader(Personal(), b"", "", 200_000).read([CaseSource(name="store", path=tmp_path / "all.jsonl")])
    assert len(read.events) == 3 and not read.quarantined, "the step badcases reads what the store writes"


def test_an_export_up_to_a_number_is_the_same_later(store: CaseStore, tmp_path: Path) -> None:
    store.ingest([event(f"e{n}") for n in range(5)], source="desk")
    head = store.head()
    store.export(tmp_path / "one.jsonl", head)
    store.ingest([event("later")], source="desk")
    assert store.export(tmp_path / "two.jsonl", head) == 5
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    BadcasesConfig.model_validate({"sources": [{"name": "store", "path": tmp_path / "one.jsonl"}]})


def test_each_event_is_claimed_by_one_run(store: CaseStore) -> None:
    assert store.take() is None, "nothing came"
    store.ingest([event("a"), event("b")], source="desk")
    first = store.take()
    assert first == Taken("retrain-0001", 0, 2) == store.take(), (
        "a run that died is followed by one with the same events"
    )
    store.ingest([event("c")], source="desk")
    assert store.take() == first, "what came meanwhile is the next run's"
    store.done("retrain-0001", {}, version="v0002", promoted=False)
    assert store.take() == Taken("retrain-0002", 2, 3)
    store.release("retrain-0002")
    store.release("retrain-0001")
    assert store.take() == Taken("retrain-0002", 2, 3), "what is done is not given back"
    store.done("retrain-0002", {}, version="v0003", promoted=False)
    assert store.take() is None and [one.done for one in store.claims()] == [True, True]


def test_what_became_of_cases_is_written_once_and_moves_them_when_the_version_serves(store: CaseStore) -> None:
    store.ingest([event(name, case=name) for name in ("a", "b", "c")], source="desk")
    taken = store.take()
    assert taken and store.claimed(taken) == ["a", "b", "c"]
    told = {"a": Outcome("fixed"), "b": Outcome("still_failing"), "c": Outcome("trained_on")}
    assert store.done(taken.run, told, version="v0002", promoted=True) == {"a": "fixed"}
    assert store.done(taken.run, {"a": Outcome("unused")}, version="v0009", promoted=True) == {}, "closed"
    assert {one["case_id"]: one["outcome"] for one in store.outcomes(run=taken.run)} == {
        "a": "fixed", "b": "still_failing", "c": "trained_on"
    }  # fmt: skip
    assert [store.show(name)[0].state for name in "abc"] == ["fixed", "new", "new"]
    store.ingest([event("d", case="a")], source="desk")
    again = store.take()
    assert again and store.claimed(again) == ["a"]
    store.done(again.run, {"a": Outcome("regressed")}, version="v0003", promoted=False)
    assert store.show("a")[0].state == "fixed", "the champion, which did not change, still answers it well"


def test_a_persons_word_is_an_event_that_the_next_run_heeds(store: CaseStore) -> None:
    store.ingest([event("a", case="a")], source="desk")
    taken = store.take()
    assert taken
    store.done(taken.run, {}, version="v0002", promoted=False)
    store.set_state("a", "quarantined", reason="a wrong correction", by="li")
    assert [one["status"] for one in store.events(after=taken.last)] == ["quarantined"]
    assert store.take() == Taken("retrain-0002", 1, 2)


def sends(url: str, who: int) -> int:
    with CaseStore.open(url) as store:
        return sum(store.ingest([event(f"{who}-{n}"), event(f"shared-{n}")], source=str(who)).new for n in range(20))


def test_processes_that_send_at_once_lose_and_double_nothing(url: str) -> None:
    CaseStore.open(url).__exit__()
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        new = pool.starmap(sends, [(url, who) for who in range(4)])
    with CaseStore.open(url) as store:
        names = [one["event_id"] for one in store.events()]
        assert sum(new) == len(names) == len(set(names)) == 4 * 20 + 20 and store.head() == 100


@pytest.mark.parametrize(
    ("url", "said"),
    [("nosuch://x/y", "nosuch"), ("postgresql+psycopg://ann:hidden@127.0.0.1:1/x", r"ann:\*\*\*@127.0.0.1")],
)
def test_an_address_that_cannot_be_used_is_told_without_its_password(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        CaseStore.open(url)
    assert "hidden" not in str(error.value)
