"""What a site hands to training: patients, their exams or images, and the answers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Examples:
    """One split (training, validation or test) of one site's data, patient by patient.

    An item is what gets one answer: an image, or an exam (several images). A patient has one item or more; no item and
    no image belongs to two patients.

    Args:
        images: grey levels, uint8 [images, side, side], usually memory-mapped.
        masks: 0 or 1, uint8 [images, side, side], for segmentation; else None.
        targets: float32 [items, outputs]: binary 0/1, outputs 1; multiclass class index, outputs 1; multilabel 0/1;
            regression in [0, 1] over the task's value range, outputs 1; segmentation outputs 0.
        item_images: for each item, the rows of `images`, int64.
        patient_items: for each patient, the rows of `targets`, int64, never empty.
        features: float32 [images, dimensions] of a fixed encoder, in place of `images`, or None.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8] | None
    targets: NDArray[np.float32]
    item_images: tuple[NDArray[np.int64], ...]
    patient_items: tuple[NDArray[np.int64], ...]
    features: NDArray[np.float32] | None = None

    @property
    def patients(self) -> int:
        """Number of patients."""
        return len(self.patient_items)

    @property
    def patient_of_item(self) -> NDArray[np.int64]:
        """For each item its patient's position, int64 [items]."""
        owner = np.empty(len(self.targets), np.int64)
        for patient, items in enumerate(self.patient_items):
            owner[items] = patient
        return owner
