"""Grey frames as PNG, with the standard library alone."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_QUICK = 1
_GREY_8_BIT = bytes((8, 0, 0, 0, 0))


def grey_png(frame: NDArray[np.uint8]) -> bytes:
    """Return a frame, uint8 [rows, columns], as a PNG file that decodes to exactly it."""
    rows, columns = frame.shape
    lines = np.zeros((rows, columns + 1), np.uint8)  # each begins with its filter: none
    lines[:, 1:] = frame
    header = struct.pack(">II", columns, rows) + _GREY_8_BIT
    content = zlib.compress(lines.tobytes(), _QUICK)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", content) + _chunk(b"IEND", b"")


def smaller(frame: NDArray[np.uint8], most_px: int) -> NDArray[np.uint8]:
    """Return a frame whose longer side has at most `most_px` pixels: the means of square blocks, its rests left out."""
    step = -(-max(frame.shape) // most_px)
    if step <= 1:
        return frame
    rows, columns = (max(1, side // step) for side in frame.shape)
    blocks = np.asarray(frame[: rows * step, : columns * step])
    tall, wide = min(step, blocks.shape[0]), min(step, blocks.shape[1])
    small: NDArray[np.uint8] = blocks.reshape(rows, tall, columns, wide).mean(axis=(1, 3)).astype(np.uint8)
    return small


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
