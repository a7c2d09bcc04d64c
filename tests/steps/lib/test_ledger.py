"""Rows and requests: nothing vanishes, nothing is asked twice."""

import subprocess
import sys
from pathlib import Path

import pytest

from steps.lib.errors import DataError
from steps.lib.ledger import Reply, RequestLedger, RowLedger

CONTENT = {
    "model": "m",
    "endpoint": "e",
    "messages": [{"role": "user", "content": "你好"}],
    "temperature": 0.7,
    "seed": 1,
}


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
