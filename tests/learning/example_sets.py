"""Small made-up sites for tests of training."""

from collections.abc import Sequence

import numpy as np

from echofed.learning.examples import Examples


def make_examples(
    item_sizes: Sequence[Sequence[int]], side: int = 16, seed: int = 0, features: int | None = None, masks: bool = False
) -> Examples:
    """Return a site of noise images with binary targets, patients' images interleaved on disk.

    Args:
        item_sizes: for each patient, the number of images of each item.
        side: of the images, pixels.
        seed: of images and targets.
        features: dimensions of random features, if wanted.
        masks: whether every image has a mask (and items no target).
    """
    rng = np.random.default_rng(seed)
    sizes = [size for patient in item_sizes for size in patient]
    places = rng.permutation(sum(sizes))
    item_images = tuple(np.sort(part).astype(np.int64) for part in np.split(places, np.cumsum(sizes)[:-1]))
    items_of_patients = np.split(np.arange(len(sizes)), np.cumsum([len(patient) for patient in item_sizes])[:-1])
    return Examples(
        images=rng.integers(256, size=(len(places), side, side), dtype=np.uint8),
        masks=rng.integers(2, size=(len(places), side, side), dtype=np.uint8) if masks else None,
        targets=rng.integers(2, size=(len(sizes), 0 if masks else 1)).astype(np.float32),
        item_images=item_images,
        patient_items=tuple(items_of_patients),
        features=None if features is None else rng.standard_normal((len(places), features), dtype=np.float32),
    )
