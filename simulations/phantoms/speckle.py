"""Speckle: scatterers, the point-spread function, attenuation and the random fields that tissue is drawn with."""

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Floats = NDArray[np.float32]
Complexes = NDArray[np.complex64]


def decibels_to_amplitude(level_db: Floats) -> Floats:
    """Return 10 ** (level_db / 20); the exponential is several times faster than the power."""
    return np.asarray(np.exp(level_db * np.float32(np.log(10) / 20)), np.float32)


def logistic(values: Floats) -> Floats:
    """Return 1 / (1 + exp(-values)), without overflow."""
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -20, 20))), np.float32)


def gaussian(values: Floats) -> Floats:
    """Return exp(-values^2 / 2), never so small that float32 becomes denormal, which would be slow."""
    return np.asarray(np.exp(-np.minimum(0.5 * np.square(values), 40)), np.float32)


def draw_scatterers(shape: tuple[int, ...], generator: np.random.Generator) -> Complexes:
    """Return a field of unresolved scatterers: circular complex Gaussian, mean power 1.

    This is the limit of many scatterers of random phase in each resolution cell (Burckhardt (1978); Wagner et
    al. (1983)), for which the envelope is Rayleigh distributed.

    Args:
        shape: of the field.
        generator: source of the scatterers.

    Returns:
        complex64 of that shape.
    """
    parts = generator.standard_normal((*shape, 2), dtype=np.float32)
    parts *= np.float32(np.sqrt(0.5))
    return parts.view(np.complex64)[..., 0]


def form_echoes(reflectivity: Complexes, axial_stddev: float, lateral_stddev: Floats) -> Complexes:
    """Return the demodulated echoes: the reflectivity seen through a Gaussian point-spread function.

    The function is separable, constant along depth and, across lines, as wide as the beam is at each depth. Its
    energy is 1 at every depth, so the mean power of the echoes is that of the reflectivity. Both ends of each
    axis are padded by reflection, so nothing wraps around.

    Args:
        reflectivity: complex64 [looks, depth samples, lines], demodulated to the centre frequency.
        axial_stddev: of the pulse's amplitude, samples, > 0.
        lateral_stddev: of the beam's amplitude at each depth, lines, > 0, float32 [depth samples].

    Returns:
        complex64 of the same shape; its magnitude is the envelope.

    Reference: Wagner et al. (1983), speckle as a filtered complex Gaussian field.
    """
    rows, lines = reflectivity.shape[1:]
    above, below = _padding(rows, axial_stddev)
    echoes = np.pad(reflectivity, ((0, 0), (above, below), (0, 0)), mode="reflect")
    pulse = _transfer(echoes.shape[1], np.array([axial_stddev], np.float32))[0, :, None]
    echoes = fft.ifft(fft.fft(echoes, axis=1) * pulse, axis=1)[:, above : above + rows]
    left, right = _padding(lines, float(lateral_stddev.max()))
    echoes = np.pad(echoes, ((0, 0), (0, 0), (left, right)), mode="reflect")
    beam = _transfer(echoes.shape[2], lateral_stddev)
    echoes = fft.ifft(fft.fft(echoes, axis=2) * beam, axis=2)[:, :, left : left + lines]
    return np.asarray(echoes, np.complex64)


def _padding(length: int, stddev: float) -> tuple[int, int]:
    """Return how many samples to add at either end: three standard deviations, and a length fast to transform."""
    margin = int(np.ceil(3 * stddev))
    return margin, int(fft.next_fast_len(length + 2 * margin)) - length - margin


def _transfer(length: int, stddev: Floats) -> Floats:
    """Return the transfer functions of Gaussians of `stddev` [n] samples and energy 1, float32 [n, length]."""
    frequency = (2 * np.pi * np.fft.fftfreq(length)).astype(np.float32)
    transfer = gaussian(stddev[:, None] * frequency)
    energy = np.einsum("nk,nk->n", transfer, transfer) / length
    return np.asarray(transfer / np.sqrt(energy)[:, None], np.float32)


def round_trip_loss_db(attenuation: Floats, step_mm: float, frequency_mhz: float) -> Floats:
    """Return how much weaker echoes are for the tissue above them, there and back.

    Enhancement behind a cyst and the shadow behind a scirrhous or calcified lesion both follow from this sum.

    Args:
        attenuation: dB/cm/MHz one way, float32 [depth samples, lines].
        step_mm: between two depth samples.
        frequency_mhz: centre frequency.

    Returns:
        dB, float32 of the same shape.
    """
    factor = np.float32(2 * frequency_mhz * step_mm / 10)
    return np.asarray(np.cumsum(attenuation, axis=0, dtype=np.float32) * factor, np.float32)


def smooth_field(
    rows_mm: Floats, columns_mm: Floats, correlation_mm: tuple[float, float], generator: np.random.Generator
) -> Floats:
    """Return a smooth Gaussian random field of mean 0 and variance 1.

    White noise on a coarse lattice is carried to the fine grid by Gaussian bumps, one matrix product per axis.

    Args:
        rows_mm: positions of the rows, ascending, float32 [rows].
        columns_mm: positions of the columns, ascending, float32 [columns].
        correlation_mm: spacing of the lattice along rows and columns, about the correlation length.
        generator: source of the field.

    Returns:
        float32 [rows, columns].
    """
    along = _bumps(rows_mm, correlation_mm[0])
    across = _bumps(columns_mm, correlation_mm[1])
    lattice = generator.standard_normal((along.shape[1], across.shape[1]), dtype=np.float32)
    return np.asarray(along @ lattice @ across.T, np.float32)


def smooth_curves(columns_mm: Floats, correlation_mm: float, number: int, generator: np.random.Generator) -> Floats:
    """Return independent smooth Gaussian random curves of mean 0 and variance 1, float32 [number, columns]."""
    across = _bumps(columns_mm, correlation_mm)
    lattice = generator.standard_normal((number, across.shape[1]), dtype=np.float32)
    return np.asarray(lattice @ across.T, np.float32)


def _bumps(positions_mm: Floats, spacing_mm: float) -> Floats:
    """Return Gaussian bumps on a lattice of `spacing_mm`, each position's of unit energy, float32 [positions, knots]."""
    first, last = float(positions_mm[0]) - 2 * spacing_mm, float(positions_mm[-1]) + 2 * spacing_mm
    knots = np.arange(first, last + spacing_mm, spacing_mm, dtype=np.float32)
    bumps = gaussian((positions_mm[:, None] - knots) / np.float32(0.7 * spacing_mm))
    return np.asarray(bumps / np.sqrt(np.einsum("pk,pk->p", bumps, bumps))[:, None], np.float32)
