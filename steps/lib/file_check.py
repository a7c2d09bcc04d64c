"""Whether a file is one of rows at all: looked at as a whole, before any step reads it."""

from __future__ import annotations

import codecs
from pathlib import Path

from steps.lib import lines
from steps.lib.errors import DataError
from steps.lib.formats import JSON, SUFFIXES, Way, survey
from steps.lib.json_shape import shape_of
from steps.lib.tables import check_table


def check(path: Path, way: Way) -> None:
    """Look at a file as a whole: its bytes are read once (a JSON list is parsed once), a Parquet file's footer only.

    Raises:
        DataError: missing, of no known format, of 0 bytes, damaged or cut off, not UTF-8, or JSON without an end.
    """
    try:
        there = path.is_file()
    except OSError as error:
        raise DataError(
            f"file {path} cannot be read: got {error.strerror}; allow it (chmod), or correct the path"
        ) from None
    if not there:
        got = "no such file"
        if path.is_symlink():
            got = "a link that leads to nothing or to itself"
        elif path.exists():
            got = "a folder" if path.is_dir() else "no file but a device or a pipe"
        raise DataError(
            f"file {path} is missing: got {got}, because the configuration names it; correct the path "
            "(relative ones start at the working directory)"
        )
    suffix, packing = lines.endings(path)
    if suffix in lines.ARCHIVES:
        raise DataError(
            f"file {path} is an archive: got {suffix}{packing}, and nothing was unpacked, because names inside an archive can "
            "lead anywhere; unpack it and name the file or the folder"
        )
    if suffix not in SUFFIXES or packing and suffix == ".parquet":
        raise DataError(
            f"file {path} is of no known format: got {suffix}{packing}" + ("" if suffix or packing else "no suffix")
            + f"; known are {', '.join(SUFFIXES)}, all but .parquet also with {', '.join(lines.PACKED)}"
        )  # fmt: skip
    if path.stat().st_size == 0:
        raise DataError(f"file {path} is empty: got 0 bytes; give a file with rows")
    if suffix == ".parquet":
        check_table(path)
        return
    _check_text(path)
    if suffix in JSON and shape_of(path).kind != "lines":
        survey(path, way)


MAGIC = {b"PAR1": "Parquet", b"PK\x03\x04": "a ZIP archive", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd",
         b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"%PDF": "PDF", b"ARROW1": "Arrow"}  # fmt: skip
"""First bytes -> what a file is, whatever its name says."""


def _check_text(path: Path) -> None:
    """Read the bytes once.

    Raises:
        DataError: packed and damaged; another format; or in another encoding: of the lines that are not plain
            ASCII, most are not UTF-8, and these are more than one in a hundred. Fewer are bad rows.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with lines.unpacked(path) as file:
        head = block = file.read(lines.BLOCK)
        for magic, name in MAGIC.items():
            if head.startswith(magic) and (b"\0" in head or not _utf8(head[:40])):
                raise DataError(
                    f"file {path} is not what its name says: got the first bytes of {name}; name it by its format, or unpack it"
                )
        if head.count(0) > len(head) // 4 and not head.startswith(lines.UTF16):
            raise DataError(
                f"file {path} is no text: got NUL in more than a quarter of its first bytes, because it is UTF-16 or no text at "
                "all; save it as UTF-8"
            )
        try:
            while block:
                decoder.decode(block)
                block = file.read(lines.BLOCK)
            decoder.decode(b"", final=True)
            return
        except UnicodeDecodeError:
            pass
    first: tuple[int, int, str] | None = None
    bad = good = plain = 0
    with lines.unpacked(path) as file:
        for number, _, data in lines.lines(file):
            if data.isascii():
                plain += 1
                continue
            try:
                data[: lines.MAX_ROW].decode()
                good += 1
            except UnicodeDecodeError as error:
                bad += 1
                first = first or (number, data[error.start], lines.look(data if number > 1 else head))
    if first and (head.startswith(lines.UTF16) or bad > good and bad * 100 > bad + good + plain):
        raise DataError(
            f"file {path} is not UTF-8: got byte 0x{first[1]:02x} in line {first[0]}{first[2]}, "
            "because it was saved in another encoding (GBK, UTF-16?); save it as UTF-8"
        )


def _utf8(data: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(data)
    except UnicodeDecodeError:
        return False
    return True
