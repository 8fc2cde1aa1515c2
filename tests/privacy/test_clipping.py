"""What one patient can change, counted in whole numbers."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer
from torch import from_numpy, nn, optim, zeros

from echofed.privacy.clipping import LARGEST_SUM, MARGIN, NOISE_UNITS, Float, NoisySum
from echofed.privacy.randomness import random_words
from echofed.protocol.errors import PrivacyParameterError

SIZES = (3, 4)
FLOAT32 = [0.0, -0.0, 1.0, 1e-45, 1e-39, 1e-20, 0.3, 7e4, 1e38, 3.4e38, np.inf, np.nan]
FLOAT64 = [*FLOAT32, 5e-324, 1e-310, 1e-200, 1e-154, 1e-100, 1e100, 1e153, 1.3e154, 1e200, 1e300]


@st.composite
def contributions(draw: st.DrawFn, patients: int) -> list[Float]:
    """Some patients' numbers: anything a float can be, ordinary lengths, and few kinds of number together."""
    dtype, extremes = draw(st.sampled_from([(np.float32, FLOAT32), (np.float64, FLOAT64)]))
    width = np.dtype(dtype).itemsize * 8
    anything = st.floats(width=width, allow_nan=True, allow_infinity=True)
    extreme = st.builds(lambda value, sign: value * sign, st.sampled_from(extremes), st.sampled_from([1, -1]))
    ordinary = st.floats(-1e6, 1e6).map(lambda value: float(dtype(value)))
    elements = draw(st.sampled_from([anything, extreme.map(lambda value: float(dtype(value))), ordinary]))
    return [draw(arrays.arrays(dtype, (patients, size), elements=elements)) for size in SIZES]


def sums_of(clipping_norm: float, multiplier: float, *parts: Sequence[Float]) -> list[int]:
    """Return the exact sum, in units, before the noise."""
    noisy_sum = NoisySum(SIZES, clipping_norm, multiplier)
    for part in parts:
        noisy_sum.add(part)
    units = np.concatenate(noisy_sum._sums)
    assert np.array_equal(units, np.rint(units))
    assert np.abs(units).max() < LARGEST_SUM
    return [int(unit) for unit in units]


def squared_change(one: list[int], other: list[int], clipping_norm: float, multiplier: float) -> Fraction:
    """Return the squared distance of two sums over C squared, without rounding anywhere."""
    unit = Fraction(clipping_norm * multiplier / NOISE_UNITS)
    return sum((Fraction(a - b) * unit) ** 2 for a, b in zip(one, other, strict=True)) / Fraction(clipping_norm) ** 2


NORMS = st.one_of(st.floats(1e-6, 1e6), st.floats(1e-30, 1e30))
MULTIPLIERS = st.floats(2.0**-16, 1e6)


@given(others=st.integers(0, 4).flatmap(contributions), new=contributions(1), norm=NORMS, multiplier=MULTIPLIERS)
def test_one_patient_more_changes_the_sum_by_at_most_the_clipping_norm(
    others: list[Float], new: list[Float], norm: float, multiplier: float
) -> None:
    without, joined = sums_of(norm, multiplier, others), sums_of(norm, multiplier, others, new)
    assert squared_change(without, joined, norm, multiplier) <= 1


@pytest.mark.parametrize("number", [1e-25, 1e-3, 1e38])
def test_squares_too_small_or_too_large_for_float32_are_no_way_out(number: float) -> None:
    clipping_norm = 1e-28
    noisy_sum = NoisySum(SIZES, clipping_norm, 1.0)
    noisy_sum.add([np.full((1, size), number, np.float32) for size in SIZES])
    change = np.linalg.norm(np.concatenate(noisy_sum._sums)) / NOISE_UNITS
    assert change == pytest.approx(1.0, rel=2e-6)
    assert change <= 1
    assert noisy_sum.left_out == 0


@given(length=st.floats(1e-3, 1e4), seed=st.integers(0, 2**32), norm=st.floats(1e-3, 1e3))
def test_a_contribution_keeps_its_direction_and_its_length_up_to_the_norm(
    length: float, seed: int, norm: float
) -> None:
    vector = np.random.default_rng(seed).standard_normal(sum(SIZES))
    vector *= length / np.linalg.norm(vector)
    parts = [vector[None, : SIZES[0]], vector[None, SIZES[0] :]]
    kept = np.array(sums_of(norm, 2.0**-16, parts)) * (norm * 2.0**-16 / NOISE_UNITS)
    np.testing.assert_allclose(kept, vector * min(1.0, norm / length), rtol=2e-6, atol=norm * 2.0**-38)


@given(whole=contributions(6), order=st.permutations(range(6)), cut=st.integers(0, 6), multiplier=MULTIPLIERS)
def test_neither_order_nor_grouping_of_patients_changes_a_bit(
    whole: list[Float], order: list[int], cut: int, multiplier: float
) -> None:
    at_once = sums_of(1.0, multiplier, whole)
    shuffled = [part[order] for part in whole]
    assert sums_of(1.0, multiplier, [p[:cut] for p in shuffled], [p[cut:] for p in shuffled]) == at_once
    assert sums_of(1.0, multiplier, *([part[[row]] for part in whole] for row in order)) == at_once


@given(whole=contributions(5), multiplier=st.floats(0.1, 10))
@example(whole=[np.full((5, 3), 1e-30), np.full((5, 4), 1.0)], multiplier=1.0)
def test_a_release_does_not_depend_on_order_either(whole: list[Float], multiplier: float) -> None:
    releases = []
    for rows in (slice(None), slice(None, None, -1)):
        noisy_sum = NoisySum(SIZES, 1.0, multiplier)
        noisy_sum.add([part[rows] for part in whole])
        releases.append(np.concatenate(noisy_sum.release(random_words(1))))
    assert np.array_equal(*releases)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
def test_what_is_not_finite_counts_as_zero_and_is_counted(bad: float) -> None:
    rng = np.random.default_rng(0)
    parts: list[NDArray[np.float64]] = [rng.standard_normal((3, size)) for size in SIZES]
    parts[1][1, 2] = bad
    noisy_sum = NoisySum(SIZES, 1.0, 1.0)
    noisy_sum.add(parts)
    assert noisy_sum.left_out == 1
    assert [int(unit) for unit in np.concatenate(noisy_sum._sums)] == sums_of(1.0, 1.0, [p[[0, 2]] for p in parts])


def test_blocks_do_not_show() -> None:
    # More numbers than are worked on at once, in a part of one number and a long one.
    rng = np.random.default_rng(0)
    long = rng.standard_normal((3, 50_000)).astype(np.float32)
    short = rng.standard_normal((3, 1)).astype(np.float32)
    noisy_sum = NoisySum([1, 50_000], 2.0, 0.5)
    noisy_sum.add([short, long])
    whole = np.concatenate([short, long], axis=1).astype(np.float64)
    scales = MARGIN * 2.0 / np.linalg.norm(whole, axis=1, keepdims=True) / (2.0 * 0.5 / NOISE_UNITS)
    expected = np.trunc(whole * scales).sum(axis=0)
    assert np.abs(np.concatenate(noisy_sum._sums) - expected).max() <= 3
    assert np.linalg.norm(expected) > 1e6


def test_clipping_is_that_of_opacus() -> None:
    shapes = [(5, 3), (5,), (2, 3, 3, 3)]
    rng = np.random.default_rng(0)
    scales = np.array([0.01, 0.2, 5.0, 0.0])
    patients = [
        (rng.standard_normal((4, *shape)) * scales.reshape(-1, *[1] * len(shape))).astype(np.float32)
        for shape in shapes
    ]
    parameters = [nn.Parameter(zeros(shape)) for shape in shapes]
    optimizer = DPOptimizer(
        optim.SGD(parameters, lr=1.0), noise_multiplier=0.0, max_grad_norm=1.5, expected_batch_size=1
    )
    for parameter, gradients in zip(parameters, patients, strict=True):
        parameter.grad_sample = from_numpy(gradients)
    optimizer.clip_and_accumulate()
    noisy_sum = NoisySum([int(np.prod(shape)) for shape in shapes], 1.5, 2.0**-16)
    noisy_sum.add([gradients.reshape(4, -1) for gradients in patients])
    for parameter, total in zip(parameters, noisy_sum._sums, strict=True):
        theirs = parameter.summed_grad.numpy().ravel()
        np.testing.assert_allclose(total * (1.5 * 2.0**-16 / NOISE_UNITS), theirs, rtol=1e-5, atol=2e-6)


def test_without_patients_the_release_is_noise_alone() -> None:
    noisy_sum = NoisySum(SIZES, 1.0, 1.0)
    noisy_sum.add([np.zeros((0, size)) for size in SIZES])
    assert not np.concatenate(noisy_sum._sums).any()
    assert all(np.abs(part).min() > 0 for part in noisy_sum.release(random_words(0)))


def test_nothing_is_released_twice() -> None:
    noisy_sum = NoisySum(SIZES, 1.0, 1.0)
    noisy_sum.release(random_words(0))
    assert noisy_sum.release(random_words(1)) == []
    with pytest.raises(PrivacyParameterError, match="already released"):
        noisy_sum.add([np.zeros((1, size)) for size in SIZES])


def test_more_patients_than_sum_exactly_are_refused() -> None:
    noisy_sum = NoisySum([1], 1.0, 2.0**-16)
    noisy_sum.add([np.ones((2**13, 1))])
    assert 0 < noisy_sum._sums[0][0] < LARGEST_SUM
    with pytest.raises(PrivacyParameterError, match="too many"):
        noisy_sum.add([np.ones((1, 1))])


@pytest.mark.parametrize(
    ("clipping_norm", "multiplier"),
    [
        (0.0, 1.0),
        (-1.0, 1.0),
        (np.inf, 1.0),
        (np.nan, 1.0),
        (1e-160, 1.0),
        (1e-310, 1.0),
        (1.0, 0.0),
        (1.0, 2.0**-17),
        (1.0, np.inf),
        (1.0, np.nan),
    ],
)
def test_a_norm_or_noise_without_meaning_is_refused(clipping_norm: float, multiplier: float) -> None:
    with pytest.raises(PrivacyParameterError):
        NoisySum(SIZES, clipping_norm, multiplier)
