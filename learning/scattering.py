"""Fixed wavelet scattering features under a small trained head, for cohorts too small to train an encoder privately.

The state of a `ScatteringClassifier` is what the initial-parameters file holds:

    standardise.mean   float32 [pooled.dimensions]              mean of the log coefficients of public images
    standardise.basis  float32 [pooled.dimensions, dimensions]  their whitened principal axes, with a projection
                       float32 [pooled.dimensions]              their inverse standard deviations, without
    head.*             the only trainable parameters

`fit_standardisation` fills the two buffers from public images, once, before a study is signed. The wavelets are
computed when the model is built and never travel.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echofed.learning.centring import FEATURE_NORM
from echofed.protocol.errors import ParametersError, StudyInvalidError

IMAGES_AT_ONCE = 4
"""More spill out of a core's cache and take longer an image."""
LOG_FLOOR = 1e-3
"""Added before the logarithm, so that empty regions stay finite."""
WHITENING_FLOOR = 0.1
"""Axes with less than this fraction of the largest variance of public images are hardly amplified."""
SMALLEST_DEVIATION = 1e-6
HIDDEN = 16


class Scattering2D(nn.Module):
    """Wavelet scattering transform of square images: moduli of Morlet wavelet transforms, averaged locally.

    Moving an image by much less than `2**scales` pixels hardly changes the result, and two images are never further
    apart after the transform than before. Images are independent of each other. Borders are reflected. Each modulus is
    sampled every `2**j` pixels, its wavelet's scale, and wavelets are applied only to the band in which they live.

    Mallat (2012); Bruna & Mallat (2013), sec. 2, whose paths of increasing scale these are.

    Args:
        size_px: side of the images, > `2**(scales + 1)`.
        scales: J, >= 1; the coarsest average has a standard deviation of 0.4 * `2**scales` pixels.
        angles: L, >= 2, orientations over half a turn.
        order: 1 or 2, how many wavelet moduli follow each other.

    Raises:
        StudyInvalidError: the images are too small for the largest scale.
    """

    def __init__(self, size_px: int, scales: int = 4, angles: int = 8, order: int = 2) -> None:
        super().__init__()
        stride = 2**scales
        if size_px <= 2 * stride:
            raise StudyInvalidError(
                f"Images of {size_px} px are too small for {scales} scales.",
                remedy=f"Use fewer scales or an image_size_px above {2 * stride}.",
            )
        self.scales, self.angles, self.order = scales, angles, order
        self.side = -(-size_px // stride)
        self.padded_px = (self.side + 2) * stride
        self.padding = (stride, self.padded_px - size_px - stride) * 2
        low_stddev_px = 0.4 * stride
        wavelets = wavelet_bank(self.padded_px, scales, angles)
        centres = stride + (torch.arange(self.side, dtype=torch.float64) + 0.5) * size_px / self.side - 0.5
        for scale in range(scales):
            band = _band(wavelets[scale], self.padded_px >> max(scale - 1, 0))
            grid = torch.arange(0, self.padded_px, 2**scale, dtype=torch.float64)
            window = torch.exp(-0.5 * ((grid - centres[:, None]) / low_stddev_px) ** 2)
            self.register_buffer(f"wavelets{scale}", band.float(), persistent=False)
            self.register_buffer(f"average{scale}", (window / window.sum(1, keepdim=True)).float(), persistent=False)

    @property
    def paths(self) -> list[tuple[tuple[int, int], ...]]:
        """The (scale, angle) pairs behind each coefficient, in the order of the output."""
        first = [((j, angle),) for j in range(self.scales) for angle in range(self.angles)]
        second = [
            (*path, (j, angle))
            for start in range(self.scales)
            for j in range(start + 1, self.scales)
            for path in first[start * self.angles : (start + 1) * self.angles]
            for angle in range(self.angles)
        ]
        return [(), *first, *(second if self.order > 1 else [])]

    def forward(self, images: Tensor) -> Tensor:
        """Return the coefficients.

        Args:
            images: float32 [n, 1, size_px, size_px], in [0, 1].

        Returns:
            float32 [n, len(paths), side, side], in the order of `paths`.
        """
        if not len(images):
            return images.new_empty(0, len(self.paths), self.side, self.side)
        return torch.cat([self._transform(some) for some in torch.split(images, IMAGES_AT_ONCE)])

    def _transform(self, images: Tensor) -> Tensor:
        padded = F.pad(images, self.padding, mode="reflect")
        first, second = [self._average(padded, 0)], []
        spectrum = torch.fft.fft2(padded, norm="forward")
        for scale in range(self.scales):
            moduli = self._modulus(spectrum, scale)
            first.append(self._average(moduli, scale))
            if self.order > 1 and scale + 1 < self.scales:
                spectra = torch.fft.fft2(moduli, norm="forward").unsqueeze(2)
                for coarser in range(scale + 1, self.scales):
                    second.append(self._average(self._modulus(spectra, coarser), coarser).flatten(1, 2))
        return torch.cat(first + second, dim=1)

    def _modulus(self, spectrum: Tensor, scale: int) -> Tensor:
        """Filter with one scale's wavelets and take the modulus at every `2**scale`-th pixel."""
        wavelets = self.get_buffer(f"wavelets{scale}").unsqueeze(-1)
        side = self.padded_px >> scale
        # Real and imaginary parts are kept apart: the filters are real, so this halves the work.
        band = torch.view_as_real(_band(spectrum, wavelets.shape[-2]))
        filtered = band[..., :side, :side, :] * wavelets[..., :side, :side, :]
        for rows, columns in ((0, 1), (1, 0), (1, 1)) if scale else ():
            part = (..., slice(rows * side, (rows + 1) * side), slice(columns * side, (columns + 1) * side), slice(2))
            # Sampling a signal folds its spectrum.
            filtered.addcmul_(band[part], wavelets[part])
        signal = torch.fft.ifft2(torch.view_as_complex(filtered), norm="forward")
        return torch.view_as_real(signal).square().sum(-1).sqrt()

    def _average(self, values: Tensor, scale: int) -> Tensor:
        average = self.get_buffer(f"average{scale}")
        return average @ values @ average.T


class PooledLogScattering(nn.Module):
    """Turn images into log scattering coefficients averaged over a grid, left and right taken together.

    An ultrasound image has an up and a down but no preferred side, so mirror-image paths and columns are averaged: an
    image and its mirror image have nearly the same features, and there are a third as many for noise to fall on. The mean
    logarithm of each order is subtracted from it, which takes out the scanner's gain and much of its contrast.

    Andén & Mallat (2014) for the logarithm.

    Args:
        size_px, scales, angles: of `Scattering2D`.
        grid: rows the image is divided into, overlapping by half, and columns before they are paired.

    Raises:
        StudyInvalidError: the images are too small for the largest scale or the grid.
    """

    def __init__(self, size_px: int, scales: int, angles: int, grid: int) -> None:
        super().__init__()
        self.scattering = Scattering2D(size_px, scales, angles)
        side, columns = self.scattering.side, (grid + 1) // 2
        if grid > side:
            raise StudyInvalidError(
                f"A grid of {grid} does not fit images of {size_px} px with {scales} scales.",
                remedy=f"Use a grid of at most {side}.",
            )
        rows = _windows(grid, side)
        paired = torch.stack([(rows[i] + rows[grid - 1 - i]) / 2 for i in range(columns)])
        indices = {path: index for index, path in enumerate(self.scattering.paths)}
        mirrored = torch.tensor([indices[_mirror(path, angles)] for path in indices])
        kept = torch.tensor([index for index, other in enumerate(mirrored.tolist()) if index <= other])
        orders = [len(self.scattering.paths[index]) for index in kept.tolist()]
        self.paths_of_order = [orders.count(order) for order in range(max(orders) + 1)]  # paths come by order
        self.dimensions = len(kept) * grid * columns
        for name, buffer in (("rows", rows), ("columns", paired), ("kept", kept), ("mirrored", mirrored[kept])):
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return log coefficients, float32 [n, dimensions], of images as for `Scattering2D`."""
        pooled = self.get_buffer("rows") @ self.scattering(images) @ self.get_buffer("columns").T
        merged = (pooled[:, self.get_buffer("kept")] + pooled[:, self.get_buffer("mirrored")]) / 2
        zeroth, *higher = torch.split(torch.log(LOG_FLOOR + merged.clamp_min(0)), self.paths_of_order, dim=1)
        overall = torch.cat(higher, 1).mean(dim=(1, 2, 3), keepdim=True)
        own = [order - order.mean(dim=(1, 2, 3), keepdim=True) for order in higher]
        return torch.cat([zeroth - overall, *own], 1).flatten(1)


class Standardise(nn.Module):
    """Centre and scale features by statistics of public images, rotate them too if asked, and make all equally long.

    Args:
        inputs: length of the vectors that come in.
        projection: length of the vectors that go out if they are rotated; None: they are not.
    """

    def __init__(self, inputs: int, projection: int | None) -> None:
        super().__init__()
        self.mean: Tensor
        self.basis: Tensor
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("basis", torch.eye(inputs, projection) if projection else torch.ones(inputs))

    def forward(self, values: Tensor) -> Tensor:
        """Return vectors of length FEATURE_NORM, float32 [n, projection or inputs], of values, float32 [n, inputs]."""
        centred = values - self.mean
        return FEATURE_NORM * F.normalize(centred * self.basis if self.basis.ndim == 1 else centred @ self.basis)


class ScatteringClassifier(nn.Module):
    """A linear or small head on frozen scattering features; only the head learns.

    The features of an image never change during a study, so a site may compute them once with `encode`. The answers
    of a new model are 0 for every image.

    Args:
        size_px: side of the images.
        outputs: numbers an image gets.
        scales: J of the transform, 1 to 6.
        angles: L of the transform, >= 2.
        grid: of `PooledLogScattering`.
        head: linear, or small: one hidden layer of 16.
        projection: principal axes kept, >= 1, at most `pooled.dimensions`; None keeps every coefficient.

    Raises:
        StudyInvalidError: scales, grid or projection do not fit the images.
    """

    def __init__(
        self,
        size_px: int,
        outputs: int,
        scales: int = 4,
        angles: int = 8,
        grid: int = 3,
        head: Literal["linear", "small"] = "linear",
        projection: int | None = None,
    ) -> None:
        super().__init__()
        self.pooled = PooledLogScattering(size_px, scales, angles, grid)
        self.dimensions = projection or self.pooled.dimensions
        if self.dimensions > self.pooled.dimensions:
            raise StudyInvalidError(
                f"A projection to {projection} dimensions is larger than the {self.pooled.dimensions} features.",
                remedy="Use a smaller projection or leave it out.",
            )
        self.standardise = Standardise(self.pooled.dimensions, projection)
        last = nn.Linear(HIDDEN if head == "small" else self.dimensions, outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        first = [nn.Linear(self.dimensions, HIDDEN), nn.GELU()] if head == "small" else []
        self.head: nn.Module = nn.Sequential(*first, last) if first else last

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return features, float32 [n, dimensions], each row of length FEATURE_NORM, of images as for `Scattering2D`."""
        features: Tensor = self.standardise(self.pooled(images))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return the head's answers, float32 [n, outputs], of images as for `Scattering2D`."""
        answers: Tensor = self.head(self.encode(images))
        return answers


@torch.no_grad()
def fit_standardisation(model: ScatteringClassifier, images: Tensor) -> None:
    """Set the model's mean and basis from public images, in place.

    Without a projection every coefficient is divided by its standard deviation. With one, the standardised coefficients
    are rotated to their principal axes and the first axes are whitened, so that few and noisy gradient steps
    go further. The result becomes part of the published model: the images must not be a
    site's patients. The same images give the same result.

    Args:
        model: changed in place.
        images: as for `Scattering2D`; more than the projection, or than 1 without one.

    Raises:
        ParametersError: there are too few images.
    """
    standardise = model.standardise
    projected = standardise.basis.ndim == 2
    needed = model.dimensions + 1 if projected else 2
    if len(images) < needed:
        raise ParametersError(
            f"{len(images)} public images are too few to standardise with.", remedy=f"Use at least {needed}."
        )
    values = model.pooled(images).double()
    mean = values.mean(0)
    scale = values.std(0, correction=0).clamp_min(SMALLEST_DEVIATION)
    standardise.mean.copy_(mean)
    if not projected:
        standardise.basis.copy_(1 / scale)
        return
    _, singular, axes = torch.linalg.svd((values - mean) / scale, full_matrices=False)
    # A singular vector's sign is arbitrary; its largest entry is made positive.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    variances = singular.square() / len(images)
    whitened = axes / (variances + WHITENING_FLOOR * variances[0]).sqrt()[:, None]
    standardise.basis.copy_((whitened[: model.dimensions] / scale).T)


def wavelet_bank(size_px: int, scales: int, angles: int) -> Tensor:
    """Return Morlet wavelets in the Fourier domain, float64 [scales, angles, size_px, size_px], zero frequency first.

    They are real, have mean zero, and with the Gaussian of `low_pass` never amplify a frequency: for every real signal
    the energies of all parts together are at most the signal's own.
    """
    bank = torch.stack(
        [
            torch.stack([_morlet(size_px, 2.0**scale, math.pi * angle / angles, 4 / angles) for angle in range(angles)])
            for scale in range(scales)
        ]
    )
    energy = bank.square().sum((0, 1))
    energy = (energy + energy.flip(0, 1).roll((1, 1), (0, 1))) / 2
    room = (1 - low_pass(size_px, scales).square()).flatten()[1:]
    return bank * (room / energy.flatten()[1:]).min().sqrt()


def low_pass(size_px: int, scales: int) -> Tensor:
    """Return the averaging Gaussian in the Fourier domain, float64 [size_px, size_px], zero frequency first."""
    squared = _frequencies(size_px).square()
    return torch.exp(-0.5 * (0.4 * 2**scales) ** 2 * (squared[:, None] + squared))


def _frequencies(size_px: int) -> Tensor:
    frequencies: Tensor = 2 * math.pi * torch.fft.fftfreq(size_px, dtype=torch.float64)
    return frequencies


def _morlet(size_px: int, dilation: float, angle: float, slant: float) -> Tensor:
    """One wavelet: a Gaussian at 3/4 pi / dilation, less a Gaussian at 0 that makes its mean zero, both periodic."""
    direction = (math.cos(angle), math.sin(angle))

    def gaussian(centre: float) -> Tensor:
        total = torch.zeros(size_px, size_px, dtype=torch.float64)
        for turn_x in (-1, 0, 1):
            for turn_y in (-1, 0, 1):
                x = _frequencies(size_px)[None, :] + 2 * math.pi * turn_x - centre * direction[0]
                y = _frequencies(size_px)[:, None] + 2 * math.pi * turn_y - centre * direction[1]
                along, across = x * direction[0] + y * direction[1], y * direction[0] - x * direction[1]
                total += torch.exp(-0.5 * (0.8 * dilation) ** 2 * (along**2 + (across / slant) ** 2))
        return total

    wave, envelope = gaussian(0.75 * math.pi / dilation), gaussian(0.0)
    return wave - envelope * (wave[0, 0] / envelope[0, 0])


def _band(spectrum: Tensor, side: int) -> Tensor:
    """Keep the `side` lowest frequencies of the last two dimensions."""
    size = spectrum.shape[-1]
    if side == size:
        return spectrum
    kept = torch.arange(size, device=spectrum.device)
    kept = torch.cat([kept[: side // 2], kept[size - side // 2 :]])
    return spectrum.index_select(-2, kept).index_select(-1, kept)


def _windows(number: int, side: int) -> Tensor:
    """Return `number` triangles over `side` places, flat at the ends, float [number, side], each adding to 1."""
    places = (torch.arange(side) + 0.5) / side * number - 0.5
    windows = (1 - (places.clamp(0, number - 1) - torch.arange(number)[:, None]).abs()).clamp_min(0)
    averages: Tensor = windows / windows.sum(1, keepdim=True)
    return averages


def _mirror(path: tuple[tuple[int, int], ...], angles: int) -> tuple[tuple[int, int], ...]:
    return tuple((scale, -angle % angles) for scale, angle in path)
