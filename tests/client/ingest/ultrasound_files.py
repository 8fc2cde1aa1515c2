"""Real ultrasound files, and small ones made for a test."""

import importlib.util
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

# Those of pydicom and pydicom-data that are ultrasound.
_IN_PYDICOM = (
    "ExplVR_BigEnd.dcm",
    "examples_jpeg2k.dcm",
    "examples_palette.dcm",
    "examples_rgb_color.dcm",
    "examples_ybr_color.dcm",
)
_IN_PYDICOM_DATA = (
    "JPGLosslessP14SV1_1s_1f_8b.dcm",
    "OBXXXX1A.dcm",
    "OBXXXX1A_2frame.dcm",
    "OBXXXX1A_expb.dcm",
    "OBXXXX1A_expb_2frame.dcm",
    "OBXXXX1A_rle.dcm",
    "OBXXXX1A_rle_2frame.dcm",
    "US1_J2KI.dcm",
    "US1_J2KR.dcm",
    "US1_UNCI.dcm",
    "US1_UNCR.dcm",
    "color-pl.dcm",
    "color-px.dcm",
    "color3d_jpeg_baseline.dcm",
    "gdcm-US-ALOKA-16.dcm",
    "gdcm-US-ALOKA-16_big.dcm",
)


def installed_files() -> list[Path]:
    """Return the 21 ultrasound files that come with pydicom and pydicom-data."""
    spec = importlib.util.find_spec("data_store")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pydicom-data is part of the extra development")
    inside = [Path(str(get_testdata_file(name, download=False))) for name in _IN_PYDICOM]
    return inside + [Path(spec.origin).parent / "data" / name for name in _IN_PYDICOM_DATA]


def shared_files(shared_data: Path) -> list[Path]:
    """Return the 11 real files beside the project."""
    return sorted((shared_data / "dicom_us").glob("*.dcm"))


def make_dataset(pixels: NDArray[Any], syntax: UID = ExplicitVRLittleEndian, **elements: object) -> Dataset:
    """Return an ultrasound image of [h, w], [h, w, 3], [n, h, w] or [n, h, w, 3]; keyword arguments replace elements."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.6.1")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID("1.2.3")
    dataset.StudyInstanceUID, dataset.Modality, dataset.PatientID = UID("1.2"), "US", "p1"
    samples = 3 if pixels.shape[-1] == 3 else 1
    shape = pixels.shape[:-1] if samples == 3 else pixels.shape
    dataset.Rows, dataset.Columns = shape[-2:]
    if len(shape) == 3:
        dataset.NumberOfFrames = shape[0]
    dataset.SamplesPerPixel, dataset.PixelRepresentation = samples, 0
    if samples == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OW" if pixels.itemsize == 2 else "OB"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    """Write a dataset as a DICOM file."""
    dataset.save_as(path, enforce_file_format=True)
    return path


def make_region(box: tuple[int, int, int, int], shape: int = 1, shown: int = 1, **elements: object) -> Dataset:
    """Return an item of SequenceOfUltrasoundRegions; `box` is X0, Y0, X1, Y1 as the file has them."""
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = shape, shown, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = box[:2]
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = box[2:]
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    for keyword, value in elements.items():
        setattr(region, keyword, value)
    return region
