"""Taking writing off a clip's tissue, or saying that a person has to look: whatever is uncertain is never accepted."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from echofed.client.ingest import recognition
from echofed.client.ingest.geometry import Box, Pixels
from echofed.client.ingest.outcomes import Why
from echofed.client.ingest.overlay import clip_statistics, moves, static_overlay
from echofed.client.ingest.strokes import crowded, find_strokes, pen_pixels

Check = Literal["ocr", "person", "strokes"]

_ENOUGH_FRAMES = 3
"""A clip is sent to a person on the first find; what is found on a few frames more shows the person where to look."""
_CHANGED_LEVELS, _CHANGED_PX = 12, 6


@dataclass(frozen=True)
class Cleaned:
    """A clip without its writing, or the reason why a person has to look at it.

    Args:
        frames: grey uint8 [count, height, width], 0 where masked.
        masked: what was masked in all frames, bool [height, width].
        why: None if nothing speaks against using the frames.
        writing: where writing was found that is not masked.
    """

    frames: Pixels
    masked: NDArray[np.bool_]
    why: Why | None
    writing: tuple[Box, ...]

    @property
    def masked_share(self) -> float:
        """Share of the area that was masked."""
        return float(self.masked.mean())


def clean(
    frames: Pixels, is_cine: bool, check: Check = "ocr", template_mask: NDArray[np.bool_] | None = None
) -> Cleaned:
    """Mask what is written on a clip's tissue region and say whether its frames may be used without a person.

    Over a clip with motion, what stands still is masked; writing that is left, in any frame, because it moves, comes and
    goes or is too large, sets `Why.WRITING`. A still, a clip of under five frames and a frozen clip are never masked but
    by the template: crowded strokes, colour among them, set `Why.UNCERTAIN_STILL`; where there are none, lines of text that
    are recognised set `Why.WRITING` and what may be large letters `Why.UNCERTAIN_STILL`.

    Args:
        frames: one clip's tissue region, uint8 [count, height, width] or RGB [count, height, width, 3], count >= 1.
        is_cine: the file says that this is a clip; whether it moves is seen in the pixels.
        check: "ocr" for hospitals; "person" sends every still to one, whatever is found; "strokes" leaves text recognition
            out, for phantoms and tests.
        template_mask: what a person masked for this device and layout, bool [height, width]; masked first.
    """
    grey = to_grey(frames)
    masked = np.zeros(grey.shape[1:], bool) if template_mask is None else template_mask.copy()
    if check != "strokes" and not recognition.is_installed():
        return Cleaned(_without(grey, masked), masked, Why.NO_TEXT_CHECK, ())
    statistics = clip_statistics(grey)
    if not (is_cine and moves(grey, statistics)):
        return _clean_still(frames, grey, check, masked)
    masked |= static_overlay(statistics)
    if check != "strokes":
        # What is static shows best where the tissue has moved away or blurs.
        for summary in (statistics.least, np.asarray(statistics.mean.round(), np.uint8)):
            (picture,) = _hidden([summary], masked)
            for box in recognition.find_text(picture, "usual").lines:
                masked[box.top : box.bottom, box.left : box.right] = True
    return _clean_cine(frames, grey, check, masked)


def to_grey(frames: Pixels) -> Pixels:
    """Return frames as grey levels (ITU-R BT.601 luma), uint8 [count, height, width]."""
    if frames.ndim == 3:
        return frames
    grey = np.empty(frames.shape[:3], np.uint8)
    for index, frame in enumerate(frames):
        grey[index] = np.asarray(Image.fromarray(frame).convert("L"))
    return grey


def _clean_still(frames: Pixels, grey: Pixels, check: Check, masked: NDArray[np.bool_]) -> Cleaned:
    around, why = _widened(masked), None
    writing: list[Box] = []
    for hidden in _hidden(_different(frames, grey), masked):
        boxes = find_strokes(hidden, around)
        if boxes:
            why = why or Why.UNCERTAIN_STILL
        elif check != "strokes" and why is None:
            # Strokes already send it to a person; without any, text recognition always has a look of its own.
            found = recognition.find_text(hidden)
            boxes = found.boxes
            why = Why.WRITING if found.lines else Why.UNCERTAIN_STILL if found.large else None
        writing += boxes
    if check == "person":
        why = why or Why.UNCERTAIN_STILL
    return Cleaned(_without(grey, masked), masked, why, tuple(sorted({*writing})))


def _different(frames: Pixels, grey: Pixels) -> list[Pixels]:
    """Return the frames that differ visibly from the one before that was kept; a frozen clip is one picture."""
    kept = [0]
    for index in range(1, len(grey)):
        last = grey[kept[-1]]
        change = np.maximum(grey[index], last) - np.minimum(grey[index], last)
        if (change > _CHANGED_LEVELS).sum() >= _CHANGED_PX:
            kept.append(index)
    return [frames[index] for index in kept]


def _clean_cine(frames: Pixels, grey: Pixels, check: Check, masked: NDArray[np.bool_]) -> Cleaned:
    """Look for writing that moves, comes and goes or is left: strokes in every frame and, without any, text in every frame."""
    seen = ~_widened(masked)
    writing = {box for frame in frames for box in crowded(pen_pixels(frame) & seen)}
    if check != "strokes" and not writing:
        finds = (recognition.find_text(frame, "quick").boxes for frame in _hidden(frames, masked))
        writing = {box for boxes in islice(filter(None, finds), _ENOUGH_FRAMES) for box in boxes}
    return Cleaned(_without(grey, masked), masked, Why.WRITING if writing else None, tuple(sorted(writing)))


def _without(grey: Pixels, masked: NDArray[np.bool_]) -> Pixels:
    cleaned = grey.copy()
    cleaned[:, masked] = 0
    return cleaned


def _widened(masked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(ndimage.binary_dilation(masked, iterations=2)) if masked.any() else masked


def _hidden(pictures: Iterable[Pixels], masked: NDArray[np.bool_]) -> Iterator[Pixels]:
    """Return pictures with what is masked filled in from around it: a hard black edge would itself look drawn."""
    if not masked.any():
        yield from pictures
        return
    nearest = ndimage.distance_transform_edt(masked, return_distances=False, return_indices=True)
    for picture in pictures:
        sigma = (3, 3, 0)[: picture.ndim]
        smooth = ndimage.gaussian_filter(picture[tuple(nearest)].astype(np.float32), sigma)
        choose = masked if picture.ndim == 2 else masked[..., None]
        yield np.asarray(np.where(choose, smooth, picture), np.uint8)
