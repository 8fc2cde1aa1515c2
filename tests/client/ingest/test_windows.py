"""Greatest, least and sum over windows, beside general filters."""

import numpy as np
import pytest
from scipy import ndimage

from echofed.client.ingest.geometry import Pixels
from echofed.client.ingest.windows import counts, largest, opened, smallest

SHAPES = ((1, 1), (2, 90), (60, 3), (37, 61))


def random_picture(shape: tuple[int, int]) -> Pixels:
    return np.random.default_rng(shape[0]).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [(1, 1), (3, 3), (5, 13), (9, 9), (13, 49)])
def test_extremes_are_those_of_general_filters(shape: tuple[int, int], window: tuple[int, int]) -> None:
    picture = random_picture(shape)
    np.testing.assert_array_equal(
        largest(picture, *window), ndimage.maximum_filter(picture, window, mode="constant", cval=0)
    )
    np.testing.assert_array_equal(
        smallest(picture, *window), ndimage.minimum_filter(picture, window, mode="constant", cval=255)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_opening_is_that_of_the_general_filter(shape: tuple[int, int]) -> None:
    picture = random_picture(shape)
    np.testing.assert_array_equal(opened(picture, 9), ndimage.grey_opening(picture, (9, 9)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [(1, 1), (3, 5), (12, 48), (255, 257)])
def test_counts_are_exact(shape: tuple[int, int], window: tuple[int, int]) -> None:
    marks = random_picture(shape) > 90
    expected = ndimage.convolve(
        marks.astype(np.int64), np.ones(window, np.int64), mode="constant", origin=-(1 - np.array(window) % 2)
    )
    np.testing.assert_array_equal(counts(marks, *window), expected)


def test_a_full_window_of_the_largest_size_does_not_overflow() -> None:
    marks = np.ones((255, 257), bool)
    assert counts(marks, 255, 257)[127, 128] == 255 * 257
