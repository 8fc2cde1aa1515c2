"""What does not move over a clip: writing, rulers and marks laid over moving tissue, told from tissue that is merely slow."""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage

from echofed.client.ingest.geometry import Pixels
from echofed.client.ingest.strokes import crowded, pen_pixels
from echofed.client.ingest.windows import largest, opened, smallest

MIN_CINE_FRAMES = 5
_MOVING_STDDEV = 4.0
_MIN_MOVING_SHARE = 0.15
_RIGID_STDDEV = 0.75
_STILL_SHARE = 0.35
_DARK = 40
_NEIGHBOURHOOD_CELLS, _RANK = 10, 60
"""Of 2 x 2 px, in a square: more than 60 of its 100 move."""
_CELLS_AT_ONCE = 2**14
_MIN_MARK_PX = 6
_LINE_PX = 60
_THICK_PX = 9
_STRIP_ROWS = 16


@dataclass(frozen=True)
class ClipStatistics:
    """Each pixel over a clip: `mean`, `stddev` (float32), `least` and `most` (uint8), all [height, width]."""

    mean: NDArray[np.float32]
    stddev: NDArray[np.float32]
    least: Pixels
    most: Pixels


def clip_statistics(frames: Pixels) -> ClipStatistics:
    """Return each pixel's mean, spread and extremes, in one pass and without a copy of the clip.

    Args:
        frames: grey uint8 [count, height, width], count >= 1.

    Reference: Welford (1962), "Note on a method for calculating corrected sums of squares and products".
    """
    mean = np.zeros(frames.shape[1:], np.float32)
    squares = np.zeros_like(mean)
    for top in range(0, len(mean), _STRIP_ROWS):
        # What a strip needs stays in the processor's cache.
        rows = slice(top, top + _STRIP_ROWS)
        strip, spread = mean[rows], squares[rows]
        for number, frame in enumerate(frames[:, rows], 1):
            levels = frame.astype(np.float32)
            change = levels - strip
            strip += change / number
            levels -= strip
            levels *= change
            spread += levels
    return ClipStatistics(mean, np.sqrt(squares / len(frames)), frames.min(0), frames.max(0))


def moves(frames: Pixels, statistics: ClipStatistics) -> bool:
    """Return whether a clip shows moving tissue: at least five frames, and 15% of what is not dark changes."""
    bright = statistics.most > _DARK
    if len(frames) < MIN_CINE_FRAMES or not bright.any():
        return False
    return bool((statistics.stddev[bright] > _MOVING_STDDEV).mean() >= _MIN_MOVING_SHARE)


def static_overlay(statistics: ClipStatistics) -> NDArray[np.bool_]:
    """Return what to mask: marks that stand still where tissue moves, or that look drawn, filled so that no letter shows.

    A dark background stands still and is left alone; so is slow tissue, unless it looks written. What touches a small mark is
    masked with it as a whole box; long lines and rulers are masked by their widened shape.
    """
    stddev = statistics.stddev
    # Echoes that saturate or lie along the motion stand still as well, but not as thin strokes on a darker ground.
    thin = statistics.least - opened(statistics.least, _THICK_PX) > _DARK
    still_in_motion = _still_in_motion(stddev, thin)
    level = np.asarray(statistics.mean.round(), np.uint8)
    unchanging = stddev < 0.5 * _MOVING_STDDEV
    # Echoes near the edge of the sector fade; a drawn mark on the dark stands out at once.
    on_the_dark = unchanging & (level > _DARK) & (smallest(level, 9, 9) < _DARK / 3)
    drawn = pen_pixels(level) & (stddev < _MOVING_STDDEV)
    # Echoes carry noise, however slow the tissue: what is lit and does not change at all comes from the screen.
    rigid = (stddev < _RIGID_STDDEV) & (level > _DARK)
    return filled(rigid | (on_the_dark & drawn) | _in_crowds(drawn) | _in_crowds(still_in_motion))


def _still_in_motion(stddev: NDArray[np.float32], asked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which of the pixels asked for change much less than most of what is around them, which moves."""
    coarse = stddev[::2, ::2]
    before, after = _NEIGHBOURHOOD_CELLS // 2, (_NEIGHBOURHOOD_CELLS - 1) // 2
    squares = sliding_window_view(np.pad(coarse, (before, after), "symmetric"), (_NEIGHBOURHOOD_CELLS,) * 2)
    cells = np.zeros(coarse.shape, np.bool_)
    rows, columns = np.nonzero(asked)
    cells[rows // 2, columns // 2] = True
    places, around = np.flatnonzero(cells), np.zeros(coarse.shape, np.float32)
    for start in range(0, len(places), _CELLS_AT_ONCE):
        some = places[start : start + _CELLS_AT_ONCE]
        levels = squares[np.unravel_index(some, cells.shape)].reshape(len(some), -1)
        around.ravel()[some] = np.partition(levels, _RANK, 1)[:, _RANK]
    level, found = around[rows // 2, columns // 2], np.zeros_like(asked)
    found[rows, columns] = (stddev[rows, columns] < _STILL_SHARE * level) & (level > _MOVING_STDDEV)
    return found


def _in_crowds(marks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the marks that stand close together, as those of a word do; single echoes stand still by chance."""
    crowds = np.zeros_like(marks)
    for box in crowded(marks):
        crowds[box.top : box.bottom, box.left : box.right] = True
    return marks & crowds


def filled(marks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return marks joined into words and filled, single specks left out."""
    joined = largest(marks.view(np.uint8), 5, 13)
    labels, count = ndimage.label(joined)
    if not count:
        return np.zeros_like(marks)
    sizes = ndimage.sum_labels(marks, labels, np.arange(1, count + 1))
    mask = np.zeros_like(marks)
    for number, (place, size) in enumerate(zip(ndimage.find_objects(labels), sizes, strict=True), 1):
        if size < _MIN_MARK_PX:
            continue
        shape = labels[place] == number
        if shape.shape[0] <= _LINE_PX:
            mask[place] = True
        else:
            mask[place] |= ndimage.binary_closing(np.pad(shape, 12), np.ones((9, 25)))[12:-12, 12:-12]
    return mask
