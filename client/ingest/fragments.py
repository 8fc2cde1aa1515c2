"""Where the frames of compressed pixel data lie, found without reading them."""

import struct
from typing import BinaryIO

from echofed.client.ingest.outcomes import SetAsideError, Why

Fragment = tuple[int, int]
"""Where a fragment starts, and its bytes."""

MOST_FRAGMENTS = 2**17

_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD


def find_frames(stream: BinaryIO, frames: int, opening: bytes) -> list[list[Fragment]]:
    """Return the fragments of each frame.

    Offset tables are not trusted: a frame starts where a fragment starts with the bytes that open a code stream.

    Args:
        stream: encapsulated pixel data (PS3.5, A.4), from its offset table on.
        frames: how many the header announces.
        opening: the first two bytes of a frame; b"" where each fragment is a frame (RLE).

    Raises:
        SetAsideError: DAMAGED if items are not as announced, DECODER_DISAGREES if they hold another number of frames,
            TOO_LARGE with more than 131,072 fragments.
    """
    found: list[list[Fragment]] = []
    for fragment, start in _fragments(stream):
        if start.startswith(opening):
            found.append([fragment])
        elif not found:
            raise SetAsideError(Why.DECODER_DISAGREES)
        else:
            found[-1].append(fragment)
    if len(found) != frames:
        raise SetAsideError(Why.DECODER_DISAGREES)
    return found


def read_frame(stream: BinaryIO, fragments: list[Fragment], most_bytes: int) -> bytes:
    """Return a frame's code stream.

    Raises:
        SetAsideError: DECODER_DISAGREES if it is longer than `most_bytes` or the file has become shorter.
    """
    if sum(size for _, size in fragments) > most_bytes:
        raise SetAsideError(Why.DECODER_DISAGREES)
    parts = []
    for start, size in fragments:
        stream.seek(start)
        parts.append(stream.read(size))
        if len(parts[-1]) < size:
            raise SetAsideError(Why.DECODER_DISAGREES)
    return b"".join(parts)


def _fragments(stream: BinaryIO) -> list[tuple[Fragment, bytes]]:
    """Return all fragments but the offset table, each with its first two bytes."""
    size = stream.seek(0, 2)
    at, found = 0, list[tuple[Fragment, bytes]]()
    while size - at >= 8:
        stream.seek(at)
        head = stream.read(10)
        group, number, length = struct.unpack("<HHI", head[:8])
        tag = group << 16 | number
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM or length > size - at - 8:
            raise SetAsideError(Why.DAMAGED)
        if length or at == 0:
            found.append(((at + 8, length), head[8:]))
        if len(found) > MOST_FRAGMENTS:
            raise SetAsideError(Why.TOO_LARGE)
        at += 8 + length
    return found[1:]
