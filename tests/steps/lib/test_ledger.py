"""Rows, requests and units of work: nothing vanishes, nothing is asked or computed twice, nothing damaged is believed."""

import errno
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.lib.earlier import ledgers_beside
from steps.lib.errors import ArtifactError, DataError, Resumable
from steps.lib.ledger import Reply, RequestLedger, Spent, Used
from steps.lib.row_ledger import RowLedger
from steps.lib.runtime import storage_error
from steps.lib.stopping import Stop
from steps.lib.work_ledger import WorkLedger

CONTENT = {
    "model": "m",
    "endpoint": "e",
    "messages": [{"role": "user", "content": "你好"}],
    "temperature": 0.7,
    "seed": 1,
}


OLDER = (
    "CREATE TABLE requests (key TEXT PRIMARY KEY, status TEXT NOT NULL, reason TEXT NOT NULL, attempts INTEGER NOT NULL, "
    "text TEXT NOT NULL, finish_reason TEXT NOT NULL, model TEXT NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT "
    "NULL, seconds REAL NOT NULL, source TEXT NOT NULL, seal TEXT NOT NULL)"
)
"""The table of version 0.1: without teacher, stage, prompt file, cost and thought."""


def test_rows_balance_and_a_lost_row_is_named() -> None:
    rows = RowLedger()
    rows.took("prompts", 5)
    rows.gave("candidates", 3)
    rows.drop("prompts", "empty")
    with pytest.raises(DataError, match="5 in, 3 out and 1 dropped"):
        rows.balance({"prompts": ["candidates"]})
    rows.drop("prompts", "timeout")
    rows.balance({"prompts": ["candidates"]})
    assert rows.dump()["dropped"] == {"prompts": {"empty": 1, "timeout": 1}}


def test_key_follows_content_and_not_the_order_of_its_fields() -> None:
    key = RequestLedger.key(**CONTENT)
    assert key == RequestLedger.key(**dict(reversed(list(CONTENT.items()))))
    for change in (
        {"seed": 2},
        {"model": "n"},
        {"temperature": 0.70001},
        {"messages": [{"role": "user", "content": "你好 "}]},
    ):
        assert RequestLedger.key(**{**CONTENT, **change}) != key


def test_reply_comes_back_as_it_was(tmp_path: Path) -> None:
    reply = Reply("答案\n{}", "length", "m-1", 5, 6, 0.25)
    with RequestLedger(tmp_path / "r.sqlite") as ledger:
        ledger.put("k", reply, source="row")
    with RequestLedger(tmp_path / "r.sqlite") as ledger:
        assert ledger.get("k") == reply
        assert ledger.get("other") is None
        assert len(ledger) == 1


def test_failure_is_asked_again_and_success_takes_its_place(tmp_path: Path) -> None:
    with RequestLedger(tmp_path / "r.sqlite") as ledger:
        ledger.fail("k", "timeout: 3 s", attempts=5)
        assert ledger.get("k") is None
        assert ledger.failures() == {"k": "timeout: 3 s"}
        ledger.put("k", Reply("ok"), attempts=2)
        assert ledger.failures() == {}
        assert ledger._db.execute("SELECT attempts FROM requests").fetchone() == (7,)


def test_rows_survive_kill_9(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from steps.lib.ledger import *\n"
        "ledger = RequestLedger(Path(sys.argv[1]))\n"
        "for n in range(50): ledger.put(str(n), Reply('x' * 1000))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "r.sqlite")]).returncode == -9
    with RequestLedger(tmp_path / "r.sqlite") as ledger:
        assert len(ledger) == 50


def test_money_that_failures_cost_goes_on_counting(tmp_path: Path) -> None:
    with RequestLedger(tmp_path / "r.sqlite") as ledger:
        ledger.fail("a", "empty", attempts=2, used=Reply("", tokens_in=10, tokens_out=1, cost=0.25), teacher="t")
        ledger.put(
            "a", Reply("ok", tokens_in=10, tokens_out=3, cost=0.5, seconds=2), teacher="t", stage="s", prompt_file="p"
        )
        ledger.fail("b", "http_500", used=Reply("", tokens_in=5, cost=1.0), teacher="t")
        ledger.put("c", Reply("other", tokens_in=7, cost=4.0), teacher="u")
        assert ledger.spent("t") == Spent(1.75, 29) and ledger.spent("nobody") == Spent()
        assert ledger.used() == {"t": Used(20, 4, 2.0, 1.75), "u": Used(7, 0, 0.0, 4.0)}
        assert ledger.get("a") == Reply("ok", tokens_in=20, tokens_out=4, cost=0.75, seconds=2)
        row = ledger.execute("SELECT status, attempts, teacher, stage, prompt_file FROM requests WHERE key='a'")
        assert row == [("ok", 3, "t", "s", "p")]


def test_an_answer_that_was_cut_off_has_a_status_of_its_own(tmp_path: Path) -> None:
    with RequestLedger(tmp_path / "r.sqlite") as ledger:
        ledger.put("k", Reply("half a senten", "length", thought="so\ud83d"))
        assert ledger.execute("SELECT status FROM requests") == [("truncated",)] and len(ledger) == 1
        assert ledger.get("k") == Reply("half a senten", "length", thought="so\ufffd") and ledger.failures() == {}


def test_many_keys_are_read_at_once(tmp_path: Path) -> None:
    with filled(tmp_path / "r.sqlite", 1203, 1) as ledger:
        ledger.fail("7", "timeout")
        keys = [str(n) for n in range(-5, 1300)]
        found = ledger.get_many(keys)
    assert found == {str(n): Reply(f"{n} ") for n in range(1203) if n != 7}


# --- answers of other runs -------------------------------------------------------------------------------------------


def test_answers_of_other_runs_are_taken_over_and_paid_for_there(tmp_path: Path) -> None:
    finished, stopped, own = (
        tmp_path / "step" / name for name in ("aaa/record", ".bbb.partial/.resume", ".ccc.partial/.resume")
    )
    for folder in (finished, stopped, own):
        folder.mkdir(parents=True)
    with RequestLedger(tmp_path / "work.sqlite") as ledger:
        ledger.put("a", Reply("from a", tokens_in=3, cost=0.5), teacher="t", source="row")
        ledger.fail("f", "timeout")
        ledger.save(finished / "requests.sqlite")
    running = RequestLedger(stopped / "requests.sqlite")  # it is open, and its rows are in the log beside it
    running.put("b", Reply("from b"), teacher="t")
    before = (finished / "requests.sqlite").read_bytes()
    others = ledgers_beside(own)
    assert [path.parent.parent.name for path in others] == [".bbb.partial", "aaa"]
    with RequestLedger(own / "requests.sqlite", earlier=others) as ledger:
        assert ledger.get_many(["a", "b", "f", "x"]) == {"a": Reply("from a", tokens_in=3), "b": Reply("from b")}
        assert ledger.get_many(["a"], earlier=False) == {"a": Reply("from a", tokens_in=3)}, "copied"
        assert ledger.spent("t") == Spent() and ledger.failures() == {}
        assert ledger.execute("SELECT attempts, source FROM requests WHERE key='a'") == [(0, "row")]
    running.__exit__(None, None, None)
    assert (finished / "requests.sqlite").read_bytes() == before and names(finished) == ["requests.sqlite"]
    with RequestLedger(own / "requests.sqlite") as ledger:
        assert ledger.get("b") == Reply("from b") and ledger.get("f") is None


@pytest.mark.fault
@pytest.mark.parametrize("harm", ["half", "text", "other table", "gone", "flipped"])
def test_a_damaged_ledger_of_another_run_holds_nothing(tmp_path: Path, harm: str) -> None:
    other = tmp_path / "other.sqlite"
    filled(tmp_path / "work.sqlite", 50).save(other)
    whole = other.read_bytes()
    if harm == "other table":
        other.unlink()
        with closing(sqlite3.connect(other)) as db:
            db.execute("CREATE TABLE requests (key TEXT PRIMARY KEY, text TEXT)")
    elif harm == "gone":
        other.unlink()
    elif harm == "text":
        other.write_text("not a database\n" * 1000)
    else:
        flipped = whole.replace(b"7 7 7 7", b"7 7 7 8")
        other.write_bytes(whole[: len(whole) // 2] if harm == "half" else flipped)
    with RequestLedger(tmp_path / "r.sqlite", earlier=[other]) as ledger:
        found = ledger.get_many([str(n) for n in range(50)])
        assert all(reply == Reply(f"{number} " * 1000) for number, reply in found.items())
        assert len(found) == {"flipped": 49, "half": len(found)}.get(harm, 0) and len(found) < 50
        ledger.put("7", Reply("again"))
        assert ledger.get("7") == Reply("again")


# --- the record ------------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def filled(path: Path, rows: int, size: int = 1000) -> RequestLedger:
    ledger = RequestLedger(path)
    for number in range(rows):
        ledger.put(str(number), Reply(f"{number} " * size))
    return ledger


def test_the_record_is_one_plain_file_with_every_row(tmp_path: Path) -> None:
    """The working file keeps new rows beside it: a copy of it alone lacks them, and a reader of that would write files."""
    (tmp_path / "record").mkdir()
    record, copy = tmp_path / "record" / "requests.sqlite", tmp_path / "copy.sqlite"
    with filled(tmp_path / "r.sqlite", 90, 20) as ledger:
        copy.write_bytes((tmp_path / "r.sqlite").read_bytes())
        record.write_bytes(b"of a run that was killed")
        (tmp_path / "r.sqlite.copy").write_bytes(b"half of it")
        ledger.save(record)
        assert names(tmp_path) == ["copy.sqlite", "r.sqlite", "r.sqlite-shm", "r.sqlite-wal", "record"]
    before = record.read_bytes()
    with closing(sqlite3.connect(record)) as db:
        assert db.execute("SELECT count(*) FROM requests").fetchone() == (90,)
        assert names(tmp_path / "record") == ["requests.sqlite"], "a reader writes nothing beside it"
    assert record.read_bytes() == before
    with closing(sqlite3.connect(copy)) as db:
        assert db.execute("SELECT count(*) FROM requests").fetchone()[0] < 90


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.fault
@pytest.mark.parametrize(
    "harm", ["half", "a page", "100 bytes", "one byte", "header", "text", "other table", "older shape", "old log"]
)
def test_a_damaged_ledger_is_set_aside_with_a_warning(
    tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "r.sqlite"
    filled(path, 50).__exit__(None, None, None)
    whole = path.read_bytes()
    if harm == "header":
        path.write_bytes(bytes(100) + whole[100:])
    elif harm == "text":
        path.write_text("not a database\n" * 1000)
    elif harm == "other table":
        path.unlink()
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE requests (key TEXT PRIMARY KEY, text TEXT)")
    elif harm == "older shape":
        path.unlink()
        with closing(sqlite3.connect(path)) as db:
            db.execute(OLDER)
            db.execute("INSERT INTO requests VALUES ('7', 'ok', '', 1, 'text', 'stop', '', 0, 0, 0.0, '', 'seal')")
            db.commit()
    else:
        lost = {"half": len(whole) // 2, "a page": 4096, "100 bytes": 100, "one byte": 1, "old log": 9000}[harm]
        path.write_bytes(whole[:-lost])
    if harm == "old log":  # of the damaged file; SQLite would read it into the new one
        path.with_name("r.sqlite-wal").write_bytes(b"x" * 5000)
    with caplog.at_level(logging.WARNING), RequestLedger(path, logging.getLogger("test")) as ledger:
        assert len(ledger) == 0 and ledger.get("7") is None
        ledger.put("7", Reply("again"))
    assert "r.sqlite is damaged" in caplog.text and "set aside as damaged-r.sqlite-1" in caplog.text
    assert "done again" in caplog.text
    with RequestLedger(path) as ledger:
        assert ledger.get("7") == Reply("again") and len(ledger) == 1
    path.write_bytes(b"damaged again" * 1000)
    RequestLedger(path).__exit__(None, None, None)
    assert {"damaged-r.sqlite-1", "damaged-r.sqlite-2", "r.sqlite"} <= set(names(tmp_path))


@pytest.mark.fault
def test_a_flipped_byte_anywhere_is_never_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SQLite has no checksums. Every answer that comes back is one that was put, whatever byte changed."""
    path = tmp_path / "r.sqlite"
    filled(path, 12, 100).__exit__(None, None, None)
    whole = path.read_bytes()
    missing = 0
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            with RequestLedger(path) as ledger:
                found = {number: ledger.get(str(number)) for number in range(12)}
        except ArtifactError as error:
            assert "run again: it is set aside" in str(error)
            continue
        assert all(reply in (None, Reply(f"{number} " * 100)) for number, reply in found.items())
        missing += list(found.values()).count(None)
        for left in tmp_path.glob("damaged-*"):
            left.unlink()
    assert missing > 50, "most bytes are text"
    assert "has other bytes than were written" in caplog.text


def test_half_a_surrogate_pair_does_not_stop_the_line(tmp_path: Path) -> None:
    with RequestLedger(tmp_path / "r.sqlite") as ledger:
        ledger.put("k", Reply("cut \ud83d, whole \ud83d\ude00 \U0001f600 \x00"))
        assert ledger.get("k") == Reply("cut \ufffd, whole \U0001f600 \U0001f600 \x00")


# --- the disk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if os.geteuid() or subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: it takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.fault
@pytest.mark.parametrize("free", [0, 4096, 40_000, 400_000])
def test_a_full_disk_is_said_so_and_loses_no_row(small_disk: Path, free: int) -> None:
    (small_disk / "fill").write_bytes(bytes((2 << 20) - free))
    put = -1
    with pytest.raises(OSError) as caught, RequestLedger(small_disk / "r.sqlite") as ledger:
        for put in range(1000):
            ledger.put(str(put), Reply("x" * 1000))
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(small_disk / "r.sqlite")
    assert "disk of" in str(storage_error(caught.value, small_disk))
    (small_disk / "fill").unlink()
    with RequestLedger(small_disk / "r.sqlite") as ledger:
        assert len(ledger) == max(0, put)
        ledger.put("more", Reply("y"))


def test_a_table_that_may_not_grow_is_a_full_disk(tmp_path: Path) -> None:
    with RequestLedger(tmp_path / "r.sqlite") as ledger, pytest.raises(OSError, match="No space left") as caught:
        ledger.execute("PRAGMA max_page_count=5")
        for number in range(100):
            ledger.put(str(number), Reply("x" * 1000))
    assert caught.value.errno == errno.ENOSPC


def test_a_place_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        RequestLedger(tmp_path / "nowhere" / "r.sqlite")
    assert caught.value.errno == errno.EACCES and isinstance(caught.value.__cause__, sqlite3.OperationalError)


# --- finished work ---------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(value=JSON)
def test_a_unit_comes_back_bit_by_bit(value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("units") / "w.sqlite"
    with WorkLedger(path, Stop()) as ledger:
        first = ledger.recall({"n": 1}, lambda: value)
    with WorkLedger(path, Stop()) as ledger:
        second = ledger.recall({"n": 1}, lambda: pytest.fail("computed again"))
    assert json.dumps(first) == json.dumps(second) == json.dumps(value), "floats by their repr, which is exact"
    assert first == second == value


def test_units_are_told_apart_by_content_and_computed_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute(number: int) -> list[int]:
        calls.append(number)
        return [number]

    for _ in range(2):
        with WorkLedger(tmp_path / "w.sqlite", Stop()) as ledger:
            one, two = ledger.about(model="a"), ledger.about(model="b")
            assert [recall({"rows": [n]}, lambda n=n: compute(n)) for recall in (one, two) for n in (1, 2)] == [
                [1],
                [2],
                [1],
                [2],
            ]
    assert calls == [1, 2, 1, 2] and (ledger.computed, ledger.kept) == (0, 4)


def test_a_stop_is_looked_at_before_each_unit_that_is_missing(tmp_path: Path) -> None:
    stop = Stop()
    with WorkLedger(tmp_path / "w.sqlite", stop) as ledger:
        ledger.recall({"n": 1}, lambda: 1)
        stop.signal = "SIGTERM"
        assert ledger.recall({"n": 1}, lambda: 2) == 1, "what is there needs no time"
        with pytest.raises(Resumable, match="SIGTERM"):
            ledger.recall({"n": 2}, lambda: 2)


@pytest.mark.fault
def test_units_survive_kill_9_and_a_changed_one_is_computed_again(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from steps.lib.stopping import Stop\n"
        "from steps.lib.work_ledger import WorkLedger\n"
        "ledger = WorkLedger(Path(sys.argv[1]), Stop())\n"
        "for n in range(9): ledger.recall({'n': n}, lambda: ['x' * 500, n] if n < 8 else os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    path = tmp_path / "w.sqlite"
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -signal.SIGKILL
    with WorkLedger(path, Stop()) as ledger:
        assert [ledger.recall({"n": n}, lambda n=n: n)[1] for n in range(8)] == list(range(8))
        assert ledger.recall({"n": 8}, lambda: 8) == 8 and (ledger.computed, ledger.kept) == (1, 8)
    path.write_bytes(path.read_bytes().replace(b"x" * 500 + b'", 3]', b"x" * 499 + b'y", 3]'))
    with WorkLedger(path, Stop()) as ledger:
        assert [ledger.recall({"n": n}, lambda: "again") == "again" for n in range(8)] == [n == 3 for n in range(8)]
