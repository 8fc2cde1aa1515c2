"""A site's patients: each one's lesion, exams and pictures, before anything is written."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from echofed.protocol.errors import SitesError, UnknownNameError
from echofed.simulations.phantoms.imaging import phantom_image
from echofed.simulations.phantoms.lesions import LABELS, Label, Lesion, draw_lesion
from echofed.simulations.phantoms.probes import PROBES, Frame, check_side, fit_frame
from echofed.simulations.phantoms.tissue import draw_anatomy
from echofed.simulations.phantoms.vendors import VENDORS, Pixels


@dataclass(frozen=True)
class PhantomSite:
    """One site to draw.

    `vendor` and `probe` name entries of `VENDORS` and `PROBES`. `images_per_patient` is the least and the most.
    `label_proportions` gives each label's share of the patients ("normal", "benign", "malignant"; sum 1).
    `ambiguity` is how much the labels overlap, see `draw_lesion`.
    """

    name: str
    vendor: str
    patients: int
    images_per_patient: tuple[int, int]
    label_proportions: Mapping[Label, float]
    probe: str
    ambiguity: float = 0.1


@dataclass(frozen=True)
class Picture:
    """One picture of a patient, nothing drawn over it.

    `number` and `exam` are 1-based within the patient; `image` and `mask` (255 in the lesion) are uint8 of
    `frame.shape_px`; `measured` says that the sonographer measured the lesion in it.
    """

    number: int
    exam: int
    frame: Frame
    image: Pixels
    mask: Pixels
    measured: bool


@dataclass(frozen=True)
class PhantomPatient:
    """One patient; `number` is 1-based within the site."""

    number: int
    label: Label
    lesion: Lesion | None
    pictures: tuple[Picture, ...]


def check_site(site: PhantomSite, image_size_px: tuple[int, int]) -> None:
    """Refuse a site that cannot be drawn.

    Raises:
        SitesError: no patients, proportions that do not sum to 1, a name no folder can have, or images under 32 px.
        UnknownNameError: a vendor or a probe is not in the catalogue.
    """
    if site.vendor not in VENDORS:
        raise UnknownNameError(f"No vendor '{site.vendor}': choose from {', '.join(VENDORS)}.")
    if site.probe not in PROBES:
        raise UnknownNameError(f"No probe '{site.probe}': choose from {', '.join(PROBES)}.")
    shares = list(site.label_proportions.values())
    if not set(site.label_proportions) <= set(LABELS) or min(shares, default=-1) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise SitesError(f"Site '{site.name}': {dict(site.label_proportions)} are not shares of {', '.join(LABELS)}.")
    if not 0 <= site.ambiguity <= 1:
        raise SitesError(f"Site '{site.name}': ambiguity {site.ambiguity} is not within 0 to 1.")
    least, most = site.images_per_patient
    if site.patients < 1 or not 1 <= least <= most:
        raise SitesError(f"Site '{site.name}': {site.patients} patients of {least} to {most} images.")
    if not re.fullmatch(r"\w[\w.-]*", site.name):
        raise SitesError(
            f"'{site.name}' cannot name a folder.", remedy="Use letters, digits, underscores, dots and hyphens."
        )
    check_side(_longest_side(site, image_size_px))


def draw_patients(site: PhantomSite, place: int, seed: int, image_size_px: tuple[int, int]) -> Iterator[PhantomPatient]:
    """Yield the patients `write_phantom_sites` draws for the site, their pictures without ruler, bar and calipers.

    Args:
        site: what to draw.
        place: the site's place among the sites of the seed, from 0.
        seed: of everything random, >= 0.
        image_size_px: the least and the greatest longer side; each vendor has its own in between.

    Raises:
        SitesError: the site cannot be drawn.
        UnknownNameError: a vendor or a probe is not in the catalogue.
    """
    check_site(site, image_size_px)
    longest_side_px = _longest_side(site, image_size_px)
    for index, label in enumerate(_labels(site, np.random.default_rng([seed, place]))):
        yield _draw_patient(site, index + 1, label, longest_side_px, np.random.default_rng([seed, place, index + 1]))


def _draw_patient(
    site: PhantomSite, number: int, label: Label, longest_side_px: int, generator: np.random.Generator
) -> PhantomPatient:
    lesion, anatomy = draw_lesion(label, generator, site.ambiguity), draw_anatomy(generator)
    probe, vendor = PROBES[site.probe], replace(VENDORS[site.vendor], ruler="none", grey_bar=False)
    shown_mm = _study_depth(probe.depth_mm, lesion, generator)
    images = int(generator.integers(site.images_per_patient[0], site.images_per_patient[1] + 1))
    with_calipers = generator.uniform() < 0.3
    pictures = []
    for index in range(images):
        # Four or more images come from two exams, the second at a depth of its own.
        exam = 1 + (images >= 4 and index >= images // 2)
        frame = fit_frame(probe, shown_mm * (1.0 if exam == 1 else 1.06), longest_side_px)
        measured = bool(with_calipers and generator.uniform() < 0.5)
        image, mask = phantom_image(frame, anatomy, lesion, vendor, generator)
        pictures.append(Picture(index + 1, exam, frame, image, mask, measured))
    return PhantomPatient(number, label, lesion, tuple(pictures))


def _longest_side(site: PhantomSite, image_size_px: tuple[int, int]) -> int:
    least, most = image_size_px
    return round(least + VENDORS[site.vendor].size_share * (most - least))


def _labels(site: PhantomSite, generator: np.random.Generator) -> list[Label]:
    """Return each patient's label: as near to the proportions as whole patients allow, in random order."""
    labels = list(site.label_proportions)
    wanted = np.array([site.label_proportions[label] for label in labels]) * site.patients
    counts = np.floor(wanted).astype(int)
    for index in np.argsort(counts - wanted, kind="stable")[: site.patients - counts.sum()]:
        counts[index] += 1
    ordered = [label for label, count in zip(labels, counts, strict=True) for _ in range(count)]
    return [ordered[index] for index in generator.permutation(site.patients)]


def _study_depth(limits_mm: tuple[float, float], lesion: Lesion | None, generator: np.random.Generator) -> float:
    """Return the depth the operator chose, mm: anywhere the probe allows, deeper for a large lesion."""
    least, most = limits_mm
    depth_mm = float(generator.uniform(least, most))
    return depth_mm if lesion is None else min(max(depth_mm, 2.0 * lesion.diameter_mm), 1.15 * most)


def draw_air(frame: Frame, generator: np.random.Generator) -> Pixels:
    """Return what a probe in the air shows: reverberations of its own face, fainter with depth, and noise.

    Args:
        frame: geometry of the picture.
        generator: source of the noise.

    Returns:
        uint8 of `frame.shape_px`.
    """
    depth_mm = (np.arange(frame.shape_px[0]) + 0.5) * frame.pixel_spacing_mm
    bands = 0.5 + 0.5 * np.cos(2 * np.pi * depth_mm / generator.uniform(1.2, 2.0))
    level = 230 * np.exp(-depth_mm / 3.0) * bands**4
    noise = generator.rayleigh(0.08, frame.shape_px)
    return np.asarray(np.clip(level[:, None] * (0.9 + noise), 0, 255), np.uint8)
