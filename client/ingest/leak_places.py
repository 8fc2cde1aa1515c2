"""Where in a stored file text can be, and where there are only numbers."""

import contextlib
import json
import mmap
import sqlite3
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Place = Literal["text", "pixels"]
Part = tuple[int, int, Place]
"""First byte, the one after the last, and what they are."""

MAX_INFLATED_BYTES = 2**24
"""Of one compressed text of a PNG."""
_PNG = b"\x89PNG\r\n\x1a\n"
_SQLITE = b"SQLite format 3\0"
_PIXEL_DATA = (b"\xe0\x7f\x10\x00OW\0\0", b"\xe0\x7f\x10\x00OB\0\0")
_SMALLEST_DATABASE_NUMBER = 10**7
"""Smaller integers of a database are counts and sizes; from here on they can be dates and ids."""


def places(content: mmap.mmap) -> Iterator[Part]:
    """Yield the parts of a file; every byte is in one.

    A file that only looks like one with pixels is text throughout: more is looked for in text than in pixels.
    """
    if content[:8] == _PNG:
        yield 0, len(_PNG), "text"
        for start, stop, kind in _png_chunks(content):
            yield start, stop, "pixels" if kind == b"IDAT" else "text"
        return
    start = _pixel_data_start(content) if content[128:132] == b"DICM" else _tensors_start(content)
    yield 0, start, "text"
    yield start, len(content), "pixels"


def inflated_texts(content: mmap.mmap) -> Iterator[bytes]:
    """Yield the compressed texts of a PNG, nothing of any other file."""
    if content[:8] != _PNG:
        return
    for start, stop, kind in _png_chunks(content):
        if kind in (b"zTXt", b"iTXt"):
            yield from _inflated(content[start + 8 : stop - 4])


def database_values(path: Path) -> Iterator[bytes]:
    """Yield every text, blob and large integer of an SQLite file, nothing of any other; also those that span pages."""
    with path.open("rb") as stream:
        if stream.read(len(_SQLITE)) != _SQLITE:
            return
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        database.text_factory = bytes
        tables = [name.decode() for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            quoted = table.replace('"', '""')
            for row in database.execute(f'SELECT * FROM "{quoted}"'):  # noqa: S608 (a name from the database itself)
                for value in row:
                    if isinstance(value, bytes):
                        yield value
                    elif isinstance(value, int) and abs(value) >= _SMALLEST_DATABASE_NUMBER:
                        yield str(value).encode()


def _tensors_start(content: mmap.mmap) -> int:
    """Where the tensors of a safetensors file begin; the end of any other file."""
    length = struct.unpack("<Q", content[:8])[0] if len(content) >= 10 else len(content)
    if length > len(content) - 8:
        return len(content)
    try:
        header = json.loads(content[8 : 8 + length])
    except (ValueError, RecursionError):
        return len(content)
    return 8 + length if isinstance(header, dict) else len(content)


def _pixel_data_start(content: mmap.mmap) -> int:
    """Where pixel data begin that end the file and have the length they say, as in the copies EchoFed writes; else its end."""
    for mark in _PIXEL_DATA:
        start = content.rfind(mark)
        begin = start + 12
        if (
            0 <= start <= len(content) - 12
            and struct.unpack("<I", content[start + 8 : begin])[0] == len(content) - begin
        ):
            return begin
    return len(content)


def _png_chunks(content: mmap.mmap) -> Iterator[tuple[int, int, bytes]]:
    """First byte, the one after the last, and kind of each chunk; what follows the last whole one is of no kind."""
    position = len(_PNG)
    while position + 12 <= len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        end = min(position + 12 + length, len(content))
        yield position, end, kind
        position = end
    yield position, len(content), b""


def _inflated(chunk: bytes) -> Iterator[bytes]:
    """A PNG's compressed text: wherever in the chunk a zlib stream begins."""
    for start in range(len(chunk) - 1):
        if chunk[start] == 0x78 and (chunk[start] * 256 + chunk[start + 1]) % 31 == 0:
            with contextlib.suppress(zlib.error):
                yield zlib.decompressobj().decompress(chunk[start:], MAX_INFLATED_BYTES)
