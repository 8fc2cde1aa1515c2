"""Clips: one picture set in motion by the patient's breathing, the probe's slide and its pressure."""

import numpy as np

from echofed.simulations.phantoms.speckle import Floats
from echofed.simulations.phantoms.vendors import Pixels

BREATHS_PER_SECOND = 0.3
SLIDE_PX_PER_FRAME = 0.35
NOISE_LEVELS = 1.5


def move_tissue(image: Pixels, frames: int, frames_per_second: float, generator: np.random.Generator) -> Pixels:
    """Return a clip of the picture; its first frame is the picture itself.

    Tissue and speckle shift together along and across the beams and are compressed slightly, as under a hand-held
    probe; the receiver's noise is new in each frame. What is black for want of beams stays black.

    Args:
        image: uint8 [rows, columns].
        frames: > 0.
        frames_per_second: > 0.
        generator: source of the motion.

    Returns:
        uint8 [frames, rows, columns].
    """
    rows, columns = image.shape
    steps = generator.normal(0, SLIDE_PX_PER_FRAME, (frames, 2)) + generator.normal(0, 0.6 * SLIDE_PX_PER_FRAME, 2)
    steps[0] = 0
    slide = np.cumsum(steps, axis=0)
    phase = generator.uniform(0, 2 * np.pi)
    breath = np.sin(phase + 2 * np.pi * BREATHS_PER_SECOND * np.arange(frames) / frames_per_second) - np.sin(phase)
    clip = np.empty((frames, rows, columns), np.uint8)
    clip[0] = image
    source, seen = image.astype(np.float32), _seen(image)
    for index in range(1, frames):
        strain = 1 + 0.012 * breath[index]
        down = np.arange(rows) * strain + slide[index, 0] + 0.008 * rows * breath[index]
        across = np.arange(columns) + slide[index, 1]
        moved = _sample(_sample(source, down).T, across).T
        moved += NOISE_LEVELS * generator.standard_normal((rows, columns), dtype=np.float32)
        clip[index] = np.clip(moved, 0, 255).round() * seen
    return clip


def _seen(image: Pixels) -> Pixels:
    """Return 1 for every pixel between the outermost echoes of its row; beside a sector there are none."""
    echo = image > 0
    left = np.maximum.accumulate(echo, axis=1)
    right = np.maximum.accumulate(echo[:, ::-1], axis=1)[:, ::-1]
    return (left & right).astype(np.uint8)


def _sample(image: Floats, rows: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Floats:
    """Return the image at fractional rows, repeating the outermost ones."""
    last = image.shape[0] - 1
    rows = np.clip(rows, 0, last)
    first = np.minimum(rows.astype(np.intp), last - 1)
    share = (rows - first).astype(np.float32)[:, None]
    return np.asarray(image[first] * (1 - share) + image[first + 1] * share, np.float32)
