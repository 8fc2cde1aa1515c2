"""How a frame is divided, by the tag."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import DataElement, Dataset

from echofed.client.ingest.dataset import read_dataset
from echofed.client.ingest.decoding import decode_frames
from echofed.client.ingest.geometry import Box, Layout
from echofed.client.ingest.outcomes import SetAsideError, Why
from echofed.client.ingest.regions import find_layout
from tests.client.ingest.ultrasound_files import make_dataset, make_region

BLACK = np.zeros((200, 300), np.uint8)


def _layout(*regions: Dataset, **elements: Any) -> Layout:
    return find_layout(make_dataset(BLACK, SequenceOfUltrasoundRegions=list(regions), **elements), [BLACK])


def _why(*regions: Dataset, **elements: Any) -> Why:
    with pytest.raises(SetAsideError) as caught:
        _layout(*regions, **elements)
    return caught.value.why


def test_tissue_comes_first_with_its_spacing() -> None:
    layout = _layout(make_region((0, 150, 299, 199), 4, 10), make_region((10, 20, 209, 149)))
    assert [region.kind for region in layout.regions] == ["tissue", "graphics"]
    assert layout.regions[0].box == Box(20, 10, 150, 210)
    assert layout.regions[0].spacing_mm == pytest.approx((0.3, 0.2))
    assert layout.regions[1].spacing_mm is None
    assert layout.source == "tag"


@pytest.mark.parametrize(
    ("shape", "shown", "kind"),
    [
        (1, 1, "tissue"),
        (1, 2, "tissue"),
        (2, 1, "m-mode"),
        (2, 2, "m-mode"),
        (3, 3, "doppler"),
        (3, 4, "doppler"),
        (1, 3, "doppler"),
        (4, 10, "graphics"),
        (5, 13, "graphics"),
        (1, 0, "graphics"),
        (0, 1, "graphics"),
        (99, 99, "graphics"),
    ],
)
def test_kinds_follow_the_standard(shape: int, shown: int, kind: str) -> None:
    layout = _layout(make_region((0, 0, 299, 99)), make_region((0, 120, 50, 180), shape, shown))
    assert kind in [region.kind for region in layout.regions if region.box.top == 120]


def test_a_pixel_beyond_the_frame_is_clamped_and_more_is_not() -> None:
    assert _layout(make_region((0, 0, 300, 200))).tissue[0].box == Box(0, 0, 200, 300)
    assert _why(make_region((0, 0, 301, 199))) == Why.REGIONS_BEYOND
    assert _why(make_region((0, 0, 299, 201))) == Why.REGIONS_BEYOND
    assert _why(make_region((0, 0, 299, 99)), make_region((0, 0, 2**32 - 1, 9), 5, 13)) == Why.REGIONS_BEYOND


def test_regions_that_make_no_sense_go_to_a_person() -> None:
    assert _why(make_region((50, 50, 40, 90))) == Why.NO_REGION
    assert _why(make_region((50, 250, 90, 199))) == Why.NO_REGION
    assert _why(make_region((0, 0, 99, 99), RegionLocationMaxX1=None)) == Why.NO_REGION
    assert _why(*[make_region((0, 0, 99, 99))] * 65) == Why.NO_REGION


def test_frames_without_tissue_are_told() -> None:
    assert _why(make_region((0, 0, 299, 99), 3, 3)) == Why.NO_TISSUE
    assert _why(make_region((0, 0, 20, 20))) == Why.NO_TISSUE
    assert _why(make_region((0, 0, 299, 199)), make_region((0, 0, 299, 180), 2, 1)) == Why.NO_TISSUE


def test_motion_mode_and_doppler_are_cut_off_tissue() -> None:
    layout = _layout(make_region((0, 0, 299, 199)), make_region((0, 120, 299, 199), 3, 3))
    assert layout.tissue[0].box == Box(0, 0, 120, 300)
    layout = _layout(make_region((0, 0, 299, 199)), make_region((0, 0, 99, 199), 2, 1))
    assert layout.tissue[0].box == Box(0, 100, 200, 300)
    layout = _layout(make_region((0, 0, 299, 199)), make_region((250, 20, 260, 40), 5, 14))
    assert layout.tissue[0].box == Box(0, 0, 200, 300)


def test_a_colour_box_within_tissue_is_no_second_tissue() -> None:
    layout = _layout(make_region((50, 50, 99, 99), 1, 2), make_region((0, 0, 299, 199)), make_region((0, 0, 299, 199)))
    assert [region.box for region in layout.tissue] == [Box(0, 0, 200, 300)]


def test_two_images_side_by_side_are_both_kept() -> None:
    layout = _layout(make_region((150, 0, 299, 199)), make_region((0, 0, 149, 199)))
    assert [region.box for region in layout.tissue] == [Box(0, 0, 200, 150), Box(0, 150, 200, 300)]


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"PhysicalDeltaX": -0.02, "PhysicalDeltaY": -0.03}, (0.3, 0.2)),
        ({"PhysicalUnitsXDirection": 4}, (0.5, 0.6)),
        ({"PhysicalDeltaX": 0.0}, (0.5, 0.6)),
        ({"PhysicalDeltaX": 1e9}, (0.5, 0.6)),
        ({"PhysicalDeltaX": float("nan")}, (0.5, 0.6)),
        ({"PhysicalDeltaX": None}, (0.5, 0.6)),
    ],
)
def test_spacing_falls_back_to_pixel_spacing(elements: dict[str, Any], expected: tuple[float, float]) -> None:
    layout = _layout(make_region((0, 0, 299, 199), **elements), PixelSpacing=[0.5, 0.6])
    assert layout.tissue[0].spacing_mm == pytest.approx(expected)


@pytest.mark.parametrize("spacing", [[0.0, 0.5], [50, 50], None, [1e-9, 1e-9]])
def test_insane_pixel_spacing_is_left_out(spacing: Any) -> None:
    layout = _layout(make_region((0, 0, 299, 199), PhysicalUnitsXDirection=0), PixelSpacing=spacing)
    assert layout.tissue[0].spacing_mm is None


def test_without_the_tag_the_image_is_looked_at() -> None:
    with pytest.raises(SetAsideError) as caught:
        find_layout(make_dataset(BLACK), [BLACK])
    assert caught.value.why == Why.NO_REGION
    assert _why() == Why.NO_REGION


def test_a_tag_that_cannot_be_read_goes_to_a_person() -> None:
    dataset = make_dataset(BLACK)
    region = make_region((0, 0, 299, 199))
    region[0x00186018] = DataElement(0x00186018, "LO", "damaged")
    dataset.SequenceOfUltrasoundRegions = [region]
    with pytest.raises(SetAsideError) as caught:
        find_layout(dataset, [BLACK])
    assert caught.value.why == Why.NO_REGION
    del dataset.SequenceOfUltrasoundRegions
    dataset.PixelSpacing = 0.5
    dataset[0x00186011] = DataElement(0x00186011, "LO", "damaged")
    with pytest.raises(SetAsideError) as caught:
        find_layout(dataset, [BLACK])
    assert caught.value.why == Why.NO_REGION


@pytest.mark.parametrize(
    ("name", "boxes"),
    [
        ("JPGLosslessP14SV1_1s_1f_8b.dcm", [Box(38, 14, 759, 1011)]),
        ("OBXXXX1A.dcm", [Box(60, 120, 519, 800)]),
        ("gdcm-US-ALOKA-16.dcm", [Box(24, 32, 416, 336), Box(24, 336, 416, 640)]),
        ("sonoque_anechoic-3mm-3mm.dcm", [Box(0, 0, 1455, 2083)]),
        ("ultrasound-multiframe_first2.dcm", [Box(30, 11, 593, 789)]),
    ],
)
def test_regions_of_real_files(name: str, boxes: list[Box], shared_data: Path) -> None:
    dataset = read_dataset(shared_data / "dicom_us" / name)
    layout = find_layout(dataset, [next(decode_frames(dataset))])
    assert [region.box for region in layout.tissue] == boxes
    assert all(region.spacing_mm is not None for region in layout.tissue)


@pytest.mark.parametrize("name", ["examples_palette.dcm", "examples_ybr_color.dcm"])
def test_regions_of_resized_files_are_refused(name: str, shared_data: Path) -> None:
    dataset = read_dataset(shared_data / "dicom_us" / name)
    with pytest.raises(SetAsideError) as caught:
        find_layout(dataset, [next(decode_frames(dataset))])
    assert caught.value.why == Why.REGIONS_BEYOND
