"""How the pixels of a dataset are laid down, checked before any is decoded."""

from dataclasses import dataclass

from pydicom import Dataset
from pydicom.uid import UID

from echofed.client.ingest.dataset import text_of
from echofed.client.ingest.outcomes import SetAsideError, Why

MOST_FRAME_PIXELS = 2**24
MOST_FRAMES = 2**16

_OF_ONE_SAMPLE = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"})
_OF_THREE_SAMPLES = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"})


@dataclass(frozen=True)
class PixelForm:
    """What the header says about the pixels.

    Args:
        syntax: transfer syntax.
        frames, rows, columns: at least 1.
        samples: 1 or 3 a pixel.
        allocated: bits of a sample in the data, 8 or 16.
        stored: bits of a sample that count, at most `allocated`.
        planar: samples lie plane by plane.
        photometric: photometric interpretation.
    """

    syntax: UID
    frames: int
    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    planar: bool
    photometric: str

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame that is not compressed; YBR_FULL_422 shares its colours between two pixels."""
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.columns * samples * self.allocated // 8


def read_form(dataset: Dataset) -> PixelForm:
    """Return the form of a dataset's pixels.

    Raises:
        SetAsideError: PIXEL_FORMAT where the header names none that ultrasound may have (PS3.3, C.8.5.6; signed pixels
            are none), TOO_LARGE above 2**24 pixels a frame or 65,536 frames, TRANSFER_SYNTAX where it is not said.
    """
    syntax = UID(text_of(dataset.file_meta, "TransferSyntaxUID"))
    if not syntax:
        syntax = UID(_native_syntax(dataset))
    form = PixelForm(
        syntax=syntax,
        frames=_whole(dataset, "NumberOfFrames", 1),
        rows=_whole(dataset, "Rows"),
        columns=_whole(dataset, "Columns"),
        samples=_whole(dataset, "SamplesPerPixel", 1),
        allocated=_whole(dataset, "BitsAllocated"),
        stored=_whole(dataset, "BitsStored", _whole(dataset, "BitsAllocated")),
        planar=_whole(dataset, "PlanarConfiguration", 0) == 1,
        photometric=text_of(dataset, "PhotometricInterpretation"),
    )
    if form.rows * form.columns > MOST_FRAME_PIXELS or form.frames > MOST_FRAMES:
        raise SetAsideError(Why.TOO_LARGE)
    if not _is_supported(form) or _whole(dataset, "PixelRepresentation", 0) != 0:
        raise SetAsideError(Why.PIXEL_FORMAT)
    return form


def _is_supported(form: PixelForm) -> bool:
    photometrics = {1: _OF_ONE_SAMPLE, 3: _OF_THREE_SAMPLES}.get(form.samples, frozenset())
    return (
        min(form.frames, form.rows, form.columns) >= 1
        and form.allocated in (8, 16)
        and 1 <= form.stored <= form.allocated
        and form.photometric in photometrics
        and (form.allocated == 8 or not form.photometric.startswith("YBR"))
    )


def _native_syntax(dataset: Dataset) -> str:
    """Transfer syntax of a file that does not name it: old files, never compressed."""
    implicit, little = dataset.original_encoding
    if not little:
        return "1.2.840.10008.1.2.2"
    return "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"


def _whole(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    value = dataset.get(keyword)
    if value is None or value == "":
        value = default
    if not isinstance(value, int):
        raise SetAsideError(Why.PIXEL_FORMAT)
    return int(value)
