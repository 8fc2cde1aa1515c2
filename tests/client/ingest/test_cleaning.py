"""What becomes of a clip or a still with writing on it: never accepted while anything is uncertain."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from echofed.client.ingest import recognition
from echofed.client.ingest.cleaning import clean, to_grey
from echofed.client.ingest.geometry import Box, Pixels
from echofed.client.ingest.outcomes import Why
from echofed.simulations.phantoms import random_phantoms
from tests.client.ingest.planted_text import PLAIN, Look, Motion, Planted, moved, plant, recompressed

SIDE = 192
WHOLE = Box(0, 0, SIDE, SIDE)
TISSUE = random_phantoms(1, SIDE, seed=2)[0]


def clip(frames: int = 8, amplitude_px: float = 2.0) -> Pixels:
    return np.repeat(moved(TISSUE, frames, amplitude_px, 0.15, np.random.default_rng(9))[..., None], 3, 3)


def write(frames: Pixels, motion: Motion = "fixed", size_px: int = 14, look: Look = PLAIN) -> Planted:
    generator = np.random.default_rng(10)
    (planted,) = plant(frames, WHOLE, [("Haddad, Ana", "aliased", size_px, "white", "tissue", motion)], generator, look)
    return planted


def test_a_clean_still_is_accepted_as_it_is() -> None:
    cleaned = clean(TISSUE[None], is_cine=False)
    assert cleaned.why is None
    assert not cleaned.masked.any()
    assert cleaned.writing == ()
    np.testing.assert_array_equal(cleaned.frames, TISSUE[None])


def test_a_clean_clip_keeps_its_tissue() -> None:
    frames = clip()
    cleaned = clean(frames, is_cine=True)
    assert cleaned.why is None
    assert cleaned.masked_share < 0.05
    np.testing.assert_array_equal(cleaned.frames[:, ~cleaned.masked], frames[..., 0][:, ~cleaned.masked])


def test_where_a_person_is_asked_no_still_passes() -> None:
    assert clean(TISSUE[None], is_cine=False, check="person").why is Why.UNCERTAIN_STILL
    assert clean(clip(), is_cine=True, check="person").why is None


@pytest.mark.parametrize("is_cine", [False, True])
def test_a_still_with_writing_waits_for_a_person(is_cine: bool) -> None:
    frames = np.repeat(TISSUE[None, ..., None], 3, 3).copy()
    place = write(frames).box
    cleaned = clean(frames, is_cine)
    assert cleaned.why in (Why.WRITING, Why.UNCERTAIN_STILL)
    assert any(box.top < place.bottom and place.top < box.bottom for box in cleaned.writing)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_a_short_or_frozen_clip_is_a_still(count: int) -> None:
    frames = np.repeat(TISSUE[None, ..., None], 3, 3).repeat(count, 0)
    write(frames)
    assert clean(frames, is_cine=True).why is not None


def test_writing_in_one_frame_of_a_frozen_clip_is_found() -> None:
    frames = np.repeat(TISSUE[None, ..., None], 3, 3).repeat(9, 0)
    write(frames[5:6])
    assert clean(frames, is_cine=True, check="strokes").why is Why.UNCERTAIN_STILL


def test_faint_writing_that_only_recognition_finds() -> None:
    """Blurred edges have no strokes; text recognition has its own look at every still without any."""
    frames = np.repeat(TISSUE[None, ..., None], 3, 3).copy()
    write(frames, size_px=22)
    small = Image.fromarray(frames[0]).resize((SIDE // 2, SIDE // 2), Image.Resampling.BILINEAR)
    blurred = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))[None]
    assert clean(blurred, is_cine=False, check="strokes").why is None
    assert clean(blurred, is_cine=False).why is Why.WRITING


@pytest.mark.parametrize(
    ("look", "size_px"), [(Look(90, 1.2), 18), (Look(270, 1.2), 18), (Look(45, 1.2), 20), (Look(0, 1.5), 24)]
)
def test_soft_writing_that_no_stroke_gives_away(look: Look, size_px: int) -> None:
    frames = np.repeat(TISSUE[None, ..., None], 3, 3).copy()
    write(frames, size_px=size_px, look=look)
    soft = recompressed(frames[0], 60)[None]
    assert clean(soft, is_cine=False, check="strokes").why is None
    assert clean(soft, is_cine=False).why is Why.WRITING


def test_large_letters_may_be_tissue_and_wait_for_a_person() -> None:
    frames = np.repeat(TISSUE[None, ..., None], 3, 3).copy()
    generator = np.random.default_rng(10)
    plant(frames, WHOLE, [("Li", "vector", 130, "white", "tissue", "fixed")], generator, Look(0, 2.0))
    assert clean(frames, is_cine=False, check="strokes").why is None
    assert clean(frames, is_cine=False).why in (Why.WRITING, Why.UNCERTAIN_STILL)


@pytest.mark.parametrize("turned_deg", [0, 90])
def test_soft_writing_in_one_frame_of_a_clip_waits_for_a_person(turned_deg: int) -> None:
    """No frame is spared: this one has the fewest strokes of all."""
    frames = clip()
    write(frames[5:6], size_px=20, look=Look(turned_deg, 1.2))
    assert clean(frames, is_cine=True, check="strokes").why is None
    assert clean(frames, is_cine=True).why is Why.WRITING


@pytest.mark.parametrize("turned_deg", [45, 90])
def test_soft_fixed_writing_on_a_clip_never_stays(turned_deg: int) -> None:
    frames = clip()
    place = write(frames, size_px=20, look=Look(turned_deg, 1.2)).box
    cleaned = clean(frames, is_cine=True)
    seen = cleaned.masked[place.top + 2 : place.bottom - 2, place.left + 2 : place.right - 2].mean()
    assert cleaned.why is Why.WRITING or seen > 0.95


def test_fixed_writing_on_a_clip_is_masked_in_every_frame() -> None:
    frames = clip()
    place = write(frames).box
    cleaned = clean(frames, is_cine=True)
    assert cleaned.why is None
    assert cleaned.masked[place.top + 1 : place.bottom - 1, place.left + 1 : place.right - 1].mean() > 0.95
    assert not cleaned.frames[:, cleaned.masked].any()
    assert cleaned.masked_share < 0.2


@pytest.mark.parametrize("frames_with_text", [slice(None), slice(4, 5)])
def test_writing_that_moves_or_comes_and_goes_waits_for_a_person(frames_with_text: slice) -> None:
    frames = clip()
    write(frames[frames_with_text], motion="moving")
    assert clean(frames, is_cine=True).why is Why.WRITING


def test_soft_writing_in_colour_that_moves_waits_for_a_person() -> None:
    frames = clip()
    text = ("Haddad, Ana", "vector", 14, "yellow", "tissue", "moving")
    plant(frames, WHOLE, [text], np.random.default_rng(10), Look(0, 1.5))
    assert clean(frames, is_cine=True, check="strokes").why is Why.WRITING
    grey = frames[..., :1].repeat(3, 3)
    assert clean(grey, is_cine=True, check="strokes").why is None


def test_a_template_that_covers_the_writing_lets_the_still_pass() -> None:
    frames = np.repeat(TISSUE[None, ..., None], 3, 3).copy()
    place = write(frames).box
    mask = np.zeros((SIDE, SIDE), bool)
    mask[place.top - 2 : place.bottom + 2, place.left - 2 : place.right + 2] = True
    cleaned = clean(frames, is_cine=False, template_mask=mask)
    assert cleaned.why is None
    np.testing.assert_array_equal(cleaned.masked, mask)
    assert not cleaned.frames[0][mask].any()
    half = mask.copy()
    half[:, (place.left + place.right) // 2 :] = False
    assert clean(frames, is_cine=False, template_mask=half).why is not None


def test_without_text_recognition_nothing_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognition, "_PACKAGE", "no_such_package")
    assert clean(TISSUE[None], is_cine=False).why is Why.NO_TEXT_CHECK
    assert clean(clip(), is_cine=True).why is Why.NO_TEXT_CHECK
    assert clean(TISSUE[None], is_cine=False, check="strokes").why is None


def test_colour_becomes_grey_by_luma() -> None:
    primaries = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [7, 7, 7]]]], np.uint8)
    assert to_grey(primaries)[0, 0].tolist() == [76, 150, 29, 255, 7]


def test_real_images_with_writing_of_their_own_wait_for_a_person(shared_data: Path) -> None:
    """Quadrants and depths that a hospital in Rio de Janeiro wrote on the breast, not planted here."""
    for name in ("bus_0066-r", "bus_0193-l", "bus_0398-r", "bus_0752-s"):
        with Image.open(shared_data / "busbra" / "images" / f"{name}.jpg") as image:
            picture = np.asarray(image.convert("L"))
        assert clean(picture[None], is_cine=False).why is not None
