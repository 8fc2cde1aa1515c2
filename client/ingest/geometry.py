"""Where things lie in a frame."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""Grey levels, uint8 [height, width], or colour, uint8 [height, width, 3] (RGB)."""

RegionKind = Literal["tissue", "m-mode", "doppler", "graphics"]


@dataclass(frozen=True, order=True)
class Box:
    """A rectangle of pixels; `bottom` and `right` are the first row and column that do not belong to it."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    def of(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return what lies in the box, a view: [..., height, width] or, with colour, [height, width, 3]."""
        return pixels[self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True)
class Region:
    """A part of the frame that shows one thing.

    Args:
        box: where it lies.
        kind: what it shows; colour flow over tissue is "tissue".
        spacing_mm: distance between rows and between columns, None if the file does not say.
    """

    box: Box
    kind: RegionKind
    spacing_mm: tuple[float, float] | None = None


@dataclass(frozen=True)
class Layout:
    """How a frame is divided.

    Args:
        regions: tissue first, then the rest.
        source: "tag" from SequenceOfUltrasoundRegions, "image" found by image analysis.
    """

    regions: tuple[Region, ...]
    source: Literal["tag", "image"]

    @property
    def tissue(self) -> tuple[Region, ...]:
        """The regions that show tissue."""
        return tuple(region for region in self.regions if region.kind == "tissue")
