import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from echofed.learning.scattering import (
    FEATURE_NORM,
    PooledLogScattering,
    Scattering2D,
    ScatteringClassifier,
    fit_standardisation,
    low_pass,
    wavelet_bank,
)
from echofed.protocol.errors import ParametersError, StudyInvalidError
from echofed.simulations.phantoms import random_phantoms

SIDE_PX = 64


@pytest.fixture(scope="module")
def transform() -> Scattering2D:
    return Scattering2D(SIDE_PX, scales=3, angles=8)


@pytest.fixture(scope="module")
def phantoms() -> Tensor:
    return torch.from_numpy(random_phantoms(24, SIDE_PX, seed=3)).float().div(255).unsqueeze(1)


def noise(count: int, seed: int, side_px: int = SIDE_PX) -> Tensor:
    return torch.rand(count, 1, side_px, side_px, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("size_px", "scales", "angles"), [(96, 4, 8), (64, 3, 6), (50, 2, 8), (64, 1, 4)])
def test_the_filter_bank_never_amplifies(size_px: int, scales: int, angles: int) -> None:
    energy = wavelet_bank(size_px, scales, angles).square().sum((0, 1))
    both_halves = (energy + energy.flip(0, 1).roll((1, 1), (0, 1))) / 2
    total = both_halves + low_pass(size_px, scales).square()
    assert float(total.max()) <= 1 + 1e-9
    assert float(total.min()) > 0.05  # no frequency is lost
    assert float(total.flatten()[1:].max()) > 0.999  # and the bound is reached


def test_wavelets_ignore_brightness() -> None:
    assert float(wavelet_bank(64, 3, 8)[..., 0, 0].abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("size_px", "scales", "angles", "order", "paths", "side"),
    [(96, 4, 8, 2, 417, 6), (128, 5, 8, 2, 681, 4), (50, 3, 4, 2, 61, 7), (64, 4, 6, 1, 25, 4), (32, 1, 4, 2, 5, 16)],
)
def test_shape(size_px: int, scales: int, angles: int, order: int, paths: int, side: int) -> None:
    transform = Scattering2D(size_px, scales, angles, order)
    assert len(transform.paths) == len(set(transform.paths)) == paths
    assert transform(noise(2, 0, size_px)).shape == (2, paths, side, side)
    assert transform(noise(0, 0, size_px)).shape == (0, paths, side, side)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), distance=st.floats(1e-3, 1.0))
def test_images_never_move_apart(transform: Scattering2D, seed: int, distance: float) -> None:
    x, y = noise(2, seed).split(1)
    y = x + distance * (y - x)
    assert float((transform(x) - transform(y)).norm()) <= float((x - y).norm())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_energy_is_not_created(transform: Scattering2D, seed: int) -> None:
    x = noise(1, seed) - 0.5
    padded = nn.functional.pad(x, transform.padding, mode="reflect")
    # A coefficient stands for 2^J x 2^J pixels.
    assert 2**transform.scales * float(transform(x).norm()) <= 1.01 * float(padded.norm())


def direct(transform: Scattering2D, image: Tensor, path: tuple[tuple[int, int], ...]) -> Tensor:
    """The definition: every convolution and modulus at full resolution, nothing cropped."""
    size, stride = transform.padded_px, 2**transform.scales
    bank = wavelet_bank(size, transform.scales, transform.angles)
    values = nn.functional.pad(image, transform.padding, mode="reflect").double()
    for scale, angle in path:
        values = torch.fft.ifft2(torch.fft.fft2(values) * bank[scale, angle]).abs()
    position = torch.arange(size, dtype=torch.float64)
    centre = stride + (torch.arange(transform.side) + 0.5) * stride - 0.5
    window = torch.exp(-0.5 * ((position - centre[:, None]) / (0.4 * stride)) ** 2)
    window = window / window.sum(1, keepdim=True)
    return window @ values[0, 0] @ window.T


@pytest.mark.parametrize(
    "path", [(), ((0, 3),), ((1, 0),), ((2, 5),), ((0, 1), (1, 6)), ((0, 4), (2, 2)), ((1, 7), (2, 0))]
)
def test_equals_the_definition(transform: Scattering2D, phantoms: Tensor, path: tuple[tuple[int, int], ...]) -> None:
    got = transform(phantoms[:1])[0, transform.paths.index(path)].double()
    expected = direct(transform, phantoms[:1], path)
    assert float((got - expected).norm() / expected.norm()) < 0.02


def test_a_small_shift_hardly_matters(phantoms: Tensor) -> None:
    transform = Scattering2D(SIDE_PX, scales=4, angles=8)
    for image in phantoms[:8].split(1):
        moved = image.roll(1, 3)
        pixels = float((moved - image).norm() / image.norm())
        scattered = float((transform(moved) - transform(image)).norm() / transform(image).norm())
        assert scattered < 0.4 * pixels


@pytest.mark.parametrize("scale", [0, 1, 2])
@pytest.mark.parametrize("angle", [0, 2, 3, 6])
def test_a_wave_excites_its_own_path(transform: Scattering2D, scale: int, angle: int) -> None:
    turn = math.pi * angle / transform.angles
    y, x = torch.meshgrid(torch.arange(SIDE_PX), torch.arange(SIDE_PX), indexing="ij")
    frequency = 0.75 * math.pi / 2**scale
    wave = 0.5 + 0.5 * torch.cos(frequency * (x * math.cos(turn) + y * math.sin(turn)))
    inside = transform(wave[None, None].float())[0, :, 2:-2, 2:-2].mean((1, 2))
    first = [index for index, path in enumerate(transform.paths) if len(path) == 1]
    strongest = max(first, key=lambda index: float(inside[index]))
    assert transform.paths[strongest] == ((scale, angle),)


def test_repeats_exactly_and_each_image_is_alone(transform: Scattering2D) -> None:
    images = noise(7, 1)
    together = transform(images)
    assert torch.equal(together, Scattering2D(SIDE_PX, 3, 8)(images))
    torch.testing.assert_close(together, torch.cat([transform(one) for one in images.split(1)]), rtol=1e-4, atol=1e-6)


def test_a_mirrored_image_has_nearly_the_same_features(phantoms: Tensor) -> None:
    pooled = PooledLogScattering(SIDE_PX, scales=3, angles=8, grid=3)
    straight, mirrored = pooled(phantoms), pooled(phantoms.flip(3))
    spread = (straight - straight.mean(0)).square().mean()
    assert float((straight - mirrored).square().mean()) < 0.01 * float(spread)
    upside_down = pooled(phantoms.flip(2))
    assert float((straight - upside_down).square().mean()) > 0.3 * float(spread)


def test_gain_hardly_matters(phantoms: Tensor) -> None:
    pooled = PooledLogScattering(SIDE_PX, scales=3, angles=8, grid=2)
    change = float((pooled(phantoms) - pooled(0.8 * phantoms)).square().mean())
    assert change < 0.05 * math.log(0.8) ** 2  # which it would be without subtracting the mean logarithm


@pytest.mark.parametrize(("grid", "regions"), [(1, 1), (2, 2), (3, 6), (4, 8)])
def test_number_of_features(grid: int, regions: int) -> None:
    pooled = PooledLogScattering(SIDE_PX, scales=3, angles=8, grid=grid)
    assert pooled.dimensions == (1 + 3 * 5 + 3 * 34) * regions
    assert pooled(noise(2, 0)).shape == (2, pooled.dimensions)


@pytest.mark.parametrize("projection", [None, 10])
def test_standardised_on_public_images(phantoms: Tensor, projection: int | None) -> None:
    model = ScatteringClassifier(SIDE_PX, 1, scales=3, grid=2, projection=projection)
    fit_standardisation(model, phantoms)
    values = (model.pooled(phantoms) - model.standardise.mean).double()
    basis = model.standardise.basis.double()
    scores = values @ basis if projection else values * basis
    torch.testing.assert_close(scores.mean(0), torch.zeros(model.dimensions).double(), atol=1e-3, rtol=0)
    covariance = scores.T @ scores / len(scores)
    if projection:
        assert float((covariance - torch.diag(covariance.diag())).abs().max()) < 1e-3
        assert bool((covariance.diag() < 1).all())
        assert bool((covariance.diag().diff() < 1e-6).all())
    else:
        torch.testing.assert_close(covariance.diag(), torch.ones(model.dimensions).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(model.encode(phantoms).norm(dim=1), torch.full((24,), FEATURE_NORM))
    again = ScatteringClassifier(SIDE_PX, 1, scales=3, grid=2, projection=projection)
    fit_standardisation(again, phantoms)
    assert torch.equal(model.standardise.basis, again.standardise.basis)


@pytest.mark.parametrize("head", ["linear", "small"])
def test_only_the_head_learns(phantoms: Tensor, head: str) -> None:
    model = ScatteringClassifier(SIDE_PX, 2, scales=3, head="small" if head == "small" else "linear", projection=12)
    fit_standardisation(model, phantoms)
    assert torch.equal(model(phantoms[:3]), torch.zeros(3, 2))
    assert not model.encode(phantoms[:2]).requires_grad
    model(phantoms).square().sum().add(model(phantoms).sum()).backward()
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"head"}
    assert all(value.grad is not None for value in model.parameters())
    buffers = {name for name in model.state_dict() if not name.startswith("head.")}
    assert buffers == {"standardise.mean", "standardise.basis"}


def test_the_state_carries_the_model(phantoms: Tensor) -> None:
    model = ScatteringClassifier(SIDE_PX, 1, scales=3, projection=12)
    fit_standardisation(model, phantoms)
    nn.init.constant_(model.get_parameter("head.weight"), 0.1)
    copy = ScatteringClassifier(SIDE_PX, 1, scales=3, projection=12)
    copy.load_state_dict(model.state_dict())
    assert torch.equal(model(phantoms), copy(phantoms))
    assert float(model(phantoms).detach().std()) > 0.01


def test_constant_images_have_finite_features(phantoms: Tensor) -> None:
    model = ScatteringClassifier(SIDE_PX, 1, scales=3, projection=12)
    fit_standardisation(model, phantoms)
    constant = torch.stack([torch.zeros(1, SIDE_PX, SIDE_PX), torch.ones(1, SIDE_PX, SIDE_PX)])
    assert bool(model.encode(constant).isfinite().all())


def test_settings_that_do_not_fit_are_refused(phantoms: Tensor) -> None:
    with pytest.raises(StudyInvalidError, match="32 px are too small for 4 scales"):
        Scattering2D(32, scales=4)
    with pytest.raises(StudyInvalidError, match="A grid of 4 does not fit"):
        PooledLogScattering(96, scales=5, angles=8, grid=4)
    with pytest.raises(StudyInvalidError, match="larger than the"):
        ScatteringClassifier(SIDE_PX, 1, scales=1, grid=1, projection=100)
    with pytest.raises(ParametersError, match="24 public images are too few"):
        fit_standardisation(ScatteringClassifier(SIDE_PX, 1, scales=3, projection=24), phantoms)
    with pytest.raises(ParametersError, match="1 public images are too few"):
        fit_standardisation(ScatteringClassifier(SIDE_PX, 1, scales=3), phantoms[:1])
