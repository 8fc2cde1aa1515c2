"""Features of a fixed encoder, worked out once for every image of a site."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from echofed.learning.batches import MAX_BATCH_PIXELS
from echofed.learning.images import to_input
from echofed.learning.models import StudyModel
from echofed.protocol.study import Study


def fixed_features(model: StudyModel, images: NDArray[np.uint8], study: Study) -> Iterator[NDArray[np.float32]]:
    """Yield the features of images, float32 [n, dimensions] at a time, in order.

    Args:
        model: with `has_fixed_features`.
        images: grey levels, uint8 [images, side, side].
        study: says how images become inputs.
    """
    model.eval()
    at_a_time = max(1, MAX_BATCH_PIXELS // int(np.prod(images.shape[1:])))
    with torch.no_grad():
        for start in range(0, len(images), at_a_time):
            inputs = to_input(np.asarray(images[start : start + at_a_time]), study.preprocessing)
            yield model.encode(inputs).numpy()
