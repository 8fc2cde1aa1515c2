"""Grey levels become inputs, each image alone."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from echofed.learning.images import to_input
from echofed.protocol.study import Preprocessing

PLAIN, STANDARDISED = Preprocessing(), Preprocessing(standardise="image")


def test_grey_levels_become_zero_to_one() -> None:
    images = np.array([[[0, 51], [204, 255]]], np.uint8)
    expected = torch.tensor([[[[0.0, 0.2], [0.8, 1.0]]]])
    torch.testing.assert_close(to_input(images, PLAIN), expected)


@given(st.integers(0, 2**32 - 1), st.integers(1, 255), st.integers(1, 4))
def test_a_standardised_image_has_mean_zero_and_deviation_one(seed: int, brightest: int, n: int) -> None:
    images = np.random.default_rng(seed).integers(0, brightest + 1, (n, 16, 16), dtype=np.uint8)
    values = to_input(images, STANDARDISED)
    assert values.shape == (n, 1, 16, 16)
    for image, value in zip(images, values, strict=True):
        assert abs(float(value.mean())) < 1e-4
        if image.std() > 0.3:
            assert abs(float(value.std(correction=0)) - 1) < 1e-4


def test_a_constant_image_becomes_zero() -> None:
    constant = np.full((1, 16, 16), 200, np.uint8)
    torch.testing.assert_close(to_input(constant, STANDARDISED), torch.zeros(1, 1, 16, 16), atol=1e-3, rtol=0)


def test_images_do_not_depend_on_each_other() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    alone = torch.cat([to_input(images[i : i + 1], STANDARDISED) for i in range(3)])
    torch.testing.assert_close(to_input(images, STANDARDISED), alone)


def test_no_images_and_read_only_images_are_fine() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16), dtype=np.uint8)
    images.setflags(write=False)
    before = images.copy()
    to_input(images, PLAIN).zero_()
    assert np.array_equal(images, before)
    assert to_input(images[:0], STANDARDISED).shape == (0, 1, 16, 16)
