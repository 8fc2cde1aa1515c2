"""Our own detector of writing, without text recognition: echoes are not thin, flat, sharply edged strokes, and have no colour."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from echofed.client.ingest.colours import brightest, darkest
from echofed.client.ingest.geometry import Box, Pixels
from echofed.client.ingest.windows import counts, largest, opened, smallest

_THIN_PX = 9
_MIN_CONTRAST = 40
_MIN_SATURATION = 50
_DARK = 20
_WINDOW_PX = (12, 48)
MIN_PENS, MIN_DARK_PENS = 28, 20
"""Pen pixels in a window that make writing, lighter or darker than its ground. Phantoms have up to 25 and 14, words of 9 px at
least 22 light ones; grey words on a brighter fascia are darker than it."""


@dataclass(frozen=True)
class _Edges:
    """A plane, uint8 [height, width], with the least and the greatest of each 3 x 3 px, and where its sharp edges are.

    `places` are numbers of pixels, row by row; `contrasts` are those of their edges.
    """

    plane: Pixels
    least: Pixels
    most: Pixels
    places: NDArray[np.intp]
    contrasts: Pixels


def pen_pixels(picture: Pixels) -> NDArray[np.bool_]:
    """Return the pixels that look like a pen's: on a thin, flat, sharply edged stroke, or of a colour echoes do not have.

    Args:
        picture: grey uint8 [height, width] or RGB [height, width, 3].
    """
    brightness, saturation = _planes(picture)
    return _pens(_edges(brightness, _MIN_CONTRAST), saturation)


def _planes(picture: Pixels) -> tuple[Pixels, Pixels | None]:
    """Return each pixel's brightness and saturation, None for it where no pixel is strongly coloured."""
    if picture.ndim == 2:
        return picture, None
    most = brightest(picture)
    saturation = most - darkest(picture)
    return most, saturation if saturation.max() > _MIN_SATURATION else None


def _pens(edges: _Edges, saturation: Pixels | None) -> NDArray[np.bool_]:
    light = _light_strokes(edges)
    if saturation is None:
        return light
    return light | _light_strokes(_edges(saturation, _MIN_SATURATION)) | _coloured(edges.plane, saturation)


def _coloured(brightness: Pixels, saturation: Pixels) -> NDArray[np.bool_]:
    """Return the pixels with far more colour for their brightness than most: soft writing, marks, flow.

    A tint of the whole picture, as on screens that show echoes in sepia, is none.
    """
    lit = brightness > _DARK
    tint = float(np.median(saturation[lit] / brightness[lit])) if lit.any() else 0.0
    return np.asarray(saturation > brightness * tint + _MIN_SATURATION)


def _edges(plane: Pixels, min_contrast: int) -> _Edges:
    """Return where a plane reaches its full contrast within a pixel or two."""
    least, most = smallest(plane, 3, 3), largest(plane, 3, 3)
    edge = most - least
    around = largest(plane, 7, 7) - smallest(plane, 7, 7)
    # 85% of the contrast around, in whole numbers.
    steep = np.multiply(edge, 20, dtype=np.uint16) >= np.multiply(around, 17, dtype=np.uint16)
    places = np.flatnonzero((edge > min_contrast) & steep)
    return _Edges(plane, least, most, places, edge.ravel()[places])


def _light_strokes(edges: _Edges) -> NDArray[np.bool_]:
    """Return where a plane has flat, thin strokes on a darker ground."""
    return _strokes(edges, edges.most - edges.plane, edges.plane - opened(edges.plane, _THIN_PX))


def _dark_strokes(edges: _Edges) -> NDArray[np.bool_]:
    """Return where a plane has flat, thin strokes on a lighter ground."""
    inverse = 255 - edges.plane
    return _strokes(edges, edges.plane - edges.least, inverse - opened(inverse, _THIN_PX))


def _strokes(edges: _Edges, depth: Pixels, height: Pixels) -> NDArray[np.bool_]:
    """Return which sharp edges are strokes: hardly below the top of their edge, well above their ground."""
    strokes = np.zeros(edges.plane.shape, np.bool_)
    flat = depth.ravel()[edges.places] <= 0.12 * edges.contrasts
    thin = height.ravel()[edges.places] > 0.7 * edges.contrasts
    strokes.ravel()[edges.places[flat & thin]] = True
    return strokes


def find_strokes(picture: Pixels, ignored: NDArray[np.bool_] | None = None) -> tuple[Box, ...]:
    """Return boxes where pen pixels crowd as they do in writing; deliberately finds too much rather than too little.

    Args:
        picture: grey uint8 [height, width] or RGB [height, width, 3].
        ignored: pixels that do not count, bool [height, width].
    """
    brightness, saturation = _planes(picture)
    edges = _edges(brightness, _MIN_CONTRAST)
    bright, dark = _pens(edges, saturation), _dark_strokes(edges)
    if ignored is not None:
        bright, dark = bright & ~ignored, dark & ~ignored
    return crowded(bright) + crowded(dark, MIN_DARK_PENS)


def crowded(pens: NDArray[np.bool_], enough: int = MIN_PENS) -> tuple[Box, ...]:
    """Return boxes around windows of 12 x 48 px that hold at least `enough` pen pixels, overlapping ones joined."""
    if np.count_nonzero(pens) < enough:
        return ()
    centres = counts(pens, *_WINDOW_PX) >= enough
    if not centres.any():
        return ()
    height, width = _WINDOW_PX
    labels, _ = ndimage.label(largest(centres.view(np.uint8), height + 1, width + 1))
    return tuple(
        Box(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in ndimage.find_objects(labels)
    )
