"""Vendors: how six invented makers of scanners turn the same echoes into different pictures."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from echofed.simulations.phantoms.speckle import Floats

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Vendor:
    """A scanner's look.

    `frequency_factor` multiplies the probe's frequency. `looks` independent images are averaged (spatial
    compounding). `gain_db` raises the echoes, `dynamic_range_db` of them are shown, through the grey map
    `curve` (exponent; below 1 is brighter). `tgc_share` is how much of the usual attenuation is compensated,
    `noise_db` the receiver's noise before that. `smoothing_px` and `edge_enhancement` are the picture filter.
    `size_share` places the picture's size between the smallest and largest asked for. The rest is drawn on top.
    """

    name: str
    frequency_factor: float
    looks: int
    gain_db: float
    dynamic_range_db: float
    curve: float
    tgc_share: float
    noise_db: float
    smoothing_px: float
    edge_enhancement: float
    size_share: float
    ruler: Literal["none", "left", "right"]
    grey_bar: bool


VENDORS: dict[str, Vendor] = {
    vendor.name: vendor
    for vendor in (
        Vendor("aquila", 1.00, 2, 23.0, 66.0, 1.00, 0.92, -66.0, 0.55, 0.4, 1.0, "none", False),
        Vendor("borealis", 0.85, 1, 24.0, 57.0, 1.05, 0.93, -62.0, 0.45, 0.0, 0.6, "left", True),
        Vendor("corvus", 1.10, 3, 26.0, 74.0, 1.05, 0.95, -66.0, 0.70, 0.7, 0.85, "right", False),
        Vendor("dorado", 0.75, 1, 30.0, 64.0, 0.95, 0.96, -58.0, 0.70, 0.0, 0.3, "none", True),
        Vendor("eridanus", 1.00, 2, 22.0, 66.0, 1.20, 0.92, -66.0, 0.50, 0.3, 0.75, "left", False),
        Vendor("fornax", 1.20, 3, 25.0, 62.0, 1.00, 0.95, -68.0, 0.80, 1.3, 0.0, "right", True),
    )
}


def grey_map(envelope: Floats, vendor: Vendor, gain_change_db: float) -> Floats:
    """Return the envelope as brightness in 0..1: log compression, then the vendor's curve.

    Args:
        envelope: >= 0, float32; 1 is the root-mean-square echo of fibroglandular tissue.
        vendor: gives gain, dynamic range and curve.
        gain_change_db: what the operator turned the gain knob by.
    """
    level_db = 20 * np.log10(np.maximum(envelope, 1e-6)) + vendor.gain_db + gain_change_db
    return np.asarray(np.clip(level_db / vendor.dynamic_range_db, 0, 1) ** vendor.curve, np.float32)


def filter_picture(picture: Floats, vendor: Vendor) -> Floats:
    """Return the picture smoothed against speckle and its edges enhanced, as the vendor likes it, in 0..1."""
    smooth = ndimage.gaussian_filter(picture, vendor.smoothing_px, mode="nearest", truncate=3.0)
    if vendor.edge_enhancement > 0:
        blurred = ndimage.gaussian_filter(smooth, 1.6, mode="nearest", truncate=2.5)
        smooth = smooth + vendor.edge_enhancement * (smooth - blurred)
    return np.asarray(np.clip(smooth, 0, 1), np.float32)


def annotate(image: Pixels, vendor: Vendor, pixel_spacing_mm: float) -> None:
    """Draw the vendor's depth ruler (a tick each 5 mm, longer each 10) and grey bar onto the image."""
    height, width = image.shape
    if vendor.ruler != "none":
        for tick in range(1, int(height * pixel_spacing_mm / 5) + 1):
            row = min(round(tick * 5 / pixel_spacing_mm), height - 1)
            length = 4 if tick % 2 == 0 else 2
            columns = slice(1, 1 + length) if vendor.ruler == "left" else slice(width - 1 - length, width - 1)
            image[row, columns] = 220
    if vendor.grey_bar:
        top, bottom = height // 12, height // 3
        column = slice(width - 6, width - 3) if vendor.ruler == "left" else slice(3, 6)
        image[top:bottom, column] = np.linspace(255, 0, bottom - top).astype(np.uint8)[:, None]


def mark_calipers(image: Pixels, mask: Pixels) -> None:
    """Draw the crosses a sonographer leaves at the ends of the lesion's width and height; nothing without a lesion."""
    rows, columns = np.nonzero(mask)
    if not rows.size:
        return
    for ends in (columns, rows):
        for index in (int(ends.argmin()), int(ends.argmax())):
            row, column = int(rows[index]), int(columns[index])
            image[max(row - 2, 0) : row + 3, column] = 235
            image[row, max(column - 2, 0) : column + 3] = 235
