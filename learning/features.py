"""Features of a fixed encoder, worked out once for every image of a site."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from echofed.learning.images import to_input
from echofed.learning.models import StudyModel
from echofed.protocol.study import Study


def fixed_features(model: StudyModel, images: NDArray[np.uint8], study: Study) -> Iterator[NDArray[np.float32]]:
    """Yield the features of images, float32 [1, dimensions] at a time, in order.

    Images are encoded one by one, which costs little: side by side, an image's features would depend on its neighbours' presence
    in their last bits, and so on other patients.

    Args:
        model: with `has_fixed_features`.
        images: grey levels, uint8 [images, side, side].
        study: says how images become inputs.
    """
    model.eval()
    with torch.no_grad():
        for image in images:
            yield model.encode(to_input(np.asarray(image)[None], study.preprocessing)).numpy()
