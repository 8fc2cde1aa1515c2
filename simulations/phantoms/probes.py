"""Probes: where the beams of a linear or curved array lie, and how their samples become an image."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from echofed.protocol.errors import SitesError
from echofed.simulations.phantoms.speckle import Floats

MIN_SIDE_PX = 32
AXIAL_OVERSAMPLING = 2
"""Depth samples per pixel: the pulse is shorter than a pixel of a small image."""


@dataclass(frozen=True)
class Probe:
    """A transducer.

    `width_mm` is the aperture of a linear array; a convex one has `radius_mm` and the full `angle_degrees` of its
    sector instead. `depth_mm` are the least and the greatest depth a study is made at, `f_number` sets how wide
    the beam is at its focus.
    """

    shape: Literal["linear", "convex"]
    frequency_mhz: float
    depth_mm: tuple[float, float]
    width_mm: float = 0.0
    radius_mm: float = 0.0
    angle_degrees: float = 0.0
    f_number: float = 2.5


PROBES: dict[str, Probe] = {
    "linear": Probe("linear", 10.0, (32.0, 46.0), width_mm=38.0),
    "linear_wide": Probe("linear", 8.0, (32.0, 44.0), width_mm=50.0, f_number=3.0),
    "linear_high": Probe("linear", 13.0, (26.0, 36.0), width_mm=34.0, f_number=2.2),
    "convex": Probe("convex", 6.0, (38.0, 50.0), radius_mm=50.0, angle_degrees=46.0, f_number=2.5),
}


@dataclass(frozen=True)
class Frame:
    """One image's geometry: `probe` at a depth of `depth_mm` on `shape_px` (rows, columns) of square pixels."""

    probe: Probe
    depth_mm: float
    shape_px: tuple[int, int]
    pixel_spacing_mm: float


@dataclass(frozen=True)
class BeamGrid:
    """Where the samples lie: along the beams (`range_mm` [depth samples]) and in the body (`x_mm`, `z_mm`).

    `lateral_mm` [lines] is the place along the probe's face, `spacing_mm` [depth samples] the distance between
    neighbouring lines, `x_mm` and `z_mm` [depth samples, lines] are across and into the body; x is 0 mid-image.
    """

    range_mm: Floats
    lateral_mm: Floats
    spacing_mm: Floats
    x_mm: Floats
    z_mm: Floats

    @property
    def step_mm(self) -> float:
        """Distance between depth samples."""
        return float(self.range_mm[1] - self.range_mm[0])


def check_side(side_px: int) -> None:
    """Refuse an image side too short to hold a lesion.

    Raises:
        SitesError: `side_px` is under 32.
    """
    if side_px < MIN_SIDE_PX:
        raise SitesError(f"An image side of {side_px} px is too small.", remedy=f"Use at least {MIN_SIDE_PX} px.")


def fit_frame(probe: Probe, depth_mm: float, longest_side_px: int) -> Frame:
    """Return the frame whose longer side has `longest_side_px` pixels and which shows all the probe sees."""
    width_mm, height_mm = probe.width_mm, depth_mm
    if probe.shape == "convex":
        half = np.radians(probe.angle_degrees / 2)
        width_mm = float(2 * (probe.radius_mm + depth_mm) * np.sin(half))
        height_mm = float(probe.radius_mm * (1 - np.cos(half))) + depth_mm
    spacing_mm = max(width_mm, height_mm) / longest_side_px
    shape = (round(height_mm / spacing_mm), round(width_mm / spacing_mm))
    return Frame(probe, depth_mm, shape, spacing_mm)


def square_frame(probe: Probe, depth_mm: float, size_px: int) -> Frame:
    """Return a linear array's frame as wide as it is deep, `size_px` pixels a side, whatever the aperture."""
    return Frame(probe, depth_mm, (size_px, size_px), depth_mm / size_px)


@lru_cache(maxsize=8)
def beam_grid(frame: Frame) -> BeamGrid:
    """Return where the frame's beams are sampled: one line a pixel, `AXIAL_OVERSAMPLING` depth samples a pixel."""
    step_mm = frame.pixel_spacing_mm / AXIAL_OVERSAMPLING
    samples = AXIAL_OVERSAMPLING * round(frame.depth_mm / frame.pixel_spacing_mm)
    range_mm = ((np.arange(samples) + 0.5) * step_mm).astype(np.float32)
    probe = frame.probe
    if probe.shape == "linear":
        lines = frame.shape_px[1]
        lateral_mm = ((np.arange(lines) + 0.5 - lines / 2) * frame.pixel_spacing_mm).astype(np.float32)
        spacing_mm = np.full(samples, frame.pixel_spacing_mm, np.float32)
        x_mm, z_mm = np.broadcast_to(lateral_mm, (samples, lines)), range_mm[:, None].repeat(lines, axis=1)
        return BeamGrid(range_mm, lateral_mm, spacing_mm, np.ascontiguousarray(x_mm), z_mm)
    angle = np.radians(probe.angle_degrees)
    middle_mm = probe.radius_mm + frame.depth_mm / 2
    lines = round(angle * middle_mm / frame.pixel_spacing_mm)
    theta = ((np.arange(lines) + 0.5) / lines - 0.5) * angle
    radius = probe.radius_mm + range_mm[:, None]
    return BeamGrid(
        range_mm,
        (theta * middle_mm).astype(np.float32),
        np.asarray(radius[:, 0] * angle / lines, np.float32),
        np.asarray(radius * np.sin(theta), np.float32),
        np.asarray(radius * np.cos(theta) - probe.radius_mm * np.cos(angle / 2), np.float32),
    )


def scan_convert(samples: Floats, frame: Frame, outside: float) -> Floats:
    """Return beam samples as an image.

    Args:
        samples: float32 [depth samples, lines] on `beam_grid(frame)`.
        frame: the geometry.
        outside: the value of pixels no beam reaches (the corners beside a sector).

    Returns:
        float32 of `frame.shape_px`.
    """
    lines = samples.shape[1]
    display = samples.reshape(-1, AXIAL_OVERSAMPLING, lines).mean(axis=1)
    if frame.probe.shape == "linear":
        return np.asarray(display, np.float32)
    rows, columns, inside = _sector(frame, lines)
    image = np.full(frame.shape_px, outside, np.float32)
    image[inside] = ndimage.map_coordinates(display, (rows, columns), order=1, mode="nearest")
    return image


@lru_cache(maxsize=8)
def _sector(frame: Frame, lines: int) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return, for each pixel inside the sector, its place in the beam samples; and which pixels those are."""
    probe = frame.probe
    half = np.radians(probe.angle_degrees / 2)
    y, x = np.mgrid[: frame.shape_px[0], : frame.shape_px[1]].astype(np.float32) + 0.5
    x_mm = (x - frame.shape_px[1] / 2) * frame.pixel_spacing_mm
    z_mm = y * frame.pixel_spacing_mm + probe.radius_mm * np.cos(half)
    range_mm, theta = np.hypot(x_mm, z_mm) - probe.radius_mm, np.arctan2(x_mm, z_mm)
    inside = (range_mm >= 0) & (range_mm < frame.depth_mm) & (np.abs(theta) < half)
    rows = range_mm[inside] / frame.pixel_spacing_mm - 0.5
    columns = (theta[inside] / (2 * half) + 0.5) * lines - 0.5
    return rows.astype(np.float32), columns.astype(np.float32), inside
