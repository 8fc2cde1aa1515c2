"""Tissue: the breast's layers, its fascia and ligaments, and how well the probe touches the skin."""

from dataclasses import dataclass

import numpy as np

from echofed.simulations.phantoms.probes import BeamGrid
from echofed.simulations.phantoms.speckle import Complexes, Floats, gaussian, logistic, smooth_curves, smooth_field


@dataclass(frozen=True)
class Layer:
    """What a layer is made of.

    `echo_db` is relative to fibroglandular tissue, `texture_db` its slow variation, `attenuation` in dB/cm/MHz one
    way. Reflecting sheets (septa, ligaments, fascia): `sheets_per_cm2`, their mean `sheet_db` and length, and
    `sheet_slope`, the standard deviation of rise over run.
    """

    echo_db: float
    texture_db: float
    attenuation: float
    sheets_per_cm2: float
    sheet_db: float
    sheet_length_mm: float
    sheet_slope: float


# Attenuation of fat, gland and muscle after Duck (1990); which layers are brighter after Stavros (2004).
LAYERS: tuple[Layer, ...] = (
    Layer(4.0, 1.0, 0.8, 8.0, 9.0, 18.0, 0.01),  # skin
    Layer(-7.0, 2.5, 0.5, 4.0, 9.0, 6.0, 0.20),  # subcutaneous fat
    Layer(0.0, 4.0, 0.8, 7.0, 8.5, 3.5, 0.10),  # fibroglandular
    Layer(-8.0, 3.0, 0.6, 6.0, 9.0, 8.0, 0.06),  # retromammary fat
    Layer(-9.0, 3.0, 0.9, 8.0, 9.0, 8.0, 0.03),  # pectoral muscle
    Layer(-14.0, 4.0, 1.1, 1.5, 7.0, 9.0, 0.05),  # chest wall
)
GLAND = 2
SKIN_MM = 1.8


@dataclass(frozen=True)
class Anatomy:
    """One patient's breast.

    `thickness` are the fat, gland, retromammary and muscle layers as fractions of the depth below the skin (the
    rest is chest wall), `density` in 0..1 how much gland there is among the fat of the gland layer, `tilt` the
    layers' slope, `attenuation_factor` multiplies every layer's, `sheet_db` is added to every sheet.
    """

    thickness: tuple[float, float, float, float]
    density: float
    tilt: float
    attenuation_factor: float
    sheet_db: float


def draw_anatomy(generator: np.random.Generator) -> Anatomy:
    """Return one patient's anatomy, drawn from the generator."""
    fat, gland = generator.uniform(0.10, 0.34), generator.uniform(0.28, 0.50)
    retromammary, muscle = generator.uniform(0.04, 0.14), generator.uniform(0.12, 0.28)
    return Anatomy(
        (float(fat), float(gland), float(retromammary), float(muscle)),
        density=float(generator.uniform(0.15, 1.0)),
        tilt=float(generator.normal(0.0, 0.04)),
        attenuation_factor=float(generator.uniform(0.75, 1.15)),
        sheet_db=float(generator.normal(0.0, 2.5)),
    )


@dataclass(frozen=True)
class TissueMap:
    """What the sound meets on the beam grid, each [depth samples, lines].

    `echo_db` is the power of unresolved scatterers, `sheets` the complex amplitude of coherent reflectors and
    `attenuation` in dB/cm/MHz one way.
    """

    echo_db: Floats
    sheets: Complexes
    attenuation: Floats


def draw_tissue(anatomy: Anatomy, grid: BeamGrid, depth_mm: float, generator: np.random.Generator) -> TissueMap:
    """Return one plane through the breast, without a lesion.

    Layers follow the probe's face, which presses them into its own curve.
    """
    bounds = _boundaries(anatomy, grid, depth_mm, generator)
    index = (grid.range_mm[:, None] > bounds[1:-1, None]).sum(axis=0, dtype=np.intp)
    echo, texture, loss = (
        np.array(values, np.float32)[index]
        for values in zip(*((layer.echo_db, layer.texture_db, layer.attenuation) for layer in LAYERS), strict=True)
    )
    # Lobules are coarse, strands of stroma fine and flat.
    coarse = smooth_field(grid.range_mm, grid.lateral_mm, (1.5, 4.0), generator)
    fine = smooth_field(grid.range_mm, grid.lateral_mm, (0.4, 1.3), generator)
    echo += texture * (0.7 * coarse + 0.9 * fine)
    echo += _lobules(anatomy, grid, generator) * (index == GLAND)
    loss *= anatomy.attenuation_factor
    loss += _poor_contact(grid, generator)
    return TissueMap(echo, _sheets(anatomy, bounds, grid, generator), loss)


def _boundaries(anatomy: Anatomy, grid: BeamGrid, depth_mm: float, generator: np.random.Generator) -> Floats:
    """Return the depth of each layer's top along the face, the last row being the image's bottom, mm [7, lines]."""
    below_skin = np.cumsum((0.0, *anatomy.thickness)) * (depth_mm - SKIN_MM) + SKIN_MM
    tops = np.concatenate(((0.0,), below_skin, (depth_mm,)))[:, None]
    waves = smooth_curves(grid.lateral_mm, 12.0, len(tops), generator)
    depth_share = tops / depth_mm
    bent = tops + waves * 0.03 * depth_mm * np.minimum(depth_share * 2, 1) * (tops > SKIN_MM)
    bent = bent + (grid.lateral_mm * (anatomy.tilt + generator.normal(0, 0.02))) * depth_share
    bent += (tops == SKIN_MM) * waves * 0.15
    bent[-1] = max(depth_mm, float(tops[-2, 0]) + 1)
    return np.asarray(np.maximum.accumulate(bent, axis=0), np.float32)


def _lobules(anatomy: Anatomy, grid: BeamGrid, generator: np.random.Generator) -> Floats:
    """Return the fat lobules among the gland, dB: the less dense the breast, the more of the gland layer is fat."""
    field = smooth_field(grid.range_mm, grid.lateral_mm, (2.2, 4.5), generator)
    threshold = np.float32(2.4 * anatomy.density - 1.0)
    fat = logistic(5 * (threshold - field))
    return np.asarray(-7 * fat, np.float32)


def _poor_contact(grid: BeamGrid, generator: np.random.Generator) -> Floats:
    """Return extra attenuation near the skin: hair, air and ligaments that throw narrow shadows, dB/cm/MHz [., lines]."""
    number = int(generator.integers(0, 5))
    half_width = float(np.ptp(grid.lateral_mm)) / 2
    centres = generator.uniform(-1.05, 1.05, number) * half_width
    widths = generator.uniform(0.8, 3.0, number)
    strengths = generator.uniform(0.05, 0.6, number)
    shadow = strengths @ gaussian(((grid.lateral_mm - centres[:, None]) / widths[:, None]).astype(np.float32))
    start = generator.uniform(1.0, 8.0)
    depth_window = gaussian((grid.range_mm[:, None] - start) / 2.0)
    return np.asarray(depth_window * shadow, np.float32)


def _sheets(anatomy: Anatomy, bounds: Floats, grid: BeamGrid, generator: np.random.Generator) -> Complexes:
    """Return the coherent reflectors: sheets of tissue drawn as thin broken curves that follow their layer."""
    lateral, width_mm = grid.lateral_mm, float(np.ptp(grid.lateral_mm))
    thickness = np.diff(bounds, axis=0)
    area_cm2 = width_mm * np.maximum(thickness.mean(axis=1), 0) / 100
    numbers = generator.poisson([layer.sheets_per_cm2 for layer in LAYERS] * area_cm2) + 1
    index = np.repeat(np.arange(len(LAYERS)), numbers)
    mean_db, length_mm, slope_stddev = (
        np.array(values, np.float32)[index, None]
        for values in zip(
            *((layer.sheet_db, layer.sheet_length_mm, layer.sheet_slope) for layer in LAYERS), strict=True
        )
    )
    shape = (index.size, 1)
    place, centre_mm = generator.uniform(0, 1, shape), generator.uniform(-0.6, 0.6, shape) * width_mm
    half_mm = generator.gamma(2.0, length_mm / 4) + 0.5
    slope = slope_stddev * generator.standard_normal(shape, dtype=np.float32)
    # The first sheet of a layer is the fascia on top of it, which runs the whole width.
    fascia = np.cumsum(numbers) - numbers
    place[fascia], half_mm[fascia], slope[fascia] = 0.02, 4 * width_mm, 0.0
    along = lateral - centre_mm.astype(np.float32)
    depth = bounds[index] + place.astype(np.float32) * thickness[index] + slope * along
    depth += 0.25 * smooth_curves(lateral, 5.0, index.size, generator) * (index > 0)[:, None]
    level_db = mean_db + anatomy.sheet_db + generator.normal(0.0, 4.5, shape) - 30 * slope**2
    rough = smooth_curves(lateral, 0.7, 2 * index.size, generator).reshape(2, index.size, -1)
    window = np.clip(1 - np.square(along / half_mm.astype(np.float32)), 0, 1)
    amplitude = window * (10 ** (level_db / 20)).astype(np.float32)
    sheets = np.zeros((grid.range_mm.size, lateral.size), np.complex64)
    _draw_curves(sheets, depth / grid.step_mm - 0.5, amplitude * (0.6 + 0.6 * (rough[0] + 1j * rough[1])))
    return sheets


def _draw_curves(sheets: Complexes, rows: Floats, amplitudes: Complexes) -> None:
    """Add curves at fractional `rows` [curves, lines] to `sheets`, shared between the two nearest samples."""
    first = np.floor(rows).astype(np.int64)
    fraction = rows - first
    lines = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
    drawn = (first >= 0) & (first < sheets.shape[0] - 1) & (np.abs(amplitudes) > 1e-3)
    np.add.at(sheets, (first[drawn], lines[drawn]), (amplitudes * (1 - fraction))[drawn])
    np.add.at(sheets, (first[drawn] + 1, lines[drawn]), (amplitudes * fraction)[drawn])
