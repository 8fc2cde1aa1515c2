"""Training at a site: one local loop, with or without patient-level differential privacy."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from echofed.learning.batches import batch_losses, batches, copies_of
from echofed.learning.examples import Examples
from echofed.learning.feature_gradients import feature_gradients
from echofed.learning.gradients import (
    GradientSource,
    PatientGradients,
    gradient_source,
    intra_op_threads,
    refuse_non_finite,
    trainable,
)
from echofed.learning.models import StudyModel, refuse_batch_norm
from echofed.learning.randomness import NoiseSource
from echofed.privacy.sampling import poisson_sample
from echofed.protocol.errors import NoPatientsError, ParametersError, PrivacyParameterError
from echofed.protocol.study import Study

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

NORM_FLOOR = 1e-6
"""Opacus adds it to a norm before dividing, so that a zero gradient stays zero."""


def train(
    model: StudyModel,
    examples: Examples,
    study: Study,
    *,
    rng: np.random.Generator,
    noise: NoiseSource | None,
    threads: int = 1,
    steps: int | None = None,
) -> float | None:
    """Train a model in place on a site's patients, and return the mean loss of those drawn (None if none was).

    Each step draws patients by Poisson sampling and moves along the sum of the gradients of their mean losses, divided by the
    expected number of patients. With noise, each patient's gradient is first clipped to the study's norm C and Gaussian noise
    of standard deviation multiplier * C is added to the sum, so one patient more or less changes the sum by at most C and an
    empty draw still moves by noise (Abadi et al. (2016), Alg. 1, with patients for examples). The number of patients is taken
    to be public. Weight decay and the proximal term depend on the parameters alone: they are added after the noise, and cost
    no privacy. Without noise an empty draw is no step.

    The loss is not protected by the noise: under privacy it must not leave the site.

    Args:
        model: of `build_model`, holding the parameters the round starts from.
        examples: the site's training patients.
        study: task, training, privacy and client term.
        rng: draws patients and augmentation.
        noise: given exactly when the study is private; calibrated for the whole study.
        threads: cores to use, >= 1; with noise, the result is bit for bit the same for any number.
        steps: steps to take; the study's local steps if None.

    Raises:
        NoPatientsError: there is no patient.
        PrivacyParameterError: noise is missing, or given to a study without privacy.
        ParametersError: the model has nothing to train.
        BatchNormError: a layer would mix patients.
        NonFiniteLossError: a loss or gradient is NaN or infinite; the model is then of no use.
    """
    refuse_batch_norm(model)
    # A training that stopped on an error may have left gradients behind.
    model.zero_grad(set_to_none=True)
    if examples.patients == 0:
        raise NoPatientsError("There is no patient to train on.")
    if study.is_private != (noise is not None):
        raise PrivacyParameterError(
            "Noise is given exactly when the study is private.", "Calibrate the noise for this study, or pass none."
        )
    if not trainable(model):
        raise ParametersError("The model has no parameter to train.", "Write encoder: trained in the study.")
    model.train()
    # The values stay; convolutions run up to a quarter faster.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = study.training.local_steps if steps is None else steps
    if noise is None:
        with intra_op_threads(threads):
            return _train_openly(model, examples, study, rng, steps)
    with intra_op_threads(1):
        return _train_privately(model, examples, study, rng, noise, threads, steps)


def _train_privately(
    model: StudyModel,
    examples: Examples,
    study: Study,
    rng: np.random.Generator,
    noise: NoiseSource,
    threads: int,
    steps: int,
) -> float | None:
    from opacus.optimizers import DPOptimizer  # slow to import, and only private studies need it

    probability, clipping_norm = study.training.sampling_probability, study.privacy.clipping_norm
    assert clipping_norm is not None
    parameters = trainable(model)
    optimizer = DPOptimizer(
        _optimizer(parameters, study),
        noise_multiplier=noise.multiplier,
        max_grad_norm=clipping_norm,
        expected_batch_size=probability * examples.patients,
        secure_mode=noise.seed is None,
    )
    add_proximal_term = _proximal_term(parameters, study)
    optimizer.attach_step_hook(lambda _: add_proximal_term())
    loss_sum, drawn = 0.0, 0
    with _gradient_source(model, examples, study, threads) as gradients_of:
        for step in range(steps):
            patients = poisson_sample(examples.patients, probability, rng)
            seeds = rng.integers(2**63, size=len(patients)).tolist()
            clipped_sum = [torch.zeros_like(parameter) for parameter in parameters]
            for gradients in gradients_of(patients, seeds):
                add_clipped(clipped_sum, gradients, clipping_norm)
                loss_sum += gradients.loss_sum
            drawn += len(patients)
            optimizer.generator = noise.at(step)
            _noisy_step(optimizer, parameters, clipped_sum)
    return loss_sum / drawn if drawn else None


def _gradient_source(
    model: StudyModel, examples: Examples, study: Study, threads: int
) -> AbstractContextManager[GradientSource]:
    if examples.features is not None:
        return nullcontext(feature_gradients(model, examples, study))
    return gradient_source(model, examples, study, threads)


def add_clipped(clipped_sum: Sequence[Tensor], gradients: PatientGradients, clipping_norm: float) -> None:
    """Add patients' gradients to a sum, each scaled down to the clipping norm if it is longer.

    Equal to Opacus' `DPOptimizer.clip_and_accumulate` for patients in place of samples, in two passes over memory instead of
    six. A patient changes the sum by at most the clipping norm; an empty set of patients by nothing.

    Args:
        clipped_sum: for each parameter, its sum so far, float [*shape]; changed in place.
        gradients: finite, float [patients, *shape].
        clipping_norm: C > 0.
    """
    factors = (clipping_norm / (gradients.norms + NORM_FLOOR)).clamp(max=1.0)
    for total, gradient in zip(clipped_sum, gradients.gradients, strict=True):
        if len(gradient) == 1:
            total.add_(gradient[0], alpha=float(factors[0]))
        else:
            total.add_(torch.tensordot(factors, gradient, dims=1))


def _noisy_step(optimizer: "DPOptimizer", parameters: Sequence[Tensor], clipped_sum: Sequence[Tensor]) -> None:
    """Let Opacus add noise to the clipped sum, divide by the expected batch and step.

    To Opacus the patients added up so far are earlier parts of the batch, and the last part, given here, is empty.
    """
    for parameter, total in zip(parameters, clipped_sum, strict=True):
        parameter.summed_grad = total  # type: ignore[attr-defined]
        parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


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
        patients = poisson_sample(examples.patients, study.training.sampling_probability, rng)
        if len(patients) == 0:
            continue
        items = [np.tile(examples.patient_items[patient], copies) for patient in patients]
        shares = np.concatenate([np.full(len(own), 1 / (len(own) * expected_patients)) for own in items])
        for batch in batches(examples, study, np.concatenate(items), shares, parameters[0].dtype, rng):
            loss = batch_losses(model, examples, study, batch).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            refuse_non_finite(float(loss.detach()))
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
