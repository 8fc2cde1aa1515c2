"""Augmentation changes what it says, by as much as it says, and nothing else."""

from typing import Any

import numpy as np
import pytest
import torch

from echofed.learning.augment import augment
from echofed.protocol.study import Augmentation

ALL = Augmentation(flip=True, gain=0.2, shift=0.1, zoom=0.1, speckle=0.1)
SIDE_PX = 32


def images(n: int = 8) -> torch.Tensor:
    return torch.rand(n, 1, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(1))


def discs(n: int) -> torch.Tensor:
    axis = torch.arange(SIDE_PX) - (SIDE_PX - 1) / 2
    return (axis[:, None] ** 2 + axis**2 < 64).to(torch.uint8).expand(n, SIDE_PX, SIDE_PX).clone()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def changed(seed: int = 0, n: int = 8, **settings: Any) -> torch.Tensor:
    return augment(images(n), None, Augmentation(**settings), rng(seed))[0]


def test_all_off_gives_back_the_very_tensors_and_draws_nothing() -> None:
    source, inputs, masks = rng(), images(), discs(8)
    results = augment(inputs, masks, Augmentation(), source)
    assert results[0] is inputs
    assert results[1] is masks
    assert source.random() == rng().random()


def test_the_generator_decides_everything_and_the_inputs_stay() -> None:
    inputs, masks = images(), discs(8)
    before = torch.get_rng_state()
    first, first_masks = augment(inputs, masks, ALL, rng(1))
    again, again_masks = augment(inputs, masks, ALL, rng(1))
    other, _ = augment(inputs, masks, ALL, rng(2))
    assert first_masks is not None
    assert again_masks is not None
    assert torch.equal(first, again)
    assert torch.equal(first_masks, again_masks)
    assert not torch.equal(first, other)
    assert torch.equal(inputs, images())
    assert torch.equal(masks, discs(8))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_flip_mirrors_about_half_of_the_images_left_to_right() -> None:
    flipped = changed(n=64, flip=True)
    mirrored = [torch.equal(new, old.flip(-1)) for new, old in zip(flipped, images(64), strict=True)]
    same = [torch.equal(new, old) for new, old in zip(flipped, images(64), strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 20 <= sum(mirrored) <= 44


def test_gain_scales_each_image_by_its_own_factor_within_the_bound() -> None:
    dark = images(64)
    dark[:, :, 0, 0] = 0
    factors = (augment(dark, None, Augmentation(gain=0.2), rng())[0] / dark)[:, 0, 1:]
    torch.testing.assert_close(factors, factors[:, :1, :1].expand_as(factors))
    assert 0.8 <= factors.min() < 0.85
    assert 1.15 < factors.max() <= 1.2 + 1e-6


@pytest.mark.parametrize("settings", [{"gain": 0.3}, {"speckle": 0.3}, {"gain": 0.3, "speckle": 0.3}])
def test_echo_changes_act_alike_on_standardised_images(settings: dict[str, float]) -> None:
    inputs = images(4)
    plain, _ = augment(inputs, None, Augmentation(**settings), rng())
    moved, _ = augment((inputs - 0.4) / 0.25, None, Augmentation(**settings), rng())
    torch.testing.assert_close(moved, (plain - 0.4) / 0.25, atol=1e-5, rtol=1e-5)


def test_speckle_is_multiplicative_with_the_deviation_asked_for() -> None:
    dark = images(16)
    dark[:, :, 0, 0] = 0
    noisy, _ = augment(dark, None, Augmentation(speckle=0.1), rng())
    assert torch.equal(noisy[:, :, 0, 0], dark[:, :, 0, 0])
    ratios = (noisy / dark)[dark > 0.01]
    assert abs(float(ratios.mean()) - 1) < 0.005
    assert abs(float(ratios.std()) - 0.1) < 0.005
    strong, _ = augment(dark, None, Augmentation(speckle=0.5), rng())
    assert strong.min() >= 0


def centre_px(maps: torch.Tensor) -> torch.Tensor:
    axis = torch.arange(SIDE_PX, dtype=torch.float32)
    maps = maps.float().reshape(-1, SIDE_PX, SIDE_PX)
    total = maps.sum((1, 2))
    return torch.stack([(maps.sum(2) * axis).sum(1) / total, (maps.sum(1) * axis).sum(1) / total], 1)


def test_a_shift_moves_within_its_bound() -> None:
    inputs = discs(64).float().unsqueeze(1)
    moved, _ = augment(inputs, None, Augmentation(shift=0.1), rng())
    offsets = (centre_px(moved) - centre_px(inputs)).abs()
    assert 2.5 < offsets.max() <= 3.2 + 0.05


def test_a_zoom_scales_within_its_bound_around_the_centre() -> None:
    inputs = discs(64).float().unsqueeze(1)
    zoomed, _ = augment(inputs, None, Augmentation(zoom=0.2), rng())
    assert (centre_px(zoomed) - centre_px(inputs)).abs().max() < 0.05
    areas = zoomed.sum((1, 2, 3)) / inputs.sum((1, 2, 3))
    assert 0.8**2 - 0.05 < areas.min() < 0.75
    assert 1.3 < areas.max() < 1.2**2 + 0.05


def test_masks_move_with_their_images_and_stay_binary() -> None:
    masks = discs(32)
    inputs = masks.float().unsqueeze(1)
    moved, moved_masks = augment(inputs, masks, Augmentation(flip=True, shift=0.15, zoom=0.2), rng(3))
    assert moved_masks is not None
    assert moved_masks.shape == masks.shape
    assert moved_masks.dtype == masks.dtype
    assert set(moved_masks.unique().tolist()) == {0, 1}
    disagreement = (moved.squeeze(1) - moved_masks.float()).abs()
    # The nearest pixel has at least a quarter of the bilinear sum.
    assert disagreement.max() <= 0.75 + 1e-4
    assert disagreement.mean() < 0.03
    assert (centre_px(moved) - centre_px(moved_masks)).abs().max() < 0.5
    assert (centre_px(moved_masks) - centre_px(masks)).abs().max() > 2


def test_flipped_masks_follow_their_images_in_either_shape() -> None:
    inputs = images(16)
    bright = (inputs > 0.5).to(torch.uint8)
    for masks in (bright, bright.squeeze(1)):
        flipped, flipped_masks = augment(inputs, masks, Augmentation(flip=True), rng(4))
        assert flipped_masks is not None
        assert torch.equal(flipped_masks, (flipped > 0.5).to(torch.uint8).reshape(masks.shape))


def test_what_moves_in_repeats_the_border() -> None:
    moved = augment(torch.full((16, 1, SIDE_PX, SIDE_PX), 0.7), None, Augmentation(shift=0.2, zoom=0.3), rng())[0]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.7))


def test_an_empty_batch_stays_empty() -> None:
    assert augment(images(0), None, ALL, rng())[0].shape == (0, 1, SIDE_PX, SIDE_PX)
