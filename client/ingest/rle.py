"""RLE Lossless (PS3.5, annex G), decoded to no more than was announced."""

import struct
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from echofed.client.ingest.outcomes import SetAsideError, Why


def decode_rle(frame: bytes, pixels: int, segments: int) -> NDArray[np.uint8]:
    """Return the decoded segments, uint8 [segments, pixels].

    Args:
        frame: header of 64 bytes and segments.
        pixels: bytes a segment decodes to; padding behind them is left out.
        segments: samples a pixel times bytes a sample.

    Raises:
        SetAsideError: DECODER_FAILED for a header that fits neither, DECODER_DISAGREES for a segment that is too short.
    """
    if len(frame) < 64:
        raise SetAsideError(Why.DECODER_FAILED)
    count, *offsets = struct.unpack("<16I", frame[:64])
    bounds = [*offsets[:segments], len(frame)]
    if count != segments or bounds[0] < 64 or sorted(bounds) != bounds:
        raise SetAsideError(Why.DECODER_FAILED)
    planes = [_decode_segment(frame[start:end], pixels) for start, end in pairwise(bounds)]
    return np.frombuffer(b"".join(planes), np.uint8).reshape(segments, pixels)


def _decode_segment(segment: bytes, pixels: int) -> bytes:
    out, at, end = bytearray(), 0, len(segment)
    while len(out) < pixels and at < end:
        head = segment[at]
        if head < 128:
            stop = at + 2 + head
            out += segment[at + 1 : stop]
            at = stop
        elif head > 128:
            out += segment[at + 1 : at + 2] * (257 - head)
            at += 2
        else:
            at += 1
    if len(out) < pixels:
        raise SetAsideError(Why.DECODER_DISAGREES)
    return bytes(out[:pixels])
