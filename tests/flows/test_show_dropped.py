"""``prefline show clean --dropped``: the rows that stayed behind, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from minimal import Line, line_recipe
from test_plan import config_of, fake

from flows.commands import show
from flows.plan import walk
from steps.lib.errors import ConfigError, DataError
from steps.lib.rows import Chat, Dropped, Pair, Text, messages, write_parquet
from steps.lib.store import Store


def row(reason: str, kept: Any, **facts: str) -> Dropped:
    plain = kept.model_dump_json() if hasattr(kept, "model_dump_json") else json.dumps(kept, ensure_ascii=False)
    return Dropped(step="clean", reason=reason, row=plain, **{"id": getattr(kept, "id", "s-7"), "source": "s", **facts})


ROWS = [
    row("json", '{"text": "cut o', detail="docs.jsonl:7: not JSON (Unterminated string: line 1); perhaps cut off"),
    row("too_long", Text(id="long", text="长" * 1000), lang="zh", detail="1000 characters, at most 500"),
    row(
        "identity",
        Chat(id="c", messages=messages(("user", "你是谁？"), ("assistant", "我是\x1b[31m语言模型"))),
        lang="zh",
    ),  # type: ignore[arg-type]
    row(
        "too_long",
        Pair(id="p", prompt=messages(("user", "Hi")), chosen=messages(("assistant", "Yes. " * 100)), rejected=[]),
    ),  # type: ignore[arg-type]
]


@pytest.fixture
def line(tmp_path: Path) -> Line:
    """A line with a generate and a clean in its store; clean dropped ``ROWS``."""
    line_recipe(tmp_path)
    line = Line(tmp_path)
    config, store = config_of(line, "promote=null"), Store(tmp_path / "store")
    for step in ("generate", "clean"):
        spec = {look.step: look for look in walk(config, store)}[step].spec
        assert spec
        if step == "clean":
            work = store.partial(spec.key())
            work.mkdir(parents=True)
            write_parquet(work / "dropped.parquet", ROWS, Dropped)
        fake(store, spec)
    return line


def said(line: Line, capsys: pytest.CaptureFixture[str], step: str = "clean", **words: Any) -> str:
    show.show(step, "promote=null", recipe=[line.recipe], dropped=True, **words)
    return capsys.readouterr().out


def test_dropped_rows_are_shown_with_their_place_and_reason(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(line, capsys)
    assert "docs.jsonl:7" in text and '{"text": "cut o' in text and "1000 characters, at most 500" in text
    assert "user: 你是谁？" in text and "\x1b" not in text and "assistant: 我是\ufffd[31m语言模型" in text
    assert "(1,000 characters)" in text and "长" * 301 not in text.replace("\n", "").replace(" ", "")
    assert "4 of 4 dropped rows" in text and "chosen assistant: Yes. Yes." in text
    only = said(line, capsys, reason="too_long", limit=1)
    assert "1 of 2 dropped rows (too_long)" in only and "long" in only and "cut o" not in only
    assert "cut o" not in said(line, capsys, kind="chats") and "你是谁" in said(line, capsys, kind="chats")


def test_programs_get_a_line_of_json_a_row(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(one) for one in said(line, capsys, json=True).splitlines()]
    assert [one["id"] for one in rows] == ["s-7", "long", "c", "p"] and rows[1]["text"] == "长" * 1000
    assert rows[0]["place"] == "docs.jsonl:7" and [one["kind"] for one in rows] == ["", "documents", "chats", "pairs"]
    assert (
        len(said(line, capsys, json=True, limit=2).splitlines()) == 2 and said(line, capsys, json=True, limit=0) == ""
    )


def test_what_cannot_be_shown_says_what_there_is(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="--reason refusal is not among .*there are too_long 2, json 1, identity 1"):
        said(line, capsys, reason="refusal")
    with pytest.raises(ConfigError, match="--kind chat is no kind of rows: .* chats, pairs"):
        said(line, capsys, kind="chat")
    with pytest.raises(ConfigError, match="--limit -1 is no number of rows"):
        said(line, capsys, limit=-1)
    with pytest.raises(ConfigError, match="cannot be used here: got no --dropped"):
        show.show("clean", "promote=null", recipe=[line.recipe], reason="json")
    (Store(line.folder / "store").root / "clean").rename(line.folder / "gone")
    spec = {look.step: look for look in walk(config_of(line, "promote=null"), Store(line.folder / "store"))}[
        "clean"
    ].spec
    assert spec
    fake(Store(line.folder / "store"), spec)
    with pytest.raises(DataError, match="got no dropped.parquet"):
        said(line, capsys)
