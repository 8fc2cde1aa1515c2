"""Finding the tissue in frames whose file does not say where it is."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from echofed.client.ingest.colours import brightest
from echofed.client.ingest.geometry import Box, Pixels

Cells = NDArray[np.float64]
Mask = NDArray[np.bool_]

_CELLS_A_SIDE = 100
_MOST_FRAMES = 16

# Of the pixels around a cell: tissue is lit nearly everywhere and no two pixels of it are alike; writing leaves most
# pixels dark, and banners are flat.
_LEAST_LIT = 0.55
_LEAST_TEXTURE = 0.4
_LIT_LEVELS = 4
_MOVED_LEVELS = 10
_LEAST_MOVED = 0.1

_LEAST_AREA = 0.08
_LEAST_SOLIDITY = 0.8
_LEAST_DOMINANCE = 0.75
_LEAST_MOTION_INSIDE = 0.8


def find_tissue(frames: Sequence[Pixels]) -> Box | None:
    """Return the box around the tissue, or None where it is not certain.

    Tissue is the one large, convex, textured part of the frame (a sector, a trapezium or a rectangle); in a clip it is also
    where things move. It is not certain where it covers less than 8% of the frame, where it is not nearly convex, where
    another part comes near its size, or where much moves outside. The box is exact to about 1% of the shorter side.

    Args:
        frames: at least one, all of one size, uint8 [h, w] or [h, w, 3]; up to 16 of them are looked at.
    """
    if not frames or min(frames[0].shape[:2]) < 2 * _CELLS_A_SIDE // 3:
        return None
    chosen = [frames[place] for place in sorted(set(np.linspace(0, len(frames) - 1, _MOST_FRAMES).astype(int)))]
    greys = np.stack([brightest(frame) for frame in chosen])
    side = max(2, min(greys.shape[1:]) // _CELLS_A_SIDE)
    textured = _textured(greys, side)
    labels, count = ndimage.label(textured)
    if count == 0:
        return None
    areas = np.bincount(labels.ravel())[1:]
    part = labels == areas.argmax() + 1
    if areas.max() < _LEAST_AREA * part.size or areas.max() < _LEAST_DOMINANCE * areas.sum():
        return None
    part = ndimage.binary_fill_holes(part)
    if _solidity(part) < _LEAST_SOLIDITY or not _moves_inside(greys, part, side):
        return None
    return _box(part, side, *greys.shape[1:])


def _textured(greys: NDArray[np.uint8], side: int) -> Mask:
    """Return which cells look like tissue, thin bridges to what is beside it cut."""
    levels = sum(np.array(Image.fromarray(grey).histogram()) for grey in greys)
    background = int(np.asarray(levels)[:96].argmax())
    lit = _share(greys > background + _LIT_LEVELS)
    differs = np.zeros(greys.shape[1:])
    differs[:, :-1] = _share(greys[:, :, 1:] != greys[:, :, :-1])
    mask = (_around(_cells(lit, side)) >= _LEAST_LIT) & (_around(_cells(differs, side)) >= _LEAST_TEXTURE)
    closed = ndimage.binary_closing(np.pad(mask, 4), iterations=3, structure=_DISC)[4:-4, 4:-4]
    opened: Mask = ndimage.binary_opening(ndimage.binary_fill_holes(closed), iterations=4, structure=_DISC)
    return opened


def _share(marks: NDArray[np.bool_]) -> Cells:
    """Return in which share of the frames, at most 16, each pixel is marked."""
    share: Cells = marks.view(np.uint8).sum(axis=0, dtype=np.uint8) / len(marks)
    return share


_DISC = ndimage.generate_binary_structure(2, 1)


def _cells(values: NDArray[np.floating], side: int) -> Cells:
    """Return means over squares of `side` pixels; what does not fill a square at the end is left out."""
    rows, columns = values.shape[0] // side, values.shape[1] // side
    whole = values[: rows * side, : columns * side].reshape(rows, side, columns, side)
    means: Cells = whole.mean(axis=(1, 3))
    return means


def _around(cells: Cells) -> Cells:
    means: Cells = ndimage.uniform_filter(cells, 3, mode="nearest")
    return means


def _solidity(part: Mask) -> float:
    """Return the share that a part has of its convex hull, both as polygons over its rows."""
    rows = np.flatnonzero(part.any(axis=1))
    lefts = part.argmax(axis=1)[rows]
    rights = part.shape[1] - part[:, ::-1].argmax(axis=1)[rows]
    hull = _chain(rows, rights, 1) - _chain(rows, lefts, -1)
    return float(part.sum() / hull.sum())


def _chain(rows: NDArray[np.intp], edge: NDArray[np.intp], sign: int) -> Cells:
    """Return the convex hull's edge in each row (Andrew's monotone chain)."""
    chain: list[tuple[int, int]] = []
    for point in zip(rows.tolist(), (sign * edge).tolist(), strict=True):
        while len(chain) >= 2 and _turns_out(chain[-2], chain[-1], point):
            chain.pop()
        chain.append(point)
    corners = np.array(chain)
    edges: Cells = sign * np.interp(rows, corners[:, 0], corners[:, 1])
    return edges


def _turns_out(first: tuple[int, int], middle: tuple[int, int], last: tuple[int, int]) -> bool:
    rise = (middle[1] - first[1]) * (last[0] - first[0])
    return rise <= (last[1] - first[1]) * (middle[0] - first[0])


def _moves_inside(greys: NDArray[np.uint8], part: Mask, side: int) -> bool:
    """Return whether what moves lies in the part; true where nothing moves."""
    if len(greys) < 2:
        return True
    moved = (greys.max(axis=0) - greys.min(axis=0)) > _MOVED_LEVELS
    cells = _around(_cells(moved.astype(np.float64), side)) >= _LEAST_MOVED
    if not cells.any():
        return True
    return bool(cells[ndimage.binary_dilation(part, iterations=2)].sum() >= _LEAST_MOTION_INSIDE * cells.sum())


def _box(part: Mask, side: int, height: int, width: int) -> Box:
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    bottom, right = (int(rows[-1]) + 1) * side, (int(columns[-1]) + 1) * side
    return Box(int(rows[0]) * side, int(columns[0]) * side, min(bottom, height), min(right, width))
