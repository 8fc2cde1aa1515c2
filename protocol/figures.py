"""How well a model does, as sums over patients: what a site may send with noise, and what can be read from the sum over sites.

A patient counts once, whatever the number of images. For tasks that tell classes apart the sums are histograms of the
patients' scores, one of those with and one of those without each finding: AUC and calibration follow from them. For the
others they are the sum of the patients' figures and the number of patients.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echofed.protocol.study import Task

BINS = 12
"""More would follow the scores more closely and add more noise."""
LARGEST_LOGIT = 4.0
"""Bins are equal parts of the logits between -4 and 4: scores crowd near 0 and 1, and equal parts of [0, 1] would mix them."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """One bin of a reliability diagram.

    Args:
        patients: how many, about; noise may make it any number.
        mean_score: middle of the bin, in logits.
        positive_rate: share with the finding, cut to [0, 1].
    """

    patients: float
    mean_score: float
    positive_rate: float


def figure_count(task: Task) -> int:
    """Return how many numbers a site's figures have."""
    return 2 * BINS * _findings(task) if _findings(task) else 2


def figure_bound(task: Task) -> float:
    """Return the largest L2 norm of one patient's part in the sums: what the noise must hide."""
    return math.sqrt(_findings(task) or 2)


def contributions(task: Task, scores: Floats, targets: Floats) -> Floats:
    """Return each patient's part in the sums, float64 [patients, figure_count].

    Args:
        task: of the study.
        scores: of patients, float [patients, outputs], as `learning.metrics.patient_scores` gives; what is not in [0, 1] counts
            at the nearer end, NaN at 0.
        targets: of patients, float [patients, outputs or 1].
    """
    patients = len(scores)
    scores = np.clip(np.nan_to_num(scores, nan=0.0), 0.0, 1.0)
    findings = _findings(task)
    if not findings:
        values = scores if task.kind == "segmentation" else np.abs(scores - np.clip(targets, 0.0, 1.0))
        return np.column_stack([values[:, 0], np.ones(patients)])
    present = targets == np.arange(findings) if task.kind == "multiclass" else targets > 0.5
    with np.errstate(divide="ignore"):
        logits = np.clip(np.log(scores) - np.log1p(-scores), -LARGEST_LOGIT, LARGEST_LOGIT)
    bins = np.minimum(((logits / LARGEST_LOGIT + 1) / 2 * BINS).astype(np.int64), BINS - 1)
    counted = np.zeros((patients, findings, 2, BINS))
    counted[np.arange(patients)[:, None], np.arange(findings), present.astype(np.int64), bins] = 1
    return counted.reshape(patients, -1)


def metric_of(task: Task, sums: Floats, noise_stddev: float = 0.0) -> tuple[float, float] | None:
    """Return the study's metric over all patients and the standard error noise gives it; None where it is undefined.

    An AUC counts pairs in the same bin as half. Its error is to first order in the noise; an AUC or a mean whose
    denominator does not stand out of the noise (twice its standard deviation) is undefined.

    Args:
        task: of the study.
        sums: float [figure_count], the sum over sites.
        noise_stddev: of the noise in each sum, over all sites together, >= 0.
    """
    if not _findings(task):
        return _mean(task, sums, noise_stddev)
    areas = [_auc(one[0], one[1], noise_stddev) for one in _histograms(task, sums)]
    known = [area for area in areas if area is not None]
    if not known:
        return None
    values, errors = np.array(known).T
    return float(values.mean()), float(np.sqrt((errors**2).sum()) / len(known))


def calibration_of(task: Task, sums: Floats, finding: int = 0) -> list[Calibration]:
    """Return the reliability diagram of one finding, bins of fewer than one patient left out; empty for other tasks.

    Args:
        task: of the study.
        sums: float [figure_count], the sum over sites.
        finding: its position among the task's labels; 0 for a binary task.
    """
    if not _findings(task):
        return []
    negative, positive = _histograms(task, sums)[finding]
    return [
        Calibration(float(total), _middle(place), float(np.clip(present / total, 0.0, 1.0)))
        for place, (total, present) in enumerate(zip(negative + positive, positive, strict=True))
        if total >= 1
    ]


def _middle(place: int) -> float:
    """Return the score in the middle of a bin."""
    logit = LARGEST_LOGIT * (2 * (place + 0.5) / BINS - 1)
    return 1 / (1 + math.exp(-logit))


def _findings(task: Task) -> int:
    return {"binary": 1, "multiclass": len(task.labels), "multilabel": len(task.labels)}.get(task.kind, 0)


def _histograms(task: Task, sums: Floats) -> Floats:
    return np.asarray(sums, np.float64).reshape(_findings(task), 2, BINS)


def _auc(negative: Floats, positive: Floats, noise_stddev: float) -> tuple[float, float] | None:
    negatives, positives = float(negative.sum()), float(positive.sum())
    if min(negatives, positives) <= 2 * noise_stddev * math.sqrt(BINS):
        return None
    below = np.cumsum(negative) - negative / 2
    above = positives - np.cumsum(positive) + positive / 2
    area = float(positive @ below) / (negatives * positives)
    slopes = np.concatenate([below - area * negatives, above - area * positives]) / (negatives * positives)
    return min(max(area, 0.0), 1.0), noise_stddev * float(np.linalg.norm(slopes))


def _mean(task: Task, sums: Floats, noise_stddev: float) -> tuple[float, float] | None:
    total, patients = float(sums[0]), float(sums[1])
    if patients <= 2 * noise_stddev:
        return None
    mean = min(max(total / patients, 0.0), 1.0)
    span = 1.0 if task.value_range is None else task.value_range[1] - task.value_range[0]
    return mean * span, span * noise_stddev * math.hypot(1.0, mean) / patients
