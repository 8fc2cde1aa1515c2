"""Parameters as bytes: one safetensors buffer, the same on the wire and on disk."""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from echofed.protocol.errors import ArraysError

Parameters = dict[str, NDArray[np.float32]]
"""Model parameters by name, in the model's own order, float32."""

MAX_HEADER_BYTES = 4 * 2**20
HEADERS_KEPT = 8
"""All sites of a study send arrays of the same names and shapes: their header is made once, and checked once."""


def encode_parameters(
    parameters: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return the safetensors buffer holding `parameters`; the same arrays and texts give the same bytes.

    Args:
        parameters: arrays by name, any shape, float32.
        metadata: short text kept in the header.

    Raises:
        ArraysError: an array is not float32.
    """
    for name, array in parameters.items():
        if array.dtype != np.float32:
            raise ArraysError(f"Parameter '{name}' is {array.dtype}, not float32.")
    contiguous = {name: np.ascontiguousarray(array) for name, array in parameters.items()}
    if metadata:
        return _in_order(save(contiguous, metadata=dict(metadata)))
    head, order = _head(tuple((name, array.shape) for name, array in contiguous.items()))
    return b"".join([head, *(contiguous[name].data for name in order)])


@lru_cache(maxsize=HEADERS_KEPT)
def _head(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> tuple[bytes, list[str]]:
    """Return what stands before the numbers in a buffer of arrays of these shapes, and the arrays' order."""
    buffer = save({name: np.zeros(shape, np.float32) for name, shape in shapes})
    head = _head_of(buffer)
    return head, [name for name, _, _ in _places(head, len(buffer))]


def _in_order(buffer: bytes) -> bytes:
    """Return the buffer with its metadata sorted: the library writes them in random order, and a file has a hash."""
    header = read_header(buffer)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + buffer[8 + int.from_bytes(buffer[:8], "little") :]


def decode_parameters(buffer: bytes, max_bytes: int) -> Parameters:
    """Return the arrays in a safetensors buffer.

    The size is checked before anything is allocated, and the header by the safetensors library (no overlap, no gap,
    offsets inside the buffer). Only float32 is accepted, so integer counters cannot slip in. The arrays are read-only
    views of the buffer.

    Args:
        buffer: what `encode_parameters` returned.
        max_bytes: refuse larger buffers.

    Raises:
        ArraysError: the buffer is too large, malformed or holds another dtype.
    """
    if len(buffer) > max_bytes:
        raise ArraysError(f"The buffer has {len(buffer):,} bytes; at most {max_bytes:,} are accepted.")
    return {
        name: np.frombuffer(buffer, np.float32, math.prod(shape), offset).reshape(shape)
        for name, shape, offset in _places(_head_of(buffer), len(buffer))
    }


def _head_of(buffer: bytes) -> bytes:
    return buffer[: 8 + int.from_bytes(buffer[:8], "little")]


@lru_cache(maxsize=HEADERS_KEPT)
def _places(head: bytes, length: int) -> list[tuple[str, tuple[int, ...], int]]:
    """Return name, shape and offset of each array in a buffer of this head and length, in the order of the offsets.

    Raises:
        ArraysError: the head is malformed, does not fit the length or tells of another dtype.
    """
    header = read_header(head)
    for name, entry in header.items():
        if name != "__metadata__" and entry.get("dtype") != "F32":
            raise ArraysError(f"Parameter '{name[:80]}' is {entry.get('dtype')}, not float32.")
    try:
        arrays = deserialize(head + bytes(length - len(head)))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ArraysError(f"The buffer is not a sound safetensors file: {error}.") from error
    # Without gaps, an array begins where those before it end.
    arrays.sort(key=lambda array: header[array[0]]["data_offsets"])
    sizes = [len(array["data"]) for _, array in arrays]
    offsets = itertools.accumulate(sizes, initial=len(head))
    return [(name, tuple(array["shape"]), offset) for (name, array), offset in zip(arrays, offsets, strict=False)]


def read_header(buffer: bytes) -> dict[str, dict[str, object]]:
    """Return the JSON header of a safetensors buffer.

    Raises:
        ArraysError: the header is missing, longer than the buffer or not a JSON object of objects.
    """
    length = int.from_bytes(buffer[:8], "little")
    if len(buffer) < 8 or length > min(len(buffer) - 8, MAX_HEADER_BYTES):
        raise ArraysError("The buffer is not a safetensors file: its header is cut short.")
    try:
        header = json.loads(buffer[8 : 8 + length])
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArraysError("The buffer is not a safetensors file: its header is not JSON.") from error
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise ArraysError("The buffer is not a safetensors file: its header is not an object of objects.")
    return header


def read_metadata(buffer: bytes) -> dict[str, str]:
    """Return the short texts kept in the header of a safetensors buffer; empty if there are none."""
    return {str(key): str(value) for key, value in read_header(buffer).get("__metadata__", {}).items()}


def check_like(parameters: Mapping[str, NDArray[np.float32]], template: Mapping[str, NDArray[np.float32]]) -> None:
    """Refuse parameters that do not have exactly the names and shapes of the template, or are not finite.

    Raises:
        ArraysError: names are missing or extra, a shape differs, or a value is NaN or infinite.
    """
    check_shapes(parameters, template)
    for name, array in parameters.items():
        if not np.isfinite(array).all():
            raise ArraysError(f"Parameter '{name}' holds NaN or infinity.")


def check_shapes(parameters: Mapping[str, NDArray[np.float32]], template: Mapping[str, NDArray[np.float32]]) -> None:
    """Refuse parameters that do not have exactly the names and shapes of the template; their values are not looked at.

    Raises:
        ArraysError: names are missing or extra, or a shape differs.
    """
    missing, extra = template.keys() - parameters.keys(), parameters.keys() - template.keys()
    if missing or extra:
        raise ArraysError(f"Parameters differ: missing {_few(missing)}, unexpected {_few(extra)}.")
    for name, array in parameters.items():
        if array.shape != template[name].shape:
            raise ArraysError(f"Parameter '{name}' has shape {array.shape}, not {template[name].shape}.")


def _few(names: set[str]) -> str:
    shown = ", ".join(f"'{name[:80]}'" for name in sorted(names)[:3])
    return "none" if not names else shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
