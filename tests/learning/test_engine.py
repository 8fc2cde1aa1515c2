import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from echofed.learning import batches as batches_module
from echofed.learning.engine import PatientPrivacy, train
from echofed.learning.examples import Examples
from echofed.learning.gradients import patient_gradient, trainable
from echofed.learning.images import to_input
from echofed.learning.models import StudyModel, build_model
from echofed.learning.randomness import generator
from echofed.learning.tasks import item_losses
from echofed.privacy.clipping import NOISE_UNITS
from echofed.privacy.noise import gaussian_integers
from echofed.privacy.randomness import random_words
from echofed.protocol.errors import (
    BatchNormError,
    NonFiniteLossError,
    NoPatientsError,
    ParametersError,
    PrivacyParameterError,
)
from echofed.protocol.study import Study
from tests.learning.example_sets import make_examples
from tests.studies import PRIVATE, make_study

SIZES = [[1, 1, 1], [1], [1, 1, 1, 1], [1, 1]]
SCATTERING = {"name": "scattering", "scales": 2, "angles": 2, "projection": None}
FULL_BATCH = {"sampling_probability": 1.0, "local_steps": 1}
LEAST_NOISE = 2.0**-16
PROXIMAL = {"client_term": {"name": "proximal", "strength": 0.7}}
FLOAT64 = torch.float64


def hidden(multiplier: float, patients: int = 4, seed: int | None = 0, *context: str | int) -> PatientPrivacy:
    """Return privacy with words from their start; a training uses them up."""
    return PatientPrivacy(multiplier, patients, random_words(seed, *context))


def started(study: Study, dtype: torch.dtype = torch.float32) -> StudyModel:
    """Return the study's model with parameters none of which is 0, so that every gradient counts."""
    model = build_model(study).to(dtype)
    source = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=source)
    return model


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def trained(
    study: Study,
    examples: Examples,
    privacy: PatientPrivacy | None = None,
    *,
    seed: int = 0,
    threads: int = 1,
    steps: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, float | None]:
    """Train a started model and return its update (local - global) and the loss."""
    model = started(study, dtype)
    before = flat(trainable(model))
    loss = train(model, examples, study, rng=generator(seed), privacy=privacy, threads=threads, steps=steps)
    return flat(trainable(model)) - before, loss


def noise_of(study: Study, privacy: PatientPrivacy) -> Tensor:
    """Return the noise the first release of a full batch takes from these words, which it uses up."""
    assert study.privacy.clipping_norm is not None
    unit = study.privacy.clipping_norm * privacy.noise_multiplier / NOISE_UNITS
    sizes = [parameter.numel() for parameter in trainable(build_model(study))]
    return torch.from_numpy(
        np.concatenate([gaussian_integers(privacy.words, size, NOISE_UNITS) for size in sizes]) * unit
    )


def clipped_sum(study: Study, examples: Examples, patients: int = 4) -> Tensor:
    """Take one private step on a full batch and take the noise off again."""
    update, _ = trained(study, examples, hidden(LEAST_NOISE, patients), dtype=FLOAT64)
    return -update * patients / study.training.learning_rate - noise_of(study, hidden(LEAST_NOISE))


def plain_sum(study: Study, examples: Examples, clipping_norm: float) -> Tensor:
    model = started(study, FLOAT64)
    total = torch.zeros_like(flat(trainable(model)))
    for patient in range(examples.patients):
        gradient = flat(patient_gradient(model, examples, study, patient, 0).gradients)
        total += gradient * min(1.0, clipping_norm / float(gradient.norm()))
    return total


def private_study(clipping_norm: float = 1.0, **parts: Any) -> Study:
    return make_study(**{"training": FULL_BATCH, "privacy": {**PRIVATE, "clipping_norm": clipping_norm}, **parts})


@pytest.mark.parametrize("clipping_norm", [0.05, 1.0, 1e3])
def test_a_private_step_is_the_sum_of_clipped_gradients_and_noise(clipping_norm: float) -> None:
    study, examples = private_study(clipping_norm), make_examples(SIZES)
    found, expected = clipped_sum(study, examples), plain_sum(study, examples, clipping_norm)
    # Clipping leaves a margin of a millionth; a number is cut to units of 10^-12 of the norm.
    assert float((found - expected).norm()) <= 2e-6 * float(expected.norm())
    assert float(expected.norm()) > 0.02


def test_the_sum_is_divided_by_the_public_number_of_patients() -> None:
    study, examples = private_study(training={**FULL_BATCH, "sampling_probability": 0.5}), make_examples(SIZES)
    by_four, by_eight = (trained(study, examples, hidden(1.0, patients), dtype=FLOAT64)[0] for patients in (4, 8))
    torch.testing.assert_close(by_four, 2 * by_eight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("with_features", [True, False])
def test_a_patient_with_many_images_is_clipped_once(with_features: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Three images fit in memory together: a patient of 8 is computed in parts.
    monkeypatch.setattr(batches_module, "MAX_BATCH_PIXELS", 3 * 16**2)
    clipping_norm = 0.01
    model = {"model": SCATTERING} if with_features else {}
    study = private_study(clipping_norm, **model)
    dimensions = build_model(study).head.in_features if with_features else None
    own = make_examples([[1] * 8], features=dimensions)
    rows, targets = np.concatenate(own.item_images), np.concatenate([own.targets] * 2)

    def shared_out(patient_items: tuple[Any, ...], images: Any) -> Examples:
        features = None if own.features is None else own.features[images]
        items = tuple(np.arange(len(images)).reshape(-1, 1))
        return Examples(own.images[images], None, targets[: len(images)], items, patient_items, features)

    twice = np.concatenate([rows, rows])
    two = clipped_sum(study, shared_out((np.arange(8), np.arange(8, 16)), twice))
    one = clipped_sum(study, shared_out((np.arange(16),), twice))
    single = clipped_sum(study, shared_out((np.arange(8),), rows))
    assert float(single.norm()) == pytest.approx(clipping_norm, rel=2e-6)
    assert float(one.norm()) == pytest.approx(clipping_norm, rel=2e-6)
    assert float(two.norm()) == pytest.approx(2 * clipping_norm, rel=2e-6)
    torch.testing.assert_close(one, single, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [0.0, 1.0, 1e-30, 1e20, 1e37, np.inf, np.nan])
def test_one_patient_more_moves_the_model_by_at_most_the_clipping_norm(size: float) -> None:
    clipping_norm = 0.3
    study = private_study(clipping_norm, model=SCATTERING)
    examples = make_examples(SIZES, features=build_model(study).head.in_features)
    assert examples.features is not None
    last = examples.patient_items[-1]
    examples.features[np.concatenate([examples.item_images[item] for item in last])] *= np.float32(size)
    fewer = Examples(
        examples.images, None, examples.targets, examples.item_images, examples.patient_items[:-1], examples.features
    )
    moved = (clipped_sum(study, examples) - clipped_sum(study, fewer)).norm()
    assert float(moved) <= clipping_norm * (1 + 1e-9)
    assert (float(moved) > 0) == bool(np.isfinite(size))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_patient_whose_gradient_is_not_finite_counts_as_absent(
    threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    study, examples = private_study(), make_examples([[1]] * 4)
    examples.targets[2] = np.nan
    others = (*examples.patient_items[:2], examples.patient_items[3])
    without = Examples(examples.images, None, examples.targets, examples.item_images, others)
    with caplog.at_level(logging.WARNING, "echofed.learning"):
        found, _ = trained(study, examples, hidden(1.0), threads=threads)
        assert caplog.messages == ["1 gradients that were not finite were left out of a step."]
        caplog.clear()
        expected, _ = trained(study, without, hidden(1.0), threads=threads)
        assert caplog.messages == []
    assert torch.equal(found, expected)


@pytest.mark.parametrize("unit", ["image", "exam"])
def test_without_privacy_a_full_batch_step_is_that_of_all_data_in_one_place(unit: str) -> None:
    study = make_study(training=FULL_BATCH, task={"unit": unit})
    examples = make_examples([[1, 1], [1, 1], [1, 1]] if unit == "image" else [[2, 1], [3, 1], [1, 4]])
    update, loss = trained(study, examples, dtype=FLOAT64)
    model = started(study, FLOAT64)
    rows = np.concatenate(examples.item_images)
    of_item = torch.from_numpy(np.repeat(np.arange(6), [len(images) for images in examples.item_images]))
    logits = model(to_input(examples.images[rows], study.preprocessing).double(), of_item, 6)
    # Every patient has two items, so the mean over patients of their means is the mean over items.
    centralised = item_losses(study.task, logits, torch.from_numpy(examples.targets).double()).mean()
    expected = -study.training.learning_rate * flat(torch.autograd.grad(centralised, trainable(model)))
    torch.testing.assert_close(update, expected, rtol=1e-11, atol=1e-12)
    assert loss == pytest.approx(float(centralised.detach()), abs=1e-12)


@pytest.mark.parametrize("strategy", [{}, PROXIMAL])
def test_without_clipping_and_nearly_without_noise_both_ways_of_training_agree(strategy: dict[str, Any]) -> None:
    training: dict[str, Any] = {**FULL_BATCH, "momentum": 0.5, "weight_decay": 0.1, "learning_rate": 0.05}
    steps, clipping_norm, examples = 4, 10.0, make_examples(SIZES)
    openly, loss = trained(make_study(training=training, strategy=strategy), examples, steps=steps, dtype=FLOAT64)
    study = private_study(clipping_norm, training=training, strategy=strategy)
    privately, private_loss = trained(study, examples, hidden(LEAST_NOISE), steps=steps, dtype=FLOAT64)
    # Momentum of 0.5 at most doubles a step's noise.
    noise = 0.05 * 2 * clipping_norm * LEAST_NOISE / 4 * (steps * len(openly)) ** 0.5
    assert float((privately - openly).norm()) < 3 * noise < 0.01 * float(openly.norm())
    assert private_loss == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("model", [{"name": "small_resnet", "width": 8, "blocks": 1}, SCATTERING])
def test_the_number_of_threads_changes_no_bit(model: dict[str, Any]) -> None:
    study = make_study(model=model, privacy=PRIVATE, training={"augmentation": {"speckle": 0.2, "copies": 2}})
    examples = make_examples([[1] * (1 + patient % 3) for patient in range(10)], side=32)
    one, loss = trained(study, examples, hidden(1.0), threads=1)
    two, same_loss = trained(study, examples, hidden(1.0), threads=2)
    assert torch.equal(one, two)
    assert loss == same_loss


@pytest.mark.parametrize("private", [True, False])
def test_training_follows_its_seeds(private: bool) -> None:
    study = make_study(privacy=PRIVATE if private else {"unit": "none"}, training={"augmentation": {"gain": 0.3}})
    examples = make_examples(SIZES * 3)
    first, again, other = (
        trained(study, examples, hidden(1.0, 12, 5, "site", 1) if private else None, seed=seed)[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    if private:
        assert not torch.equal(first, trained(study, examples, hidden(1.0, 12, 5, "site", 2), seed=1)[0])


def test_training_leaves_the_global_generator_and_threads_alone() -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    trained(make_study(privacy=PRIVATE), make_examples(SIZES), hidden(1.0, 4, None), threads=2)
    trained(make_study(), make_examples(SIZES), threads=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("seed", [11, None], ids=["seeded", "deployed"])
def test_noise_has_the_standard_deviation_promised(seed: int | None) -> None:
    # The clipped gradients are spread over thousands of numbers: what is left of each is noise.
    multiplier, clipping_norm, rate = 2.5, 1e-4, 100.0
    study = private_study(
        clipping_norm, training={"learning_rate": rate, "local_steps": 1, "sampling_probability": 0.5}
    )
    update, _ = trained(study, make_examples([[1]] * 8), hidden(multiplier, 8, seed))
    expected = rate * multiplier * clipping_norm / 4
    assert rate * clipping_norm * 8 / 4 / len(update) ** 0.5 < expected / 20
    normalised = (update / expected).numpy().astype(np.float64)
    assert len(normalised) > 5000
    assert stats.kstest(normalised, "norm").pvalue > 1e-5
    assert stats.kstest(normalised * 2 / 3, "norm").pvalue < 1e-9
    assert stats.kstest(normalised * 3 / 2, "norm").pvalue < 1e-9


@pytest.mark.parametrize("seed", [1, None], ids=["seeded", "deployed"])
def test_noise_is_fresh_at_every_step_and_in_every_training(seed: int | None) -> None:
    study = private_study(training={"learning_rate": 1.0, "local_steps": 9, "sampling_probability": 1e-9})
    examples = make_examples([[1]] * 4)
    update, _ = trained(study, examples, hidden(1.0, 4, seed, "a"))
    # Nine independent steps add up to three times one; equal ones to nine times.
    assert float(update.std()) == pytest.approx(3 / (4 * 1e-9), rel=0.05)
    other, _ = trained(study, examples, hidden(1.0, 4, seed, "b"))
    assert abs(float(torch.corrcoef(torch.stack([update, other]))[0, 1])) < 5 / len(update) ** 0.5


def test_an_empty_draw_still_adds_noise_and_has_no_loss() -> None:
    nobody = {"sampling_probability": 1e-9, "local_steps": 3}
    update, loss = trained(make_study(training=nobody, privacy=PRIVATE), make_examples(SIZES), hidden(1.0))
    assert loss is None
    assert float(update.abs().min()) > 0


def test_without_privacy_an_empty_draw_is_no_step() -> None:
    study = make_study(
        training={"sampling_probability": 1e-9, "local_steps": 3, "weight_decay": 0.5}, strategy=PROXIMAL
    )
    update, loss = trained(study, make_examples(SIZES))
    assert loss is None
    assert float(update.abs().max()) == 0


@pytest.mark.parametrize("private", [True, False])
def test_the_proximal_term_pulls_back_and_is_nothing_at_the_start(private: bool) -> None:
    parts: dict[str, Any] = {
        "privacy": PRIVATE if private else {"unit": "none"},
        "training": {"sampling_probability": 1.0},
    }
    examples = make_examples(SIZES)

    def update_of(steps: int, **strategy: Any) -> Tensor:
        privacy = hidden(LEAST_NOISE) if private else None
        return trained(make_study(**parts, **strategy), examples, privacy, steps=steps)[0]

    for steps, equal in ((1, True), (2, False)):
        assert torch.equal(update_of(steps), update_of(steps, strategy=PROXIMAL)) == equal
    strong = {"client_term": {"name": "proximal", "strength": 9.0}}
    assert float(update_of(20, strategy=strong).norm()) < 0.5 * float(update_of(20).norm())


def test_the_proximal_term_is_added_after_clipping() -> None:
    # Patients pull by at most C together; the term itself is far larger, and must not be clipped away.
    training = {"sampling_probability": 1e-9, "learning_rate": 0.1, "local_steps": 2}
    strong = {"client_term": {"name": "proximal", "strength": 5.0}}
    examples, plain = make_examples(SIZES), private_study(training=training)
    first, _ = trained(plain, examples, hidden(1.0), steps=1, dtype=FLOAT64)
    both, _ = trained(plain, examples, hidden(1.0), steps=2, dtype=FLOAT64)
    pulled, _ = trained(private_study(training=training, strategy=strong), examples, hidden(1.0), dtype=FLOAT64)
    assert float(first.norm()) > 1e6
    torch.testing.assert_close(pulled, both - 0.1 * 5.0 * first, rtol=1e-9, atol=1e-2)


def test_weight_decay_does_not_use_up_the_clipping_norm() -> None:
    training = {**FULL_BATCH, "learning_rate": 0.1}
    examples = make_examples(SIZES)
    plain, _ = trained(private_study(training=training), examples, hidden(1.0))
    decayed, _ = trained(private_study(training={**training, "weight_decay": 0.9}), examples, hidden(1.0))
    start = flat(trainable(started(make_study())))
    torch.testing.assert_close(decayed, plain - 0.1 * 0.9 * start, rtol=1e-4, atol=1e-5)


def test_the_first_step_of_adam_is_the_gradient_over_its_own_size() -> None:
    examples, training = make_examples(SIZES), {**FULL_BATCH, "optimizer": "adam", "learning_rate": 0.01}
    open_study, study = make_study(training=training), private_study(100.0, training=training)
    gradient = plain_sum(open_study, examples, 1e9) / 4
    noisy = gradient + noise_of(study, hidden(LEAST_NOISE)) / 4
    for update, expected in (
        (trained(open_study, examples, dtype=FLOAT64)[0], gradient),
        (trained(study, examples, hidden(LEAST_NOISE), dtype=FLOAT64)[0], noisy),
    ):
        # Cutting to whole units shows only in numbers near 0.
        torch.testing.assert_close(update, -0.01 * expected / (expected.abs() + 1e-8), rtol=1e-5, atol=1e-5)


def test_learning_lowers_the_loss() -> None:
    examples = make_examples([[1]] * 8, seed=3)
    for parts, privacy in (({"privacy": PRIVATE}, hidden(0.01, 8)), ({}, None)):
        study = make_study(training={"learning_rate": 0.2, "sampling_probability": 1.0}, **parts)
        model = build_model(study)
        losses = [train(model, examples, study, rng=generator(0), privacy=privacy, steps=5) for _ in range(8)]
        assert losses[0] is not None
        assert losses[-1] is not None
        assert losses[-1] < 0.7 * losses[0]


def test_only_what_learns_changes() -> None:
    study = make_study(model={"name": "small_resnet", "width": 8, "blocks": 1, "encoder": "frozen"}, privacy=PRIVATE)
    model = started(study)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, make_examples(SIZES), study, rng=generator(0), privacy=hidden(1.0))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}


@pytest.mark.parametrize("private", [True, False])
def test_features_train_as_their_images_do(private: bool) -> None:
    study = make_study(
        model=SCATTERING,
        privacy=PRIVATE if private else {"unit": "none"},
        training={"local_steps": 5},
        preprocessing={"image_size_px": 32},
    )
    examples = make_examples(SIZES, side=32)
    model = build_model(study)
    with torch.no_grad():
        features = model.encode(to_input(examples.images, study.preprocessing)).numpy()
    fast = Examples(examples.images, None, examples.targets, examples.item_images, examples.patient_items, features)
    slow_update, slow_loss = trained(study, examples, hidden(1.0) if private else None)
    fast_update, fast_loss = trained(study, fast, hidden(1.0) if private else None)
    torch.testing.assert_close(fast_update, slow_update, rtol=1e-4, atol=1e-5)
    assert fast_loss == pytest.approx(slow_loss, rel=1e-5)


def test_privacy_must_be_given_exactly_when_the_study_is_private() -> None:
    examples = make_examples(SIZES)
    with pytest.raises(PrivacyParameterError):
        trained(make_study(privacy=PRIVATE), examples, None)
    with pytest.raises(PrivacyParameterError):
        trained(make_study(), examples, hidden(1.0))


def test_what_cannot_be_trained_is_refused() -> None:
    study, examples = make_study(), make_examples(SIZES)
    with pytest.raises(NoPatientsError):
        trained(study, Examples(examples.images, None, examples.targets, examples.item_images, ()))
    model = started(study)
    model.requires_grad_(False)
    with pytest.raises(ParametersError):
        train(model, examples, study, rng=generator(0), privacy=None)
    model = started(study)
    model.head = nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, 1))
    with pytest.raises(BatchNormError):
        train(model, examples, study, rng=generator(0), privacy=None)


def test_without_privacy_a_loss_that_is_not_a_number_is_an_error() -> None:
    examples = make_examples(SIZES)
    examples.targets[3] = np.nan
    with pytest.raises(NonFiniteLossError):
        trained(make_study(training={"sampling_probability": 1.0}), examples)
