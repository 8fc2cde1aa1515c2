"""Reading a DICOM file within bounds, and telling ultrasound images from the rest."""

import io
import logging
import struct
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO

from pydicom import DataElement, Dataset, Sequence
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset as parse_elements
from pydicom.multival import MultiValue
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from echofed.client.ingest.elements import (
    DEEPEST_NESTING,
    MOST_HEADER_BYTES,
    PIXEL_DATA,
    UNDEFINED,
    Element,
    Encoding,
    Walk,
    is_vr,
)
from echofed.client.ingest.file_part import FilePart
from echofed.client.ingest.outcomes import SetAsideError, Why

MOST_FILE_BYTES = 4 * 2**30
MOST_INFLATED_BYTES = 128 * 2**20

_REPORTS = "1.2.840.10008.5.1.4.1.1.88."
_DOCUMENTS = "1.2.840.10008.5.1.4.1.1.104."
_ULTRASOUND = frozenset(f"1.2.840.10008.5.1.4.1.1.{last}" for last in ("3", "3.1", "6", "6.1", "6.2"))
_META = Encoding(implicit=False, little=True)
_INFLATED_AT_ONCE = 2**20

# What pydicom logs quotes values, and a value may name a patient.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def read_dataset(path: Path) -> Dataset:
    """Read a DICOM file.

    Every element has been converted, so that none fails later: one whose bytes do not fit its value representation is
    kept as OB with those bytes. `PixelData` stays in the file and is read from there as a `FilePart` (a buffered value
    to pydicom), so the file must outlive the dataset; of a deflated file it is bytes. What follows the pixel data is not
    read. Files without preamble or file meta are read too.

    Args:
        path: a file of at most 4 GiB; at most 64 MiB of it, 50,000 elements and 16 levels before the pixel data.

    Raises:
        SetAsideError: NOT_DICOM, DAMAGED, TOO_LARGE or TOO_DEEP.
    """
    size = path.stat().st_size
    if size > MOST_FILE_BYTES:
        raise SetAsideError(Why.TOO_LARGE)
    with path.open("rb") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _read(path, stream, size)


def check_ultrasound(dataset: Dataset) -> None:
    """Check that this is an ultrasound image of a patient.

    Raises:
        SetAsideError: REPORT, DOCUMENT, OTHER_MODALITY, NO_PIXELS, NO_PATIENT or NO_INSTANCE.
    """
    sop_class, modality = text_of(dataset, "SOPClassUID"), text_of(dataset, "Modality").upper()
    if sop_class.startswith(_REPORTS) or modality in {"SR", "KO"}:
        raise SetAsideError(Why.REPORT)
    if sop_class.startswith(_DOCUMENTS) or modality == "DOC":
        raise SetAsideError(Why.DOCUMENT)
    if modality != "US" and not (modality == "" and sop_class in _ULTRASOUND):
        raise SetAsideError(Why.OTHER_MODALITY)
    if PIXEL_DATA not in dataset:
        raise SetAsideError(Why.NO_PIXELS)
    if not text_of(dataset, "PatientID"):
        raise SetAsideError(Why.NO_PATIENT)
    if not text_of(dataset, "SOPInstanceUID"):
        raise SetAsideError(Why.NO_INSTANCE)


def text_of(dataset: Dataset, keyword: str) -> str:
    """Return an element's text without blanks around it; "" if it is missing or no text."""
    value = dataset.get(keyword)
    return value.strip(" \0") if isinstance(value, str) else ""


def _read(path: Path, stream: BinaryIO, size: int) -> Dataset:
    start = _start(stream, size)
    meta, start = _read_meta(stream, size, start)
    syntax = UID(text_of(meta, "TransferSyntaxUID"))
    inflated: bytes | None = None
    if syntax == DeflatedExplicitVRLittleEndian:
        inflated = _inflate(stream, start)
        stream, size, start = io.BytesIO(inflated), len(inflated), 0
    encoding = _encoding(stream, start, syntax)
    pixels = Walk(stream, size).to_pixels(start, encoding)
    dataset = _parse(stream, start, pixels.start if pixels else size, encoding)
    dataset.file_meta = FileMetaDataset(meta)
    if pixels:
        length = size - pixels.at if pixels.length == UNDEFINED else pixels.length
        part = inflated[pixels.at : pixels.at + length] if inflated else FilePart(path, pixels.at, length)
        dataset[PIXEL_DATA] = _pixel_element(pixels, part)
    return dataset


def _pixel_element(pixels: Element, part: bytes | FilePart) -> DataElement:
    vr = "OB" if pixels.vr == b"OB" else "OW"
    return DataElement(PIXEL_DATA, vr, part, is_undefined_length=pixels.length == UNDEFINED)


def _start(stream: BinaryIO, size: int) -> int:
    """Return where the elements start: after preamble and prefix, or at once."""
    head = stream.read(132)
    if head[128:] == b"DICM":
        return 132
    if size < 8 or head[:4] == bytes(4):
        raise SetAsideError(Why.NOT_DICOM)
    group, number = struct.unpack("<HH", head[:4])
    swapped = struct.unpack(">HH", head[:4])
    if (group in (2, 8) and number < 0x100) or (swapped[0] == 8 and swapped[1] < 0x100):
        length = struct.unpack("<I", head[4:8])[0]
        if is_vr(head[4:6]) or length < min(size, 1024):
            return 0
    raise SetAsideError(Why.NOT_DICOM)


def _read_meta(stream: BinaryIO, size: int, start: int) -> tuple[Dataset, int]:
    """Return the file meta (group 2, always explicit little endian) and where the dataset starts."""
    walk, at = Walk(stream, size), start
    while at + 8 <= size and _group(stream, at) == 2:
        element = walk.element(at, size, _META)
        if element.length == UNDEFINED or element.at + element.length > MOST_HEADER_BYTES:
            raise SetAsideError(Why.DAMAGED)
        at = element.at + element.length
    return _parse(stream, start, at, _META), at


def _group(stream: BinaryIO, at: int) -> int:
    stream.seek(at)
    return int.from_bytes(stream.read(2), "little")


def _encoding(stream: BinaryIO, start: int, syntax: UID) -> Encoding:
    """Return how the dataset is written: byte order by its transfer syntax, VRs by its first element, as readers do."""
    stream.seek(start)
    head = stream.read(6)
    without_syntax_big = not syntax and head[:1] == b"\0" and head[1:2] != b"\0"
    return Encoding(implicit=not is_vr(head[4:6]), little=not (syntax == ExplicitVRBigEndian or without_syntax_big))


def _inflate(stream: BinaryIO, start: int) -> bytes:
    stream.seek(start)
    inflater, parts, size = zlib.decompressobj(-zlib.MAX_WBITS), [], 0
    try:
        while not inflater.eof:
            # An empty read lets zlib say by itself that the data end early.
            data = inflater.unconsumed_tail or stream.read(_INFLATED_AT_ONCE)
            parts.append(inflater.decompress(data, MOST_INFLATED_BYTES + 1 - size))
            size += len(parts[-1])
            if size > MOST_INFLATED_BYTES:
                raise SetAsideError(Why.TOO_LARGE)
            if not data:
                raise SetAsideError(Why.DAMAGED)
    except zlib.error as error:
        raise SetAsideError(Why.DAMAGED) from error
    return b"".join(parts)


def _parse(stream: BinaryIO, start: int, end: int, encoding: Encoding) -> Dataset:
    """Let pydicom parse what the walk has passed, from memory that holds no more than that."""
    stream.seek(start)
    data = stream.read(end - start)
    try:
        dataset = parse_elements(io.BytesIO(data), encoding.implicit, encoding.little)
        dataset.set_original_encoding(encoding.implicit, encoding.little)
        _convert(dataset, 0)
    except RecursionError as error:
        raise SetAsideError(Why.TOO_DEEP) from error
    except SetAsideError:
        raise
    except Exception as error:  # whatever pydicom makes of damaged bytes
        raise SetAsideError(Why.DAMAGED) from error
    return dataset


def _convert(dataset: Dataset, depth: int) -> None:
    if depth > DEEPEST_NESTING:
        raise SetAsideError(Why.TOO_DEEP)
    for tag in list(dataset.keys()):
        raw = dataset.get_item(tag)
        try:
            value = dataset[tag].value
        except RecursionError:
            raise
        except Exception:  # one element that does not fit its representation
            kept = getattr(raw, "value", b"")
            dataset[tag] = DataElement(tag, "OB", kept if isinstance(kept, bytes) else b"")
            continue
        if isinstance(value, Sequence):
            for item in value:
                _convert(item, depth + 1)
        elif isinstance(value, MultiValue):
            list(value)
