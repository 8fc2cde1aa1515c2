"""Our own detector of writing, without text recognition: pen strokes are uniform, thin and sharply edged; echoes are not."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from echofed.client.ingest.geometry import Box, Pixels

_THIN_PX = 9
_MIN_CONTRAST = 40
_MIN_SATURATION = 50
_WINDOW_PX = (12, 48)
MIN_PENS, MIN_DARK_PENS = 28, 20
"""Pen pixels in a window that make writing, lighter or darker than its ground. Phantoms have up to 25 and 14, words of 9 px at
least 22 light ones; grey words on a brighter fascia are darker than it."""


def pen_pixels(picture: Pixels) -> NDArray[np.bool_]:
    """Return the pixels that look like a pen's: on a thin, flat, sharply edged stroke, or of a colour echoes do not have.

    Args:
        picture: grey uint8 [height, width] or RGB [height, width, 3].
    """
    if picture.ndim == 2:
        return _strokes(picture, _MIN_CONTRAST)
    most = picture.max(2)
    saturation = most - picture.min(2)
    pens = _strokes(most, _MIN_CONTRAST)
    return pens | _strokes(saturation, _MIN_SATURATION) if saturation.max() > _MIN_SATURATION else pens


def _strokes(plane: Pixels, min_contrast: int) -> NDArray[np.bool_]:
    """Return where a plane has flat, thin strokes that reach their full contrast within a pixel or two."""
    level = plane.astype(np.int16)
    most = ndimage.maximum_filter(level, 3)
    least = ndimage.minimum_filter(level, 3)
    edge = most - least
    around = ndimage.maximum_filter(level, 7) - ndimage.minimum_filter(level, 7)
    thin = level - ndimage.grey_opening(level, (_THIN_PX, _THIN_PX))
    sharp = (edge > min_contrast) & (edge >= 0.85 * around)
    flat = (most - level) <= 0.12 * edge
    return np.asarray(sharp & flat & (thin > 0.7 * edge))


def find_strokes(picture: Pixels, ignored: NDArray[np.bool_] | None = None) -> tuple[Box, ...]:
    """Return boxes where pen pixels crowd as they do in writing; deliberately finds too much rather than too little.

    Args:
        picture: grey uint8 [height, width] or RGB [height, width, 3].
        ignored: pixels that do not count, bool [height, width].
    """
    grey = picture if picture.ndim == 2 else picture.max(2)
    bright, dark = pen_pixels(picture), _strokes(255 - grey, _MIN_CONTRAST)
    if ignored is not None:
        bright, dark = bright & ~ignored, dark & ~ignored
    return crowded(bright) + crowded(dark, MIN_DARK_PENS)


def crowded(pens: NDArray[np.bool_], enough: int = MIN_PENS) -> tuple[Box, ...]:
    """Return boxes around windows of 12 x 48 px that hold at least `enough` pen pixels, overlapping ones joined."""
    share = ndimage.uniform_filter(pens.astype(np.float32), _WINDOW_PX, mode="constant")
    centres = share * (_WINDOW_PX[0] * _WINDOW_PX[1]) >= enough - 0.5
    labels, _ = ndimage.label(ndimage.maximum_filter(centres, (_WINDOW_PX[0] + 1, _WINDOW_PX[1] + 1), mode="constant"))
    return tuple(
        Box(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in ndimage.find_objects(labels)
    )
