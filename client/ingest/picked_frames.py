"""The frames of an instance that are decoded: those that are kept, and some more to tell what moves."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset

from echofed.client.ingest.decoding import decode_frames, frame_count
from echofed.client.ingest.frame_choice import choose_frames
from echofed.client.ingest.outcomes import SetAsideError, Why
from echofed.client.ingest.settings import FrameRule

_FRAMES_COMPARED = 16
"""Frames of a clip that are looked at, besides those kept, to tell what does not move."""
_THUMBNAIL_PX = 32


@dataclass(frozen=True)
class Picked:
    """Frames of an instance that were decoded, and which of them are kept.

    Args:
        frames: as decoded.
        numbers: of these frames in the clip, 0-based.
        kept: numbers of those that are kept.
    """

    frames: list[NDArray[np.uint8]]
    numbers: list[int]
    kept: tuple[int, ...]

    @property
    def places(self) -> list[int]:
        """Where the frames that are kept are among those decoded."""
        return [self.numbers.index(number) for number in self.kept]


def pick_frames(dataset: Dataset, rule: FrameRule) -> Picked:
    """Decode the frames a rule keeps, and some spread over the clip.

    Args:
        dataset: of an image.
        rule: from the settings.

    Raises:
        SetAsideError: all of them are black (EMPTY), or one cannot be decoded.
    """
    count = frame_count(dataset)
    thumbnails = {}
    if rule.rule == "different" and count > 1:
        thumbnails = {number: _thumbnail(frame) for number, frame in enumerate(decode_frames(dataset))}
    kept = choose_frames(count, rule.rule, rule.step, rule.most, thumbnails.__getitem__ if thumbnails else None)
    compared = np.linspace(0, count - 1, min(count, _FRAMES_COMPARED)).round().astype(int).tolist()
    numbers = sorted({*kept, *compared})
    frames = list(decode_frames(dataset, numbers))
    if max(float(frame.max()) for frame in frames) == 0:
        raise SetAsideError(Why.EMPTY)
    return Picked(frames, numbers, tuple(kept))


def _thumbnail(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grey = Image.fromarray(frame).convert("L")
    return np.asarray(grey.resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BILINEAR))
