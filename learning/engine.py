"""Training at a site: one local loop, with or without patient-level differential privacy."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from echofed.learning.batches import batch_losses, batches, copies_of
from echofed.learning.centring import CENTRE, patient_means
from echofed.learning.examples import Examples
from echofed.learning.feature_gradients import feature_gradients
from echofed.learning.gradients import (
    GradientSource,
    gradient_source,
    intra_op_threads,
    trainable,
)
from echofed.learning.models import StudyModel, refuse_batch_norm
from echofed.privacy.clipping import NoisySum
from echofed.privacy.randomness import Words
from echofed.privacy.sampling import poisson_sample
from echofed.protocol.errors import NonFiniteLossError, NoPatientsError, ParametersError, PrivacyParameterError
from echofed.protocol.study import Study

LOG = logging.getLogger("echofed.learning")


@dataclass(frozen=True)
class PatientPrivacy:
    """How a training hides each patient.

    Args:
        noise_multiplier: standard deviation of the noise over the clipping norm; calibrated for the whole study.
        patients: the number of patients by which sums are divided: what the site has said in public, not what it has.
        words: where the draw of patients and the noise come from.
    """

    noise_multiplier: float
    patients: int
    words: Words


def train(
    model: StudyModel,
    examples: Examples,
    study: Study,
    *,
    rng: np.random.Generator,
    privacy: PatientPrivacy | None,
    threads: int = 1,
    steps: int | None = None,
    steps_before: int = 0,
) -> float | None:
    """Train a model in place on a site's patients, and return the mean loss of those drawn (None if none was).

    Each step draws patients by Poisson sampling and moves along the sum of the gradients of their mean losses, divided by the
    expected number of patients. Under privacy the sum is a `NoisySum`: each patient's gradient is clipped to the study's norm C
    and Gaussian noise of standard deviation noise_multiplier x C is added, so an empty draw still moves by noise (Abadi et al.
    (2016), Alg. 1, with patients for examples); a patient whose gradient is not finite counts as zero, and nothing raised or
    returned but the model and the loss depends on a single patient. Weight decay and the proximal term depend on the
    parameters alone: they are added after the noise, and cost no privacy. Without privacy an empty draw is no step.

    The first steps of a study with centring rounds learn the centre of the features instead: after t steps it is the mean of t
    noisy means over patients. A patient's part is the patient's mean feature vector, of length C at most, and no loss is
    returned.

    The loss is not protected by the noise: under privacy it must not leave the site.

    Args:
        model: of `build_model`, holding the parameters the round starts from.
        examples: the site's training patients.
        study: task, training, privacy and client term.
        rng: draws augmentation and, without privacy, patients.
        privacy: given exactly when the study is private.
        threads: cores to use, >= 1; under privacy the result is bit for bit the same for any number.
        steps: steps to take; the study's local steps if None.
        steps_before: steps the site has taken in the study's earlier rounds.

    Raises:
        NoPatientsError: there is no patient.
        PrivacyParameterError: privacy is missing, or given to a study without it.
        ParametersError: the model has nothing to train.
        BatchNormError: a layer would mix patients.
        NonFiniteLossError: without privacy only, a loss is NaN or infinite; the model is then of no use.
    """
    refuse_batch_norm(model)
    # A training that stopped on an error may have left gradients behind.
    model.zero_grad(set_to_none=True)
    if examples.patients == 0:
        raise NoPatientsError("There is no patient to train on.")
    if study.is_private != (privacy is not None):
        raise PrivacyParameterError(
            "Privacy is given exactly when the study is private.", "Calibrate the noise for this study, or pass none."
        )
    if not trainable(model):
        raise ParametersError("The model has no parameter to train.", "Write encoder: trained in the study.")
    model.train()
    # The values stay; convolutions run up to a quarter faster.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = study.training.local_steps if steps is None else steps
    if steps_before < study.training.centring_rounds * study.training.local_steps:
        _learn_centre(model, examples, study, rng, privacy, range(steps_before + 1, steps_before + steps + 1))
        return None
    if privacy is None:
        with intra_op_threads(threads):
            return _train_openly(model, examples, study, rng, steps)
    with intra_op_threads(1):
        return _train_privately(model, examples, study, rng, privacy, threads, steps)


def _train_privately(
    model: StudyModel,
    examples: Examples,
    study: Study,
    rng: np.random.Generator,
    privacy: PatientPrivacy,
    threads: int,
    steps: int,
) -> float | None:
    probability, clipping_norm = study.training.sampling_probability, study.privacy.clipping_norm
    assert clipping_norm is not None
    parameters = trainable(model)
    sizes = [parameter.numel() for parameter in parameters]
    optimizer = _optimizer(parameters, study)
    add_proximal_term = _proximal_term(parameters, study)
    loss_sum, drawn = 0.0, 0
    with _gradient_source(model, examples, study, threads) as gradients_of:
        for _ in range(steps):
            patients = poisson_sample(examples.patients, probability, privacy.words)
            seeds = rng.integers(2**63, size=len(patients)).tolist()
            noisy_sum = NoisySum(sizes, clipping_norm, privacy.noise_multiplier)
            for gradients in gradients_of(patients, seeds):
                noisy_sum.add([gradient.flatten(1).numpy() for gradient in gradients.gradients])
                loss_sum += gradients.loss_sum
            drawn += len(patients)
            if noisy_sum.left_out:
                LOG.warning("%d gradients that were not finite were left out of a step.", noisy_sum.left_out)
            released = noisy_sum.release(privacy.words)
            for parameter, total in zip(parameters, released, strict=True):
                mean = torch.from_numpy(total / (probability * privacy.patients))
                parameter.grad = mean.view(parameter.shape).to(parameter.dtype)
            add_proximal_term()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return loss_sum / drawn if drawn else None


def _learn_centre(
    model: StudyModel,
    examples: Examples,
    study: Study,
    rng: np.random.Generator,
    privacy: PatientPrivacy | None,
    steps: Iterable[int],
) -> None:
    centre, means = model.get_parameter(CENTRE), patient_means(examples)
    probability, clipping_norm = study.training.sampling_probability, study.privacy.clipping_norm or 1.0
    for step in steps:
        if privacy is None:
            drawn = means[rng.random(len(means)) < probability]
            mean = drawn.sum(0) / (probability * len(means))
        else:
            drawn = means[poisson_sample(len(means), probability, privacy.words)]
            noisy_sum = NoisySum([means.shape[1]], clipping_norm, privacy.noise_multiplier)
            noisy_sum.add([drawn * np.float32(clipping_norm)])
            mean = noisy_sum.release(privacy.words)[0] / (clipping_norm * probability * privacy.patients)
        with torch.no_grad():
            centre.add_((torch.from_numpy(mean).to(centre.dtype) - centre) / step)


def _gradient_source(
    model: StudyModel, examples: Examples, study: Study, threads: int
) -> AbstractContextManager[GradientSource]:
    if examples.features is not None:
        return nullcontext(feature_gradients(model, examples, study))
    return gradient_source(model, examples, study, threads)


def _train_openly(
    model: StudyModel, examples: Examples, study: Study, rng: np.random.Generator, steps: int
) -> float | None:
    parameters = trainable(model)
    optimizer = _optimizer(parameters, study)
    add_proximal_term = _proximal_term(parameters, study)
    expected_patients = study.training.sampling_probability * examples.patients
    copies = copies_of(study, examples)
    loss_sum, drawn = 0.0, 0
    for _ in range(steps):
        patients = np.flatnonzero(rng.random(examples.patients) < study.training.sampling_probability)
        if len(patients) == 0:
            continue
        items = [np.tile(examples.patient_items[patient], copies) for patient in patients]
        shares = np.concatenate([np.full(len(own), 1 / (len(own) * expected_patients)) for own in items])
        for batch in batches(examples, study, np.concatenate(items), shares, parameters[0].dtype, rng):
            loss = batch_losses(model, examples, study, batch).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            if not math.isfinite(float(loss.detach())):
                raise NonFiniteLossError("The loss is NaN or infinite.")
            loss_sum += float(loss.detach()) * expected_patients
        drawn += len(patients)
        add_proximal_term()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss_sum / drawn if drawn else None


def _optimizer(parameters: Sequence[torch.nn.Parameter], study: Study) -> torch.optim.Optimizer:
    training = study.training
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    return torch.optim.SGD(
        parameters, lr=training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay
    )


def _proximal_term(parameters: Sequence[Tensor], study: Study) -> Callable[[], None]:
    """Return what adds mu * (parameters - parameters at the start) to the gradients (Li et al. (2020), eq. 2)."""
    strength = study.strategy.client_term.strength
    if strength == 0:
        return lambda: None
    starts = [parameter.detach().clone() for parameter in parameters]

    def add() -> None:
        for parameter, start in zip(parameters, starts, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=strength)

    return add
