"""Nasty input: what stands in a file, and what reading it must say. The bytes stand here and not in files of their own, since
editors, git and formatters mend such files without a word.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from dataclasses import dataclass
from typing import Any

from steps.lib.rows import Chat, Pair, Text

Seen = tuple[int, str, str, str]
"""Line, field, reason and a part of the detail of a row that is set aside."""


@dataclass(frozen=True)
class Rows:
    """A file that is read, with rows that are set aside."""

    file: str
    content: bytes
    bad: tuple[Seen, ...]
    good: int
    kind: type[Any] = Text
    kept: str = ""
    """What must stand in the first row that is set aside."""


@dataclass(frozen=True)
class Refused:
    """A file that stops the step."""

    file: str
    content: bytes
    said: str
    kind: type[Any] = Text


FINE = b'{"text": "fine"}\n'
ZH = '{"text": "订单已经发货"}\n'
SURROGATES = (
    ZH.encode()
    + b'{"text": "cut \\ud83d"}\n{"text": "raw \xed\xa0\xbd"}\n{"\\udc00": 1, "text": "a"}\n{"text": "\\ud83d\\ude00"}\n'
)
DEEP = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
TURN = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def slip() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("../../evil.jsonl", FINE)
        archive.writestr("/tmp/evil.jsonl", FINE)
    return held.getvalue()


ROWS = {
    "cut-off last line": Rows("a.jsonl", FINE + b'{"text": "cut o', ((2, "", "json", "perhaps cut off"),), 1, kept='{"text": "cut o'),
    "no line end at the end": Rows("a.jsonl", FINE + FINE.strip(), (), 2),
    "NUL in a line": Rows("a.jsonl", FINE + b'{"text": "a\0b"}\n', ((2, "", "json", "it holds NUL bytes"),), 1),
    "NUL, escaped": Rows("a.jsonl", b'{"text": "a\\u0000b"}\n', (), 1),
    "NUL in text": Rows("a.txt", b"one\na\0b\ntwo\n", ((2, "", "nul", "NUL bytes"),), 2, kept="a\0b"),
    "NUL in CSV": Rows("a.csv", b"text,n\none,1\na\0b,2\n", ((3, "", "nul", "NUL bytes"),), 1),
    "lone surrogates": Rows("a.jsonl", SURROGATES, (
        (2, "text", "bad_unicode", "surrogate"), (3, "", "encoding", "byte 0xed"), (4, "\\udc00", "bad_unicode", "in a name"),
    ), 2, kept="\\ud83d"),
    "GBK lines inside UTF-8": Rows("a.jsonl", (ZH * 2).encode() + ZH.encode("gbk") + ZH.encode(),
                                   ((3, "", "encoding", "it reads as GB18030"),), 3, kept="\\xb6\\xa9"),
    "GBK line in text": Rows("a.txt", "订单\n退货\n".encode() + "订单\n".encode("gbk"), ((3, "", "encoding", "GB18030"),), 2),
    "GBK row in CSV": Rows("a.csv", "text,n\n订单,1\n退货,2\n".encode() + "订单,3\n".encode("gbk"), ((4, "", "encoding", "0xb6"),), 2),
    "GBK row in a list": Rows("a.json", b"[" + ZH.encode() + b"," + ZH.encode() + b"," + ZH.encode("gb18030") + b"]",
                              ((3, "", "encoding", "byte 0xb6"),), 2),
    "byte order mark": Rows("a.jsonl", b"\xef\xbb\xbf" + FINE, (), 1),
    "byte order mark in the middle": Rows("a.jsonl", b"\xef\xbb\xbf" + FINE + b"\xef\xbb\xbf" + FINE, (), 2),
    "byte order mark, CSV": Rows("a.csv", b"\xef\xbb\xbftext\nfine\n", (), 1),
    "byte order mark, list": Rows("a.json", b"\xef\xbb\xbf[" + FINE + b"]", (), 1),
    "a name twice": Rows("a.jsonl", b'{"text": "a", "text": "b"}\n' + FINE, ((1, "", "duplicate_key", "'text' stands twice"),), 1,
                         kept='{"text": "a", "text": "b"}'),
    "a name twice, deeper": Rows("a.json", b'[{"text": "a", "m": {"x": 1, "x": 2}}, {"text": "b"}]',
                                 ((1, "", "duplicate_key", "'x' stands twice"),), 1),
    "a name twice first, a cut-off line later": Rows("a.jsonl", b'{"text": "a", "text": "b"}\n' + FINE + b'{"text": "cut o\n' + FINE * 2, (
        (1, "", "duplicate_key", "'text' stands twice"), (3, "", "json", "perhaps cut off")), 3),
    "a name twice in each line, named .json": Rows("a.json", b'{"text": "a", "text": "b"}\n' * 2 + FINE, (
        (1, "", "duplicate_key", "'text'"), (2, "", "duplicate_key", "'text'")), 1),
    "no numbers": Rows("a.jsonl", b'{"text": "a", "n": NaN}\n{"text": "a", "n": -Infinity}\n{"text": "a", "n": 1e999}\n{"text": "a", "n": '
                       + b"9" * 5000 + b'}\n{"text": "a", "n": ' + b"9" * 400 + b"}\n",
                       ((1, "", "number", "NaN is no number"), (2, "", "number", "-Infinity"), (3, "", "number", "past the range"),
                        (4, "", "number", "too many digits")), 1),
    "100,000 brackets": Rows("a.jsonl", FINE + DEEP + b"[" * 100_000 + b"\n" + FINE,
                             ((2, "", "too_deep", "more than 100 deep"), (3, "", "too_deep", "more than 100 deep")), 2),
    "5,000 brackets in a list": Rows("a.json", b"[" + FINE + b"," + b"[" * 5000 + b"]" * 5000 + b"," + FINE + b"]", ((2, "", "too_deep", "100 deep"),), 2),
    "900 brackets": Rows("a.jsonl", FINE + b'{"text": ' + b"[" * 900 + b"]" * 900 + b"}\n", ((2, "", "too_deep", "100 deep"),), 1),
    "wrong types": Rows("a.jsonl", lines({"text": 3}, {"text": None}, {"text": ["a"]}, {"text": {}}, [1], "x", 7, None, {"text": "a", "id": [1]},
                                         {"text": "a", "id": "x" * 2000}, {"text": " "}, {"text": "a"}), (
        (1, "text", "wrong_type", "got int 3"), (2, "text", "missing_field", "no text"), (3, "text", "wrong_type", "got list"),
        (4, "text", "wrong_type", "got dict"), (5, "", "not_object", "got list"), (6, "", "not_object", "got str"),
        (7, "", "not_object", "got int"), (8, "", "not_object", "got NoneType"), (9, "id", "wrong_type", "got list"),
        (10, "id", "wrong_type", "2,000 characters"), (11, "text", "empty", "is empty"),
    ), 1),
    "nested nulls": Rows("a.jsonl", lines(
        {"messages": None}, {"messages": [None]}, {"messages": [{"role": None, "content": "a"}]},
        {"messages": [TURN, {"role": "assistant", "content": None}]}, {"messages": {}}, {"messages": [[]]}, {"messages": []},
        {"messages": [TURN, {"role": ["assistant"], "content": "a"}]}, {"messages": [TURN, ANSWER]}), (
        (1, "messages", "missing_field", "no messages"), (2, "messages[0]", "wrong_type", "got NoneType"),
        (3, "messages[0]", "unknown_role", "got role None"), (4, "messages[1]", "wrong_type", "NoneType"),
        (5, "messages[0]", "unknown_role", "None"), (6, "messages[0]", "wrong_type", "got list"), (7, "messages", "empty", "no turn"),
        (8, "messages[1]", "unknown_role", "['assistant']"),
    ), 1, Chat),
    "tools": Rows("a.jsonl", lines(
        {"messages": [TURN, ANSWER], "tools": "[{}]"}, {"messages": [TURN, {**ANSWER, "content": None, "tool_calls": [{}]}]},
        {"messages": [TURN, {"role": "tool", "content": "42"}, ANSWER]}, {"messages": [TURN, {**ANSWER, "weight": 0}]},
        {"messages": [TURN, {**ANSWER, "content": [{"type": "image_url", "image_url": "x"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER], "tools": []}), (
        (1, "tools", "tools", "comes with tools"), (2, "messages[1]", "tools", "calls a tool"), (3, "messages[1]", "tools", "a tool"),
        (4, "messages[1]", "weight_zero", "not to be learnt"), (5, "messages[1]", "wrong_type", "image_url"),
    ), 1, Chat),
    "margins": Rows("a.jsonl", b"".join(b'{"prompt": "q", "chosen": "a", "rejected": "b", "margin": %s}\n' % value for value in (
        b'"much"', b"1" + b"0" * 400, b"true", b'"0.5"', b"null")), (
        (1, "margin", "wrong_type", "got str"), (2, "margin", "wrong_type", "got int"), (3, "margin", "wrong_type", "got bool")), 2, Pair),
    "placeholders": Rows("a.jsonl", lines({"text": "{{ name }}"}, {"text": "{{订单号}}"}, {"text": "{{Order Number}}"}, {"text": "${{ a.b }} {{}}"}), (
        (1, "text", "placeholder", "no value for name"), (2, "text", "placeholder", "订单号"), (3, "text", "placeholder", "Order Number")), 1),
    "CSV with quotes and line ends": Rows("a.csv", b'text,n\r\n"a ""quoted"" word,\r\nand, more",1\r\ntwo,2\r\n', (), 2),
    "CSV, a quote inside a cell": Rows("a.csv", b'text,n\n"he said "hi" there",1\ntwo,2\n', ((2, "", "csv", "must be doubled"),), 1,
                                       kept='he said "hi" there'),
    "CSV, a quote is never closed": Rows("a.csv", b'text,n\none,1\ntwo,"2\nthree,3\nfour,4\n', ((3, "", "csv", "never closed"),), 3,
                                         kept='two,"2'),
    "CSV, the header again": Rows("a.csv", b"text,n\none,1\ntext,n\ntwo,2\n", ((3, "", "csv", "header stands here again"),), 2),
    "CSV, ragged": Rows("a.csv", b"text,n\none\ntwo,2,2\n\n \nthree,3\n", (
        (2, "", "csv", "1 cells, where the header names 2"), (3, "", "csv", "3 cells")), 1),
    "CSV, ragged and never closed": Rows("a.csv", b'text,n\none,1\ntwo\nthree,"3\n', ((3, "", "csv", "1 cells"), (4, "", "csv", "never closed")), 1),
    "CSV, semicolons": Rows("a.csv", "text;n\n一,二;1\n".encode(), (), 1),
    "TSV": Rows("a.tsv", b"text\tn\na, b\t1\n", (), 1),
    "a list named .jsonl": Rows("a.jsonl", b"[\n" + FINE + b", " + FINE + b"]\n", (), 2),
    "lines named .json": Rows("a.json", FINE * 2, (), 2),
    "objects over several lines named .jsonl": Rows("a.jsonl", b'{\n "text": "a"\n}\n{\n "text": 3\n}\n', ((2, "text", "wrong_type", "int 3"),), 1),
    "objects without line ends": Rows("a.json", FINE.strip() * 3, (), 3),
    "a list inside an object": Rows("a.json", b'{"version": "1", "data": [' + FINE + b", 3, " + FINE + b'], "x": {}}',
                                    ((2, "", "not_object", "int 3"),), 2),
    "a row with a list": Rows("a.json", json.dumps({"messages": [TURN, ANSWER]}, indent=1).encode(), (), 1, Chat),
    "CRLF": Rows("a.jsonl", FINE.replace(b"\n", b"\r\n") * 2 + b"\r\n", (), 2),
    "lone CR": Rows("a.jsonl", FINE.replace(b"\n", b"\r") * 2, (), 2),
    "lone CR, text": Rows("a.txt", b"one\rtwo\r\nthree\n", (), 3),
    "lone CR, CSV": Rows("a.csv", b"text,n\rone,1\rtwo,2\r", (), 2),
    "U+2028 inside a line": Rows("a.jsonl", '{"text": "a\u2028b\u2029c\x85d"}\n'.encode() * 2, (), 2),
    "no JSON of Python": Rows("a.jsonl", FINE + b"{'text': 'a'}\n{\"text\": \"a\",}\n{\"text\": \"a\"} // note\n# note\n{\"text\": None}\n{text: 1}\n", (
        (2, "", "json", "not in single ones"), (3, "", "json", "a comma stands before"), (4, "", "json", "no comments"),
        (5, "", "json", "no comments"), (6, "", "json", "not JSON"), (7, "", "json", "not JSON")), 1),
    "bad rows inside a list": Rows("a.json", b'[{"text": "a",}, {"text": \'b\'}, nul, {"text": "c"}, {"text": "d" "e"}, {"text": "f"}]', (
        (1, "", "json", "comma"), (2, "", "json", "single"), (3, "", "json", "not JSON"), (5, "", "json", "not JSON")), 2, kept='{"text": "a",}'),
    "gzip": Rows("a.jsonl.gz", gzip.compress(FINE * 2), (), 2),
    "xz": Rows("a.txt.xz", lzma.compress(b"one\ntwo\n"), (), 2),
    "bzip2": Rows("a.csv.bz2", bz2.compress(b"text\none\n"), (), 1),
    "ids that are paths": Rows("a.jsonl", lines({"text": "a", "id": "../../evil"}, {"text": "b", "id": "/etc/passwd"}, {"text": "c", "id": "a\nb"}), (), 3),
    "spaces, Chinese and a line end in the name": Rows("my 数据\nfile.jsonl", FINE + b"{\n", ((2, "", "json", "cut off"),), 1),
}  # fmt: skip

FILES = {
    "cut-off list": Refused("a.json", b'[{"text": "a"}, {"text": "b', "is not JSON: got row 2, which begins in line 1, has no end"),
    "list without its end": Refused("a.json", b'[{"text": "a"},\n{"text": "b"}\n', "is not JSON: got no ] at the end; perhaps it is cut off"),
    "list cut behind a comma": Refused("a.json", b'[{"text": "a"},', "the list has no end"),
    "cut-off object": Refused("a.json", b'{"data": [{"text": "a"}, ', "is not JSON: got the list has no end"),
    "comma at the end of a list": Refused("a.json", b'[{"text": "a"},]', "is not JSON: got a comma too many (behind row 1"),
    "no comma in a list": Refused("a.json", b'[{"text": "a"} {"text": "b"}]', "got '{' where a comma or ] is needed"),
    "comment in a list": Refused("a.json", b'[{"text": "a"}, // note\n {"text": "b"}]', "where a comma or ] is needed"),
    "two lists": Refused("a.json", b'[{"text": "a"}]\n[{"text": "b"}]', "more behind the end of the list (line 2)"),
    "single quotes": Refused("a.json", b"{'text': 'a'}", "is not JSON: got no name and colon"),
    "lists of a split": Refused("a.json", b'{"train": [{"text": "a"}], "test": [{"text": "b"}]}', "several lists of rows: got train, test"),
    "a list twice in one object": Refused("a.json", b'{"data": [{"text": "a"}], "data": [{"text": "b"}]}', "several lists of rows: got data, data"),
    "empty list": Refused("a.json", b"[]", "is empty: got no row"),
    "empty": Refused("a.jsonl", b"", "is empty: got 0 bytes"),
    "blank lines": Refused("a.jsonl", b"\n \r\n\n", "is empty: got no row"),
    "header only": Refused("a.csv", b"text,n\n", "is empty: got no row"),
    "UTF-16": Refused("a.txt", "订单".encode("utf-16"), "is not UTF-8: got byte 0xff in line 1; by its first two bytes this is UTF-16"),
    "UTF-16 of many ASCII lines": Refused("a.csv", ("text,n\n" + "one,1\n" * 200).encode("utf-16"), "by its first two bytes this is UTF-16"),
    "UTF-16 without a mark": Refused("a.txt", "an order".encode("utf-16-le"), "is no text: got NUL"),
    "GB18030": Refused("a.jsonl", FINE + (ZH * 3).encode("gb18030"), "is not UTF-8: got byte 0xb6 in line 2; it reads as GB18030"),
    "prose": Refused("a.jsonl", b"hello\nworld\n", "has no readable row: got not JSON (Expecting value at character 1)"),
    "header without names": Refused("a.csv", b",text\n0,a\n", "has no header"),
    "header with an empty name": Refused("a.csv", b"text,\nhello,1\n", "has no header"),
    "header in GBK": Refused("a.csv", "text,备注\n".encode("gbk") + b"a,b\n" * 200, "has a header that cannot be read: got byte 0xb1"),
    "no header": Refused("a.csv", b"hello there,1\nhello you,2\n", "first line must name the columns"),
    "no header, TSV packed": Refused("a.tsv.gz", gzip.compress(b"hello there\t1\nhello you\t2\n"), "first line must name the columns"),
    "header twice in itself": Refused("a.csv", b"text,text\na,b\n", "has no header"),
    "two ways to cut": Refused("a.csv", b"text,a;b\none,c;d\n", "can be read in 2 ways: got comma and semicolon"),
    "cut-off gzip": Refused("a.jsonl.gz", gzip.compress(FINE * 1000)[:-20], "cannot be read: got EOFError"),
    "no gzip": Refused("a.jsonl.gz", FINE, "cannot be read: got BadGzipFile"),
    "cut-off xz": Refused("a.jsonl.xz", lzma.compress(FINE * 1000)[:-20], "cannot be read: got EOFError"),
    "no zstd": Refused("a.jsonl.zst", FINE * 20, "cannot be read: got OSError"),
    "gzip under another name": Refused("a.jsonl", gzip.compress(FINE), "is not what its name says: got the first bytes of gzip"),
    "ZIP under another name": Refused("a.jsonl", slip(), "is not what its name says: got the first bytes of a ZIP archive"),
    "zip-slip": Refused("a.zip", slip(), "is an archive: got .zip, and nothing was unpacked, because names inside an archive can lead anywhere"),
    "tar": Refused("a.tar.gz", gzip.compress(b"x"), "is an archive: got .tar.gz"),
    "Parquet, no magic": Refused("a.parquet", b"not parquet at all", "is not readable as Parquet"),
    "JSON named .parquet": Refused("a.parquet", FINE * 50, "is not readable as Parquet"),
    "Parquet under another name": Refused("a.jsonl", b"PAR1\x15\x00\x15", "the first bytes of Parquet"),
    "unknown format": Refused("a.xlsx", b"PK", "is of no known format: got .xlsx"),
    "no suffix": Refused("a", FINE, "is of no known format: got no suffix"),
    "no known columns": Refused("a.jsonl", b'{"headline": "a", "body": "b"}\n',
                                "gives no Text rows: got columns headline, body; known layouts are text (text)"),
}  # fmt: skip
"""Files that stop the step. All of them are named in one message."""
