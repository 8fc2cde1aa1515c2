"""What is measured on every stored frame; `quality_report` adds it up."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from echofed.client.duplicates import perceptual_hash, thumbnail
from echofed.client.ingest.frame_store import pixel_key
from echofed.client.ingest.geometry import Pixels

Look = Literal["", "empty", "uniform"]
"""empty: hardly anything but black, or flat; uniform: as even as the speckle of a test phantom; "": neither."""

_CLIPPED_LEVEL = 255
_DARK_LEVEL = 4
_EMPTY_DARK_SHARE = 0.98
_EMPTY_SPREAD = 2.0
# Of 400 breast images one is as even as this, and homogeneous speckle with cells up to 7 x 14 pixels is.
_UNIFORM_EVENNESS = 0.06
_LIT_LEVEL = 12.0
_LIT_ROWS = 8
_SAME_FRAME_DIFFERENCE = 1.0


@dataclass(frozen=True)
class FrameMeasures:
    """What one frame shows, in numbers.

    Args:
        height, width: in pixels.
        mean_brightness: 0 to 255.
        dark_share, clipped_share: of the pixels; all but black, and at full scale.
        sharpness: variance of the Laplacian, in grey levels squared (Pech-Pacheco et al. 2000).
        look: whether it seems empty or a phantom.
        looks: perceptual hash, 64 bits.
        pixel_key: SHA-256 of shape and pixels, hexadecimal.
    """

    height: int
    width: int
    mean_brightness: float
    dark_share: float
    clipped_share: float
    sharpness: float
    look: Look
    looks: int
    pixel_key: str

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Return the measures that `to_json` gave; other fields in it are ignored."""
        return cls(**{name: content[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class FrameFacts:
    """A stored frame, as the quality report sees it.

    Args:
        file: where it lies, relative to the ingest's folder.
        device: vendor and model; empty if the file does not say.
        label: empty without one.
        patient, exam, clip: pseudonyms.
        spacing_mm: distance between rows and between columns, None if it is not known.
        measures: of its pixels.
        is_frozen: whether its clip shows one picture only.
    """

    file: str
    device: str
    label: str
    patient: str
    exam: str
    clip: str
    spacing_mm: tuple[float, float] | None
    measures: FrameMeasures
    is_frozen: bool = False


def measure_frame(pixels: Pixels) -> FrameMeasures:
    """Return what there is to say of a frame, uint8 [height, width]."""
    levels = np.array(Image.fromarray(pixels).histogram())
    size = pixels.size
    dark = float(levels[:_DARK_LEVEL].sum() / size)
    mean = float(levels @ np.arange(256) / size)
    spread = float(np.sqrt(levels @ (np.arange(256) - mean) ** 2 / size))
    small = thumbnail(pixels)
    is_empty = dark > _EMPTY_DARK_SHARE or spread < _EMPTY_SPREAD
    return FrameMeasures(
        height=pixels.shape[0],
        width=pixels.shape[1],
        mean_brightness=round(mean, 3),
        dark_share=round(dark, 5),
        clipped_share=round(float(levels[_CLIPPED_LEVEL] / size), 5),
        sharpness=round(_sharpness(pixels), 3),
        look="empty" if is_empty else "uniform" if _evenness(small) < _UNIFORM_EVENNESS else "",
        looks=perceptual_hash(small),
        pixel_key=pixel_key(pixels).hex(),
    )


def is_frozen(frames: NDArray[np.uint8]) -> bool:
    """Return whether a clip shows one picture only, up to the noise of its compression.

    Args:
        frames: uint8 [frames, height, width]; a still is not frozen.
    """
    if len(frames) < 2:
        return False
    first = thumbnail(frames[0]).astype(np.int16)
    # Of a clip that moves few frames are looked at.
    return all(np.abs(thumbnail(frame) - first).mean() < _SAME_FRAME_DIFFERENCE for frame in reversed(frames[1:]))


def _sharpness(pixels: Pixels) -> float:
    if min(pixels.shape) < 3:
        return 0.0
    wide = pixels.astype(np.int16)
    laplacian = -4 * wide[1:-1, 1:-1]
    for neighbours in (wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]):
        laplacian += neighbours
    flat = laplacian.astype(np.float32).ravel()
    return float(np.vdot(flat, flat) / flat.size - flat.mean() ** 2)


def _evenness(small: Pixels) -> float:
    """Return how much brightness varies sideways in the middle of an image, relative to itself: tissue more than speckle."""
    middle = small[4:28, 6:26].astype(np.float64)
    means = middle.mean(axis=1)
    lit = means > _LIT_LEVEL
    return float(np.median(middle[lit].std(axis=1) / means[lit])) if lit.sum() >= _LIT_ROWS else 1.0
