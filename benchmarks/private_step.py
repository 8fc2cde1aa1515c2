"""What patient-level privacy costs: a private step against the same step without privacy, on the same images.

The step without privacy has all patients' images batched together, on one thread or on two, whichever is faster. Beside both
stand Opacus' own hooks, which keep a gradient for every image, summed per patient before clipping. Times are medians of steps
taken in turn, so that a busy machine slows all alike.

    python -m benchmarks.private_step [--quick]
"""

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer

from echofed.learning.batches import batches, cuts
from echofed.learning.engine import PatientPrivacy, train
from echofed.learning.examples import Examples
from echofed.learning.models import StudyModel, build_model
from echofed.learning.tasks import item_losses
from echofed.privacy.randomness import random_words
from echofed.protocol.study import Study

TARGET_RATIO = 1.1
HOOKS = "Opacus hooks, summed per patient"
HOOKS_MAX_BYTES = 2**29
"""Of gradients of single images that Opacus' hooks may hold at once."""


@dataclass(frozen=True)
class Case:
    """A model and what a step draws: patients, and the fewest and most images one has."""

    name: str
    model: dict[str, Any]
    image_size_px: int
    patients: int
    images_per_patient: tuple[int, int]
    repeats: int
    steps: int = 1
    hooks: bool = True


SMALL = {"name": "small_resnet", "width": 16, "blocks": 2}
LARGE = {"name": "small_resnet", "width": 128, "blocks": 2}  # as many parameters as ResNet18
CASES = (
    Case("0.17 M parameters, 64 px, 5-25 images", SMALL, 64, 8, (5, 25), 9, steps=4),
    Case("0.17 M parameters, 64 px, 5 images", SMALL, 64, 24, (5, 5), 7, steps=4),
    Case("0.17 M parameters, 64 px, 15 images", SMALL, 64, 8, (15, 15), 7, steps=4),
    Case("0.17 M parameters, 64 px, 25 images", SMALL, 64, 5, (25, 25), 7, steps=4),
    Case("0.17 M parameters, 64 px, 1 or 2 images", SMALL, 64, 40, (1, 2), 7, steps=4),
    Case("11 M parameters, 128 px, 5-25 images", LARGE, 128, 3, (5, 25), 3),
    Case("scattering head, 96 px", {"name": "scattering"}, 96, 200, (1, 3), 9, steps=20, hooks=False),
)


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Time every case and return one row for each engine: case, engine, threads, seconds, ratio to no privacy.

    Args:
        quick: the small network on exams and the head only, three times each.
    """
    cases = (CASES[0], CASES[-1]) if quick else CASES
    return [row for case in cases for row in _time_case(case, 3 if quick else case.repeats)]


def _time_case(case: Case, repeats: int) -> list[dict[str, Any]]:
    private, public = _study(case, private=True), _study(case, private=False)
    examples = _examples(case, private)
    model = build_model(private)
    starts = [parameter.detach().clone() for parameter in model.parameters()]
    privacy = PatientPrivacy(1.0, examples.patients, random_words(0))

    def step(study: Study, threads: int) -> Callable[[], object]:
        given = privacy if study.is_private else None
        return lambda: train(model, examples, study, rng=np.random.default_rng(0), privacy=given, threads=threads)

    engines: dict[tuple[str, int], Callable[[], object]] = {
        (name, threads): step(study, threads)
        for threads in (1, 2)
        for name, study in (("not private", public), ("private", private))
    }
    if case.hooks:
        engines[HOOKS, 2] = lambda: _quiet(_hooked_step, private, examples)
    seconds: dict[tuple[str, int], list[float]] = {engine: [] for engine in engines}
    for repeat in range(repeats + 1):
        for (name, threads), take_step in engines.items():
            with torch.no_grad():
                for parameter, start in zip(model.parameters(), starts, strict=True):
                    parameter.copy_(start)
            begin = time.perf_counter()
            take_step()
            if repeat > 0:  # the first step of each fills caches
                seconds[name, threads].append((time.perf_counter() - begin) / (1 if name == HOOKS else case.steps))
    medians = {engine: statistics.median(values) for engine, values in seconds.items()}
    return [
        {
            "case": case.name,
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "images": len(examples.item_images),
            "engine": name,
            "threads": threads,
            "seconds": median,
            "ratio": median / _fastest_without_privacy(medians, threads),
        }
        for (name, threads), median in medians.items()
    ]


def _fastest_without_privacy(medians: dict[tuple[str, int], float], threads: int) -> float:
    """Return the best time without privacy on this many cores: two are free to use one."""
    return min(medians["not private", used] for used in range(1, threads + 1))


def _study(case: Case, private: bool) -> Study:
    return Study.model_validate(
        {
            "schema_version": 1,
            "title": "Cost of a private step",
            "purpose": "benchmark",
            "contact": "benchmark",
            "task": {"kind": "binary", "labels": ("benign", "malignant")},
            "preprocessing": {"image_size_px": case.image_size_px},
            "model": case.model,
            "training": {"learning_rate": 0.01, "local_steps": case.steps, "sampling_probability": 1.0},
            "privacy": {"unit": "patient", "epsilon": 3.0, "clipping_norm": 1.0} if private else {"unit": "none"},
            "federation": {"rounds": 1, "minimum_sites": 1, "minimum_replies": 1},
        }
    )


def _examples(case: Case, study: Study) -> Examples:
    """Draw images of noise, which cost what real ones cost."""
    rng = np.random.default_rng(0)
    per_patient = rng.integers(*case.images_per_patient, size=case.patients, endpoint=True)
    ends = np.cumsum(per_patient)
    n, side = int(ends[-1]), case.image_size_px
    model = build_model(study)
    features = None
    if model.has_fixed_features:
        dimensions = next(p for p in model.parameters() if p.requires_grad).shape[1]
        features = rng.standard_normal((n, dimensions), dtype=np.float32)
    return Examples(
        images=rng.integers(256, size=(n, side, side), dtype=np.uint8),
        masks=None,
        targets=rng.integers(2, size=(n, 1)).astype(np.float32),
        item_images=tuple(np.arange(image, image + 1) for image in range(n)),
        patient_items=tuple(np.arange(end - count, end) for count, end in zip(per_patient, ends, strict=True)),
        features=features,
    )


def _quiet(take_step: Callable[[Study, Examples], None], study: Study, examples: Examples) -> None:
    with warnings.catch_warnings():
        # torch tells Opacus' hooks that images, having no gradient themselves, end the backward pass; that is expected.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        take_step(study, examples)


def _hooked_step(study: Study, examples: Examples) -> None:
    """Take the same private step with Opacus' hooks: a gradient of each image, added up per patient, then clipped."""
    torch.set_num_threads(2)
    model: StudyModel = build_model(study)
    hooked = GradSampleModule(model, loss_reduction="sum")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = DPOptimizer(
        torch.optim.SGD(parameters, lr=study.training.learning_rate),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=examples.patients,
        generator=torch.Generator().manual_seed(0),
    )
    at_once = max(1, HOOKS_MAX_BYTES // (4 * sum(parameter.numel() for parameter in parameters)))
    for first, last in cuts([len(items) for items in examples.patient_items], at_once):
        owned = examples.patient_items[first:last]
        patient = torch.from_numpy(np.repeat(np.arange(last - first), [len(items) for items in owned]))
        shares = np.concatenate([np.full(len(items), 1 / len(items)) for items in owned])
        for batch in batches(examples, study, np.concatenate(owned), shares, parameters[0].dtype):
            logits = hooked(batch.inputs, batch.item_of_image, len(batch.targets))
            (item_losses(study.task, logits, batch.targets) * batch.shares).sum().backward()
        for parameter in parameters:
            parts = parameter.grad_sample if isinstance(parameter.grad_sample, list) else [parameter.grad_sample]
            of_patients = parameter.new_zeros((last - first, *parameter.shape))
            parameter.grad_sample = of_patients.index_add_(0, patient, torch.cat(parts))
        optimizer.signal_skip_step(last < examples.patients)
        optimizer.step()
        optimizer.zero_grad()
    hooked.remove_hooks()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    busy = os.getloadavg()[0]
    rows = run(parser.parse_args().quick)
    print(f"{'case':42}{'engine':36}{'threads':>8}{'ms':>10}{'ratio':>8}")
    for row in rows:
        print(f"{row['case']:42}{row['engine']:36}{row['threads']:8d}{1e3 * row['seconds']:10.1f}{row['ratio']:8.2f}")
    print(f"Ratio: to the fastest step without privacy on as many cores; target {TARGET_RATIO} at most.")
    print(f"Load average at the start: {busy:.1f}; beyond 0.5 the rows of two threads tell little.")


if __name__ == "__main__":
    main()
