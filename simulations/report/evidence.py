"""What the test predictions say beyond the study's one metric, for the figures and tables."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from echofed.learning.metrics import (
    CalibrationBin,
    auc,
    bootstrap_interval,
    calibration_bins,
    confusion_matrix,
    roc_curve,
)
from echofed.simulations.report.results import Answers, Measured, Results, Scores

BINS = 10
SPECIFICITIES = (0.80, 0.90, 0.95)


class Scored(NamedTuple):
    """One yes-or-no question put to some patients.

    Args:
        score: probability of yes, float64 [patients].
        positive: the truth, bool [patients].
    """

    score: Scores
    positive: NDArray[np.bool_]


def binary_scores(answers: Answers) -> Scored:
    """Return the one question of a binary task."""
    return Scored(answers.score[:, 0], answers.target[:, 0] > 0.5)


def _interval(statistic: Callable[[NDArray[np.integer]], float | None], patients: int) -> tuple[float, float] | None:
    # One row is one patient here. A fixed seed: a report is the same every time.
    return bootstrap_interval(statistic, np.arange(patients), np.random.default_rng(0))


def label_scores(results: Results) -> dict[str, Scored]:
    """Return each class against all others, or each finding, over all test patients."""
    pooled, kind = results.pooled, results.study.task.kind
    if not pooled.patients or kind not in ("multiclass", "multilabel"):
        return {}
    truth = pooled.target > 0.5 if kind == "multilabel" else pooled.target == np.arange(pooled.score.shape[1])
    return {label: Scored(pooled.score[:, index], truth[:, index]) for index, label in enumerate(results.labels)}


def label_measures(results: Results) -> dict[str, Measured]:
    """Return the AUC of each class or finding, with its interval; `patients` counts those who have it."""
    return {label: _auc_measured(scored) for label, scored in label_scores(results).items()}


def _auc_measured(scored: Scored) -> Measured:
    bounds = _interval(lambda rows: auc(scored.score[rows], scored.positive[rows]), len(scored.score))
    return Measured(metric=auc(scored.score, scored.positive), interval=bounds, patients=int(scored.positive.sum()))


@dataclass(frozen=True)
class Rate:
    """A share of patients with its 95% interval."""

    name: str
    hits: int
    of: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share."""
        return self.hits / self.of


def rates_at_half(results: Results) -> list[Rate]:
    """Return sensitivity, specificity and predictive values of a binary task at probability 0.5."""
    if not results.pooled.patients:
        return []
    scored = binary_scores(results.pooled)
    said, true = scored.score >= 0.5, scored.positive
    questions = (
        ("Sensitivity", said & true, true),
        ("Specificity", ~said & ~true, ~true),
        ("Positive predictive value", said & true, said),
        ("Negative predictive value", ~said & ~true, ~said),
    )
    return [_rate(name, int(hits.sum()), int(of.sum())) for name, hits, of in questions if of.any()]


def _rate(name: str, hits: int, of: int) -> Rate:
    bounds = binomtest(hits, of).proportion_ci(confidence_level=0.95, method="wilson")
    return Rate(name, hits, of, float(bounds.low), float(bounds.high))


@dataclass(frozen=True)
class OperatingPoint:
    """The sensitivity the test patients' ROC curve reaches at a specificity."""

    specificity: float
    sensitivity: float
    interval: tuple[float, float] | None


def operating_points(results: Results) -> Iterator[OperatingPoint]:
    """Yield the sensitivity of a binary task at fixed specificities."""
    if not results.pooled.patients:
        return
    scored = binary_scores(results.pooled)
    for specificity in SPECIFICITIES:

        def reached(rows: NDArray[np.integer], wanted: float = specificity) -> float | None:
            curve = roc_curve(scored.score[rows], scored.positive[rows])
            if curve is None:
                return None
            # The smallest step above the limit comes from rounding, not from a patient.
            return float(curve.true_positive_rate[curve.false_positive_rate <= 1 - wanted + 1e-9].max())

        value = reached(np.arange(len(scored.score)))
        if value is not None:
            yield OperatingPoint(specificity, value, _interval(reached, len(scored.score)))


@dataclass(frozen=True)
class LabelRate:
    """One finding of a multilabel task."""

    name: str
    positives: int
    sensitivity: float | None
    specificity: float | None


def label_rates(results: Results) -> list[LabelRate]:
    """Return sensitivity and specificity at 0.5 of each finding."""
    return [
        LabelRate(
            name,
            int(scored.positive.sum()),
            _share((scored.score >= 0.5)[scored.positive]),
            _share((scored.score < 0.5)[~scored.positive]),
        )
        for name, scored in label_scores(results).items()
    ]


@dataclass(frozen=True)
class ClassRate:
    """One class of a multiclass task."""

    name: str
    positives: int
    sensitivity: float | None
    predictive_value: float | None


def class_rates(results: Results) -> list[ClassRate]:
    """Return how often each class is found, and how often it is right when the model says it."""
    matrix = confusion(results)
    if matrix is None:
        return []
    true, said, right = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    return [
        ClassRate(
            name,
            int(true[index]),
            float(right[index] / true[index]) if true[index] else None,
            float(right[index] / said[index]) if said[index] else None,
        )
        for index, name in enumerate(results.labels)
    ]


def _share(hits: NDArray[np.bool_]) -> float | None:
    return float(hits.mean()) if len(hits) else None


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be taken at their word.

    Args:
        bins: those that are not empty, of `BINS` equal ones over [0, 1].
        brier: mean squared difference of probability and truth.
        error: expected calibration error (Guo et al. (2017)).
        unit: what is counted.
        what: which probabilities these are, one sentence.
    """

    bins: list[CalibrationBin]
    brier: float
    error: float
    unit: str
    what: str


def calibration(results: Results) -> Calibration | None:
    """Return the reliability of the probabilities of a classification, else None."""
    pooled, kind = results.pooled, results.study.task.kind
    if not pooled.patients or kind not in ("binary", "multiclass", "multilabel"):
        return None
    unit = "patients"
    if kind == "multiclass":
        score, positive = pooled.score.max(axis=1), pooled.score.argmax(axis=1) == pooled.target[:, 0]
        what = "Each dot gathers patients whose most probable class got a similar probability."
    elif kind == "multilabel":
        score, positive = pooled.score.ravel(), pooled.target.ravel() > 0.5
        unit, what = "answers", "Each dot gathers answers of similar probability, over all findings."
    else:
        score, positive = pooled.score[:, 0], pooled.target[:, 0] > 0.5
        what = "Each dot gathers patients who got a similar probability."
    bins = calibration_bins(score, positive, BINS)
    error = sum(b.items * abs(b.mean_score - b.observed_fraction) for b in bins) / len(score)
    return Calibration(bins, float(np.mean((score - positive) ** 2)), error, unit, what)


def confusion(results: Results) -> NDArray[np.int64] | None:
    """Return counts [true, said] of a binary (at 0.5) or multiclass (most probable) task, else None."""
    pooled, kind = results.pooled, results.study.task.kind
    if not pooled.patients or kind not in ("binary", "multiclass"):
        return None
    said = pooled.score[:, 0] >= 0.5 if kind == "binary" else pooled.score.argmax(axis=1)
    return confusion_matrix(pooled.target[:, 0].astype(np.int64), said.astype(np.int64), len(results.labels))
