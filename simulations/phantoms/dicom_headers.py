"""Headers in DICOM: ultrasound images, structured reports, documents and CT of invented patients."""

import unicodedata
from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal

import numpy as np
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    CTImageStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

from echofed.client.ingest.geometry import Box
from echofed.simulations.phantoms.people import Person
from echofed.simulations.phantoms.vendors import Vendor

RegionTag = Literal["right", "missing", "one beyond", "beyond", "over the banner"]
PRIVATE_GROUP = 0x0019


@dataclass(frozen=True)
class Exam:
    """One exam's part of a header; `key` makes its identifiers, the same for the same key."""

    key: str
    person: Person
    label: str
    accession: str
    moment: datetime
    hospital: tuple[str, str]
    physician: str
    operator: str
    vendor: Vendor
    probe: str

    @property
    def study(self) -> UID:
        """StudyInstanceUID."""
        return uid_of(self.key)


def uid_of(key: str) -> UID:
    """Return the identifier that belongs to a text."""
    return generate_uid(entropy_srcs=[key])


def image_header(exam: Exam, instance: UID, number: int, frames: int, frames_per_second: float) -> Dataset:
    """Return the header of a still (one frame) or a clip, without pixels and regions."""
    sop_class = UltrasoundImageStorage if frames == 1 else UltrasoundMultiFrameImageStorage
    header = _header(exam, sop_class, instance, number, "US", series=1)
    header.ImageType = ["ORIGINAL", "PRIMARY", "BREAST", "0001"]
    header.Manufacturer = f"{exam.vendor.name.capitalize()} Medical Systems"
    header.ManufacturerModelName = f"{exam.vendor.name.capitalize()} {len(exam.vendor.name) * 100}"
    header.DeviceSerialNumber = f"{sum(map(ord, exam.vendor.name)) * 7919}"
    header.SoftwareVersions = "4.1.2"
    header.StationName = f"US-{exam.vendor.name[:3].upper()}-1"
    header.TransducerData = [exam.probe.upper(), "", ""]
    header.TransducerType = "CURVED LINEAR" if exam.probe == "convex" else "LINEAR"
    header.BodyPartExamined = "BREAST"
    header.PatientOrientation = ""
    header.MechanicalIndex, header.SoftTissueThermalIndex = "1.1", "0.3"
    if frames > 1:
        header.FrameTime = f"{1000 / frames_per_second:.3f}"
        header.FrameIncrementPointer = 0x00181063
        header.CineRate = header.RecommendedDisplayFrameRate = round(frames_per_second)
        header.EffectiveDuration = f"{frames / frames_per_second:.3f}"
    block = header.private_block(PRIVATE_GROUP, f"{exam.vendor.name.upper()} US 01", create=True)
    block.add_new(
        0x01, "LO", f"{exam.person.family_shown}_{exam.person.patient_id}".encode("ascii", "replace").decode()
    )
    block.add_new(0x02, "DS", "66.0")
    block.add_new(0x03, "UN", f"{exam.operator};{exam.moment:%Y%m%d%H%M}".encode())
    return header


def put_regions(
    dataset: Dataset, tag: RegionTag, tissue: Box, graphics: Box, spacing_mm: float, shape: tuple[int, int]
) -> None:
    """Describe where the tissue lies, and the grey bar, truly or as wrongly as asked for.

    Args:
        dataset: gets the sequence, unless it is to be missing.
        tag: "one beyond" counts the last column and row as if from 1, "beyond" is that of a screen a quarter larger,
            "over the banner" starts at the top left corner of the screen.
        tissue, graphics: the boxes.
        spacing_mm: of the tissue's pixels.
        shape: of the frame, rows and columns.
    """
    if tag == "missing":
        return
    left, top, right, bottom = tissue.left, tissue.top, tissue.right - 1, tissue.bottom - 1
    if tag == "one beyond":
        right, bottom = right + 1, bottom + 1
    elif tag == "beyond":
        right, bottom = shape[1] + shape[1] // 4, bottom + shape[0] // 4
    elif tag == "over the banner":
        left, top = 0, 0
    region, bar = Dataset(), Dataset()
    for item, box, spatial_format, data_type, units in (
        (region, (left, top, right, bottom), 1, 1, 3),
        (bar, (graphics.left, graphics.top, graphics.right - 1, graphics.bottom - 1), 0, 13, 0),
    ):
        item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = spatial_format, data_type, 2 if units else 0
        item.RegionLocationMinX0, item.RegionLocationMinY0, item.RegionLocationMaxX1, item.RegionLocationMaxY1 = box
        item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = units
        item.PhysicalDeltaX = item.PhysicalDeltaY = spacing_mm / 10 if units else 0.0
    region.ReferencePixelX0, region.ReferencePixelY0 = (tissue.right - tissue.left) // 2, 0
    region.ReferencePixelPhysicalValueX = region.ReferencePixelPhysicalValueY = 0.0
    dataset.SequenceOfUltrasoundRegions = [region, bar]


def report(exam: Exam, instance: UID) -> Dataset:
    """Return a Basic Text SR with findings and, as its impression, the label."""
    header = _header(exam, BasicTextSRStorage, instance, 1, "SR", series=2)
    header.CompletionFlag, header.VerificationFlag = "COMPLETE", "UNVERIFIED"
    header.ReferencedPerformedProcedureStepSequence = []
    header.PerformedProcedureCodeSequence = []
    header.ValueType, header.ContinuityOfContent = "CONTAINER", "SEPARATE"
    header.ConceptNameCodeSequence = [_code("18748-4", "LN", "Diagnostic imaging report")]
    family = exam.person.family_shown.encode("ascii", "ignore").decode()
    header.ContentSequence = [
        _text_item("121070", "Findings", f"Mrs {family}, seen on {exam.moment:%d.%m.%Y} by {exam.physician}."),
        _text_item("121073", "Impression", exam.label),
    ]
    return header


def document(exam: Exam, instance: UID) -> Dataset:
    """Return a PDF in DICOM, a letter that names the patient."""
    header = _header(exam, EncapsulatedPDFStorage, instance, 1, "DOC", series=3)
    header.ConversionType, header.BurnedInAnnotation = "WSD", "YES"
    header.DocumentTitle, header.MIMETypeOfEncapsulatedDocument = "Letter", "application/pdf"
    header.ConceptNameCodeSequence = []
    family = exam.person.family_shown.encode("ascii", "ignore")
    stream = b"BT /F1 12 Tf 72 720 Td (Re: " + family + b" " + exam.person.patient_id.encode() + b") Tj ET"
    content = (
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
        b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R>>endobj\n4 0 obj<</Length "
        + str(len(stream)).encode()
        + b">>stream\n"
        + stream
        + b"\nendstream endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
    )
    header.EncapsulatedDocument = content + b"\0" * (len(content) % 2)
    header.EncapsulatedDocumentLength = len(content)
    return header


def ct_image(exam: Exam, instance: UID, generator: np.random.Generator) -> Dataset:
    """Return a CT slice of a round body, another modality than ultrasound."""
    header = _header(exam, CTImageStorage, instance, 1, "CT", series=4)
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.Rows = header.Columns = 64
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    header.RescaleIntercept, header.RescaleSlope, header.KVP = "-1024", "1", "120"
    across = np.linspace(-1, 1, 64)
    body = np.hypot(across[:, None], 1.3 * across) < 0.8
    header.PixelData = (body * generator.integers(980, 1120, (64, 64))).astype("<u2").tobytes()
    header["PixelData"].VR = "OW"
    return header


def _header(exam: Exam, sop_class: UID, instance: UID, number: int, modality: str, series: int) -> Dataset:
    header, person, moment = Dataset(), exam.person, exam.moment
    header.file_meta = _file_meta(sop_class, instance, exam)
    header.SpecificCharacterSet = (
        list(person.character_set) if len(person.character_set) > 1 else person.character_set[0]
    )
    header.SOPClassUID, header.SOPInstanceUID = sop_class, instance
    header.StudyInstanceUID, header.SeriesInstanceUID = exam.study, uid_of(f"{exam.key}/{series}")
    header.Modality, header.SeriesNumber, header.InstanceNumber = modality, series, number
    header.StudyDate = header.SeriesDate = header.ContentDate = header.AcquisitionDate = f"{moment:%Y%m%d}"
    header.StudyTime = header.SeriesTime = f"{moment:%H%M%S}"
    header.ContentTime = header.AcquisitionTime = f"{moment:%H%M%S}.{number:03d}"
    header.AccessionNumber = exam.accession
    header.StudyID = exam.accession[-6:]
    header.StudyDescription = "US BREAST"
    header.PatientName, header.PatientID = person.name, person.patient_id
    header.PatientBirthDate, header.PatientSex = f"{person.birth:%Y%m%d}", "F"
    header.PatientAge = f"{age_years(person.birth, moment.date()):03d}Y"
    header.ReferringPhysicianName = exam.physician
    header.OperatorsName = exam.operator
    header.InstitutionName, header.InstitutionAddress = (
        _written_in(person.character_set[0], text) for text in exam.hospital
    )
    return header


def _file_meta(sop_class: UID, instance: UID, exam: Exam) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = uid_of("echofed phantoms")
    meta.ImplementationVersionName = "PHANTOMS_1"
    meta.SourceApplicationEntityTitle = f"{exam.vendor.name[:8].upper()}_US1"
    return meta


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _text_item(code: str, meaning: str, text: str) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "TEXT"
    item.ConceptNameCodeSequence = [_code(code, "DCM", meaning)]
    item.TextValue = text
    return item


def age_years(birth: date, day: date) -> int:
    """Return how many birthdays lie between."""
    return day.year - birth.year - ((day.month, day.day) < (birth.month, birth.day))


def _written_in(character_set: str, text: str) -> str:
    """Return the text in a character set: as it is in Latin 1 and UTF-8, without accents in all others."""
    if character_set in ("ISO_IR 100", "ISO_IR 192"):
        return text
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
