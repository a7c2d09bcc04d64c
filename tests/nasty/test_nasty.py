"""Nasty input, case by case: a bad row is set aside whole, with its line, field and reason; a bad file is named with its cause."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nasty.cases import FILES, FINE, ROWS, ZH, lines

from steps import clean
from steps.lib import lines as reading
from steps.lib.errors import DataError
from steps.lib.opened import Opened, open_source, open_sources
from steps.lib.rows import Chat, Dropped, Pair, Text, read_parquet
from steps.lib.sources import Rejected, Source, digest
from steps.lib.step import Context


def opened(path: Path, kind: type[Any] = Text, **more: Any) -> Opened[Any]:
    return open_source(Source(name="s", path=path, **more), kind)


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def told(rows: list[Any]) -> list[tuple[int, str, str]]:
    return [(row.line, row.field, row.reason) for row in rows if isinstance(row, Rejected)]


def in_parts(source: Opened[Any], size: int) -> list[Any]:
    """As a run reads that is stopped every ``size`` rows. A piece more: behind the end there is nothing."""
    count = sum(1 for _ in source) + size
    return [row for start in range(0, count, size) for row in itertools.islice(source.behind(start), size)]


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_is_set_aside_and_the_others_are_read(tmp_path: Path, name: str) -> None:
    case = ROWS[name]
    source = opened(put(tmp_path / case.file, case.content), case.kind)
    rows = list(source)
    bad = [row for row in rows if isinstance(row, Rejected)]
    assert told(rows) == [seen[:3] for seen in case.bad] and len(rows) - len(bad) == case.good
    for row, (*_, detail) in zip(bad, case.bad, strict=True):
        assert detail in row.detail
        dropped = row.dropped("clean")
        dropped.model_dump_json().encode()
        assert json.loads(dropped.row) is not None or case.content.count(b"null")
        assert dropped.detail.isprintable() and str(tmp_path) not in dropped.detail
    if case.kept:
        kept = json.loads(bad[0].row)
        assert case.kept in (kept if isinstance(kept, str) else bad[0].row)
    for size in (1, 2, 100):
        assert in_parts(source, size) == rows, size


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_named_with_its_cause(tmp_path: Path, name: str) -> None:
    case = FILES[name]
    path = put(tmp_path / case.file, case.content)
    with pytest.raises(DataError) as caught:
        opened(path, case.kind)
    assert case.said in str(caught.value) and str(path) in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == [case.file]


def test_all_bad_files_are_named_in_one_message(tmp_path: Path) -> None:
    asked = []
    for number, case in enumerate(FILES.values()):
        (tmp_path / str(number)).mkdir()
        path = put(tmp_path / str(number) / case.file, case.content)
        asked.append((Source(name=f"s{number}", path=path), case.kind))
    with pytest.raises(DataError) as caught:
        open_sources(asked)
    message = str(caught.value)
    assert message.startswith(f"{len(FILES)} problems in the data sources:\n")
    assert all(case.said in message for case in FILES.values())


def test_each_quote_that_is_closed_in_the_wrong_place_costs_its_own_line(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", b"text,n\n" + b"".join(b'a,"%d\nb,2\nc,3\n' % number for number in range(43)))
    rows = list(opened(path))
    assert [row.text for row in rows if isinstance(row, Text)] == ["b", "c"] * 43
    assert [json.loads(row.row) for row in rows if isinstance(row, Rejected)] == [
        f'a,"{number}' for number in range(43)
    ]


def test_a_line_of_10_mb_is_a_row(tmp_path: Path) -> None:
    long = "订单 " * 1_500_000
    for name, content in (
        ("a.jsonl", lines({"text": long}, {"text": "b"})),
        ("a.json", b"[" + lines({"text": long}) + b"]"),
    ):
        first = next(iter(opened(put(tmp_path / name, content), lang="zh")))
        assert isinstance(first, Text) and first.text == long


def test_a_row_past_the_limit_is_set_aside_with_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_ROW", 5000)
    monkeypatch.setattr(reading, "BLOCK", 700)
    long = lines({"text": "订" * 20_000})
    for name, content in (
        ("a.jsonl", FINE + long + FINE),
        ("a.txt", b"one\n" + long + b"two\n"),
        ("a.csv", b"text\none\n" + b"x" * 9000 + b"\ntwo\n"),
        ("b.txt", b"one\r\n" + b"x" * 9000 + b"\r\ntwo\r\n"),
        ("c.txt", b"one\n" + b"x" * 5598 + b"\rtwo\r"),  # the block ends behind the line end
        ("d.txt", b"one\n" + b"x" * 5598 + b"\r\ntwo\r"),
    ):
        source = opened(put(tmp_path / name, content))
        rows = list(source)
        assert [row.reason for row in rows if isinstance(row, Rejected)] == ["too_big"] and len(rows) == 3
        if name.endswith(".txt"):
            assert [row.id for row in rows if isinstance(row, Text)] == ["s-1", "s-3"]
        assert all(len(row.row) < 1100 for row in rows if isinstance(row, Rejected)) and in_parts(source, 1) == rows
    with pytest.raises(DataError, match="the row that begins in line 2 has no end within 5,000 bytes"):
        opened(put(tmp_path / "a.json", b"[" + FINE + b"," + long + b"]"))


def test_a_whole_file_past_the_limit_is_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is no longer past it when CRLF became LF, and where the limit stands inside a character."""
    monkeypatch.setattr(reading, "MAX_ROW", 5000)
    put(tmp_path / "a.txt", b"fine")
    for content in (b"abc\r\n" * 1100, ("订单" * 900).encode(), b"x" * 5001):
        put(tmp_path / "b.txt", content)
        good, big = opened(tmp_path, documents="file")
        assert good.text == "fine" and (big.reason, big.line) == ("too_big", 1)


def test_every_block_size_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block may end inside a character, a line end, a string or a bracket."""
    cases = [case for case in ROWS.values() if len(case.content) < 2000]
    paths = [put(tmp_path / f"{number}-{case.file}", case.content) for number, case in enumerate(cases)]
    whole = [[repr(row) for row in opened(path, case.kind)] for path, case in zip(paths, cases, strict=True)]
    for size in (1, 7, 64):
        monkeypatch.setattr(reading, "BLOCK", size)
        found = [[repr(row) for row in opened(path, case.kind)] for path, case in zip(paths, cases, strict=True)]
        assert found == whole, size


def test_zstd(tmp_path: Path) -> None:
    import pyarrow as pa

    path = tmp_path / "a.jsonl.zst"
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(lines(*({"text": f"{number * number:x}"} for number in range(3000))))
    source = opened(path)
    rows = [row.text for row in source.behind(2500) if isinstance(row, Text)]
    assert len(rows) == 500 and rows[:2] == ["5f5e10", "5f7199"]
    with pytest.raises(DataError, match=r"a.jsonl.zst cannot be read: got OSError: Truncated"):
        opened(put(path, path.read_bytes()[:-30]))


def table(path: Path, columns: dict[str, Any]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_parquet_of_every_kind(tmp_path: Path) -> None:
    import pyarrow as pa

    turn = pa.struct([("role", pa.string()), ("content", pa.large_string())])
    good, holes = (
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        [{"role": "user", "content": None}],
    )
    source = opened(
        table(tmp_path / "a.parquet", {"messages": pa.array([good, holes, None, [], [None], good], pa.list_(turn))}),
        Chat,
    )
    rows = list(source)
    assert told(rows) == [
        (2, "messages[0]", "wrong_type"), (3, "messages", "missing_field"), (4, "messages", "empty"), (5, "messages[0]", "wrong_type"),
    ]  # fmt: skip
    assert all(in_parts(source, size) == rows for size in (1, 4))
    words = pa.array(["one", "two", "one", None]).dictionary_encode()
    assert told(list(opened(table(tmp_path / "b.parquet", {"text": words})))) == [(4, "text", "missing_field")]
    numbers = pa.array([1, None, 3])
    assert told(list(opened(table(tmp_path / "c.parquet", {"text": numbers})))) == [
        (1, "text", "wrong_type"), (2, "text", "missing_field"), (3, "text", "wrong_type")]  # fmt: skip
    sides = {
        "prompt": ["q"] * 2,
        "chosen": ["a"] * 2,
        "rejected": ["b"] * 2,
        "margin": [float("nan"), None],
        "note": [1.0, float("inf")],
    }
    bad, pair = opened(table(tmp_path / "d.parquet", sides), Pair)
    assert (bad.field, bad.reason) == ("margin", "wrong_type") and json.loads(pair.evidence) == {"note": "inf"}


def test_parquet_that_is_damaged(tmp_path: Path) -> None:
    import pyarrow as pa

    whole = table(tmp_path / "a.parquet", {"text": [f"row {number}" for number in range(1000)]}).read_bytes()
    for cut in (whole[:-1], whole[: len(whole) // 2], whole[:4]):
        with pytest.raises(DataError, match="is not readable as Parquet"):
            opened(put(tmp_path / "a.parquet", cut))
    torn = bytearray(whole)
    torn[4:200] = b"\xff" * 196
    with pytest.raises(DataError, match="is not readable as Parquet"):
        list(opened(put(tmp_path / "a.parquet", bytes(torn))))
    binary = pa.array([b"good", "订单".encode("gbk"), b"fine"], pa.binary())
    strings = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    rows = list(opened(table(tmp_path / "b.parquet", {"text": strings})))
    assert told(rows) == [(2, "", "encoding")] and "\\\\xb6" in rows[1].row
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    import pyarrow.parquet as pq

    pq.write_table(twice, tmp_path / "c.parquet")
    with pytest.raises(DataError, match="columns of one name: got text twice"):
        opened(tmp_path / "c.parquet")


def test_a_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "deep er").mkdir()
    put(tmp_path / "b.jsonl", FINE * 3)
    put(tmp_path / "a.json", b"[" + FINE + b', {"text": 3}]')
    put(tmp_path / "deep er" / "数\n据.jsonl", FINE + b"{")
    for name in ("README.md", "LICENSE.txt", ".hidden.jsonl", "_SUCCESS", "picture.png"):
        put(tmp_path / name, b"x")
    source = opened(tmp_path)
    assert str(source).endswith("(detected), 3 files, not read: LICENSE.txt, README.md, picture.png")
    rows = list(source)
    assert [row.id if isinstance(row, Text) else row.dropped("clean").id for row in rows] == [
        "s-1-1", "s-1-2", "s-2-1", "s-2-2", "s-2-3", "s-3-1", "s-3-2"]  # fmt: skip
    assert [row.dropped("clean").detail.split(": ")[0] for row in rows if isinstance(row, Rejected)] == [
        "a.json:2 text",
        "deep er/数\\n据.jsonl:2",
    ]
    assert all(in_parts(source, size) == rows for size in (1, 2, 3, 100))
    before = digest(source.source)
    os.rename(tmp_path / "b.jsonl", tmp_path / "c.jsonl")
    assert digest(source.source) != before
    assert len(list(opened(tmp_path, files="*.jsonl"))) == 5
    put(tmp_path / "d.csv", b"text\na\n")
    with pytest.raises(DataError, match=r"several formats: got 1 .csv, 3 .json or .jsonl; set `files`"):
        opened(tmp_path)
    with pytest.raises(DataError, match=r"has no file that fits \*.tsv: got LICENSE.txt"):
        opened(tmp_path, files="*.tsv")
    with pytest.raises(DataError, match="is one file, and `files"):
        opened(tmp_path / "d.csv", files="*.csv")


def test_a_file_of_a_folder_without_a_row(tmp_path: Path) -> None:
    for name, content in (("a.md", b" \n"), ("b.md", b"one"), ("c.md", b"\r\n"), ("d.md", b"two")):
        put(tmp_path / name, content)
    source = opened(tmp_path, documents="file")
    rows = list(source)
    assert [row.id for row in rows] == ["s-2-1", "s-4-1"] and all(in_parts(source, size) == rows for size in (1, 2))


def test_every_bad_file_of_a_folder_is_named(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", FINE)
    put(tmp_path / "b.jsonl", b"")
    put(tmp_path / "c.jsonl", ZH.encode("gbk"))
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    assert "b.jsonl is empty" in str(caught.value) and "c.jsonl is not UTF-8" in str(caught.value)


def test_links_devices_and_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "round.jsonl").symlink_to(tmp_path / "round.jsonl")
    with pytest.raises(DataError, match="round.jsonl is missing: got a link that leads to nothing or to itself"):
        opened(tmp_path / "round.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="got no file but a device or a pipe"):
        opened(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="cannot be read: got File name too long"):
        opened(tmp_path / ("x" * 300))
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    with pytest.raises(DataError, match="has no file of a known format .* got nothing"):
        opened(folder)
    put(folder / "a.jsonl", FINE)
    (folder / "loop").symlink_to(folder)
    with pytest.raises(DataError, match="loop is a link to a folder: got .*can lead in a circle"):
        opened(folder)


@pytest.fixture
def nobody() -> Iterator[None]:
    """A user without rights; the superuser has all of them."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    yield
    os.seteuid(me)


def test_a_file_without_the_right_to_read_it(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    paths = [put(tmp_path / "a.jsonl", FINE), put(tmp_path / "b.csv", b"text\na\n"), put(tmp_path / "c.txt.gz", b"x")]
    paths.append(table(tmp_path / "d.parquet", {"text": ["a"]}))
    for path in paths:
        path.chmod(0)
    request.getfixturevalue("nobody")
    for path in paths:
        with pytest.raises(DataError, match=f"{path.name} cannot be read: got Permission denied"):
            opened(path)
        with pytest.raises(DataError, match="cannot be read"):
            digest(Source(name="s", path=path))


def test_nothing_of_an_archive_is_unpacked(tmp_path: Path) -> None:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("../slipped.jsonl", FINE)
    inner = tmp_path / "inner"
    inner.mkdir()
    put(inner / "a.zip", held.getvalue())
    for path in (inner, inner / "a.zip"):
        with pytest.raises(DataError):
            opened(path)
    assert not (tmp_path / "slipped.jsonl").exists() and [file.name for file in inner.iterdir()] == ["a.zip"]


def test_clean_drops_each_bad_row_whole_and_loses_none(tmp_path: Path) -> None:
    """Every file of documents in one run of the step: rows in are rows out and dropped rows, each with its reason."""
    documents = {name: case for name, case in ROWS.items() if case.kind is Text}
    sources = []
    for number, case in enumerate(documents.values()):
        (tmp_path / str(number)).mkdir()
        sources.append({"name": f"s{number}", "path": put(tmp_path / str(number) / case.file, case.content)})
    story = " ".join(hashlib.sha256(b"%d" % word).hexdigest()[:7] for word in range(60)) + "."
    sources.append({"name": "good", "path": put(tmp_path / "good.jsonl", lines({"text": story}))})
    out = tmp_path / "out"
    (out / "resume").mkdir(parents=True)
    context = Context(
        log=logging.getLogger("clean"),
        seed=0,
        resume=out / "resume",
        progress=lambda items, label, total=None: iter(items),
        track=lambda values, step=None: None,
    )
    config = clean.CleanConfig.model_validate({"domain": sources, "heldout": {"share": 0}})
    metrics = clean.run(config, out=out, context=context)
    dropped = read_parquet(out / "dropped.parquet", Dropped)
    assert metrics.rows is not None
    assert metrics.rows.rows_in["domain"] == sum(case.good + len(case.bad) for case in documents.values()) + 1
    found = Counter(row.reason for row in dropped)
    asked = Counter(reason for case in documents.values() for _, _, reason, _ in case.bad)
    assert all(found[reason] >= count for reason, count in asked.items()) and metrics.rows.rows_out["corpus"] >= 1
    assert str(tmp_path) not in "".join(row.model_dump_json() for row in dropped)
