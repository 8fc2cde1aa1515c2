"""Figures as sums: one patient's part is bounded, and the metric read from the sum is the metric."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from echofed.learning.metrics import metric
from echofed.protocol.figures import (
    BINS,
    calibration_of,
    contributions,
    figure_bound,
    figure_count,
    metric_of,
)
from echofed.protocol.study import Task, TaskKind

TASKS: dict[TaskKind, Task] = {
    "binary": Task(kind="binary", labels=("benign", "malignant")),
    "multiclass": Task(kind="multiclass", labels=("cyst", "adenoma", "carcinoma", "other")),
    "multilabel": Task(kind="multilabel", labels=("halo", "shadowing", "spiculated")),
    "segmentation": Task(kind="segmentation", labels=("lesion",)),
    "regression": Task(kind="regression", labels=("size_mm",), value_range=(0.0, 80.0)),
}
Floats = NDArray[np.float64]


def patients(task: Task, count: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Draw scores and targets that go together somewhat."""
    rng = np.random.default_rng(seed)
    if task.kind == "segmentation":
        return rng.beta(8, 2, (count, 1)), np.empty((count, 0))
    if task.kind == "regression":
        target = rng.random((count, 1))
        return np.clip(target + rng.normal(0, 0.1, target.shape), 0, 1), target
    outputs = len(task.labels) if task.kind in ("multiclass", "multilabel") else 1
    if task.kind == "multiclass":
        target = rng.integers(outputs, size=(count, 1)).astype(float)
        logits = rng.normal(size=(count, outputs)) + 1.5 * (target == np.arange(outputs))
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), target
    target = (rng.random((count, outputs)) < 0.4).astype(float)
    return 1 / (1 + np.exp(1 - rng.normal(size=target.shape) - 2 * target)), target


numbers = st.floats(allow_nan=True, allow_infinity=True)


@pytest.mark.parametrize("kind", TASKS)
@given(score=st.lists(numbers, min_size=4, max_size=4), target=st.lists(numbers, min_size=4, max_size=4))
def test_no_patient_adds_more_than_the_bound(kind: TaskKind, score: list[float], target: list[float]) -> None:
    task = TASKS[kind]
    scores, targets = (part[:1] for part in patients(task, 1))
    scores = np.array([score[: scores.shape[1]]])
    if targets.shape[1] and kind not in ("multiclass", "regression"):
        targets = np.array([target[: targets.shape[1]]])
    part = contributions(task, scores, targets)
    assert part.shape == (1, figure_count(task))
    assert np.linalg.norm(part) <= figure_bound(task) * (1 + 1e-12)


@pytest.mark.parametrize("kind", TASKS)
def test_the_metric_of_the_sums_is_the_metric(kind: TaskKind) -> None:
    task = TASKS[kind]
    scores, targets = patients(task, 4000)
    sites = [contributions(task, scores[start::3], targets[start::3]).sum(0) for start in range(3)]
    found, exact = metric_of(task, np.sum(sites, axis=0)), metric(task, scores, targets)
    assert found is not None
    assert exact is not None
    assert found[1] == 0
    tolerance = 1e-9 if kind in ("segmentation", "regression") else 0.01
    assert found[0] == pytest.approx(exact, abs=tolerance)


@pytest.mark.parametrize("kind", TASKS)
def test_the_error_said_is_the_error_noise_makes(kind: TaskKind) -> None:
    task, rng, stddev = TASKS[kind], np.random.default_rng(1), 3.0
    scores, targets = patients(task, 2000)
    sums = contributions(task, scores, targets).sum(0)
    found = [metric_of(task, sums + rng.normal(0, stddev, len(sums)), stddev) for _ in range(600)]
    values, errors = np.array([one for one in found if one is not None]).T
    assert values.std() == pytest.approx(errors.mean(), rel=0.15)


@pytest.mark.parametrize("kind", TASKS)
def test_what_does_not_stand_out_of_the_noise_is_not_given(kind: TaskKind) -> None:
    task = TASKS[kind]
    assert metric_of(task, np.zeros(figure_count(task))) is None
    sums = contributions(task, *patients(task, 30)).sum(0)
    assert metric_of(task, sums, 100.0) is None


def test_calibration_is_read_from_the_sums() -> None:
    task, rng = TASKS["binary"], np.random.default_rng(2)
    scores = 1 / (1 + np.exp(-rng.normal(0, 2, (20_000, 1))))
    sums = contributions(task, scores, (rng.random(scores.shape) < scores).astype(float)).sum(0)
    bins = calibration_of(task, sums)
    assert len(bins) == BINS
    assert sum(one.patients for one in bins) == 20_000
    assert max(abs(one.positive_rate - one.mean_score) for one in bins[1:-1]) < 0.05
    assert all(0 <= one.positive_rate <= 1 for one in calibration_of(task, sums + rng.normal(0, 500, len(sums))))
    assert calibration_of(TASKS["regression"], np.ones(2)) == []


def test_the_bound_counts_each_finding() -> None:
    assert figure_bound(TASKS["binary"]) == 1
    assert figure_bound(TASKS["multiclass"]) == 2
    assert figure_bound(TASKS["segmentation"]) == math.sqrt(2)
