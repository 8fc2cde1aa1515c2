"""Phantoms as a hospital's DICOM export: stills and clips in their vendor's screen, labels, and what goes wrong in life."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from pydicom import Dataset

from echofed.client.ingest.outcomes import Verdict
from echofed.simulations.phantoms.dicom_headers import (
    Exam,
    ct_image,
    document,
    image_header,
    put_regions,
    report,
    uid_of,
)
from echofed.simulations.phantoms.dicom_pixels import FORMATS, put_pixels
from echofed.simulations.phantoms.dicom_shots import Clips, Shot, save_air, save_picture
from echofed.simulations.phantoms.dicom_truth import NO_FAULTS, Faults, Truth, write_labels, write_truth
from echofed.simulations.phantoms.patients import PhantomPatient, PhantomSite, Picture, draw_patients
from echofed.simulations.phantoms.people import HOSPITALS, Person, invent_person, invent_staff
from echofed.simulations.phantoms.vendors import VENDORS

ACCEPTED, QUARANTINED, REFUSED = Verdict.ACCEPTED, Verdict.QUARANTINED, Verdict.REFUSED
# The generators of what is around the pictures are apart from those of the pictures themselves.
_OF_PEOPLE, _OF_SCREENS = 1, 2


@dataclass(frozen=True)
class DicomSite:
    """A hospital's export.

    Args:
        export: folder of DICOM files.
        labels: CSV of accession numbers and labels.
        truth: CSV of what is true of each file, see `Truth`.
        rows: what that CSV says.
        identifying: texts that name patients, staff, hospital or exams, none of which may be kept.
    """

    export: Path
    labels: Path
    truth: Path
    rows: tuple[Truth, ...]
    identifying: frozenset[str]


@dataclass(frozen=True)
class _Place:
    """Where an exam's files go: `folder` within `export`."""

    export: Path
    folder: Path

    def path(self, number: int, series: int = 1) -> Path:
        """Return the path of an instance, its folder made."""
        path = self.folder / f"SE{series:02d}" / f"US{number:06d}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def write_dicom_site(
    folder: Path,
    site: PhantomSite,
    seed: int,
    faults: Faults = NO_FAULTS,
    *,
    place: int = 0,
    image_size_px: tuple[int, int] = (128, 192),
    clips: Clips = Clips(),  # noqa: B008 - frozen
    progress: Callable[[], None] | None = None,
) -> DicomSite:
    """Write the phantoms `write_phantom_sites` draws for the site as a PACS would export them.

    `folder` gets `export/DICOM/PA0001/ST01/SE01/US000001.dcm` and so on, `labels.csv` by accession number and, apart
    from what a hospital would have, `truth/truth.csv`. Every picture is exported once without writing on its tissue,
    as a still or as the first frame of a clip; a fault's copies come in addition. The same arguments give the same
    bytes on the same machine.

    Args:
        folder: made if missing; existing files of the same names are replaced.
        site: what to draw.
        seed: of everything random, >= 0.
        faults: what goes wrong.
        place: the site's place among the sites of the seed, from 0.
        image_size_px: the least and the greatest longer side of the tissue; each vendor has its own in between.
        clips: how many pictures move, and how long.
        progress: called after each patient.

    Raises:
        SitesError: the site cannot be drawn.
        UnknownNameError: a vendor or a probe is not in the catalogue.
    """
    export = folder / "export"
    rows: list[Truth] = []
    labels: list[tuple[str, str]] = []
    identifying: set[str] = set()
    for patient in draw_patients(site, place, seed, image_size_px):
        people = np.random.default_rng([seed, place, patient.number, _OF_PEOPLE])
        for number, exam in enumerate(_exams(site, patient, f"{seed}/{place}", place, people), start=1):
            generator = np.random.default_rng([seed, place, patient.number, number, _OF_SCREENS])
            at = _Place(export, export / "DICOM" / f"PA{patient.number:04d}" / f"ST{number:02d}")
            pictures = [picture for picture in patient.pictures if picture.exam == number]
            written = _write_exam(at, site, exam, patient, pictures, faults, clips, generator)
            if not rows:
                written += _write_strays(at, exam, pictures[0], faults, generator)
            written += _label(at, exam, faults, labels, generator)
            rows += written
            identifying |= _identifying(exam)
        if progress is not None:
            progress()
    identifying |= {row.instance for row in rows if row.instance}
    truth = folder / "truth" / "truth.csv"
    truth.parent.mkdir(parents=True, exist_ok=True)
    write_labels(folder / "labels.csv", labels)
    write_truth(truth, rows)
    return DicomSite(export, folder / "labels.csv", truth, tuple(rows), frozenset(identifying))


def _exams(
    site: PhantomSite, patient: PhantomPatient, key: str, place: int, generator: np.random.Generator
) -> Iterator[Exam]:
    person = invent_person(generator)
    moment = datetime(2015, 1, 5, 8) + timedelta(
        days=int(generator.integers(3000)), minutes=int(generator.integers(540))
    )
    for number in range(1, 1 + max(picture.exam for picture in patient.pictures)):
        physician, operator = invent_staff(generator)
        yield Exam(
            key=f"{key}/{patient.number}/{number}",
            person=person,
            label=patient.label,
            accession=f"A{moment:%y%m}{generator.integers(10**6, 10**7)}",
            moment=moment,
            hospital=HOSPITALS[place % len(HOSPITALS)],
            physician=physician,
            operator=operator,
            vendor=VENDORS[site.vendor],
            probe=site.probe,
        )
        moment += timedelta(days=int(generator.integers(90, 500)), minutes=int(generator.integers(60)))


def _write_exam(
    at: _Place,
    site: PhantomSite,
    exam: Exam,
    patient: PhantomPatient,
    pictures: Sequence[Picture],
    faults: Faults,
    clips: Clips,
    generator: np.random.Generator,
) -> list[Truth]:
    """Write all images of an exam."""
    rows: list[Truth] = []
    several_names = patient.number <= faults.renamed
    for picture in pictures:
        for shot in save_picture(exam, picture, faults, clips, generator):
            verdicts = tuple(dict.fromkeys((*shot.verdicts, QUARANTINED))) if several_names else shot.verdicts
            phantom = f"{site.name}_p{patient.number:04d}_{picture.number}"
            rows.append(_write_shot(at, exam, replace(shot, verdicts=verdicts), len(rows) + 1, phantom))
            if shot.fault == "" and generator.uniform() < faults.repeated:
                path = at.path(len(rows), series=9)
                path.write_bytes((at.export / rows[-1].file).read_bytes())
                rows.append(replace(rows[-1], file=_relative(at, path), fault="repeated"))
    if several_names and pictures[-1] is patient.pictures[-1]:
        other = replace(invent_person(generator), patient_id=exam.person.patient_id)
        shot = next(save_picture(replace(exam, person=other), pictures[-1], NO_FAULTS, clips, generator))
        shot = replace(shot, fault="another's name", verdicts=(QUARANTINED,))
        rows.append(_write_shot(at, replace(exam, person=other), shot, len(rows) + 1, ""))
    return rows


def _write_shot(at: _Place, exam: Exam, shot: Shot, number: int, phantom: str, *, patient_id: bool = True) -> Truth:
    instance = uid_of(f"{exam.key}/image/{number}")
    dataset = _image(exam, shot, number)
    if not patient_id:
        dataset.PatientID = ""
    path = at.path(number)
    _save(path, dataset)
    return Truth(
        file=_relative(at, path),
        instance=str(instance),
        kind=shot.kind,
        fault=shot.fault,
        verdicts=shot.verdicts,
        patient_id=str(dataset.PatientID),
        accession=exam.accession,
        label=exam.label,
        phantom=phantom,
        vendor=exam.vendor.name,
        frames=len(shot.frames),
        tissue=shot.tissue,
        spacing_mm=shot.frame.pixel_spacing_mm,
        written=shot.written,
    )


def _image(exam: Exam, shot: Shot, number: int) -> Dataset:
    count, height, width, _ = shot.frames.shape
    dataset = image_header(exam, uid_of(f"{exam.key}/image/{number}"), number, count, shot.frames_per_second)
    put_regions(dataset, shot.regions, shot.tissue, shot.bar, shot.frame.pixel_spacing_mm, (height, width))
    formats = FORMATS[exam.vendor.name]
    put_pixels(dataset, shot.frames, formats.still if count == 1 else formats.cine)
    return dataset


def _write_strays(
    at: _Place, exam: Exam, picture: Picture, faults: Faults, generator: np.random.Generator
) -> list[Truth]:
    """Write what does not belong into a training set, or cannot be read, beside the site's first exam."""
    number, rows = 9000, []
    for _ in range(faults.no_tissue):
        number += 1
        rows.append(_write_shot(at, exam, save_air(exam, picture, number, generator), number, ""))
    clean = next(save_picture(exam, picture, NO_FAULTS, Clips(share=0.0), generator))
    for _ in range(faults.no_patient):
        number += 1
        shot = replace(clean, fault="no patient id", verdicts=(QUARANTINED,))
        rows.append(_write_shot(at, exam, shot, number, "", patient_id=False))
    for _ in range(faults.damaged):
        number += 1
        row = _write_shot(at, exam, replace(clean, fault="cut off", verdicts=(QUARANTINED,)), number, "")
        path = at.export / row.file
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        rows.append(row)
    for kind, count in (("document", faults.documents), ("CT", faults.other_modality)):
        for _ in range(count):
            number += 1
            instance = uid_of(f"{exam.key}/{kind}/{number}")
            dataset = document(exam, instance) if kind == "document" else ct_image(exam, instance, generator)
            rows.append(_write_other(at, exam, dataset, kind, number))
    for _ in range(faults.not_dicom):
        number += 1
        path = at.path(number)
        path.write_bytes(b"Thumbs of the export, not an image.\n" * 40)
        rows.append(Truth(_relative(at, path), "", "not DICOM", "", (REFUSED,), "", "", ""))
    return rows


def _write_other(at: _Place, exam: Exam, dataset: Dataset, kind: str, number: int) -> Truth:
    path = at.path(number, series=int(dataset.SeriesNumber))
    _save(path, dataset)
    return Truth(
        _relative(at, path),
        str(dataset.SOPInstanceUID),
        kind,
        "",
        (REFUSED,),
        exam.person.patient_id,
        exam.accession,
        exam.label,
        vendor=exam.vendor.name,
    )


def _label(
    at: _Place, exam: Exam, faults: Faults, labels: list[tuple[str, str]], generator: np.random.Generator
) -> list[Truth]:
    """Add the exam to the table of labels, write a report of it, both or neither."""
    unlabelled, reported, only_reported = generator.uniform(size=3) < (
        faults.unlabelled,
        faults.reports,
        faults.only_reported,
    )
    if unlabelled:
        return []
    if not (reported and only_reported):
        labels.append((exam.accession, exam.label))
        if len(labels) <= faults.contradictions:
            labels.append((exam.accession, "malignant" if exam.label != "malignant" else "benign"))
    if not reported:
        return []
    return [_write_other(at, exam, report(exam, uid_of(f"{exam.key}/report")), "report", 1)]


def _save(path: Path, dataset: Dataset) -> None:
    dataset.save_as(path, enforce_file_format=True)


def _relative(at: _Place, path: Path) -> str:
    return path.relative_to(at.export).as_posix()


def _identifying(exam: Exam) -> set[str]:
    person: Person = exam.person
    names = [*person.name.replace("=", "^").split("^"), person.family_shown, person.given_shown]
    names += [*exam.physician.split("^"), *exam.operator.split("^")]
    texts = {*exam.hospital, person.patient_id, exam.accession, str(exam.study), f"{person.birth:%Y%m%d}"}
    # Names of two or three letters are found by chance in any bytes.
    return texts | {name for name in names if len(name.encode()) > 3}
