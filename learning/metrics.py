"""How well scores fit targets: ranking, overlap, error, and how sure of it one can be. Numpy only."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echofed.protocol.study import Task

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]


def metric(task: Task, scores: Floats, targets: Floats) -> float | None:
    """Return the task's metric, or None where it is undefined (nothing to judge; AUC with one class only).

    binary: AUC. multiclass: AUC of each class against the rest, averaged over the classes that have both. multilabel:
    AUC of each finding, averaged likewise. segmentation: mean Dice. regression: mean absolute error in the value's own
    unit.

    Args:
        task: of the study.
        scores: float [items, outputs] as `tasks.probabilities` gives; segmentation: each image's `dice` [items, 1].
        targets: float [items, outputs] as in `Examples`; unused for segmentation.
    """
    if len(scores) == 0:
        return None
    match task.kind:
        case "binary":
            return auc(scores[:, 0], targets[:, 0] > 0.5)
        case "multiclass":
            return _mean_auc(scores, targets[:, :1] == np.arange(scores.shape[1]))
        case "multilabel":
            return _mean_auc(scores, targets > 0.5)
        case "regression":
            assert task.value_range is not None
            return float(np.abs(scores - targets).mean() * (task.value_range[1] - task.value_range[0]))
        case "segmentation":
            return float(scores.mean())


def _mean_auc(scores: Floats, present: NDArray[np.bool_]) -> float | None:
    each = [auc(scores[:, column], present[:, column]) for column in range(scores.shape[1])]
    defined = [area for area in each if area is not None]
    return float(np.mean(defined)) if defined else None


def auc(scores: Floats, positive: NDArray[np.bool_]) -> float | None:
    """Return the area under the ROC curve: the probability that a positive scores above a negative, ties counting half.

    None if there is no positive or no negative.

    Hanley & McNeil (1982), from ranks.

    Args:
        scores: float [n], finite.
        positive: bool [n].
    """
    positives = int(np.count_nonzero(positive))
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return None
    _, level, count = np.unique(scores, return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(count) - (count - 1) / 2
    rank_sum = float(middle_rank[level][positive].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def dice(probability_maps: Floats, masks: NDArray[np.generic], threshold: float = 0.5) -> NDArray[np.float64]:
    """Return each image's Dice score, float64 [n]; 1 where neither mask nor prediction has a pixel.

    Dice (1945).

    Args:
        probability_maps: float [n, 1, side, side] or [n, side, side], in [0, 1].
        masks: 0 or 1, as many values.
        threshold: a pixel is outlined above it.
    """
    predicted = probability_maps.reshape(len(probability_maps), -1) > threshold
    true = masks.reshape(len(masks), -1) != 0
    overlap = np.count_nonzero(predicted & true, axis=1)
    total = np.count_nonzero(predicted, axis=1) + np.count_nonzero(true, axis=1)
    return np.where(total == 0, 1.0, 2 * overlap / np.maximum(total, 1))


def patient_scores(
    task: Task, scores: Floats, targets: Floats, patient_of_item: Integers
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scores and targets of patients, [patients, outputs] each, from those of items.

    A patient's score is the mean over the patient's items. A binary or multilabel finding is present in a patient if
    it is in one item; a patient of several classes has the most frequent one, the later in the task's order if even;
    values are averaged. Patients come in the order of their numbers.

    Args:
        task: of the study.
        scores: float [items, outputs].
        targets: float [items, outputs] as in `Examples`; outputs may be 0.
        patient_of_item: int [items], any numbers.
    """
    _, patient = np.unique(patient_of_item, return_inverse=True)
    patients = int(patient.max()) + 1 if len(patient) else 0

    def summed(values: Floats) -> NDArray[np.float64]:
        sums = np.zeros((patients, values.shape[1]))
        np.add.at(sums, patient, values)
        return sums

    counts = np.bincount(patient, minlength=patients)[:, None].astype(np.float64)
    mean_scores = summed(scores) / counts
    if task.kind == "multiclass":
        votes = summed(np.eye(scores.shape[1])[targets[:, 0].astype(np.int64)])
        last_best = votes.shape[1] - 1 - np.argmax(votes[:, ::-1], axis=1)
        return mean_scores, last_best[:, None].astype(np.float64)
    if task.kind == "regression":
        return mean_scores, summed(targets) / counts
    return mean_scores, (summed(targets) > 0).astype(np.float64)


def bootstrap_interval(
    statistic: Callable[[Integers], float | None],
    patient_of_item: Integers,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Return the percentile interval of a statistic when patients are drawn with replacement.

    Items of a patient stay together, as they are not independent. Resamples where the statistic is undefined are left
    out; None if that is more than half of them, or if there are fewer than two patients.

    Efron & Tibshirani (1993), ch. 13.

    Args:
        statistic: from positions of items, int64, to a number, e.g. `lambda i: metric(task, scores[i], targets[i])`.
        patient_of_item: int [items], any numbers.
        rng: draws the patients.
        resamples: number of draws.
        level: probability the interval aims to cover, in (0, 1).
    """
    items_by_patient = np.argsort(patient_of_item, kind="stable")
    _, starts, sizes = np.unique(patient_of_item[items_by_patient], return_index=True, return_counts=True)
    if len(starts) < 2:
        return None
    values = []
    for _ in range(resamples):
        drawn = rng.integers(len(starts), size=len(starts))
        drawn_sizes = sizes[drawn]
        before = np.cumsum(drawn_sizes) - drawn_sizes
        positions = np.arange(drawn_sizes.sum()) + np.repeat(starts[drawn] - before, drawn_sizes)
        value = statistic(items_by_patient[positions])
        if value is not None:
            values.append(value)
    if 2 * len(values) < resamples:
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class RocCurve:
    """Points of a ROC curve from (0, 0) to (1, 1), float64 [points] each.

    At a point, scores at or above its threshold count as positive.
    """

    false_positive_rate: NDArray[np.float64]
    true_positive_rate: NDArray[np.float64]
    thresholds: NDArray[np.float64]


def roc_curve(scores: Floats, positive: NDArray[np.bool_]) -> RocCurve | None:
    """Return the ROC curve, one point for each distinct score; None if there is no positive or no negative.

    The trapezoids under it add up to `auc`.

    Args:
        scores: float [n], finite.
        positive: bool [n].
    """
    positives = int(np.count_nonzero(positive))
    if positives in (0, len(positive)):
        return None
    levels, level = np.unique(-scores, return_inverse=True)
    hits = np.bincount(level, weights=positive, minlength=len(levels)).cumsum()
    alarms = np.bincount(level, weights=~positive, minlength=len(levels)).cumsum()
    return RocCurve(
        np.concatenate([[0.0], alarms / (len(positive) - positives)]),
        np.concatenate([[0.0], hits / positives]),
        np.concatenate([[np.inf], -levels.astype(np.float64)]),
    )


@dataclass(frozen=True)
class CalibrationBin:
    """Items with similar scores: how many, their mean score, and the fraction that are positive."""

    items: int
    mean_score: float
    observed_fraction: float


def calibration_bins(scores: Floats, positive: NDArray[np.bool_], bins: int = 10) -> list[CalibrationBin]:
    """Return the non-empty bins of a reliability diagram, of equal width over [0, 1], from the lowest score.

    Args:
        scores: float [n], in [0, 1].
        positive: bool [n].
        bins: number of bins.
    """
    place = np.minimum((np.asarray(scores, np.float64) * bins).astype(np.int64), bins - 1)
    return [
        CalibrationBin(int(inside.sum()), float(scores[inside].mean()), float(positive[inside].mean()))
        for inside in (place == number for number in range(bins))
        if inside.any()
    ]


def confusion_matrix(true: Integers, predicted: Integers, classes: int) -> NDArray[np.int64]:
    """Return how many of each true class (row) were predicted as each class (column), int64 [classes, classes].

    Args:
        true: int [n], in [0, classes).
        predicted: int [n], in [0, classes).
        classes: number of classes.
    """
    pairs = np.asarray(true, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
