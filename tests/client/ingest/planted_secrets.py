"""DICOM files in which every place that can hold a text holds a secret, each known by its bytes.

All is made up from a seed. A secret is found again by the bytes it has in the file and by its text in UTF-8, so that neither a
copied element nor a decoded and rewritten one is missed.
"""

import io
import re
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydicom import DataElement, Dataset, config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    UltrasoundImageStorage,
)

from tests.client.ingest.planter import BINARY, Planter, Secret


@dataclass(frozen=True)
class PlantedFile:
    """A DICOM file and all that must not come out of it.

    Args:
        name: what it is, as a file name.
        content: its bytes.
        secrets: all of them are in `content`.
        is_image: whether it is an ultrasound image, rather than a report or document.
    """

    name: str
    content: bytes
    secrets: tuple[Secret, ...]
    is_image: bool = True


STANDARD_ELEMENTS = """
    PatientName PatientBirthName PatientMotherBirthName OtherPatientNames ReferringPhysicianName PerformingPhysicianName
    OperatorsName NameOfPhysiciansReadingStudy RequestingPhysician ResponsiblePerson PhysiciansOfRecord ConsultingPhysicianName
    ReviewerName VerifyingObserverName PersonName
    PatientID IssuerOfPatientID OtherPatientIDs AccessionNumber StudyID AdmissionID ServiceEpisodeID InsurancePlanIdentification
    MedicalRecordLocator RequestedProcedureID PerformedProcedureStepID ScheduledProcedureStepID DeviceSerialNumber DetectorID
    FillerOrderNumberImagingServiceRequest PlacerOrderNumberImagingServiceRequest
    InstitutionName InstitutionAddress InstitutionalDepartmentName StationName PatientAddress PatientTelephoneNumbers
    ReferringPhysicianAddress ReferringPhysicianTelephoneNumbers CurrentPatientLocation PatientInstitutionResidence
    RegionOfResidence EthnicGroup Occupation PatientReligiousPreference MilitaryRank BranchOfService MedicalAlerts Allergies
    Manufacturer ManufacturerModelName SoftwareVersions TransducerData ProtocolName StudyDescription SeriesDescription
    AdmittingDiagnosesDescription RequestedProcedureDescription PerformedProcedureStepDescription ContrastBolusAgent
    RequestingService DerivationDescription AcquisitionDeviceProcessingDescription
    PatientComments AdditionalPatientHistory ImageComments VisitComments AcquisitionComments StudyComments
    RequestedProcedureComments IdentifyingComments TextComments InterpretationText LabelText TextValue
    AcquisitionProtocolDescription LongCodeValue URNCodeValue RetrieveURL PixelDataProviderURL
    StudyDate SeriesDate AcquisitionDate ContentDate PatientBirthDate LastMenstrualDate InstanceCreationDate
    DateOfSecondaryCapture DateOfLastCalibration AdmittingDate AcquisitionDateTime FrameAcquisitionDateTime
    ScheduledProcedureStepStartDateTime InstanceCoercionDateTime
    StudyTime SeriesTime AcquisitionTime ContentTime PatientBirthTime InstanceCreationTime
    InstanceNumber SeriesNumber AcquisitionNumber HeartRate PatientWeight FrameTime DepthOfScanField
    ImageType BodyPartExamined Laterality PatientSex PatientIdentityRemoved TransducerType BurnedInAnnotation ImageLaterality
    PatientAge RetrieveAETitle StationAETitle PerformedStationAETitle ScheduledStationAETitle
    StudyInstanceUID SeriesInstanceUID SOPInstanceUID FrameOfReferenceUID DeviceUID ConcatenationUID
    SynchronizationFrameOfReferenceUID InstanceCreatorUID
    AcquisitionDuration SpectralWidth RegionFlags PixelComponentOrganization EncryptedContent CertificateOfSigner MAC
""".split()  # noqa: SIM905 (as words it can be read)

NESTED_ELEMENTS = (
    "PatientName",
    "PatientID",
    "StudyDate",
    "CodeMeaning",
    "TextValue",
    "ReferencedSOPInstanceUID",
    "ImageType",
)
SEQUENCES = (
    "ReferencedStudySequence", "OtherPatientIDsSequence", "RequestAttributesSequence", "OriginalAttributesSequence",
    "SequenceOfUltrasoundRegions", "IconImageSequence",
)  # fmt: skip
PRIVATE_VRS = (
    "AE", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "OB", "OD", "OF", "OL", "OV", "OW", "PN", "SH", "SL", "SS", "ST",
    "SV", "TM", "UC", "UI", "UL", "UN", "UR", "US", "UT", "UV",
)  # fmt: skip
CHARACTER_SETS = (
    ("ISO_IR 100", "latin-1", "Müñøz^Joséphine"),
    ("ISO_IR 101", "iso8859_2", "Łękowská^Žofie"),
    ("ISO_IR 144", "iso8859_5", "Шевченко^Любовь"),
    ("ISO_IR 126", "iso8859_7", "Παπαδόπουλος^Ελένη"),
    ("ISO_IR 127", "iso8859_6", "قباني^لنزار"),
    ("ISO_IR 138", "iso8859_8", "שרוןבן^דבורהלי"),
    ("ISO_IR 148", "iso8859_9", "Çavuşoğlu^Gülşah"),
    ("ISO_IR 166", "tis_620", "นามสกุลไทย^สมหญิง"),
    ("ISO_IR 192", "utf-8", "Đặngvăn^Thịphương"),
    ("GB18030", "gb18030", "欧阳娜娜^小东西南"),
    ("GBK", "gbk", "司马相如^长卿文君"),
    ("\\ISO 2022 IR 87", "iso2022_jp", "山田花子^太郎次郎"),
    ("\\ISO 2022 IR 149", "euc_kr", "홍길동님^김희중박"),
)


def planted_files(seed: int = 5) -> tuple[PlantedFile, ...]:
    """Return files with over 200 secrets, the same for the same seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydicom, on values that break the standard, as they are meant to
        makers: tuple[Callable[[Planter], FileDataset], ...] = (
            _standard, _nested, _private, _groups_of_old, _file_meta, _implicit, _compressed, _report, _document,
        )  # fmt: skip
        files = [
            _finished(maker.__name__.strip("_"), Planter(seed + number), maker) for number, maker in enumerate(makers)
        ]
        for number, (name, codec, person) in enumerate(CHARACTER_SETS):
            planter = Planter(seed + 100 + number)
            files.append(
                _finished(f"character_set_{codec}", planter, partial(_in_script, name=name, codec=codec, person=person))
            )
    return tuple(files)


def left_in(content: bytes, secrets: Iterable[Secret]) -> list[Secret]:
    """Return the secrets whose bytes, or whose text in UTF-8 or ASCII of any case, are in a content."""
    lowered = content.lower()
    return [
        secret
        for secret in secrets
        if any(
            form.lower() in lowered
            for form in {secret.content, secret.text.encode(), secret.text.replace("^", " ").encode()}
        )
    ]


def _finished(name: str, planter: Planter, maker: Callable[[Planter], FileDataset]) -> PlantedFile:
    dataset = maker(planter)
    stream = io.BytesIO()
    config.settings.writing_validation_mode, before = config.IGNORE, config.settings.writing_validation_mode
    try:
        dataset.save_as(stream, enforce_file_format=False)
    finally:
        config.settings.writing_validation_mode = before
    content, secrets = stream.getvalue(), tuple(planter.secrets)
    missing = [secret.where for secret in secrets if secret.content not in content]
    if missing:
        raise AssertionError(f"not planted in {name}: {missing}")
    return PlantedFile(f"{name}.dcm", content, secrets, is_image=dataset.Modality == "US")


def _image(syntax: str = ExplicitVRLittleEndian) -> FileDataset:
    """A small ultrasound image without a secret."""
    dataset = FileDataset("", {}, preamble=bytes(128))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UltrasoundImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID("1.2.3.4.5")
    dataset.file_meta.ImplementationClassUID = UID("1.2.3.4")
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.4.6", "1.2.3.4.7"
    dataset.Modality, dataset.PatientID, dataset.PatientName = "US", "0", "Nobody"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = 16
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.add_new(0x7FE00010, "OB", bytes(range(256)))
    return dataset


def _put(dataset: Dataset, tag: int, vr: str, value: Any) -> None:
    """Set an element whatever the standard thinks of its value."""
    if vr in BINARY and vr not in ("OB", "OD", "OF", "OL", "OV", "OW", "UN"):
        width = {"AT": 4, "FD": 8, "FL": 4, "SL": 4, "SS": 2, "SV": 8, "UL": 4, "US": 2, "UV": 8}[vr]
        value = _as_numbers(vr, value, width)
    dataset[tag] = DataElement(tag, vr, value, validation_mode=config.IGNORE)


def _as_numbers(vr: str, content: bytes, width: int) -> list[Any]:
    code = {"FD": "d", "FL": "f", "SL": "i", "SS": "h", "SV": "q", "UL": "I", "US": "H", "UV": "Q", "AT": "I"}[vr]
    return list(struct.unpack(f"<{len(content) // width}{code}", content))


def _plant_all(planter: Planter, dataset: Dataset, keywords: Iterable[str], place: str) -> None:
    for keyword in keywords:
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        vr = dictionary_VR(tag)
        _put(dataset, tag, vr, planter.plant(f"{place}, {vr}" if place == "element" else place, keyword, vr))


def _standard(planter: Planter) -> FileDataset:
    dataset = _image()
    _plant_all(planter, dataset, STANDARD_ELEMENTS, "element")
    return dataset


def _nested(planter: Planter) -> FileDataset:
    dataset = _image()
    for sequence in SEQUENCES:
        item = Dataset()
        _plant_all(planter, item, NESTED_ELEMENTS, "nested element")
        setattr(dataset, sequence, [item])
    deepest = Dataset()
    _plant_all(planter, deepest, NESTED_ELEMENTS, "element nested eight deep")
    for _ in range(8):
        around = Dataset()
        around.ContentSequence = [deepest]
        deepest = around
    dataset.ContentSequence = [deepest]
    return dataset


def _private(planter: Planter) -> FileDataset:
    dataset = _image()
    for group in (0x0009, 0x0019, 0x7FE1):
        block = dataset.private_block(group, planter.plant("private creator", f"({group:04X},0010)", "LO"), create=True)
        for offset, vr in enumerate(PRIVATE_VRS if group == 0x0019 else ("LO", "PN", "UN", "OB")):
            tag = block.get_tag(offset + 1)
            _put(dataset, tag, vr, planter.plant("private element", f"{tag} {vr}", vr))
        item = Dataset()
        _plant_all(planter, item, NESTED_ELEMENTS[:4], "in a private sequence")
        dataset.add_new(block.get_tag(0xF0), "SQ", Sequence([item]))
    return dataset


def _groups_of_old(planter: Planter) -> FileDataset:
    """Overlays, curves, and what may follow the pixels."""
    dataset = _image()
    for group in (0x6000, 0x6002, 0x601E):
        for element, vr in ((0x0022, "LO"), (0x1500, "LO"), (0x4000, "LT")):
            _put(dataset, group << 16 | element, vr, planter.plant("overlay", f"({group:04X},{element:04X})", vr))
        _put(dataset, group << 16 | 0x3000, "OW", planter.plant("overlay bits", f"({group:04X},3000)", "OW"))
    for element, vr in ((0x0022, "LO"), (0x0030, "SH"), (0x2500, "LO"), (0x3000, "OW")):
        _put(dataset, 0x5000 << 16 | element, vr, planter.plant("curve", f"(5000,{element:04X})", vr))
    _put(dataset, 0x00204000, "LT", planter.plant("comment", "ImageComments", "LT"))
    _put(dataset, 0x40000010, "LT", planter.plant("comment", "Arbitrary", "LT"))
    _put(dataset, 0x40004000, "LT", planter.plant("comment", "TextComments", "LT"))
    _put(dataset, 0x04000110, "UI", planter.plant("digital signature", "MACCalculationTransferSyntaxUID", "UI"))
    _put(dataset, 0xFFFCFFFC, "OB", planter.plant("after the pixels", "DataSetTrailingPadding", "OB"))
    return dataset


def _file_meta(planter: Planter) -> FileDataset:
    dataset = _image()
    numbers = (0x0003, "UI"), (0x0012, "UI"), (0x0013, "SH"), (0x0016, "AE"), (0x0017, "AE"), (0x0018, "AE")
    for element, vr in (*numbers, (0x0100, "UI"), (0x0102, "OB")):
        _put(
            dataset.file_meta,
            0x00020000 | element,
            vr,
            planter.plant("file meta information", f"(0002,{element:04X})", vr),
        )
    preamble = planter.plant("preamble", "preamble", "OB") + b"\0" + planter.plant("preamble", "preamble", "UN")
    dataset.preamble = preamble.ljust(128, b"\0")
    return dataset


def _implicit(planter: Planter) -> FileDataset:
    """Without value representations, where private elements are read as unknown."""
    dataset = _image(ImplicitVRLittleEndian)
    _plant_all(
        planter,
        dataset,
        ("PatientName", "PatientID", "PatientBirthDate", "InstitutionName", "StudyDate"),
        "implicit VR",
    )
    block = dataset.private_block(0x0029, "SOMEBODY 1.0", create=True)
    for offset, vr in enumerate(("LO", "PN", "DA", "LT", "SH")):
        _put(
            dataset,
            block.get_tag(offset + 1),
            vr,
            planter.plant("private element, implicit VR", f"(0029,10{offset + 1:02})", vr),
        )
    return dataset


def _compressed(planter: Planter) -> FileDataset:
    """A JPEG with a comment and an application segment."""
    from PIL import Image

    dataset = _image(JPEGBaseline8Bit)
    stream = io.BytesIO()
    Image.new("L", (16, 16), 90).save(stream, "JPEG")
    segments = b""
    for marker in (b"\xff\xfe", b"\xff\xed"):
        text = planter.plant("JPEG comment", marker.hex(), "OB")
        segments += marker + (len(text) + 2).to_bytes(2) + text
    dataset.add_new(0x7FE00010, "OB", encapsulate([b"\xff\xd8" + segments + stream.getvalue()[2:]]))
    dataset[0x7FE00010].is_undefined_length = True
    return dataset


def _report(planter: Planter) -> FileDataset:
    dataset = _image()
    del dataset.PixelData
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ComprehensiveSRStorage
    dataset.Modality = "SR"
    _plant_all(
        planter, dataset, ("PatientName", "PatientID", "StudyDate", "VerifyingObserverName"), "structured report"
    )
    for keyword in ("TextValue", "PersonName", "Date", "DateTime", "UID"):
        inner, outer = Dataset(), Dataset()
        _plant_all(planter, inner, (keyword, "CodeMeaning"), "structured report")
        outer.ValueType, outer.ContentSequence = "CONTAINER", [inner]
        dataset.setdefault(0x0040A730, DataElement(0x0040A730, "SQ", [])).value.append(outer)
    return dataset


def _document(planter: Planter) -> FileDataset:
    dataset = _image()
    del dataset.PixelData
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EncapsulatedPDFStorage
    dataset.Modality = "DOC"
    _plant_all(planter, dataset, ("PatientName", "PatientID", "DocumentTitle"), "encapsulated document")
    lines = [planter.plant("encapsulated document", "EncapsulatedDocument", "OB") for _ in range(4)]
    pdf = (
        b"%PDF-1.4\n1 0 obj <</Title ("
        + lines[0]
        + b") /Author ("
        + lines[1]
        + b")>>\nBT ("
        + lines[2]
        + b") Tj ET\n%"
        + lines[3]
    )
    dataset.EncapsulatedDocument = pdf + b" " * (len(pdf) % 2)
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    return dataset


def _in_script(planter: Planter, name: str, codec: str, person: str) -> FileDataset:
    """Names in a character set; their bytes are planted as the set writes them."""
    dataset = _image()
    dataset.SpecificCharacterSet = name.split("\\")
    ideographic = name.startswith("\\")
    place = f"character set {name.strip(chr(92))}"
    value = f"Nobody^At={person}" if ideographic else person
    for keyword in ("PatientName", "OperatorsName"):
        setattr(dataset, keyword, value)
    dataset.PatientComments = f"x {person.split('^')[0]} x"
    item = Dataset()
    item.PersonName = value
    dataset.ContentSequence = [item]
    for number, part in enumerate(person.split("^")):
        planter.note(place, f"PatientName, part {number + 1}", part, _written(part, codec))
    return dataset


def _written(text: str, codec: str) -> bytes:
    """The bytes of a text without the escape sequences that switch between character sets."""
    return re.sub(rb"\x1b[$()][()]?[A-Z]", b"", text.encode(codec))


def places(files: Iterable[PlantedFile]) -> Iterator[str]:
    """Yield the place of every secret."""
    for file in files:
        for secret in file.secrets:
            yield secret.place
