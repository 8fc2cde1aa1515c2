"""What a run leaves behind (results.json), read once and strictly enough to draw from."""

import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from echofed.protocol.errors import RunError
from echofed.protocol.study import LOWER_IS_BETTER, Study

Scores = NDArray[np.float64]


def _finite(value: Any) -> Any:
    """Read NaN and infinity as missing: a metric that could not be computed."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
SPLITS = ("training", "validation", "test")
METRIC_NAMES = {"auc": "AUC", "dice": "Dice", "mean_absolute_error": "mean absolute error"}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class Count(_Part):
    """Patients and images carrying one label."""

    patients: int = 0
    images: int = 0


class Spent(_Part):
    """What a site's ledger says at the end of the run."""

    epsilon: Number = None
    delta: Number = None
    noise_multiplier: Number = None


class Site(_Part):
    """One site's data and budget."""

    name: str
    patients: dict[str, int] = {}
    images: dict[str, int] = {}
    labels: dict[str, Count] = {}
    quarantined: dict[str, int] = {}
    left_out: str | None = None
    spent: Spent | None = None
    sampling_probability: Number = None


class Validation(_Part):
    """One site's validation in one round."""

    metric: Number = None
    loss: Number = None
    patients: int = 0


class Round(_Part):
    """One attempt at a round."""

    round_number: int
    attempt: int = 1
    seconds: Number = None
    bytes_down: int = 0
    bytes_up: int = 0
    replied: tuple[str, ...] = ()
    refused: dict[str, str] = {}
    training_loss: dict[str, Number] = {}
    validation: dict[str, Validation] = {}
    validation_metric: Number = None
    validation_noise: Number = None
    validation_loss: Number = None
    epsilon: dict[str, Number] = {}


class Measured(_Part):
    """A test metric with its 95% interval over patients."""

    metric: Number = None
    interval: tuple[Number, Number] | None = None
    patients: int = 0


class Told(_Part):
    """What a private study's coordinator knows: noisy figures on validation patients; bins are score, rate and patients."""

    round_number: int
    metric: Number = None
    noise: Number = None
    calibration: tuple[tuple[float, float, float], ...] = ()


class Comparison(Measured):
    """The same metric of a model trained another way."""

    name: str
    note: str | None = None


class Predictions(_Part):
    """Per test patient of a site: the truth and what the model said."""

    patient: tuple[int, ...] = ()
    target: tuple[tuple[float, ...], ...] = ()
    score: tuple[tuple[float, ...], ...] = ()


class FinalTest(_Part):
    """The final test."""

    unit: str = "patient"
    labels: tuple[str, ...] = ()
    predictions: dict[str, Predictions] = {}
    pooled: Annotated[Measured, BeforeValidator(lambda value: value or {})] = Measured()
    per_site: dict[str, Measured] = {}


class Sample(_Part):
    """One phantom image with the truth and the answer; images are PNG in base64."""

    site: str
    image: str
    target: tuple[float, ...] = ()
    score: tuple[float, ...] = ()
    mask: str | None = None
    prediction: str | None = None


class Results(_Part):
    """results.json, format 1."""

    format: Literal[1]
    title: str
    study: Study
    study_yaml: str = ""
    study_hash: str = ""
    seed: int | None = None
    simulated: bool = True
    phantoms: bool = False
    started_at: str = ""
    seconds: Number = None
    workers: int | None = None
    versions: dict[str, str] = {}
    machine: str = ""
    private: bool
    dp_noise_seeded: bool = False
    metric: str
    best_round: int | None = None
    completed: bool = True
    sites: tuple[Site, ...] = ()
    rounds: tuple[Round, ...] = ()
    told: Told | None = None
    test: FinalTest = FinalTest()
    comparisons: tuple[Comparison, ...] = ()
    samples: tuple[Sample, ...] = ()

    @model_validator(mode="after")
    def _same_protection(self) -> Self:
        # The one thing a report must never get wrong.
        if self.private != self.study.is_private:
            raise ValueError("private does not agree with the study")
        return self

    @model_validator(mode="after")
    def _whole_predictions(self) -> Self:
        kind, count = self.study.task.kind, len(self.study.task.labels)
        outputs = count if kind in ("multiclass", "multilabel") else 1
        columns = {"multilabel": count, "segmentation": 0}.get(kind, 1)
        classes = {"multiclass": count, "binary": 2, "multilabel": 2}.get(kind)
        for site, part in self.test.predictions.items():
            rows_fit = all(len(row) == outputs for row in part.score) and all(
                len(row) == columns for row in part.target
            )
            every_patient = len(part.target) == len(part.score) or (columns == 0 and not part.target)
            known = classes is None or all(value in range(classes) for row in part.target for value in row)
            if not (rows_fit and every_patient and known):
                raise ValueError(f"the predictions of {site} do not fit the study's task")
        return self

    @property
    def metric_name(self) -> str:
        """The metric in words."""
        return METRIC_NAMES.get(self.metric, self.metric)

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller metric is a better model."""
        return self.metric in LOWER_IS_BETTER

    @property
    def labels(self) -> tuple[str, ...]:
        """The study's labels in the order of its outputs."""
        return self.test.labels or self.study.task.labels

    @property
    def active_sites(self) -> tuple[Site, ...]:
        """Sites that took part."""
        return tuple(site for site in self.sites if site.left_out is None)

    @cached_property
    def site_names(self) -> tuple[str, ...]:
        """Names of the sites that took part or were tested, in one order for all figures."""
        return tuple(dict.fromkeys([*(site.name for site in self.active_sites), *self.answers]))

    def patients(self, *splits: str) -> int:
        """Patients of the sites that took part, over the splits named (all without a name)."""
        return sum(site.patients.get(split, 0) for site in self.active_sites for split in splits or SPLITS)

    @cached_property
    def answers(self) -> dict[str, "Answers"]:
        """The test predictions of every site with at least one test patient."""
        found = {name: _answers(part) for name, part in self.test.predictions.items()}
        return {name: part for name, part in found.items() if part.patients}

    @cached_property
    def pooled(self) -> "Answers":
        """The test predictions of all sites together, in the order of `answers`."""
        parts = list(self.answers.values())
        if not parts:
            return _answers(Predictions())
        return Answers(np.concatenate([p.target for p in parts]), np.concatenate([p.score for p in parts]))


class Answers:
    """Truth and answers of some patients.

    Args:
        target: float64 [patients, columns], as in results.json.
        score: float64 [patients, outputs], as in results.json.
    """

    def __init__(self, target: Scores, score: Scores) -> None:
        self.target = target
        self.score = score

    @property
    def patients(self) -> int:
        """Number of patients."""
        return len(self.score)


def _answers(part: Predictions) -> Answers:
    if not part.score:
        return Answers(np.empty((0, 0)), np.empty((0, 0)))
    score = np.asarray(part.score, np.float64)
    # A segmentation has no target beside its Dice score.
    target = np.asarray(part.target, np.float64) if part.target else np.empty((len(score), 0))
    return Answers(target, score)


def read_results(content: Mapping[str, Any]) -> Results:
    """Read the content of results.json.

    Raises:
        RunError: it is not the results of a run in format 1.
    """
    try:
        # Through JSON, so that the study inside is read exactly as from the file.
        return Results.model_validate_json(json.dumps(content))
    except (ValidationError, TypeError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RunError(
            f"These are not the results of a run: {where}: {first['msg']}.", "Run the study again with this version."
        ) from error
