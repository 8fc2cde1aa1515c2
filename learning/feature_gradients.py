"""Per-patient gradients of a small head on fixed features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echofed.learning.examples import Examples
from echofed.learning.gradients import GradientSource, PatientGradients, trainable
from echofed.learning.models import StudyModel
from echofed.learning.tasks import item_losses
from echofed.protocol.study import Study


@dataclass(frozen=True)
class FeaturedPatient:
    """What a head is given of one patient, in memory of its own.

    Args:
        features: float [images, dimensions].
        item_of_image: int64 [images].
        targets: float [items, outputs].
    """

    features: Tensor
    item_of_image: Tensor
    targets: Tensor


def feature_gradients(model: StudyModel, examples: Examples, study: Study) -> GradientSource:
    """Return a source of per-patient gradients for examples that hold features.

    The gradients are those of `gradients.patient_gradient`, without its loading and batching. Patients are taken one by one on
    purpose: computed side by side, a patient's gradient would depend on the others in its last bits, and parameters chosen
    for it can make much of a last bit (Casacuberta et al. (2022)).

    Args:
        model: whose head learns; followed as its parameters change.
        examples: with features.
        study: the task.
    """
    parameters = trainable(model)
    featured = [_featured(examples, patient, parameters[0].dtype) for patient in range(examples.patients)]

    def source(patients: NDArray[np.int64], seeds: Sequence[int]) -> Iterator[PatientGradients]:
        for patient in patients:
            own = featured[patient]
            logits = model.answer(own.features, own.item_of_image, len(own.targets))
            loss = item_losses(study.task, logits, own.targets).mean()
            gradients = torch.autograd.grad(loss, parameters)
            yield PatientGradients(tuple(gradient[None] for gradient in gradients), float(loss.detach()))

    return source


def _featured(examples: Examples, patient: int, dtype: torch.dtype) -> FeaturedPatient:
    assert examples.features is not None
    images = [examples.item_images[item] for item in examples.patient_items[patient]]
    # Copied into torch's memory, whose alignment does not depend on what was there before.
    return FeaturedPatient(
        torch.from_numpy(examples.features[np.concatenate(images)]).to(dtype, copy=True),
        torch.repeat_interleave(torch.arange(len(images)), torch.tensor([len(rows) for rows in images])),
        torch.from_numpy(examples.targets[examples.patient_items[patient]]).to(dtype, copy=True),
    )
