"""Data sets of phantoms: several sites with their own scanner, patients and mix of labels, on disk as a hospital keeps them."""

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from echofed.protocol.errors import SitesError, UnknownNameError
from echofed.simulations.phantoms.imaging import phantom_image
from echofed.simulations.phantoms.lesions import DESCRIPTORS, LABELS, Label, Lesion, draw_lesion, lesion_descriptors
from echofed.simulations.phantoms.probes import PROBES, check_side, fit_frame, square_frame
from echofed.simulations.phantoms.tissue import draw_anatomy
from echofed.simulations.phantoms.vendors import VENDORS, Pixels

COLUMNS: tuple[str, ...] = (
    "file",
    "patient_id",
    "exam_id",
    "centre",
    "label",
    "mask",
    *DESCRIPTORS,
    "size_mm",
    "pixel_spacing_mm",
)


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


def default_sites(number: int, patients_per_site: int) -> list[PhantomSite]:
    """Return sites unlike each other: vendor, probe, share of malignant patients and number of patients differ.

    The site sizes range from half to one and a half times `patients_per_site` and have about that mean.

    Raises:
        SitesError: `number` or `patients_per_site` is under 1.
    """
    if number < 1 or patients_per_site < 1:
        raise SitesError(f"{number} sites of {patients_per_site} patients cannot be drawn.")
    names, probes = list(VENDORS), ("linear", "linear_high", "linear", "linear_wide", "convex")
    malignant, sizes = (0.35, 0.5, 0.2, 0.4, 0.28, 0.6), (1.5, 0.9, 1.2, 0.5, 0.9)
    return [
        PhantomSite(
            name=f"site{index + 1}",
            vendor=names[index % len(names)],
            patients=max(1, round(patients_per_site * sizes[index % 5])) if number > 1 else patients_per_site,
            images_per_patient=(2, 5),
            label_proportions={"benign": 1 - malignant[index % 6], "malignant": malignant[index % 6]},
            probe=probes[index % 5],
        )
        for index in range(number)
    ]


def write_phantom_sites(
    folder: Path,
    sites: Sequence[PhantomSite],
    seed: int,
    image_size_px: tuple[int, int] = (128, 192),
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write each site's phantoms as a folder of its own and return those folders.

    A folder holds `index.csv` (`COLUMNS`), `images/*.png` and `masks/*.png`, 8-bit grey. `size_mm` is the largest
    diameter of the patient's lesion, 0 without one. The same arguments give the same bytes on the same machine;
    a site does not depend on the sites after it, nor a patient on the number of images of another.

    Args:
        folder: made if missing; existing files of the same names are replaced.
        sites: what to draw; names must differ.
        seed: of everything random, >= 0.
        image_size_px: the least and the greatest longer side; each vendor has its own in between.
        progress: called after each patient with how many are done, of how many.

    Raises:
        SitesError: a site cannot be drawn (no patients, proportions that do not sum to 1, the same name twice,
            images under 32 px); nothing has been written then.
        UnknownNameError: a vendor or a probe is not in the catalogue; nothing has been written then.
    """
    for site in sites:
        _check_site(site)
        check_side(_longest_side(site, image_size_px))
    if len({site.name for site in sites}) < len(sites):
        raise SitesError("Two sites have the same name.", remedy="Give every site a name of its own.")
    total, done, folders = sum(site.patients for site in sites), 0, []
    for site_index, site in enumerate(sites):
        site_folder = folder / site.name
        for name in ("images", "masks"):
            (site_folder / name).mkdir(parents=True, exist_ok=True)
        longest_side_px = _longest_side(site, image_size_px)
        rows: list[dict[str, object]] = []
        for number, label in enumerate(_labels(site, np.random.default_rng([seed, site_index]))):
            generator = np.random.default_rng([seed, site_index, number + 1])
            rows += _write_patient(site_folder, site, number + 1, label, longest_side_px, generator)
            done += 1
            if progress is not None:
                progress(done, total)
        _write_index(site_folder / "index.csv", rows)
        folders.append(site_folder)
    return folders


def random_phantoms(count: int, size_px: int, seed: int) -> Pixels:
    """Return unlabelled square phantoms of all vendors and kinds of lesion, for what needs images but no patients.

    Args:
        count: number of images, >= 0.
        size_px: side, >= 32.
        seed: of everything random, >= 0.

    Returns:
        uint8 [count, size_px, size_px].

    Raises:
        SitesError: `size_px` is under 32.
    """
    check_side(size_px)
    frame = square_frame(PROBES["linear"], 38.0, size_px)
    vendors = list(VENDORS.values())
    labels: tuple[Label, ...] = ("benign", "malignant", "benign", "malignant", "normal")
    images = np.empty((count, size_px, size_px), np.uint8)
    for index in range(count):
        generator = np.random.default_rng([seed, index])
        lesion = draw_lesion(labels[index % len(labels)], generator)
        vendor = vendors[int(generator.integers(len(vendors)))]
        images[index], _ = phantom_image(frame, draw_anatomy(generator), lesion, vendor, generator)
    return images


def _check_site(site: PhantomSite) -> None:
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


def _write_patient(
    folder: Path, site: PhantomSite, number: int, label: Label, longest_side_px: int, generator: np.random.Generator
) -> list[dict[str, object]]:
    """Write one patient's images and masks and return their rows of the index."""
    lesion, anatomy = draw_lesion(label, generator, site.ambiguity), draw_anatomy(generator)
    probe, patient_id = PROBES[site.probe], f"{site.name}_p{number:04d}"
    shown_mm = _study_depth(probe.depth_mm, lesion, generator)
    images = int(generator.integers(site.images_per_patient[0], site.images_per_patient[1] + 1))
    with_calipers = generator.uniform() < 0.3
    rows: list[dict[str, object]] = []
    for index in range(images):
        # Four or more images come from two exams, the second at a depth of its own.
        exam = 1 + (images >= 4 and index >= images // 2)
        depth_mm = shown_mm * (1.0 if exam == 1 else 1.06)
        frame = fit_frame(probe, depth_mm, longest_side_px)
        marked = bool(with_calipers and generator.uniform() < 0.5)
        image, mask = phantom_image(frame, anatomy, lesion, VENDORS[site.vendor], generator, calipers=marked)
        file = f"{patient_id}_{index + 1}.png"
        for kind, pixels in (("images", image), ("masks", mask)):
            Image.fromarray(pixels).save(folder / kind / file, compress_level=1)
        rows.append(
            {
                "file": f"images/{file}",
                "patient_id": patient_id,
                "exam_id": f"{patient_id}_e{exam}",
                "centre": site.name,
                "label": label,
                "mask": f"masks/{file}",
                **lesion_descriptors(lesion),
                "size_mm": f"{lesion.diameter_mm if lesion else 0.0:.1f}",
                "pixel_spacing_mm": f"{frame.pixel_spacing_mm:.4f}",
            }
        )
    return rows


def _study_depth(limits_mm: tuple[float, float], lesion: Lesion | None, generator: np.random.Generator) -> float:
    """Return the depth the operator chose, mm: anywhere the probe allows, deeper for a large lesion."""
    least, most = limits_mm
    depth_mm = float(generator.uniform(least, most))
    return depth_mm if lesion is None else min(max(depth_mm, 2.0 * lesion.diameter_mm), 1.15 * most)


def _write_index(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
