"""Decoding frames, one by one, to the same pixels everywhere."""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

from echofed.client.ingest import codestreams
from echofed.client.ingest.codestreams import Announced
from echofed.client.ingest.colours import Samples, read_palette, swap_pairs, to_8_bits, widen_422, ybr_to_rgb
from echofed.client.ingest.fragments import find_frames, read_frame
from echofed.client.ingest.geometry import Pixels
from echofed.client.ingest.outcomes import SetAsideError, Why
from echofed.client.ingest.pixel_form import PixelForm, read_form
from echofed.client.ingest.rle import decode_rle

_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_JPEG_BASELINE, _JPEG_EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
_JPEG_LOSSLESS, _JPEG_LOSSLESS_FIRST = "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"
_JPEG_LS, _JPEG_LS_NEAR = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"
_JPEG_2000_LOSSLESS, _JPEG_2000 = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"

DECODING_ORDER: Mapping[str, str] = MappingProxyType(
    {
        "1.2.840.10008.1.2": "echofed",
        "1.2.840.10008.1.2.1": "echofed",
        "1.2.840.10008.1.2.1.99": "echofed",
        _BIG_ENDIAN: "echofed",
        "1.2.840.10008.1.2.5": "echofed",
        _JPEG_BASELINE: "pillow",
        _JPEG_EXTENDED: "pillow",
        _JPEG_LOSSLESS: "gdcm",
        _JPEG_LOSSLESS_FIRST: "gdcm",
        _JPEG_LS: "gdcm",
        _JPEG_LS_NEAR: "gdcm",
        _JPEG_2000_LOSSLESS: "pillow",
        _JPEG_2000: "pillow",
    }
)
"""The one decoder of each transfer syntax. There is no second: where it fails the instance is set aside, so that no site
decodes what another does not, or to other pixels. ("echofed": uncompressed and RLE, decoded here.)"""

_RLE = "1.2.840.10008.1.2.5"
_PROCESSES = {
    _JPEG_BASELINE: codestreams.SEQUENTIAL,
    _JPEG_EXTENDED: codestreams.SEQUENTIAL,
    _JPEG_LOSSLESS: codestreams.LOSSLESS,
    _JPEG_LOSSLESS_FIRST: codestreams.LOSSLESS,
    _JPEG_LS: codestreams.JPEG_LS,
    _JPEG_LS_NEAR: codestreams.JPEG_LS,
}
_OPENINGS = {_RLE: b"", _JPEG_2000_LOSSLESS: b"\xff\x4f", _JPEG_2000: b"\xff\x4f"}
_JPEG_OPENING = b"\xff\xd8"

_Decode = Callable[[int], Samples]


def frame_count(dataset: Dataset) -> int:
    """Return how many frames a dataset announces; `decode_frames` fails if it holds another number.

    Raises:
        SetAsideError: PIXEL_FORMAT, TOO_LARGE or TRANSFER_SYNTAX.
    """
    return read_form(dataset).frames


def decode_frames(dataset: Dataset, indices: Sequence[int] | None = None) -> Iterator[Pixels]:
    """Yield frames as grey or RGB of 8 bits, each decoded when it is asked for.

    Grey stays grey; everything else becomes RGB. Samples of n bits are scaled so that 2**n - 1 becomes 255 (`to_8_bits`);
    no window is applied. MONOCHROME1 is inverted. Before anything is decoded the header is held against the amount of
    data and, frame by frame, against what the code stream announces.

    Args:
        dataset: from `read_dataset`, or one whose `PixelData` are bytes.
        indices: which frames, 0 based, in any order; None for all in order.

    Raises:
        SetAsideError: TRANSFER_SYNTAX, PIXEL_FORMAT, TOO_LARGE, DAMAGED, DECODER_FAILED, DECODER_DISAGREES.
    """
    form = read_form(dataset)
    if form.syntax not in DECODING_ORDER:
        raise SetAsideError(Why.TRANSFER_SYNTAX)
    decode = _compressed(dataset, form) if form.syntax.is_encapsulated else _native(dataset, form)
    palette = read_palette(dataset, 2**form.allocated) if form.photometric == "PALETTE COLOR" else None
    for index in range(form.frames) if indices is None else indices:
        samples = decode(index)
        yield np.take(palette, samples, axis=0) if palette is not None else _finished(samples, form)


def _finished(samples: Samples, form: PixelForm) -> Pixels:
    pixels = to_8_bits(samples, form.stored)
    if form.photometric == "MONOCHROME1":
        return 255 - pixels
    return pixels


def _stream(dataset: Dataset) -> BinaryIO:
    value = dataset.get("PixelData")
    if isinstance(value, bytes):
        return io.BytesIO(value)
    if not hasattr(value, "read"):
        raise SetAsideError(Why.NO_PIXELS)
    stream: BinaryIO = value
    return stream


def _native(dataset: Dataset, form: PixelForm) -> _Decode:
    stream, size = _stream(dataset), form.frame_bytes
    held = stream.seek(0, io.SEEK_END)
    # One byte of padding is allowed, and some writers leave more; a whole frame more is a frame nobody announced.
    if not 0 <= held - size * form.frames < max(size, 2):
        raise SetAsideError(Why.DECODER_DISAGREES)
    big = form.syntax == _BIG_ENDIAN
    if form.photometric in ("YBR_RCT", "YBR_ICT") or (form.photometric == "YBR_FULL_422" and form.columns % 2):
        raise SetAsideError(Why.PIXEL_FORMAT)
    swapped = big and form.allocated == 8 and dataset["PixelData"].VR == "OW"

    def decode(index: int) -> Samples:
        data = _bytes_of(stream, index * size, size, swapped)
        if form.photometric == "YBR_FULL_422":
            return ybr_to_rgb(widen_422(data, form.rows, form.columns))
        samples = _shaped(np.frombuffer(data, _sample_type(form, big)), form, form.planar)
        return ybr_to_rgb(samples.astype(np.uint8)) if form.photometric == "YBR_FULL" else samples

    return decode


def _sample_type(form: PixelForm, big: bool) -> str:
    return "u1" if form.allocated == 8 else ">u2" if big else "<u2"


def _bytes_of(stream: BinaryIO, start: int, size: int, swapped: bool) -> bytes:
    before = start % 2 if swapped else 0
    stream.seek(start - before)
    data = stream.read(before + size + ((before + size) % 2 if swapped else 0))
    if swapped:
        data = swap_pairs(data + b"\0" * (len(data) % 2))
    data = data[before : before + size]
    if len(data) < size:
        raise SetAsideError(Why.DECODER_DISAGREES)
    return data


def _shaped(flat: NDArray[Any], form: PixelForm, planar: bool) -> Samples:
    if form.samples == 1:
        return flat.reshape(form.rows, form.columns)
    if planar:
        return np.ascontiguousarray(flat.reshape(3, form.rows, form.columns).transpose(1, 2, 0))
    return flat.reshape(form.rows, form.columns, 3)


def _compressed(dataset: Dataset, form: PixelForm) -> _Decode:
    stream = _stream(dataset)
    frames = find_frames(stream, form.frames, _OPENINGS.get(form.syntax, _JPEG_OPENING))
    raw_bytes = form.rows * form.columns * form.samples * form.allocated // 8
    decoder = {"echofed": _decode_rle, "pillow": _decode_with_pillow, "gdcm": _decode_with_gdcm}

    def decode(index: int) -> Samples:
        frame = read_frame(stream, frames[index], 4 * raw_bytes + 2**20)
        samples = decoder[DECODING_ORDER[form.syntax]](frame, form)
        if samples.shape[:2] != (form.rows, form.columns) or samples.ndim != (2 if form.samples == 1 else 3):
            raise SetAsideError(Why.DECODER_DISAGREES)
        return samples

    return decode


def _decode_rle(frame: bytes, form: PixelForm) -> Samples:
    width, pixels = form.allocated // 8, form.rows * form.columns
    planes = decode_rle(frame, pixels, form.samples * width)
    if width == 2:  # the high byte is a segment of its own, before the low one
        return _shaped(planes[0::2].astype(np.uint16) << 8 | planes[1::2], form, planar=True)
    samples = _shaped(planes, form, planar=True)
    return ybr_to_rgb(samples.astype(np.uint8)) if form.photometric.startswith("YBR_FULL") else samples


def _announced(frame: bytes, form: PixelForm) -> Announced:
    """Return what a frame announces if it is what the header announced."""
    is_jpeg_2000 = form.syntax not in _PROCESSES
    said = codestreams.read_jpeg_2000(frame) if is_jpeg_2000 else codestreams.read_jpeg(frame)
    if not is_jpeg_2000 and said.process not in _PROCESSES[form.syntax]:
        raise SetAsideError(Why.DECODER_DISAGREES)
    if (said.rows, said.columns, said.components) != (form.rows, form.columns, form.samples):
        raise SetAsideError(Why.DECODER_DISAGREES)
    if said.precision > form.allocated:
        raise SetAsideError(Why.DECODER_DISAGREES)
    return said


def _decode_with_pillow(frame: bytes, form: PixelForm) -> Samples:
    said = _announced(frame, form)
    is_jpeg = form.syntax in _PROCESSES
    if said.precision > (8 if is_jpeg or form.samples > 1 else 16):
        raise SetAsideError(Why.TRANSFER_SYNTAX)
    try:
        image = Image.open(io.BytesIO(frame), formats=("JPEG",) if is_jpeg else ("JPEG2000",))
        if image.size != (form.columns, form.rows):
            raise SetAsideError(Why.DECODER_DISAGREES)
        if is_jpeg and form.photometric == "RGB" and said.plain_colour:
            image.draft("YCbCr", image.size)  # libjpeg would take it for YBR: leave the samples as they are
        samples: Samples = np.asarray(image)
    except SetAsideError:
        raise
    except Exception as error:  # Pillow raises whatever it stumbles over in damaged bytes
        raise SetAsideError(Why.DECODER_FAILED) from error
    if not is_jpeg and form.photometric.startswith("YBR_FULL"):
        return ybr_to_rgb(samples.astype(np.uint8))
    return samples


def _decode_with_gdcm(frame: bytes, form: PixelForm) -> Samples:
    said = _announced(frame, form)
    options: dict[str, Any] = {
        "rows": form.rows,
        "columns": form.columns,
        "samples_per_pixel": form.samples,
        "bits_allocated": form.allocated,
        "bits_stored": said.precision,
        "pixel_representation": 0,
        "number_of_frames": 1,
        "planar_configuration": 0,
        "photometric_interpretation": form.photometric,
        "pixel_keyword": "PixelData",
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            samples, _ = get_decoder(form.syntax).as_array(
                encapsulate([frame], has_bot=False), index=0, raw=True, decoding_plugin="gdcm", **options
            )
    except Exception as error:  # whatever the decoder makes of damaged bytes
        raise SetAsideError(Why.DECODER_FAILED) from error
    if form.photometric.startswith("YBR_FULL"):
        return ybr_to_rgb(samples.astype(np.uint8))
    return samples
