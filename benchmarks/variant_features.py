"""What the variants of `private_variants` look at: scattering, changed copies, a network and a head learnt on phantoms."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from torch import nn

from echofed.learning import models
from echofed.learning.augment import augment
from echofed.learning.centring import FEATURE_NORM
from echofed.learning.examples import Examples
from echofed.learning.features import fixed_features
from echofed.learning.images import to_input
from echofed.learning.scattering import PooledLogScattering
from echofed.learning.small_resnet import SmallResNetEncoder
from echofed.protocol.arrays import encode_parameters
from echofed.protocol.study import Augmentation, Preprocessing, Study
from echofed.simulations.initial import BLOCKS, PUBLIC_PHANTOMS
from echofed.simulations.phantoms import random_phantoms

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
SIDE_PX = 96
COPIES = Augmentation(flip=True, gain=0.2, shift=0.05, zoom=0.1, copies=4)
PENALTY = 0.015
"""On the squared length of the warm start."""
WIDTH, BLOCKS_OF_NETWORK, BATCH = 16, 1, 48
PHANTOM_LABELS = np.array([0, 1, 0, 1, 2])
"""Of `random_phantoms`, in turn: benign, malignant, and without a lesion."""


class Features:
    """Vectors of images, float32 [n, ...], worked out once for each image however many splits it is in."""

    def __init__(self, compute: Callable[[Pixels], Floats]) -> None:
        self._compute = compute
        self._known: dict[bytes, Floats] = {}

    def of(self, images: Pixels) -> Floats:
        keys = [hashlib.sha256(image.tobytes()).digest() for image in images]
        new = {key: row for row, key in enumerate(keys) if key not in self._known}
        if new:
            self._known.update(zip(new, self._compute(np.asarray(images[list(new.values())])), strict=True))
        return np.stack([self._known[key] for key in keys])


@cache
def scattering(copied: bool) -> Features:
    """Return log scattering coefficients of images, [n, dimensions]; with their changed copies [n, copies, dimensions]."""
    transform, rng = PooledLogScattering(SIDE_PX, scales=4, angles=8, grid=3), np.random.default_rng(0)

    def compute(images: Pixels) -> Floats:
        inputs = to_input(images, Preprocessing())
        if not copied:
            return np.asarray(transform(inputs).numpy())
        changed = [augment(inputs, None, COPIES, rng)[0] for _ in range(COPIES.copies)]
        return np.stack([transform(some).numpy() for some in (inputs, *changed)], axis=1)

    return Features(compute)


@cache
def network(study: Study, path: Path, steps: int) -> Features:
    """Return features of a study's small_resnet, whose encoder is trained on phantoms and comes from a file."""
    train_network(path, steps)
    model = models.build_model(study)
    models.load_parameters(model, models.initial_parameters_from(study, path, seed=0)[0])
    return Features(lambda images: np.concatenate(list(fixed_features(model, images, study))))


@cache
def phantoms(seed: int) -> Pixels:
    """Return the phantoms on which `study init` with a seed standardises features."""
    count = PUBLIC_PHANTOMS // BLOCKS
    return np.concatenate([random_phantoms(count, SIDE_PX, BLOCKS * seed + block) for block in range(BLOCKS)])


def phantom_labels() -> NDArray[np.int64]:
    """Return their labels: 0 benign, 1 malignant, 2 no lesion."""
    return PHANTOM_LABELS[np.arange(PUBLIC_PHANTOMS) % (PUBLIC_PHANTOMS // BLOCKS) % len(PHANTOM_LABELS)]


def train_network(path: Path, steps: int) -> None:
    """Train a small_resnet to tell phantoms apart and write its encoder.

    AdamW with a cosine schedule over 4,096 phantoms of seeds no study is standardised on, changed anew at each step.
    """
    images = np.concatenate([phantoms(seed) for seed in range(100, 104)])
    labels = torch.from_numpy(np.tile(phantom_labels(), 4))
    rng = np.random.default_rng(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = SmallResNetEncoder(WIDTH, BLOCKS_OF_NETWORK)
        head = nn.Linear(encoder.dimensions, 3)
    changes = Augmentation(flip=True, gain=0.4, shift=0.15, zoom=0.3, speckle=0.2)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = rng.integers(len(images), size=BATCH)
        inputs = augment(to_input(images[rows], Preprocessing(standardise="image")), None, changes, rng)[0]
        loss = F.cross_entropy(head(encoder(inputs)), labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    path.write_bytes(encode_parameters(models.read_parameters(encoder), {}))


def with_features(examples: Examples, features: Floats) -> Examples:
    """Return examples with features in place of images; features [images, copies, n] make an item of each copy."""
    n = len(features)
    empty = np.zeros((n * (features.shape[1] if features.ndim == 3 else 1), 1, 1), np.uint8)
    if features.ndim == 2:
        return replace(examples, images=empty, features=features)
    copies, items = features.shape[1], len(examples.targets)
    return Examples(
        images=empty,
        masks=None,
        targets=np.tile(examples.targets, (copies, 1)),
        item_images=tuple(rows * copies + copy for copy in range(copies) for rows in examples.item_images),
        patient_items=tuple(
            np.concatenate([rows + copy * items for copy in range(copies)]) for rows in examples.patient_items
        ),
        features=features.reshape(n * copies, -1),
    )


def warm_start(features: Floats) -> dict[str, Floats]:
    """Return a head that tells benign from malignant phantoms: penalised logistic regression on centred features."""
    labels = phantom_labels()
    centred = features - features.mean(0)
    x = FEATURE_NORM * (centred / np.linalg.norm(centred, axis=1, keepdims=True))[labels < 2].astype(np.float64)
    sign = 2.0 * labels[labels < 2] - 1

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = sign * (x @ values[:-1] + values[-1])
        slope = -sign * expit(-margins) / len(x)
        gradient = np.append(slope @ x + 2 * PENALTY * values[:-1], slope.sum())
        return float(np.logaddexp(0, -margins).mean() + PENALTY * values[:-1] @ values[:-1]), gradient

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return {"head.1.weight": found[None, :-1].astype(np.float32)}
