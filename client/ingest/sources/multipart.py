"""The one instance in a multipart/related answer, written to disk as it comes.

Libraries for DICOMweb read answers into memory and give datasets, which would have to be encoded anew; this keeps the bytes.
"""

import re
from collections.abc import Callable
from typing import Protocol

from echofed.client.ingest.sources.item import Reason
from echofed.client.ingest.sources.politeness import TransferError

PIECE_BYTES = 2**20
MAX_PART_HEAD_BYTES = 2**13
MAX_EPILOGUE_BYTES = 2**16

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_PART_TYPE = re.compile(rb"^content-type:[ \t]*application/dicom[ \t]*(;|$)", re.IGNORECASE | re.MULTILINE)
_PART_LENGTH = re.compile(rb"^content-length:[ \t]*([0-9]{1,15})[ \t]*$", re.IGNORECASE | re.MULTILINE)


class Readable(Protocol):
    """What an answer's body is read from."""

    def read(self, amt: int, /) -> bytes:
        """Return at most so many bytes; none at the end."""
        ...


def find_boundary(content_type: str) -> bytes:
    """Return the boundary a multipart/related content type names; raises TransferError if it is another type."""
    match = _BOUNDARY.search(content_type)
    if match is None or not content_type.lower().startswith("multipart/related"):
        raise TransferError(Reason.BAD_ANSWER, may_pass=False)
    return (match[1] or match[2]).encode()


def copy_only_part(body: Readable, boundary: bytes, write: Callable[[bytes | memoryview], None]) -> None:
    """Copy the single application/dicom part of a body; memory stays at a few pieces of `PIECE_BYTES`.

    Args:
        body: the answer's.
        boundary: from the content type.
        write: takes the part's content, piece by piece.

    Raises:
        TransferError: the body ends early (may pass), or has no such part or more than one.
    """
    kept = _read_head(body, b"--" + boundary)
    head, _, kept = kept.partition(b"\r\n\r\n")
    # Lines end in \r\n, but $ knows only \n.
    head = head.replace(b"\r\n", b"\n")
    if not _PART_TYPE.search(head):
        raise TransferError(Reason.BAD_ANSWER, may_pass=False)
    length = _PART_LENGTH.search(head)
    delimiter = b"\r\n--" + boundary
    rest = _copy_length(body, kept, int(length[1]), write) if length else _copy_until(body, kept, delimiter, write)
    while len(rest) < len(delimiter) + 2 and (piece := body.read(PIECE_BYTES)):
        rest += piece
    if len(rest) < len(delimiter) + 2:
        raise TransferError(Reason.BROKEN_OFF, may_pass=True)
    if not rest.startswith(delimiter + b"--"):
        raise TransferError(Reason.BAD_ANSWER, may_pass=False)


def is_at_end(body: Readable) -> bool:
    """Read what may stand behind the last boundary, and return whether the body ends with it."""
    left = MAX_EPILOGUE_BYTES
    while left > 0 and (piece := body.read(left)):
        left -= len(piece)
    return left > 0


def _read_head(body: Readable, dash_boundary: bytes) -> bytes:
    """Return the bytes after the first boundary, with at least the part's head."""
    kept = b""
    while True:
        start = kept.find(dash_boundary)
        if start >= 0 and kept.find(b"\r\n\r\n", start) >= 0:
            return kept[start + len(dash_boundary) :]
        if len(kept) > MAX_PART_HEAD_BYTES:
            raise TransferError(Reason.BAD_ANSWER, may_pass=False)
        piece = body.read(MAX_PART_HEAD_BYTES)
        if not piece:
            raise TransferError(Reason.BROKEN_OFF, may_pass=True)
        kept += piece


def _copy_length(body: Readable, kept: bytes, length: int, write: Callable[[bytes | memoryview], None]) -> bytes:
    """Copy so many bytes, and return what was read beyond them."""
    write(memoryview(kept)[:length])
    rest, left = kept[length:], length - len(kept)
    while left > 0:
        piece = body.read(min(left, PIECE_BYTES))
        if not piece:
            raise TransferError(Reason.BROKEN_OFF, may_pass=True)
        write(piece)
        left -= len(piece)
    return rest


def _copy_until(body: Readable, kept: bytes, delimiter: bytes, write: Callable[[bytes | memoryview], None]) -> bytes:
    """Copy what stands before the delimiter, and return what was read from there on."""
    while (end := kept.find(delimiter)) < 0:
        # The delimiter may stand across two pieces.
        sure = max(0, len(kept) - len(delimiter))
        write(memoryview(kept)[:sure])
        piece = body.read(PIECE_BYTES)
        if not piece:
            raise TransferError(Reason.BROKEN_OFF, may_pass=True)
        kept = kept[sure:] + piece
    write(memoryview(kept)[:end])
    return kept[end:]
