"""The streaming mean: right, order-independent, and of bounded memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echofed.protocol.arrays import BLOCK
from echofed.protocol.messages import SpentPrivacy, TrainReply
from echofed.strategies.aggregation import StreamingMean, aggregation_weight, norm
from tests.studies import PRIVATE, make_study


def _update(seed: int, size: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"a": rng.normal(size=(2, size)).astype(np.float32), "b": rng.normal(size=size).astype(np.float32)}


def taken(mean: StreamingMean, template: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the mean as arrays of the template's shapes."""
    arrays = {name: np.full(array.size, np.nan, np.float32) for name, array in template.items()}
    for name, part, numbers in mean.take():
        assert numbers.dtype == np.float32
        arrays[name][part] = numbers
    return {name: array.reshape(template[name].shape) for name, array in arrays.items()}


def test_mean_is_the_weighted_mean() -> None:
    updates, weights = [_update(seed) for seed in range(3)], [1.0, 2.0, 5.0]
    mean = StreamingMean(updates[0])
    for update, weight in zip(updates, weights, strict=True):
        mean.add(update, weight)
    for name, array in taken(mean, updates[0]).items():
        expected = np.average([update[name] for update in updates], axis=0, weights=weights)
        np.testing.assert_allclose(array, expected, rtol=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (3.0, 0.7, 41.0)])
def test_a_large_mean_in_blocks_is_bit_for_bit_the_mean_at_once(weights: tuple[float, ...]) -> None:
    rng = np.random.default_rng(1)
    sizes = {"z": 2 * BLOCK + 17, "a": 5, "m": BLOCK}
    updates = [{name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()} for _ in weights]
    mean = StreamingMean(updates[0])
    for update, weight in zip(updates, weights, strict=True):
        mean.add(update, weight)
    for name, array in taken(mean, updates[0]).items():
        total = np.zeros(sizes[name], np.float64)
        for update, weight in zip(updates, weights, strict=True):
            total += update[name].astype(np.float64) * weight
        np.testing.assert_array_equal(array, (total * (1 / sum(weights))).astype(np.float32))


@given(st.permutations(list(range(7))))
@settings(max_examples=30, deadline=None)
def test_order_of_sites_does_not_matter(order: list[int]) -> None:
    def mean_in(sites: list[int]) -> dict[str, np.ndarray]:
        mean = StreamingMean(_update(0))
        for site in sites:
            mean.add(_update(site), 1.0 + site)
        return taken(mean, _update(0))

    for name, array in mean_in(sorted(order)).items():
        np.testing.assert_allclose(mean_in(order)[name], array, rtol=1e-6, atol=1e-7)


def test_nothing_added_is_no_movement() -> None:
    assert all(not array.any() for array in taken(StreamingMean(_update(0)), _update(0)).values())


def test_memory_does_not_grow_with_sites() -> None:
    template = {"a": np.zeros(500_000, np.float32)}

    def peak(sites: int) -> int:
        tracemalloc.start()
        mean = StreamingMean(template)
        for _ in range(sites):
            mean.add({"a": np.ones(500_000, np.float32)}, 1.0)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(40) < 1.2 * peak(4)


def test_norm_is_over_all_arrays() -> None:
    assert norm({"a": np.array([3.0], np.float32), "b": np.array([[4.0]], np.float32)}) == 5.0
    large = np.random.default_rng(0).normal(size=3 * BLOCK + 1).astype(np.float32)
    assert norm({"a": large}) == pytest.approx(float(np.linalg.norm(large.astype(np.float64))), rel=1e-12)
    large[-1] = np.nan
    assert not np.isfinite(norm({"a": large}))


def reply(patients: int | None, noise_multiplier: float | None) -> TrainReply:
    spent = None
    if noise_multiplier is not None:
        spent = SpentPrivacy(noise_multiplier=noise_multiplier, sampling_probability=0.5, steps=4, delta=1e-3)
    return TrainReply(
        site="a", study_hash="0" * 64, round_number=1, patients=patients, training_loss=None, spent=spent, seconds=None
    )


def test_weights_are_as_the_study_says() -> None:
    private = {**PRIVATE, "epsilon": 1.0}
    assert aggregation_weight(make_study(), reply(None, None), 9) == 1
    for privacy in ({"unit": "none"}, private):
        study = make_study(strategy={"weighting": "patients"}, privacy=privacy)
        assert aggregation_weight(study, reply(70, 3.0), 9) == 70
    assert aggregation_weight(make_study(strategy={"weighting": "precision"}), reply(70, None), 9) == 70


def test_precision_counts_patients_and_noise() -> None:
    study = make_study(strategy={"weighting": "precision"}, privacy=PRIVATE)
    assert study.steps == 4
    # 1 / (1 / m + size (sigma / (q m))^2 / steps)
    expected = 1 / (1 / 70 + 9 * (3.0 / (0.5 * 70)) ** 2 / 4)
    assert aggregation_weight(study, reply(70, 3.0), 9) == pytest.approx(expected)
    # Where noise rules, a site of half the patients counts a quarter; where patients rule, half.
    small, large = (aggregation_weight(study, reply(patients, 500.0), 129) for patients in (50, 100))
    assert small / large == pytest.approx(0.25, rel=0.01)
    small, large = (aggregation_weight(study, reply(patients, 0.01), 129) for patients in (50, 100))
    assert small / large == pytest.approx(0.5, rel=0.01)
