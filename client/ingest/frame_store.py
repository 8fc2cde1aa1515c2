"""Stored frames: one safetensors file each, so that a frame is read without decoding.

`frames/<two characters>/<name>.safetensors` in the store's folder holds the tensor `pixels`, uint8 [height, width], and short
texts: a SHA-256 of the pixels and what the ingest knows of the frame. In an encrypted store the whole file is sealed. A file
appears whole or not at all, whenever the process that writes it dies; after a power cut that holds for what `sync_frames` has
seen, and the checksum tells of the rest.
"""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echofed.client.ingest.encryption import MAGIC, is_sealed, seal, store_key, unseal
from echofed.client.ingest.errors import FrameStoreError
from echofed.client.ingest.geometry import Pixels

FRAMES_FOLDER = "frames"
SUFFIX = ".safetensors"
CHECKSUM = "sha256"
PATIENT = "patient"
"""Name of the text that holds the patient's pseudonym: forgetting a patient looks for it."""
SPACING = "spacing_mm"
MAX_PIXELS = 2**26

_TENSOR = "pixels"
_MAX_HEADER_BYTES = 2**16
_LENGTH_BYTES = 8
_ENTRY = {"dtype", "shape", "data_offsets"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{2,149}")
_PART = ".part"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def frame_path(folder: Path, name: str) -> Path:
    """Return where a frame lies.

    Args:
        folder: of the store.
        name: 3 to 150 letters, digits, dashes and underscores; best a keyed hash, so that folders fill evenly.

    Raises:
        FrameStoreError: the name is none.
    """
    if not _NAME.fullmatch(name):
        raise FrameStoreError(f"'{name[:80]}' cannot be a frame's name.", remedy="Report the fault.")
    return folder / FRAMES_FOLDER / name[:2] / f"{name}{SUFFIX}"


def store_folder(path: Path) -> Path | None:
    """Return the folder of the store a frame's file lies in, None if it lies in none."""
    frames = path.parent.parent
    return frames.parent if path.suffix == SUFFIX and frames.name == FRAMES_FOLDER else None


def key_of(path: Path) -> bytes | None:
    """Return the key that files beside this one are sealed with, None if the file lies in no encrypted store.

    Raises:
        KeyFileError: the store is encrypted and its key cannot be had.
    """
    folder = store_folder(path)
    return None if folder is None else store_key(folder)


def spacing_text(spacing_mm: tuple[float, float] | None) -> str:
    """Return the distance between rows and between columns as a frame's text; empty if it is not known."""
    return "" if spacing_mm is None else json.dumps([round(one, 9) for one in spacing_mm])


def write_frame(folder: Path, name: str, pixels: Pixels, metadata: Mapping[str, str], key: bytes | None) -> Path:
    """Write one frame and return its file, which is whole for every reader; `sync_frames` makes it outlast a power cut.

    A frame there is replaced.

    Args:
        folder: of the store.
        name: as for `frame_path`.
        pixels: grey levels, uint8 [height, width].
        metadata: short texts; `sha256` is added.
        key: of the store; None if it is not encrypted.

    Raises:
        FrameStoreError: the disk is full or cannot be written, or the pixels are no frame; nothing was written.
    """
    path = frame_path(folder, name)
    content = _encode(pixels, metadata)
    if key is not None:
        content = seal(key, content, name)
    part = path.with_name(f".{name}.{os.getpid()}-{threading.get_ident()}{_PART}")
    try:
        _write_part(part, content, is_first=not path.exists())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise _unwritten(path, error) from error
    return path


def sync_frames(paths: Iterable[Path]) -> None:
    """Put frames on disk, so that a power cut does not take them; call it before a frame is noted as stored.

    Raises:
        FrameStoreError: the disk is full or failing: none of them may be noted.
    """
    written = list(paths)
    folders = {path.parent for path in written}
    for path in [*written, *sorted(folders), *sorted({folder.parent for folder in folders})]:
        try:
            _sync(path)
        except OSError as error:
            raise _unwritten(path, error) from error


def remove_parts(folder: Path) -> int:
    """Remove what writers that died have left, and return how many files that were; for when nobody else writes."""
    parts = list((folder / FRAMES_FOLDER).glob(f"*/.*{_PART}"))
    for part in parts:
        part.unlink(missing_ok=True)
    return len(parts)


def read_frame(path: Path, key: bytes | None) -> tuple[Pixels, dict[str, str]]:
    """Return a frame's grey levels, uint8 [height, width], read-only, and its texts, after checking them all.

    In a store that is not encrypted the pixels are mapped, not copied.

    Raises:
        FrameStoreError: the file is gone, damaged, not a frame, or its checksum or key is another.
    """
    content = _content(path, key)
    metadata, shape, start = _head(content, path.name)
    pixels = np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    if metadata.get(CHECKSUM) != pixel_key(pixels).hex():
        raise FrameStoreError(f"{path.name} is damaged: its pixels are not those that were written.")
    pixels.flags.writeable = False
    return pixels, metadata


def read_metadata(path: Path, key: bytes | None) -> dict[str, str]:
    """Return a frame's texts; its pixels are not checked. Raises as `read_frame`."""
    return _head(_content(path, key), path.name)[0]


def frame_files(folder: Path) -> Iterator[Path]:
    """Yield the files of all frames of a store."""
    yield from (folder / FRAMES_FOLDER).glob(f"*/[!.]*{SUFFIX}")


def pixel_key(pixels: NDArray[np.uint8]) -> bytes:
    """Return the SHA-256 of an image's shape and grey levels, 32 bytes."""
    height, width = pixels.shape
    digest = hashlib.sha256(f"{height}x{width}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def _encode(pixels: Pixels, metadata: Mapping[str, str]) -> bytes:
    if pixels.ndim != 2 or pixels.dtype != np.uint8 or not 0 < pixels.size <= MAX_PIXELS:
        raise FrameStoreError(f"{pixels.dtype} {list(pixels.shape)} is not a frame.", remedy="Report the fault.")
    header = {
        "__metadata__": {**metadata, CHECKSUM: pixel_key(pixels).hex()},
        _TENSOR: {"dtype": "U8", "shape": list(pixels.shape), "data_offsets": [0, pixels.size]},
    }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    if len(text) > _MAX_HEADER_BYTES:
        raise FrameStoreError(f"A frame's texts have {len(text):,} bytes.", remedy="Report the fault.")
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + pixels.tobytes()


def _write_part(part: Path, content: bytes, *, is_first: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(part, flags, 0o600)
    except FileNotFoundError:
        for folder in (part.parent.parent, part.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(part, flags, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as stream:
        view = memoryview(content)
        while view:
            view = view[stream.write(view) :]
        if not is_first:
            # The frame there may have been noted as stored: a power cut must not leave less than it.
            os.fsync(stream.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritten(path: Path, error: OSError) -> FrameStoreError:
    if error.errno in _FULL:
        return FrameStoreError(
            f"The disk is full: {path.name} was not stored.",
            "Free some disk space, then ingest again: it goes on there.",
        )
    return FrameStoreError(f"{path} cannot be written: {error.strerror}.")


def _content(path: Path, key: bytes | None) -> bytes | mmap.mmap:
    try:
        with path.open("rb") as stream:
            length = os.fstat(stream.fileno()).st_size
            if not _LENGTH_BYTES < length <= MAX_PIXELS + 2 * _MAX_HEADER_BYTES:
                raise FrameStoreError(f"{path.name} is damaged: it cannot be a frame with {length:,} bytes.")
            if key is not None:
                return unseal(key, stream.read(), path.name.removesuffix(SUFFIX))
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FrameStoreError(f"{path} cannot be read: {error.strerror}.") from error


def _head(content: bytes | mmap.mmap, name: str) -> tuple[dict[str, str], tuple[int, int], int]:
    """Return a frame's texts, its shape and where its pixels begin."""
    if is_sealed(content[: len(MAGIC)]):
        raise FrameStoreError(f"{name} is encrypted, and the store's key is not there.")
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    start = _LENGTH_BYTES + length
    try:
        if start > min(len(content), _MAX_HEADER_BYTES + _LENGTH_BYTES):
            raise ValueError("header too long")
        header = json.loads(content[_LENGTH_BYTES:start])
        metadata, entry = header["__metadata__"], header[_TENSOR]
        height, width = entry["shape"]
        sizes = [height, width, *entry["data_offsets"]]
        whole = all(type(one) is int and 0 <= one <= MAX_PIXELS for one in sizes)
        if not whole or header.keys() != {"__metadata__", _TENSOR} or entry.keys() != _ENTRY or entry["dtype"] != "U8":
            raise ValueError("not a frame's header")
        if (
            not 0 < height * width <= MAX_PIXELS
            or sizes[2:] != [0, height * width]
            or len(content) != start + height * width
        ):
            raise ValueError("another length than announced")
        return {str(field): str(text) for field, text in metadata.items()}, (height, width), start
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FrameStoreError(f"{name} is damaged, or not a frame.") from error
