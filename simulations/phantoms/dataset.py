"""Data sets of phantoms: several sites with their own scanner, patients and mix of labels, on disk as a hospital keeps them."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from echofed.protocol.errors import SitesError
from echofed.simulations.phantoms.imaging import phantom_image
from echofed.simulations.phantoms.lesions import DESCRIPTORS, Label, draw_lesion, lesion_descriptors
from echofed.simulations.phantoms.patients import PhantomPatient, PhantomSite, check_site, draw_patients
from echofed.simulations.phantoms.probes import PROBES, check_side, square_frame
from echofed.simulations.phantoms.tissue import draw_anatomy
from echofed.simulations.phantoms.vendors import VENDORS, Pixels, annotate, mark_calipers

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
        check_site(site, image_size_px)
    if len({site.name for site in sites}) < len(sites):
        raise SitesError("Two sites have the same name.", remedy="Give every site a name of its own.")
    total, done, folders = sum(site.patients for site in sites), 0, []
    for site_index, site in enumerate(sites):
        site_folder = folder / site.name
        for name in ("images", "masks"):
            (site_folder / name).mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, object]] = []
        for patient in draw_patients(site, site_index, seed, image_size_px):
            rows += _write_patient(site_folder, site, patient)
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


def _write_patient(folder: Path, site: PhantomSite, patient: PhantomPatient) -> list[dict[str, object]]:
    """Write one patient's images and masks and return their rows of the index."""
    vendor, lesion, rows = VENDORS[site.vendor], patient.lesion, []
    patient_id = f"{site.name}_p{patient.number:04d}"
    for picture in patient.pictures:
        annotate(picture.image, vendor, picture.frame.pixel_spacing_mm)
        if picture.measured:
            mark_calipers(picture.image, picture.mask)
        file = f"{patient_id}_{picture.number}.png"
        for kind, pixels in (("images", picture.image), ("masks", picture.mask)):
            Image.fromarray(pixels).save(folder / kind / file, compress_level=1)
        rows.append(
            {
                "file": f"images/{file}",
                "patient_id": patient_id,
                "exam_id": f"{patient_id}_e{picture.exam}",
                "centre": site.name,
                "label": patient.label,
                "mask": f"masks/{file}",
                **lesion_descriptors(lesion),
                "size_mm": f"{lesion.diameter_mm if lesion else 0.0:.1f}",
                "pixel_spacing_mm": f"{picture.frame.pixel_spacing_mm:.4f}",
            }
        )
    return rows


def _write_index(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
