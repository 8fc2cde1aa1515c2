"""Writing found by its strokes, without text recognition."""

import numpy as np
import pytest

from echofed.client.ingest.geometry import Box, Pixels
from echofed.client.ingest.strokes import find_strokes, pen_pixels
from echofed.simulations.phantoms import random_phantoms
from tests.client.ingest.planted_text import COLOURS, FONTS, PLAIN, FontKind, Look, plant

BACKGROUND = random_phantoms(1, 320, seed=5)[0]


def written(font: FontKind, colour: str, size_px: int = 14, look: Look = PLAIN) -> tuple[Pixels, Box]:
    frames = np.repeat(BACKGROUND[None, ..., None], 3, 3).copy()
    text = ("Kowalska, Eva", font, size_px, colour, "tissue", "fixed")
    (planted,) = plant(frames, Box(0, 0, 320, 320), [text], np.random.default_rng(1), look)
    return frames[0], planted.box


@pytest.mark.parametrize("font", FONTS)
@pytest.mark.parametrize("colour", COLOURS)
def test_words_on_tissue_are_found_where_they_stand(font: FontKind, colour: str) -> None:
    picture, place = written(font, colour)
    boxes = find_strokes(picture)
    assert any(box.top < place.bottom and place.top < box.bottom for box in boxes)
    assert any(box.left < place.right and place.left < box.right for box in boxes)


def test_tissue_alone_is_not_writing() -> None:
    assert [find_strokes(image) for image in random_phantoms(6, 256, seed=2)] == [()] * 6


def test_colour_that_tissue_does_not_have_is_found_at_equal_brightness() -> None:
    picture = np.full((64, 160, 3), 120, np.uint8)
    picture[30:32, 20:140] = (200, 120, 60)  # the brightest channel alone would be a weaker line
    assert pen_pixels(picture)[30:32, 20:140].mean() > 0.9
    assert not pen_pixels(picture[:20]).any()


def test_colour_flow_may_hide_anything() -> None:
    rows, columns = np.mgrid[:120, :160]
    speed = np.exp(-((rows - 60) ** 2 + (columns - 80) ** 2) / 900)
    picture = np.stack([80 + 170 * speed, 80 - 60 * speed, 80 - 60 * speed], 2).astype(np.uint8)
    assert find_strokes(picture)


@pytest.mark.parametrize("blur_px", [1.0, 2.0])
def test_soft_writing_in_colour_is_found(blur_px: float) -> None:
    look = Look(30, blur_px)
    assert find_strokes(written("vector", "yellow", 18, look)[0])
    assert not find_strokes(written("vector", "white", 18, look)[0])  # for text recognition to find


def test_a_tint_of_all_echoes_is_no_colour() -> None:
    sepia = (BACKGROUND[..., None] * (1.0, 0.8, 0.4)).astype(np.uint8)
    assert not find_strokes(sepia)


def test_what_is_ignored_does_not_count() -> None:
    picture, place = written("aliased", "white")
    ignored = np.zeros(picture.shape[:2], bool)
    ignored[max(place.top - 2, 0) : place.bottom + 2, max(place.left - 2, 0) : place.right + 2] = True
    assert find_strokes(picture)
    assert not find_strokes(picture, ignored)


def test_grey_and_colourless_rgb_are_the_same() -> None:
    picture, _ = written("vector", "white")
    np.testing.assert_array_equal(pen_pixels(picture), pen_pixels(picture[..., 0]))


def test_writing_darker_than_its_ground_is_found() -> None:
    picture, _ = written("aliased", "white")
    assert find_strokes(255 - picture)
