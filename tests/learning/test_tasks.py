"""Losses are per item and follow their formulas; scores are probabilities."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss

from echofed.learning.tasks import item_losses, probabilities
from echofed.protocol.study import Task

TASKS: dict[str, dict[str, Any]] = {
    "binary": {"labels": ("benign", "malignant")},
    "multiclass": {"labels": ("a", "b", "c")},
    "multilabel": {"labels": ("a", "b", "c", "d")},
    "regression": {"labels": ("value",), "value_range": (20.0, 80.0)},
    "segmentation": {"labels": ("lesion",)},
}


def make_task(kind: str, **more: Any) -> Task:
    return Task.model_validate({"kind": kind, **TASKS[kind], **more})


def example(kind: str, n: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    if kind == "segmentation":
        logits = torch.randn(n, 1, 8, 8, generator=generator)
        return logits, torch.zeros(n, 0), (torch.rand(n, 8, 8, generator=generator) < 0.3).to(torch.uint8)
    outputs = {"binary": 1, "multiclass": 3, "multilabel": 4, "regression": 1}[kind]
    logits = torch.randn(n, outputs, generator=generator)
    if kind == "multiclass":
        return logits, torch.arange(n)[:, None].remainder(3).float(), None
    targets = torch.rand(n, outputs, generator=generator)
    return logits, targets if kind == "regression" else targets.round(), None


@pytest.mark.parametrize("kind", TASKS)
def test_the_loss_of_an_item_is_its_own(kind: str) -> None:
    task, (logits, targets, masks) = make_task(kind), example(kind)
    together = item_losses(task, logits, targets, masks)
    alone = [
        item_losses(task, logits[i : i + 1], targets[i : i + 1], None if masks is None else masks[i : i + 1])
        for i in range(6)
    ]
    assert together.shape == (6,)
    assert (together > 0).all()
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("kind", TASKS)
def test_each_item_gets_a_finite_gradient_even_at_extreme_logits(kind: str) -> None:
    task, (logits, targets, masks) = make_task(kind), example(kind)
    for scale in (1.0, 1e4):
        leaf = (logits * scale).requires_grad_()
        losses = item_losses(task, leaf, targets, masks)
        losses.sum().backward()
        assert losses.isfinite().all()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert scale > 1 or leaf.grad.flatten(1).abs().sum(1).min() > 0


def test_binary_cross_entropy_and_its_class_weights() -> None:
    logits, targets = torch.tensor([[0.0], [2.0], [2.0]]), torch.tensor([[1.0], [1.0], [0.0]])
    expected = torch.tensor([math.log(2), math.log1p(math.exp(-2)), math.log1p(math.exp(2))])
    torch.testing.assert_close(item_losses(make_task("binary"), logits, targets), expected)
    weighted = item_losses(make_task("binary", class_weights=(0.5, 3.0)), logits, targets)
    torch.testing.assert_close(weighted, expected * torch.tensor([3.0, 3.0, 0.5]))


def test_multiclass_cross_entropy_and_its_class_weights() -> None:
    logits, targets = torch.zeros(3, 3), torch.tensor([[0.0], [1.0], [2.0]])
    even = torch.full((3,), math.log(3))
    torch.testing.assert_close(item_losses(make_task("multiclass"), logits, targets), even)
    weighted = item_losses(make_task("multiclass", class_weights=(1.0, 2.0, 5.0)), logits, targets)
    torch.testing.assert_close(weighted, even * torch.tensor([1.0, 2.0, 5.0]))


def test_multilabel_weights_count_where_the_finding_is_present() -> None:
    logits, targets = torch.zeros(2, 4), torch.tensor([[1.0, 0, 0, 0], [0.0, 0, 0, 1]])
    task = make_task("multilabel", class_weights=(9.0, 1.0, 1.0, 1.0))
    expected = math.log(2) * torch.tensor([(9 + 3) / 4, 1.0])
    torch.testing.assert_close(item_losses(task, logits, targets), expected)


def test_regression_loss_is_quadratic_near_the_value_and_linear_far() -> None:
    logits = torch.zeros(3, 1)
    losses = item_losses(make_task("regression"), logits, torch.tensor([[0.5], [0.55], [1.0]]))
    torch.testing.assert_close(losses, torch.tensor([0.0, 0.05**2 / 0.2, 0.5 - 0.05]))
    doubled = item_losses(make_task("regression", class_weights=(2.0,)), logits, torch.tensor([[0.5], [0.55], [1.0]]))
    torch.testing.assert_close(doubled, 2 * losses)


def test_segmentation_loss_is_dice_plus_cross_entropy() -> None:
    logits, targets, masks = example("segmentation")
    assert masks is not None
    truth = masks.float().unsqueeze(1)
    losses = item_losses(make_task("segmentation"), logits, targets, masks)
    for i in range(6):
        dice = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)(logits[i : i + 1], truth[i : i + 1])
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits[i], truth[i])
        torch.testing.assert_close(losses[i], dice + entropy)
    torch.testing.assert_close(item_losses(make_task("segmentation"), logits, targets, truth), losses)


def test_an_image_without_the_structure_still_teaches() -> None:
    empty, task = torch.zeros(1, 8, 8), make_task("segmentation")
    few = item_losses(task, torch.full((1, 1, 8, 8), -6.0), torch.zeros(1, 0), empty)
    many = item_losses(task, torch.full((1, 1, 8, 8), 6.0), torch.zeros(1, 0), empty)
    assert few < 0.2 < 1 < many


def test_segmentation_without_masks_is_refused() -> None:
    with pytest.raises(ValueError, match="needs masks"):
        item_losses(make_task("segmentation"), torch.zeros(1, 1, 8, 8), torch.zeros(1, 0))


@pytest.mark.parametrize("kind", TASKS)
def test_scores_are_probabilities_in_the_shape_of_the_logits(kind: str) -> None:
    logits = example(kind)[0].requires_grad_()
    scores = probabilities(make_task(kind), logits)
    assert scores.dtype == np.float32
    assert scores.shape == tuple(logits.shape)
    assert 0 < scores.min() < scores.max() < 1
    if kind == "multiclass":
        np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-6)
    else:
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits.detach().numpy())), rtol=1e-5)
