"""Test figures by patient: what the model said of each, how good that is at each site and over all, and how sure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echofed.learning.evaluation import Evaluation
from echofed.learning.metrics import bootstrap_interval, metric, patient_scores
from echofed.protocol.study import Study

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PatientScores:
    """Scores and targets of patients, float64 [patients, outputs] each; segmentation: Dice, and no targets."""

    scores: Floats
    targets: Floats


def patient_level(study: Study, evaluation: Evaluation) -> PatientScores:
    """Return the scores of patients: means over each patient's items.

    A regression's values are given in the value's own unit.
    """
    scores, targets = patient_scores(study.task, evaluation.scores, evaluation.targets, evaluation.patients)
    return PatientScores(scores, targets)


def join(parts: Mapping[str, PatientScores]) -> PatientScores:
    """Return the patients of several sites together; there is at least one site."""
    return PatientScores(
        np.concatenate([part.scores for part in parts.values()]),
        np.concatenate([part.targets for part in parts.values()]),
    )


def figure(study: Study, scores: PatientScores, seed: int) -> dict[str, Any]:
    """Return the study's metric over patients with its 95% interval (bootstrap by patient).

    Args:
        study: names the metric.
        scores: of the patients.
        seed: of the bootstrap.
    """

    def statistic(rows: NDArray[np.integer]) -> float | None:
        return metric(study.task, scores.scores[rows], scores.targets[rows])

    everyone = np.arange(len(scores.scores))
    interval = bootstrap_interval(statistic, everyone, np.random.default_rng([seed, 0xB007]))
    return {
        "metric": statistic(everyone),
        "interval": None if interval is None else list(interval),
        "patients": len(everyone),
    }


def summarise(study: Study, parts: Mapping[str, PatientScores], seed: int) -> dict[str, Any]:
    """Return what `results.json` says of the test: predictions, and figures per site and pooled."""
    empty = {"metric": None, "interval": None, "patients": 0}
    return {
        "predictions": {site: _predictions(study, part) for site, part in parts.items()},
        "pooled": figure(study, join(parts), seed) if parts else empty,
        "per_site": {site: figure(study, part, seed) for site, part in parts.items()},
    }


def _predictions(study: Study, part: PatientScores) -> dict[str, Any]:
    low, high = study.task.value_range or (0.0, 1.0)
    return {
        "patient": list(range(len(part.scores))),
        "target": (low + (high - low) * part.targets).tolist(),
        "score": (low + (high - low) * part.scores).tolist(),
    }
