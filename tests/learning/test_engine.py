from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from opacus.optimizers import DPOptimizer
from scipy import stats
from torch import Tensor, nn

from echofed.learning.engine import add_clipped, train
from echofed.learning.examples import Examples
from echofed.learning.gradients import PatientGradients, patient_gradient, trainable
from echofed.learning.images import to_input
from echofed.learning.models import StudyModel, build_model
from echofed.learning.randomness import NoiseSource, generator
from echofed.learning.tasks import item_losses
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
NO_NOISE = NoiseSource(1e-12, 0)
PROXIMAL = {"client_term": {"name": "proximal", "strength": 0.7}}


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
    noise: NoiseSource | None = None,
    *,
    seed: int = 0,
    threads: int = 1,
    steps: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, float | None]:
    """Train a started model and return its update (local - global) and the loss."""
    model = started(study, dtype)
    before = flat(trainable(model))
    loss = train(model, examples, study, rng=generator(seed), noise=noise, threads=threads, steps=steps)
    return flat(trainable(model)) - before, loss


def mean_gradient(study: Study, examples: Examples, clipping_norm: float) -> Tensor:
    model = started(study, torch.float64)
    total = torch.zeros_like(flat(trainable(model)))
    for patient in range(examples.patients):
        gradient = flat(patient_gradient(model, examples, study, patient, 0).gradients)
        total += gradient * min(1.0, clipping_norm / float(gradient.norm()))
    return total / examples.patients


@given(
    norms=st.lists(st.floats(0, 1e6), max_size=6),
    newcomer=st.floats(0, 1e12),
    clipping_norm=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**32),
    together=st.booleans(),
)
def test_one_patient_changes_the_sum_by_at_most_the_clipping_norm(
    norms: list[float], newcomer: float, clipping_norm: float, seed: int, together: bool
) -> None:
    rng = np.random.default_rng(seed)

    def gradients_of_norm(lengths: list[float]) -> PatientGradients:
        vectors = rng.standard_normal((len(lengths), 7))
        vectors *= np.array(lengths)[:, None] / np.linalg.norm(vectors, axis=1, keepdims=True)
        whole = torch.from_numpy(vectors).float()
        return PatientGradients((whole[:, :3], whole[:, 3:].reshape(-1, 2, 2)), whole.norm(dim=1), 0.0)

    def clipped_sum(parts: list[PatientGradients]) -> Tensor:
        total = [torch.zeros(3), torch.zeros(2, 2)]
        for part in parts:
            add_clipped(total, part, clipping_norm)
        return flat(total)

    others, new = gradients_of_norm(norms), gradients_of_norm([newcomer])
    if not together:
        others_in_turn = [
            PatientGradients(tuple(g[i : i + 1] for g in others.gradients), others.norms[i : i + 1], 0.0)
            for i in range(len(norms))
        ]
    parts = [others] if together else others_in_turn
    change = clipped_sum([*parts, new]) - clipped_sum(parts)
    rounding = 1e-6 * clipping_norm * (len(norms) + 2)
    assert float(change.norm()) <= clipping_norm + rounding
    assert float(change.norm()) == pytest.approx(min(newcomer, clipping_norm), rel=1e-3, abs=1e-5 + rounding)


def test_clipping_is_that_of_opacus() -> None:
    shapes = [(5, 3), (5,), (2, 3, 3, 3)]
    source = torch.Generator().manual_seed(0)
    patients = [[torch.randn(shape, generator=source) * scale for shape in shapes] for scale in (0.01, 0.2, 5.0, 0.0)]
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    optimizer = DPOptimizer(
        torch.optim.SGD(parameters, lr=1.0), noise_multiplier=0.0, max_grad_norm=1.5, expected_batch_size=1
    )
    for parameter, *gradients in zip(parameters, *patients, strict=True):
        parameter.grad_sample = torch.stack(gradients)
    optimizer.clip_and_accumulate()
    ours = [torch.zeros(shape) for shape in shapes]
    for gradients in patients:
        add_clipped(ours, PatientGradients(tuple(g[None] for g in gradients), flat(gradients).norm()[None], 0.0), 1.5)
    for parameter, total in zip(parameters, ours, strict=True):
        torch.testing.assert_close(total, parameter.summed_grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("clipping_norm", [0.05, 1e6])
def test_a_private_step_is_the_mean_of_clipped_gradients(clipping_norm: float) -> None:
    study = make_study(training=FULL_BATCH, privacy={**PRIVATE, "clipping_norm": clipping_norm})
    examples = make_examples(SIZES)
    update, _ = trained(study, examples, NoiseSource(1e-16 / clipping_norm, 0), dtype=torch.float64)
    expected = -study.training.learning_rate * mean_gradient(study, examples, clipping_norm)
    torch.testing.assert_close(update, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("unit", ["image", "exam"])
def test_without_privacy_a_full_batch_step_is_that_of_all_data_in_one_place(unit: str) -> None:
    study = make_study(training=FULL_BATCH, task={"unit": unit})
    examples = make_examples([[1, 1], [1, 1], [1, 1]] if unit == "image" else [[2, 1], [3, 1], [1, 4]])
    update, loss = trained(study, examples, dtype=torch.float64)
    model = started(study, torch.float64)
    rows = np.concatenate(examples.item_images)
    of_item = torch.from_numpy(np.repeat(np.arange(6), [len(images) for images in examples.item_images]))
    logits = model(to_input(examples.images[rows], study.preprocessing).double(), of_item, 6)
    # Every patient has two items, so the mean over patients of their means is the mean over items.
    centralised = item_losses(study.task, logits, torch.from_numpy(examples.targets).double()).mean()
    expected = -study.training.learning_rate * flat(torch.autograd.grad(centralised, trainable(model)))
    torch.testing.assert_close(update, expected, rtol=1e-11, atol=1e-12)
    assert loss == pytest.approx(float(centralised.detach()), abs=1e-12)


def test_without_clipping_and_noise_both_ways_of_training_agree() -> None:
    training: dict[str, Any] = {"local_steps": 4, "momentum": 0.5, "weight_decay": 0.1, "learning_rate": 0.05}
    examples = make_examples(SIZES)
    for strategy in ({}, PROXIMAL):
        openly, _ = trained(make_study(training=training, strategy=strategy), examples, dtype=torch.float64)
        private = make_study(training=training, strategy=strategy, privacy={**PRIVATE, "clipping_norm": 1e5})
        # Both draw the same patients only where nothing else is drawn between: one step at a time.
        privately, private_loss = trained(private, examples, NoiseSource(1e-20, 0), dtype=torch.float64, steps=1)
        one_step, one_loss = trained(
            make_study(training=training, strategy=strategy), examples, steps=1, dtype=torch.float64
        )
        torch.testing.assert_close(privately, one_step, rtol=1e-8, atol=1e-12)
        assert private_loss == pytest.approx(one_loss, abs=1e-12)
        assert not torch.allclose(openly, one_step)


@pytest.mark.parametrize("model", [{"name": "small_resnet", "width": 8, "blocks": 1}, SCATTERING])
def test_the_number_of_threads_changes_no_bit(model: dict[str, Any]) -> None:
    study = make_study(model=model, privacy=PRIVATE, training={"augmentation": {"speckle": 0.2, "copies": 2}})
    examples = make_examples([[1] * (1 + patient % 3) for patient in range(10)], side=32)
    one, loss = trained(study, examples, NoiseSource(1.0, 3), threads=1)
    two, same_loss = trained(study, examples, NoiseSource(1.0, 3), threads=2)
    assert torch.equal(one, two)
    assert loss == same_loss


@pytest.mark.parametrize("private", [True, False])
def test_training_follows_its_seeds(private: bool) -> None:
    study = make_study(privacy=PRIVATE if private else {"unit": "none"}, training={"augmentation": {"gain": 0.3}})
    examples = make_examples(SIZES * 3)
    noise = NoiseSource(1.0, 5, ("site", 1)) if private else None
    first, again, other = (trained(study, examples, noise, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    if private:
        assert not torch.equal(first, trained(study, examples, NoiseSource(1.0, 5, ("site", 2)), seed=1)[0])


def test_training_leaves_the_global_generator_and_threads_alone() -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    trained(make_study(privacy=PRIVATE), make_examples(SIZES), NoiseSource(1.0, None), threads=2)
    trained(make_study(), make_examples(SIZES), threads=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("seed", [11, None])
def test_noise_has_the_standard_deviation_promised(seed: int | None) -> None:
    # A zero learning signal: clipped so hard that what is left is noise of multiplier * C / expected patients.
    multiplier, clipping_norm, rate = 2.5, 1e-4, 100.0
    study = make_study(
        training={"learning_rate": rate, "local_steps": 1, "sampling_probability": 0.5},
        privacy={**PRIVATE, "clipping_norm": clipping_norm},
    )
    examples = make_examples([[1]] * 8)
    update, _ = trained(study, examples, NoiseSource(multiplier, seed))
    gradient_bound = rate * clipping_norm * 8 / 4
    expected = rate * multiplier * clipping_norm / 4
    assert gradient_bound / len(update) ** 0.5 < expected / 20
    normalised = (update / expected).numpy().astype(np.float64)
    assert len(normalised) > 5000
    assert stats.kstest(normalised, "norm").pvalue > 1e-3
    assert stats.kstest(normalised * 2 / 3, "norm").pvalue < 1e-9
    assert stats.kstest(normalised * 3 / 2, "norm").pvalue < 1e-9


def test_noise_is_fresh_at_every_step() -> None:
    study = make_study(
        training={"learning_rate": 1.0, "local_steps": 9, "sampling_probability": 1e-9},
        privacy={**PRIVATE, "clipping_norm": 1.0},
    )
    update, _ = trained(study, make_examples([[1]] * 4), NoiseSource(1e-6, 1))
    expected = 3 * 1e-6 / (4 * 1e-9)  # nine independent steps add up to three times one; equal ones to nine times
    assert float(update.std()) == pytest.approx(expected, rel=0.05)


def test_an_empty_draw_still_adds_noise_and_has_no_loss() -> None:
    nobody = {"sampling_probability": 1e-9, "local_steps": 3}
    update, loss = trained(make_study(training=nobody, privacy=PRIVATE), make_examples(SIZES), NoiseSource(1e-6, 0))
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
    noise = NO_NOISE if private else None
    examples = make_examples(SIZES)
    for steps, equal in ((1, True), (2, False)):
        without, _ = trained(make_study(**parts), examples, noise, steps=steps)
        pulled, _ = trained(make_study(**parts, strategy=PROXIMAL), examples, noise, steps=steps)
        assert torch.equal(without, pulled) == equal
    strong = {"client_term": {"name": "proximal", "strength": 9.0}}
    far, _ = trained(make_study(**parts), examples, noise, steps=20)
    near, _ = trained(make_study(**parts, strategy=strong), examples, noise, steps=20)
    assert float(near.norm()) < 0.5 * float(far.norm())


def test_the_proximal_term_is_added_after_clipping() -> None:
    # Patients pull by at most C together; the term itself is far larger, and must not be clipped away.
    study = make_study(
        training={"sampling_probability": 1e-9, "learning_rate": 0.1, "local_steps": 2},
        privacy=PRIVATE,
        strategy={"client_term": {"name": "proximal", "strength": 5.0}},
    )
    plain = make_study(training={"sampling_probability": 1e-9, "learning_rate": 0.1, "local_steps": 2}, privacy=PRIVATE)
    examples, noise = make_examples(SIZES), NoiseSource(1e-3, 0)
    first, _ = trained(plain, examples, noise, steps=1)
    both, _ = trained(plain, examples, noise, steps=2)
    pulled, _ = trained(study, examples, noise, steps=2)
    torch.testing.assert_close(pulled, both - 0.1 * 5.0 * first, rtol=1e-4, atol=1e-2)


def test_weight_decay_does_not_use_up_the_clipping_norm() -> None:
    training = {**FULL_BATCH, "learning_rate": 0.1}
    examples = make_examples(SIZES)
    plain, _ = trained(make_study(training=training, privacy=PRIVATE), examples, NO_NOISE)
    decayed, _ = trained(make_study(training={**training, "weight_decay": 0.9}, privacy=PRIVATE), examples, NO_NOISE)
    start = flat(trainable(started(make_study())))
    torch.testing.assert_close(decayed, plain - 0.1 * 0.9 * start, rtol=1e-4, atol=1e-5)


def test_the_first_step_of_adam_is_the_gradient_over_its_own_size() -> None:
    examples = make_examples(SIZES)
    private: dict[str, Any] = {"privacy": {**PRIVATE, "clipping_norm": 1e6}}
    for parts, noise in ((private, NoiseSource(1e-20, 0)), ({}, None)):
        study = make_study(training={**FULL_BATCH, "optimizer": "adam", "learning_rate": 0.01}, **parts)
        update, _ = trained(study, examples, noise, dtype=torch.float64)
        gradient = mean_gradient(study, examples, 1e6)
        torch.testing.assert_close(update, -0.01 * gradient / (gradient.abs() + 1e-8), rtol=1e-5, atol=1e-7)


def test_learning_lowers_the_loss() -> None:
    examples = make_examples([[1]] * 8, seed=3)
    for parts, noise in (({"privacy": PRIVATE}, NoiseSource(0.01, 0)), ({}, None)):
        study = make_study(training={"learning_rate": 0.2, "sampling_probability": 1.0}, **parts)
        model = build_model(study)
        losses = [train(model, examples, study, rng=generator(0), noise=noise, steps=5) for _ in range(8)]
        assert losses[0] is not None
        assert losses[-1] is not None
        assert losses[-1] < 0.7 * losses[0]


def test_only_what_learns_changes() -> None:
    study = make_study(model={"name": "small_resnet", "width": 8, "blocks": 1, "encoder": "frozen"}, privacy=PRIVATE)
    model = started(study)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, make_examples(SIZES), study, rng=generator(0), noise=NoiseSource(1.0, 0))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_features_train_as_their_images_do() -> None:
    study = make_study(
        model=SCATTERING, privacy=PRIVATE, training={"local_steps": 5}, preprocessing={"image_size_px": 32}
    )
    examples = make_examples(SIZES, side=32)
    model = build_model(study)
    with torch.no_grad():
        features = model.encode(to_input(examples.images, study.preprocessing)).numpy()
    fast = Examples(examples.images, None, examples.targets, examples.item_images, examples.patient_items, features)
    for noise, parts in ((NoiseSource(1.0, 0), {}), (None, {"privacy": {"unit": "none"}})):
        chosen = study.model_copy(update={"privacy": make_study(**parts).privacy}) if parts else study
        slow_update, slow_loss = trained(chosen, examples, noise)
        fast_update, fast_loss = trained(chosen, fast, noise)
        torch.testing.assert_close(fast_update, slow_update, rtol=1e-4, atol=1e-5)
        assert fast_loss == pytest.approx(slow_loss, rel=1e-5)


def test_noise_must_be_given_exactly_when_the_study_is_private() -> None:
    examples = make_examples(SIZES)
    with pytest.raises(PrivacyParameterError):
        trained(make_study(privacy=PRIVATE), examples, None)
    with pytest.raises(PrivacyParameterError):
        trained(make_study(), examples, NO_NOISE)


def test_what_cannot_be_trained_is_refused() -> None:
    study, examples = make_study(), make_examples(SIZES)
    with pytest.raises(NoPatientsError):
        trained(study, Examples(examples.images, None, examples.targets, examples.item_images, ()))
    model = started(study)
    model.requires_grad_(False)
    with pytest.raises(ParametersError):
        train(model, examples, study, rng=generator(0), noise=None)
    model = started(study)
    model.head = nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, 1))
    with pytest.raises(BatchNormError):
        train(model, examples, study, rng=generator(0), noise=None)


@pytest.mark.parametrize("private", [True, False])
def test_a_loss_that_is_not_a_number_is_an_error(private: bool) -> None:
    examples = make_examples(SIZES)
    examples.targets[3] = np.nan
    study = make_study(privacy=PRIVATE if private else {"unit": "none"}, training={"sampling_probability": 1.0})
    with pytest.raises(NonFiniteLossError):
        trained(study, examples, NO_NOISE if private else None)
