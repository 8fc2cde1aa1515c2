"""Rows of numbers kept on disk and memory-mapped: decoded images, masks and features.

A file holds one row for each image of the registry, named by the image's content. It is written whole under another
name, synced, and then renamed, so a reader sees a complete file or none, also while another process writes the next.

Rows of frames that the site keeps encrypted are held in memory instead, for as long as the process uses them.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, BinaryIO
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import DTypeLike, NDArray

from echofed.client.registry import locked
from echofed.protocol.errors import CacheError

KEY_BYTES = 32
_MAGIC = b"EchoFed rows 1\n\0"
_LENGTH_BYTES = 8
_ALIGNMENT = 4096
_MAX_HEADER_BYTES = 4096
_HELD: WeakValueDictionary[tuple[str, bytes, str], NDArray[Any]] = WeakValueDictionary()
_HOLDING = RLock()


def read_rows(path: Path) -> tuple[bytes, NDArray[Any]] | None:
    """Return the keys (32 bytes a row, joined) and the memory-mapped rows of a file; None if it is absent or damaged."""
    try:
        with path.open("rb") as stream:
            header, keys, offset = _read_head(stream)
        rows = np.memmap(path, header["dtype"], "r", offset, tuple(header["shape"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return keys, rows.view(np.ndarray)


def keep_rows(
    path: Path, keys: Sequence[bytes], dtype: DTypeLike, blocks: Callable[[], Iterable[NDArray[Any]]]
) -> NDArray[Any]:
    """Return the rows for these keys, in their order, making the file if there is none that fits.

    Processes that ask at the same time wait for the first, then read what it wrote.

    Args:
        path: of the file; its folder exists.
        keys: 32 bytes for each row, at least one.
        dtype: of the rows.
        blocks: yields all rows in order, some at a time, each [n, ...]; only called if the file must be made.

    Returns:
        Read-only, memory-mapped, [len(keys), ...].

    Raises:
        CacheError: the file cannot be written; the one there was is left.
    """
    wanted = b"".join(keys)
    if (rows := _matching(path, wanted)) is not None:
        return rows
    try:
        with locked(path.with_suffix(".lock")):
            if (rows := _matching(path, wanted)) is None:
                _write_rows(path, wanted, dtype, blocks())
                rows = _matching(path, wanted)
    except OSError as error:
        raise CacheError(
            f"The cache {path} cannot be written: {error.strerror}.", remedy="Free some disk space, then try again."
        ) from error
    if rows is None:
        raise CacheError(f"The cache {path} cannot be read back.", remedy="Check the disk.")
    return rows


def hold_rows(
    path: Path, keys: Sequence[bytes], dtype: DTypeLike, blocks: Callable[[], Iterable[NDArray[Any]]]
) -> NDArray[Any]:
    """Return what `keep_rows` returns, read-only, but write nothing to disk, and remove what lies beside the file in clear.

    Args:
        path: where `keep_rows` would keep them.
        keys, dtype, blocks: as for `keep_rows`.

    Raises:
        CacheError: what is there in clear cannot be removed.
    """
    try:
        for clear in path.parent.glob("*.rows"):
            clear.unlink(missing_ok=True)
    except OSError as error:
        raise CacheError(f"A cache in {path.parent} cannot be removed: {error.strerror}.") from error
    name = str(path), hashlib.sha256(b"".join(keys)).digest(), np.dtype(dtype).str
    with _HOLDING:
        rows = _HELD.get(name)
        if rows is None:
            rows = _HELD[name] = _in_memory(len(keys), dtype, blocks())
        return rows


def _in_memory(count: int, dtype: DTypeLike, blocks: Iterable[NDArray[Any]]) -> NDArray[Any]:
    rows, written = np.empty((count, 0), dtype), 0
    for block in blocks:
        if written == 0:
            rows = np.empty((count, *block.shape[1:]), dtype)
        rows[written : written + len(block)] = block
        written += len(block)
    if written != count:
        raise ValueError(f"{written} rows were made for {count} keys")
    rows.flags.writeable = False
    return rows


def _matching(path: Path, wanted: bytes) -> NDArray[Any] | None:
    found = read_rows(path)
    return found[1] if found is not None and found[0] == wanted else None


def _read_head(stream: BinaryIO) -> tuple[dict[str, Any], bytes, int]:
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("not a file of rows")
    length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError("header too long")
    text = stream.read(length)
    header = json.loads(text)
    keys = stream.read(header["shape"][0] * KEY_BYTES)
    if stream.read(KEY_BYTES) != hashlib.sha256(text + keys).digest():
        raise ValueError("header damaged")
    return header, keys, -(-stream.tell() // _ALIGNMENT) * _ALIGNMENT


def _write_rows(path: Path, keys: bytes, dtype: DTypeLike, blocks: Iterable[NDArray[Any]]) -> None:
    # The lock is held, so whatever lies under this name was left by a process that died.
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as stream:
            written = 0
            for block in blocks:
                rows = np.ascontiguousarray(block, dtype)
                if written == 0:
                    _write_head(stream, keys, rows)
                stream.write(rows.data)
                written += len(rows)
            if written * KEY_BYTES != len(keys):
                raise ValueError(f"{written} rows were made for {len(keys) // KEY_BYTES} keys")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _write_head(stream: BinaryIO, keys: bytes, block: NDArray[Any]) -> None:
    shape = [len(keys) // KEY_BYTES, *block.shape[1:]]
    text = json.dumps({"dtype": block.dtype.str, "shape": shape}).encode()
    stream.write(_MAGIC + len(text).to_bytes(_LENGTH_BYTES, "little") + text + keys)
    stream.write(hashlib.sha256(text + keys).digest())
    stream.write(bytes(-stream.tell() % _ALIGNMENT))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
