"""How well a model does on a split of a site's patients."""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from echofed.learning.batches import batch_logits, batches
from echofed.learning.examples import Examples
from echofed.learning.metrics import dice, metric, patient_scores
from echofed.learning.models import StudyModel
from echofed.learning.tasks import item_losses, probabilities
from echofed.protocol.errors import NonFiniteLossError, NoPatientsError
from echofed.protocol.study import Study


@dataclass(frozen=True)
class Evaluation:
    """What a model says of a split, and how good that is.

    Args:
        loss: mean over patients of each patient's mean item loss.
        metric: the study's metric over patients, None if undefined.
        scores: float32 [items, outputs] as `tasks.probabilities`; segmentation: each image's Dice [items, 1].
        targets: float32 [items, outputs] as in `Examples`.
        patients: each item's patient, int64 [items].
    """

    loss: float
    metric: float | None
    scores: NDArray[np.float32]
    targets: NDArray[np.float32]
    patients: NDArray[np.int64]


def evaluate(model: StudyModel, examples: Examples, study: Study) -> Evaluation:
    """Evaluate a model on all patients of a split, in batches that memory holds.

    In a private study patients are taken one by one, so that a patient's scores depend on that patient alone, bit for bit.

    Args:
        model: of the study; left as it is.
        examples: the split, at least one patient.
        study: task and preprocessing.

    Raises:
        NoPatientsError: the split is empty.
        NonFiniteLossError: without privacy only, the loss is NaN or infinite: under privacy an error would tell of patients.
    """
    if examples.patients == 0:
        raise NoPatientsError("There is no patient to evaluate on.")
    patients = examples.patient_of_item
    shares = 1 / (examples.patients * np.bincount(patients)[patients])
    items = np.arange(len(examples.targets), dtype=np.int64)
    taken = examples.patient_items if study.is_private else [items]
    loss, scores = 0.0, []
    model.eval()
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        for batch in chain.from_iterable(batches(examples, study, part, shares[part], dtype) for part in taken):
            logits = batch_logits(model, examples, batch)
            losses = item_losses(study.task, logits, batch.targets, batch.masks)
            loss += float((losses * batch.shares).sum())
            said = probabilities(study.task, logits)
            if batch.masks is not None:
                said = dice(said, batch.masks.numpy().reshape(said.shape))[:, None].astype(np.float32)
            scores.append(said)
    if not (study.is_private or np.isfinite(loss)):
        raise NonFiniteLossError("The loss on the evaluated patients is not finite.")
    # One by one, items come in the order of their patients; here they go back to their own.
    all_scores = np.concatenate(scores)[np.argsort(np.concatenate(taken))]
    by_patient, targets = patient_scores(study.task, all_scores, examples.targets, patients)
    return Evaluation(loss, metric(study.task, by_patient, targets), all_scores, examples.targets, patients)
