"""From a site's items to what a model sees in one pass: loading, augmenting and cutting to what memory holds."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from echofed.learning.augment import augment
from echofed.learning.examples import Examples
from echofed.learning.images import to_input
from echofed.learning.models import StudyModel
from echofed.learning.tasks import item_losses
from echofed.protocol.study import Study

MAX_BATCH_PIXELS = 2**18
"""Pixels of one forward and backward pass: 64 images of 64 px, 16 of 128 px, 4 of 256 px."""
MAX_BATCH_FEATURES = 2**22
"""Numbers of one pass over features: 16 MB."""


@dataclass(frozen=True)
class Batch:
    """Items of one forward pass, whole, with their share of the loss.

    Args:
        inputs: images, float [n, 1, side, side], or features, float [n, dimensions].
        item_of_image: each image's item, int64 [n], ascending.
        targets: float [items, outputs].
        masks: [n, side, side], or None.
        shares: what each item's loss is multiplied by, float [items].
    """

    inputs: Tensor
    item_of_image: Tensor
    targets: Tensor
    masks: Tensor | None
    shares: Tensor


def copies_of(study: Study, examples: Examples) -> int:
    """Return how many augmented copies of an item are averaged: 1 while augmentation is off, as they would be equal."""
    augmentation = study.training.augmentation
    return 1 if examples.features is not None or not augmentation.is_on else augmentation.copies


def batches(
    examples: Examples,
    study: Study,
    items: NDArray[np.int64],
    shares: NDArray[np.float64],
    dtype: torch.dtype,
    rng: np.random.Generator | None = None,
) -> Iterator[Batch]:
    """Load items in the order given, in batches as large as memory allows; an item is never split.

    Args:
        examples: of the site.
        study: says how images become inputs.
        items: rows of `examples.targets`, int64 [n]; may repeat, each time with its own augmentation.
        shares: what each item's loss is multiplied by, [n].
        dtype: of the model's parameters.
        rng: draws the augmentation; None for none.
    """
    images_of = [examples.item_images[item] for item in items]
    for first, last in cuts([len(images) for images in images_of], _images_per_batch(examples)):
        rows = np.concatenate(images_of[first:last])
        counts = torch.tensor([len(images) for images in images_of[first:last]])
        masks = None if examples.masks is None else torch.from_numpy(examples.masks[rows])
        if examples.features is not None:
            inputs = torch.from_numpy(examples.features[rows])
        else:
            inputs = to_input(examples.images[rows], study.preprocessing)
            if rng is not None:
                inputs, masks = augment(inputs, masks, study.training.augmentation, rng)
        yield Batch(
            inputs.to(dtype, copy=True),  # torch's own memory is aligned alike whatever came before
            torch.repeat_interleave(torch.arange(last - first), counts),
            torch.from_numpy(examples.targets[items[first:last]]).to(dtype),
            masks,
            torch.from_numpy(shares[first:last]).to(dtype),
        )


def _images_per_batch(examples: Examples) -> int:
    if examples.features is not None:
        return max(1, MAX_BATCH_FEATURES // int(examples.features.shape[1]))
    return max(1, MAX_BATCH_PIXELS // math.prod(examples.images.shape[1:]))


def cuts(sizes: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Yield first and last + 1 of runs of a sequence whose sizes add up to the limit at most, or that hold one element."""
    first, total = 0, 0
    for position, size in enumerate(sizes):
        if position > first and total + size > limit:
            yield first, position
            first, total = position, 0
        total += size
    if first < len(sizes):
        yield first, len(sizes)


def batch_logits(model: StudyModel, examples: Examples, batch: Batch) -> Tensor:
    """Return the model's logits for a batch; [items, outputs], or [n, 1, side, side] when segmenting.

    An exam of more images than a batch holds is encoded in parts whose activations are computed again when gradients are, so
    that memory stays bounded (Chen et al. (2016)) and the gradient exact.
    """
    items = len(batch.targets)
    if examples.features is not None:
        return model.answer(batch.inputs, batch.item_of_image, items)
    parts = batch.inputs.split(_images_per_batch(examples))  # type: ignore[no-untyped-call]
    if len(parts) == 1:
        logits: Tensor = model(batch.inputs, batch.item_of_image, items)
        return logits
    encode = partial(checkpoint, model.encode, use_reentrant=False, preserve_rng_state=False)
    features = [encode(part) if torch.is_grad_enabled() else model.encode(part) for part in parts]
    return model.answer(torch.cat(features), batch.item_of_image, items)


def batch_losses(model: StudyModel, examples: Examples, study: Study, batch: Batch) -> Tensor:
    """Return each item's loss times its share, float [items]."""
    logits = batch_logits(model, examples, batch)
    return item_losses(study.task, logits, batch.targets, batch.masks) * batch.shares
