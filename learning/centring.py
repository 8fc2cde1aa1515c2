"""Centring features on the mean over the patients of all sites, learnt in the first rounds under the same privacy.

Fixed features are standardised on public images, but patients' images have another mean. Taking it out lets the head's few
noisy steps go into what differs between patients. It costs the share of the study's steps that learn it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from echofed.learning.examples import Examples

FEATURE_NORM = 8.0
"""Length of every feature vector, so that one clipping norm fits all studies and learning rates are of order one."""
CENTRE = "head.0.centre"
"""Name of the centre among a study model's parameters."""


class Centring(nn.Module):
    """Move feature vectors by a learnt centre, and make them all equally long again.

    Args:
        dimensions: length of a feature vector.
    """

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        # No gradient reaches it: the first rounds set it to a mean.
        self.centre = nn.Parameter(torch.zeros(dimensions), requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return vectors of length FEATURE_NORM, float [n, dimensions], of features, float [n, dimensions]."""
        return FEATURE_NORM * F.normalize(features / FEATURE_NORM - self.centre, dim=-1)


def patient_means(examples: Examples) -> NDArray[np.float32]:
    """Return each patient's mean feature vector, over items and within each over its images, float32 [patients, dimensions].

    None is longer than 1.

    Args:
        examples: with features of length FEATURE_NORM.
    """
    assert examples.features is not None
    items = np.stack([examples.features[rows].mean(0) for rows in examples.item_images])
    means = np.stack([items[own].mean(0) for own in examples.patient_items])
    return (means / FEATURE_NORM).astype(np.float32)
