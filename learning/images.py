"""From stored grey levels to what a network sees."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echofed.protocol.study import Preprocessing

MINIMUM_STANDARD_DEVIATION = 1e-3
"""Below a quarter of a grey level an image is constant; dividing by less would amplify rounding."""


def to_input(images: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """Return images as a network's input, float32 [n, 1, side, side].

    Grey levels become [0, 1]; with `standardise: image` each image then has mean 0 and standard deviation 1 (a constant
    image becomes 0). Each image is treated alone. The result shares no memory with `images`.

    Args:
        images: grey levels, uint8 [n, side, side]; n may be 0; may be memory-mapped.
        preprocessing: of the study.
    """
    values = torch.from_numpy(images.astype(np.float32)).div_(255).unsqueeze(1)
    if preprocessing.standardise == "none" or len(values) == 0:
        return values
    deviations, means = torch.std_mean(values, dim=(1, 2, 3), correction=0, keepdim=True)
    return (values - means) / deviations.clamp_min(MINIMUM_STANDARD_DEVIATION)
