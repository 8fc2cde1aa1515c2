"""Metrics agree with their definitions, with MONAI, and with each other."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_roc_auc
from numpy.typing import NDArray

from echofed.learning.metrics import (
    auc,
    bootstrap_interval,
    calibration_bins,
    confusion_matrix,
    dice,
    metric,
    patient_scores,
    roc_curve,
)
from echofed.protocol.study import Task

BINARY = Task(kind="binary", labels=("benign", "malignant"))
MULTICLASS = Task(kind="multiclass", labels=("a", "b", "c"))
MULTILABEL = Task(kind="multilabel", labels=("a", "b"))
REGRESSION = Task(kind="regression", labels=("value",), value_range=(20.0, 80.0))
SEGMENTATION = Task(kind="segmentation", labels=("lesion",))

scored = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]), st.booleans()), min_size=2, max_size=40
).filter(lambda pairs: len({positive for _, positive in pairs}) == 2)


def columns(pairs: list[tuple[float, bool]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return np.array([score for score, _ in pairs]), np.array([positive for _, positive in pairs])


@given(scored)
def test_auc_is_the_fraction_of_pairs_in_order(pairs: list[tuple[float, bool]]) -> None:
    scores, positive = columns(pairs)
    above = scores[positive][:, None] - scores[~positive]
    expected = ((above > 0) + 0.5 * (above == 0)).mean()
    area = auc(scores, positive)
    assert area == pytest.approx(expected)
    assert area == pytest.approx(compute_roc_auc(torch.tensor(scores), torch.tensor(positive).int()))


@given(scored)
def test_the_area_under_the_roc_curve_is_the_auc(pairs: list[tuple[float, bool]]) -> None:
    scores, positive = columns(pairs)
    curve = roc_curve(scores, positive)
    assert curve is not None
    x, y = curve.false_positive_rate, curve.true_positive_rate
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert float(np.trapezoid(y, x)) == pytest.approx(auc(scores, positive))
    for alarm, hit, threshold in zip(x, y, curve.thresholds, strict=True):
        assert hit == pytest.approx((scores[positive] >= threshold).mean())
        assert alarm == pytest.approx((scores[~positive] >= threshold).mean())


def test_auc_of_float32_scores_and_many_items() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(5000) < 0.3
    scores = (rng.normal(size=5000) + positive).astype(np.float32)
    area = auc(scores, positive)
    assert area == pytest.approx(compute_roc_auc(torch.tensor(scores), torch.tensor(positive).int()), abs=1e-9)
    assert area == pytest.approx(0.76, abs=0.02)


@pytest.mark.parametrize("positive", [True, False])
def test_one_class_alone_has_no_auc(positive: bool) -> None:
    truth = np.full(3, positive)
    assert auc(np.array([0.1, 0.2, 0.3]), truth) is None
    assert roc_curve(np.array([0.1, 0.2, 0.3]), truth) is None
    assert metric(BINARY, np.array([[0.1], [0.2], [0.3]]), truth[:, None].astype(np.float32)) is None


@pytest.mark.parametrize("task", [BINARY, MULTICLASS, MULTILABEL, REGRESSION, SEGMENTATION])
def test_nothing_has_no_metric(task: Task) -> None:
    assert metric(task, np.zeros((0, 1)), np.zeros((0, 1))) is None


def test_binary_metric_is_the_auc() -> None:
    scores, targets = np.array([[0.2], [0.6], [0.4], [0.9]]), np.array([[0.0], [0.0], [1.0], [1.0]])
    assert metric(BINARY, scores, targets) == 0.75


def test_multiclass_metric_is_the_mean_over_classes_that_can_be_judged() -> None:
    scores = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.5, 0.3, 0.2], [0.6, 0.3, 0.1]])
    targets = np.array([[0.0], [1.0], [0.0], [1.0]])
    first, second = auc(scores[:, 0], targets[:, 0] == 0), auc(scores[:, 1], targets[:, 0] == 1)
    assert first is not None
    assert second is not None
    assert metric(MULTICLASS, scores, targets) == pytest.approx((first + second) / 2)


def test_multilabel_metric_is_the_mean_over_findings() -> None:
    scores = np.array([[0.2, 0.9], [0.6, 0.1], [0.4, 0.3], [0.9, 0.8]])
    targets = np.array([[0.0, 1], [0, 0], [1, 0], [1, 1]])
    assert metric(MULTILABEL, scores, targets) == pytest.approx((0.75 + 1) / 2)
    assert metric(MULTILABEL, scores, np.column_stack([targets[:, 0], np.ones(4)])) == 0.75


def test_regression_metric_is_in_the_values_own_unit() -> None:
    scores, targets = np.array([[0.5], [0.25]]), np.array([[0.6], [0.05]])
    assert metric(REGRESSION, scores, targets) == pytest.approx((6 + 12) / 2)


def test_dice_agrees_with_monai_and_segmentation_metric_is_its_mean() -> None:
    rng = np.random.default_rng(1)
    maps, masks = rng.random((5, 1, 8, 8)), (rng.random((5, 8, 8)) < 0.4).astype(np.uint8)
    expected = compute_dice(torch.tensor(maps > 0.5), torch.tensor(masks)[:, None]).squeeze(1).numpy()
    scores = dice(maps, masks)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert metric(SEGMENTATION, scores[:, None], np.zeros((5, 0))) == pytest.approx(expected.mean())


def test_dice_of_nothing_found_where_nothing_is() -> None:
    empty, full = np.zeros((1, 4, 4)), np.ones((1, 4, 4))
    assert dice(empty, empty).tolist() == [1.0]
    assert dice(full, empty).tolist() == [0.0]
    assert dice(empty, full).tolist() == [0.0]
    assert dice(full, full).tolist() == [1.0]


def test_a_patient_has_the_mean_score_and_any_finding() -> None:
    patient_of_item = np.array([7, 2, 7, 2, 9])
    scores = np.array([[0.2], [0.5], [0.4], [0.7], [0.9]])
    targets = np.array([[0.0], [0.0], [1.0], [0.0], [1.0]], np.float32)
    patients, truth = patient_scores(BINARY, scores, targets, patient_of_item)
    np.testing.assert_allclose(patients, [[0.6], [0.3], [0.9]])
    assert truth.tolist() == [[0], [1], [1]]


def test_a_patient_of_several_classes_has_the_most_frequent_or_the_later_one() -> None:
    patient_of_item = np.array([0, 0, 0, 1, 1])
    scores = np.full((5, 3), 1 / 3)
    _, truth = patient_scores(MULTICLASS, scores, np.array([[1.0], [0], [1], [2], [0]]), patient_of_item)
    assert truth.tolist() == [[1], [2]]


def test_a_patient_has_the_mean_value_and_segmentation_needs_no_target() -> None:
    patient_of_item = np.array([0, 0, 1])
    _, values = patient_scores(REGRESSION, np.zeros((3, 1)), np.array([[0.2], [0.4], [0.9]]), patient_of_item)
    np.testing.assert_allclose(values, [[0.3], [0.9]])
    means, none = patient_scores(SEGMENTATION, np.array([[0.5], [1.0], [0.2]]), np.zeros((3, 0)), patient_of_item)
    np.testing.assert_allclose(means, [[0.75], [0.2]])
    assert none.shape == (2, 0)
    assert patient_scores(BINARY, np.zeros((0, 1)), np.zeros((0, 1)), np.zeros(0, np.int64))[0].shape == (0, 1)


def test_the_interval_of_a_mean_is_that_of_the_central_limit_theorem() -> None:
    values = np.random.default_rng(2).normal(3, 2, 400)
    interval = bootstrap_interval(lambda i: float(values[i].mean()), np.arange(400), np.random.default_rng(0), 2000)
    assert interval is not None
    half = 1.96 * values.std() / 20
    np.testing.assert_allclose(interval, (values.mean() - half, values.mean() + half), atol=0.03)


def test_the_interval_draws_patients_and_not_items() -> None:
    values = np.repeat(np.random.default_rng(2).normal(size=40), 25)
    shuffled = np.random.default_rng(3).permutation(1000)

    def width(patients: NDArray[np.int64]) -> float:
        interval = bootstrap_interval(lambda i: float(values[shuffled][i].mean()), patients, np.random.default_rng(0))
        assert interval is not None
        return interval[1] - interval[0]

    by_patient, by_item = width(np.repeat(np.arange(40), 25)[shuffled]), width(np.arange(1000))
    assert by_patient == pytest.approx(5 * by_item, rel=0.25)


def test_the_interval_is_repeatable_contains_the_auc_and_is_absent_where_undefined() -> None:
    rng = np.random.default_rng(4)
    positive = rng.random(200) < 0.4
    scores = rng.normal(size=200) + positive

    def interval(count: int) -> Any:
        return bootstrap_interval(
            lambda i: auc(scores[i], positive[i]), np.arange(200) // count, np.random.default_rng(0)
        )

    low, high = interval(2)
    assert (low, high) == interval(2)
    assert low < auc(scores, positive) < high  # type: ignore[operator]
    assert 0.05 < high - low < 0.25
    assert interval(200) is None
    assert bootstrap_interval(lambda i: None, np.arange(200), np.random.default_rng(0)) is None


def test_calibration_bins_hold_every_item_once() -> None:
    scores = np.array([0.0, 0.05, 0.5, 0.55, 0.99, 1.0])
    positive = np.array([False, True, True, True, True, False])
    bins = calibration_bins(scores, positive, bins=10)
    assert [(b.items, round(b.mean_score, 3), b.observed_fraction) for b in bins] == [
        (2, 0.025, 0.5),
        (2, 0.525, 1.0),
        (2, 0.995, 0.5),
    ]


def test_confusion_matrix_has_true_classes_in_rows() -> None:
    matrix = confusion_matrix(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 0]]
    assert confusion_matrix(np.zeros(0, np.int64), np.zeros(0, np.int64), 2).tolist() == [[0, 0], [0, 0]]
