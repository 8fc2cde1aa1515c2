"""Where tissue lies in a frame: by SequenceOfUltrasoundRegions, or by image analysis where that is missing."""

import math
from collections.abc import Sequence
from typing import Any

from pydicom import Dataset
from pydicom import Sequence as DicomSequence
from pydicom.multival import MultiValue

from echofed.client.ingest.geometry import Box, Layout, Pixels, Region, RegionKind
from echofed.client.ingest.outcomes import SetAsideError, Why
from echofed.client.ingest.pixel_form import read_form
from echofed.client.ingest.sector import find_tissue

SMALLEST_SIDE = 32

# PS3.3, C.8.5.5.1.1 and C.8.5.5.1.2.
_IN_TWO_DIMENSIONS, _M_MODE, _SPECTRUM = 1, 2, 3
_TISSUE, _COLOUR_FLOW, _PULSED_DOPPLER, _CONTINUOUS_DOPPLER = 1, 2, 3, 4
_CENTIMETRES = 3

_TOLERATED_PIXELS = 1
_SANE_SPACING_MM = (0.002, 2.0)
_MOST_REGIONS = 64


def find_layout(dataset: Dataset, frames: Sequence[Pixels]) -> Layout:
    """Return how the frames of a dataset are divided.

    Regions of the tag may reach one pixel beyond the frame and are clamped. What M-mode and Doppler regions cover is cut
    off tissue regions, so that a rectangle is left; tissue within other tissue (a colour box) is not listed again. Spacing
    comes from the region's physical units, else from PixelSpacing if that is between 0.002 and 2 mm.

    Args:
        dataset: from `read_dataset`.
        frames: decoded frames of it, at least one; the more they differ, the surer is tissue found without the tag.

    Raises:
        SetAsideError: REGIONS_BEYOND if a region reaches further beyond, NO_TISSUE if the tag lists none, NO_REGION if
            the tag is no use or tissue is not found for certain without it.
    """
    if "SequenceOfUltrasoundRegions" in dataset:
        items = dataset.get("SequenceOfUltrasoundRegions")
        if items:
            return _tagged(dataset, items)
    box = find_tissue(frames)
    if box is None:
        raise SetAsideError(Why.NO_REGION)
    return Layout((Region(box, "tissue", _pixel_spacing(dataset)),), "image")


def _tagged(dataset: Dataset, items: Any) -> Layout:
    if not isinstance(items, DicomSequence) or len(items) > _MOST_REGIONS:
        raise SetAsideError(Why.NO_REGION)
    form = read_form(dataset)
    regions = [_region(item, form.rows, form.columns, _pixel_spacing(dataset)) for item in items]
    others = [region for region in regions if region.kind != "tissue"]
    apart = [region.box for region in others if region.kind in ("m-mode", "doppler")]
    tissue = _outermost([region for region in regions if region.kind == "tissue"])
    cut = [Region(_cut(region.box, apart), "tissue", region.spacing_mm) for region in tissue]
    left = [region for region in cut if min(region.box.height, region.box.width) >= SMALLEST_SIDE]
    if not left:
        raise SetAsideError(Why.NO_TISSUE)
    return Layout((*left, *others), "tag")


def _region(item: Dataset, rows: int, columns: int, pixel_spacing_mm: tuple[float, float] | None) -> Region:
    left, top, last_column, last_row = (
        _whole(item, f"RegionLocation{place}") for place in ("MinX0", "MinY0", "MaxX1", "MaxY1")
    )
    if last_column >= columns + _TOLERATED_PIXELS or last_row >= rows + _TOLERATED_PIXELS or min(left, top) < 0:
        raise SetAsideError(Why.REGIONS_BEYOND)
    box = Box(top, left, min(last_row + 1, rows), min(last_column + 1, columns))
    if box.height < 1 or box.width < 1:
        raise SetAsideError(Why.NO_REGION)
    kind = _kind(item)
    return Region(box, kind, (_physical_spacing(item) or pixel_spacing_mm) if kind == "tissue" else None)


def _kind(item: Dataset) -> RegionKind:
    shape, shown = item.get("RegionSpatialFormat"), item.get("RegionDataType")
    if shape == _M_MODE:
        return "m-mode"
    if shape == _SPECTRUM or shown in (_PULSED_DOPPLER, _CONTINUOUS_DOPPLER):
        return "doppler"
    if shape == _IN_TWO_DIMENSIONS and shown in (_TISSUE, _COLOUR_FLOW):
        return "tissue"
    return "graphics"


def _outermost(regions: list[Region]) -> list[Region]:
    """Return the regions that lie in no other, each once."""
    kept: list[Region] = []
    for region in sorted(regions, key=lambda region: -region.box.height * region.box.width):
        if not any(_common(region.box, other.box) == region.box for other in kept):
            kept.append(region)
    return sorted(kept, key=lambda region: region.box)


def _common(one: Box, other: Box) -> Box | None:
    box = Box(
        max(one.top, other.top), max(one.left, other.left), min(one.bottom, other.bottom), min(one.right, other.right)
    )
    return box if box.height > 0 and box.width > 0 else None


def _cut(box: Box, apart: Sequence[Box]) -> Box:
    """Return the largest part above, below, left or right of each box that is to be cut off."""
    for other in apart:
        common = _common(box, other)
        if common is None:
            continue
        parts = (
            Box(box.top, box.left, common.top, box.right),
            Box(common.bottom, box.left, box.bottom, box.right),
            Box(box.top, box.left, box.bottom, common.left),
            Box(box.top, common.right, box.bottom, box.right),
        )
        box = max(parts, key=lambda part: part.height * part.width)
    return box


def _physical_spacing(item: Dataset) -> tuple[float, float] | None:
    if item.get("PhysicalUnitsXDirection") != _CENTIMETRES or item.get("PhysicalUnitsYDirection") != _CENTIMETRES:
        return None
    return _sane(item.get("PhysicalDeltaY"), item.get("PhysicalDeltaX"), millimetres_a_unit=10.0)


def _pixel_spacing(dataset: Dataset) -> tuple[float, float] | None:
    spacing = dataset.get("PixelSpacing")
    if not isinstance(spacing, MultiValue) or len(spacing) != 2:
        return None
    return _sane(spacing[0], spacing[1], millimetres_a_unit=1.0)


def _sane(rows: object, columns: object, millimetres_a_unit: float) -> tuple[float, float] | None:
    if not isinstance(rows, int | float) or not isinstance(columns, int | float):
        return None
    found = abs(float(rows)) * millimetres_a_unit, abs(float(columns)) * millimetres_a_unit
    least, most = _SANE_SPACING_MM
    return found if all(math.isfinite(value) and least <= value <= most for value in found) else None


def _whole(item: Dataset, keyword: str) -> int:
    value = item.get(keyword)
    if not isinstance(value, int):
        raise SetAsideError(Why.NO_REGION)
    return value
