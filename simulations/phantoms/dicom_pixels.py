"""Pixels in DICOM: the photometric interpretations and transfer syntaxes of the invented vendors."""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import get_encoder
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from echofed.simulations.phantoms.vendors import Pixels

Photometric = Literal["RGB", "MONOCHROME2", "PALETTE COLOR", "YBR_FULL_422"]
LAST_GREY = 247
"""Of a palette: grey levels first, then eight brightnesses of the vendor's yellow."""
PALETTE_YELLOW = (255, 222, 64)
JPEG_QUALITY = 92


@dataclass(frozen=True)
class PixelFormat:
    """How pixels are stored."""

    transfer_syntax: UID
    photometric: Photometric


@dataclass(frozen=True)
class VendorFormats:
    """A vendor's formats of stills and of clips."""

    still: PixelFormat
    cine: PixelFormat


_JPEG = PixelFormat(JPEGBaseline8Bit, "YBR_FULL_422")
_PALETTE = PixelFormat(RLELossless, "PALETTE COLOR")
_GREY = PixelFormat(ImplicitVRLittleEndian, "MONOCHROME2")
_GREY_2000 = PixelFormat(JPEG2000Lossless, "MONOCHROME2")
FORMATS: dict[str, VendorFormats] = {
    "aquila": VendorFormats(PixelFormat(ExplicitVRLittleEndian, "RGB"), _JPEG),
    "borealis": VendorFormats(_PALETTE, _PALETTE),
    "corvus": VendorFormats(_JPEG, _JPEG),
    "dorado": VendorFormats(_GREY, _GREY),
    "eridanus": VendorFormats(_GREY_2000, _GREY_2000),
    "fornax": VendorFormats(PixelFormat(RLELossless, "RGB"), PixelFormat(RLELossless, "RGB")),
}


def put_pixels(dataset: Dataset, frames: Pixels, pixel_format: PixelFormat) -> None:
    """Store frames in the dataset, with every attribute that describes them.

    Args:
        dataset: gets the pixels; its file meta must say nothing of the transfer syntax yet.
        frames: RGB, uint8 [frames, height, width, 3].
        pixel_format: how to store them.
    """
    count, dataset.Rows, dataset.Columns, _ = frames.shape
    grey = pixel_format.photometric in ("MONOCHROME2", "PALETTE COLOR")
    dataset.SamplesPerPixel = 1 if grey else 3
    dataset.PhotometricInterpretation = pixel_format.photometric
    if not grey:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    if count > 1:
        dataset.NumberOfFrames = count
    if pixel_format.photometric == "PALETTE COLOR":
        _put_palette(dataset)
    stored = _stored(frames, pixel_format.photometric)
    syntax = pixel_format.transfer_syntax
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax.is_compressed:
        dataset.PixelData = encapsulate([_compress(frame, dataset, syntax) for frame in stored])
        dataset["PixelData"].VR = "OB"
    else:
        content = stored.tobytes()
        dataset.PixelData = content + b"\0" * (len(content) % 2)
        dataset["PixelData"].VR = "OW" if syntax.is_implicit_VR else "OB"
    if syntax == JPEGBaseline8Bit:
        dataset.LossyImageCompression, dataset.LossyImageCompressionMethod = "01", "ISO_10918_1"
        ratio = frames.nbytes / len(dataset.PixelData)
        dataset.LossyImageCompressionRatio = f"{ratio:.2f}"


def _stored(frames: Pixels, photometric: Photometric) -> Pixels:
    """Return the samples a file holds before compression."""
    if photometric in ("RGB", "YBR_FULL_422"):
        return frames
    if photometric == "MONOCHROME2":
        return np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in frames])
    level = np.minimum(frames[..., 1], LAST_GREY)
    coloured = frames[..., 0] != frames[..., 2]
    return np.where(coloured, LAST_GREY + 1 + frames.max(axis=-1) // 32, level).astype(np.uint8)


def _put_palette(dataset: Dataset) -> None:
    grey = np.arange(LAST_GREY + 1)
    brightness = np.arange(1, 256 - LAST_GREY) / (255 - LAST_GREY)
    for colour, full in zip(("Red", "Green", "Blue"), PALETTE_YELLOW, strict=True):
        table = np.concatenate((grey, full * brightness)).round().astype(np.uint16) * 257
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", table.astype("<u2").tobytes())


def _compress(frame: NDArray[np.uint8], dataset: Dataset, syntax: UID) -> bytes:
    if syntax == RLELossless:
        # pydicom's own encoder takes ten times as long.
        return get_encoder(RLELossless).encode(
            np.ascontiguousarray(frame),
            encoding_plugin="gdcm",
            rows=dataset.Rows,
            columns=dataset.Columns,
            samples_per_pixel=dataset.SamplesPerPixel,
            number_of_frames=1,
            bits_allocated=8,
            bits_stored=8,
            pixel_representation=0,
            photometric_interpretation=dataset.PhotometricInterpretation,
            planar_configuration=0,
        )
    stream = io.BytesIO()
    if syntax == JPEGBaseline8Bit:
        Image.fromarray(frame).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:2")
    else:
        Image.fromarray(frame).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
    return stream.getvalue()
