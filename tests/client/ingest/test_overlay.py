"""What does not move over a clip."""

import numpy as np
import pytest

from echofed.client.ingest.geometry import Box, Pixels
from echofed.client.ingest.overlay import clip_statistics, filled, moves, static_overlay
from echofed.simulations.phantoms import random_phantoms
from tests.client.ingest.planted_text import COLOURS, FONTS, moved, plant, recompressed

TISSUE = random_phantoms(1, 256, seed=3)[0]


def clip(amplitude_px: float, noise: float, frames: int = 8) -> Pixels:
    return moved(TISSUE, frames, amplitude_px, noise, np.random.default_rng(4))


def test_statistics_are_those_of_numpy() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 20, 30)).astype(np.uint8)
    statistics = clip_statistics(frames)
    np.testing.assert_allclose(statistics.mean, frames.mean(0), atol=1e-3)
    np.testing.assert_allclose(statistics.stddev, frames.std(0), atol=1e-2)
    np.testing.assert_array_equal(statistics.least, frames.min(0))
    np.testing.assert_array_equal(statistics.most, frames.max(0))


def test_motion_is_seen_in_the_pixels() -> None:
    moving, frozen = clip(3.0, 0.2), np.repeat(TISSUE[None], 8, 0)
    assert moves(moving, clip_statistics(moving))
    assert not moves(frozen, clip_statistics(frozen))
    assert not moves(moving[:4], clip_statistics(moving[:4]))
    black = np.zeros((8, 20, 20), np.uint8)
    assert not moves(black, clip_statistics(black))


def test_a_clock_does_not_make_a_frozen_clip_move() -> None:
    frames = np.repeat(TISSUE[None], 8, 0)
    frames[:, 5:15, 5:60] = np.random.default_rng(1).integers(0, 256, (8, 10, 55))
    assert not moves(frames, clip_statistics(frames))


@pytest.mark.parametrize("amplitude_px", [0.5, 4.0])
def test_fixed_writing_is_masked_and_little_else(amplitude_px: float) -> None:
    frames = np.repeat(clip(amplitude_px, 0.15)[..., None], 3, 3).copy()
    texts = [
        (f"Santos {font}", font, 16, colour, "tissue", "fixed")
        for font, colour in zip(FONTS, [*COLOURS, "white"], strict=True)
    ]
    planted = plant(frames, Box(0, 0, 256, 256), texts, np.random.default_rng(6))
    grey = np.stack([recompressed(frame, 88).max(2) for frame in frames])
    mask = static_overlay(clip_statistics(grey))
    text_area = np.zeros_like(mask)
    for text in planted:
        assert mask[text.box.top + 1 : text.box.bottom - 1, text.box.left + 1 : text.box.right - 1].mean() > 0.95, text
        text_area[text.box.top : text.box.bottom, text.box.left : text.box.right] = True
    assert len(planted) == 4
    assert mask.mean() - text_area.mean() < 0.1


def test_slow_tissue_and_a_dark_background_are_left_alone() -> None:
    frames = clip(0.3, 0.03)
    frames[:, :, :60] = 0
    assert static_overlay(clip_statistics(frames)).mean() < 0.03


def test_filling_leaves_no_shape_of_a_letter() -> None:
    marks = np.zeros((60, 120), bool)
    marks[20:34, 30] = marks[20:34, 38] = marks[27, 30:38] = True  # an H
    marks[50, 100] = True  # a speck
    mask = filled(marks)
    assert mask[20:34, 30:39].all()
    assert not mask[50, 100]
    rows, columns = np.nonzero(mask)
    assert mask.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_a_long_line_does_not_take_its_whole_box() -> None:
    marks = np.eye(200, dtype=bool)
    mask = filled(marks)
    assert mask[np.eye(200, dtype=bool)].all()
    assert mask.mean() < 0.3
