"""De-identified copies: valid, complete, and without anything of the source but what is listed."""

import io
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, UltrasoundMultiFrameImageStorage

from echofed.client.ingest.header import Header, read_header
from echofed.client.ingest.kept_dicom import deidentified_copy
from echofed.client.ingest.outcomes import SetAsideError
from echofed.client.ingest.pseudonyms import Pseudonyms
from tests.client.ingest.planted_secrets import PlantedFile, left_in, planted_files

PSEUDONYMS = Pseudonyms(b"k" * 32)
FILES = planted_files()
FRAMES = np.arange(3 * 5 * 7, dtype=np.uint8).reshape(3, 5, 7)

TYPE_1 = {
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SamplesPerPixel",
    "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData",
}  # fmt: skip
TYPE_2 = {
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID",
    "AccessionNumber", "SeriesNumber", "Laterality", "Manufacturer", "InstanceNumber", "PatientOrientation", "ImageType",
}  # fmt: skip
"""Of the Ultrasound Image and Multi-frame Image (PS3.3, A.6 and A.7)."""
REMOVED = {
    "StudyDate", "StudyTime", "SeriesDate", "ContentDate", "AcquisitionDate", "AcquisitionDateTime",
    "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize", "PatientWeight", "ReferringPhysicianName",
    "OperatorsName", "InstitutionName", "InstitutionAddress", "StationName", "DeviceSerialNumber",
    "SoftwareVersions", "StudyID", "AccessionNumber", "StudyDescription", "SeriesDescription", "ImageComments",
    "PatientComments", "ProtocolName", "DerivationDescription", "InstanceCreationDate",
}  # fmt: skip
"""Of PS3.15 Table E.1-1: emptied or not there."""


def read(content: bytes) -> FileDataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dcmread(io.BytesIO(content), force=True)


def copy_of(file: PlantedFile, frames: NDArray[np.uint8] = FRAMES, **header: object) -> tuple[bytes, Header]:
    source = read(file.content)
    kept = replace(read_header(source, PSEUDONYMS, "band"), **header)
    return deidentified_copy(source, frames, kept, PSEUDONYMS, spacing_mm=(0.1, 0.2)), kept


def strict(content: bytes) -> FileDataset:
    """Read with every warning an error, and without leniency towards files that are no DICOM."""
    dataset = dcmread(io.BytesIO(content))
    for element in dataset.iterall():
        assert element.value is not ...
    return dataset


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_planted_secret_is_in_a_copy(file: PlantedFile) -> None:
    content, _ = copy_of(file)
    assert left_in(content, file.secrets) == []


@pytest.mark.parametrize("keyword", ["PatientComments", "PatientName", "InstitutionName"])
def test_a_secret_in_a_copy_would_be_seen(keyword: str) -> None:
    content, _ = copy_of(FILES[0])
    dataset = strict(content)
    secret = next(each for each in FILES[0].secrets if each.where == "PatientName")
    setattr(dataset, keyword, secret.text)
    stream = io.BytesIO()
    dataset.save_as(stream)
    assert secret in left_in(stream.getvalue(), FILES[0].secrets)


@pytest.mark.parametrize("count", [1, 3])
def test_a_copy_is_an_ultrasound_image_with_its_pixels(count: int) -> None:
    content, header = copy_of(FILES[0], FRAMES[:count])
    dataset = strict(content)
    assert dataset.SOPClassUID == (UltrasoundImageStorage if count == 1 else UltrasoundMultiFrameImageStorage)
    assert {keyword for keyword in TYPE_1 if dataset.get(keyword) in (None, "", b"")} == set()
    assert {keyword for keyword in TYPE_2 if keyword not in dataset} == set()
    assert np.array_equal(dataset.pixel_array.reshape(count, 5, 7), FRAMES[:count])
    assert len(dataset.PixelData) % 2 == 0
    assert (dataset.PatientID, str(dataset.PatientName).rstrip("^")) == (header.patient, header.patient)
    if count > 1:
        assert dataset.NumberOfFrames == count
        assert dataset.FrameIncrementPointer == 0x00181063
        assert "FrameTime" in dataset
    region = dataset.SequenceOfUltrasoundRegions[0]
    assert (region.RegionLocationMaxX1, region.RegionLocationMaxY1) == (6, 4)
    assert (region.PhysicalDeltaX, region.PhysicalDeltaY) == (0.02, 0.01)


def test_a_copy_says_how_it_was_made() -> None:
    dataset = strict(copy_of(FILES[0])[0])
    codes = [(code.CodeValue, code.CodingSchemeDesignator) for code in dataset.DeidentificationMethodCodeSequence]
    assert codes == [("113100", "DCM"), ("113101", "DCM")]
    assert (dataset.PatientIdentityRemoved, dataset.BurnedInAnnotation) == ("YES", "NO")
    assert dataset.LongitudinalTemporalInformationModified == "REMOVED"
    assert dataset.ImageType[0] == "DERIVED"
    assert len(dataset.DeidentificationMethod) <= 64


def test_a_copy_begins_with_nulls_and_a_file_meta_of_our_own() -> None:
    content, _ = copy_of(next(file for file in FILES if file.name == "file_meta.dcm"))
    assert content[:132] == bytes(128) + b"DICM"
    meta = strict(content).file_meta
    assert {element.keyword for element in meta} == {
        "FileMetaInformationGroupLength", "FileMetaInformationVersion", "MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID",
        "TransferSyntaxUID", "ImplementationClassUID", "ImplementationVersionName",
    }  # fmt: skip
    assert meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert meta.MediaStorageSOPInstanceUID == strict(content).SOPInstanceUID


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_is_in_a_copy_that_the_profile_removes(file: PlantedFile) -> None:
    dataset = strict(copy_of(file)[0])
    assert {keyword for keyword in REMOVED if dataset.get(keyword) not in (None, "")} == set()
    assert not any(element.tag.is_private or 0x5000 <= element.tag.group < 0x7000 for element in dataset.iterall())


def test_uids_are_new_and_keep_together_what_belongs_together() -> None:
    source = read(FILES[0].content)
    header = read_header(source, PSEUDONYMS, "band")
    one = strict(deidentified_copy(source, FRAMES, header, PSEUDONYMS))
    source.SOPInstanceUID = "1.2.3"
    other = strict(deidentified_copy(source, FRAMES, header, PSEUDONYMS))
    elsewhere = strict(deidentified_copy(source, FRAMES, header, Pseudonyms(b"x" * 32)))
    assert (one.StudyInstanceUID, one.SeriesInstanceUID) == (other.StudyInstanceUID, other.SeriesInstanceUID)
    assert one.SOPInstanceUID != other.SOPInstanceUID
    assert elsewhere.StudyInstanceUID != one.StudyInstanceUID
    uids = [element.value for element in one if element.VR == "UI" and element.keyword != "SOPClassUID"]
    assert all(re.fullmatch(r"2\.25\.\d{1,39}", uid) for uid in uids)


def test_a_series_without_uid_gets_one_of_its_exam() -> None:
    source = read(FILES[0].content)
    header = read_header(source, PSEUDONYMS, "band")
    del source.SeriesInstanceUID
    made = {strict(deidentified_copy(source, FRAMES, header, PSEUDONYMS)).SeriesInstanceUID for _ in range(2)}
    assert len(made) == 1


@pytest.mark.parametrize(
    ("given", "kept"), [("7", 7), ("999", 999), ("1000", None), ("482133771", None), ("-1", None), ("", None)]
)
def test_only_a_small_instance_number_is_kept(given: str, kept: int | None) -> None:
    source = Dataset()
    source.InstanceNumber = given
    source.StudyInstanceUID, source.SOPInstanceUID, source.PatientID = "1.2", "1.3", "A"
    header = read_header(source, PSEUDONYMS, "band")
    assert strict(deidentified_copy(source, FRAMES, header, PSEUDONYMS)).InstanceNumber == kept


@pytest.mark.parametrize(("announced", "time_ms"), [(3, 33.3), (30, 0)])
def test_frames_picked_from_a_clip_have_no_time_between_them(announced: int, time_ms: float) -> None:
    source = read(FILES[1].content)
    header = replace(read_header(source, PSEUDONYMS, "band"), frames=announced, frame_time_ms=33.3)
    assert strict(deidentified_copy(source, FRAMES, header, PSEUDONYMS)).FrameTime == time_ms


@pytest.mark.parametrize("lossy", [False, True])
def test_pixels_once_compressed_with_loss_stay_known_as_such(lossy: bool) -> None:
    assert strict(copy_of(FILES[0], lossy=lossy)[0]).LossyImageCompression == ("01" if lossy else "00")


@pytest.mark.parametrize("shape", [(0, 5, 7), (1, 0, 7), (1, 5, 0), (1, 70_000, 1)])
def test_frames_that_are_none_are_refused(shape: tuple[int, int, int]) -> None:
    source = read(FILES[0].content)
    header = read_header(source, PSEUDONYMS, "band")
    with pytest.raises(ValueError, match="frames are uint8"):
        deidentified_copy(source, np.zeros(shape, np.uint8), header, PSEUDONYMS)
    with pytest.raises(ValueError, match="frames are uint8"):
        deidentified_copy(source, FRAMES.astype(np.uint16), header, PSEUDONYMS)


def test_real_files_have_valid_copies(shared_data: Path) -> None:
    copied = 0
    for path in sorted((shared_data / "dicom_us").glob("*.dcm")):
        source = read(path.read_bytes())
        try:
            header = read_header(source, PSEUDONYMS, "band")
        except SetAsideError:
            continue
        dataset = strict(deidentified_copy(source, FRAMES, header, PSEUDONYMS))
        assert np.array_equal(dataset.pixel_array, FRAMES)
        copied += 1
    assert copied >= 9
