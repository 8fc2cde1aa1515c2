"""The few values of a header that sources check, beside pydicom's reading of the same files."""

import random
import time
import warnings
import zlib
from pathlib import Path

import pydicom
import pytest

from echofed.client.ingest.sources.arrivals import TAGS, read_values
from tests.client.ingest.sources.samples import small_instance


def test_real_files_read_as_pydicom_reads_them(shared_data: Path) -> None:
    paths = sorted((shared_data / "dicom_us").glob("*.dcm"))
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
            expected = {keyword: dataset.get(keyword, "") or "" for keyword in TAGS}
        values = read_values(path)
        assert values is not None
        for keyword, value in expected.items():
            several = isinstance(value, pydicom.multival.MultiValue)
            assert values[keyword] == ("\\".join(value) if several else str(value)), (path.name, keyword)
    assert len(paths) == 11


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"])
def test_encodings(tmp_path: Path, syntax: str) -> None:
    path = tmp_path / "IM"
    path.write_bytes(small_instance("2.25.11", syntax=syntax))
    values = read_values(path)
    assert values is not None
    assert (values["SOPInstanceUID"], values["PatientID"], values["Modality"]) == ("2.25.11", "P1", "US")


def test_a_deflated_bomb_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "IM"
    content = small_instance("2.25.11", syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)
    head = content[: 144 + int.from_bytes(content[140:144], "little")]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(head + packer.compress(bytes(2**27)) + packer.flush())
    start = time.monotonic()
    read_values(path)
    assert time.monotonic() - start < 2


def test_damaged_headers_are_left_to_the_reader(tmp_path: Path) -> None:
    rng, content, path = random.Random(0), small_instance("2.25.11"), tmp_path / "IM"
    outcomes = set()
    for _ in range(500):
        damaged = bytearray(content[: rng.randrange(len(content))] if rng.random() < 0.3 else content)
        for _ in range(rng.randrange(1, 6)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        outcomes.add(read_values(path) is None)
    assert outcomes == {True, False}
