"""Reading DICOM files within bounds, and telling ultrasound from the rest."""

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset, Sequence
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from echofed.client.ingest.dataset import MOST_FILE_BYTES, check_ultrasound, read_dataset
from echofed.client.ingest.decoding import decode_frames
from echofed.client.ingest.elements import MOST_ELEMENTS
from echofed.client.ingest.file_part import FilePart
from echofed.client.ingest.outcomes import SetAsideError, Why
from tests.client.ingest.ultrasound_files import installed_files, make_dataset, save

PIXELS = np.arange(1200, dtype=np.uint8).reshape(30, 40)


def _why(path: Path) -> Why:
    with pytest.raises(SetAsideError) as caught:
        read_dataset(path)
    return caught.value.why


def _file(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "a.dcm"
    path.write_bytes(data)
    return path


def _saved(dataset: Dataset) -> bytes:
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _start_of_dataset(data: bytes) -> int:
    length: int = struct.unpack("<I", data[140:144])[0]
    return 144 + length


def _nested(depth: int) -> Dataset:
    dataset = make_dataset(PIXELS)
    inner = dataset
    for _ in range(depth):
        item = Dataset()
        item.PatientID = "p1"
        inner.ReferencedSeriesSequence = Sequence([item])
        inner = item
    return dataset


def test_elements_are_those_that_pydicom_reads() -> None:
    for path in installed_files():
        ours, theirs = read_dataset(path), pydicom.dcmread(path)
        assert ours.file_meta == theirs.file_meta
        for element in theirs:
            if element.keyword != "PixelData" and element.tag < 0x7FE00010:
                assert ours[element.tag] == element, (path.name, element.tag)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_encoding_is_read(syntax: Any, tmp_path: Path) -> None:
    dataset = make_dataset(PIXELS, syntax, PatientName="Müller^Ä", SpecificCharacterSet="ISO_IR 192")
    dataset.SequenceOfUltrasoundRegions = [Dataset(), Dataset()]
    read = read_dataset(save(dataset, tmp_path / "a.dcm"))
    assert (str(read.PatientName), len(read.SequenceOfUltrasoundRegions)) == ("Müller^Ä", 2)
    assert np.array_equal(next(decode_frames(read)), PIXELS)


def test_files_without_preamble_and_without_meta_are_read(tmp_path: Path) -> None:
    data = _saved(make_dataset(PIXELS))
    for start in (132, _start_of_dataset(data)):
        read = read_dataset(_file(tmp_path, data[start:]))
        assert read.PatientID == "p1"
        assert np.array_equal(next(decode_frames(read)), PIXELS)


def test_what_pydicom_logs_about_values_goes_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = _saved(make_dataset(PIXELS, SeriesNumber=77))
    assert read_dataset(_file(tmp_path, data.replace(b"IS\2\x0077", b"IS\2\x00x?"))).SeriesNumber == "x?"
    assert caplog.text == ""


def test_pixels_stay_in_the_file(tmp_path: Path) -> None:
    part = read_dataset(save(make_dataset(PIXELS), tmp_path / "a.dcm")).PixelData
    assert isinstance(part, FilePart)
    assert part.seek(0, os.SEEK_END) == part.size == 1200
    assert (part.seek(-3, os.SEEK_END), part.read(10)) == (1197, PIXELS.tobytes()[-3:])
    assert (part.seek(5), part.read(2), part.tell()) == (5, PIXELS.tobytes()[5:7], 7)
    assert part.readable()
    assert part.seekable()
    assert (part.seek(0), part.read()) == (0, PIXELS.tobytes())


def test_an_element_that_does_not_fit_keeps_its_bytes(tmp_path: Path) -> None:
    data = _saved(make_dataset(PIXELS))
    start = _start_of_dataset(data)
    read = read_dataset(_file(tmp_path, data[:start] + b"\x20\0\x11\0FL\3\0abc" + data[start:]))
    assert (read["SeriesNumber"].VR, read["SeriesNumber"].value) == ("OB", b"abc")
    assert read.PatientID == "p1"


@pytest.mark.parametrize("data", [b"", b"DICM", b"\x89PNG\r\n\x1a\n" + bytes(200), bytes(500), b"%PDF-1.7" * 50])
def test_what_is_no_dicom_file_is_told(data: bytes, tmp_path: Path) -> None:
    assert _why(_file(tmp_path, data)) == Why.NOT_DICOM


def test_truncated_files_are_damaged(tmp_path: Path) -> None:
    data = _saved(make_dataset(PIXELS))
    for end in (140, 200, _start_of_dataset(data) + 5, len(data) - 1200, len(data) - 1):
        assert _why(_file(tmp_path, data[:end])) == Why.DAMAGED
    assert read_dataset(_file(tmp_path, data + b"\0" * 64)).PatientID == "p1"


@pytest.mark.parametrize("tag", [b"\x10\0\x20\0LO", b"\x28\0\x10\0US", b"\xe0\x7f\x10\0OB"])
def test_absurd_lengths_are_refused_before_anything_is_allocated(tag: bytes, tmp_path: Path) -> None:
    data = _saved(make_dataset(PIXELS))
    at = data.index(tag) + 6
    absurd = b"\xff\xff" if tag[4:] != b"OB" else b"\0\0\xff\xff\xff\x7f"
    assert _why(_file(tmp_path, data[:at] + absurd + data[at + len(absurd) :])) == Why.DAMAGED


def test_nesting_is_bounded(tmp_path: Path) -> None:
    assert read_dataset(save(_nested(16), tmp_path / "a.dcm")).PatientID == "p1"
    assert _why(save(_nested(17), tmp_path / "a.dcm")) == Why.TOO_DEEP
    assert _why(save(_nested(60), tmp_path / "a.dcm")) == Why.TOO_DEEP


@pytest.mark.parametrize("kind", [b"SQ\0\0", b"UN\0\0"])
def test_nesting_of_undefined_length_is_bounded(kind: bytes, tmp_path: Path) -> None:
    data = _saved(make_dataset(PIXELS))
    start = _start_of_dataset(data)
    undefined = b"\xff\xff\xff\xff"
    head = b"\x08\0\x15\x11" + (kind if kind[:2] == b"SQ" else b"") + undefined + b"\xfe\xff\0\xe0" + undefined
    first = b"\x08\0\x15\x11" + kind + undefined + b"\xfe\xff\0\xe0" + undefined
    assert _why(_file(tmp_path, data[:start] + first + head * 5000)) == Why.TOO_DEEP


def test_elements_are_counted(tmp_path: Path) -> None:
    data = _saved(make_dataset(PIXELS))
    start = _start_of_dataset(data)
    crowd = b"\x08\0\x01\0LO\0\0" * (MOST_ELEMENTS + 1)
    assert _why(_file(tmp_path, data[:start] + crowd + data[start:])) == Why.TOO_LARGE


def test_a_huge_file_or_header_is_not_read(tmp_path: Path) -> None:
    path = _file(tmp_path, _saved(make_dataset(PIXELS)))
    with path.open("r+b") as stream:
        stream.truncate(MOST_FILE_BYTES + 1)  # sparse
    assert _why(path) == Why.TOO_LARGE
    data = _saved(make_dataset(PIXELS))
    start = _start_of_dataset(data)
    with _file(tmp_path, data[:start] + b"\x08\0\1\0OB\0\0" + struct.pack("<I", 2**31)).open("r+b") as stream:
        stream.truncate(2**31 + 2**20)
    assert _why(path) == Why.TOO_LARGE


def test_deflate_bombs_are_not_inflated(tmp_path: Path) -> None:
    data = _saved(make_dataset(PIXELS, DeflatedExplicitVRLittleEndian))
    start = _start_of_dataset(data)
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(130)) + packer.flush()
    assert _why(_file(tmp_path, data[:start] + bomb)) == Why.TOO_LARGE
    assert _why(_file(tmp_path, data[: start + 100])) == Why.DAMAGED
    assert _why(_file(tmp_path, data[:start] + b"\xff" * 50)) == Why.DAMAGED


@pytest.mark.parametrize(
    ("elements", "why"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33"}, Why.REPORT),
        ({"Modality": "SR"}, Why.REPORT),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, Why.DOCUMENT),
        ({"Modality": "MR"}, Why.OTHER_MODALITY),
        ({"Modality": "", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, Why.OTHER_MODALITY),
        ({"PatientID": ""}, Why.NO_PATIENT),
        ({"PatientID": "  "}, Why.NO_PATIENT),
        ({"PatientID": None}, Why.NO_PATIENT),
        ({"SOPInstanceUID": ""}, Why.NO_INSTANCE),
    ],
)
def test_what_is_no_ultrasound_image_of_a_patient_is_told(elements: dict[str, Any], why: Why) -> None:
    with pytest.raises(SetAsideError) as caught:
        check_ultrasound(make_dataset(PIXELS, **elements))
    assert caught.value.why == why


def test_ultrasound_is_known_by_modality_or_class() -> None:
    check_ultrasound(make_dataset(PIXELS))
    check_ultrasound(make_dataset(PIXELS, Modality=""))
    check_ultrasound(make_dataset(PIXELS, SOPClassUID="1.2.840.10008.5.1.4.1.1.7"))
    without = make_dataset(PIXELS)
    del without.PixelData
    with pytest.raises(SetAsideError) as caught:
        check_ultrasound(without)
    assert caught.value.why == Why.NO_PIXELS


def test_reports_and_other_modalities_of_pydicom_are_refused() -> None:
    for name, why in (("reportsi.dcm", Why.REPORT), ("CT_small.dcm", Why.OTHER_MODALITY)):
        dataset = read_dataset(Path(str(get_testdata_file(name, download=False))))
        with pytest.raises(SetAsideError) as caught:
            check_ultrasound(dataset)
        assert caught.value.why == why
