"""The noise against exact probabilities, at the edges of its arithmetic, and under the attack it is there to stop."""

import itertools
from collections.abc import Callable, Iterator

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtri

from echofed.privacy import noise
from echofed.privacy.clipping import NOISE_UNITS, NoisySum
from echofed.privacy.noise import RELATIVE_ERROR, gaussian_integers
from echofed.privacy.randomness import Words, random_words

ALMOST_NEVER = 1e-5
SEEDS = pytest.mark.parametrize("seed", [3, None], ids=["seeded", "deployed"])


def exact_size(tail: mpmath.mpf) -> mpmath.mpf:
    """Return how far out the standard Gaussian has this tail probability, to 60 digits."""
    with mpmath.mp.workdps(60):
        return mpmath.sqrt(2) * mpmath.erfinv(1 - 2 * tail)


def exact_pmf(integers: NDArray[np.int64], stddev: float) -> NDArray[np.float64]:
    """Return the probabilities of a Gaussian rounded to the nearest integer."""
    with mpmath.mp.workdps(40):
        above = [mpmath.ncdf((mpmath.mpf(int(k)) + 0.5) / stddev) for k in integers]
        below = [mpmath.ncdf((mpmath.mpf(int(k)) - 0.5) / stddev) for k in integers]
        return np.array([float(a - b) for a, b in zip(above, below, strict=True)])


def pmf_pvalue(drawn: NDArray[np.float64], stddev: float) -> float:
    """Chi-square of integers against the exact probabilities, rare ones taken together."""
    reach = int(6 * stddev)
    expected = len(drawn) * exact_pmf(np.arange(-reach, reach + 1), stddev)
    clipped = np.clip(drawn, -reach, reach).astype(np.int64)
    observed = np.bincount(clipped + reach, minlength=2 * reach + 1)
    common = expected >= 5
    rare = len(drawn) - expected[common].sum()
    return float(
        stats.chisquare(np.append(observed[common], observed[~common].sum()), np.append(expected[common], rare)).pvalue
    )


def following(*arrays: list[int]) -> Words:
    """Return words that are known beforehand."""
    answers: Iterator[NDArray[np.uint64]] = (np.array(array, np.uint64) for array in arrays)

    def words(count: int) -> NDArray[np.uint64]:
        answer = next(answers)
        assert len(answer) == count
        return answer

    return words


@SEEDS
@pytest.mark.parametrize("stddev", [0.4, 2.0, 10.0])
def test_integers_have_the_probabilities_of_a_rounded_gaussian(stddev: float, seed: int | None) -> None:
    drawn = gaussian_integers(random_words(seed, "pmf", str(stddev)), 300_000, stddev)
    assert drawn.dtype == np.float64
    assert np.array_equal(drawn, np.rint(drawn))
    assert pmf_pvalue(drawn, stddev) > ALMOST_NEVER
    for wrong in (2 / 3, 0.97, 1.03, 3 / 2):
        assert pmf_pvalue(drawn, wrong * stddev) < 1e-9


@SEEDS
@pytest.mark.parametrize("stddev", [10.0, NOISE_UNITS])
def test_noise_has_the_scale_promised_and_no_other(stddev: float, seed: int | None) -> None:
    words = random_words(seed, "scale")
    # What rounding took is put back, or the test would see the steps.
    spread = words(30_000) / 2.0**64 - 0.5
    drawn = (gaussian_integers(words, 30_000, stddev) + spread) / stddev
    assert stats.kstest(drawn, "norm").pvalue > ALMOST_NEVER
    assert stats.kstest(drawn * 2 / 3, "norm").pvalue < 1e-9
    assert stats.kstest(drawn * 3 / 2, "norm").pvalue < 1e-9
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 4.5 / 30_000**0.5


@SEEDS
def test_a_release_is_noise_of_the_multiplier_times_the_norm(seed: int | None) -> None:
    clipping_norm, multiplier = 0.3, 1.7
    noisy_sum = NoisySum([20_000, 7], clipping_norm, multiplier)
    large, small = noisy_sum.release(random_words(seed, "release"))
    assert (len(large), len(small)) == (20_000, 7)
    assert stats.kstest(large, "norm", (0, multiplier * clipping_norm)).pvalue > ALMOST_NEVER
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(large, "norm", (0, wrong * multiplier * clipping_norm)).pvalue < 1e-9


@SEEDS
def test_no_two_releases_share_noise(seed: int | None) -> None:
    words = random_words(seed, "fresh")
    releases = [np.concatenate(NoisySum([500, 500], 1.0, 1.0).release(words)) for _ in range(3)]
    parts = np.concatenate(releases).reshape(6, 500)
    # Numbers of 2^24 units coincide here and there by chance; 3,000 of them make about one pair in ten runs.
    assert len(np.unique(np.abs(parts))) > 2990
    assert np.abs(np.corrcoef(parts) - np.eye(6)).max() < 5 / 500**0.5


def test_draws_beyond_one_block_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "DRAWN_AT_ONCE", 64)
    drawn = gaussian_integers(random_words(0), 1000, NOISE_UNITS)
    assert drawn.shape == (1000,)
    assert len(np.unique(np.abs(drawn))) > 990
    assert gaussian_integers(random_words(0), 0, 1.0).shape == (0,)


def cells() -> list[int]:
    """Cells of the first 63 bits from the far tail to the middle, and at random."""
    rng = np.random.default_rng(0)
    edges = [0, 1, 2, 3, 10, 1000, 2**31, 2**52 + 1, 2**53 - 1, 2**53 + 1, 2**62 - 1, 2**62, 2**62 + 1, 2**63 - 1]
    bulk = rng.integers(2**63, size=300).tolist()
    tails = [int(2.0 ** rng.uniform(0, 63)) for _ in range(300)]
    # Where SciPy changes from one formula to another: exp(-2), and a square root of 64.
    joints = [int(at * 2.0**64) + offset for at in (np.exp(-2.0), np.exp(-32.0)) for offset in (-2048, 0, 2048)]
    return [*edges, *bulk, *tails, *joints]


def test_the_error_of_the_quantile_is_far_below_its_bound() -> None:
    worst = 0.0
    for cell in cells():
        found = -ndtri((np.float64(cell) + 0.5) * 2.0**-64)
        with mpmath.mp.workdps(60):
            error = abs(mpmath.mpf(float(found)) - exact_size((mpmath.mpf(cell) + 0.5) / 2**64))
        worst = max(worst, float(error) / (RELATIVE_ERROR * (1 + abs(found))))
    assert 0 < worst < 1 / 50


@pytest.mark.parametrize("stddev", [2.0, 1000.0, NOISE_UNITS, 2.0**26])
def test_rounding_is_exact_beside_every_edge(stddev: float) -> None:
    # Cells around the one in which the Gaussian passes from one integer to the next; the sign bit is 1 in every other.
    # At 8 standard deviations a cell is as wide as ten thousand units.
    for integer in sorted({0, 1, 5, *(int(far * stddev) for far in (1, 3, 5, 7, 8))}):
        with mpmath.mp.workdps(60):
            edge = int(mpmath.floor(mpmath.ncdf(-(mpmath.mpf(integer) + 0.5) / stddev) * mpmath.mpf(2) ** 64))
        for away, more in itertools.product((-(2**40), -5000, -2, -1, 0, 1, 2, 5000, 2**40), (0, 2**63 + 7, 2**64 - 1)):
            if not 0 <= edge + away < 2**63:
                continue
            with mpmath.mp.workdps(60):
                size = exact_size((mpmath.mpf(edge + away) + (mpmath.mpf(more) + 0.5) / 2**64) / 2**64)
                expected = float(mpmath.nint(stddev * size))
            sign = away & 1
            found = gaussian_integers(following([2 * (edge + away) + sign], [more]), 1, stddev)
            assert found[0] == (-expected if sign else expected), (integer, away, more)


def test_the_long_way_rounds_as_the_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    first = random_words(0, "first")(400)
    short = gaussian_integers(following(first.tolist(), *[[0]] * 3), 400, NOISE_UNITS)
    calls = []

    def words(count: int) -> NDArray[np.uint64]:
        calls.append(count)
        return first if len(calls) == 1 else random_words(None)(count)

    monkeypatch.setattr(noise, "RELATIVE_ERROR", 1.0)
    long = gaussian_integers(words, 400, NOISE_UNITS)
    assert calls == [400] + [1] * 400
    assert np.array_equal(short, long)


def test_the_furthest_draw_is_still_a_draw() -> None:
    # The first 63 bits all 0, and the next 64.
    for more, least, most in ((0, 12.9, 14.0), (2**64 - 1, 9.0, 9.3)):
        found = gaussian_integers(following([1], [more]), 1, NOISE_UNITS)[0] / -NOISE_UNITS
        assert least < found < most


def is_multiple(values: NDArray[np.float64], unit: float) -> NDArray[np.bool_]:
    """Return which values are the floating-point product of a whole number and a unit."""
    return np.rint(values / unit) * unit == values


def reachable(release: Callable[[float], NDArray[np.float64]], unit: float) -> tuple[float, float]:
    """Mironov's attack: how often a release lies where sums of neighbour 0 lie, for either neighbour."""
    return float(is_multiple(release(0.0), unit).mean()), float(is_multiple(release(1 / 3), unit).mean())


def test_what_is_released_tells_nothing_by_its_last_bits() -> None:
    words, size, clipping_norm, multiplier = random_words(None), 4000, 1.0, 2.0
    unit = clipping_norm * multiplier / NOISE_UNITS

    def ours(value: float) -> NDArray[np.float64]:
        noisy_sum = NoisySum([size], clipping_norm, multiplier)
        noisy_sum.add([np.full((1, size), value / size**0.5)])
        return noisy_sum.release(words)[0]

    assert reachable(ours, unit) == (1.0, 1.0)

    # Noise of the textbook, added as floats: 0 plus noise keeps bits that 1/3 plus noise has lost.
    def textbook(value: float) -> NDArray[np.float64]:
        return value + np.random.default_rng(0).standard_normal(size) / 64

    at_zero, at_third = reachable(textbook, 2.0**-55)
    assert at_third - at_zero > 0.5
