"""Greatest, least and sum over windows around each pixel, in whole numbers; many times as fast as general filters."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from echofed.client.ingest.geometry import Pixels

Whole = NDArray[Any]
"""Numbers of one unsigned type."""


def largest(picture: Pixels, rows: int, columns: int) -> Pixels:
    """Return the greatest value in the window around each pixel; beyond the edge there is nothing.

    Args:
        picture: uint8 [height, width].
        rows, columns: of the window, odd.
    """
    return _extreme(_extreme(picture, rows, 0, np.maximum, 0), columns, 1, np.maximum, 0)


def smallest(picture: Pixels, rows: int, columns: int) -> Pixels:
    """Return the least value in the window around each pixel; as `largest`."""
    return _extreme(_extreme(picture, rows, 0, np.minimum, 255), columns, 1, np.minimum, 255)


def opened(picture: Pixels, side: int) -> Pixels:
    """Return the picture without what is lighter than its ground and narrower than a square (grey opening).

    Args:
        picture: uint8 [height, width].
        side: of the square, odd.
    """
    return largest(smallest(picture, side, side), side, side)


def counts(marks: NDArray[np.bool_], rows: int, columns: int) -> NDArray[np.uint16]:
    """Return how many pixels are marked in the window around each; an even window has one more before it than after.

    Args:
        marks: bool [height, width].
        rows, columns: of the window, at most 255 rows and 65,535 pixels.
    """
    down = _sums(_padded(marks.view(np.uint8), rows, 0, 0), rows, 0)
    return _sums(_padded(down, columns, 1, 0).astype(np.uint16), columns, 1)


def _extreme(picture: Pixels, size: int, axis: int, combine: np.ufunc, empty: int) -> Pixels:
    """Return the extreme of `size` neighbours along an axis, from extremes of 2, 4, 8 and so on."""
    found, width = _padded(picture, size, axis, empty), 1
    while width < size:
        step = min(width, size - width)
        found = combine(_from(found, 0, -step, axis), _from(found, step, None, axis))
        width += step
    return found


def _sums(padded: Whole, size: int, axis: int) -> Whole:
    """Return the sums of `size` neighbours along an axis, put together from sums of 1, 2, 4 and so on."""
    length = padded.shape[axis] - size + 1
    total = np.zeros_like(_from(padded, 0, length, axis))
    part, width, start = padded, 1, 0
    while True:
        if size & width:
            total += _from(part, start, start + length, axis)
            start += width
        if start == size:
            return total
        part = _from(part, 0, -width, axis) + _from(part, width, None, axis)
        width *= 2


def _padded(values: NDArray[np.uint8], size: int, axis: int, empty: int) -> NDArray[np.uint8]:
    before, after = size // 2, (size - 1) // 2
    length, shape = values.shape[axis], list(values.shape)
    shape[axis] += size - 1
    padded = np.empty(shape, np.uint8)
    _from(padded, 0, before, axis)[...] = empty
    _from(padded, before, before + length, axis)[...] = values
    _from(padded, before + length, before + length + after, axis)[...] = empty
    return padded


def _from(values: Whole, start: int, stop: int | None, axis: int) -> Whole:
    return values[start:stop] if axis == 0 else values[:, start:stop]
