"""Taking writing off a clip's tissue, or saying that a person has to look: whatever is uncertain is never accepted."""

from dataclasses import dataclass
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

Check = Literal["ocr", "strokes"]

_LOOKED_AT = 3
_SUSPECTS = 2
_CONFIRMING_PENS = 6
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

    Over a clip with motion, what stands still is masked; writing that is left, because it moves or comes and goes,
    sets `Why.WRITING`. A still, a clip of under five frames and a frozen clip are never masked but by the template:
    crowded strokes set `Why.UNCERTAIN_STILL`; where there are none, text that is recognised sets `Why.WRITING`.

    Args:
        frames: one clip's tissue region, uint8 [count, height, width] or RGB [count, height, width, 3], count >= 1.
        is_cine: the file says that this is a clip; whether it moves is seen in the pixels.
        check: "ocr" for hospitals; "strokes" leaves text recognition out, for phantoms and tests.
        template_mask: what a person masked for this device and layout, bool [height, width]; masked first.
    """
    grey = to_grey(frames)
    masked = np.zeros(grey.shape[1:], bool) if template_mask is None else template_mask.copy()
    if check == "ocr" and not recognition.is_installed():
        return Cleaned(_without(grey, masked), masked, Why.NO_TEXT_CHECK, ())
    statistics = clip_statistics(grey)
    if not (is_cine and moves(grey, statistics)):
        return _clean_still(frames, grey, check, masked)
    masked |= static_overlay(statistics)
    if check == "ocr":
        for box in recognition.find_text(_hidden(statistics.least, masked)):
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
    for picture in _different(frames, grey):
        hidden = _hidden(picture, masked)
        boxes = find_strokes(hidden, around)
        if boxes:
            why = why or Why.UNCERTAIN_STILL
        elif check == "ocr" and why is None:
            # Strokes already send it to a person; without any, text recognition always has a look of its own.
            boxes = recognition.find_text(hidden)
            why = Why.WRITING if boxes else None
        writing += boxes
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
    """Look for writing that moves or comes and goes: strokes in every frame, text in some and in the most suspicious ones."""
    around = _widened(masked)
    pens = [pen_pixels(frame) & ~around for frame in frames]
    drawn = [crowded(pen) for pen in pens]
    writing = {box for boxes in drawn for box in boxes}
    if check == "ocr" and not writing:
        even = np.linspace(0, len(frames) - 1, _LOOKED_AT).round().astype(int).tolist()
        suspects = np.argsort([-int(pen.sum()) for pen in pens], kind="stable")[:_SUSPECTS].tolist()
        found = {index: recognition.find_text(_hidden(frames[index], masked)) for index in {*even, *suspects}}
        several = sum(bool(boxes) for boxes in found.values()) > 1
        for index, boxes in found.items():
            writing |= {
                box for box in boxes if several or int(box.of(pens[index].view(np.uint8)).sum()) >= _CONFIRMING_PENS
            }
    return Cleaned(_without(grey, masked), masked, Why.WRITING if writing else None, tuple(sorted(writing)))


def _without(grey: Pixels, masked: NDArray[np.bool_]) -> Pixels:
    cleaned = grey.copy()
    cleaned[:, masked] = 0
    return cleaned


def _widened(masked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(ndimage.binary_dilation(masked, iterations=2)) if masked.any() else masked


def _hidden(picture: Pixels, masked: NDArray[np.bool_]) -> Pixels:
    """Return the picture with what is masked filled in from around it: a hard black edge would itself look drawn."""
    if not masked.any():
        return picture
    nearest = ndimage.distance_transform_edt(masked, return_distances=False, return_indices=True)
    filled = picture[tuple(nearest)]
    sigma = (3, 3, 0)[: picture.ndim]
    smooth = ndimage.gaussian_filter(filled.astype(np.float32), sigma)
    choose = masked if picture.ndim == 2 else masked[..., None]
    return np.asarray(np.where(choose, smooth, picture), np.uint8)
