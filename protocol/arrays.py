"""Parameters as bytes: one safetensors buffer, the same on the wire and on disk."""

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echofed.protocol.errors import ArraysError
from echofed.protocol.mapped_files import release

Parameters = dict[str, NDArray[np.float32]]
"""Model parameters by name, in the model's own order, float32."""

BLOCK = 1 << 18
"""Numbers worked on at a time."""
FLOAT_BYTES = 4
MAX_HEADER_BYTES = 4 * 2**20
MAX_DIMENSIONS = 32
MAX_SIZE = 2**48
HEADERS_KEPT = 8
"""All sites of a study send arrays of the same names and shapes: their header is made once, and checked once."""
_ENTRY = {"dtype", "shape", "data_offsets"}


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
    stream = io.BytesIO()
    write_parameters(stream.write, parameters, metadata)
    return stream.getvalue()


def write_parameters(
    write: Callable[[memoryview], object],
    parameters: Mapping[str, NDArray[np.float32]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write what `encode_parameters` returns piece by piece, so that no second copy of the parameters is made.

    Args:
        write: takes the pieces, in order.
        parameters: as for `encode_parameters`; mapped ones are read and released again.
        metadata: short text kept in the header.

    Raises:
        ArraysError: an array is not float32; nothing was written.
    """
    for name, array in parameters.items():
        if array.dtype != np.float32:
            raise ArraysError(f"Parameter '{name}' is {array.dtype}, not float32.")
    head = _head(_shapes(parameters), tuple(sorted((metadata or {}).items())))
    write(memoryview(head))
    for name in sorted(parameters):
        flat = np.ascontiguousarray(parameters[name]).reshape(-1)
        for part in parts(flat.size):
            write(flat[part].data)
            release(flat)


def encode_blocks(template: Mapping[str, NDArray[np.float32]], blocks: Iterable[NDArray[np.float32]]) -> bytes:
    """Return the buffer of arrays that are made block by block: every array's `parts`, arrays in the order of their names.

    Args:
        template: arrays of the same names and shapes.
        blocks: float32, flat.
    """
    stream = io.BytesIO()
    stream.write(_head(_shapes(template), ()))
    for block in blocks:
        stream.write(block.data)
    return stream.getvalue()


def parts(size: int) -> Iterator[slice]:
    """Yield the slices in which `size` numbers are worked on, so that a large model needs no second copy for it."""
    for start in range(0, size, BLOCK):
        yield slice(start, min(start + BLOCK, size))


def _shapes(parameters: Mapping[str, NDArray[np.float32]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, parameters[name].shape) for name in sorted(parameters))


@lru_cache(maxsize=HEADERS_KEPT)
def _head(shapes: tuple[tuple[str, tuple[int, ...]], ...], metadata: tuple[tuple[str, str], ...]) -> bytes:
    """Return what stands before the numbers, in the one spelling the safetensors library has for arrays alone."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes:
        begin, end = end, end + FLOAT_BYTES * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def decode_parameters(buffer: bytes | memoryview, max_bytes: int) -> Parameters:
    """Return the arrays in a safetensors buffer.

    The size is checked before anything is allocated, and the header before the numbers are looked at: no overlap, no gap,
    every array inside the buffer. Only float32 is accepted, so integer counters cannot slip in. The arrays are read-only
    views of the buffer, which may be a mapped file.

    Args:
        buffer: what `encode_parameters` returned.
        max_bytes: refuse larger buffers.

    Raises:
        ArraysError: the buffer is too large, malformed or holds another dtype.
    """
    if len(buffer) > max_bytes:
        raise ArraysError(f"The buffer has {len(buffer):,} bytes; at most {max_bytes:,} are accepted.")
    head = bytes(buffer[: 8 + int.from_bytes(buffer[:8], "little")])
    return {
        name: np.frombuffer(buffer, np.float32, math.prod(shape), offset).reshape(shape)
        for name, shape, offset in _places(head, len(buffer))
    }


@lru_cache(maxsize=HEADERS_KEPT)
def _places(head: bytes, length: int) -> list[tuple[str, tuple[int, ...], int]]:
    """Return name, shape and offset of each array in a buffer of this head and length, in the order of the offsets.

    Raises:
        ArraysError: the head is malformed, does not fit the length or tells of another dtype.
    """
    arrays = [_place(name, entry) for name, entry in read_header(head).items() if name != "__metadata__"]
    end, found = 0, []
    for begin, stop, name, shape in sorted(arrays, key=lambda place: place[:2]):
        if begin != end:
            raise ArraysError(f"The buffer is not a sound safetensors file: there is a gap before '{name[:80]}'.")
        found.append((name, shape, len(head) + begin))
        end = stop
    if len(head) + end != length:
        raise ArraysError("The buffer is not a sound safetensors file: its length is not what its header says.")
    return found


def _place(name: str, entry: dict[str, object]) -> tuple[int, int, str, tuple[int, ...]]:
    if entry.get("dtype") != "F32":
        raise ArraysError(f"Parameter '{name[:80]}' is {entry.get('dtype')}, not float32.")
    shape, offsets = _whole_numbers(entry.get("shape")), _whole_numbers(entry.get("data_offsets"))
    if entry.keys() == _ENTRY and shape is not None and offsets is not None and len(offsets) == 2:
        begin, stop = offsets
        if stop - begin == FLOAT_BYTES * math.prod(shape):
            return begin, stop, name, shape
    raise ArraysError(f"The buffer is not a sound safetensors file: it says nothing clear of '{name[:80]}'.")


def _whole_numbers(value: object) -> tuple[int, ...] | None:
    """Return a list from JSON if it can be a shape or a place."""
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        return None
    return tuple(value) if all(type(one) is int and 0 <= one <= MAX_SIZE for one in value) else None


def read_header(buffer: bytes | memoryview) -> dict[str, dict[str, object]]:
    """Return the JSON header of a safetensors buffer.

    Raises:
        ArraysError: the header is missing, longer than the buffer or not a JSON object of objects.
    """
    length = int.from_bytes(buffer[:8], "little")
    if len(buffer) < 8 or length > min(len(buffer) - 8, MAX_HEADER_BYTES):
        raise ArraysError("The buffer is not a safetensors file: its header is cut short.")
    try:
        header = json.loads(bytes(buffer[8 : 8 + length]))
    except (ValueError, RecursionError) as error:  # also of a number too long
        raise ArraysError("The buffer is not a safetensors file: its header is not JSON.") from error
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise ArraysError("The buffer is not a safetensors file: its header is not an object of objects.")
    return header


def read_metadata(buffer: bytes | memoryview) -> dict[str, str]:
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
