"""Damaged and hostile DICOM files, made from good ones by seeded mutations, and what reading them comes to."""

import multiprocessing
import resource
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian

from echofed.client.ingest.dataset import check_ultrasound, read_dataset
from echofed.client.ingest.decoding import decode_frames
from echofed.client.ingest.outcomes import SetAsideError, Why
from echofed.client.ingest.regions import find_layout

TIMEOUT_SECONDS = 5
EXTRA_MEMORY_BYTES = 2**30
MOST_FRAMES = 30

# One of each way to write pixels; those that are no ultrasound are made to say they are.
_OF_PYDICOM = (
    "ExplVR_BigEnd.dcm",
    "JPEGLSNearLossless_08.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "SC_rgb_gdcm_KY.dcm",
    "SC_rgb_jls_lossy_line.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_rle_16bit_2frame.dcm",
    "SC_rgb_rle_2frame.dcm",
    "SC_rgb_small_odd_big_endian.dcm",
    "examples_palette.dcm",
    "examples_ybr_color.dcm",
    "image_dfl.dcm",
)
_NESTINGS = (4, 15, 16, 17, 40, 400, 4000)
_NUMBERS = (0, 1, 2, 7, 12, 32, 255, 4096, 16384, 32767, 65535)
_PIXEL_ELEMENTS = (
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "PlanarConfiguration",
    "PixelRepresentation",
)
_TEXTS = ("RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE COLOR", "MONOCHROME1", "CMYK", "", "\\")
_LENGTHS = (0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF, 0x80000000, 0x10000, 0xFFFF, 0)

Mutation = Callable[[bytes, np.random.Generator], bytes]


def seeds(shared_data: Path) -> list[bytes]:
    """Return the files that mutations start from, the real ultrasound files of up to 300 kB among them."""
    real = [path for path in sorted((shared_data / "dicom_us").glob("*.dcm")) if path.stat().st_size < 300_000]
    installed = [get_testdata_file(name, download=False) for name in _OF_PYDICOM]
    return [_as_ultrasound(Path(str(path))) for path in [*real, *installed]]


def _as_ultrasound(path: Path) -> bytes:
    dataset = pydicom.dcmread(path)
    dataset.Modality, dataset.PatientID, dataset.SOPInstanceUID = "US", "p", "1.2.3"
    stream = BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


def mutate(originals: Sequence[bytes], number: int) -> tuple[str, bytes]:
    """Return mutation `number`: the names of what was done, and the file."""
    rng = np.random.default_rng([2026, number])
    data = originals[rng.integers(len(originals))]
    # In the order of the table: what needs a file that can still be parsed comes first.
    places = np.sort(rng.choice(len(MUTATIONS), int(rng.choice([1, 1, 1, 1, 2, 3])), replace=False, p=_CHANCES))
    names = [list(MUTATIONS)[place] for place in places]
    for name in names:
        data = MUTATIONS[name](data, rng)
    return "+".join(names), data


def _flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    end = len(data) if rng.random() < 0.5 else min(len(data), 6000)
    for at in rng.integers(0, end, int(rng.choice([1, 4, 16, 64]))):
        changed[at] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _truncate(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(0, min(len(data), 8000) if rng.random() < 0.5 else len(data)))]


def _set_lengths(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(132, max(min(len(data), 5000), 137)))
        changed[at : at + 4] = struct.pack("<I", int(rng.choice(_LENGTHS)))
    return bytes(changed)


def _set_length_of_tag(data: bytes, rng: np.random.Generator) -> bytes:
    """Change the length of the pixel data, of the regions or of an item of either."""
    tag = [b"\xe0\x7f\x10\0", b"\x18\0\x11\x60", b"\xfe\xff\0\xe0"][rng.integers(3)]
    places = [at for at in range(len(data)) if data.startswith(tag, at)][:40] if len(data) < 10**6 else []
    if not places:
        return data
    at = int(rng.choice(places)) + (4 if tag[0] == 0xFE or rng.random() < 0.3 else 8)
    return data[:at] + struct.pack("<I", int(rng.choice(_LENGTHS))) + data[at + 4 :]


def _move_chunk(data: bytes, rng: np.random.Generator) -> bytes:
    start, size = int(rng.integers(0, len(data) or 1)), int(rng.integers(1, 4000))
    chunk = data[start : start + size]
    where = int(rng.integers(0, len(data) or 1))
    return [
        data[:start] + data[start + size :],
        data[:where] + chunk + data[where:],
        data[:start] + bytes(len(chunk)) + data[start + size :],
        data[:start] + rng.bytes(len(chunk)) + data[start + size :],
    ][rng.integers(4)]


def _lie_in_header(data: bytes, rng: np.random.Generator) -> bytes:
    dataset = _parsed(data)
    for _ in range(int(rng.integers(1, 4))):
        keyword = _PIXEL_ELEMENTS[rng.integers(len(_PIXEL_ELEMENTS))]
        match rng.integers(4):
            case 0:
                dataset.NumberOfFrames = int(rng.choice([0, 1, 2, 31, 1000, 65536, 2**31 - 1]))
            case 1:
                dataset.PhotometricInterpretation = _TEXTS[rng.integers(len(_TEXTS))]
            case 2 if keyword in dataset:
                delattr(dataset, keyword)
            case _:
                setattr(dataset, keyword, int(rng.choice(_NUMBERS)))
    return _written(dataset) or data


def _lie_in_regions(data: bytes, rng: np.random.Generator) -> bytes:
    dataset = _parsed(data)
    region = pydicom.Dataset()
    region.RegionSpatialFormat, region.RegionDataType = int(rng.integers(6)), int(rng.integers(20))
    for place in ("MinX0", "MinY0", "MaxX1", "MaxY1"):
        setattr(region, f"RegionLocation{place}", int(rng.choice([0, 1, 100, 319, 320, 799, 2**31, 2**32 - 1])))
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = float(rng.choice([0.0, -0.03, 0.03, float("nan"), float("inf"), 1e300]))
    region.PhysicalDeltaY = 0.03
    dataset.SequenceOfUltrasoundRegions = [region] * int(rng.choice([0, 1, 2, 500]))
    return _written(dataset) or data


def _damage_pixels(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits or overwrite bytes where the pixels lie: in the last four fifths of the file."""
    changed = bytearray(data)
    for at in rng.integers(len(data) // 5, len(data), int(rng.choice([1, 3, 30, 300]))):
        changed[at] = changed[at] ^ 1 << int(rng.integers(8)) if rng.random() < 0.7 else 0xFF
    return bytes(changed)


def _lie_in_code_stream(data: bytes, rng: np.random.Generator) -> bytes:
    """Change what a compressed frame announces: sizes, components, precision, tables, segments."""
    for opening, reach in ((b"\xff\xd8", 700), (b"\xff\x4f\xff\x51", 200), (b"\xfe\xff\0\xe0", 100)):
        at = data.find(opening, 1000)
        if at >= 0:
            changed = bytearray(data)
            for place in rng.integers(at + 2, min(at + reach, len(data)), int(rng.integers(1, 6))):
                changed[place] = int(rng.choice([0, 1, 0xFF, 0x7F, int(rng.integers(256))]))
            return bytes(changed)
    return data


def _nest(data: bytes, rng: np.random.Generator) -> bytes:
    depth, defined = int(rng.choice(_NESTINGS)), bool(rng.random() < 0.5)
    head, item = b"\x08\0\x40\x11SQ\0\0", b"\xfe\xff\0\xe0"
    if not defined:
        nested = (head + b"\xff\xff\xff\xff" + item + b"\xff\xff\xff\xff") * depth
        nested += (b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0") * int(depth * rng.choice([1, 1, 0.5, 0]))
        return data[:132] + _after_meta(data)[0] + nested + _after_meta(data)[1]
    nested = b""
    for _ in range(depth):
        inner = item + struct.pack("<I", len(nested)) + nested
        nested = head + struct.pack("<I", len(inner)) + inner
    return data[:132] + _after_meta(data)[0] + nested + _after_meta(data)[1]


def _crowd(data: bytes, rng: np.random.Generator) -> bytes:
    """Insert very many small elements, or items."""
    count = int(rng.choice([20_000, 49_000, 300_000]))
    one = b"\x09\0\x10\x10LO\0\0" if rng.random() < 0.5 else b"\x08\0\x40\x11SQ\0\0\x08\0\0\0\xfe\xff\0\xe0\0\0\0\0"
    meta, rest = _after_meta(data)
    return data[:132] + meta + one * count + rest


def _deflate(data: bytes, rng: np.random.Generator) -> bytes:
    """Write it deflated: as it is, cut, or a bomb that announces 2 GiB and holds up to 200 MiB."""
    dataset = _parsed(data)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    meta, rest = _after_meta(_written(dataset) or data)
    kind = rng.integers(4)
    if kind == 0:
        return data[:132] + meta + rest[: int(rng.integers(1, len(rest) + 1))]
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = packer.compress(b"\xe0\x7f\x10\0OW\0\0" + struct.pack("<I", 0x7FFFFFF0)) if kind == 1 else b""
    return data[:132] + meta + body + packer.flush(zlib.Z_FULL_FLUSH) + _deflated_zeros(int(rng.choice([1, 200])))


@cache
def _deflated_zeros(mebibytes: int) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(mebibytes)) + packer.flush()


def _garbage(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.choice([0, 132, 400]))] + rng.bytes(int(rng.integers(0, 5000)))


MUTATIONS: dict[str, Mutation] = {
    "header lies": _lie_in_header,
    "regions lie": _lie_in_regions,
    "deflated": _deflate,
    "nested": _nest,
    "crowded": _crowd,
    "code stream lies": _lie_in_code_stream,
    "pixels": _damage_pixels,
    "lengths": _set_lengths,
    "length of a tag": _set_length_of_tag,
    "chunk moved": _move_chunk,
    "bits flipped": _flip_bits,
    "truncated": _truncate,
    "garbage": _garbage,
}


# What damages the pixels alone gets as far as the decoders, which are in C; half of all does.
_REACHING = ("code stream lies", "pixels")
_CHANCES = [0.25 if name in _REACHING else 0.5 / (len(MUTATIONS) - len(_REACHING)) for name in MUTATIONS]


def _parsed(data: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(BytesIO(data))


def _written(dataset: pydicom.Dataset) -> bytes | None:
    stream = BytesIO()
    try:
        dataset.save_as(stream)
    except Exception:  # pydicom does not write every lie
        return None
    return stream.getvalue()


def _after_meta(data: bytes) -> tuple[bytes, bytes]:
    """Split what follows the preamble into file meta and dataset."""
    length = struct.unpack("<I", data[140:144])[0] if len(data) >= 144 else 0
    return data[132 : 144 + length], data[144 + length :]


def limit_memory() -> None:
    """Let this process use 1 GiB of address space more than it has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + EXTRA_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def read_all(path: Path) -> Why | None:
    """Read a file as an ingest does; return why it was set aside, None if it was not."""
    try:
        dataset = read_dataset(path)
        check_ultrasound(dataset)
        frames = list(islice(decode_frames(dataset), MOST_FRAMES))
        find_layout(dataset, frames)
    except SetAsideError as error:
        return error.why
    return None


def _serve(requests: Connection) -> None:
    limit_memory()
    requests.send("ready")
    while True:
        try:
            why = read_all(requests.recv())
            requests.send("accepted" if why is None else why.name)
        except EOFError:
            return
        except Exception as error:
            requests.send(repr(error))


class Reader:
    """A process that reads files within its limits, started anew when it ends or takes too long."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=[there], daemon=True)
        self._process.start()
        there.close()
        self._here.recv()  # it has imported what it needs

    def read(self, path: Path) -> str:
        """Return "accepted", the name of a reason, TIMED_OUT, WORKER_DIED, or an error nobody expected."""
        self._here.send(path)
        try:
            outcome: str = self._here.recv() if self._here.poll(TIMEOUT_SECONDS) else "TIMED_OUT"
        except EOFError:
            outcome = "WORKER_DIED"
        if outcome in ("TIMED_OUT", "WORKER_DIED"):
            self.close()
            self._start()
        return outcome

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._here.close()


def outcomes(originals: Sequence[bytes], numbers: range, folder: Path) -> tuple[Counter[str], list[str]]:
    """Read mutations in a process of its own; return how often each outcome came, and what must not have happened."""
    counts, wrong = Counter[str](), list[str]()
    good = {"accepted", *(why.name for why in Why)} - {"TIMED_OUT", "WORKER_DIED"}
    path, reader = folder / "mutated.dcm", Reader()
    for number in numbers:
        name, data = mutate(originals, number)
        path.write_bytes(data)
        outcome = reader.read(path)
        counts[outcome] += 1
        if outcome not in good:
            wrong.append(f"{number} ({name}): {outcome}")
    reader.close()
    return counts, wrong
