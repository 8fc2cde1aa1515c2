"""Random changes of an image that keep the finding, for whole batches at once."""

import numpy as np
import torch
from torch import Tensor

from echofed.protocol.study import Augmentation


def augment(
    images: Tensor, masks: Tensor | None, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[Tensor, Tensor | None]:
    """Return changed copies of images, and of masks moved with them.

    Each image gets its own changes, drawn from `rng` alone. The very tensors given come back when all changes are off.
    Gain and speckle scale the distance to the image's darkest level, so they act alike on [0, 1] and on standardised
    images. What moves in from outside repeats the border. Masks move by whole pixels, so they stay 0 or 1.

    Args:
        images: float [n, 1, side, side].
        masks: 0 or 1, any dtype, [n, 1, side, side] or [n, side, side], or None.
        augmentation: of the study.
        rng: draws the changes.
    """
    if not augmentation.is_on or len(images) == 0:
        return images, masks
    n = len(images)
    if augmentation.flip:
        mirrored = torch.from_numpy(rng.random(n) < 0.5)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        if masks is not None:
            masks = torch.where(mirrored.view(-1, *(1,) * (masks.dim() - 1)), masks.flip(-1), masks)
    if augmentation.shift or augmentation.zoom:
        images, masks = _move(images, masks, augmentation, rng)
    if augmentation.gain or augmentation.speckle:
        images = _rescale_echoes(images, augmentation, rng)
    return images, masks


def _move(
    images: Tensor, masks: Tensor | None, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[Tensor, Tensor | None]:
    # One call for the batch: MONAI's RandAffine takes one image at a time, and fifteen times as long for each.
    from monai.networks.layers import AffineTransform

    n = len(images)
    placing = np.zeros((n, 2, 3), np.float32)
    placing[:, [0, 1], [0, 1]] = 1 / (1 + rng.uniform(-augmentation.zoom, augmentation.zoom, (n, 1)))
    # The side is 2 in normalised coordinates.
    placing[:, :, 2] = rng.uniform(-2 * augmentation.shift, 2 * augmentation.shift, (n, 2))
    theta = torch.from_numpy(placing)
    settings = {"normalized": True, "reverse_indexing": False, "align_corners": False, "padding_mode": "border"}
    moved: Tensor = AffineTransform(mode="bilinear", **settings)(images, theta)
    if masks is None:
        return moved, None
    four_dimensional = masks.reshape(images.shape).to(images.dtype)
    moved_masks: Tensor = AffineTransform(mode="nearest", **settings)(four_dimensional, theta)
    return moved, moved_masks.to(masks.dtype).reshape(masks.shape)


def _rescale_echoes(images: Tensor, augmentation: Augmentation, rng: np.random.Generator) -> Tensor:
    n = len(images)
    factor = torch.ones(n, 1, 1, 1, dtype=images.dtype)
    if augmentation.gain:
        factor = factor + torch.from_numpy(rng.uniform(-augmentation.gain, augmentation.gain, (n, 1, 1, 1))).to(factor)
    if augmentation.speckle:
        noise = torch.from_numpy(rng.standard_normal(tuple(images.shape), dtype=np.float32)).to(factor)
        factor = factor * (1 + augmentation.speckle * noise).clamp_min(0)
    darkest = images.amin(dim=(1, 2, 3), keepdim=True)
    return darkest + (images - darkest) * factor
