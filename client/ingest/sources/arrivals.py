"""The few values of an instance's header that a source checks.

Found by stepping over everything else: whatever the file claims, memory stays small and nothing is decoded or warned of. It
spares reading what is not wanted, no more: each instance is judged again on what its reader makes of it (`arrival_check`).
"""

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from echofed.client.ingest.outcomes import Why
from echofed.client.ingest.sources.filters import Selection

MAX_INFLATED_BYTES = 2**20
MAX_VALUE_BYTES = 2**10
MAX_ELEMENTS = 100_000
TAGS = {
    "SOPInstanceUID": 0x00080018,
    "StudyDate": 0x00080020,
    "AccessionNumber": 0x00080050,
    "Modality": 0x00080060,
    "StationName": 0x00081010,
    "PatientID": 0x00100020,
    "BodyPartExamined": 0x00180015,
    "StudyInstanceUID": 0x0020000D,
}
_LAST = max(TAGS.values())
_TRANSFER_SYNTAX = 0x00020010
_IMPLICIT, _BIG_ENDIAN, _DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF


class _UnreadableError(Exception):
    """The header is not what it should be."""


@dataclass(frozen=True)
class _Encoding:
    is_implicit: bool
    order: str


def ascii_text(value: bytes) -> str:
    """Return a value without its padding; empty if it is not ASCII, for then it takes the character set to compare it."""
    return value.decode("ascii").strip(" \0") if value.isascii() else ""


def read_values(path: Path) -> Mapping[str, str] | None:
    """Return the checked values of a file's header by keyword, empty where there is none; None if it cannot be read so."""
    try:
        with path.open("rb") as stream:
            return _read_header(stream)
    except (_UnreadableError, OSError, zlib.error):
        return None


def judge(path: Path, selection: Selection, expected_patient: str | None) -> Why | None:
    """Return what speaks against an instance that has arrived: another patient, or the filters; None if nothing does so far."""
    values = read_values(path)
    if values is None:
        return None
    patient, expected = values["PatientID"], (expected_patient or "").strip()
    if expected and expected.isascii() and patient and patient != expected:
        return Why.WRONG_PATIENT
    return selection.why_not(lambda keyword: values[keyword])


def _read_header(stream: BinaryIO) -> dict[str, str]:
    if stream.read(132)[128:] != b"DICM":
        stream.seek(0)
    start, syntax = stream.tell(), b""
    for tag, value, offset in _elements(stream, _Encoding(is_implicit=False, order="<"), stop_after_group=2):
        syntax = value if tag == _TRANSFER_SYNTAX else syntax
        start = offset
    stream.seek(start)
    name = ascii_text(syntax)
    if not name:
        first = stream.read(6)
        stream.seek(start)
        name = "" if first[4:6].isalpha() and first[4:6].isupper() else _IMPLICIT
    if name == _DEFLATED:
        packed = stream.read(MAX_INFLATED_BYTES)
        stream = io.BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, MAX_INFLATED_BYTES))
    encoding = _Encoding(name == _IMPLICIT, ">" if name == _BIG_ENDIAN else "<")
    found = {tag: value for tag, value, _ in _elements(stream, encoding)}
    return {keyword: ascii_text(found.get(tag, b"")) for keyword, tag in TAGS.items()}


def _elements(
    stream: BinaryIO, encoding: _Encoding, stop_after_group: int | None = None
) -> Iterator[tuple[int, bytes, int]]:
    """Yield tag, value and the offset behind it of the short elements outside sequences, up to the last that is looked for."""
    depth = 0
    for _ in range(MAX_ELEMENTS):
        head = stream.read(8)
        if len(head) < 8:
            return
        group, element = struct.unpack(encoding.order + "HH", head[:4])
        tag = group << 16 | element
        past = tag > _LAST if stop_after_group is None else group != stop_after_group
        if past and depth == 0:
            return
        length = _length(stream, encoding, head, tag)
        if tag in (_ITEM_END, _SEQUENCE_END):
            depth -= 1
        elif length == _UNDEFINED:
            depth += 1
        elif depth == 0 and length <= MAX_VALUE_BYTES:
            value = stream.read(length)
            yield tag, value, stream.tell()
        else:
            stream.seek(length, io.SEEK_CUR)
        if depth < 0:
            raise _UnreadableError
    raise _UnreadableError


def _length(stream: BinaryIO, encoding: _Encoding, head: bytes, tag: int) -> int:
    if encoding.is_implicit or tag in (_ITEM, _ITEM_END, _SEQUENCE_END):
        return int(struct.unpack(encoding.order + "L", head[4:])[0])
    if not (head[4:6].isalpha() and head[4:6].isupper()):
        raise _UnreadableError
    if head[4:6] not in _LONG:
        return int(struct.unpack(encoding.order + "H", head[6:])[0])
    rest = stream.read(4)
    if len(rest) < 4:
        raise _UnreadableError
    length = int(struct.unpack(encoding.order + "L", rest)[0])
    if head[4:6] == b"UN" and length == _UNDEFINED:
        # Its items are encoded in another way.
        raise _UnreadableError
    return length
