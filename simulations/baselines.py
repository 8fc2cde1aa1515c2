"""What a federation is compared with: all data in one place, and each site alone, with as many gradient steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from echofed.client.calibration import count_mechanism
from echofed.learning.engine import PatientPrivacy, train
from echofed.learning.evaluation import evaluate
from echofed.learning.examples import Examples
from echofed.learning.models import StudyModel, load_parameters, read_parameters, trainable_names
from echofed.learning.randomness import generator
from echofed.privacy.accounting import noise_multiplier_for
from echofed.privacy.budget import delta_for
from echofed.privacy.randomness import random_words
from echofed.protocol.arrays import Parameters
from echofed.protocol.study import LOWER_IS_BETTER, Study


def pooled(parts: Sequence[Examples]) -> Examples:
    """Return the examples of several sites as if they were one site's.

    Args:
        parts: examples of the same study; images or features are copied into memory.
    """
    image_start = np.cumsum([0, *(len(part.images) for part in parts)])
    item_start = np.cumsum([0, *(len(part.targets) for part in parts)])
    numbered = list(enumerate(parts))
    masks = [part.masks for part in parts if part.masks is not None]
    features = [part.features for part in parts if part.features is not None]
    return Examples(
        images=np.concatenate([part.images for part in parts]),
        masks=np.concatenate(masks) if masks else None,
        targets=np.concatenate([part.targets for part in parts]),
        item_images=tuple(rows + image_start[i] for i, part in numbered for rows in part.item_images),
        patient_items=tuple(items + item_start[i] for i, part in numbered for items in part.patient_items),
        features=np.concatenate(features) if features else None,
    )


@dataclass(frozen=True)
class Baseline:
    """A model trained without federation."""

    name: str
    parameters: Parameters
    best_round: int


def train_alone(
    name: str,
    study: Study,
    model: StudyModel,
    initial: Parameters,
    training: Examples,
    validation: Examples | None,
    seed: int,
) -> Baseline:
    """Train one model on one set of examples, and keep the round that is best on validation, or the last if private.

    It takes as many steps as each site takes in the federation, in as many rounds, with the same privacy: its noise is
    calibrated to the same epsilon for the patients it trains on.

    Args:
        name: of the baseline; also varies its random numbers.
        study: what to train, and how.
        model: built for the study; its parameters are replaced.
        initial: all parameters to start from.
        training: patients to train on.
        validation: patients to choose the best round by; None keeps the last.
        seed: of the simulation.
    """
    load_parameters(model, initial)
    learnt = trainable_names(model)
    sign = -1 if study.metric in LOWER_IS_BETTER else 1
    sigma = _noise(study, training.patients)
    best: Baseline | None = None
    best_metric = -np.inf
    for round_number in range(1, study.federation.rounds + 1):
        context = (study.hash, f"baseline {name}", round_number)
        train(
            model,
            training,
            study,
            rng=generator(seed, "sampling", *context),
            privacy=None
            if sigma is None
            else PatientPrivacy(sigma, training.patients, random_words(seed, "privacy", *context)),
            steps_before=(round_number - 1) * study.training.local_steps,
        )
        last = round_number == study.federation.rounds
        if (
            validation is not None
            and not study.is_private
            and (last or round_number % study.evaluation.every_rounds == 0)
        ):
            metric = evaluate(model, validation, study).metric
            if metric is not None and sign * metric > best_metric:
                best_metric, best = sign * metric, Baseline(name, read_parameters(model, learnt), round_number)
    return best or Baseline(name, read_parameters(model, learnt), study.federation.rounds)


def single_sites(parts: Mapping[str, Examples]) -> dict[str, Examples]:
    """Return the sites that can be trained alone: those with more than one class, or with a value to predict."""
    return {
        site: part
        for site, part in parts.items()
        if part.targets.shape[1] == 0 or any(len(np.unique(column)) > 1 for column in part.targets.T)
    }


def _noise(study: Study, patients: int) -> float | None:
    if not study.is_private:
        return None
    assert study.privacy.epsilon is not None
    delta = delta_for(patients, study.privacy.delta)
    probability = study.training.sampling_probability
    return noise_multiplier_for(study.privacy.epsilon, delta, probability, study.steps, (count_mechanism(study),))
