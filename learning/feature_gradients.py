"""Per-patient gradients of a small head on fixed features, many patients at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from echofed.learning.examples import Examples
from echofed.learning.gradients import GradientSource, PatientGradients
from echofed.learning.models import StudyModel
from echofed.learning.tasks import item_losses
from echofed.protocol.study import Study

MAX_GRADIENT_NUMBERS = 2**23
"""Numbers of the per-patient gradients held at once: 32 MB."""


@dataclass(frozen=True)
class PaddedPatients:
    """Patients of about as many images, each padded to the same number.

    What is added belongs to an item whose loss counts nothing.

    Args:
        patients: positions, int64 [n], ascending.
        features: float [n, images, dimensions].
        item_of_image: int64 [n, images].
        targets: float [n, items, outputs].
        shares: what each item's loss is multiplied by, float [n, items]; 0 for padding.
    """

    patients: NDArray[np.int64]
    features: Tensor
    item_of_image: Tensor
    targets: Tensor
    shares: Tensor


class _Answer(nn.Module):
    """A model's answer as a forward pass, which is what `functional_call` calls."""

    def __init__(self, model: StudyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, item_of_image: Tensor, items: int) -> Tensor:
        return self.model.answer(features, item_of_image, items)


def feature_gradients(model: StudyModel, examples: Examples, study: Study) -> GradientSource:
    """Return a source of per-patient gradients for examples that hold features.

    The gradients are those of `gradients.patient_gradient`, without a forward pass in Python for each patient. Patients come
    by number of images, then in order.

    Args:
        model: whose head learns; followed as its parameters change.
        examples: with features.
        study: the task.
    """
    answer = _Answer(model)
    parameters = {name: parameter for name, parameter in answer.named_parameters() if parameter.requires_grad}
    groups = _padded(examples, study, next(iter(parameters.values())).dtype)
    at_once = max(1, MAX_GRADIENT_NUMBERS // sum(parameter.numel() for parameter in parameters.values()))

    def loss(
        values: dict[str, Tensor], features: Tensor, item_of_image: Tensor, targets: Tensor, shares: Tensor
    ) -> Tensor:
        logits: Tensor = functional_call(answer, values, (features, item_of_image, len(targets)))
        return (item_losses(study.task, logits, targets) * shares).sum()

    per_patient = vmap(grad_and_value(loss), in_dims=(None, 0, 0, 0, 0))

    def source(patients: NDArray[np.int64], seeds: Sequence[int]) -> Iterator[PatientGradients]:
        values = {name: parameter.detach() for name, parameter in parameters.items()}
        for group in groups:
            rows = torch.from_numpy(np.flatnonzero(np.isin(group.patients, patients, assume_unique=True)))
            for part in rows.split(at_once):  # type: ignore[no-untyped-call]
                if len(part) == 0:
                    continue
                own = (group.features[part], group.item_of_image[part], group.targets[part], group.shares[part])
                by_name, losses = per_patient(values, *own)
                yield PatientGradients(tuple(by_name[name] for name in parameters), float(losses.sum()))

    return source


def _padded(examples: Examples, study: Study, dtype: torch.dtype) -> list[PaddedPatients]:
    """Group patients whose numbers of images share a power of two, so that padding at most doubles the work."""
    assert examples.features is not None
    images = np.array([sum(len(examples.item_images[item]) for item in items) for items in examples.patient_items])
    exponents = np.ceil(np.log2(images)).astype(np.int64)
    groups = []
    for exponent in np.unique(exponents):
        patients = np.flatnonzero(exponents == exponent)
        groups.append(_pad(examples, study, patients, int(images[patients].max()), dtype))
    return groups


def _pad(
    examples: Examples, study: Study, patients: NDArray[np.int64], images: int, dtype: torch.dtype
) -> PaddedPatients:
    assert examples.features is not None
    owned = [examples.patient_items[patient] for patient in patients]
    # Padding images form one more item of an exam; an image is its own item, padding or not.
    exam = study.task.unit == "exam"
    items = 1 + max(len(own) for own in owned) if exam else images
    n = len(patients)
    features = np.zeros((n, images, examples.features.shape[1]), np.float32)
    item_of_image = np.full((n, images), items - 1) if exam else np.tile(np.arange(images), (n, 1))
    targets = np.zeros((n, items, examples.targets.shape[1]), np.float32)
    shares = np.zeros((n, items))
    for row, own in enumerate(owned):
        own_images = [examples.item_images[item] for item in own]
        images_of_patient = np.concatenate(own_images)
        features[row, : len(images_of_patient)] = examples.features[images_of_patient]
        if exam:
            item_of_image[row, : len(images_of_patient)] = np.repeat(np.arange(len(own)), [len(i) for i in own_images])
        targets[row, : len(own)] = examples.targets[own]
        shares[row, : len(own)] = 1 / len(own)
    return PaddedPatients(
        patients,
        torch.from_numpy(features).to(dtype),
        torch.from_numpy(item_of_image),
        torch.from_numpy(targets).to(dtype),
        torch.from_numpy(shares).to(dtype),
    )
