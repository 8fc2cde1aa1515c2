"""Gated attention pooling: one feature vector for all images of an exam."""

import torch
from torch import Tensor, nn

HIDDEN = 16


class AttentionPooling(nn.Module):
    """Average the features of an item's images, weighted by a learned gated attention.

    The attention of an image depends on that image alone and is normalised within its item, so an item's pooled
    features never depend on other items. The scoring vector starts at zero: a new layer is the plain mean. The hidden
    layer is small because under differential privacy every parameter adds noise.

    Ilse et al. (2018), eq. 9.

    Args:
        dimensions: length of an image's feature vector.
    """

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.content = nn.Linear(dimensions, HIDDEN)
        self.gate = nn.Linear(dimensions, HIDDEN)
        self.score = nn.Linear(HIDDEN, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, features: Tensor, item_of_image: Tensor, items: int) -> Tensor:
        """Return the pooled features, float [items, dimensions].

        Args:
            features: float [images, dimensions].
            item_of_image: each image's item, int64 [images], in [0, items); every item has at least one image.
            items: number of items.
        """
        scores = self.score(torch.tanh(self.content(features)) * torch.sigmoid(self.gate(features))).squeeze(1)
        highest = scores.new_full((items,), -torch.inf).scatter_reduce(0, item_of_image, scores.detach(), "amax")
        weights = torch.exp(scores - highest[item_of_image])
        totals = weights.new_zeros(items).index_add(0, item_of_image, weights)
        shares = weights / totals[item_of_image]
        return features.new_zeros(items, features.shape[1]).index_add(0, item_of_image, features * shares[:, None])
