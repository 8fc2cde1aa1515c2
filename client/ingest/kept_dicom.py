"""De-identified DICOM copies for hospitals that want DICOM out: PS3.15 Annex E, Basic Profile with Clean Pixel Data Option.

A copy is not the source with things removed but a new object of what is listed here, so that an element nobody thought of is
not in it. Nothing that Table E.1-1 removes, empties or replaces comes from the source; what it leaves alone is still only
copied if it is a number or a word of a closed list. The options named are those that hold: no dates, no patient
characteristics, no identity of device or institution are retained. What stands for the patient's id is the pseudonym; new
UIDs are keyed, so that copies of one exam belong together and nobody without the site's key can tell which exam.
"""

import io
import math

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, UltrasoundImageStorage, UltrasoundMultiFrameImageStorage

from echofed.client.ingest.header import Header
from echofed.client.ingest.pseudonyms import Pseudonyms, clean_id

IMPLEMENTATION_UID = "2.25.112046925143770428512874360178241953867"
"""Of EchoFed; names the program, not the site."""
METHOD = "EchoFed: PS3.15 Annex E"
METHOD_CODES = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113101", "Clean Pixel Data Option"),
)
_MOST_INSTANCE_NUMBER = 999
"""More digits could be an id somebody put there."""
_EMPTY = (
    "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber",
    "SeriesNumber", "Laterality", "PatientOrientation",
)  # fmt: skip
"""Elements a reader of DICOM insists on (type 2), which say nothing."""
_CENTIMETRE = 3
_TISSUE_2D = 1


def deidentified_copy(
    dataset: Dataset,
    frames: NDArray[np.uint8],
    header: Header,
    pseudonyms: Pseudonyms,
    *,
    spacing_mm: tuple[float, float] | None = None,
) -> bytes:
    """Return a DICOM file, uncompressed grey, of cleaned frames: an Ultrasound Image, or Multi-frame Image if there are several.

    Of the source only the relation of its UIDs and a small instance number are taken. FrameTime is that of the source
    if all its frames are there, else 0: frames picked from a clip have no common time between them.

    Args:
        dataset: the source; not changed.
        frames: cleaned, uint8 [count, height, width], 1 to 65535 on a side.
        header: as read from the source.
        pseudonyms: the site's.
        spacing_mm: between rows and between columns, of the tissue region; None if not known.
    """
    count, height, width = frames.shape
    if frames.dtype != np.uint8 or not count or not 0 < height < 2**16 or not 0 < width < 2**16:
        raise ValueError("frames are uint8 [count, height, width], none of them empty")
    copy = FileDataset("", {}, preamble=bytes(128))
    copy.SOPClassUID = UltrasoundImageStorage if count == 1 else UltrasoundMultiFrameImageStorage
    for keyword in _EMPTY:
        setattr(copy, keyword, None)
    _add_identity(copy, dataset, header, pseudonyms)
    _add_method(copy)
    _add_image(copy, frames, header)
    if spacing_mm is not None and all(math.isfinite(value) and value > 0 for value in spacing_mm):
        copy.SequenceOfUltrasoundRegions = [_region(height, width, spacing_mm)]
    copy.file_meta = _file_meta(copy)
    stream = io.BytesIO()
    copy.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _add_identity(copy: Dataset, source: Dataset, header: Header, pseudonyms: Pseudonyms) -> None:
    uids = {
        keyword: clean_id(_text(source, keyword))
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    }
    # A series without UID gets one from its exam: the copy must have one, and instances of an exam belong together.
    uids["SeriesInstanceUID"] = uids["SeriesInstanceUID"] or f"series of {uids['StudyInstanceUID']}"
    for keyword, uid in uids.items():
        setattr(copy, keyword, pseudonyms.uid(uid))
    copy.PatientID = header.patient
    copy.PatientName = f"{header.patient}^"
    copy.Modality = "US"
    copy.Manufacturer = header.vendor
    if header.model:
        copy.ManufacturerModelName = header.model
    number = clean_id(_text(source, "InstanceNumber"))
    small = number.isascii() and number.isdigit() and int(number[:9]) <= _MOST_INSTANCE_NUMBER and len(number) <= 9
    copy.InstanceNumber = int(number) if small else None


def _add_method(copy: Dataset) -> None:
    copy.PatientIdentityRemoved = "YES"
    copy.DeidentificationMethod = METHOD
    copy.DeidentificationMethodCodeSequence = [_code(value, meaning) for value, meaning in METHOD_CODES]
    copy.LongitudinalTemporalInformationModified = "REMOVED"
    copy.BurnedInAnnotation = "NO"


def _add_image(copy: Dataset, frames: NDArray[np.uint8], header: Header) -> None:
    count, height, width = frames.shape
    copy.ImageType = ["DERIVED", "PRIMARY"]
    copy.LossyImageCompression = "01" if header.lossy else "00"
    if header.transducer:
        copy.TransducerData = header.transducer
    if header.transducer_type:
        copy.TransducerType = header.transducer_type
    copy.SamplesPerPixel = 1
    copy.PhotometricInterpretation = "MONOCHROME2"
    copy.Rows, copy.Columns = height, width
    copy.BitsAllocated = copy.BitsStored = 8
    copy.HighBit, copy.PixelRepresentation = 7, 0
    if count > 1:
        copy.NumberOfFrames = count
        copy.FrameIncrementPointer = 0x00181063  # FrameTime
        copy.FrameTime = header.frame_time_ms if header.frame_time_ms and count == header.frames else 0
    content = np.ascontiguousarray(frames).tobytes()
    copy.add_new(0x7FE00010, "OW", content + bytes(len(content) % 2))


def _region(height: int, width: int, spacing_mm: tuple[float, float]) -> Dataset:
    """The whole frame as one region of tissue with its scale."""
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = _TISSUE_2D, 1, 0
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = width - 1, height - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = _CENTIMETRE
    rows, columns = (float(f"{value / 10:.4g}") for value in spacing_mm)
    region.PhysicalDeltaX, region.PhysicalDeltaY = columns, rows
    return region


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def _file_meta(copy: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = copy.SOPClassUID
    meta.MediaStorageSOPInstanceUID = copy.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = "ECHOFED"
    return meta


def _text(dataset: Dataset, keyword: str) -> str:
    try:
        return str(dataset.get(keyword, "") or "")
    except Exception:  # pydicom raises anything on damaged bytes
        return ""
