"""Real ultrasound files with instance ids of their own, as a PACS would hold them."""

import io
import warnings
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

# No ids, so that no PACS takes it.
_WITHOUT_IDS = "sonoque_anechoic-3mm-3mm.dcm"
PATIENTS = 3


def real_instances(shared_data: Path, count: int) -> dict[str, bytes]:
    """Return so many files by instance id, in all transfer syntaxes there are, of studies "2.25.1", "2.25.2" and so on."""
    paths = [path for path in sorted((shared_data / "dicom_us").glob("*.dcm")) if path.name != _WITHOUT_IDS]
    return dict(_renamed(paths[number % len(paths)], number) for number in range(count))


def small_instance(
    uid: str, *, patient: str = "P1", syntax: str = pydicom.uid.ExplicitVRLittleEndian, **values: str
) -> bytes:
    """Return a file that holds next to nothing."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.6.1", uid
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "2.25.1", "2.25.1.1"
    dataset.PatientID, dataset.Modality, dataset.StudyDate = patient, "US", "20240131"
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return _written(dataset, syntax)


def _renamed(path: Path, number: int) -> tuple[str, bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path)
        patient = number % PATIENTS + 1
        uid = f"2.25.{1_000 + number}"
        dataset.SOPInstanceUID = uid
        dataset.PatientID, dataset.StudyInstanceUID = f"P{patient}", f"2.25.{patient}"
        dataset.SeriesInstanceUID = f"2.25.{patient}.1"
        dataset.StudyDate, dataset.AccessionNumber = f"202401{patient:02}", f"A{patient}"
        dataset.StationName, dataset.SpecificCharacterSet = f"ROOM{patient}", "ISO_IR 100"
        return uid, _written(dataset, dataset.file_meta.TransferSyntaxUID)


def _written(dataset: Dataset, syntax: str) -> bytes:
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


def body_of(content: bytes) -> bytes:
    """Return a DICOM file behind its file meta group, which everyone writes anew."""
    length = int.from_bytes(content[140:144], "little")
    return content[144 + length :]
