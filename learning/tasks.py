"""What each kind of task costs and says: a loss for each item, and scores from logits."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from echofed.protocol.study import Task

REGRESSION_BEND = 0.1
"""The regression loss is quadratic below this fraction of the value's range and linear above."""
DICE_SMOOTHING_PX = 1.0
"""Gives an image without the structure a gradient: its loss falls as fewer pixels are outlined."""


def item_losses(task: Task, logits: Tensor, targets: Tensor, masks: Tensor | None = None) -> Tensor:
    """Return the loss of each item, float [items].

    binary: cross-entropy, times the class's weight. multiclass: cross-entropy, times the class's weight. multilabel:
    cross-entropy averaged over findings, a finding's weight counting where it is present. regression: smooth L1 between
    sigmoid(logit) and the target. segmentation: Dice loss plus cross-entropy averaged over pixels, the label's weight
    counting on its pixels. An item's loss never depends on another item.

    Args:
        task: of the study.
        logits: float [items, outputs]; segmentation [items, 1, side, side].
        targets: float [items, outputs] as in `Examples`; unused for segmentation.
        masks: 0 or 1, any dtype, [items, side, side] or [items, 1, side, side]; segmentation only.
    """
    weights = None if task.class_weights is None else logits.new_tensor(task.class_weights)
    match task.kind:
        case "binary":
            losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").squeeze(1)
            return losses if weights is None else losses * weights[targets.squeeze(1).long()]
        case "multiclass":
            return F.cross_entropy(logits, targets.squeeze(1).long(), weight=weights, reduction="none")
        case "multilabel":
            return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none").mean(1)
        case "regression":
            losses = F.smooth_l1_loss(torch.sigmoid(logits), targets, beta=REGRESSION_BEND, reduction="none").squeeze(1)
            return losses if weights is None else losses * weights[0]
        case "segmentation":
            if masks is None:
                raise ValueError("a segmentation loss needs masks")
            return _segmentation_losses(logits, masks.reshape(logits.shape).to(logits.dtype), weights)


def _segmentation_losses(logits: Tensor, masks: Tensor, weights: Tensor | None) -> Tensor:
    from monai.losses import DiceLoss

    dice_loss = DiceLoss(sigmoid=True, reduction="none", smooth_nr=DICE_SMOOTHING_PX, smooth_dr=DICE_SMOOTHING_PX)
    dice: Tensor = dice_loss(logits, masks)
    entropy = F.binary_cross_entropy_with_logits(logits, masks, pos_weight=weights, reduction="none")
    return dice.flatten(1).mean(1) + entropy.flatten(1).mean(1)


def probabilities(task: Task, logits: Tensor) -> NDArray[np.float32]:
    """Return scores in [0, 1], float32, in the shape of the logits.

    binary and multilabel: probability of each finding. multiclass: of each class, summing to 1. regression: the value
    over the task's range. segmentation: of each pixel.
    """
    scores = torch.softmax(logits, 1) if task.kind == "multiclass" else torch.sigmoid(logits)
    return scores.detach().to(torch.float32).numpy()
