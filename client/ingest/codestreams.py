"""What a compressed frame announces about itself, read before a decoder sees it."""

import struct
from dataclasses import dataclass

from echofed.client.ingest.outcomes import SetAsideError, Why

# Start-of-frame markers (ITU-T T.81, table B.1; T.87) by coding process.
SEQUENTIAL = frozenset({0xC0, 0xC1})
LOSSLESS = frozenset({0xC3})
JPEG_LS = frozenset({0xF7})

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | JPEG_LS
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_MOST_TILES = 4096


@dataclass(frozen=True)
class Announced:
    """What a code stream says it holds; `plain_colour` if it says that its colours are not to be transformed."""

    process: int
    rows: int
    columns: int
    components: int
    precision: int
    plain_colour: bool = False


def read_jpeg(frame: bytes) -> Announced:
    """Return what a JPEG or JPEG-LS stream announces.

    Raises:
        SetAsideError: DECODER_FAILED if it has no frame header.
    """
    at, has_colour_marker = 2, False
    while at + 4 <= len(frame):
        if frame[at] != 0xFF:
            break
        marker = frame[at + 1]
        if marker == 0xFF or marker in _STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(frame[at + 2 : at + 4], "big")
        segment = frame[at + 4 : at + 2 + length]
        if marker in _FRAMES:
            return _frame_header(marker, segment, has_colour_marker)
        has_colour_marker |= (marker == 0xE0 and segment[:4] == b"JFIF") or (marker == 0xEE and segment[:5] == b"Adobe")
        if marker in (0xD9, 0xDA) or length < 2:
            break
        at += 2 + length
    raise SetAsideError(Why.DECODER_FAILED)


def _frame_header(marker: int, segment: bytes, has_colour_marker: bool) -> Announced:
    if len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
        raise SetAsideError(Why.DECODER_FAILED)
    precision, rows, columns, components = struct.unpack(">BHHB", segment[:6])
    return Announced(marker, rows, columns, components, precision, not has_colour_marker)


def read_jpeg_2000(frame: bytes) -> Announced:
    """Return what a JPEG 2000 code stream announces (ITU-T T.800, A.5.1).

    Raises:
        SetAsideError: DECODER_FAILED without a size marker or with subsampled, signed or unequal components or an
            absurd number of tiles.
    """
    if frame[2:4] != b"\xff\x51" or len(frame) < 42:
        raise SetAsideError(Why.DECODER_FAILED)
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, components = struct.unpack(
        ">8IH", frame[8:42]
    )
    kinds = {frame[at : at + 3] for at in range(42, 42 + 3 * min(components, 4), 3)}
    depth = min(kinds, default=b"\xff")
    if len(kinds) != 1 or depth[1:] != b"\1\1" or depth[0] & 0x80 or min(tile_width, tile_height) == 0:
        raise SetAsideError(Why.DECODER_FAILED)
    tiles = -(-(right - tile_left) // tile_width) * -(-(bottom - tile_top) // tile_height)
    if not 0 < tiles <= _MOST_TILES:
        raise SetAsideError(Why.DECODER_FAILED)
    return Announced(0x51, bottom - top, right - left, components, (depth[0] & 0x7F) + 1)
