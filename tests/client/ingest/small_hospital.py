"""A small export and the settings it is ingested with, for tests of whole ingests."""

import struct
from pathlib import Path
from typing import Any, get_args

import pydicom

from echofed.client.ingest.journal import Entry, open_journal
from echofed.client.ingest.labels import LabelSettings, LabelTable
from echofed.client.ingest.outcomes import Verdict
from echofed.client.ingest.settings import FrameRule, IngestSettings
from echofed.client.ingest.sources.arrivals import read_values
from echofed.simulations.phantoms import PhantomSite
from echofed.simulations.phantoms.dicom_files import DicomSite, write_dicom_site
from echofed.simulations.phantoms.dicom_truth import Faults
from echofed.simulations.phantoms.lesions import Label

SITE = PhantomSite("north", "borealis", 3, (2, 3), {"benign": 0.5, "malignant": 0.5}, "linear")
FAULTS = Faults(words=0.3, documents=1, not_dicom=1)


def small_hospital(folder: Path, seed: int = 5) -> DicomSite:
    """Write an export of three patients, with some writing on the tissue and some strays."""
    return write_dicom_site(folder, SITE, seed, FAULTS)


def label_table(file: Path) -> LabelTable:
    """Return the table of an export's labels."""
    return LabelTable(file=file, accession="accession_number", labels={label: label for label in get_args(Label)})


def quick_settings(hospital: DicomSite, **changes: Any) -> IngestSettings:
    """Return settings for phantoms: no text recognition, labels from the table."""
    settings = IngestSettings(
        text_check="strokes",
        frames=FrameRule(rule="every", step=3, most=4),
        labels=LabelSettings(tables=(label_table(hospital.labels),)),
        workers=2,
        seconds_per_instance=120,
    )
    return IngestSettings.model_validate({**settings.model_dump(), **changes})


def clean_files(hospital: DicomSite) -> list[Path]:
    """Return the files that are accepted, in order."""
    return [hospital.export / row.file for row in hospital.rows if row.verdicts == (Verdict.ACCEPTED,)]


def changed_copy(path: Path, copy: Path, **values: Any) -> Path:
    """Write a DICOM file with some elements changed."""
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    if "SOPInstanceUID" in values:
        dataset.file_meta.MediaStorageSOPInstanceUID = values["SOPInstanceUID"]
    copy.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(copy)
    return copy


def entries(folder: Path) -> list[Entry]:
    """Return what the journal of an ingest's folder holds."""
    with open_journal(folder) as journal:
        return list(journal.entries())


def hidden_header(path: Path) -> Path:
    """Put a private element into a file that sources cannot step over to the patient's name: its length is not told."""
    content = path.read_bytes()
    at = content.index(b"\x10\x00\x10\x00PN")
    creator = struct.pack("<HH2sH6s", 9, 0x10, b"LO", 6, b"ACME 1")
    unknown = struct.pack("<HH4sI", 9, 0x1010, b"UN\0\0", 0xFFFFFFFF)
    items = struct.pack("<HHIHHI", 0xFFFE, 0xE000, 0, 0xFFFE, 0xE0DD, 0)
    path.write_bytes(content[:at] + creator + unknown + items + content[at:])
    assert read_values(path) is None
    return path
