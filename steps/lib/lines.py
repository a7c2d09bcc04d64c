"""Lines of a file as bytes, in blocks, each with its number and place; a packed file is unpacked as it is read.

Memory is one block and one line, whatever the file has: a line past ``MAX_ROW`` is cut, and its reader says so.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from steps.lib.errors import DataError

BLOCK = 1 << 20
"""Bytes that are read at a time."""
MAX_ROW = 64 << 20
"""Bytes a row may have. One that has more is set aside: every process that reads would have to hold it."""
KEPT = 1000
"""Characters of such a row that are kept."""
PACKED = (".gz", ".bz2", ".xz", ".zst")
"""Endings behind the format's own, as in ``rows.jsonl.gz``."""
UTF16 = (b"\xff\xfe", b"\xfe\xff")
"""Byte order marks with which a UTF-16 file begins."""
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar")
"""Endings of files that hold files."""


@dataclass(frozen=True)
class Unreadable:
    """A line that is no record: a reason code, what was seen, and the line."""

    reason: str
    detail: str
    raw: str


Record = tuple[int, Any]
"""Line, or number of the row where the format has no lines, from 1; and the record, or ``Unreadable``."""


@dataclass(frozen=True)
class Mark:
    """A place from which a file can be read on."""

    row: int = 0
    """Records before it."""
    line: int = 1
    """Line that begins here; number of the record where the format has no lines."""
    offset: int = 0
    """Bytes before it, unpacked."""


START = Mark()


def endings(path: Path) -> tuple[str, str]:
    """The ending that names the format, and the one that names how it is packed, or "": ``rows.jsonl.gz`` is (.jsonl, .gz)."""
    last = path.suffix.lower()
    return (Path(path.stem).suffix.lower(), last) if last in PACKED else (last, "")


def stamp(path: Path) -> tuple[int, int, int]:
    """What tells a file from another one that stands in its place later."""
    facts = path.stat()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


@contextlib.contextmanager
def unpacked(path: Path, offset: int = 0) -> Iterator[IO[bytes]]:
    """The bytes of a file from ``offset`` on. To go to an offset of a packed file costs unpacking all before it.

    Raises:
        DataError: it cannot be opened, or it is packed and damaged or cut off (also while it is read).
    """
    try:
        with _open(path, endings(path)[1]) as file:
            if offset:
                _seek(file, offset)
            yield file
    except PermissionError as error:
        raise DataError(
            f"file {path} cannot be read: got {error.strerror}, because this user has no right to; allow it (chmod)"
        ) from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"file {path} cannot be read: got {type(error).__name__}: {error!s:.160}; it is damaged or cut off, fetch it again"
        ) from None


def _open(path: Path, packing: str) -> IO[bytes]:
    if packing == ".gz":
        return io.BufferedReader(gzip.GzipFile(path, "rb"))
    if packing == ".bz2":
        return bz2.open(path, "rb")
    if packing == ".xz":
        return lzma.open(path, "rb")
    if packing == ".zst":
        import pyarrow as pa

        packed: Any = pa.input_stream(str(path), compression="zstd")
        return io.BufferedReader(packed)
    return path.open("rb")


def _seek(file: IO[bytes], offset: int) -> None:
    if file.seekable():
        file.seek(offset)
        return
    while offset and (block := file.read(min(BLOCK, offset))):
        offset -= len(block)


def lines(file: IO[bytes], at: Mark = START, *, old_mac: bool = False) -> Iterator[tuple[int, int, bytes]]:
    """(Number, offset, bytes) of each line, which ends at "\\n" and keeps it. Of one past ``MAX_ROW`` comes one byte more.

    Args:
        file: stands at the offset of ``at``.
        old_mac: a lone "\\r" ends a line, too.
    """
    number, offset, held = at.line, at.offset, b""
    if not offset and (head := file.read(3)) != b"\xef\xbb\xbf":
        held = head
    elif not offset:
        offset = 3
    while True:
        block = file.read(BLOCK)
        held += block
        if old_mac:
            pieces = held.splitlines(True)
        else:
            pieces = held.split(b"\n")
            last = pieces.pop()
            pieces = [piece + b"\n" for piece in pieces]
            if last:
                pieces.append(last)
        held = b""
        if block and pieces and not pieces[-1].endswith(b"\n"):
            held = pieces.pop()
        for piece in pieces:
            yield number, offset, piece if len(piece) <= MAX_ROW else piece[: MAX_ROW + 1]
            number += 1
            offset += len(piece)
        if not block:
            return
        if len(held) > MAX_ROW:
            size, rest = _pass(file, len(held), old_mac, held.endswith(b"\r"))
            yield number, offset, held[: MAX_ROW + 1]
            number += 1
            offset += size
            held = rest


def _pass(file: IO[bytes], size: int, old_mac: bool, after_cr: bool) -> tuple[int, bytes]:
    """Go behind the end of a line of which ``size`` bytes were read: its bytes in all, and what was read behind it.

    Args:
        file: stands behind these bytes.
        size: how many they are.
        old_mac: a lone "\\r" ends a line, too.
        after_cr: the last of them is one.
    """
    while block := file.read(BLOCK):
        if old_mac and after_cr:
            also = int(block.startswith(b"\n"))
            return size + also, block[also:]
        if old_mac:
            pieces = block.splitlines(True)
            end = len(pieces[0]) if len(pieces) > 1 or pieces[0].endswith(b"\n") else 0
        else:
            end = block.find(b"\n") + 1
        if end:
            return size + end, block[end:]
        size, after_cr = size + len(block), block.endswith(b"\r")
    return size, b""


def text_of(data: bytes) -> str | Unreadable:
    """A line as text."""
    if len(data) > MAX_ROW:
        return too_big("line", data[: 4 * KEPT].decode("utf-8", "backslashreplace"))
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raw = data.rstrip(b"\r\n").decode("utf-8", "backslashreplace")
        return Unreadable("encoding", f"byte 0x{data[error.start]:02x} is not UTF-8{look(data)}", raw)


def too_big(what: str, head: str) -> Unreadable:
    """A row of which only the beginning is kept."""
    return Unreadable("too_big", f"the {what} has more than {MAX_ROW:,} bytes; only its beginning is kept", head[:KEPT])


_HAN = re.compile("[\u4e00-\u9fff]")


def look(data: bytes) -> str:
    """What bytes that are not UTF-8 look like, as the end of a message; "" where nobody can tell."""
    if data.startswith(UTF16):
        return "; by its first two bytes this is UTF-16"
    with contextlib.suppress(UnicodeDecodeError):
        if _HAN.search(codecs.getincrementaldecoder("gb18030")().decode(data[:4096])):
            return "; it reads as GB18030 (GBK)"
    return ""
