"""The gradient of each patient's own mean loss: exact, for any architecture, one patient or many at a time."""

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echofed.learning.batches import batch_losses, batches, copies_of
from echofed.learning.examples import Examples
from echofed.learning.models import StudyModel
from echofed.protocol.study import Study

PATIENTS_IN_FLIGHT_PER_THREAD = 2
"""Gradients computed but not yet added up are bounded by this, or memory would grow with the batch."""


@dataclass(frozen=True)
class PatientGradients:
    """Gradients of the mean loss of one or more patients, each over that patient's items only.

    Args:
        gradients: for each trainable parameter, in the model's order, float [patients, *shape]; may hold NaN or infinity.
        loss_sum: of the patients' mean losses.
    """

    gradients: tuple[Tensor, ...]
    loss_sum: float


GradientSource = Callable[[NDArray[np.int64], Sequence[int]], Iterator[PatientGradients]]
"""From the patients sampled, and a seed of each one's augmentation, to their gradients in the order of the patients."""


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters that learn, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def patient_gradient(
    model: StudyModel, examples: Examples, study: Study, patient: int, augmentation_seed: int
) -> PatientGradients:
    """Return one patient's gradient: forward and backward over that patient's images alone.

    The loss is the mean over the patient's items, each averaged over its augmented copies; parts that do not fit in memory
    together are added up, which changes nothing.
    """
    copies = copies_of(study, examples)
    items = np.tile(examples.patient_items[patient], copies)
    shares = np.full(len(items), 1 / len(items))
    parameters = trainable(model)
    loss_sum = 0.0
    for batch in batches(examples, study, items, shares, parameters[0].dtype, np.random.default_rng(augmentation_seed)):
        loss = batch_losses(model, examples, study, batch).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        loss_sum += float(loss.detach())
    gradients = []
    for parameter in parameters:
        gradients.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        parameter.grad = None
    return PatientGradients(tuple(gradient[None] for gradient in gradients), loss_sum)


@contextmanager
def gradient_source(model: StudyModel, examples: Examples, study: Study, threads: int) -> Iterator[GradientSource]:
    """Give a source of per-patient gradients that follows the model's parameters as they change.

    Patients are spread over threads, one core each. Every gradient is computed by one thread and they come in the order of the
    patients, so the numbers do not depend on `threads`.

    Args:
        model: with its current parameters; replicas share their storage.
        examples: of the site.
        study: the task, preprocessing and augmentation.
        threads: cores to use, >= 1.
    """
    if threads == 1:
        yield lambda patients, seeds: (
            patient_gradient(model, examples, study, int(patient), seed)
            for patient, seed in zip(patients, seeds, strict=True)
        )
        return
    replicas: SimpleQueue[StudyModel] = SimpleQueue()
    for _ in range(threads):
        replicas.put(_replica(model))

    def compute(patient: int, seed: int) -> PatientGradients:
        replica = replicas.get()
        try:
            return patient_gradient(replica, examples, study, patient, seed)
        finally:
            replicas.put(replica)

    with ThreadPoolExecutor(threads, "patients", initializer=partial(torch.set_num_threads, 1)) as pool:

        def spread(patients: NDArray[np.int64], seeds: Sequence[int]) -> Iterator[PatientGradients]:
            pending: deque[Future[PatientGradients]] = deque()
            for patient, seed in zip(patients, seeds, strict=True):
                pending.append(pool.submit(compute, int(patient), seed))
                if len(pending) == PATIENTS_IN_FLIGHT_PER_THREAD * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

        yield spread


def _replica(model: StudyModel) -> StudyModel:
    """Copy a model's structure over the same storage, so that it sees every step but has gradients of its own."""
    shared = {id(tensor): tensor.data for tensor in (*model.parameters(), *model.buffers())}
    replica = copy.deepcopy(model)
    originals = (*model.parameters(), *model.buffers())
    for tensor, original in zip((*replica.parameters(), *replica.buffers()), originals, strict=True):
        tensor.data = shared[id(original)]
    return replica


@contextmanager
def intra_op_threads(threads: int) -> Iterator[None]:
    """Let torch use this many threads within one operation, then put back what was."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
