"""Lesions: from cysts to spiculated masses along one scale of suspicion, so that the classes overlap as they do in life."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from echofed.protocol.errors import SitesError
from echofed.simulations.phantoms.probes import BeamGrid
from echofed.simulations.phantoms.speckle import Complexes, Floats, gaussian, logistic, smooth_field
from echofed.simulations.phantoms.tissue import TissueMap

Label = Literal["normal", "benign", "malignant"]
LABELS: tuple[Label, ...] = ("normal", "benign", "malignant")


@dataclass(frozen=True)
class Lesion:
    """One patient's lesion, the same in every image of it.

    `diameter_mm` is the largest diameter, `aspect` height over width, `depth_share` its centre's depth as a share
    of the image's. The outline departs from an ellipse by `irregularity` (few broad waves), `lobulation` (many
    small ones) and `spiculation` (narrow spikes), each relative to the radius; its phases come from `shape_seed`.
    `edge_mm` is how gradual the margin is. `echo_db` is relative to fibroglandular tissue, `heterogeneity_db` its
    variation, `attenuation` in dB/cm/MHz one way. `capsule_db` is the reflection of walls that face the probe,
    `halo_db` the echo of the rim around the mass, `calcifications` a number of bright points.
    """

    diameter_mm: float
    aspect: float
    depth_share: float
    irregularity: float
    lobulation: float
    spiculation: float
    edge_mm: float
    echo_db: float
    heterogeneity_db: float
    attenuation: float
    capsule_db: float
    halo_db: float
    calcifications: int
    shape_seed: int


def draw_lesion(label: Label, generator: np.random.Generator, ambiguity: float = 0.1) -> Lesion | None:
    """Return a lesion of that label, or None for a normal breast.

    Everything seen in the lesion depends on the label only through one latent suspicion, normal with variance 1
    in either class, whose means lie 4 (1 - ambiguity) apart. No classifier can therefore exceed an AUC of
    Phi(4 (1 - ambiguity) / sqrt 2), 0.995 at the default; images show less of it. The least suspicious lesions
    are cysts. Which features go with which end follows Stavros et al. (1995).

    Args:
        label: "normal", "benign" or "malignant".
        generator: source of the lesion.
        ambiguity: 0 (classes far apart) to 1 (no difference).

    Raises:
        SitesError: the label is none of the three, or ambiguity is outside 0..1.
    """
    if label not in LABELS or not 0 <= ambiguity <= 1:
        raise SitesError(f"No lesion can be drawn for label '{label}' and ambiguity {ambiguity}.")
    if label == "normal":
        return None
    half_distance = 2 * (1 - ambiguity)
    suspicion = float(generator.normal(half_distance if label == "malignant" else -half_distance, 1))
    cystic = suspicion + generator.normal(0, 0.5) < -half_distance - 0.6 and generator.uniform() < 0.8
    return _draw_cyst(generator) if cystic else _draw_solid(suspicion, generator)


def _draw_cyst(generator: np.random.Generator) -> Lesion:
    return Lesion(
        diameter_mm=float(np.clip(generator.lognormal(2.5, 0.42), 5, 26)),
        aspect=float(np.clip(generator.normal(0.68, 0.15), 0.35, 1.1)),
        depth_share=float(generator.uniform(0.2, 0.42)),
        irregularity=float(generator.uniform(0.0, 0.08)),
        lobulation=0.0,
        spiculation=0.0,
        edge_mm=float(generator.uniform(0.06, 0.15)),
        echo_db=float(generator.uniform(-38, -23)),
        heterogeneity_db=1.0,
        attenuation=float(generator.uniform(0.0, 0.25)),
        capsule_db=float(generator.uniform(1, 9)),
        halo_db=0.0,
        calcifications=0,
        shape_seed=int(generator.integers(2**31)),
    )


def _draw_solid(suspicion: float, generator: np.random.Generator) -> Lesion:
    def rise(midpoint: float, noise: float = 0.9) -> float:
        """Return a feature's severity in 0..1: rising with suspicion, one half at `midpoint`, blurred by noise."""
        return float(1 / (1 + np.exp(-1.6 * (suspicion - midpoint + generator.normal(0, noise)))))

    spiculated = rise(1.3)
    return Lesion(
        diameter_mm=float(np.clip(generator.lognormal(2.65 + 0.12 * rise(0.0), 0.38), 6, 28)),
        aspect=float(np.clip(0.52 + 0.38 * rise(0.3) + generator.normal(0, 0.13), 0.35, 1.4)),
        depth_share=float(np.clip(generator.normal(0.31 + 0.05 * rise(0.0), 0.07), 0.16, 0.5)),
        irregularity=0.05 + 0.18 * rise(0.4),
        lobulation=0.07 * rise(0.8) * float(generator.uniform(0.3, 1.0)),
        spiculation=0.6 * spiculated if spiculated > 0.5 else 0.0,
        edge_mm=0.12 + 0.9 * rise(0.7) * float(generator.uniform(0.3, 1.0)),
        echo_db=float(np.clip(generator.normal(-9.5 - 2.5 * rise(0.2), 2.5), -20, -4)),
        heterogeneity_db=1.0 + 3.5 * rise(0.3),
        attenuation=float(np.clip(0.5 + 0.65 * rise(0.9) + generator.normal(0, 0.2), 0.2, 1.8)),
        capsule_db=6.0 * (1 - rise(-0.2)) + float(generator.uniform(-3, 2)),
        halo_db=7.0 * rise(1.0),
        calcifications=int(generator.poisson(5)) if rise(1.8) > 0.5 else 0,
        shape_seed=int(generator.integers(2**31)),
    )


DESCRIPTORS: tuple[str, ...] = (
    "irregular_shape",
    "not_circumscribed",
    "indistinct",
    "spiculated",
    "microlobulated",
    "taller_than_wide",
    "hypoechoic",
    "anechoic",
    "shadowing",
    "enhancement",
    "halo",
    "calcifications",
)


def lesion_descriptors(lesion: Lesion | None) -> dict[str, int]:
    """Return what a reader would tick, 0 or 1 for each of `DESCRIPTORS` in that order; all 0 without a lesion.

    The words are those of BI-RADS (Mendelson et al. (2013)).
    """
    if lesion is None:
        return dict.fromkeys(DESCRIPTORS, 0)
    indistinct, spiculated = lesion.edge_mm > 0.45, lesion.spiculation > 0
    microlobulated = lesion.lobulation > 0.03
    ticks = (
        lesion.irregularity > 0.13 or spiculated,
        indistinct or spiculated or microlobulated,
        indistinct,
        spiculated,
        microlobulated,
        lesion.aspect > 1,
        -22 <= lesion.echo_db < -9,
        lesion.echo_db < -22,
        lesion.attenuation > 0.95,
        lesion.attenuation < 0.4,
        lesion.halo_db > 3.5,
        lesion.calcifications > 0,
    )
    return dict(zip(DESCRIPTORS, map(int, ticks), strict=True))


@dataclass(frozen=True)
class Plane:
    """How one image cuts the lesion: where its centre lies (mm), its share of the full diameter, and its turn."""

    x_mm: float
    z_mm: float
    share: float
    aspect_factor: float
    turn_radians: float


def draw_plane(lesion: Lesion, depth_mm: float, width_mm: float, generator: np.random.Generator) -> Plane:
    """Return one of the planes a sonographer freezes: near the middle of the lesion and of the image."""
    return Plane(
        x_mm=float(np.clip(generator.normal(0, 0.11), -0.28, 0.28)) * width_mm,
        z_mm=float(max(lesion.depth_share * depth_mm + generator.normal(0, 1.0), lesion.diameter_mm * 0.35 + 2.5)),
        share=float(1 - min(abs(generator.normal(0, 0.1)), 0.3)),
        aspect_factor=float(np.exp(generator.normal(0, 0.08))),
        turn_radians=float(generator.normal(0, 0.12)),
    )


def signed_distance(lesion: Lesion, plane: Plane, x_mm: Floats, z_mm: Floats) -> tuple[Floats, Floats]:
    """Return the distance from the lesion's outline (mm, negative inside) and the direction from its centre.

    The distance is measured along the ray from the centre.

    Args:
        lesion: gives the outline.
        plane: where the lesion lies.
        x_mm: across the body, float32, any shape.
        z_mm: into the body, float32, the same shape.

    Returns:
        two float32 of that shape; the direction is the vertical part of its unit vector, -1 upwards.
    """
    right, down = x_mm - np.float32(plane.x_mm), z_mm - np.float32(plane.z_mm)
    distance = np.sqrt(np.square(right) + np.square(down)) + np.float32(1e-6)
    table = _outline(lesion, plane)
    angle = np.arctan2(down, right) * np.float32(table.size / (2 * np.pi))
    first = np.floor(angle).astype(np.int32)
    fraction = angle - first
    radius = table[first % table.size] * (1 - fraction) + table[(first + 1) % table.size] * fraction
    return np.asarray(distance - radius, np.float32), np.asarray(down / distance, np.float32)


def _outline(lesion: Lesion, plane: Plane) -> Floats:
    """Return the radius (mm) in 512 directions, clockwise on screen from the right."""
    generator = np.random.default_rng(lesion.shape_seed)
    theta = np.linspace(0, 2 * np.pi, 512, endpoint=False) - plane.turn_radians
    aspect = lesion.aspect * plane.aspect_factor
    wide = lesion.diameter_mm / 2 * plane.share * min(1.0, 1 / aspect)
    radius = wide / np.hypot(np.cos(theta), np.sin(theta) / aspect)
    shape = np.ones_like(theta)
    for waves, size in ((range(2, 6), lesion.irregularity), (range(8, 14), lesion.lobulation)):
        for wave in waves:
            phase = generator.uniform(0, 2 * np.pi) + 2 * plane.turn_radians
            shape += size * generator.normal(0, 0.8) * np.cos(wave * theta + phase) / np.sqrt(len(waves) / 2)
    for _ in range(int(generator.integers(5, 11))):
        direction, length = generator.uniform(-np.pi, np.pi), generator.uniform(0.3, 1.0)
        away = np.angle(np.exp(1j * (theta - direction)))
        shape += lesion.spiculation * length * np.exp(-np.abs(away) / 0.08)
    radius *= np.maximum(shape, 0.35)
    # Waves and spikes must not make the lesion larger than it says it is.
    reach = (radius + np.roll(radius, 256)).max() / (lesion.diameter_mm * plane.share)
    return np.asarray(radius / reach, np.float32)


def insert_lesion(
    tissue: TissueMap, lesion: Lesion, plane: Plane, grid: BeamGrid, generator: np.random.Generator
) -> tuple[TissueMap, Floats]:
    """Return the tissue with the lesion in it, and the distance from its outline (mm, negative inside).

    Only the surroundings of the lesion are touched; further away the distance is a constant, too short.
    """
    reach_mm = 0.6 * lesion.diameter_mm + 3
    near = (np.abs(grid.x_mm - plane.x_mm) < reach_mm) & (np.abs(grid.z_mm - plane.z_mm) < reach_mm)
    rows, lines = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    box = (slice(rows[0], rows[-1] + 1), slice(lines[0], lines[-1] + 1))
    outline_mm, vertical = signed_distance(lesion, plane, grid.x_mm[box], grid.z_mm[box])
    range_mm, lateral_mm = grid.range_mm[box[0]], grid.lateral_mm[box[1]]
    rough = smooth_field(range_mm, lateral_mm, (1.2, 1.2), generator)
    coarse = smooth_field(range_mm, lateral_mm, (1.8, 2.2), generator)

    edge_mm = 0.5 * lesion.edge_mm * np.exp(0.3 * rough)
    inside = logistic(-(outline_mm + 0.25 * lesion.edge_mm * rough) / edge_mm)
    rim = gaussian((outline_mm - 0.9) / 0.7) * (1 - inside)
    texture = lesion.heterogeneity_db * (0.75 * coarse + 0.5 * rough)
    echo, sheets, loss = tissue.echo_db.copy(), tissue.sheets.copy(), tissue.attenuation.copy()
    echo[box] += inside * (lesion.echo_db + texture - echo[box]) + lesion.halo_db * rim
    # Refraction at the smooth sides of a round mass throws two thin shadows (Robinson et al. (1981)).
    facing = np.square(vertical)
    side = gaussian(outline_mm / 0.35) * np.square(1 - facing)
    capsule_db = max(lesion.capsule_db, 0.0)
    loss[box] += inside * (lesion.attenuation - loss[box]) + 0.1 * capsule_db * side
    wall = gaussian(outline_mm / 0.08) * np.exp(-0.8 * np.abs(coarse)) * np.square(facing)
    sheets[box] *= 1 - inside
    sheets[box] += 10 ** (capsule_db / 20) * wall * (capsule_db > 0)
    _add_calcifications(sheets[box], lesion, outline_mm, generator)
    distance_mm = np.full(echo.shape, reach_mm, np.float32)
    distance_mm[box] = outline_mm
    return TissueMap(echo, sheets, loss), distance_mm


def _add_calcifications(sheets: Complexes, lesion: Lesion, outline_mm: Floats, generator: np.random.Generator) -> None:
    rows, lines = np.nonzero(outline_mm < -0.8)
    if lesion.calcifications and rows.size:
        chosen = generator.integers(0, rows.size, lesion.calcifications)
        sheets[rows[chosen], lines[chosen]] += 10 ** (generator.uniform(14, 22, lesion.calcifications) / 20)
